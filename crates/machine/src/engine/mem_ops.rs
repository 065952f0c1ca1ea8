//! Micro-operations on memory. The fast path is a compare, a page and an access; the rest is out of line, in
//! functions of the same signature so that calling them costs the fast path nothing.

use super::uop::{Dispatch, Flow, Handler, Micro, Next, Uop, leave_after, leave_before};
use crate::csr::ENVCFG_CBZE;
use crate::exec::{atomic_in_ram, extend_load, find_ram, load_ram, store_ram};
use crate::hart::{Hart, Privilege};
use crate::isa::{Insn, Op};
use crate::mmu::AccessKind;
use crate::ram::Ram;

/// A load of `SIZE` bytes into an integer register.
pub(super) struct Load<const OP: usize, const SIZE: usize>;

impl<const OP: usize, const SIZE: usize> Micro for Load<OP, SIZE> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
        let Some(page) = hart.tlb.load::<SIZE>(hart.data_mode, va) else {
            return slow_load::<OP, SIZE>(hart, ram, op, rest);
        };
        hart.x[op.rd as usize] = extend_load(const { Op::ALL[OP] }, ram.load::<SIZE>(page, va));
        N::next(hart, ram, rest)
    }
}

#[cold]
#[inline(never)]
fn slow_load<const OP: usize, const SIZE: usize>(
    hart: &mut Hart,
    ram: &mut Ram,
    op: &Uop,
    rest: &[Uop],
) -> Flow {
    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
    let Some(value) = load_anywhere::<SIZE>(hart, ram, va) else { return leave_before(hart, op) };
    hart.x[op.rd as usize] = extend_load(const { Op::ALL[OP] }, value);
    Dispatch::next(hart, ram, rest)
}

/// Loads from RAM where it is misaligned, or not known yet where it lies.
fn load_anywhere<const SIZE: usize>(hart: &mut Hart, ram: &mut Ram, va: u64) -> Option<u64> {
    let known = hart.tlb.load::<1>(hart.data_mode, va);
    match known.and_then(|page| ram.load_inside::<SIZE>(page, va)) {
        Some(value) => Some(value),
        None => load_ram(hart, ram, va, SIZE),
    }
}

/// A load of `SIZE` bytes into a floating-point register.
pub(super) struct FloatLoad<const OP: usize, const SIZE: usize>;

impl<const OP: usize, const SIZE: usize> Micro for FloatLoad<OP, SIZE> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
        match hart.tlb.load::<SIZE>(hart.data_mode, va) {
            Some(page) if hart.float_ready => {
                hart.f[op.rd as usize & 31] = extend_load(const { Op::ALL[OP] }, ram.load::<SIZE>(page, va));
                N::next(hart, ram, rest)
            }
            _ => slow_float_load::<OP, SIZE>(hart, ram, op, rest),
        }
    }
}

#[cold]
#[inline(never)]
fn slow_float_load<const OP: usize, const SIZE: usize>(
    hart: &mut Hart,
    ram: &mut Ram,
    op: &Uop,
    rest: &[Uop],
) -> Flow {
    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
    if !hart.float_ready {
        return leave_before(hart, op);
    }
    let Some(value) = load_anywhere::<SIZE>(hart, ram, va) else { return leave_before(hart, op) };
    hart.f[op.rd as usize & 31] = extend_load(const { Op::ALL[OP] }, value);
    Dispatch::next(hart, ram, rest)
}

/// A store of `SIZE` bytes of an integer register, or of a floating-point one.
pub(super) struct Store<const OP: usize, const SIZE: usize>;

impl<const OP: usize, const SIZE: usize> Store<OP, SIZE> {
    const FLOAT: bool = matches!(Op::ALL[OP], Op::Fsw | Op::Fsd);

    #[inline(always)]
    fn value(hart: &Hart, op: &Uop) -> u64 {
        let registers = if Self::FLOAT { &hart.f } else { &hart.x };
        registers[op.rs2 as usize]
    }

    #[inline(always)]
    fn ready(hart: &Hart) -> bool {
        !Self::FLOAT || hart.float_ready
    }
}

impl<const OP: usize, const SIZE: usize> Micro for Store<OP, SIZE> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
        match hart.tlb.store::<SIZE>(hart.data_mode, va) {
            Some(page) if Self::ready(hart) => {
                ram.store_unwatched::<SIZE>(page, va, Self::value(hart, op));
                N::next(hart, ram, rest)
            }
            _ => slow_store::<OP, SIZE>(hart, ram, op, rest),
        }
    }
}

#[cold]
#[inline(never)]
fn slow_store<const OP: usize, const SIZE: usize>(
    hart: &mut Hart,
    ram: &mut Ram,
    op: &Uop,
    rest: &[Uop],
) -> Flow {
    let va = hart.x[op.rs1 as usize].wrapping_add(op.imm);
    let value = Store::<OP, SIZE>::value(hart, op);
    if !Store::<OP, SIZE>::ready(hart) {
        return leave_before(hart, op);
    }
    let known = hart.tlb.store::<1>(hart.data_mode, va);
    if known.is_some_and(|page| ram.store_inside::<SIZE>(page, va, value)) {
        return Dispatch::next(hart, ram, rest);
    }
    if !store_ram(hart, ram, va, SIZE, value) {
        return leave_before(hart, op);
    }
    if !ram.attention.is_empty() {
        return leave_after(hart, op);
    }
    Dispatch::next(hart, ram, rest)
}

/// An atomic operation.
struct Atomic<const OP: usize>;

impl<const OP: usize> Micro for Atomic<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let rd = if op.rd as usize >= 32 { 0 } else { op.rd };
        let insn = Insn { rd, rs1: op.rs1, rs2: op.rs2, ..Insn::new(const { Op::ALL[OP] }, 0, 4) };
        if atomic_in_ram(hart, ram, &insn).is_err() {
            return leave_before(hart, op);
        }
        if !ram.attention.is_empty() {
            return leave_after(hart, op);
        }
        N::next(hart, ram, rest)
    }
}

macro_rules! memory_ops {
    ($op:expr; $($kind:ident: $($name:ident $size:literal)*;)* => $($atomic:ident)*) => {
        match $op {
            $($(Op::$name => Some($kind::<{ Op::$name as usize }, $size>::run::<Dispatch> as Handler),)*)*
            $(Op::$atomic => Some(Atomic::<{ Op::$atomic as usize }>::run::<Dispatch> as Handler),)*
            Op::CboZero => Some(ZeroBlock::run::<Dispatch> as Handler),
            _ => None,
        }
    };
}

/// The handler of an operation on memory.
pub(crate) fn memory(op: Op) -> Option<Handler> {
    memory_ops! { op;
        Load: Lb 1 Lh 2 Lw 4 Ld 8 Lbu 1 Lhu 2 Lwu 4;
        FloatLoad: Flw 4 Fld 8;
        Store: Sb 1 Sh 2 Sw 4 Sd 8 Fsw 4 Fsd 8;
        => LrW ScW AmoSwapW AmoAddW AmoXorW AmoAndW AmoOrW AmoMinW AmoMaxW AmoMinuW AmoMaxuW
            LrD ScD AmoSwapD AmoAddD AmoXorD AmoAndD AmoOrD AmoMinD AmoMaxD AmoMinuD AmoMaxuD
    }
}

/// Kernels clear whole pages with it.
struct ZeroBlock;

impl Micro for ZeroBlock {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
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
                N::next(hart, ram, rest)
            }
            _ if !allowed => leave_before(hart, op),
            _ => slow_zero_block(hart, ram, op, rest),
        }
    }
}

#[cold]
#[inline(never)]
fn slow_zero_block(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
    let block = hart.x[op.rs1 as usize] & !63;
    let found = find_ram(hart, ram, block, 64, AccessKind::Store);
    let Ok(Some(address)) = found else { return leave_before(hart, op) };
    if !ram.write(address, &[0; 64]) {
        return leave_before(hart, op);
    }
    if !ram.attention.is_empty() {
        return leave_after(hart, op);
    }
    Dispatch::next(hart, ram, rest)
}
