//! reopen: changing how an image is open, while it stays open.

use cowbell_block::naming::{NamingError, nest, split_option_list};
use cowbell_block::node::Access;
use cowbell_block::options::{BoolOpt, CacheMode, DiscardMode, OptionTree};

use super::session::Session;
use super::shell::{Done, Failed};
use crate::context::Context;
use crate::face::Face;
use crate::flags::Args;
use crate::flags::io::{self as flags, IoCommand};
use crate::open::cache_mode;
use crate::size::reworded;

/// How a node that nobody named is called in messages; the reference throws dice for the last two digits.
const NODE_NAME: &str = "#block100";

/// What is to change.
struct Wanted {
    access: Option<Access>,
    cache: CacheMode,
    /// Options of the driver.
    driver: OptionTree,
}

pub(super) async fn reopen(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    if !args.operands.is_empty() {
        return session.bad_usage(command, "reopen");
    }
    let Some(current) = session.image().map(|image| image.cache) else { return Err(Failed) };
    let done = match wanted(session, args, current) {
        Ok(wanted) => apply(session, &wanted).await,
        Err(e) => Err(e),
    };
    done.map_err(|e| {
        session.cx.report(e);
        Failed
    })
}

fn wanted(session: &Session<'_>, args: &Args, current: CacheMode) -> anyhow::Result<Wanted> {
    let mut wanted = Wanted { access: None, cache: current, driver: OptionTree::new() };
    for (flag, value) in args.iter() {
        let access = match flag {
            flag if std::ptr::eq(flag, &flags::READ_ONLY) => Access::ReadOnly,
            flag if std::ptr::eq(flag, &flags::READ_WRITE) => Access::ReadWrite,
            flag if std::ptr::eq(flag, &flags::REOPEN_CACHE) => {
                wanted.cache = cache_mode("cache", value)?;
                continue;
            }
            _ => continue,
        };
        if wanted.access.replace(access).is_some() {
            anyhow::bail!("Only one -r/-w option may be given");
        }
    }
    if let Some(list) = args.value(&flags::REOPEN_OPTIONS) {
        warn_short_forms(session.cx, list);
        let flagged = wanted.access.is_some();
        take_options(&mut wanted, list, args.has(&flags::REOPEN_CACHE))?;
        // The tool itself stays a writer: only `-r` makes it a reader.
        if !flagged && wanted.access == Some(Access::ReadOnly) && session.cx.face != Face::Cowbell {
            refuse_writers(session)?;
        }
    }
    Ok(wanted)
}

/// The words of the reference for a node that is to be read-only below somebody who writes.
fn refuse_writers(session: &Session<'_>) -> anyhow::Result<()> {
    let Some(image) = session.image().filter(|image| !image.node().is_read_only()) else { return Ok(()) };
    let name = image.node_name.as_deref().unwrap_or(NODE_NAME);
    anyhow::bail!("Read-only block node '{name}' cannot support read-write users")
}

/// A name without a value is a switch, which the reference calls old.
fn warn_short_forms(cx: &Context, list: &str) {
    for item in list.split(',').filter(|item| !item.is_empty() && !item.contains('=')) {
        cx.short_form(item);
    }
}

/// The options of the block layer itself; the rest is the driver's.
fn take_options(wanted: &mut Wanted, list: &str, cache_given: bool) -> anyhow::Result<()> {
    for (key, word) in split_option_list(list) {
        let switch = || {
            let on = BoolOpt::from_word(&word).map(|on| on.0);
            on.ok_or_else(|| anyhow::anyhow!("Parameter '{key}' expects 'on' or 'off'"))
        };
        match key {
            "read-only" if wanted.access.is_some() => anyhow::bail!("Cannot set both -r/-w and 'read-only'"),
            "read-only" => wanted.access = Some(if switch()? { Access::ReadOnly } else { Access::ReadWrite }),
            "cache.direct" | "cache.no-flush" if cache_given => {
                anyhow::bail!("Cannot set both -c and the cache options");
            }
            "cache.direct" => wanted.cache.direct = switch()?,
            "cache.no-flush" => wanted.cache.no_flush = switch()?,
            "discard" if DiscardMode::from_name(&word).is_none() => anyhow::bail!("Invalid discard option"),
            "detect-zeroes" if !["off", "on", "unmap"].contains(&word.as_str()) => {
                anyhow::bail!("invalid parameter value: {word}");
            }
            "file" | "backing" | "data-file" => {
                anyhow::bail!("Cannot find device='' nor node-name='{word}'");
            }
            // What lies below is named by the last part.
            _ if key.starts_with("file.") || key.starts_with("backing.") => {
                let last = key.rsplit('.').next().unwrap_or_default();
                anyhow::bail!("Cannot change the option '{last}'");
            }
            _ => drop(wanted.driver.insert(key.to_owned(), word.into())),
        }
    }
    Ok(())
}

async fn apply(session: &mut Session<'_>, wanted: &Wanted) -> anyhow::Result<()> {
    session.wait_for_all().await;
    let Some(image) = session.image_mut() else { return Ok(()) };
    let node = image.node();
    if !wanted.driver.is_empty() {
        let options = nest(wanted.driver.clone()).map_err(NamingError::List)?;
        node.reconfigure(options).await.map_err(reworded)?;
    }
    if let Some(access) = wanted.access {
        node.reopen(access).await?;
    }
    if (wanted.cache.direct, wanted.cache.no_flush) != (image.cache.direct, image.cache.no_flush) {
        node.set_cache(wanted.cache).await?;
        image.root.child().replace(node);
    }
    image.cache = wanted.cache;
    image.write_through = wanted.cache.write_through;
    Ok(())
}
