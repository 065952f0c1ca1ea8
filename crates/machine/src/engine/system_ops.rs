//! Micro-operations of the supervisor that change nothing outside the hart: its scratch registers, its status while no
//! interrupt is let in by it, and fences, which have nothing to do. Everything else is the plain executor's.

use super::uop::{Dispatch, Flow, Handler, Micro, Next, Uop, leave_before};
use crate::csr::{exchange_quietly, is_quiet};
use crate::hart::{Hart, Privilege};
use crate::isa::{Format, Insn, Op};
use crate::ram::Ram;

/// An access to a quiet register, whose number is the immediate.
struct Register<const OP: usize>;

impl<const OP: usize> Micro for Register<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let kind = const { Op::ALL[OP] };
        let constant = matches!(kind.format(), Format::CsrI);
        let operand = if constant { op.rs1.into() } else { hart.x[op.rs1 as usize] };
        let old = exchange_quietly(hart, op.imm as u16, |old| match kind {
            Op::Csrrw | Op::Csrrwi => Some(operand),
            // Register, or constant, zero: only read.
            _ if op.rs1 == 0 => None,
            Op::Csrrs | Op::Csrrsi => Some(old | operand),
            _ => Some(old & !operand),
        });
        let Some(old) = old else { return leave_before(hart, op) };
        hart.x[op.rd as usize] = old;
        N::next(hart, ram, rest)
    }
}

/// A fence of translations, which are always coherent: all that is left is the permission.
struct Fence;

impl Micro for Fence {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        match hart.privilege {
            Privilege::M => N::next(hart, ram, rest),
            Privilege::S if !hart.csr.mstatus.tvm() => N::next(hart, ram, rest),
            _ => leave_before(hart, op),
        }
    }
}

macro_rules! registers {
    ($op:expr; $($name:ident)*) => {
        match $op {
            $(Op::$name => Some(Register::<{ Op::$name as usize }>::run::<Dispatch> as Handler),)*
            _ => None,
        }
    };
}

/// The handler of an instruction that can be done here.
pub(crate) fn system(insn: &Insn) -> Option<Handler> {
    match insn.op {
        Op::SfenceVma | Op::SinvalVma => Some(Fence::run::<Dispatch>),
        op if is_quiet(insn.imm as u16) => registers!(op; Csrrw Csrrs Csrrc Csrrwi Csrrsi Csrrci),
        _ => None,
    }
}
