//! Watchpoints: found by looking at each instruction before it is executed.
//!
//! While any is set the machine runs one instruction at a time; the count, and all state, stay what they are.

use crate::exec::{load_size, store_size};
use crate::hart::Hart;
use crate::isa::{Format, Op, decode};
use crate::mmu::translate_for_debugger;
use crate::ram::Ram;
use gdbstub::target::ext::breakpoints::WatchKind;

/// A range of virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watchpoint {
    pub(super) address: u64,
    pub(super) len: u64,
    pub(super) kind: WatchKind,
}

/// The watchpoint that the instruction at the pc is about to touch, and where.
pub(super) fn touched(hart: &Hart, ram: &Ram, watchpoints: &[Watchpoint]) -> Option<(WatchKind, u64)> {
    let access = next_access(hart, ram)?;
    let hit = watchpoints.iter().find(|watchpoint| {
        let overlaps = access.address < watchpoint.address.saturating_add(watchpoint.len)
            && watchpoint.address < access.address.saturating_add(access.len);
        let concerns = match watchpoint.kind {
            WatchKind::Read => access.reads,
            WatchKind::Write => access.writes,
            WatchKind::ReadWrite => true,
        };
        overlaps && concerns
    })?;
    Some((hit.kind, access.address.max(hit.address)))
}

struct DataAccess {
    address: u64,
    len: u64,
    reads: bool,
    writes: bool,
}

fn next_access(hart: &Hart, ram: &Ram) -> Option<DataAccess> {
    let half = |va: u64| ram.read_number(translate_for_debugger(hart, ram, va)?, 2);
    let low = half(hart.pc)?;
    let bits = if low & 3 == 3 { half(hart.pc.wrapping_add(2))? << 16 | low } else { low };
    let insn = decode(bits as u32);
    let base = hart.reg(insn.rs1);
    let offset = base.wrapping_add(insn.imm64());
    let word = |narrow: bool| if narrow { 4 } else { 8 };
    let (address, len, reads, writes) = match insn.op.format() {
        Format::Load | Format::FLoad => (offset, load_size(insn.op) as u64, true, false),
        Format::Store | Format::FStore => (offset, store_size(insn.op) as u64, false, true),
        Format::Lr => (base, word(insn.op == Op::LrW), true, false),
        Format::Amo => (base, word(insn.op.mnemonic().ends_with(".w")), true, true),
        Format::Cbo if insn.op == Op::CboZero => (base & !63, 64, false, true),
        _ => return None,
    };
    Some(DataAccess { address, len, reads, writes })
}
