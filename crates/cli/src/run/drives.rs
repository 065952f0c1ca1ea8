//! The disks: `--drive` lists and plain operands, in the order of their options.

use anyhow::{Result, anyhow, bail};
use cowbell_block::Root;
use cowbell_block::naming::split_option_list;
use cowbell_block::node::Access;
use cowbell_block::options::{AioMode, CacheMode, DiscardMode};
use cowbell_vm::{Discards, Drive};

use super::values::on_off;
use crate::context::Context;
use crate::flags::{Args, run as flags};
use crate::open::{How, Image, Purpose, cache_mode, open, warn_probed_raw};

/// A disk, and the image to close at the end.
pub struct Attached {
    /// As the machine takes it.
    pub drive: Drive,
    /// The image.
    pub image: Image,
}

/// What one disk was asked to be.
struct Wanted {
    /// The image's name, or its list of options.
    name: String,
    is_list: bool,
    format: Option<String>,
    access: Access,
    snapshot: bool,
    cache: CacheMode,
    discards: Discards,
    aio: AioMode,
}

/// Opens every disk: those of `--drive` first, then the operands.
///
/// # Errors
/// The first that is malformed or does not open; those before it are closed.
pub async fn open_all(cx: &Context, args: &Args) -> Result<Vec<Attached>> {
    let snapshot = args.has(&flags::SNAPSHOT);
    let lists = args.values(&flags::DRIVE).map(|list| parse(list, snapshot));
    let operands = args.operands.iter().map(|name| Ok(Wanted::plain(name, snapshot)));
    let wanted: Vec<Wanted> = lists.chain(operands).collect::<Result<_>>()?;
    let mut attached = Vec::new();
    let side_by_side = wanted.len();
    for wanted in &wanted {
        match attach(cx, wanted, side_by_side).await {
            Ok(disk) => attached.push(disk),
            Err(error) => {
                let images = attached.into_iter().map(|disk: Attached| disk.image).collect();
                super::close_all(images).await?;
                return Err(error);
            }
        }
    }
    Ok(attached)
}

impl Wanted {
    fn plain(name: &str, snapshot: bool) -> Self {
        Self {
            name: name.to_owned(),
            is_list: false,
            format: None,
            access: Access::ReadWrite,
            snapshot,
            cache: CacheMode::WRITEBACK,
            discards: Discards::Ignore,
            aio: AioMode::Auto,
        }
    }
}

fn parse(list: &str, snapshot: bool) -> Result<Wanted> {
    let mut wanted = Wanted::plain("", snapshot);
    let mut file = None;
    let mut rest = Vec::new();
    for (key, value) in split_option_list(list) {
        match key {
            "file" => file = Some(value),
            "format" => wanted.format = Some(value),
            "read-only" | "readonly" if on_off(key, &value)? => wanted.access = Access::ReadOnly,
            "read-only" | "readonly" => {}
            "snapshot" => wanted.snapshot = on_off(key, &value)?,
            "cache" => wanted.cache = cache_mode("cache", &value)?,
            "discard" => wanted.discards = discards(&value)?,
            "aio" => {
                wanted.aio =
                    AioMode::from_name(&value).ok_or_else(|| anyhow!("Invalid aio option: {value}"))?;
            }
            "if" if value == "virtio" => {}
            "if" => bail!("--drive {list}: disks are virtio devices, not '{value}'"),
            "media" if value == "disk" => {}
            "media" => bail!("--drive {list}: the only medium is disk, not '{value}'"),
            _ => rest.push(format!("{key}={}", value.replace(',', ",,"))),
        }
    }
    match (file, rest.is_empty()) {
        (Some(name), true) => wanted.name = name,
        (None, true) => bail!("--drive {list}: 'file' is missing"),
        (file, false) if rest.iter().any(|pair| pair.starts_with("driver=") || pair.starts_with("file.")) => {
            // An image driver's own options; 'file' then names a node or is an option as well.
            rest.extend(file.map(|name| format!("file={}", name.replace(',', ",,"))));
            (wanted.name, wanted.is_list) = (rest.join(","), true);
            if wanted.format.is_some() {
                bail!("--drive {list}: with an image driver's options there is no 'format', only 'driver'");
            }
        }
        (_, false) => {
            let key = rest[0].split('=').next().unwrap_or_default();
            bail!("--drive {list}: there is no key '{key}'");
        }
    }
    Ok(wanted)
}

fn discards(word: &str) -> Result<Discards> {
    match DiscardMode::from_name(word) {
        Some(DiscardMode::Unmap) => Ok(Discards::Unmap),
        Some(DiscardMode::Ignore) => Ok(Discards::Ignore),
        None => bail!("Invalid discard option: {word}"),
    }
}

async fn attach(cx: &Context, wanted: &Wanted, side_by_side: usize) -> Result<Attached> {
    let how = How {
        image_opts: wanted.is_list,
        // Below a temporary overlay nothing is written.
        access: if wanted.snapshot { Access::ReadOnly } else { wanted.access },
        cache: wanted.cache,
        discard: match wanted.discards {
            Discards::Ignore => DiscardMode::Ignore,
            Discards::Unmap => DiscardMode::Unmap,
        },
        aio: wanted.aio,
        side_by_side,
        purpose: Purpose::Disk,
        ..How::reading(&wanted.name, wanted.format.as_deref())
    };
    let mut image = open(cx, &how).await?;
    if wanted.snapshot {
        let node = crate::io::overlay(image.node()).await;
        let node = node.map_err(|error| anyhow!("{}: no temporary overlay: {error}", wanted.name))?;
        image = Image { root: Root::new(node), ..image };
    } else if image.probed_raw && wanted.access == Access::ReadWrite {
        warn_probed_raw(&wanted.name);
    }
    let drive = Drive {
        root: image.root.clone(),
        name: wanted.name.clone(),
        write_through: image.write_through,
        discards: wanted.discards,
    };
    Ok(Attached { drive, image })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood_or_refused_by_name() {
        let good = |list: &str| parse(list, false).expect("understood");
        let wanted = good("file=a,,b.qcow2,format=qcow2,if=virtio,read-only=on,discard=unmap,cache=none");
        assert_eq!((wanted.name.as_str(), wanted.format.as_deref()), ("a,b.qcow2", Some("qcow2")));
        assert_eq!((wanted.access, wanted.discards), (Access::ReadOnly, Discards::Unmap));
        assert_eq!((wanted.cache, wanted.is_list), (CacheMode::NONE, false));
        let wanted = good("driver=qcow2,file.filename=x,,y,snapshot=on");
        assert_eq!((wanted.name.as_str(), wanted.is_list), ("driver=qcow2,file.filename=x,,y", true));
        assert!(wanted.snapshot);
        let bad = |list: &str| parse(list, false).err().expect("refused").to_string();
        assert_eq!(bad("format=raw"), "--drive format=raw: 'file' is missing");
        assert_eq!(bad("file=a,if=ide"), "--drive file=a,if=ide: disks are virtio devices, not 'ide'");
        assert_eq!(bad("file=a,bus=1"), "--drive file=a,bus=1: there is no key 'bus'");
        assert_eq!(bad("file=a,snapshot=maybe"), "'snapshot' takes on or off, not 'maybe'");
    }
}
