//! Load-reserved, store-conditional and atomic memory operations. They want alignment and RAM.

use super::find_ram;
use crate::hart::Hart;
use crate::isa::{Insn, Op};
use crate::mmu::AccessKind;
use crate::ram::Ram;
use crate::trap::Trap;

/// Executes one of them.
///
/// # Errors
/// The trap it takes; then nothing has changed.
pub(crate) fn atomic_in_ram(hart: &mut Hart, ram: &mut Ram, insn: &Insn) -> Result<(), Trap> {
    let va = hart.reg(insn.rs1);
    let size = if is_word(insn.op) { 4 } else { 8 };
    let kind = match insn.op {
        Op::LrW | Op::LrD => AccessKind::Load,
        _ => AccessKind::Store,
    };
    if !va.is_multiple_of(size as u64) {
        return Err(Trap { cause: kind.misaligned(), value: va });
    }
    let fault = Trap { cause: kind.access_fault(), value: va };
    let found = find_ram(hart, ram, va, size as u64, kind).map_err(|cause| Trap { cause, value: va })?;
    let address = found.ok_or(fault)?;
    let old = ram.read_number(address, size).ok_or(fault)?;
    let old = if size == 4 { old as i32 as i64 as u64 } else { old };
    let operand = hart.reg(insn.rs2);
    match insn.op {
        Op::LrW | Op::LrD => {
            hart.reservation = Some((address, size as u8));
            hart.set_reg(insn.rd, old);
        }
        Op::ScW | Op::ScD => {
            let holds = hart.reservation.take() == Some((address, size as u8));
            if holds {
                ram.write(address, &operand.to_le_bytes()[..size]);
            }
            hart.set_reg(insn.rd, u64::from(!holds));
        }
        _ => {
            let new = combine(insn.op, old, operand);
            ram.write(address, &new.to_le_bytes()[..size]);
            hart.set_reg(insn.rd, old);
        }
    }
    Ok(())
}

const fn is_word(op: Op) -> bool {
    matches!(
        op,
        Op::LrW
            | Op::ScW
            | Op::AmoSwapW
            | Op::AmoAddW
            | Op::AmoXorW
            | Op::AmoAndW
            | Op::AmoOrW
            | Op::AmoMinW
            | Op::AmoMaxW
            | Op::AmoMinuW
            | Op::AmoMaxuW
    )
}

fn combine(op: Op, old: u64, operand: u64) -> u64 {
    match op {
        Op::AmoSwapW | Op::AmoSwapD => operand,
        Op::AmoAddW | Op::AmoAddD => old.wrapping_add(operand),
        Op::AmoXorW | Op::AmoXorD => old ^ operand,
        Op::AmoAndW | Op::AmoAndD => old & operand,
        Op::AmoOrW | Op::AmoOrD => old | operand,
        Op::AmoMinW => (old as i32).min(operand as i32) as u64,
        Op::AmoMaxW => (old as i32).max(operand as i32) as u64,
        Op::AmoMinuW => (old as u32).min(operand as u32).into(),
        Op::AmoMaxuW => (old as u32).max(operand as u32).into(),
        Op::AmoMinD => (old as i64).min(operand as i64) as u64,
        Op::AmoMaxD => (old as i64).max(operand as i64) as u64,
        Op::AmoMinuD => old.min(operand),
        _ => old.max(operand),
    }
}
