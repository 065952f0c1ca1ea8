//! Two calls on block devices that rustix does not have.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::handle::last_errno;

/// `_IO(0x12, 119)`: the device may forget a range.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `_IO(0x12, 127)`: the device zeroes a range, by whatever means it has.
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Tells a device that `len` bytes at `offset` are no longer needed.
pub(crate) fn discard(file: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    range(file, BLKDISCARD, offset, len)
}

/// Makes `len` bytes at `offset` of a device read as zeroes.
pub(crate) fn zero_out(file: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    range(file, BLKZEROOUT, offset, len)
}

fn range(file: impl AsFd, request: libc::Ioctl, offset: u64, len: u64) -> Result<(), Errno> {
    let range = [offset, len];
    loop {
        // SAFETY: both requests read two 64-bit numbers from the pointer and keep nothing.
        match unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, range.as_ptr()) } {
            -1 if last_errno() == Errno::INTR => {}
            -1 => return Err(last_errno()),
            _ => return Ok(()),
        }
    }
}
