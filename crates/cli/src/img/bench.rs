//! `img bench`.

use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use cowbell_block::node::Access;
use cowbell_block::options::{AioMode, CacheMode};
use cowbell_host::block_on;
use cowbell_jobs::bench::{Direction, Drain, Flushes, Plan, bench};
use serde_json::json;

use super::{Form, form, format_or_options, one_image};
use crate::context::Context;
use crate::flags::{Args, Flag, blocks, img as flags};
use crate::json;
use crate::open::{How, open, warn_probed_raw};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_count, parse_named};

/// Requests, in flight and in all, bytes of each: the reference's.
const DEPTH: u64 = 64;
const COUNT: u64 = 75_000;
const REQUEST_BYTES: u64 = 4096;
/// The reference counts in signed 32 bits.
const NUMBER_MAX: u64 = i32::MAX as u64;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let plan = plan(args)?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let writes = plan.direction != Direction::Read;
    let how = How {
        image_opts,
        access: if writes { Access::ReadWrite } else { Access::ReadOnly },
        force_share: args.has(&flags::FORCE_SHARE),
        cache: cache(args)?,
        aio: aio(args)?,
        ..How::reading(name, format)
    };
    check(&plan)?;
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && writes && !args.has(&flags::QUIET) {
            warn_probed_raw(name);
        }
        if form == Form::Human {
            Out::new().put(&beginning(&plan));
        }
        let start = Instant::now();
        let done = bench(|request| image.submit(request), image.node().len(), &plan).await;
        let seconds = start.elapsed().as_secs_f64();
        let closed = image.close().await;
        done.map_err(|e| anyhow!("Failed request: {}", cowbell_block::error::errno_text(e.errno())))?;
        closed?;
        match form {
            Form::Human => Out::new().line(&format!("Run completed in {seconds:.3} seconds.")),
            Form::Json => {
                let value = json!({ "filename": name, "requests": plan.count, "seconds": seconds });
                Out::new().put(&json::text(&value));
            }
        }
        Ok(0)
    })
}

fn beginning(plan: &Plan) -> String {
    let kind = if plan.direction == Direction::Read { "read" } else { "write" };
    let Plan { count, len, depth, offset, step, .. } = plan;
    let mut text = format!(
        "Sending {count} {kind} requests, {len} bytes each, {depth} in parallel (starting at offset {offset}, step \
         size {step})\n"
    );
    if let Some(flushes) = plan.flushes {
        text.push_str(&format!("Sending flush every {} requests\n", flushes.every));
    }
    text
}

/// Reads the numbers, judged in the order they were given.
fn plan(args: &Args) -> Result<Plan> {
    let (mut count, mut depth, mut offset, mut len, mut step) = (COUNT, DEPTH, 0, REQUEST_BYTES, 0);
    let (mut pattern, mut interval) = (0, 0);
    for (flag, text) in args.iter() {
        let is = |other: &'static Flag| std::ptr::eq(flag, other);
        if is(&blocks::COUNT) {
            count = parse_count("request count", text, 1, NUMBER_MAX)?;
        } else if is(&blocks::DEPTH) {
            depth = parse_count("queue depth", text, 1, NUMBER_MAX)?;
        } else if is(&blocks::OFFSET) {
            offset = parse_named("offset", text, 0, SIZE_MAX)?;
        } else if is(&blocks::BUFFER_SIZE) {
            len = parse_named("buffer size", text, 1, NUMBER_MAX)?;
        } else if is(&blocks::STEP_SIZE) {
            step = parse_named("step size", text, 0, NUMBER_MAX)?;
        } else if is(&blocks::PATTERN) {
            pattern = parse_count("pattern byte", text, 0, u64::from(u8::MAX))? as u8;
        } else if is(&blocks::FLUSH_INTERVAL) {
            interval = parse_count("flush interval", text, 0, NUMBER_MAX)?;
        } else if is(&blocks::AIO) {
            aio(args)?;
        } else if is(&flags::IMAGE_CACHE) {
            cache(args)?;
        }
    }
    let direction = if args.has(&blocks::WRITE) { Direction::Write { pattern } } else { Direction::Read };
    let drain = if args.has(&blocks::NO_DRAIN) { Drain::No } else { Drain::Yes };
    let flushes = (interval > 0).then_some(Flushes { every: interval, drain });
    let step = if step == 0 { len } else { step };
    Ok(Plan { direction, count, depth, offset, len, step, flushes })
}

/// Refuses what does not go together.
fn check(plan: &Plan) -> Result<()> {
    match plan.flushes {
        Some(_) if plan.direction == Direction::Read => {
            bail!("--flush-interval is only available in write tests")
        }
        Some(flushes) if flushes.every < plan.depth => bail!("Flush interval can't be smaller than depth"),
        _ => Ok(()),
    }
}

fn cache(args: &Args) -> Result<CacheMode> {
    let name = args.value(&flags::IMAGE_CACHE).unwrap_or("writeback");
    CacheMode::from_name(name).ok_or_else(|| anyhow!("Invalid cache mode"))
}

fn aio(args: &Args) -> Result<AioMode> {
    match args.value(&blocks::AIO) {
        None if args.has(&blocks::NATIVE) => Ok(AioMode::Native),
        None => Ok(AioMode::Auto),
        Some(name) => {
            let mode = AioMode::from_name(name).filter(|mode| *mode != AioMode::Auto);
            mode.ok_or_else(|| anyhow!("Invalid aio option: {name}"))
        }
    }
}
