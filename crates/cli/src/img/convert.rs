//! `img convert`.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::SnapshotName;
use cowbell_block::naming::split_option_list;
use cowbell_block::node::{Access, Node};
use cowbell_block::options::{CacheMode, DiscardMode, OptionTree};
use cowbell_host::block_on;
use cowbell_jobs::convert::{
    Copied, OnReadError, Options, Store, TargetStart, Transfer, WriteOrder, convert, total_len,
};
use cowbell_jobs::{Pace, Unpaced};
use serde_json::json;

use super::convert_bitmaps::{Bitmaps, Broken};
use super::lists::{asks_for_help, check_lists};
use super::target::{Format, Staged, mark_existing};
use super::{Form, Interrupted, form, job_failure, snapshot};
use crate::context::{Context, Reported};
use crate::face::Face;
use crate::flags::{Args, img as flags};
use crate::json;
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, Purpose, cache_mode, open};
use crate::out::Out;
use crate::pace::Limited;
use crate::size::{SIZE_MAX, parse_count, parse_named};
use pipe::Ends;

mod pipe;

/// Largest unit of `-S`: the reference's buffer.
const SPARSE_BYTES_MAX: u64 = 16 << 20;
/// Most requests in flight with `-m`.
const PARALLEL_MAX: u64 = 16;

/// The command line, understood.
struct Plan<'a> {
    sources: &'a [String],
    target: &'a str,
    /// The target is standard output, and gets its bytes in order.
    streams: bool,
    source_format: Option<&'a str>,
    target_format: &'a str,
    source_cache: CacheMode,
    target_cache: CacheMode,
    /// From `-B` or from `-o backing_file`, which means the same.
    backing: Option<String>,
    backing_format: Option<&'a str>,
    create: bool,
    compress: bool,
    options: Options,
    target_is_zero: bool,
    /// What of the source is copied, if not its disk.
    snapshot: Option<SnapshotName>,
    pace: Option<u64>,
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let (options, pace) = numbers(args)?;
    let target_format = args.value(&flags::TARGET_FORMAT).unwrap_or("raw");
    check_lists(args.values(&flags::OPTIONS))?;
    if args.values(&flags::OPTIONS).any(asks_for_help) {
        let name = if args.operands.len() > 1 { args.operands.last() } else { None };
        let format = Format::find(cx, target_format, name.map(String::as_str))?;
        Out::new().put(&format.help());
        return Ok(0);
    }
    let snapshot =
        args.value(&flags::SOURCE_SNAPSHOT).map(|text| snapshot::parse_name(cx, text)).transpose()?;
    let checked = plan(args, &args.operands, options, pace, target_format)?;
    let ends = Ends::resolve(cx, args, &checked)?;
    let plan =
        Plan { snapshot, streams: ends.streams, ..plan(args, &ends.operands, options, pace, target_format)? };
    let copied = match ends.pours {
        true => block_on(pipe::pour_into(cx, args, &plan))?,
        false => block_on(whole(cx, args, &plan))?,
    };
    ends.finish()?;
    if form == Form::Json && !args.has(&flags::QUIET) {
        Out::new().put(&json::text(&json_value(&plan, copied)));
    }
    Ok(0)
}

/// The flags with numbers, judged in the order they were given.
fn numbers(args: &Args) -> Result<(Options, Option<u64>)> {
    let mut options = Options::default();
    let mut rate = None;
    for (flag, text) in args.iter() {
        if std::ptr::eq(flag, &flags::SPARSE_SIZE) {
            let bytes = parse_named("buffer size for sparse output", text, 0, SIZE_MAX)?;
            if !bytes.is_multiple_of(512) || bytes > SPARSE_BYTES_MAX {
                bail!(
                    "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up \
                     to {SPARSE_BYTES_MAX}. Select 0 to disable sparse detection (fully allocates output)."
                );
            }
            options.sparse_bytes = bytes;
        } else if std::ptr::eq(flag, &flags::PARALLEL) {
            options.parallel = parse_count("number of coroutines", text, 1, PARALLEL_MAX)? as usize;
        } else if std::ptr::eq(flag, &flags::RATE) {
            rate = Some(parse_named("rate limit", text, 0, SIZE_MAX)?).filter(|rate| *rate > 0);
        }
    }
    if args.has(&flags::OUT_OF_ORDER) {
        options.order = WriteOrder::Any;
    }
    if args.has(&flags::COPY_RANGE) {
        options.transfer = Transfer::Offload;
    }
    if args.has(&flags::SALVAGE) {
        options.on_read_error = OnReadError::Salvage;
    }
    Ok((options, rate))
}

fn plan<'a>(
    args: &'a Args,
    operands: &'a [String],
    options: Options,
    pace: Option<u64>,
    target_format: &'a str,
) -> Result<Plan<'a>> {
    let create = !args.has(&flags::NO_CREATE);
    let source_format = args.value(&flags::SOURCE_FORMAT);
    if args.has(&flags::SOURCE_IMAGE_OPTS) && source_format.is_some() {
        bail!("--image-opts and --format are mutually exclusive");
    }
    if create && args.has(&flags::TARGET_IMAGE_OPTS) {
        bail!("--target-image-opts requires use of -n flag");
    }
    if args.has(&flags::TARGET_IMAGE_OPTS) && args.has(&flags::TARGET_FORMAT) {
        bail!("--image-opts and --format are mutually exclusive");
    }
    if create && args.has(&flags::TARGET_IS_ZERO) {
        bail!("--target-is-zero requires use of -n flag");
    }
    let compress = args.has(&flags::CONVERT_COMPRESS);
    if args.has(&flags::COPY_RANGE) && compress {
        bail!("Cannot enable copy offloading when -c is used");
    }
    if args.has(&flags::COPY_RANGE) && args.has(&flags::SPARSE_SIZE) {
        bail!("Cannot enable copy offloading when -S is used");
    }
    if args.has(&flags::COPY_RANGE) && args.has(&flags::SALVAGE) {
        bail!("Cannot use copy offloading in salvaging mode");
    }
    if args.has(&flags::SKIP_BROKEN_BITMAPS) && !args.has(&flags::BITMAPS) {
        bail!("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    let (sources, target) = match operands {
        [sources @ .., target] if !sources.is_empty() => (sources, target.as_str()),
        _ => bail!("Must specify image file name"),
    };
    if !create && args.has(&flags::OPTIONS) {
        bail!("-o has no effect when skipping image creation");
    }
    Ok(Plan {
        sources,
        target,
        streams: false,
        source_format,
        target_format,
        source_cache: cache_mode("source cache", args.value(&flags::SOURCE_CACHE).unwrap_or("writeback"))?,
        target_cache: cache_mode("cache", args.value(&flags::TARGET_CACHE).unwrap_or("unsafe"))?,
        backing: args.value(&flags::CONVERT_BACKING).map(str::to_owned).or_else(|| backing_option(args)),
        backing_format: args.value(&flags::BACKING_FORMAT),
        create,
        compress,
        options,
        target_is_zero: args.has(&flags::TARGET_IS_ZERO),
        snapshot: None,
        pace,
    })
}

/// The last `backing_file` in `-o`.
fn backing_option(args: &Args) -> Option<String> {
    let items = args.values(&flags::OPTIONS).flat_map(split_option_list);
    items.filter(|(key, _)| *key == "backing_file").last().map(|(_, name)| name)
}

async fn whole(cx: &Context, args: &Args, plan: &Plan<'_>) -> Result<Copied> {
    let mut sources = Vec::new();
    for name in plan.sources {
        let how = How {
            image_opts: args.has(&flags::SOURCE_IMAGE_OPTS),
            cache: plan.source_cache,
            force_share: args.has(&flags::FORCE_SHARE),
            side_by_side: plan.sources.len() + 1,
            purpose: Purpose::Source,
            ..How::reading(name, plan.source_format)
        };
        sources.push(open(cx, &how).await?);
    }
    let disk = match plan.snapshot.clone() {
        Some(_) if sources.len() > 1 => bail!("No support for concatenating multiple snapshot"),
        Some(which) => Some(snapshot::enter(&mut sources[0], which).await?),
        None => None,
    };
    if plan.backing.is_some() && sources.len() > 1 {
        bail!("Having a backing file for the target makes no sense when concatenating multiple input images");
    }
    let bitmaps = match args.has(&flags::BITMAPS) {
        true => Some(source_bitmaps(cx, args, plan, &sources, disk.clone()).await?),
        false => None,
    };
    if plan.streams {
        let streamed = pipe::stream(cx, args, plan, &sources).await;
        for source in sources {
            source.close().await?;
        }
        if let Some(disk) = disk {
            disk.close().await?;
        }
        return streamed;
    }
    let staged = if plan.create {
        let roots: Vec<_> = sources.iter().map(|image| image.root.clone()).collect();
        create_target(cx, args, plan, total_len(&roots)).await?
    } else {
        Staged::existing(plan.target)
    };
    let filled = fill(cx, args, plan, &sources, bitmaps.as_ref(), &staged).await;
    for source in sources {
        source.close().await?;
    }
    if let Some(disk) = disk {
        disk.close().await?;
    }
    match filled {
        Ok(copied) => {
            staged.finish()?;
            Ok(copied)
        }
        Err(e) => {
            cx.report(staged.reword(&e.to_string()));
            if cx.face == Face::Cowbell || e.is::<Interrupted>() {
                cx.report(match staged.is_removable() {
                    true => format!("the unfinished output '{}' is removed", plan.target),
                    false => format!("the output '{}' is incomplete", plan.target),
                });
            }
            Err(Reported.into())
        }
    }
}

/// Makes the target, as large as the sources together, whatever `-o size` says.
async fn create_target(cx: &Context, args: &Args, plan: &Plan<'_>, len: u64) -> Result<Staged> {
    let fmt = plan.target_format;
    let format = Format::find(cx, fmt, Some(plan.target))?;
    let mut options: OptionTree = format.options(args.values(&flags::OPTIONS))?;
    options.insert("size".into(), len.into());
    if let Some(backing) = &plan.backing {
        if !format.knows("backing_file") {
            bail!("Backing file not supported for file format '{fmt}'");
        }
        options.insert("backing_file".into(), backing.as_str().into());
    }
    if let Some(backing_format) = plan.backing_format {
        if !format.knows("backing_fmt") {
            bail!("Backing file format not supported for file format '{fmt}'");
        }
        options.insert("backing_fmt".into(), backing_format.into());
    }
    if let Some(name) = options.get("backing_fmt").and_then(|name| name.as_str())
        && cx.registry().driver(name).is_none()
    {
        let target = plan.target;
        bail!(
            "{target}: error while converting {fmt}: Parameter 'backing-fmt' does not accept value '{name}'"
        );
    }
    if options.contains_key("backing_file") && !options.contains_key("backing_fmt") {
        bail!("Use of backing file requires explicit backing format");
    }
    if plan.compress {
        check_compression(&format, &options)?;
    }
    let mut staged = Staged::new(plan.target)?;
    staged.key_secrets = key_secrets(&options);
    format.create(cx, &staged.name, options, staged.mark.as_ref()).await.map_err(|e| {
        anyhow!("{}: error while converting {fmt}: {}", plan.target, staged.reword(&e.to_string()))
    })?;
    staged.created();
    Ok(staged)
}

/// What a new image is encrypted with, it is opened with as well.
fn key_secrets(options: &OptionTree) -> OptionTree {
    let is_secret = |key: &str| key.ends_with("key-secret");
    options
        .iter()
        .filter(|(key, _)| is_secret(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Whether the format stores data compressed, with these options of creation.
fn check_compression(format: &Format, options: &OptionTree) -> Result<()> {
    let word = |key: &str| options.get(key).and_then(|value| value.as_str());
    if !format.driver.supports_compression() {
        bail!("Compression not supported for this file format");
    }
    let encrypts = options.get("encryption").is_some_and(|on| on == true) || word("encrypt.format").is_some();
    if encrypts {
        bail!("Compression and encryption not supported at the same time");
    }
    if word("preallocation").is_some_and(|mode| mode != "off") {
        bail!("Compression and preallocation not supported at the same time");
    }
    Ok(())
}

/// Opens the target, copies, and closes it.
async fn fill(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    sources: &[Image],
    bitmaps: Option<&Bitmaps>,
    staged: &Staged,
) -> Result<Copied> {
    let image_opts = args.has(&flags::TARGET_IMAGE_OPTS);
    let how = How {
        image_opts,
        access: Access::ReadWrite,
        cache: plan.target_cache,
        // Holes are made where they may be: the reference opens the target so unless -S is 0.
        mark: staged.mark.clone(),
        more: staged.key_secrets.clone(),
        side_by_side: sources.len() + 1,
        discard: if plan.options.sparse_bytes > 0 { DiscardMode::Unmap } else { DiscardMode::Ignore },
        ..How::reading(&staged.name, if image_opts { None } else { Some(plan.target_format) })
    };
    let mut target = open(cx, &how).await?;
    let mark = match plan.create {
        true => staged.mark.clone(),
        false => Some(mark_existing(&mut target)),
    };
    let copied = copy(cx, args, plan, sources, bitmaps, &target).await;
    if let (Some(mark), Ok(_)) = (mark, &copied) {
        mark.complete();
    }
    let closed = target.close().await;
    let copied = copied?;
    closed?;
    Ok(copied)
}

async fn copy(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    sources: &[Image],
    bitmaps: Option<&Bitmaps>,
    target: &Image,
) -> Result<Copied> {
    let roots: Vec<_> = sources.iter().map(|image| image.root.clone()).collect();
    let node = target.node();
    if let Some(bitmaps) = bitmaps {
        bitmaps.check_target(&node)?;
    }
    if node.len() < total_len(&roots) {
        bail!("output file is smaller than input file");
    }
    let start = match (&plan.backing, node.backing()) {
        (Some(_), Some(backing)) => TargetStart::Backing { len: backing.len() },
        (_, Some(_)) if plan.target_is_zero => {
            bail!("Cannot use --target-is-zero when the destination image has a backing file")
        }
        (_, None) if plan.target_is_zero || (plan.create && node.starts_as_zero()) => TargetStart::Zero,
        _ => TargetStart::Unknown,
    };
    let store = match plan.compress {
        false => Store::Plain,
        true if !node.compresses() => bail!("Compression not supported for this file format"),
        true => Store::Compressed { cluster: node.limits().preferred_write },
    };
    let options = Options { start, store, ..plan.options };
    let quiet = args.has(&flags::QUIET);
    let json = form(args, &flags::OUTPUT_MORE)? == Form::Json;
    let meter = Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(quiet || json));
    let limited = plan.pace.map(Limited::new);
    let pace: &dyn Pace = match &limited {
        Some(limited) => limited,
        None => &Unpaced,
    };
    let copied = convert(&roots, &target.root, &options, &meter, pace).await;
    if copied.is_ok() {
        meter.complete();
    }
    meter.end();
    let copied = copied.map_err(|e| job_failure(cx, &e))?;
    if let Some(bitmaps) = bitmaps {
        bitmaps.copy(&node).await?;
    }
    Ok(copied)
}

/// What `--bitmaps` copies; found before the target is made.
async fn source_bitmaps(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    sources: &[Image],
    disk: Option<Arc<dyn Node>>,
) -> Result<Bitmaps> {
    if plan.create {
        Format::find(cx, plan.target_format, Some(plan.target))?;
    }
    let [source] = sources else { bail!("Copying bitmaps only possible with single source") };
    let broken = match args.has(&flags::SKIP_BROKEN_BITMAPS) {
        true => Broken::Skipped,
        false => Broken::Refused,
    };
    Bitmaps::of(cx, disk.unwrap_or_else(|| source.node()), broken).await
}

fn json_value(plan: &Plan<'_>, copied: Copied) -> serde_json::Value {
    json!({
        "filename": plan.target,
        "format": plan.target_format,
        "data-bytes": copied.data,
        "zero-bytes": copied.zeroes,
        "skipped-bytes": copied.skipped,
        "offloaded-bytes": copied.offloaded,
        "unreadable-bytes": copied.unreadable,
    })
}
