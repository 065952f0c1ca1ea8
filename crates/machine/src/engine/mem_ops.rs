//! Micro-operations on memory. The fast path is a compare, a page and an access; the rest is out of line, in
//! functions of the same signature so that calling them costs the fast path nothing.

use super::uop::{Flow, Handler, Uop, leave_after, leave_before, next};
use crate::csr::ENVCFG_CBZE;
use crate::exec::{atomic_in_ram, extend_load, load_ram, store_ram};
use crate::hart::{Hart, Privilege};
use crate::isa::{Insn, Op};
use crate::ram::Ram;

macro_rules! memory_ops {
    ($op:expr;
     loads: $($load:ident $load_size:literal)*; float_loads: $($fload:ident $fload_size:literal)*;
     stores: $($store:ident $store_size:literal $source:ident)*; atomics: $($atomic:ident)*) => {
        match $op {
            $(Op::$load => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    let Some(page) = hart.tlb.load::<$load_size>(hart.data_mode, va) else {
                        return slow(hart, ram, op, rest);
                    };
                    hart.x[op.rd as usize] = extend_load(Op::$load, ram.load::<$load_size>(page, va));
                    next(hart, ram, rest)
                }
                #[cold]
                #[inline(never)]
                fn slow(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    let Some(value) = load_ram(hart, ram, va, $load_size) else { return leave_before(hart, op) };
                    hart.x[op.rd as usize] = extend_load(Op::$load, value);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            $(Op::$fload => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    match hart.tlb.load::<$fload_size>(hart.data_mode, va) {
                        Some(page) if hart.float_ready => {
                            hart.f[op.rd as usize & 31] =
                                extend_load(Op::$fload, ram.load::<$fload_size>(page, va));
                            next(hart, ram, rest)
                        }
                        _ => slow(hart, ram, op, rest),
                    }
                }
                #[cold]
                #[inline(never)]
                fn slow(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    if !hart.float_ready {
                        return leave_before(hart, op);
                    }
                    let Some(value) = load_ram(hart, ram, va, $fload_size) else { return leave_before(hart, op) };
                    hart.f[op.rd as usize & 31] = extend_load(Op::$fload, value);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            $(Op::$store => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    match hart.tlb.store::<$store_size>(hart.data_mode, va) {
                        Some(page) if ready(hart) => {
                            ram.store_unwatched::<$store_size>(page, va, hart.$source[op.rs2 as usize]);
                            next(hart, ram, rest)
                        }
                        _ => slow(hart, ram, op, rest),
                    }
                }
                #[cold]
                #[inline(never)]
                fn slow(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
                    let value = hart.$source[op.rs2 as usize];
                    if !ready(hart) || !store_ram(hart, ram, va, $store_size, value) {
                        return leave_before(hart, op);
                    }
                    if !ram.attention.is_empty() {
                        return leave_after(hart, op);
                    }
                    next(hart, ram, rest)
                }
                #[inline(always)]
                fn ready(hart: &Hart) -> bool {
                    !matches!(Op::$store, Op::Fsw | Op::Fsd) || hart.float_ready
                }
                Some(run as Handler)
            })*
            $(Op::$atomic => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let rd = if op.rd as usize >= 32 { 0 } else { op.rd };
                    let insn = Insn { rd, rs1: op.rs1, rs2: op.rs2, ..Insn::new(Op::$atomic, 0, 4) };
                    if atomic_in_ram(hart, ram, &insn).is_err() {
                        return leave_before(hart, op);
                    }
                    if !ram.attention.is_empty() {
                        return leave_after(hart, op);
                    }
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            Op::CboZero => Some(cbo_zero as Handler),
            _ => None,
        }
    };
}

/// The handler of an operation on memory.
pub(crate) fn memory(op: Op) -> Option<Handler> {
    memory_ops! { op;
        loads: Lb 1 Lh 2 Lw 4 Ld 8 Lbu 1 Lhu 2 Lwu 4;
        float_loads: Flw 4 Fld 8;
        stores: Sb 1 x Sh 2 x Sw 4 x Sd 8 x Fsw 4 f Fsd 8 f;
        atomics: LrW ScW AmoSwapW AmoAddW AmoXorW AmoAndW AmoOrW AmoMinW AmoMaxW AmoMinuW AmoMaxuW
            LrD ScD AmoSwapD AmoAddD AmoXorD AmoAndD AmoOrD AmoMinD AmoMaxD AmoMinuD AmoMaxuD
    }
}

/// Kernels clear whole pages with it.
fn cbo_zero(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
    let va = hart.x[op.rs1 as usize];
    let allowed = match hart.privilege {
        Privilege::M => true,
        Privilege::S => hart.csr.menvcfg & ENVCFG_CBZE != 0,
        Privilege::U => hart.csr.menvcfg & hart.csr.senvcfg & ENVCFG_CBZE != 0,
    };
    match hart.tlb.store::<1>(hart.data_mode, va) {
        Some(page) if allowed => {
            let block = va & !63;
            for word in 0..8 {
                ram.store_unwatched::<8>(page, block + 8 * word, 0);
            }
            next(hart, ram, rest)
        }
        _ => leave_before(hart, op),
    }
}
