//! Micro-operations on integer registers, and jumps.

use super::uop::{Flow, Handler, Uop, fall_through, next};
use crate::exec::{alu, branch_taken};
use crate::hart::Hart;
use crate::isa::Op;
use crate::ram::Ram;

macro_rules! register_ops {
    ($op:expr; registers: $($rr:ident)*; immediate: $($ri:ident)*) => {
        match $op {
            $(Op::$rr => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    let (a, b) = (hart.x[op.rs1 as usize], hart.x[op.rs2 as usize]);
                    hart.x[op.rd as usize] = alu(Op::$rr, a, b);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            $(Op::$ri => {
                fn run(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
                    hart.x[op.rd as usize] = alu(Op::$ri, hart.x[op.rs1 as usize], op.imm);
                    next(hart, ram, rest)
                }
                Some(run as Handler)
            })*
            Op::Lui => Some(lui as Handler),
            Op::Auipc => Some(auipc as Handler),
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

pub(super) fn lui(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
    hart.x[op.rd as usize] = op.imm;
    next(hart, ram, rest)
}

pub(super) fn auipc(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow {
    hart.x[op.rd as usize] = hart.pc.wrapping_add(op.offset.into()).wrapping_add(op.imm);
    next(hart, ram, rest)
}

pub(crate) fn jal(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    let start = hart.pc;
    hart.x[op.rd as usize] = start.wrapping_add(u64::from(op.offset) + u64::from(op.len));
    hart.pc = start.wrapping_add(op.imm);
    Flow::Taken
}

pub(crate) fn jalr(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    let target = hart.x[op.rs1 as usize].wrapping_add(op.imm) & !1;
    hart.x[op.rd as usize] = hart.pc.wrapping_add(u64::from(op.offset) + u64::from(op.len));
    hart.pc = target;
    Flow::Indirect
}

macro_rules! branches {
    ($op:expr; $($name:ident)*) => {
        match $op {
            $(Op::$name => {
                fn run(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
                    if branch_taken(Op::$name, hart.x[op.rs1 as usize], hart.x[op.rs2 as usize]) {
                        hart.pc = hart.pc.wrapping_add(op.imm);
                        Flow::Taken
                    } else {
                        fall_through(hart, op)
                    }
                }
                Some(run as Handler)
            })*
            _ => None,
        }
    };
}

/// The handler of a conditional branch.
pub(crate) fn branch(op: Op) -> Option<Handler> {
    branches!(op; Beq Bne Blt Bge Bltu Bgeu)
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
