//! `img amend`.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail};
use cowbell_block::create::{CreateOption, CreateOptionError, parse_create_options};
use cowbell_block::node::Access;
use cowbell_block::options::{CacheMode, OptionTree};
use cowbell_block::registry::Driver;
use cowbell_block::{Amend, Force};
use cowbell_host::block_on;

use super::lists::{asks_for_help, check_lists};
use super::{format_or_options, one_image};
use crate::context::{Context, usage};
use crate::flags::{Args, img as flags};
use crate::meter::{Audience, Meter};
use crate::open::{How, cache_mode, open, warn_probed_raw};
use crate::out::Out;
use crate::size::reworded;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    if args.values(&flags::AMEND_OPTIONS).next().is_none() {
        return Err(usage("Must specify options (-o)"));
    }
    check_lists(args.values(&flags::AMEND_OPTIONS))?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let asks = args.values(&flags::AMEND_OPTIONS).any(asks_for_help);
    if asks && let Some(format) = format {
        let registry = cx.registry();
        let Some(driver) = registry.driver(format) else { bail!("Unknown file format '{format}'") };
        Out::new().put(&help(&**driver)?);
        return Ok(0);
    }
    // The reference does not point to its help here.
    let name = one_image(args).map_err(|e| anyhow!("{e}"))?;
    let cache =
        args.value(&flags::IMAGE_CACHE).map_or(Ok(CacheMode::WRITEBACK), |c| cache_mode("cache", c))?;
    let how = How { image_opts, access: Access::ReadWrite, cache, ..How::reading(name, format) };
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && !args.has(&flags::QUIET) {
            warn_probed_raw(name);
        }
        let registry = cx.registry();
        let driver = registry.driver(image.node().driver()).cloned();
        let driver = driver.ok_or_else(|| anyhow!("the image's driver is not registered"))?;
        let done = match asks {
            true => help(&*driver).map(|text| Out::new().put(&text)),
            false => amend(cx, args, &*driver, &image).await,
        };
        let closed = image.close().await;
        done?;
        closed?;
        Ok(0)
    })
}

async fn amend(cx: &Context, args: &Args, driver: &dyn Driver, image: &crate::open::Image) -> Result<()> {
    let known = offered(driver)?;
    let mut options = OptionTree::new();
    for list in args.values(&flags::AMEND_OPTIONS) {
        parse_create_options(list, known, &mut options).map_err(|e| match &e {
            CreateOptionError::Unknown(name) if driver.create_options().iter().any(|o| o.name == *name) => {
                anyhow!("{e}\nThis option is only supported for image creation")
            }
            _ => reworded(cowbell_block::Error::from(e)),
        })?;
    }
    let meter = Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(args.has(&flags::QUIET)));
    let force = if args.has(&flags::FORCE) { Force::Yes } else { Force::No };
    let how = Amend { force, secrets: cx.secrets.clone() };
    let amended = image.node().amend(options, how).await;
    if amended.is_ok() {
        meter.complete();
    }
    meter.end();
    amended.map_err(anyhow::Error::from)
}

fn offered(driver: &dyn Driver) -> Result<&'static [CreateOption]> {
    match driver.amend_options() {
        [] => bail!("Format driver '{}' does not support option amendment", driver.name()),
        known => Ok(known),
    }
}

/// What `-o help` prints.
fn help(driver: &dyn Driver) -> Result<String> {
    let mut known = offered(driver)?.to_vec();
    known.sort_unstable_by_key(|option| option.name);
    let mut out = format!("Amend options for '{}':\n", driver.name());
    for option in known {
        let name = format!("{}=<{}>", option.name, option.kind.name());
        let _ = writeln!(out, "  {name:<22} - {}", option.help);
    }
    Ok(out)
}
