//! Physical memory protection: sixteen entries, granularity four bytes.

use crate::hart::Privilege;
use crate::mmu::AccessKind;

const READ: u8 = 1;
const WRITE: u8 = 2;
const EXECUTE: u8 = 4;
const LOCKED: u8 = 0x80;

/// The registers, and the regions they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pmp {
    config: [u8; 16],
    address: [u64; 16],
    /// The active entries in order of priority; a function of the two above.
    regions: Vec<Region>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Region {
    first: u64,
    last: u64,
    config: u8,
}

/// The answer for an access and for the page around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    /// The same answer holds for every byte of the page, so that it may be cached.
    pub(crate) whole_page: bool,
}

impl Pmp {
    /// Eight configuration bytes from entry `first`.
    pub fn config(&self, first: usize) -> u64 {
        (0..8).fold(0, |value, i| value | u64::from(self.config[first + i]) << (8 * i))
    }

    /// An address register.
    pub fn address(&self, index: usize) -> u64 {
        self.address[index]
    }

    /// Writes eight configuration bytes; locked entries keep theirs, and so do those given the reserved
    /// combination of write without read.
    pub fn set_config(&mut self, first: usize, value: u64) {
        for index in first..first + 8 {
            let new = (value >> (8 * (index - first))) as u8 & !0x60;
            if self.config[index] & LOCKED == 0 && new & (READ | WRITE) != WRITE {
                self.config[index] = new;
            }
        }
        self.rebuild();
    }

    /// Writes an address register unless it, or the locked range that begins at it, forbids it.
    pub fn set_address(&mut self, index: usize, value: u64) {
        let next_locks =
            self.config.get(index + 1).is_some_and(|next| next & LOCKED != 0 && mode(*next) == 1);
        if self.config[index] & LOCKED == 0 && !next_locks {
            self.address[index] = value & ((1 << 54) - 1);
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        self.regions.clear();
        for (index, &config) in self.config.iter().enumerate() {
            let address = self.address[index];
            let (first, end) = match mode(config) {
                0 => continue,
                1 => (if index == 0 { 0 } else { self.address[index - 1] << 2 }, address << 2),
                2 => (address << 2, (address << 2) + 4),
                _ => {
                    let size = 8u64 << address.trailing_ones();
                    let base = (address & !(size / 4 - 1)) << 2;
                    (base, base + size)
                }
            };
            if first < end {
                self.regions.push(Region { first, last: end - 1, config });
            }
        }
    }

    /// Judges an access of `size` bytes at a physical address.
    pub(crate) fn judge(&self, address: u64, size: u64, kind: AccessKind, privilege: Privilege) -> Verdict {
        let (page_first, page_last) = (address & !0xfff, address | 0xfff);
        let last = address + (size - 1);
        let mut whole_page = true;
        for region in &self.regions {
            if region.first > page_last || region.last < page_first {
                continue;
            }
            whole_page &= region.first <= page_first && page_last <= region.last;
            if region.first <= last && address <= region.last {
                let inside = region.first <= address && last <= region.last;
                let needed = match kind {
                    AccessKind::Load => READ,
                    AccessKind::Store => WRITE,
                    AccessKind::Fetch => EXECUTE,
                };
                let bound = privilege != Privilege::M || region.config & LOCKED != 0;
                return Verdict { allowed: inside && (!bound || region.config & needed != 0), whole_page };
            }
        }
        Verdict { allowed: privilege == Privilege::M, whole_page }
    }
}

const fn mode(config: u8) -> u8 {
    config >> 3 & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pmp: &Pmp, access: (u64, u64, AccessKind, Privilege), expect: (bool, bool)) {
        let verdict = pmp.judge(access.0, access.1, access.2, access.3);
        assert_eq!((verdict.allowed, verdict.whole_page), expect, "{access:x?}");
    }

    #[test]
    fn judges_by_the_first_matching_entry() {
        use AccessKind::{Fetch, Load, Store};
        let (m, s) = (Privilege::M, Privilege::S);
        let mut pmp = Pmp::default();
        check(&pmp, (0x8000_0000, 8, Load, m), (true, true));
        check(&pmp, (0x8000_0000, 8, Load, s), (false, true));
        // Entry 0: NAPOT 8 bytes at 0x8000_0100, locked, read only. Entry 1: everything, RWX.
        pmp.set_address(0, 0x8000_0100 >> 2);
        pmp.set_address(1, u64::MAX);
        pmp.set_config(0, 0x1f99);
        check(&pmp, (0x8000_0100, 8, Load, s), (true, false));
        check(&pmp, (0x8000_0100, 8, Store, s), (false, false));
        check(&pmp, (0x8000_0100, 8, Store, m), (false, false));
        check(&pmp, (0x8000_00fc, 8, Load, m), (false, false));
        check(&pmp, (0x8000_1000, 4, Fetch, s), (true, true));
        pmp.set_address(0, 0);
        assert_eq!(pmp.address(0), 0x8000_0100 >> 2);
        // Top of range, from entry 1's address.
        let mut pmp = Pmp::default();
        pmp.set_address(0, 0x8000_0000 >> 2);
        pmp.set_address(1, 0x8000_2000 >> 2);
        pmp.set_config(0, 0x0900);
        check(&pmp, (0x8000_1ffc, 4, Load, s), (true, true));
        check(&pmp, (0x8000_1ffc, 8, Load, s), (false, true));
        check(&pmp, (0x8000_2000, 4, Load, s), (false, true));
    }
}
