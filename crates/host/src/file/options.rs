//! What a file is opened with.

use std::os::fd::BorrowedFd;

use cowbell_block::Access;

use crate::lane::Lane;
use crate::lock::LockMode;

/// Which driver a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FileKind {
    /// Whatever the name turns out to be, as long as it is a regular file or a block device.
    #[default]
    Either,
    /// Driver `file`: a regular file.
    File,
    /// Driver `host_device`: a block device.
    Device,
}

/// How the host's page cache is used, by the names of the tools' `-t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Through the page cache; durable at a flush.
    #[default]
    Writeback,
    /// Past the page cache; durable at a flush.
    None,
    /// Past the page cache; every write durable at completion.
    DirectSync,
    /// Through the page cache; every write durable at completion.
    Writethrough,
    /// Through the page cache; a flush does nothing.
    Unsafe,
}

impl CacheMode {
    /// The mode called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "writeback" => Self::Writeback,
            "none" | "off" => Self::None,
            "directsync" => Self::DirectSync,
            "writethrough" => Self::Writethrough,
            "unsafe" => Self::Unsafe,
            _ => return None,
        })
    }

    /// Whether the page cache is passed by (`cache.direct`).
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }

    /// Whether flushes are ignored (`cache.no-flush`).
    pub fn ignores_flush(self) -> bool {
        self == Self::Unsafe
    }

    /// Whether every write is durable at completion.
    pub fn is_write_through(self) -> bool {
        matches!(self, Self::DirectSync | Self::Writethrough)
    }
}

/// How requests that wait are made (`aio`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Aio {
    /// Inline, then the ring, then threads: the best there is.
    #[default]
    Auto,
    /// Inline, then threads.
    Threads,
    /// As `Auto`, for direct I/O only: a name kept for scripts.
    Native,
    /// Inline, then the ring, which must be there.
    IoUring,
}

/// Whether image locks are taken (`locking`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Locking {
    /// Where the file system has them.
    #[default]
    Auto,
    /// Or fail.
    On,
    /// Not at all.
    Off,
}

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
    /// How requests wait.
    pub aio: Aio,
    /// Whether image locks are taken.
    pub locking: Locking,
    /// Which: by default those of a format's file, [`LockMode::READ`] or [`LockMode::WRITE`] by access.
    pub lock: Option<LockMode>,
    /// The directory that the name must not lead out of, by `..`, by an absolute path or by a link.
    pub beneath: Option<BorrowedFd<'a>>,
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
    pub(crate) fn lock_mode(&self, access: Access) -> LockMode {
        self.lock.unwrap_or(match (self.create, access) {
            (Create::Never, Access::ReadOnly) => LockMode::READ,
            (Create::Never, Access::ReadWrite) => LockMode::WRITE,
            _ => LockMode::CREATE,
        })
    }
}
