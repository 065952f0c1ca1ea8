//! Address translation: Sv39, Sv48 and Sv57 with Svade, and physical memory protection.
//!
//! A walk never writes: with Svade a clear accessed or dirty bit is a page fault. Every table it reads is watched
//! from then on ([`Ram::watch_table`]).

use crate::hart::{Hart, Privilege};
use crate::ram::{PAGE, Ram};
use crate::trap::Cause;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Read data.
    Load,
    /// Write data, or do both atomically.
    Store,
    /// Fetch an instruction.
    Fetch,
}

impl AccessKind {
    /// The cause of a page fault.
    pub const fn page_fault(self) -> Cause {
        match self {
            AccessKind::Load => Cause::LoadPageFault,
            AccessKind::Store => Cause::StorePageFault,
            AccessKind::Fetch => Cause::FetchPageFault,
        }
    }

    /// The cause of an access fault.
    pub const fn access_fault(self) -> Cause {
        match self {
            AccessKind::Load => Cause::LoadAccessFault,
            AccessKind::Store => Cause::StoreAccessFault,
            AccessKind::Fetch => Cause::FetchAccessFault,
        }
    }

    /// The cause of a misaligned access.
    pub const fn misaligned(self) -> Cause {
        match self {
            AccessKind::Load => Cause::LoadMisaligned,
            AccessKind::Store => Cause::StoreMisaligned,
            AccessKind::Fetch => Cause::FetchMisaligned,
        }
    }
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The physical address.
    pub address: u64,
    /// The answer holds for the whole page.
    pub(crate) whole_page: bool,
}

mod pte {
    pub(super) const V: u64 = 1;
    pub(super) const R: u64 = 2;
    pub(super) const W: u64 = 4;
    pub(super) const X: u64 = 8;
    pub(super) const U: u64 = 16;
    pub(super) const A: u64 = 64;
    pub(super) const D: u64 = 128;
    /// Reserved bits, with those of Svnapot and Svpbmt, which this machine has not.
    pub(super) const RESERVED: u64 = 0x3ff << 54;
}

/// Translates the address of an access of `size` bytes that does not cross a page.
///
/// # Errors
/// The cause of the trap that the access takes.
pub fn translate(
    hart: &mut Hart,
    ram: &mut Ram,
    va: u64,
    size: u64,
    kind: AccessKind,
) -> Result<Translated, Cause> {
    let privilege = if kind == AccessKind::Fetch { hart.privilege } else { hart.data_privilege() };
    let mode = hart.csr.satp >> 60;
    let address = if privilege == Privilege::M || mode == 0 {
        if va >> 56 != 0 {
            return Err(kind.access_fault());
        }
        va
    } else {
        let walked = walk(hart, ram, va, kind, privilege);
        // The walk may have watched a page that this hart could store to without asking.
        if !ram.attention.watched.is_empty() {
            hart.obey_watches(ram);
        }
        walked?
    };
    let verdict = hart.csr.pmp.judge(address, size, kind, privilege);
    if !verdict.allowed {
        return Err(kind.access_fault());
    }
    Ok(Translated { address, whole_page: verdict.whole_page })
}

fn walk(
    hart: &mut Hart,
    ram: &mut Ram,
    va: u64,
    kind: AccessKind,
    privilege: Privilege,
) -> Result<u64, Cause> {
    let satp = hart.csr.satp;
    let levels = (satp >> 60) as u32 - 5;
    let width = 12 + 9 * levels;
    if (va as i64) << (64 - width) >> (64 - width) != va as i64 {
        return Err(kind.page_fault());
    }
    let known = hart.tlb.leaf_table(va);
    let (mut table, first) = match known {
        Some(table) => (table, 1),
        None => ((satp & ((1 << 44) - 1)) * PAGE, levels),
    };
    for level in (0..first).rev() {
        let shift = 12 + 9 * level;
        let at = table + (va >> shift & 0x1ff) * 8;
        let page = ram.page_of(at).ok_or(kind.access_fault())?;
        if !hart.csr.pmp.judge(at, 8, AccessKind::Load, Privilege::S).allowed {
            return Err(kind.access_fault());
        }
        let _in_store_tlb = ram.watch_table(page, level, va);
        let entry = ram.load::<8>(page, at & (PAGE - 1));
        let malformed =
            entry & pte::V == 0 || entry & (pte::R | pte::W) == pte::W || entry & pte::RESERVED != 0;
        if malformed {
            return Err(kind.page_fault());
        }
        let target = (entry >> 10 & ((1 << 44) - 1)) * PAGE;
        if entry & (pte::R | pte::X) != 0 {
            let inside = (1u64 << shift) - 1;
            if target & inside != 0 || !permitted(hart, entry, kind, privilege) {
                return Err(kind.page_fault());
            }
            return Ok(target | va & inside);
        }
        // A, D and U are reserved in a pointer to the next table.
        if entry & (pte::A | pte::D | pte::U) != 0 {
            return Err(kind.page_fault());
        }
        table = target;
        if level == 1 {
            hart.tlb.fill_leaf_table(va, table);
        }
    }
    Err(kind.page_fault())
}

fn permitted(hart: &Hart, entry: u64, kind: AccessKind, privilege: Privilege) -> bool {
    let status = hart.csr.mstatus;
    let user_page = entry & pte::U != 0;
    let right_ring = match privilege {
        Privilege::U => user_page,
        _ => !user_page || (status.sum() && kind != AccessKind::Fetch),
    };
    let granted = match kind {
        AccessKind::Load => entry & pte::R != 0 || (status.mxr() && entry & pte::X != 0),
        AccessKind::Store => entry & pte::W != 0 && entry & pte::D != 0,
        AccessKind::Fetch => entry & pte::X != 0,
    };
    right_ring && granted && entry & pte::A != 0
}

/// Translates as a debugger sees it: the hart's address space, without permissions and without any trace left.
pub fn translate_for_debugger(hart: &Hart, ram: &Ram, va: u64) -> Option<u64> {
    let satp = hart.csr.satp;
    if hart.privilege == Privilege::M || satp >> 60 == 0 {
        return Some(va);
    }
    let levels = (satp >> 60) as u32 - 5;
    let mut table = (satp & ((1 << 44) - 1)) * PAGE;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = ram.read_number(table + (va >> shift & 0x1ff) * 8, 8)?;
        let target = (entry >> 10 & ((1 << 44) - 1)) * PAGE;
        if entry & pte::V == 0 {
            return None;
        }
        if entry & (pte::R | pte::X) != 0 {
            return Some(target | va & ((1 << shift) - 1));
        }
        table = target;
    }
    None
}
