//! What happened to a disk: every I/O with its times, and every sector write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowbell_block::DebugEvent;
use cowbell_block::request::Operation;

use crate::faults::{FaultKind, Member};
use crate::pool::{Content, ZERO};
use crate::timeline::DATA_AT;

/// The steps of a world. Shared by its disks; only the executor moves it.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// The number of the current step.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The next step begins.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the scheduler may do to an I/O, by its number in the disk's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStep {
    /// Let it take effect.
    Apply(u32),
    /// Report it.
    Complete(u32),
    /// Both at once.
    Finish(u32),
}

impl IoStep {
    /// The I/O's number.
    pub fn io(self) -> u32 {
        match self {
            Self::Apply(io) | Self::Complete(io) | Self::Finish(io) => io,
        }
    }
}

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum IoKind {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    Status,
    Truncate,
}

impl IoKind {
    /// The name in logs and scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "zero",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Status => "status",
            Self::Truncate => "truncate",
        }
    }

    pub(super) fn of(op: &Operation) -> Option<Self> {
        Some(match op {
            Operation::Read => Self::Read,
            Operation::Write => Self::Write,
            Operation::WriteZeroes => Self::WriteZeroes,
            Operation::Discard => Self::Discard,
            Operation::Flush => Self::Flush,
            Operation::Status => Self::Status,
            Operation::Truncate(_) => Self::Truncate,
            _ => return None,
        })
    }
}

/// One I/O in the history of a disk.
#[derive(Clone, Debug)]
pub struct Io {
    /// Of which file.
    pub file: Member,
    /// What it does.
    pub kind: IoKind,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Durable at completion.
    pub fua: bool,
    /// The event announced just before it.
    pub tag: DebugEvent,
    /// The guest request responsible for it.
    pub cause: u64,
    /// Step of its submission.
    pub submitted: u64,
    /// Step at which it took effect.
    pub applied: Option<u64>,
    /// Step at which the submitter heard of it.
    pub completed: Option<u64>,
    /// The fault that strikes it.
    pub fault: Option<FaultKind>,
    /// The sectors it changed: a range of [`History::writes`].
    pub writes: (u32, u32),
    /// The file's length after it, if it changed it.
    pub new_len: Option<u64>,
    /// At its submission: the file's length, and the number of sector writes so far.
    pub eof: (u64, u32),
}

impl Io {
    /// Whether it changes what is stored.
    pub fn is_mutation(&self) -> bool {
        matches!(self.kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Discard | IoKind::Truncate)
    }
}

/// Everything that happened to a disk since its content was last set.
#[derive(Clone, Default)]
pub struct History {
    /// Content at the beginning, all durable.
    pub base: Vec<Content>,
    /// Length at the beginning.
    pub base_len: u64,
    /// Length of the data file at the beginning, if there is one.
    pub base_data_len: u64,
    /// The I/Os in order of submission.
    pub ios: Vec<Io>,
    /// Sector writes in order of application: sector and content.
    pub writes: Vec<(u32, Content)>,
}

impl History {
    /// What happened to an image and its data file, whose sectors begin at [`DATA_AT`] here.
    #[must_use]
    pub fn beside(mut self, data: Self) -> Self {
        let (at, shift) = (DATA_AT as u32, self.writes.len() as u32);
        assert!(self.base.len() <= DATA_AT && self.writes.iter().all(|(sector, _)| *sector < at));
        self.base.resize(DATA_AT, ZERO);
        self.base.extend(data.base);
        self.base_data_len = data.base_len;
        self.writes.extend(data.writes.into_iter().map(|(sector, content)| (sector + at, content)));
        self.ios.extend(data.ios.into_iter().map(|io| Io {
            file: Member::Data,
            writes: (io.writes.0 + shift, io.writes.1 + shift),
            ..io
        }));
        self.ios.sort_by_key(|io| io.submitted);
        self
    }
}
