//! Micro-operations on integer registers, and jumps.

use super::uop::{Dispatch, Flow, Handler, Micro, Next, Uop, fall_through, leave_by};
use crate::exec::{alu, branch_taken};
use crate::hart::Hart;
use crate::isa::Op;
use crate::ram::Ram;

/// Two registers into one.
pub(super) struct Registers<const OP: usize>;

impl<const OP: usize> Micro for Registers<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        let (a, b) = (hart.x[op.rs1 as usize], hart.x[op.rs2 as usize]);
        hart.x[op.rd as usize] = alu(const { Op::ALL[OP] }, a, b);
        N::next(hart, ram, rest)
    }
}

/// A register and a constant into a register.
pub(super) struct Immediate<const OP: usize>;

impl<const OP: usize> Micro for Immediate<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        hart.x[op.rd as usize] = alu(const { Op::ALL[OP] }, hart.x[op.rs1 as usize], op.imm);
        N::next(hart, ram, rest)
    }
}

/// A constant into a register.
pub(super) struct Constant;

impl Micro for Constant {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        hart.x[op.rd as usize] = op.imm;
        N::next(hart, ram, rest)
    }
}

/// An address relative to the pc into a register.
pub(super) struct Relative;

impl Micro for Relative {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        hart.x[op.rd as usize] = hart.pc.wrapping_add(op.offset.into()).wrapping_add(op.imm);
        N::next(hart, ram, rest)
    }
}

macro_rules! register_ops {
    ($op:expr; registers: $($rr:ident)*; immediate: $($ri:ident)*) => {
        match $op {
            $(Op::$rr => Some(Registers::<{ Op::$rr as usize }>::run::<Dispatch> as Handler),)*
            $(Op::$ri => Some(Immediate::<{ Op::$ri as usize }>::run::<Dispatch> as Handler),)*
            Op::Lui => Some(Constant::run::<Dispatch> as Handler),
            Op::Auipc => Some(Relative::run::<Dispatch> as Handler),
            _ => None,
        }
    };
}

/// The handler of an operation that computes an integer from integers.
pub(crate) fn integer(op: Op) -> Option<Handler> {
    register_ops! { op;
        registers: Add Sub Sll Slt Sltu Xor Srl Sra Or And Addw Subw Sllw Srlw Sraw
            Mul Mulh Mulhsu Mulhu Div Divu Rem Remu Mulw Divw Divuw Remw Remuw
            AddUw Sh1add Sh2add Sh3add Sh1addUw Sh2addUw Sh3addUw Andn Orn Xnor
            Clz Ctz Cpop Clzw Ctzw Cpopw Max Maxu Min Minu SextB SextH ZextH OrcB Rev8 Rol Ror Rolw Rorw
            Clmul Clmulh Clmulr Bclr Bext Binv Bset;
        immediate: Addi Slti Sltiu Xori Ori Andi Slli Srli Srai Addiw Slliw Srliw Sraiw
            SlliUw Rori Roriw Bclri Bexti Binvi Bseti
    }
}

/// A jump to a place relative to the pc.
pub(super) struct Jump;

impl Micro for Jump {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
        let start = hart.pc;
        hart.x[op.rd as usize] = start.wrapping_add(u64::from(op.offset) + u64::from(op.len));
        hart.pc = start.wrapping_add(op.imm);
        Flow::Taken
    }
}

/// A jump to where a register points.
pub(super) struct JumpRegister;

impl Micro for JumpRegister {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
        let target = hart.x[op.rs1 as usize].wrapping_add(op.imm) & !1;
        hart.x[op.rd as usize] = hart.pc.wrapping_add(u64::from(op.offset) + u64::from(op.len));
        hart.pc = target;
        Flow::Indirect
    }
}

/// A conditional branch at the end of a block.
pub(super) struct Branch<const OP: usize>;

impl<const OP: usize> Micro for Branch<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
        if branch_taken(const { Op::ALL[OP] }, hart.x[op.rs1 as usize], hart.x[op.rs2 as usize]) {
            hart.pc = hart.pc.wrapping_add(op.imm);
            Flow::Taken
        } else {
            fall_through(hart, op)
        }
    }
}

/// A conditional branch in the midst of a block.
pub(super) struct Exit<const OP: usize>;

impl<const OP: usize> Micro for Exit<OP> {
    #[inline(always)]
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
        if branch_taken(const { Op::ALL[OP] }, hart.x[op.rs1 as usize], hart.x[op.rs2 as usize]) {
            leave_by(hart, op)
        } else {
            N::next(hart, ram, rest)
        }
    }
}

macro_rules! branches {
    ($op:expr, $kind:ident; $($name:ident)*) => {
        match $op {
            $(Op::$name => Some($kind::<{ Op::$name as usize }>::run::<Dispatch> as Handler),)*
            _ => None,
        }
    };
}

/// The handler of a conditional branch at the end of a block.
pub(crate) fn branch(op: Op) -> Option<Handler> {
    branches!(op, Branch; Beq Bne Blt Bge Bltu Bgeu)
}

/// The handler of a conditional branch in the midst of a block.
pub(crate) fn exit(op: Op) -> Option<Handler> {
    branches!(op, Exit; Beq Bne Blt Bge Bltu Bgeu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::is_alu;

    #[test]
    fn every_integer_operation_has_a_handler() {
        for &op in Op::ALL.iter().filter(|op| is_alu(**op)) {
            assert!(integer(op).is_some(), "{op:?}");
        }
    }
}
