//! One call to the host that may wait, and the two ways of making it without waiting: a ring or a pool thread.
//!
//! A [`Job`] owns everything the call needs, buffers and file included, so that it runs to its end whoever
//! loses interest in it.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use cowbell_block::Bufs;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::handle::Handle;
use crate::slot::{Receipt, slot};
use crate::{exec, pool};

/// The ways a request may take, for tests and benches that want to see one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lane {
    /// Inline without waiting, then the ring, then the pool.
    #[default]
    Auto,
    /// The ring for everything that has a ring operation.
    Ring,
    /// Pool threads for everything.
    Pool,
}

/// What a job does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Read,
    Write(Durability),
    Allocate { mode: FallocateFlags, len: u64 },
    Sync,
}

/// What a write promises at completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Volatile,
    Durable,
}

impl Durability {
    pub(crate) fn flags(self) -> ReadWriteFlags {
        match self {
            Self::Volatile => ReadWriteFlags::empty(),
            Self::Durable => ReadWriteFlags::DSYNC,
        }
    }
}

/// A call with all it needs.
pub(crate) struct Job {
    pub(crate) file: Arc<Handle>,
    pub(crate) call: Call,
    /// Buffers of a read or write; the first `skip` bytes are done already.
    pub(crate) bufs: Bufs,
    pub(crate) skip: usize,
    /// Where the remaining bytes begin in the file.
    pub(crate) offset: u64,
}

/// A finished job: its buffers and the host's answer.
pub(crate) struct Finished {
    pub(crate) bufs: Bufs,
    pub(crate) result: Result<usize, Errno>,
}

impl Job {
    /// A call without buffers.
    pub(crate) fn plain(file: Arc<Handle>, call: Call, offset: u64) -> Self {
        Self { file, call, bufs: Bufs::none(), skip: 0, offset }
    }

    /// Makes the call on this thread, however long it takes.
    pub(crate) fn run(mut self) -> Finished {
        let result = self.call();
        self.finish(result)
    }

    /// The host answered. A call that was to make data durable and failed spoils the file, for it may have been
    /// told about the loss of any data written before, and nobody will be told again.
    pub(crate) fn finish(self, result: Result<usize, Errno>) -> Finished {
        let spoils = match (self.call, result) {
            (Call::Sync, Err(errno)) => errno != Errno::INTR,
            // These say that nothing was written; then nothing was flushed either.
            (Call::Write(Durability::Durable), Err(errno)) => {
                let harmless = [
                    Errno::INTR,
                    Errno::AGAIN,
                    Errno::INVAL,
                    Errno::NOSPC,
                    Errno::DQUOT,
                    Errno::FBIG,
                    Errno::BADF,
                    Errno::OPNOTSUPP,
                ];
                !harmless.contains(&errno)
            }
            _ => false,
        };
        if spoils && let Err(errno) = result {
            self.file.poison(errno);
        }
        Finished { bufs: self.bufs, result }
    }

    fn call(&mut self) -> Result<usize, Errno> {
        loop {
            let result = match self.call {
                Call::Read => {
                    let flags = ReadWriteFlags::empty();
                    read_some(&self.file, &mut self.bufs, self.skip, self.offset, flags)
                }
                Call::Write(durability) => {
                    write_some(&self.file, &self.bufs, self.skip, self.offset, durability.flags())
                }
                Call::Allocate { mode, len } => {
                    rustix::fs::fallocate(&self.file, mode, self.offset, len).map(|()| 0)
                }
                Call::Sync => rustix::fs::fdatasync(&self.file).map(|()| 0),
            };
            if result != Err(Errno::INTR) {
                return result;
            }
        }
    }
}

/// Starts `job` on this thread's ring if there is one to be had and `lane` allows it, else in the pool.
pub(crate) fn start(job: Job, lane: Lane) -> Receipt<Finished> {
    if lane == Lane::Pool {
        return pool::run(move || job.run());
    }
    let (done, receipt) = slot();
    if let Err((job, done)) = exec::submit_to_ring(job, done) {
        let _detached = pool::run(move || done.complete(job.run()));
    }
    receipt
}

/// Most pieces in one call from the stack; further ones go in the next call.
const PIECES: usize = 16;

/// One vectored read of what follows the first `skip` bytes.
pub(crate) fn read_some(
    file: &Handle,
    bufs: &mut Bufs,
    skip: usize,
    offset: u64,
    flags: ReadWriteFlags,
) -> Result<usize, Errno> {
    if let [only] = bufs.pieces_mut() {
        return rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut only[skip..])], offset, flags);
    }
    let mut pieces: [IoSliceMut<'_>; PIECES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let (mut skip, mut count) = (skip, 0);
    for piece in bufs.pieces_mut() {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        if count == PIECES {
            break;
        }
        pieces[count] = IoSliceMut::new(&mut piece[skip..]);
        (skip, count) = (0, count + 1);
    }
    rustix::io::preadv2(file, &mut pieces[..count], offset, flags)
}

/// One vectored write of what follows the first `skip` bytes.
pub(crate) fn write_some(
    file: &Handle,
    bufs: &Bufs,
    skip: usize,
    offset: u64,
    flags: ReadWriteFlags,
) -> Result<usize, Errno> {
    if let [only] = bufs.pieces() {
        return rustix::io::pwritev2(file, &[IoSlice::new(&only[skip..])], offset, flags);
    }
    let mut pieces: [IoSlice<'_>; PIECES] = std::array::from_fn(|_| IoSlice::new(&[]));
    let (mut skip, mut count) = (skip, 0);
    for piece in bufs.pieces() {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        if count == PIECES {
            break;
        }
        pieces[count] = IoSlice::new(&piece[skip..]);
        (skip, count) = (0, count + 1);
    }
    rustix::io::pwritev2(file, &pieces[..count], offset, flags)
}
