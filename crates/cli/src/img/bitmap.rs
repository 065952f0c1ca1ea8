//! `img bitmap`.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::node::{Access, Node};
use cowbell_host::block_on;
use cowbell_qcow2::{BitmapError, BitmapInfo, Qcow2, Recording};
use serde_json::{Value, json};

use super::{Form, form, format_or_options, one_image};
use crate::context::{Context, Reported};
use crate::flags::{Args, Flag, bitmap as flags, img};
use crate::json;
use crate::open::{How, Image, Purpose, open, warn_probed_raw};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_named};

/// How messages call a node that is no qcow2 image. The reference makes up a name with a random number in it.
const NODE_NAME: &str = "#block100";

/// One thing to do.
#[derive(Clone, Copy, Debug)]
enum Action<'a> {
    Add,
    Remove,
    Clear,
    Record(Recording),
    Merge(&'a str),
}

impl Action<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Record(Recording::On) => "enable",
            Self::Record(Recording::Off) => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

fn actions(args: &Args) -> Vec<Action<'_>> {
    let action = |(flag, value): (&'static Flag, _)| {
        let is = |other: &'static Flag| std::ptr::eq(flag, other);
        Some(match () {
            () if is(&flags::ADD) => Action::Add,
            () if is(&flags::REMOVE) => Action::Remove,
            () if is(&flags::CLEAR) => Action::Clear,
            () if is(&flags::ENABLE) => Action::Record(Recording::On),
            () if is(&flags::DISABLE) => Action::Record(Recording::Off),
            () if is(&flags::MERGE) => Action::Merge(value),
            () => return None,
        })
    };
    args.iter().filter_map(action).collect()
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let granularity = granularity(args)?;
    let form = form(args, &img::OUTPUT_MORE)?;
    let actions = actions(args);
    if args.has(&flags::LIST) || args.has(&flags::DUMP) {
        return show(cx, args, &actions, form);
    }
    if actions.is_empty() {
        bail!("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
    }
    if granularity > 0 && !args.has(&flags::ADD) {
        bail!("granularity only supported with --add");
    }
    if args.has(&flags::SOURCE_FORMAT) && !args.has(&flags::SOURCE_FILE) {
        bail!("-F only supported with -b");
    }
    if args.has(&flags::SOURCE_FILE) && !args.has(&flags::MERGE) {
        bail!("Merge bitmap source file only supported with --merge");
    }
    let [file, bitmap] = args.operands.as_slice() else { bail!("Expecting filename and bitmap name") };
    block_on(async {
        let image = open_image(cx, args, file, Access::ReadWrite).await?;
        let changed = change(cx, args, &image, bitmap, granularity, &actions).await;
        let closed = image.close().await;
        let done = changed?;
        closed?;
        if form == Form::Json {
            let names: Vec<&str> = actions.iter().map(|action| action.name()).collect();
            let value = json!({ "filename": file, "bitmap": bitmap, "actions": names, "bitmaps": done });
            Out::new().put(&json::text(&value));
        }
        Ok(0)
    })
}

fn granularity(args: &Args) -> Result<u64> {
    let Some(text) = args.value(&flags::GRANULARITY) else { return Ok(0) };
    parse_named("granularity", text, 0, SIZE_MAX)
}

/// Opens the image for its metadata: what its backing file holds is of no interest.
async fn open_image(cx: &Context, args: &Args, file: &str, access: Access) -> Result<Image> {
    let (format, image_opts) = format_or_options(args, &img::FORMAT)?;
    let purpose = if access == Access::ReadWrite { Purpose::Change } else { Purpose::Inspect };
    let how = How { image_opts, access, purpose, ..How::reading(file, format) };
    let image = open(cx, &how).await?;
    if image.probed_raw && access == Access::ReadWrite {
        warn_probed_raw(file);
    }
    Ok(image)
}

/// Takes the actions in their order; returns the bitmaps that are there then.
async fn change(
    cx: &Context,
    args: &Args,
    image: &Image,
    bitmap: &str,
    granularity: u64,
    actions: &[Action<'_>],
) -> Result<Vec<Value>> {
    let source = match args.value(&flags::SOURCE_FILE) {
        None => None,
        Some(file) => {
            let format = args.value(&flags::SOURCE_FORMAT);
            let how = How { purpose: Purpose::Inspect, ..How::reading(file, format) };
            Some(open(cx, &how).await?)
        }
    };
    let node = image.node();
    let from = source.as_ref().map_or_else(|| node.clone(), Image::node);
    let mut result = Ok(());
    for action in actions {
        if let Err(e) = act(&node, &from, bitmap, granularity, *action).await {
            result = Err(anyhow!("Operation {} on bitmap {bitmap} failed: {e}", action.name()));
            break;
        }
    }
    if let Some(source) = source {
        source.close().await?;
    }
    result?;
    match qcow2(&node) {
        Some(image) => Ok(image.bitmaps().await?.iter().map(value).collect()),
        None => Ok(Vec::new()),
    }
}

async fn act(
    node: &Arc<dyn Node>,
    source: &Arc<dyn Node>,
    bitmap: &str,
    granularity: u64,
    action: Action<'_>,
) -> Result<()> {
    let Some(image) = qcow2(node) else {
        match action {
            Action::Add => {
                bail!("Can't store persistent bitmaps to {NODE_NAME}: Operation not supported")
            }
            _ => return Err(BitmapError::NotFound(bitmap.to_owned()).into()),
        }
    };
    match action {
        Action::Add if granularity == 0 => image.add_bitmap(bitmap, image.default_granularity()).await?,
        Action::Add => image.add_bitmap(bitmap, granularity).await?,
        Action::Remove => image.remove_bitmap(bitmap).await?,
        Action::Clear => image.clear_bitmap(bitmap).await?,
        Action::Record(recording) => image.set_recording(bitmap, recording).await?,
        Action::Merge(name) => merge(image, bitmap, source, name).await?,
    }
    Ok(())
}

async fn merge(image: &Qcow2, bitmap: &str, source: &Arc<dyn Node>, name: &str) -> cowbell_block::Result<()> {
    let not_found = |name: &str| BitmapError::NotFound(name.to_owned());
    let target = find(image, bitmap).await?.ok_or_else(|| not_found(bitmap))?;
    let from = qcow2(source).ok_or_else(|| not_found(name))?;
    find(from, name).await?.ok_or_else(|| not_found(name))?;
    if target.inconsistent {
        return Err(BitmapError::Inconsistent(bitmap.to_owned()).into());
    }
    let mut bits = from.read_bitmap(name).await?;
    image.merge_bitmap(bitmap, &mut bits).await
}

pub(super) async fn find(image: &Qcow2, name: &str) -> cowbell_block::Result<Option<BitmapInfo>> {
    Ok(image.bitmaps().await?.into_iter().find(|bitmap| bitmap.name == name))
}

/// The node as an image that may have bitmaps.
pub(super) fn qcow2(node: &Arc<dyn Node>) -> Option<&Qcow2> {
    node.as_any().downcast_ref()
}

fn value(bitmap: &BitmapInfo) -> Value {
    json!({
        "name": bitmap.name,
        "granularity": bitmap.granularity,
        "recording": bitmap.recording,
        "inconsistent": bitmap.inconsistent,
    })
}

/// `--list` and `--dump`.
fn show(cx: &Context, args: &Args, actions: &[Action<'_>], form: Form) -> Result<u8> {
    let others = [&flags::GRANULARITY, &flags::SOURCE_FILE, &flags::SOURCE_FORMAT];
    if !actions.is_empty() || others.iter().any(|flag| args.has(flag)) {
        bail!("--list and --dump only show: they go with no other action");
    }
    let (file, bitmap) = match (args.has(&flags::LIST), args.operands.as_slice()) {
        (true, _) if args.has(&flags::DUMP) => bail!("--list and --dump exclude each other"),
        (true, _) => (one_image(args)?, None),
        (false, [file, bitmap]) => (file.as_str(), Some(bitmap)),
        (false, _) => bail!("Expecting filename and bitmap name"),
    };
    block_on(async {
        let image = open_image(cx, args, file, Access::ReadOnly).await?;
        let node = image.node();
        let shown = match (qcow2(&node), bitmap) {
            (None, _) => Err(anyhow!("{file}: the format '{}' has no bitmaps", node.driver())),
            (Some(image), None) => list(image, form).await,
            (Some(image), Some(bitmap)) => dump(image, bitmap, form).await,
        };
        image.close().await?;
        shown.map_err(|e| {
            cx.report(format!("{e:#}"));
            anyhow::Error::new(Reported)
        })?;
        Ok(0)
    })
}

async fn list(image: &Qcow2, form: Form) -> Result<()> {
    let bitmaps = image.bitmaps().await?;
    let mut out = Out::new();
    if form == Form::Json {
        out.put(&json::text(&Value::Array(bitmaps.iter().map(value).collect())));
        return Ok(());
    }
    out.put(&format!("{:>12}  {:<12}  {}\n", "GRANULARITY", "STATE", "NAME"));
    for bitmap in &bitmaps {
        let state = match bitmap {
            BitmapInfo { inconsistent: true, .. } => "inconsistent",
            BitmapInfo { recording: true, .. } => "recording",
            _ => "still",
        };
        out.put(&format!("{:>12}  {state:<12}  {}\n", bitmap.granularity, bitmap.name));
    }
    Ok(())
}

async fn dump(image: &Qcow2, bitmap: &str, form: Form) -> Result<()> {
    let mut reader = image.read_bitmap(bitmap).await?;
    let mut out = Out::new();
    let mut any = false;
    let mut row = |out: &mut Out, run: &std::ops::Range<u64>| {
        let (start, length) = (run.start, run.end - run.start);
        match form {
            Form::Human => out.put(&format!("{start:<#16x}{length:<#16x}\n")),
            Form::Json => {
                let lead = if std::mem::replace(&mut any, true) { ",\n " } else { "" };
                out.put(&format!("{lead}{{ \"start\": {start}, \"length\": {length} }}"));
            }
        }
    };
    match form {
        Form::Human => out.put(&format!("{:<16}{}\n", "Offset", "Length")),
        Form::Json => out.put("["),
    }
    let mut last: Option<std::ops::Range<u64>> = None;
    while let Some(run) = reader.next_dirty(last.as_ref().map_or(0, |run| run.end)).await? {
        match &mut last {
            Some(last) if last.end == run.start => last.end = run.end,
            other => {
                if let Some(run) = other.replace(run) {
                    row(&mut out, &run);
                }
            }
        }
    }
    if let Some(run) = last {
        row(&mut out, &run);
    }
    if form == Form::Json {
        out.put("]\n");
    }
    Ok(())
}
