//! `img rebase`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::{has_protocol, resolve_relative};
use cowbell_block::node::{Access, Node};
use cowbell_block::options::{CacheMode, DiscardMode};
use cowbell_block::{Error, ErrorKind};
use cowbell_host::block_on;
use cowbell_jobs::rebase::{NewBacking, Rebased, Store, rebase};
use serde_json::json;

use super::{Form, Interrupted, form, format_or_options, job_failure, one_image};
use crate::context::{Context, usage};
use crate::face::Face;
use crate::flags::{Args, img as flags, layers};
use crate::json;
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, Purpose, cache_mode, open, open_bare, warn_probed_raw};
use crate::out::Out;

/// The command line, understood.
struct Plan<'a> {
    name: &'a str,
    /// The new backing file; without one, or with an empty name, the image is to stand alone.
    backing: Option<&'a str>,
    format: Option<&'a str>,
    mode: Mode,
    cache: CacheMode,
    store: Store,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The disk reads as before.
    Safe,
    /// Only the name changes.
    Name,
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let (plan, how) = plan(args)?;
    let quiet = args.has(&flags::QUIET);
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && !quiet {
            warn_probed_raw(plan.name);
        }
        let meter = Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(quiet || form == Form::Json));
        let done = whole(cx, args, &plan, &image, &meter).await;
        if done.is_ok() {
            meter.complete();
        }
        meter.end();
        if done.as_ref().is_err_and(|e| e.is::<Interrupted>()) {
            cx.report(format!("'{}' keeps its backing file, and its content", plan.name));
        }
        let closed = image.close().await;
        let rebased = done?;
        closed?;
        if form == Form::Json && !quiet {
            Out::new().put(&json::text(&json!({
                "filename": plan.name,
                "backing-filename": plan.backing.filter(|name| !name.is_empty()),
                "data-bytes": rebased.data,
                "zero-bytes": rebased.zeroes,
            })));
        }
        Ok(0)
    })
}

fn plan(args: &Args) -> Result<(Plan<'_>, How<'_>)> {
    let mode = if args.has(&layers::NAME_ONLY) { Mode::Name } else { Mode::Safe };
    let name = one_image(args)?;
    let backing = args.value(&layers::NEW_BACKING);
    if mode == Mode::Safe && backing.is_none() {
        return Err(usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let cache = |what, flag| cache_mode(what, args.value(flag).unwrap_or("writeback"));
    let how = How {
        image_opts,
        access: Access::ReadWrite,
        cache: cache("cache", &flags::IMAGE_CACHE)?,
        discard: DiscardMode::Unmap,
        purpose: if mode == Mode::Name { Purpose::Change } else { Purpose::Data },
        side_by_side: 2,
        ..How::reading(name, format)
    };
    let plan = Plan {
        name,
        backing,
        format: args.value(&flags::BACKING_FORMAT),
        mode,
        cache: cache("source cache", &layers::BACKING_CACHE)?,
        store: if args.has(&layers::REBASE_COMPRESS) { Store::Compressed } else { Store::Plain },
    };
    Ok((plan, how))
}

async fn whole(cx: &Context, args: &Args, plan: &Plan<'_>, image: &Image, meter: &Meter) -> Result<Rebased> {
    let node = image.node();
    if plan.store == Store::Compressed && !node.compresses() {
        bail!("Compression not supported for this file format");
    }
    if let Some(format) = plan.format
        && cx.registry().driver(format).is_none()
    {
        bail!("Invalid format name: '{format}'");
    }
    let named = plan.backing.filter(|name| !name.is_empty());
    let new = match (plan.mode, named) {
        (Mode::Safe, Some(name)) => Some(open_backing(cx, args, plan, &node, name).await?),
        _ => None,
    };
    let done = rewrite(cx, args, plan, image, new.as_ref(), meter).await;
    if let Some(new) = new {
        new.close().await?;
    }
    done
}

/// Opens the new backing file, which is named as the image at `node` will name it.
async fn open_backing(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    node: &Arc<dyn Node>,
    name: &str,
) -> Result<Image> {
    let location = node.filename();
    let is_relative = !has_protocol(name) && !name.starts_with('/');
    if is_relative && location.starts_with("json:") {
        bail!("Could not resolve backing filename: Cannot use relative backing file names for '{location}'");
    }
    let full = resolve_relative(&location, name);
    let how = How {
        cache: plan.cache,
        force_share: args.has(&flags::FORCE_SHARE),
        side_by_side: 2,
        ..How::reading(&full, plan.format)
    };
    open_bare(cx, &how).await.map_err(|e| anyhow!("Could not open new backing file '{name}': {e}"))
}

/// Copies what would read differently, and then changes the name.
async fn rewrite(
    cx: &Context,
    args: &Args,
    plan: &Plan<'_>,
    image: &Image,
    new: Option<&Image>,
    meter: &Meter,
) -> Result<Rebased> {
    let named = plan.backing.filter(|name| !name.is_empty());
    let shown = plan.backing.unwrap_or_default();
    // Known beforehand, so nothing is copied in vain.
    if named.is_some() && plan.format.is_none() {
        bail!("Could not change the backing file to '{shown}': backing format must be specified");
    }
    let node = image.node();
    let rebased = match plan.mode {
        Mode::Name => Rebased::default(),
        Mode::Safe => {
            let below = match args.has(&flags::IMAGE_OPTS) {
                false => new.and_then(|new| same_layer(&node, &new.node())),
                // Its layers may have been given other files than those that the images name.
                true => None,
            };
            let backing = NewBacking { root: new.map(|new| &new.root), below };
            rebase(&image.root, backing, plan.store, meter).await.map_err(|e| failure(cx, &e))?
        }
    };
    let format = plan.format.filter(|_| named.is_some()).map(str::to_owned);
    let changed = node.change_backing(named.map(str::to_owned), format).await;
    changed.map_err(|e| anyhow!("Could not change the backing file to '{shown}': {}", refusal(cx, &e)))?;
    Ok(rebased)
}

/// Why the name cannot be changed.
fn refusal(cx: &Context, error: &Error) -> String {
    match (cx.face, error.kind()) {
        (Face::Cowbell, _) => error.to_string(),
        (_, ErrorKind::NoSpace) => "No space left in the file header".to_owned(),
        _ => cowbell_block::error::errno_text(error.errno()),
    }
}

fn failure(cx: &Context, error: &cowbell_jobs::Error) -> anyhow::Error {
    use cowbell_jobs::Error as Job;
    if cx.face == Face::Cowbell {
        return job_failure(cx, error);
    }
    let reason = |source: &Error| cowbell_block::error::errno_text(source.errno());
    match error {
        Job::Status { source, .. } => anyhow!("error while reading image metadata: {}", reason(source)),
        Job::Read { .. } => anyhow!("error while reading from old backing file"),
        Job::ReadNew { .. } => anyhow!("error while reading from new backing file"),
        Job::Write { source, .. } => anyhow!("Error while writing to COW image: {}", reason(source)),
        _ => job_failure(cx, error),
    }
}

/// The layer below `top` that is the same image in the same file as `new`.
fn same_layer(top: &Arc<dyn Node>, new: &Arc<dyn Node>) -> Option<Arc<dyn Node>> {
    let wanted = real_path(new)?;
    let mut layer = top.backing();
    while let Some(node) = layer {
        if node.driver() == new.driver() && real_path(&node).as_ref() == Some(&wanted) {
            return Some(node);
        }
        layer = node.backing();
    }
    None
}

/// Where a node's file really lies, if its name says all there is to it.
pub(super) fn real_path(node: &Arc<dyn Node>) -> Option<PathBuf> {
    let name = node.filename();
    if has_protocol(&name) { None } else { std::fs::canonicalize(name).ok() }
}
