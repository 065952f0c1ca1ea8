//! Floating-point micro-operations. They run only while `mstatus.FS` is dirty; the plain executor makes it so.

use super::uop::{Flow, Handler, Uop, leave_before, next};
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

macro_rules! float_ops {
    ($op:expr; compute: $($float:ident)*; to_integer: $($to:ident)*; from_integer: $($from:ident)*) => {
        match $op {
            $(Op::$float => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
                    let [a, b, c] = [op.rs1, op.rs2, op.rs3].map(|number| hart.f[number as usize]);
                    // `x0` has a sink, `f0` is a register.
                    let rd = op.rd as usize & 31;
                    hart.f[rd] = compute(Op::$float, a, b, c, rounding, &mut hart.csr.fflags);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            $(Op::$to => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
                    let (a, b) = (hart.f[op.rs1 as usize], hart.f[op.rs2 as usize]);
                    hart.x[op.rd as usize] = to_integer(Op::$to, a, b, rounding, &mut hart.csr.fflags);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            $(Op::$from => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let Some(rounding) = mode(hart, op) else { return leave_before(hart, op) };
                    let a = hart.x[op.rs1 as usize];
                    hart.f[op.rd as usize & 31] = from_integer(Op::$from, a, rounding, &mut hart.csr.fflags);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            _ => None,
        }
    };
}

/// The handler of a floating-point operation that does not touch memory.
pub(crate) fn float(op: Op) -> Option<Handler> {
    float_ops! { op;
        compute: FaddS FsubS FmulS FdivS FsqrtS FmaddS FmsubS FnmsubS FnmaddS FsgnjS FsgnjnS FsgnjxS FminS FmaxS
            FaddD FsubD FmulD FdivD FsqrtD FmaddD FmsubD FnmsubD FnmaddD FsgnjD FsgnjnD FsgnjxD FminD FmaxD
            FcvtSD FcvtDS;
        to_integer: FcvtWS FcvtWuS FcvtLS FcvtLuS FmvXW FclassS FeqS FltS FleS
            FcvtWD FcvtWuD FcvtLD FcvtLuD FmvXD FclassD FeqD FltD FleD;
        from_integer: FcvtSW FcvtSWu FcvtSL FcvtSLu FmvWX FcvtDW FcvtDWu FcvtDL FcvtDLu FmvDX
    }
}
