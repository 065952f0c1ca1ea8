//! A thread's io_uring.
//!
//! Made when the first request needs it, and only if the kernel lets us: many containers forbid it. Whether it
//! does is found out once per process. A ring belongs to one thread, which submits, waits and reaps; entries
//! are queued by `push` and reach the kernel together when the thread has nothing else to do.
//!
//! Invariant: the kernel knows an address only while the entry that owns the memory (and the file) sits in
//! `entries`. Entries leave it when their completion was reaped, and the executor does not let go of the
//! thread, nor the ring of its entries, before that.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;

use crate::error::errno_of;
use crate::lane::{Call, Finished, Job};
use crate::slot::Completer;

/// Entries of the submission queue; the kernel keeps twice as many completions and buffers what is beyond.
const ENTRIES: u32 = 128;
/// Most bytes in one ring operation: below what its 32-bit length and result hold, and a multiple of any grain.
const TRANSFER_MAX: usize = 1 << 30;
/// Marks the completion of the poll on the wake-up descriptor.
const WAKE_TAG: u64 = u64::MAX;

/// A reaped completion on its way to the waiter.
pub(crate) type Reaped = (Completer<Finished>, Finished);

pub(crate) struct Ring {
    uring: IoUring,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    in_flight: usize,
    wake_armed: bool,
}

struct Entry {
    job: Job,
    done: Completer<Finished>,
    /// What the submission points to when there are several pieces.
    pieces: Vec<libc::iovec>,
}

const UNKNOWN: u8 = 0;
const OFFERED: u8 = 1;
const REFUSED: u8 = 2;
static KERNEL: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Whether the kernel offers io_uring to this process, as far as a first try tells.
pub fn is_offered() -> bool {
    match KERNEL.load(Ordering::Relaxed) {
        UNKNOWN => Ring::new().is_some(),
        state => state == OFFERED,
    }
}

impl Ring {
    /// A ring for this thread, if the kernel allows one.
    pub(crate) fn new() -> Option<Self> {
        if KERNEL.load(Ordering::Relaxed) == REFUSED {
            return None;
        }
        let uring = build();
        KERNEL.store(if uring.is_some() { OFFERED } else { REFUSED }, Ordering::Relaxed);
        let (entries, free) = (Vec::new(), Vec::new());
        Some(Self { uring: uring?, entries, free, in_flight: 0, wake_armed: false })
    }

    /// Jobs that the ring owns.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues `job`, or gives it back when the ring has no room for it.
    pub(crate) fn push(
        &mut self,
        mut job: Job,
        done: Completer<Finished>,
    ) -> Result<(), (Job, Completer<Finished>)> {
        if self.uring.submission().is_full()
            && (self.uring.submit().is_err() || self.uring.submission().is_full())
        {
            return Err((job, done));
        }
        let mut pieces = Vec::new();
        let submission = submission(&mut job, &mut pieces);
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(Entry { job, done, pieces });
        let submission = submission.user_data(u64::from(index));
        // SAFETY: file, buffers and piece list are owned by the entry just stored, which stays until the
        // completion is reaped; the heap memory they point to does not move with the entry.
        let queued = unsafe { self.uring.submission().push(&submission) };
        assert!(queued.is_ok(), "room was just made in the submission queue");
        self.in_flight += 1;
        Ok(())
    }

    /// Hands queued entries to the kernel without waiting, and collects what is finished.
    pub(crate) fn poll(&mut self, reaped: &mut Vec<Reaped>) {
        let queued = { !self.uring.submission().is_empty() || self.uring.submission().taskrun() };
        if queued {
            // A refusal (EBUSY, EAGAIN, EINTR) leaves the entries queued; the next turn tries again.
            let _again = self.uring.submit();
        }
        self.reap(reaped);
    }

    /// Hands queued entries to the kernel and waits for a completion, `wake`, or the end of `timeout`.
    ///
    /// Says whether `wake` was readable.
    pub(crate) fn wait(&mut self, wake: RawFd, timeout: Option<Duration>, reaped: &mut Vec<Reaped>) -> bool {
        self.arm(wake);
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        if let Err(e) = result {
            let expected = [Errno::INTR, Errno::TIME, Errno::BUSY, Errno::AGAIN];
            assert!(expected.contains(&errno_of(&e)), "waiting on a ring failed: {e}");
        }
        self.reap(reaped);
        !self.wake_armed
    }

    /// Waits for everything in flight.
    pub(crate) fn drain(&mut self, reaped: &mut Vec<Reaped>) {
        while self.in_flight > 0 {
            if let Err(e) = self.uring.submit_and_wait(1)
                && ![Errno::INTR, Errno::BUSY, Errno::AGAIN].contains(&errno_of(&e))
            {
                // The memory of the entries is the kernel's: better to leak than to hand it out again.
                self.entries.drain(..).for_each(std::mem::forget);
                self.in_flight = 0;
                return;
            }
            self.reap(reaped);
        }
    }

    /// Makes a write to the descriptor `wake` end a wait.
    fn arm(&mut self, wake: RawFd) {
        if self.wake_armed {
            return;
        }
        let poll = opcode::PollAdd::new(Fd(wake), libc::POLLIN as u32).build().user_data(WAKE_TAG);
        loop {
            // SAFETY: a poll names no memory; the descriptor lives as long as the thread.
            let queued = unsafe { self.uring.submission().push(&poll) };
            if queued.is_ok() {
                self.wake_armed = true;
                return;
            }
            let _room = self.uring.submit();
        }
    }

    fn reap(&mut self, reaped: &mut Vec<Reaped>) {
        let completions: cqueue::CompletionQueue<'_, _> = self.uring.completion();
        for completion in completions {
            if completion.user_data() == WAKE_TAG {
                self.wake_armed = false;
                continue;
            }
            let index = completion.user_data() as usize;
            let entry = self.entries[index].take().expect("the kernel completes what it was given, once");
            self.free.push(index as u32);
            self.in_flight -= 1;
            drop(entry.pieces);
            let result = match completion.result() {
                n if n < 0 => Err(Errno::from_raw_os_error(-n)),
                n => Ok(n as usize),
            };
            reaped.push((entry.done, entry.job.finish(result)));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut reaped = Vec::new();
        self.drain(&mut reaped);
        reaped.into_iter().for_each(|(done, finished)| done.complete(finished));
    }
}

fn build() -> Option<IoUring> {
    // Completions are run by our own enter calls only: no interruptions, and cheaper. Since Linux 6.1.
    let newest = IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(ENTRIES);
    let uring = match newest {
        Ok(uring) => uring,
        Err(e) if errno_of(&e) == Errno::INVAL => IoUring::builder().dontfork().build(ENTRIES).ok()?,
        Err(_) => return None,
    };
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).ok()?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
    ];
    let complete = needed.iter().all(|code| probe.is_supported(*code));
    let usable = complete && uring.params().is_feature_nodrop() && uring.params().is_feature_ext_arg();
    usable.then_some(uring)
}

/// The submission for `job`, its piece list put into `pieces`.
fn submission(job: &mut Job, pieces: &mut Vec<libc::iovec>) -> squeue::Entry {
    let fd = Fd(job.file.as_raw_fd());
    match job.call {
        Call::Read => match piece_list(job, pieces) {
            Pieces::One { base, len } => opcode::Read::new(fd, base, len).offset(job.offset).build(),
            Pieces::Many { list, count } => opcode::Readv::new(fd, list, count).offset(job.offset).build(),
        },
        Call::Write(durability) => {
            let flags = durability.flags().bits() as i32;
            match piece_list(job, pieces) {
                Pieces::One { base, len } => {
                    opcode::Write::new(fd, base, len).offset(job.offset).rw_flags(flags).build()
                }
                Pieces::Many { list, count } => {
                    opcode::Writev::new(fd, list, count).offset(job.offset).rw_flags(flags).build()
                }
            }
        }
        Call::Allocate { mode, len } => {
            opcode::Fallocate::new(fd, len).offset(job.offset).mode(mode.bits() as i32).build()
        }
        Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
    }
}

enum Pieces {
    One { base: *mut u8, len: u32 },
    Many { list: *const libc::iovec, count: u32 },
}

/// The memory after the first `skip` bytes, as the kernel wants it.
fn piece_list(job: &mut Job, pieces: &mut Vec<libc::iovec>) -> Pieces {
    let (mut skip, mut left) = (job.skip, TRANSFER_MAX);
    for piece in job.bufs.pieces_mut() {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let rest = &mut piece[skip..];
        let n = rest.len().min(left);
        pieces.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: n });
        left -= n;
        skip = 0;
        if left == 0 || pieces.len() == libc::UIO_MAXIOV as usize {
            break;
        }
    }
    match pieces.as_slice() {
        [one] => Pieces::One { base: one.iov_base.cast(), len: one.iov_len as u32 },
        many => Pieces::Many { list: many.as_ptr(), count: many.len() as u32 },
    }
}
