//! What an open file is, and what direct I/O to it asks for.

use std::os::fd::AsFd;

use cowbell_block::Buf;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::file::BLOCK_MAX;
use crate::handle::Handle;

/// `STATX_DIOALIGN`, which rustix does not name.
const STATX_DIOALIGN: u32 = 0x2000;
/// Alignments that exist in the field, smallest first.
const CANDIDATES: [u32; 4] = [512, 1024, 2048, BLOCK_MAX];
/// File systems in memory: a read never waits for a device, so it may always be made inline.
const MEMORY_FILE_SYSTEMS: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// Multiples that direct I/O has to keep to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of offsets and lengths.
    pub(crate) request: u32,
    /// Of addresses.
    pub(crate) memory: u32,
}

/// The alignment of a file opened with `O_DIRECT`, if one works.
pub(crate) fn alignment(file: &Handle, len: u64) -> Option<Alignment> {
    told(file).or_else(|| tried(file, len))
}

/// What the kernel says (since Linux 6.1, where the file system knows).
fn told(file: &Handle) -> Option<Alignment> {
    let flags = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    let answer = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, flags).ok()?;
    let known = answer.stx_mask & STATX_DIOALIGN != 0;
    let (request, memory) = (answer.stx_dio_offset_align, answer.stx_dio_mem_align);
    let sane = |n: u32| n.is_power_of_two() && n <= 1 << 20;
    (known && sane(request) && sane(memory)).then_some(Alignment { request, memory })
}

/// What reads show: the smallest one that is not refused.
fn tried(file: &Handle, len: u64) -> Option<Alignment> {
    if len < u64::from(BLOCK_MAX) {
        // Some file systems check nothing at the end of a file, and a guess on the safe side costs little.
        return works(file, BLOCK_MAX, 0).then_some(Alignment { request: BLOCK_MAX, memory: BLOCK_MAX });
    }
    let request = CANDIDATES.into_iter().find(|n| works(file, *n, 0))?;
    let memory = CANDIDATES.into_iter().find(|n| works(file, BLOCK_MAX, *n)).unwrap_or(BLOCK_MAX);
    Some(Alignment { request, memory })
}

/// Whether `n` bytes can be read into memory that is aligned to `shift` and no better.
fn works(file: &Handle, n: u32, shift: u32) -> bool {
    let mut memory = Buf::zeroed((n + shift) as usize);
    rustix::io::pread(file, &mut memory[shift as usize..], 0) != Err(Errno::INVAL)
}

/// Whether the file lives in memory.
pub(crate) fn is_in_memory(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| MEMORY_FILE_SYSTEMS.contains(&(fs.f_type as u64)))
}
