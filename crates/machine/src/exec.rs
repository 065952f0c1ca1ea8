//! The plain executor: one instruction at a time, straight from memory.
//!
//! It defines what the machine does. The block engine runs what it can by itself and hands every unusual
//! instruction (a fault, a device, a system instruction) to [`step`]; tests hold the two against each other.

mod access;
mod alu;
mod atomic;
mod fpu;
mod system;

pub(crate) use access::{find_ram, load_ram, store_ram};
pub use access::{load, store};
pub use alu::{alu, branch_taken, is_alu};
pub(crate) use atomic::atomic_in_ram;
pub use fpu::{compute, from_integer, rounding, to_integer};

use crate::bus::Bus;
use crate::csr::Mstatus;
use crate::hart::Hart;
use crate::isa::{Format, Insn, Op, decode};
use crate::mmu::{AccessKind, translate};
use crate::ram::PAGE;
use crate::trap::Trap;

/// What one instruction did beyond registers and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Done,
    /// Interrupts, privilege or devices may stand differently.
    Changed,
    /// It was `wfi`, and the hart waits.
    Wait,
    /// It was an `ecall` to the built-in SBI; the pc still points at it.
    Sbi,
}

/// Executes one instruction, or takes the trap it causes, and counts it.
pub fn step(hart: &mut Hart, bus: &mut Bus) -> Step {
    let result = fetch(hart, bus).and_then(|bits| execute(hart, bus, &decode(bits)));
    count(hart, bus, result)
}

/// The same for an instruction whose bits are known already.
pub(crate) fn step_fetched(hart: &mut Hart, bus: &mut Bus, bits: u32) -> Step {
    let result = execute(hart, bus, &decode(bits));
    count(hart, bus, result)
}

/// Counts an instruction, and takes the trap it caused.
fn count(hart: &mut Hart, bus: &mut Bus, result: Result<Step, Trap>) -> Step {
    bus.clock.count += 1;
    match result {
        Ok(step) if std::mem::take(&mut bus.touched) && step == Step::Done => Step::Changed,
        Ok(step) => step,
        Err(trap) => {
            hart.take_exception(trap);
            Step::Changed
        }
    }
}

/// The bits at the pc; the upper half is zero for a compressed instruction.
fn fetch(hart: &mut Hart, bus: &mut Bus) -> Result<u32, Trap> {
    let pc = hart.pc;
    let low = fetch_half(hart, bus, pc)?;
    if low & 3 != 3 {
        return Ok(low.into());
    }
    let high = fetch_half(hart, bus, pc.wrapping_add(2))?;
    Ok(u32::from(high) << 16 | u32::from(low))
}

fn fetch_half(hart: &mut Hart, bus: &mut Bus, va: u64) -> Result<u16, Trap> {
    let fault = |cause| Trap { cause, value: va };
    if let Some(page) = fetch_page(hart, bus, va) {
        return Ok(bus.ram.load::<2>(page, va) as u16);
    }
    let address = translate(hart, &mut bus.ram, va, 2, AccessKind::Fetch).map_err(fault)?.address;
    bus.fetch_half(address).ok_or(fault(AccessKind::Fetch.access_fault()))
}

/// The page of RAM that holds the instruction at `va`, if it may be fetched from as a whole.
pub(crate) fn fetch_page(hart: &mut Hart, bus: &mut Bus, va: u64) -> Option<u32> {
    if let Some(page) = hart.tlb.fetch(hart.fetch_mode, va) {
        return Some(page);
    }
    let translated = translate(hart, &mut bus.ram, va & !1, 2, AccessKind::Fetch).ok()?;
    let page = bus.ram.page_of(translated.address)?;
    if !translated.whole_page {
        return None;
    }
    hart.tlb.fill_fetch(hart.fetch_mode, va & !(PAGE - 1), page);
    Some(page)
}

/// Executes a decoded instruction that stands at the pc, and moves the pc on.
///
/// # Errors
/// The trap it causes; then nothing has changed.
pub fn execute(hart: &mut Hart, bus: &mut Bus, insn: &Insn) -> Result<Step, Trap> {
    let pc = hart.pc;
    let mut next = pc.wrapping_add(insn.len.into());
    let (a, b) = (hart.reg(insn.rs1), hart.reg(insn.rs2));
    let mut result = Step::Done;
    match insn.op.format() {
        Format::U => {
            let base = if insn.op == Op::Auipc { pc } else { 0 };
            hart.set_reg(insn.rd, base.wrapping_add(insn.imm64()));
        }
        Format::J => {
            hart.set_reg(insn.rd, next);
            next = pc.wrapping_add(insn.imm64());
        }
        Format::I if insn.op == Op::Jalr => {
            hart.set_reg(insn.rd, next);
            next = a.wrapping_add(insn.imm64()) & !1;
        }
        Format::B => {
            if branch_taken(insn.op, a, b) {
                next = pc.wrapping_add(insn.imm64());
            }
        }
        Format::I => hart.set_reg(insn.rd, alu(insn.op, a, insn.imm64())),
        Format::R | Format::R1 => hart.set_reg(insn.rd, alu(insn.op, a, b)),
        Format::Load => {
            let value = load(hart, bus, a.wrapping_add(insn.imm64()), load_size(insn.op))?;
            hart.set_reg(insn.rd, extend_load(insn.op, value));
        }
        Format::Store => store(hart, bus, a.wrapping_add(insn.imm64()), store_size(insn.op), b)?,
        Format::Lr | Format::Amo => atomic_in_ram(hart, &mut bus.ram, insn)?,
        Format::FLoad | Format::FStore => float_memory(hart, bus, insn)?,
        Format::FRm
        | Format::F
        | Format::F1Rm
        | Format::F4
        | Format::FCmp
        | Format::FToX
        | Format::FToXRm
        | Format::XToF
        | Format::XToFRm => float(hart, insn)?,
        Format::None | Format::Csr | Format::CsrI | Format::Fence2 | Format::Cbo => {
            result = system::execute(hart, bus, insn, &mut next)?;
        }
    }
    hart.pc = next;
    Ok(result)
}

/// Bytes that a load reads.
pub(crate) const fn load_size(op: Op) -> usize {
    match op {
        Op::Lb | Op::Lbu => 1,
        Op::Lh | Op::Lhu => 2,
        Op::Lw | Op::Lwu | Op::Flw => 4,
        _ => 8,
    }
}

/// Bytes that a store writes.
pub(crate) const fn store_size(op: Op) -> usize {
    match op {
        Op::Sb => 1,
        Op::Sh => 2,
        Op::Sw | Op::Fsw => 4,
        _ => 8,
    }
}

/// What a load puts into its register, given the zero-extended bytes.
#[inline(always)]
pub(crate) const fn extend_load(op: Op, value: u64) -> u64 {
    match op {
        Op::Lb => value as i8 as i64 as u64,
        Op::Lh => value as i16 as i64 as u64,
        Op::Lw => value as i32 as i64 as u64,
        Op::Flw => value | 0xffff_ffff_0000_0000,
        _ => value,
    }
}

fn require_float(hart: &Hart, insn: &Insn) -> Result<(), Trap> {
    if hart.csr.mstatus.fs() == 0 { Err(Trap::illegal(insn.raw)) } else { Ok(()) }
}

fn mark_float_dirty(hart: &mut Hart) {
    hart.csr.mstatus.0 |= Mstatus::FS;
    hart.float_ready = true;
}

fn float_memory(hart: &mut Hart, bus: &mut Bus, insn: &Insn) -> Result<(), Trap> {
    require_float(hart, insn)?;
    let va = hart.reg(insn.rs1).wrapping_add(insn.imm64());
    if insn.op.format() == Format::FStore {
        return store(hart, bus, va, store_size(insn.op), hart.f[insn.rs2 as usize]);
    }
    let value = load(hart, bus, va, load_size(insn.op))?;
    hart.f[insn.rd as usize] = extend_load(insn.op, value);
    mark_float_dirty(hart);
    Ok(())
}

fn float(hart: &mut Hart, insn: &Insn) -> Result<(), Trap> {
    require_float(hart, insn)?;
    let rounding = rounding(insn.rm, hart.csr.frm).ok_or(Trap::illegal(insn.raw))?;
    let [a, b, c] = [insn.rs1, insn.rs2, insn.rs3].map(|number| hart.f[number as usize]);
    let mut flags = hart.csr.fflags;
    let before = flags;
    match insn.op.format() {
        Format::FCmp | Format::FToX | Format::FToXRm => {
            hart.set_reg(insn.rd, to_integer(insn.op, a, b, rounding, &mut flags));
            // An integer result dirties the unit's state only by the flags it raises.
            if flags == before {
                return Ok(());
            }
        }
        Format::XToF | Format::XToFRm => {
            hart.f[insn.rd as usize] = from_integer(insn.op, hart.reg(insn.rs1), rounding, &mut flags);
        }
        _ => hart.f[insn.rd as usize] = compute(insn.op, a, b, c, rounding, &mut flags),
    }
    hart.csr.fflags = flags;
    mark_float_dirty(hart);
    Ok(())
}

#[cfg(test)]
mod tests;
