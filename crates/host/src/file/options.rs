//! What a file is opened with.

use std::path::Path;

use cowbell_block::modes::Modes;
use cowbell_block::{Access, AioMode, CacheMode, Trace};
use serde::Deserialize;

use crate::lane::Lane;
use crate::lock::{self, Needs};

/// Which driver a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FileKind {
    /// Whatever the name turns out to be, as long as it is a regular file or a device.
    #[default]
    Either,
    /// Driver `file`: a regular file.
    File,
    /// Driver `host_device`: a block device.
    Device,
}

/// Whether image locks are taken (`locking`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Locking {
    /// Where the file system has them.
    #[default]
    Auto,
    /// Or fail.
    On,
    /// Not at all.
    Off,
}

cowbell_block::option_words!(Locking { "auto" => Auto, "on" => On, "off" => Off, });

/// What happens to a file opened for writing that the host gives for reading only (`auto-read-only`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteRefused {
    /// Opening fails.
    #[default]
    Fail,
    /// The node is read-only.
    ReadOnly,
}

/// Whether the file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Create {
    /// It must exist.
    #[default]
    Never,
    /// Made if missing; content is kept.
    IfMissing,
    /// Made if missing, emptied otherwise, once its locks are held.
    Truncate,
    /// Must not exist.
    New,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions<'a> {
    /// The driver it is opened for.
    pub kind: FileKind,
    /// Whether it is written to.
    pub access: Access,
    /// What if that is refused.
    pub write_refused: WriteRefused,
    /// Whether it is made.
    pub create: Create,
    /// Page cache and durability.
    pub cache: CacheMode,
    /// How requests that wait are made: `Auto` and `IoUring` on the ring or by threads, `Threads` by threads;
    /// `Native` is a name kept for scripts and stands for `Auto`, for direct I/O only.
    pub aio: AioMode,
    /// Discards that are ignored, writes of zeroes that are detected.
    pub modes: Modes,
    /// Whether image locks are taken.
    pub locking: Locking,
    /// Which: by default those of a format's file, [`lock::READ`] or [`lock::WRITE`] by access.
    pub needs: Option<Needs>,
    /// The directory that the name must not lead out of, be it by `..` or by a link. The name begins with it,
    /// unless it is `.`.
    pub beneath: Option<&'a Path>,
    /// Where events are told.
    pub trace: Option<&'a Trace>,
    /// For tests and benches: take one way of making calls only.
    pub lane: Lane,
}

impl FileOptions<'_> {
    /// For reading.
    pub fn read_only() -> Self {
        Self::default()
    }

    /// For reading and writing.
    pub fn read_write() -> Self {
        Self { access: Access::ReadWrite, ..Self::default() }
    }

    /// The locks to take.
    pub(crate) fn resolved_needs(&self, access: Access) -> Needs {
        self.needs.unwrap_or(match (self.create, access) {
            (Create::Never, Access::ReadOnly) => lock::READ,
            (Create::Never, Access::ReadWrite) => lock::WRITE,
            _ => lock::CREATE,
        })
    }
}
