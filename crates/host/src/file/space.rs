//! Storage given and taken back: zeroes, discards, lengths, copies inside the host.
//!
//! Everything here may wait, so it runs on the ring or in the pool. The length of a file grows by *writing* its
//! last block, never by `ftruncate` or by an `fallocate` that extends: the former would cut off what another
//! request wrote beyond the new end meanwhile, the latter makes some kernels (XFS) lose such a write.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::trace::Word;
use cowbell_block::{Buf, ErrorKind, Flags, Node, Operation, Preallocation, Request, Result, TraceEvent};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{FileError, os};
use crate::file::{BLOCK_MAX, FileNode, Shared, open};
use crate::handle::{Handle, retry};
use crate::lane::{self, Call, Durability, Job};
use crate::{ioctl, pool};

/// Bytes of the first block of a file that is shorter than [`BLOCK_MAX`].
const SECTOR: u64 = 512;
/// Bytes per write when zeroes are written out.
const ZERO_CHUNK: u64 = 1 << 20;
/// Bytes per call when the host copies: an interruption or a cancellation is noticed in between.
const COPY_CHUNK: u64 = 64 << 20;

/// What to do, taken out of a request.
pub(crate) enum Plan {
    Zero { offset: u64, len: u64, flags: Flags },
    Discard { offset: u64, len: u64 },
    Truncate { len: u64, preallocation: Preallocation },
    Copy { source: Arc<dyn Node>, source_offset: u64, offset: u64, len: u64 },
    Nothing(&'static str),
}

impl Plan {
    pub(crate) fn of(request: &Request) -> Self {
        let (offset, len, flags) = (request.offset, request.len, request.flags);
        match &request.op {
            Operation::WriteZeroes => Self::Zero { offset, len, flags },
            Operation::Discard => Self::Discard { offset, len },
            Operation::Truncate(preallocation) => {
                Self::Truncate { len: offset, preallocation: *preallocation }
            }
            Operation::CopyFrom { source, source_offset } => {
                Self::Copy { source: source.clone(), source_offset: *source_offset, offset, len }
            }
            other => Self::Nothing(other.name()),
        }
    }
}

impl Shared {
    pub(crate) async fn change_space(self: &Arc<Self>, plan: Plan) -> Result<()> {
        let result = match plan {
            Plan::Zero { len: 0, .. } | Plan::Discard { len: 0, .. } | Plan::Copy { len: 0, .. } => {
                return Ok(());
            }
            Plan::Zero { offset, len, flags } => self.write_zeroes(offset, len, flags).await,
            Plan::Discard { offset, len } => self.discard(offset, len).await,
            Plan::Truncate { len, preallocation } => self.truncate(len, preallocation).await,
            Plan::Copy { source, source_offset, offset, len } => {
                self.copy_from(source, source_offset, offset, len).await
            }
            Plan::Nothing(what) => {
                let driver = if self.is_device { "host_device" } else { "file" };
                return Err(cowbell_block::node::NotOffered { driver, what }.into());
            }
        };
        // Also after a failure part of it may have happened.
        self.data.forget();
        self.touched();
        result
    }

    async fn write_zeroes(self: &Arc<Self>, offset: u64, len: u64, flags: Flags) -> Result<()> {
        let end = offset.checked_add(len).ok_or_else(|| os(Errno::FBIG))?;
        let zeroed = if self.is_device {
            self.zero_device(offset, len, flags).await?
        } else {
            if end > self.len() {
                self.grow(offset, end).await?;
            }
            self.zero_file(offset, len, flags).await?
        };
        match zeroed {
            Asked::Done => Ok(()),
            Asked::NotOffered if flags.contains(Flags::NO_FALLBACK) => Err(ErrorKind::Unsupported.into()),
            Asked::NotOffered => self.write_out_zeroes(offset, end).await,
        }
    }

    async fn zero_file(&self, offset: u64, len: u64, flags: Flags) -> Result<Asked> {
        let keep = FallocateFlags::KEEP_SIZE;
        let punch = FallocateFlags::PUNCH_HOLE | keep;
        let (no_punch, no_zero) = (&self.can.no_punch, &self.can.no_zero_range);
        if flags.contains(Flags::MAY_UNMAP)
            && self.allocate(punch, offset, len, no_punch).await? == Asked::Done
        {
            return Ok(Asked::Done);
        }
        if self.allocate(FallocateFlags::ZERO_RANGE | keep, offset, len, no_zero).await? == Asked::Done {
            return Ok(Asked::Done);
        }
        // Where only holes can be made: make one and fill it with reserved storage.
        if self.allocate(punch, offset, len, no_punch).await? == Asked::Done {
            let unknown = AtomicBool::new(false);
            self.allocate(keep, offset, len, &unknown).await?;
            return Ok(Asked::Done);
        }
        Ok(Asked::NotOffered)
    }

    async fn zero_device(&self, offset: u64, len: u64, flags: Flags) -> Result<Asked> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if flags.contains(Flags::MAY_UNMAP)
            && self.allocate(punch, offset, len, &self.can.no_punch).await? == Asked::Done
        {
            return Ok(Asked::Done);
        }
        let handle = self.handle.clone();
        asked(pool::run(move || ioctl::zero_out(&*handle, offset, len)).await, &self.can.no_zero_range)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let len = len.min(self.len().saturating_sub(offset));
        if len == 0 {
            return Ok(());
        }
        let answer = if self.is_device {
            let handle = self.handle.clone();
            asked(pool::run(move || ioctl::discard(&*handle, offset, len)).await, &self.can.no_punch)?
        } else {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.allocate(punch, offset, len, &self.can.no_punch).await?
        };
        match answer {
            Asked::Done => Ok(()),
            Asked::NotOffered => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Makes the file reach to `end`, by writing zeroes at the end of `offset..end`, which is to become zero.
    async fn grow(&self, offset: u64, end: u64) -> Result<()> {
        let grain = u64::from(self.mode.request_alignment());
        let at = (end - 1) / grain * grain;
        if at < offset || !end.is_multiple_of(grain) {
            // Direct I/O to an end that is not on the grain; a parent that keeps to the limits never asks.
            return Err(os(Errno::INVAL));
        }
        self.write_all(at, Buf::zeroed(grain as usize)).await.map(drop)
    }

    async fn write_out_zeroes(&self, offset: u64, end: u64) -> Result<()> {
        let mut zeroes = Buf::zeroed((end - offset).min(ZERO_CHUNK) as usize);
        let mut at = offset;
        while at < end {
            zeroes.truncate((end - at).min(ZERO_CHUNK) as usize);
            let n = zeroes.len() as u64;
            zeroes = self.write_all(at, zeroes).await?;
            at += n;
        }
        Ok(())
    }

    async fn write_all(&self, offset: u64, buf: Buf) -> Result<Buf> {
        let (len, mut done) = (buf.len(), 0);
        let mut bufs = buf.into();
        while done < len {
            let call = Call::Write(Durability::Volatile);
            let at = offset + done as u64;
            let finished =
                lane::start(Job { file: self.handle.clone(), call, bufs, skip: done, offset: at }, self.lane)
                    .await;
            bufs = finished.bufs;
            match finished.result {
                Ok(0) => return Err(os(Errno::NOSPC)),
                Ok(n) => done += n,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(os(errno)),
            }
            self.grown_to(offset + done as u64);
            done -= if done < len { done % self.mode.request_alignment() as usize } else { 0 };
        }
        Ok(bufs.to_contiguous_or_self())
    }

    async fn truncate(self: &Arc<Self>, len: u64, preallocation: Preallocation) -> Result<()> {
        if preallocation == Preallocation::Metadata {
            return Err(FileError::Preallocation { mode: preallocation.name() }.into());
        }
        if self.is_device {
            return if len <= self.len() { Ok(()) } else { Err(FileError::DeviceGrows.into()) };
        }
        if i64::try_from(len).is_err() {
            return Err(FileError::Resize { errno: Errno::FBIG.raw_os_error() }.into());
        }
        // Where the file ends by the host's count: somebody may have grown it behind our back.
        let old = self.length_now();
        if preallocation != Preallocation::Off && len < old {
            return Err(FileError::PreallocationShrinks.into());
        }
        self.set_length(len).await.map_err(|e| FileError::Resize { errno: e.errno() })?;
        let filled = match preallocation {
            _ if len <= old => Ok(()),
            Preallocation::Full => self.write_out_zeroes(old, len).await,
            Preallocation::Falloc => match self.reserve(old, len).await {
                Ok(()) => self.store_first_block(old, len).await,
                refused => refused,
            },
            _ => self.store_first_block(old, len).await,
        };
        if filled.is_err() {
            // Nothing half made stays behind; the first error is the one that tells.
            drop(self.set_length(old).await);
        }
        filled
    }

    /// Stores the first block of a file that was empty. Whoever opens it for direct I/O learns the alignment that the host
    /// wants by trying to read there, and some hosts take any read of a hole.
    async fn store_first_block(&self, old: u64, len: u64) -> Result<()> {
        let grain = u64::from(self.mode.request_alignment());
        let block = if len < u64::from(BLOCK_MAX) { SECTOR } else { u64::from(BLOCK_MAX) }.max(grain);
        match old == 0 && len >= block {
            true => self.write_out_zeroes(0, block).await,
            false => Ok(()),
        }
    }

    async fn set_length(&self, len: u64) -> Result<()> {
        let handle = self.handle.clone();
        if len >= self.len() {
            // Growing is a change of one number; giving storage back may take its time.
            retry(|| rustix::fs::ftruncate(&*handle, len)).map_err(os)?;
        } else {
            pool::run(move || retry(|| rustix::fs::ftruncate(&*handle, len))).await.map_err(os)?;
        }
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    async fn reserve(&self, from: u64, to: u64) -> Result<()> {
        let unknown = AtomicBool::new(false);
        match self.allocate(FallocateFlags::KEEP_SIZE, from, to - from, &unknown).await? {
            Asked::Done => Ok(()),
            Asked::NotOffered => Err(os(Errno::OPNOTSUPP)),
        }
    }

    async fn copy_from(
        &self,
        source: Arc<dyn Node>,
        source_offset: u64,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let Some(source) = source.as_any().downcast_ref::<FileNode>() else {
            return Err(ErrorKind::Unsupported.into());
        };
        let (from, to) = (source.shared.handle.clone(), self.handle.clone());
        let mut done = 0;
        while done < len {
            let n = (len - done).min(COPY_CHUNK);
            let (from, to) = (from.clone(), to.clone());
            let copied = pool::run(move || copy(&from, source_offset + done, &to, offset + done, n)).await;
            self.tell_of_copy(source, source_offset + done, offset + done, n, copied);
            match copied {
                // The source ends here; beyond its end it reads as zeroes, which the caller can write better.
                Ok(0) => return Err(ErrorKind::Unsupported.into()),
                Ok(n) => done += n,
                Err(errno) if is_not_offered(errno) || errno == Errno::XDEV || errno == Errno::TXTBSY => {
                    return Err(ErrorKind::Unsupported.into());
                }
                Err(errno) => return Err(os(errno)),
            }
            self.grown_to(offset + done);
        }
        Ok(())
    }

    /// One `fallocate`; `lacking` remembers that the host does not have it.
    async fn allocate(
        &self,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
        lacking: &AtomicBool,
    ) -> Result<Asked> {
        if lacking.load(Ordering::Relaxed) {
            return Ok(Asked::NotOffered);
        }
        loop {
            let job = Job::plain(self.handle.clone(), Call::Allocate { mode, len }, offset);
            match lane::start(job, self.lane).await.result {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return asked(result.map(drop), lacking),
            }
        }
    }

    /// The length as the host tells it, for when the cached one is not enough.
    pub(crate) fn length_now(&self) -> u64 {
        open::length(&*self.handle, self.is_device).unwrap_or_else(|_| self.len())
    }
}

/// The host's answer to a request that it may not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Done,
    NotOffered,
}

fn asked(result: std::result::Result<(), Errno>, lacking: &AtomicBool) -> Result<Asked> {
    match result {
        Ok(()) => Ok(Asked::Done),
        // EINVAL: this range only, for some reason of the file system's own; not a word about the next one.
        Err(Errno::INVAL) => Ok(Asked::NotOffered),
        Err(errno) if is_not_offered(errno) => {
            lacking.store(true, Ordering::Relaxed);
            Ok(Asked::NotOffered)
        }
        Err(errno) => Err(os(errno)),
    }
}

fn is_not_offered(errno: Errno) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOTTY, Errno::INVAL].contains(&errno)
}

impl Shared {
    fn tell_of_copy(
        &self,
        source: &FileNode,
        from: u64,
        to: u64,
        len: u64,
        copied: std::result::Result<u64, Errno>,
    ) {
        let Some(trace) = &self.trace else { return };
        let fd = |handle: &Handle| Word::Number(handle.as_fd().as_raw_fd().unsigned_abs().into());
        let result = match copied {
            Ok(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Err(errno) => -i64::from(errno.raw_os_error()),
        };
        let words = [
            source.identity().into(),
            fd(&source.shared.handle),
            from.into(),
            fd(&self.handle),
            to.into(),
            len.into(),
            0.into(),
            Word::Result(result),
        ];
        trace.tell(TraceEvent::FileCopyFileRange, &words);
    }
}

fn copy(
    from: &Handle,
    from_offset: u64,
    to: &Handle,
    to_offset: u64,
    len: u64,
) -> std::result::Result<u64, Errno> {
    let (mut from_offset, mut to_offset) = (from_offset, to_offset);
    retry(|| {
        rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len as usize)
            .map(|n| n as u64)
    })
}

const _: () = assert!(ZERO_CHUNK.is_multiple_of(BLOCK_MAX as u64));
