//! Calls on files and devices that rustix does not have.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::handle::last_errno;

/// `_IO(0x12, 119)`: the device may forget a range.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `_IO(0x12, 127)`: the device zeroes a range, by whatever means it has.
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
/// The extent size field of `struct fsxattr` counts.
const FS_XFLAG_EXTSIZE: u32 = 0x800;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Attributes>() == 28);

/// Asks for large extents. Only a hint: file systems without it go on as they are.
pub(crate) fn extent_size_hint(file: impl AsFd, bytes: u32) {
    let fd = file.as_fd().as_raw_fd();
    let mut attributes = Attributes::default();
    // SAFETY: the request fills the structure, whose layout is asserted above, and keeps nothing.
    if unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut attributes) } == -1 {
        return;
    }
    attributes.flags |= FS_XFLAG_EXTSIZE;
    attributes.extent_size = bytes;
    // SAFETY: the request reads the structure and keeps nothing.
    let _hint = unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, &raw const attributes) };
}

/// Turns copy-on-write off for a new, empty file. Where a file system refuses, there is none to turn off.
pub(crate) fn no_copy_on_write(file: impl AsFd) {
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return };
    let _none = rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::NOCOW);
}

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
