//! Pairs of instructions that become one micro-operation. Neither of a pair can fault or leave the block between
//! the two, so that a pair is never seen half done; both are counted.

use super::uop::{Flow, Handler, Uop, fall_through};
use crate::exec::branch_taken;
use crate::hart::{Hart, SINK};
use crate::isa::{Insn, Op};
use crate::ram::Ram;

/// Whether `second` adds a constant to the constant or address that `first` made, in the same register.
pub(super) fn can_follow(first: &Insn, second: &Insn) -> bool {
    let adds = match first.op {
        Op::Lui => matches!(second.op, Op::Addi | Op::Addiw),
        Op::Auipc => second.op == Op::Addi,
        _ => false,
    };
    adds && first.rd != 0 && second.rd == first.rd && second.rs1 == first.rd
}

/// The first of such a pair with both constants in it.
pub(super) fn constant(first: Uop, before: &Insn, second: &Insn) -> Uop {
    let sum = before.imm64().wrapping_add(second.imm64());
    let imm = if second.op == Op::Addiw { sum as i32 as i64 as u64 } else { sum };
    Uop { imm, ..first }
}

/// Whether `first` adds a constant to a register right before a conditional branch: the end of most loops.
pub(super) fn counts_before(first: &Insn, branch: &Insn) -> bool {
    first.op == Op::Addi && first.rd != 0 && handler(branch.op).is_some()
}

/// The pair as one operation: the branch's place and target, the sum's operands in `rd`, `rs1` and the upper half of
/// the immediate, the compared registers in `rs2` and `rs3`.
pub(super) fn count_and_branch(branch: Uop, first: &Insn, second: &Insn) -> Uop {
    let run = handler(second.op).unwrap_or(branch.run);
    let imm = (first.imm as u32 as u64) << 32 | branch.imm as u32 as u64;
    let rd = if first.rd == 0 { SINK } else { first.rd };
    Uop { run, imm, rd, rs1: first.rs1, rs2: second.rs1, rs3: second.rs2, ..branch }
}

macro_rules! counted_branches {
    ($op:expr; $($name:ident)*) => {
        match $op {
            $(Op::$name => {
                fn run(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
                    let step = ((op.imm as i64) >> 32) as u64;
                    hart.x[op.rd as usize] = hart.x[op.rs1 as usize].wrapping_add(step);
                    if branch_taken(Op::$name, hart.x[op.rs2 as usize], hart.x[op.rs3 as usize]) {
                        hart.pc = hart.pc.wrapping_add(op.imm as i32 as i64 as u64);
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

fn handler(branch: Op) -> Option<Handler> {
    counted_branches!(branch; Beq Bne Blt Bge Bltu Bgeu)
}
