//! The drivers `file` and `host_device` for the registry: options, names, creation.

use std::path::Path;
use std::sync::Arc;

use cowbell_block::error::{Error, Result};
use cowbell_block::modes::Modes;
use cowbell_block::node::NotOffered;
use cowbell_block::options::{BoolOpt, NumberOpt, OptionError, SizeOpt, parse};
use cowbell_block::registry::Score;
use cowbell_block::unfinished::BadPreallocation;
use cowbell_block::{
    Access, AioMode, BoxFuture, CacheMode, CreateArgs, CreateOption, Driver, Node, OpenContext, OptionKind,
    OptionTree, Preallocation, Registry, Request, Role,
};
use rustix::fs::FileType;
use serde::Deserialize;

use crate::error::{FileError, OpenError};
use crate::file::{Create, FileKind, FileNode, FileOptions, Locking, WriteRefused};
use crate::ioctl;
use crate::path::path_of;

/// A raw file is a whole number of these, in bytes.
const SECTOR: u64 = 512;

/// The reference's hint when none is given, in bytes: keeps images that grow by clusters in few extents.
const EXTENT_SIZE_HINT: u64 = 1 << 20;

/// Adds `file` and `host_device`.
pub fn add_drivers(registry: &mut Registry) {
    registry.add(FileDriver::FILE).add(FileDriver::HOST_DEVICE);
}

/// The driver of [`FileNode`], under one of its two names.
pub struct FileDriver {
    name: &'static str,
    kind: FileKind,
}

impl FileDriver {
    /// `file`: regular files.
    pub const FILE: Self = Self { name: "file", kind: FileKind::File };
    /// `host_device`: block devices.
    pub const HOST_DEVICE: Self = Self { name: "host_device", kind: FileKind::Device };
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Options {
    #[serde(default)]
    filename: String,
    aio: Option<AioMode>,
    /// A hint for the reference's submission queue; ours is flushed when the thread runs out of work.
    #[serde(rename = "aio-max-batch", default)]
    _aio_max_batch: NumberOpt,
    #[serde(default)]
    locking: Locking,
    /// About live migration, which we do not take part in.
    #[serde(rename = "drop-cache", default)]
    _drop_cache: BoolOpt,
    #[serde(rename = "x-check-cache-dropped", default)]
    _x_check_cache_dropped: BoolOpt,
    pr_manager: Option<String>,
}

const CREATE_OPTIONS: [CreateOption; 4] = [
    CreateOption::new("size", OptionKind::Size, "Virtual disk size"),
    CreateOption::new(
        "preallocation",
        OptionKind::Str,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    CreateOption::new("nocow", OptionKind::Bool, "Turn off copy-on-write (valid only on btrfs)"),
    CreateOption::new(
        "extent_size_hint",
        OptionKind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateValues {
    #[serde(default)]
    size: SizeOpt,
    preallocation: Option<String>,
    #[serde(default)]
    nocow: BoolOpt,
    extent_size_hint: Option<SizeOpt>,
}

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn role(&self) -> Role {
        Role::Protocol
    }

    fn probe_path(&self, path: &str) -> Score {
        if self.kind != FileKind::Device {
            return 0;
        }
        let kind = rustix::fs::stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::BlockDevice | FileType::CharacterDevice) => 100,
            _ => 0,
        }
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        // Opening meets no wait that a tool could use otherwise, so it is done here and now.
        let node = parse::<Options>(self.name, Role::Protocol, options)
            .map_err(Error::from)
            .and_then(|options| self.open_with(&options, &cx))
            .map(|node| node as Arc<dyn Node>);
        Box::pin(std::future::ready(node))
    }

    fn create_options(&self) -> &'static [CreateOption] {
        match self.kind {
            FileKind::Device => &CREATE_OPTIONS[..1],
            _ => &CREATE_OPTIONS,
        }
    }

    fn remove(&self, filename: &str) {
        let name = self.parse_filename(filename);
        let name = name.as_ref().ok().and_then(|tree| tree.get("filename")?.as_str()).map(path_of);
        // A link stays, whatever it leads to: it is not ours.
        if let Some(path) = name.filter(|path| self.kind == FileKind::File && is_regular(path)) {
            // What cannot be removed stays behind, and the error that led here is told anyway.
            let _ = std::fs::remove_file(path);
        }
    }

    fn create(&self, mut args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        let values = args.take_typed::<CreateValues>(&CREATE_OPTIONS);
        let filename = self.parse_filename(&args.filename);
        let kind = self.kind;
        Box::pin(async move {
            let filename = filename?;
            let filename = filename.get("filename").and_then(|name| name.as_str()).unwrap_or_default();
            match kind {
                FileKind::Device => prepare_device(filename, values?, &cx).await,
                _ => create_file(filename, values?, &cx).await,
            }
        })
    }
}

impl FileDriver {
    fn open_with(&self, options: &Options, cx: &OpenContext) -> Result<Arc<FileNode>> {
        if options.pr_manager.is_some() {
            return Err(NotOffered { driver: self.name, what: "pr-manager" }.into());
        }
        if options.filename.is_empty() {
            return Err(OpenError::NoName { driver: self.name }.into_error());
        }
        let beneath = cx.beneath().map(path_of);
        let file_options = FileOptions {
            kind: self.kind,
            access: cx.access,
            write_refused: if cx.auto_read_only { WriteRefused::ReadOnly } else { WriteRefused::Fail },
            // Durable writes are the business of whoever submits at the root: metadata has to follow them.
            cache: CacheMode { write_through: false, ..cx.cache },
            aio: options.aio.unwrap_or(cx.aio),
            modes: Modes::of(cx),
            locking: options.locking,
            needs: Some(cx.needs()),
            beneath: beneath.as_deref(),
            trace: cx.trace.as_ref(),
            ..FileOptions::default()
        };
        FileNode::open(path_of(&options.filename), &file_options)
    }
}

fn is_regular(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

fn preallocation(word: Option<&str>) -> Result<Preallocation> {
    let Some(word) = word else { return Ok(Preallocation::Off) };
    Ok(Preallocation::from_name(word).ok_or_else(|| BadPreallocation(word.to_owned()))?)
}

fn whole_sectors(size: SizeOpt) -> Result<u64> {
    let too_large = || Error::from(OptionError::ExpectsSize { key: "size".to_owned() });
    size.0.checked_next_multiple_of(SECTOR).ok_or_else(too_large)
}

async fn create_file(filename: &str, values: CreateValues, cx: &OpenContext) -> Result<()> {
    let mode = preallocation(values.preallocation.as_deref())?;
    let size = whole_sectors(values.size)?;
    if values.extent_size_hint.is_some_and(|hint| hint.0 > u64::from(u32::MAX)) {
        return Err(FileError::ExtentHint.into());
    }
    let beneath = cx.beneath().map(path_of);
    let options = FileOptions {
        kind: FileKind::File,
        access: Access::ReadWrite,
        create: Create::Truncate,
        beneath: beneath.as_deref(),
        ..FileOptions::default()
    };
    let file = FileNode::open(path_of(filename), &options)?;
    if values.nocow.0 {
        ioctl::no_copy_on_write(file.handle());
    }
    let hint = values.extent_size_hint.map_or(EXTENT_SIZE_HINT, u64::from);
    if let Some(hint) = u32::try_from(hint).ok().filter(|hint| *hint > 0) {
        ioctl::extent_size_hint(file.handle(), hint);
    }
    // Dropped, not closed: nothing of an image that is only begun has to be durable, who fills it flushes it.
    file.submit(Request::truncate(size, mode)).finish().await.result.map(drop)
}

/// A device is there already: checks that the image fits, and removes what a format left in the first sector.
async fn prepare_device(filename: &str, values: CreateValues, cx: &OpenContext) -> Result<()> {
    if values.preallocation.is_some() || values.nocow.0 || values.extent_size_hint.is_some() {
        return Err(NotOffered { driver: "host_device", what: "options of creation besides the size" }.into());
    }
    let beneath = cx.beneath().map(path_of);
    let options = FileOptions {
        kind: FileKind::Device,
        access: Access::ReadWrite,
        beneath: beneath.as_deref(),
        ..FileOptions::default()
    };
    let device = FileNode::open(path_of(filename), &options)?;
    let size = whole_sectors(values.size)?;
    device.submit(Request::truncate(size, Preallocation::Off)).finish().await.result?;
    let first = SECTOR.min(device.len());
    device.submit(Request::write_zeroes(0, first)).finish().await.result?;
    device.close().await
}
