//! `img dd`.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::has_protocol;
use cowbell_block::node::Access;
use cowbell_block::options::OptionTree;
use cowbell_block::registry::RAW;
use cowbell_host::block_on;
use cowbell_jobs::Unpaced;
use cowbell_jobs::convert::{Copied, Options, Part, TargetStart, convert};
use serde_json::json;

use super::stdio::{self, Input, Nameless, PipeNode, check_output, is_dash};
use super::target::{Format, Staged};
use super::{Form, form, format_or_options, job_failure};
use crate::context::{Context, Reported};
use crate::face::Face;
use crate::flags::{Args, blocks, img as flags};
use crate::json;
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, open};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_count, parse_named};

/// Bytes of a block unless the user says otherwise.
const BLOCK_BYTES: u64 = 512;
/// Most bytes of a block: the reference's limit.
const BLOCK_BYTES_MAX: u64 = i32::MAX as u64;

/// The operands.
struct Operands<'a> {
    input: &'a str,
    output: &'a str,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl<'a> Operands<'a> {
    fn parse(words: &'a [String]) -> Result<Self> {
        let (mut input, mut output) = (None, None);
        let (mut block, mut count, mut skip) = (BLOCK_BYTES, None, 0);
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                _ if !word.contains('=') => bail!("unrecognized operand {key}"),
                "if" => input = Some(value),
                "of" => output = Some(value),
                "bs" => block = parse_named("bs", value, 1, BLOCK_BYTES_MAX)?,
                "count" => count = Some(parse_count("count", value, 0, SIZE_MAX)?),
                "skip" => skip = parse_count("skip", value, 0, SIZE_MAX)?,
                _ => bail!("unrecognized operand {key}"),
            }
        }
        match (input, output) {
            (Some(input), Some(output)) => Ok(Self { input, output, block, count, skip }),
            _ => bail!("Must specify both input and output files"),
        }
    }

    /// Which part of an input of `len` bytes is copied; `None` when it begins behind the end.
    fn part(&self, face: Face, len: u64) -> Option<Part> {
        let bytes = |blocks: u64| blocks.checked_mul(self.block).filter(|bytes| *bytes <= SIZE_MAX);
        let counted = self.count.and_then(bytes);
        let skipped = bytes(self.skip)?;
        let end = match face {
            Face::Cowbell => counted.map_or(len, |n| skipped.saturating_add(n).min(len)),
            // The reference takes the count off first, and what is skipped off that.
            _ => counted.map_or(len, |n| n.min(len)),
        };
        Some(Part { offset: skipped, len: end.checked_sub(skipped)? })
    }
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let operands = Operands::parse(&args.operands)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let reads = !image_opts && is_dash(cx, operands.input);
    let input = reads.then(|| Input::take(cx)).transpose()?;
    let raw = args.value(&blocks::OUTPUT_FORMAT).is_none_or(|format| format == RAW);
    let mut kept = None;
    if is_dash(cx, operands.output) {
        let shows = Audience::of(args, &flags::PROGRESS_MORE)? == Audience::People;
        check_output(shows || form == Form::Json)?;
        kept = (!raw).then(Nameless::new).transpose()?;
    }
    let kept_name = kept.as_ref().map(Nameless::name);
    let operands = Operands {
        input: input.as_ref().map_or(operands.input, |input| &input.name),
        output: kept_name.as_deref().unwrap_or(operands.output),
        ..operands
    };
    let how = How {
        image_opts,
        force_share: args.has(&flags::FORCE_SHARE),
        side_by_side: 2,
        ..How::reading(operands.input, format)
    };
    block_on(async {
        let source = open(cx, &how).await?;
        let done = whole(cx, args, &operands, &source).await;
        let closed = source.close().await;
        let copied = done?;
        closed?;
        if let Some(kept) = &kept {
            kept.send()?;
        }
        if form == Form::Json {
            Out::new().put(&json::text(&json!({
                "filename": operands.output,
                "data-bytes": copied.data,
                "skipped-bytes": copied.skipped,
            })));
        }
        Ok(0)
    })
}

async fn whole(cx: &Context, args: &Args, operands: &Operands<'_>, source: &Image) -> Result<Copied> {
    let name = args.value(&blocks::OUTPUT_FORMAT).unwrap_or("raw");
    if cx.registry().driver(name).is_none() {
        bail!("Unknown file format");
    }
    let audience = Audience::of(args, &flags::PROGRESS_MORE)?;
    if is_dash(cx, operands.output) {
        return to_stdout(cx, operands, source, audience).await;
    }
    let format = Format::find(cx, name, Some(operands.output))?;
    if is_same_file(source, operands.output) {
        bail!("'{}' is the input as well as the output", operands.output);
    }
    // Counted in sectors, as a disk is.
    let len = source.node().len().next_multiple_of(512);
    let part = operands.part(cx.face, len);
    let mut options = OptionTree::new();
    options.insert("size".into(), part.map_or(0, |part| part.len.next_multiple_of(512)).into());
    let mut staged = Staged::new(operands.output)?;
    format.create(cx, &staged.name, options, staged.mark.as_ref()).await.map_err(|e| {
        anyhow!("{}: error while creating output image: {}", operands.output, staged.reword(&e.to_string()))
    })?;
    staged.created();
    match fill(cx, name, part, source, &staged, audience).await {
        Ok(copied) => {
            staged.finish()?;
            if part.is_none() {
                cx.report(format!("{}: cannot skip to specified offset", operands.input));
            }
            Ok(copied)
        }
        Err(e) => {
            cx.report(staged.reword(&e.to_string()));
            Err(Reported.into())
        }
    }
}

/// Whether making `output` anew would take away what is read.
fn is_same_file(source: &Image, output: &str) -> bool {
    let mut node = source.node();
    while let Some(below) = node.primary() {
        node = below;
    }
    let real = |name: &str| if has_protocol(name) { None } else { std::fs::canonicalize(name).ok() };
    real(output).is_some_and(|output| real(&node.filename()) == Some(output))
}

async fn fill(
    cx: &Context,
    format: &str,
    part: Option<Part>,
    source: &Image,
    staged: &Staged,
    audience: Audience,
) -> Result<Copied> {
    let how = How {
        access: Access::ReadWrite,
        mark: staged.mark.clone(),
        side_by_side: 2,
        ..How::reading(&staged.name, Some(format))
    };
    let target = open(cx, &how).await?;
    let node = target.node();
    let start = if node.starts_as_zero() { TargetStart::Zero } else { TargetStart::Unknown };
    let options = Options { start, part, ..Options::default() };
    let copied = match part {
        None => Ok(Copied::default()),
        Some(_) => copy(cx, source, &target, &options, audience).await,
    };
    if let (Some(mark), Ok(_)) = (&staged.mark, &copied) {
        mark.complete();
    }
    let closed = target.close().await;
    let copied = copied?;
    closed?;
    Ok(copied)
}

async fn copy(
    cx: &Context,
    source: &Image,
    target: &Image,
    options: &Options,
    audience: Audience,
) -> Result<Copied> {
    let meter = Meter::new(cx, audience);
    let sources = std::slice::from_ref(&source.root);
    let copied = convert(sources, &target.root, options, &meter, &Unpaced).await;
    meter.end();
    copied.map_err(|e| failure(cx, &e))
}

/// Copies to standard output, as it comes.
async fn to_stdout(
    cx: &Context,
    operands: &Operands<'_>,
    source: &Image,
    audience: Audience,
) -> Result<Copied> {
    let len = source.node().len().next_multiple_of(512);
    let Some(part) = operands.part(cx.face, len) else {
        bail!("{}: cannot skip to specified offset", operands.input);
    };
    let target = stdio::image(Arc::new(PipeNode::stdout(part.len)));
    let options = Options { start: TargetStart::Zero, part: Some(part), ..Options::default() };
    let copied = copy(cx, source, &target, &options, audience).await?;
    target.close().await?;
    Ok(copied)
}

fn failure(cx: &Context, error: &cowbell_jobs::Error) -> anyhow::Error {
    use cowbell_jobs::Error as Job;
    let (what, source) = match error {
        Job::Read { source, .. } | Job::Status { source, .. } if cx.face != Face::Cowbell => {
            ("reading from input", source)
        }
        Job::Write { source, .. } | Job::Flush { source } if cx.face != Face::Cowbell => {
            ("writing to output", source)
        }
        _ => return job_failure(cx, error),
    };
    anyhow!("error while {what} image file: {}", cowbell_block::error::errno_text(source.errno()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_counted_as_each_face_counts() {
        let operands = |count, skip| Operands { input: "", output: "", block: 100, count, skip };
        let part = |offset, len| Some(Part { offset, len });
        for face in [Face::Cowbell, Face::QemuImg] {
            assert_eq!(operands(None, 0).part(face, 1024), part(0, 1024));
            assert_eq!(operands(None, 3).part(face, 1024), part(300, 724));
            assert_eq!(operands(Some(50), 3).part(face, 1024), part(300, 724));
            assert_eq!(operands(None, 11).part(face, 1024), None);
            assert_eq!(operands(None, u64::MAX / 2).part(face, 1024), None);
            assert_eq!(operands(Some(u64::MAX / 2), 3).part(face, 1024), part(300, 724));
        }
        assert_eq!(operands(Some(2), 3).part(Face::Cowbell, 1024), part(300, 200));
        assert_eq!(operands(Some(2), 3).part(Face::QemuImg, 1024), None);
        assert_eq!(operands(Some(5), 3).part(Face::QemuImg, 1024), part(300, 200));
    }
}
