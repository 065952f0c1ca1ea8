//! The micro-operation: a handler with its operands resolved.

use crate::hart::Hart;
use crate::ram::Ram;

/// How a block was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flow {
    /// Its last instruction jumped to the place it names.
    Taken = 0,
    /// It ran through.
    Fall = 1,
    /// Its last instruction jumped to a computed place.
    Indirect = 2,
    /// Before the instruction at the pc; `executed` says how many were done.
    Before = 3,
    /// After some instruction that others must react to; `executed` says how many were done.
    After = 4,
}

/// Does one micro-operation, and all that follow in the block by calling the next one last.
pub(crate) type Handler = fn(&mut Hart, &mut Ram, &Uop, &[Uop]) -> Flow;

/// One micro-operation.
///
/// While a block runs, the hart's pc is the block's start; the last operation sets it.
#[derive(Clone, Copy)]
pub(crate) struct Uop {
    pub(crate) run: Handler,
    /// Immediate; for jumps, the target relative to the block's start.
    pub(crate) imm: u64,
    /// Destination; writes to `x0` go to the sink.
    pub(crate) rd: u8,
    pub(crate) rs1: u8,
    pub(crate) rs2: u8,
    pub(crate) rs3: u8,
    /// Index of the instruction in the block.
    pub(crate) index: u8,
    /// Its length.
    pub(crate) len: u8,
    /// Its distance from the block's start.
    pub(crate) offset: u16,
}

const _: () = assert!(size_of::<Uop>() == 24, "handler, immediate, and eight bytes of operands");

/// Calls the next micro-operation. Every block ends with one that does not.
#[inline(always)]
pub(crate) fn next(hart: &mut Hart, ram: &mut Ram, rest: &[Uop]) -> Flow {
    match rest.split_first() {
        Some((op, rest)) => (op.run)(hart, ram, op, rest),
        None => Flow::Fall,
    }
}

/// Leaves the block before an instruction.
#[inline(always)]
pub(crate) fn leave_before(hart: &mut Hart, op: &Uop) -> Flow {
    hart.pc = hart.pc.wrapping_add(op.offset.into());
    hart.executed = op.index.into();
    Flow::Before
}

/// Leaves the block after an instruction that does not jump.
#[inline(always)]
pub(crate) fn leave_after(hart: &mut Hart, op: &Uop) -> Flow {
    hart.pc = hart.pc.wrapping_add(u64::from(op.offset) + u64::from(op.len));
    hart.executed = u32::from(op.index) + 1;
    Flow::After
}

/// Moves the pc past the last instruction of a block.
#[inline(always)]
pub(crate) fn fall_through(hart: &mut Hart, op: &Uop) -> Flow {
    hart.pc = hart.pc.wrapping_add(u64::from(op.offset) + u64::from(op.len));
    Flow::Fall
}
