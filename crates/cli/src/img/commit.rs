//! `img commit`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::has_protocol;
use cowbell_block::node::{Access, Node};
use cowbell_block::options::DiscardMode;
use cowbell_block::{ErrorKind, Root};
use cowbell_host::block_on;
use cowbell_jobs::commit::{Committed, commit};
use cowbell_jobs::{Pace, Unpaced};
use serde_json::json;

use super::{Form, Interrupted, form, format_or_options, job_failure, one_image};
use crate::context::Context;
use crate::face::Face;
use crate::flags::{Args, img as flags, layers};
use crate::json;
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, cache_mode, open, warn_probed_raw};
use crate::out::Out;
use crate::pace::Limited;
use crate::size::{SIZE_MAX, parse_named};

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let rate =
        args.value(&flags::RATE).map(|text| parse_named("rate limit", text, 0, SIZE_MAX)).transpose()?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let how = How {
        image_opts,
        access: Access::ReadWrite,
        cache: cache_mode("cache", args.value(&flags::IMAGE_CACHE).unwrap_or("writeback"))?,
        discard: DiscardMode::Unmap,
        ..How::reading(name, format)
    };
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && !args.has(&flags::QUIET) {
            warn_probed_raw(name);
        }
        let done = whole(cx, args, form, rate, &image).await;
        let closed = image.close().await;
        let (base, committed) = done?;
        closed?;
        match form {
            _ if args.has(&flags::QUIET) => {}
            Form::Human => Out::new().line("Image committed."),
            Form::Json => Out::new().put(&json::text(&json_value(args, name, &base, committed))),
        }
        Ok(0)
    })
}

/// Copies down, makes it durable, and only then empties the image.
async fn whole(
    cx: &Context,
    args: &Args,
    form: Form,
    rate: Option<u64>,
    image: &Image,
) -> Result<(String, Committed)> {
    let base = base(args, image).await?;
    make_writable(&base).await?;
    let hidden = args.has(&flags::QUIET) || form == Form::Json;
    let meter = Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(hidden));
    let done = copy_and_empty(cx, args, rate, image, &base, &meter).await;
    if done.is_ok() {
        meter.complete();
    }
    meter.end();
    if done.as_ref().is_err_and(|e| e.is::<Interrupted>()) {
        cx.report(format!("'{}' still holds all its changes; commit it again", image.name));
    }
    Ok((base.filename(), done?))
}

async fn copy_and_empty(
    cx: &Context,
    args: &Args,
    rate: Option<u64>,
    image: &Image,
    base: &Arc<dyn Node>,
    meter: &Meter,
) -> Result<Committed> {
    let limited = rate.filter(|rate| *rate > 0).map(Limited::new);
    let pace: &dyn Pace = match &limited {
        Some(limited) => limited,
        None => &Unpaced,
    };
    let committed = commit(&image.root, &Root::new(base.clone()), meter, pace).await;
    let committed = committed.map_err(|e| failure(cx, &e))?;
    // What the base keeps beside its data, like bitmaps, is to be in the file as well.
    match base.reopen(Access::ReadOnly).await {
        Err(e) if e.kind() != ErrorKind::Unsupported => bail!("{}: {e}", base.filename()),
        _ => {}
    }
    if is_emptied(args) {
        match image.node().make_empty().await {
            // A format that cannot is left as it is: it reads the same.
            Err(e) if e.kind() != ErrorKind::Unsupported => {
                bail!("Failed to empty {}: {}", image.node().filename(), reason(cx, &e))
            }
            _ => {}
        }
    }
    Ok(committed)
}

fn is_emptied(args: &Args) -> bool {
    !args.has(&layers::DROP) && !args.has(&layers::BASE)
}

/// The reference knows only the number of an error.
fn reason(cx: &Context, error: &cowbell_block::Error) -> String {
    match cx.face {
        Face::Cowbell => error.to_string(),
        _ => cowbell_block::error::errno_text(error.errno()),
    }
}

fn failure(cx: &Context, error: &cowbell_jobs::Error) -> anyhow::Error {
    match (error.node_error(), cx.face) {
        (None, _) | (_, Face::Cowbell) => job_failure(cx, error),
        (Some(source), _) => anyhow!("Block job failed: {}", reason(cx, source)),
    }
}

/// The layer to commit into.
async fn base(args: &Args, image: &Image) -> Result<Arc<dyn Node>> {
    let top = image.node();
    match args.value(&layers::BASE) {
        None => top.backing().ok_or_else(|| anyhow!("Image does not have a backing file")),
        Some(wanted) => find(&top, wanted)
            .await?
            .ok_or_else(|| anyhow!("Did not find '{wanted}' in the backing chain of '{}'", top.filename())),
    }
}

/// The layer below `top` that is called so: by a path from the directory of the image above it, or, where protocols
/// are involved, by the very name.
async fn find(top: &Arc<dyn Node>, wanted: &str) -> Result<Option<Arc<dyn Node>>> {
    let mut above = top.clone();
    while let Some(layer) = above.backing() {
        let info = above.info().await?;
        let names = [info.backing_filename, info.full_backing_filename, Some(layer.filename())];
        let mut names = names.into_iter().flatten();
        let found = match has_protocol(wanted) {
            true => names.any(|name| name == wanted),
            false => {
                let wanted = real_path(&above.filename(), wanted);
                let real = real_path("", &layer.filename());
                wanted.is_some() && wanted == real
            }
        };
        if found {
            return Ok(Some(layer));
        }
        above = layer;
    }
    Ok(None)
}

/// Where `name`, as an image at `from` would mean it, really lies.
fn real_path(from: &str, name: &str) -> Option<PathBuf> {
    if name.is_empty() {
        return None;
    }
    let directory = Path::new(from).parent().unwrap_or(Path::new(""));
    std::fs::canonicalize(directory.join(name)).ok()
}

/// Opens a layer, which was read until now, for writing.
async fn make_writable(base: &Arc<dyn Node>) -> Result<()> {
    if !base.is_read_only() {
        return Ok(());
    }
    base.reopen(Access::ReadWrite).await.map_err(|e| match e.kind() {
        // A lock that somebody else holds says so itself.
        ErrorKind::Busy => anyhow!("{e}"),
        _ => anyhow!("Could not open '{}': {e}", base.filename()),
    })
}

fn json_value(args: &Args, name: &str, base: &str, committed: Committed) -> serde_json::Value {
    json!({
        "filename": name,
        "base": base,
        "data-bytes": committed.data,
        "zero-bytes": committed.zeroes,
        "grown-bytes": committed.grown,
        "emptied": is_emptied(args),
    })
}
