//! Floating-point micro-operations. They run only while `mstatus.FS` is dirty; the plain executor makes it so.

use super::uop::{Dispatch, Flow, Handler, Micro, Next, Uop, leave_before};
use crate::exec::{compute, from_integer, rounding, to_integer};
use crate::float::Rounding;
use crate::hart::Hart;
use crate::isa::{Format, Insn, Op};
use crate::ram::Ram;

/// Puts the rounding mode field where the handlers look for it; these operations have no immediate.
pub(crate) fn with_rounding(op: Uop, insn: &Insn) -> Uop {
    match insn.op.format() {
        Format::FRm | Format::F1Rm | Format::F4 | Format::FToXRm | Format::XToFRm => {
            Uop { imm: insn.rm.into(), ..op }
        }
        _ => op,
    }
}

/// The rounding mode to use, if the operation may run here.
#[inline(always)]
fn mode(hart: &Hart, op: &Uop) -> Option<Rounding> {
    if hart.float_ready { rounding(op.imm as u8, hart.csr.frm) } else { None }
}

/// Floating-point registers into a floating-point register.
struct Compute<const OP: usize>;

impl<const OP: usize> Micro for Compute<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
        let [a, b, c] = [op.rs1, op.rs2, op.rs3].map(|number| hart.f[number as usize]);
        // `x0` has a sink, `f0` is a register.
        let rd = op.rd as usize & 31;
        hart.f[rd] = compute(const { Op::ALL[OP] }, a, b, c, rounding, &mut hart.csr.fflags);
        N::next(hart, ram, rest)
    }
}

/// Floating-point registers into an integer register.
struct ToInteger<const OP: usize>;

impl<const OP: usize> Micro for ToInteger<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
        let (a, b) = (hart.f[op.rs1 as usize], hart.f[op.rs2 as usize]);
        hart.x[op.rd as usize] = to_integer(const { Op::ALL[OP] }, a, b, rounding, &mut hart.csr.fflags);
        N::next(hart, ram, rest)
    }
}

/// An integer register into a floating-point register.
struct FromInteger<const OP: usize>;

impl<const OP: usize> Micro for FromInteger<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
        let a = hart.x[op.rs1 as usize];
        hart.f[op.rd as usize & 31] = from_integer(const { Op::ALL[OP] }, a, rounding, &mut hart.csr.fflags);
        N::next(hart, ram, rest)
    }
}

macro_rules! float_ops {
    ($op:expr; $($kind:ident: $($name:ident)*;)*) => {
        match $op {
            $($(Op::$name => Some($kind::<{ Op::$name as usize }>::run::<Dispatch> as Handler),)*)*
            _ => None,
        }
    };
}

/// The handler of a floating-point operation that does not touch memory.
pub(crate) fn float(op: Op) -> Option<Handler> {
    float_ops! { op;
        Compute: FaddS FsubS FmulS FdivS FsqrtS FmaddS FmsubS FnmsubS FnmaddS FsgnjS FsgnjnS FsgnjxS FminS FmaxS
            FaddD FsubD FmulD FdivD FsqrtD FmaddD FmsubD FnmsubD FnmaddD FsgnjD FsgnjnD FsgnjxD FminD FmaxD
            FcvtSD FcvtDS;
        ToInteger: FcvtWS FcvtWuS FcvtLS FcvtLuS FmvXW FclassS FeqS FltS FleS
            FcvtWD FcvtWuD FcvtLD FcvtLuD FmvXD FclassD FeqD FltD FleD;
        FromInteger: FcvtSW FcvtSWu FcvtSL FcvtSLu FmvWX FcvtDW FcvtDWu FcvtDL FcvtDLu FmvDX;
    }
}
