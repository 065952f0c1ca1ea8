//! Requests, their causes, and how they complete.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bitflags::bitflags;

use crate::buf::Bufs;
use crate::error::{Error, Result};
use crate::node::Node;

/// A boxed future that owns all it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a request does to `offset..offset + len` of its node.
#[derive(Clone, Default)]
pub enum Operation {
    /// Fill the buffers.
    #[default]
    Read,
    /// Store the buffers.
    Write,
    /// Make the range read as zeroes.
    WriteZeroes,
    /// The guest no longer needs the range.
    Discard,
    /// Make every write completed before this one was submitted durable. Offset and length are ignored.
    Flush,
    /// Say what the beginning of the range is; completes with [`Outcome::Extent`].
    Status,
    /// Copy from another node, without the data passing through our memory.
    ///
    /// The source is a protocol node as named by [`Extent::map`]; the caller keeps it unchanged meanwhile.
    CopyFrom {
        /// The node to copy from.
        source: Arc<dyn Node>,
        /// The first byte there.
        source_offset: u64,
    },
    /// Set the length of the node to `offset`.
    Truncate(Preallocation),
    /// Like `Read`, in the VM state area.
    VmStateRead,
    /// Like `Write`, in the VM state area.
    VmStateWrite,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Operation {
    /// The operation's name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Status => "block-status",
            Self::CopyFrom { .. } => "copy-range",
            Self::Truncate(_) => "truncate",
            Self::VmStateRead => "vmstate-read",
            Self::VmStateWrite => "vmstate-write",
        }
    }

    /// Whether the operation may change what is stored.
    pub fn is_mutation(&self) -> bool {
        !matches!(self, Self::Read | Self::Status | Self::Flush | Self::VmStateRead)
    }
}

/// How much of a new area gets its storage at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The format's own tables, pointing to storage that may be sparse.
    Metadata,
    /// Storage reserved with the host, not written.
    Falloc,
    /// Storage written with zeroes.
    Full,
}

impl Preallocation {
    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Off, Self::Metadata, Self::Falloc, Self::Full].into_iter().find(|mode| mode.name() == name)
    }

    /// The standard name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

bitflags! {
    /// Modifiers of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Flags: u16 {
        /// Durable at completion.
        const FUA = 1;
        /// A write of zeroes may release storage.
        const MAY_UNMAP = 1 << 1;
        /// Fail with `Unsupported` rather than take a slow path.
        const NO_FALLBACK = 1 << 2;
        /// Store compressed.
        const COMPRESSED = 1 << 3;
        /// Bring into caches only; buffers are empty.
        const PREFETCH = 1 << 4;
        /// Wait for, and hold off, every overlapping request.
        const SERIALISING = 1 << 5;
        /// The content does not change (rebase and stream write what reads already return): the node is to hold it
        /// itself, also where it would not have to.
        const WRITE_UNCHANGED = 1 << 6;
        /// A status question whose answer may cost more: holes are looked for below what a format calls data.
        const PRECISE = 1 << 7;
    }
}

/// Who is responsible for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Cause {
    /// Number of the request at its root; children carry their root's number. 0 when nobody counts.
    pub request: u64,
    /// An opaque number of the origin; a machine puts its instruction count there.
    pub origin: u64,
}

/// One request to a node.
#[derive(Debug, Default)]
pub struct Request {
    /// What to do.
    pub op: Operation,
    /// First byte.
    pub offset: u64,
    /// Length in bytes. For reads and writes it equals the buffers' length.
    pub len: u64,
    /// Modifiers.
    pub flags: Flags,
    /// Memory to fill or to store; handed back by the completion.
    pub bufs: Bufs,
    /// Who is responsible.
    pub cause: Cause,
}

impl Request {
    /// A read that fills `bufs`.
    pub fn read(offset: u64, bufs: impl Into<Bufs>) -> Self {
        let bufs = bufs.into();
        Self { op: Operation::Read, offset, len: bufs.len() as u64, bufs, ..Self::default() }
    }

    /// A write of `bufs`.
    pub fn write(offset: u64, bufs: impl Into<Bufs>) -> Self {
        let bufs = bufs.into();
        Self { op: Operation::Write, offset, len: bufs.len() as u64, bufs, ..Self::default() }
    }

    /// A write of `len` zeroes.
    pub fn write_zeroes(offset: u64, len: u64) -> Self {
        Self { op: Operation::WriteZeroes, offset, len, ..Self::default() }
    }

    /// A discard of `len` bytes.
    pub fn discard(offset: u64, len: u64) -> Self {
        Self { op: Operation::Discard, offset, len, ..Self::default() }
    }

    /// A flush.
    pub fn flush() -> Self {
        Self { op: Operation::Flush, ..Self::default() }
    }

    /// A question about the extent that starts at `offset`, at most `len` bytes long.
    pub fn status(offset: u64, len: u64) -> Self {
        Self { op: Operation::Status, offset, len, ..Self::default() }
    }

    /// A change of the node's length.
    pub fn truncate(len: u64, preallocation: Preallocation) -> Self {
        Self { op: Operation::Truncate(preallocation), offset: len, ..Self::default() }
    }

    /// The same request with these flags added.
    #[must_use]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.flags |= flags;
        self
    }

    /// The same request on behalf of `cause`.
    #[must_use]
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }

    /// One byte past the end.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

bitflags! {
    /// What is known about an extent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
    pub struct ExtentFlags: u16 {
        /// Content is stored (somewhere below), not implied.
        const DATA = 1;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
        /// This node determines the content; without it the backing file does.
        const ALLOCATED = 1 << 2;
        /// Stored compressed.
        const COMPRESSED = 1 << 3;
        /// Nothing follows: the extent reaches the node's end.
        const EOF = 1 << 4;
    }
}

/// A range of a node that is of one kind.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Length in bytes, never zero unless the question was beyond the end.
    pub len: u64,
    /// Its kind.
    pub flags: ExtentFlags,
    /// Where the bytes lie, when they lie somewhere as they are.
    pub map: Option<Mapping>,
}

/// Where an extent lies below.
#[derive(Clone)]
pub struct Mapping {
    /// The node that stores it.
    pub node: Arc<dyn Node>,
    /// The first byte there.
    pub offset: u64,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{:#x}", self.node.driver(), self.offset)
    }
}

/// What a successful request brings besides its buffers.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing more.
    Done,
    /// The answer to [`Operation::Status`].
    Extent(Extent),
}

/// A finished request: its buffers and its result.
#[derive(Debug)]
pub struct Completion {
    /// The buffers of the request, whatever the result.
    pub bufs: Bufs,
    /// How it went.
    pub result: Result<Outcome>,
}

impl Completion {
    /// Success without an answer.
    pub fn done(bufs: Bufs) -> Self {
        Self { bufs, result: Ok(Outcome::Done) }
    }

    /// Failure.
    pub fn failed(bufs: Bufs, error: impl Into<Error>) -> Self {
        Self { bufs, result: Err(error.into()) }
    }

    /// The answer to a status question.
    pub fn extent(extent: Extent) -> Self {
        Self { bufs: Bufs::none(), result: Ok(Outcome::Extent(extent)) }
    }

    /// The buffers, if the request succeeded.
    ///
    /// # Errors
    /// The request's error; the buffers are dropped.
    pub fn into_bufs(self) -> Result<Bufs> {
        self.result.map(|_| self.bufs)
    }

    /// The answer to a status question.
    ///
    /// # Errors
    /// The request's error.
    ///
    /// # Panics
    /// If the request was no status question.
    pub fn into_extent(self) -> Result<Extent> {
        match self.result? {
            Outcome::Extent(extent) => Ok(extent),
            Outcome::Done => panic!("a status request completes with an extent"),
        }
    }
}

/// A submitted request: finished already, or to be waited for.
///
/// Dropping a `Wait` stops the waiting, not the work: what a driver must not leave half done it keeps.
#[must_use = "an operation that is not awaited may never run"]
pub enum Op {
    /// It met no wait.
    Done(Completion),
    /// It has to wait for something.
    Wait(BoxFuture<Completion>),
}

impl Op {
    /// Success without an answer.
    pub fn done(bufs: Bufs) -> Self {
        Self::Done(Completion::done(bufs))
    }

    /// Immediate failure.
    pub fn failed(bufs: Bufs, error: impl Into<Error>) -> Self {
        Self::Done(Completion::failed(bufs, error))
    }

    /// Boxes an asynchronous continuation.
    pub fn wait(future: impl Future<Output = Completion> + Send + 'static) -> Self {
        Self::Wait(Box::pin(future))
    }

    /// Waits for the completion; returns at once when it is there.
    pub async fn finish(self) -> Completion {
        match self {
            Self::Done(completion) => completion,
            Self::Wait(future) => future.await,
        }
    }
}
