//! What is done to micro-operations that follow each other.
//!
//! Some pairs of instructions become one operation. Neither can fault or leave the block between the two, so that such a
//! pair is never seen half done; both are counted. And of operations that often follow each other the first gets a
//! handler that does the next ones too ([`runs`]); these stay what they are, so that a fault, or a slow path, among them
//! finds all in its place.

use super::build::{Item, Role};
use super::int_ops::{Branch, Exit, Immediate, Jump, JumpRegister, Registers};
use super::mem_ops::{Load, Store};
use super::uop::{Flow, Handler, Micro, Then, Uop, fall_through};
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

/// Names the kinds of operations that are fused into runs.
mod kind {
    use super::*;

    macro_rules! kinds {
        ($($kind:ident: $($name:ident)*;)*) => {
            $($(pub(in crate::engine::fuse) type $name = $kind<{ Op::$name as usize }>;)*)*
        };
    }

    macro_rules! accesses {
        ($($kind:ident $name:ident $size:literal;)*) => {
            $(pub(super) type $name = $kind<{ Op::$name as usize }, $size>;)*
        };
    }

    kinds! {
        Registers: Add Xor Or And Addw Mulw;
        Immediate: Addi Addiw Andi Slli Srli Srliw;
        Branch: Beq Bne Blt Bge Bltu Bgeu;
    }
    accesses! { Load Ld 8; Load Lw 4; Load Lbu 1; Store Sd 8; Store Sw 4; }

    pub(super) type Jal = Jump;
    pub(super) type Jalr = JumpRegister;

    /// The branches in the midst of blocks.
    pub(super) mod exit {
        use super::*;

        kinds! { Exit: Beq Bne Blt Bge Bltu Bgeu; }
    }
}

macro_rules! second {
    ($first:ty, $second:expr; inner: $($inner:ident)*; exit: $($exit:ident)*; last: $($last:ident)*) => {
        match ($second.role, $second.insn.op) {
            $((Role::Inner, Op::$inner) => Some(<$first>::run::<Then<kind::$inner>> as Handler),)*
            $((Role::Exit, Op::$exit) => Some(<$first>::run::<Then<kind::exit::$exit>> as Handler),)*
            $((Role::Last, Op::$last) => Some(<$first>::run::<Then<kind::$last>> as Handler),)*
            _ => None,
        }
    };
}

macro_rules! first {
    ($first:expr, $second:expr; $($name:ident)*) => {
        match $first.insn.op {
            $(Op::$name => second! { kind::$name, $second;
                inner: Addi Add Slli Srli Andi Xor Or And Addiw Addw Srliw Mulw Ld Lw Lbu Sd Sw;
                exit: Beq Bne Blt Bge Bltu Bgeu;
                last: Beq Bne Blt Bge Bltu Bgeu Jal Jalr
            },)*
            _ => None,
        }
    };
}

/// The handler of two operations that often follow each other.
fn pair(first: &Item, second: &Item) -> Option<Handler> {
    if first.role != Role::Inner {
        return None;
    }
    first!(first, second; Addi Add Slli Srli Andi Xor Or And Addiw Addw Srliw Mulw Ld Lw Lbu Sd Sw)
}

/// The handler of four equal ones: functions save and restore registers.
fn four(items: &[Item; 4]) -> Option<Handler> {
    type Four<M> = Then<M, Then<M, Then<M>>>;
    let op = items[0].insn.op;
    if items.iter().any(|item| item.role != Role::Inner || item.insn.op != op) {
        return None;
    }
    match op {
        Op::Ld => Some(kind::Ld::run::<Four<kind::Ld>>),
        Op::Sd => Some(kind::Sd::run::<Four<kind::Sd>>),
        _ => None,
    }
}

/// Gives the first of each run of operations that are known to follow each other the handler of all of them.
pub(super) fn runs(items: &mut [Item]) {
    let mut at = 0;
    while at < items.len() {
        let rest = &items[at..];
        let found = rest
            .first_chunk()
            .and_then(|items| Some((4, four(items)?)))
            .or_else(|| rest.first_chunk().and_then(|[first, second]| Some((2, pair(first, second)?))));
        let (len, run) = found.unwrap_or((1, rest[0].uop.run));
        items[at].uop.run = run;
        at += len;
    }
}
