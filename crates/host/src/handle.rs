//! An open file whose number never changes while anyone uses it.
//!
//! Requests hold an `Arc<Handle>`. Opening the file again with other rights, and closing it while requests
//! may still run, put another open file description *under the same number* (`dup3`), which is atomic: there
//! is no lock on the way of a request, and no number that could meanwhile belong to somebody else.
//!
//! The handle also carries the file's health: a job that learns of a failed flush notes it here itself, so that
//! the news is not lost with a future that nobody polls any more.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use cowbell_block::Access;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The descriptor of one file.
#[derive(Debug)]
pub(crate) struct Handle {
    fd: OwnedFd,
    /// What requests are refused for; zero when everything is allowed.
    state: AtomicU32,
    /// The code of the flush that failed, when poisoned.
    poison: AtomicI32,
}

impl Handle {
    /// Writes are refused.
    pub(crate) const READ_ONLY: u32 = 1;
    /// Everything is refused.
    pub(crate) const CLOSED: u32 = 1 << 1;
    /// A flush failed: writes and flushes are refused.
    pub(crate) const POISONED: u32 = 1 << 2;

    pub(crate) fn new(fd: OwnedFd, access: Access) -> Self {
        Self { fd, state: AtomicU32::new(access_bits(access)), poison: AtomicI32::new(0) }
    }

    /// The bits above.
    #[inline]
    pub(crate) fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    /// The code of the flush that failed.
    pub(crate) fn poison_errno(&self) -> i32 {
        self.poison.load(Ordering::Acquire)
    }

    /// Makes a failed flush stick.
    pub(crate) fn poison(&self, errno: Errno) {
        self.poison.store(errno.raw_os_error(), Ordering::Release);
        self.state.fetch_or(Self::POISONED, Ordering::AcqRel);
    }

    /// From now on everything is refused.
    pub(crate) fn set_closed(&self) {
        self.state.fetch_or(Self::CLOSED, Ordering::AcqRel);
    }

    /// A freshly opened description: healthy again.
    pub(crate) fn set_reopened(&self, access: Access) {
        self.state.store(access_bits(access), Ordering::Release);
    }

    /// Puts `other` in the place of what is open here.
    pub(crate) fn replace(&self, other: OwnedFd) -> Result<(), Errno> {
        // SAFETY: both numbers are open descriptors that we own; `dup3` touches no memory.
        match unsafe { libc::dup3(other.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) } {
            -1 => Err(last_errno()),
            _ => Ok(()),
        }
    }

    /// Releases the file and reports what closing it says. Later calls on the number fail with `EBADF`.
    pub(crate) fn release(&self) -> Result<(), Errno> {
        let file = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        // A path descriptor refuses reads, writes and every other operation on content.
        let nothing = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.replace(nothing)?;
        // SAFETY: `file` is the last descriptor of the file that we own; its number is given up here.
        match unsafe { libc::close(file.into_raw_fd()) } {
            -1 if last_errno() != Errno::INTR => Err(last_errno()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn access_bits(access: Access) -> u32 {
    match access {
        Access::ReadOnly => Handle::READ_ONLY,
        Access::ReadWrite => 0,
    }
}

/// The code of the `libc` call that just failed on this thread.
pub(crate) fn last_errno() -> Errno {
    crate::error::errno_of(&std::io::Error::last_os_error())
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
