//! `img convert` from standard input and to standard output.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::create::CreateArgs;
use cowbell_block::naming::split_option_list;
use cowbell_block::node::{Access, Node};
use cowbell_block::options::DiscardMode;
use cowbell_block::{Child, Root};
use cowbell_jobs::Progress;
use cowbell_jobs::convert::{Copied, Options, TargetStart, announce_data, total_len};
use cowbell_qcow2::stream::{Announced, StreamNode, StreamPlan};

use super::{Plan, Staged, create_target};
use crate::context::{Context, Reported};
use crate::flags::{Args, img as flags};
use crate::img::stdio::{self, Input, Nameless, PipeNode};
use crate::img::{Form, Interrupted, form, job_failure};
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, open};

/// Options of a new qcow2 image that ask for nothing but tables and data.
const PLAIN_OPTIONS: [&str; 6] =
    ["size", "cluster_size", "compat", "refcount_bits", "compression_type", "lazy_refcounts"];

/// The names of a command line, with what stands for `-` in them.
pub(super) struct Ends {
    pub(super) operands: Vec<String>,
    /// The output gets its bytes in order, as they are made.
    pub(super) streams: bool,
    /// The input gives raw bytes in order, and the output can grow with them.
    pub(super) pours: bool,
    kept: Option<Nameless>,
    _input: Option<Input>,
}

impl Ends {
    /// Finds out what `-` stands for, and how far it can be used as it is.
    ///
    /// # Errors
    /// It stands for what cannot be read, or written to.
    pub(super) fn resolve(cx: &Context, args: &Args, plan: &Plan<'_>) -> Result<Self> {
        let mut operands = args.operands.clone();
        let (mut streams, mut pours, mut kept, mut input) = (false, false, None, None);
        let writes = !args.has(&flags::TARGET_IMAGE_OPTS) && stdio::is_dash(cx, plan.target);
        if writes {
            if !plan.create {
                bail!("'-' is made anew: leave out -n");
            }
            let shows = Audience::of(args, &flags::PROGRESS)? == Audience::People;
            stdio::check_output(shows || form(args, &flags::OUTPUT_MORE)? == Form::Json)?;
            streams = can_stream(args, plan);
            if !streams {
                let file = Nameless::new()?;
                if let Some(last) = operands.last_mut() {
                    *last = file.name();
                }
                kept = Some(file);
            }
        }
        let reads = !args.has(&flags::SOURCE_IMAGE_OPTS);
        let sources = operands.len() - 1;
        let mut dashes = operands[..sources].iter_mut().filter(|name| reads && stdio::is_dash(cx, name));
        if let Some(dash) = dashes.next() {
            if dashes.next().is_some() {
                bail!("standard input can be read once");
            }
            pours = stdio::is_pipe() && !writes && sources == 1 && can_pour(args, plan);
            if !pours {
                let taken = Input::take(cx)?;
                dash.clone_from(&taken.name);
                input = Some(taken);
            }
        }
        Ok(Self { operands, streams, pours, kept, _input: input })
    }

    /// Sends what was kept for standard output.
    ///
    /// # Errors
    /// Standard output takes no more.
    pub(super) fn finish(&self) -> Result<()> {
        self.kept.as_ref().map_or(Ok(()), Nameless::send)
    }
}

/// The options of the new image that `-o` gives.
fn given_options(args: &Args) -> impl Iterator<Item = (&str, String)> {
    args.values(&flags::OPTIONS).flat_map(split_option_list)
}

/// Whether everything before the data is known before the data.
fn can_stream(args: &Args, plan: &Plan<'_>) -> bool {
    let in_order = !plan.compress && !args.has(&flags::OUT_OF_ORDER);
    let alone = plan.backing.is_none() && !args.has(&flags::BITMAPS);
    in_order
        && alone
        && match plan.target_format {
            "raw" => given_options(args).next().is_none(),
            cowbell_qcow2::DRIVER => given_options(args).all(|(key, _)| PLAIN_OPTIONS.contains(&key)),
            _ => false,
        }
}

/// Whether raw bytes can go into the target as they come, and nothing has to be known of them before.
fn can_pour(args: &Args, plan: &Plan<'_>) -> bool {
    let unlike = [
        &flags::SOURCE_SNAPSHOT,
        &flags::BITMAPS,
        &flags::SALVAGE,
        &flags::RATE,
        &flags::COPY_RANGE,
        &flags::TARGET_IMAGE_OPTS,
    ];
    plan.source_format == Some("raw")
        && plan.create
        && !plan.compress
        && plan.backing.is_none()
        && !unlike.iter().any(|flag| args.has(flag))
        && match plan.target_format {
            "raw" => given_options(args).next().is_none(),
            cowbell_qcow2::DRIVER => given_options(args).all(|(key, _)| PLAIN_OPTIONS.contains(&key)),
            _ => false,
        }
}

fn meter(cx: &Context, args: &Args) -> Result<Meter> {
    let json = form(args, &flags::OUTPUT_MORE)? == Form::Json;
    Ok(Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(args.has(&flags::QUIET) || json)))
}

/// Fills a new target with raw bytes from standard input, whose number nobody knows before they end.
pub(super) async fn pour_into(cx: &Context, args: &Args, plan: &Plan<'_>) -> Result<Copied> {
    let staged = create_target(cx, args, plan, 0).await?;
    match pour_staged(cx, args, plan, &staged).await {
        Ok(copied) => {
            staged.finish()?;
            Ok(copied)
        }
        Err(e) => {
            cx.report(staged.reword(&e.to_string()));
            cx.report(match staged.is_removable() {
                true => format!("the unfinished output '{}' is removed", plan.target),
                false => format!("the output '{}' is incomplete", plan.target),
            });
            Err(Reported.into())
        }
    }
}

async fn pour_staged(cx: &Context, args: &Args, plan: &Plan<'_>, staged: &Staged) -> Result<Copied> {
    let how = How {
        access: Access::ReadWrite,
        cache: plan.target_cache,
        mark: staged.mark.clone(),
        discard: DiscardMode::Unmap,
        ..How::reading(&staged.name, Some(plan.target_format))
    };
    let target = open(cx, &how).await?;
    let meter = meter(cx, args)?;
    let poured = stdio::pour(&target, plan.options.sparse_bytes, |done| meter.advanced(done, 0)).await;
    if poured.is_ok() {
        meter.complete();
    }
    meter.end();
    if let (Some(mark), Ok(_)) = (&staged.mark, &poured) {
        mark.complete();
    }
    let closed = target.close().await;
    let copied = poured?;
    closed?;
    Ok(copied)
}

/// Copies the sources to standard output, in one pass over their data.
pub(super) async fn stream(cx: &Context, args: &Args, plan: &Plan<'_>, sources: &[Image]) -> Result<Copied> {
    match stream_all(cx, args, plan, sources).await {
        Ok(copied) => Ok(copied),
        Err(e) => {
            cx.report(&e);
            cx.report("what went to standard output is incomplete");
            Err(Reported.into())
        }
    }
}

async fn stream_all(cx: &Context, args: &Args, plan: &Plan<'_>, sources: &[Image]) -> Result<Copied> {
    let roots: Vec<_> = sources.iter().map(|image| image.root.clone()).collect();
    let options = Options { start: TargetStart::Zero, ..plan.options };
    let node: Arc<dyn Node> = match plan.target_format {
        "raw" => Arc::new(PipeNode::stdout(total_len(&roots))),
        _ => Arc::new(begin_qcow2(cx, args, plan, &roots, &options).await?),
    };
    let target = stdio::image(node);
    let copied = super::copy(cx, args, plan, sources, None, &target).await?;
    target.close().await?;
    Ok(copied)
}

/// Says where everything will lie, and writes what comes before the data.
async fn begin_qcow2(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    roots: &[Root],
    options: &Options,
) -> Result<StreamNode> {
    let len = total_len(roots);
    let format = super::Format::find(cx, plan.target_format, None)?;
    let mut tree = format.options(args.values(&flags::OPTIONS))?;
    tree.insert("size".into(), len.into());
    let failed = |e: cowbell_block::Error| anyhow!("-: error while converting {}: {e}", plan.target_format);
    let create = cowbell_qcow2::creation_options(CreateArgs { filename: "-".to_owned(), options: tree });
    let create = create.map_err(failed)?;
    let mut announced = Announced::new(create.cluster_bits);
    match options.sparse_bytes {
        // Everything is stored.
        0 => announced.add(0..len),
        _ => {
            let known = announce_data(roots, options, |bytes| {
                announced.add(bytes);
                !cowbell_host::signal::is_interrupted()
            });
            if !known.await.map_err(|e| job_failure(cx, &e))? {
                return Err(Interrupted.into());
            }
        }
    }
    let layout = StreamPlan::new(create, announced).map_err(failed)?;
    let sink = Child::new(Arc::new(PipeNode::stdout(0)));
    StreamNode::begin(layout, sink).await.map_err(|e| anyhow!("error while writing at byte 0: {e}"))
}
