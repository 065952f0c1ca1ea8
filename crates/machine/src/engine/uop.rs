//! The micro-operation: a handler with its operands resolved.
//!
//! What an operation does is written once, as a [`Micro`], without saying how the next one is called. From that come
//! its own handler, which calls the next one's, and handlers for runs of operations that often follow each other
//! ([`Then`]), in which the calls between them are gone. Each operation of such a run keeps its own handler too.

use std::marker::PhantomData;

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
    /// Its first branch that is not its last instruction jumped; `executed` says how many were done.
    FirstExit = 2,
    /// The second such branch jumped.
    SecondExit = 3,
    /// Its last instruction jumped to a computed place.
    Indirect = 4,
    /// Before the instruction at the pc; `executed` says how many were done.
    Before = 5,
    /// After some instruction that others must react to; `executed` says how many were done.
    After = 6,
    /// Before the instruction at the pc, which the last operation holds; `executed` says how many were done.
    System = 7,
}

/// Branches of a block beside its last instruction that know where they lead.
pub(crate) const EXITS: u8 = 2;

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

/// What a kind of micro-operation does.
pub(crate) trait Micro {
    /// Does it, and then what comes next; or leaves the block.
    fn run<N: Next>(hart: &mut Hart, ram: &mut Ram, op: &Uop, rest: &[Uop]) -> Flow;
}

/// How a micro-operation goes on.
pub(crate) trait Next {
    /// Does the first of the rest, and so on.
    fn next(hart: &mut Hart, ram: &mut Ram, rest: &[Uop]) -> Flow;
}

/// Calls the next one's handler. Every block ends with an operation that does not go on.
pub(crate) struct Dispatch;

impl Next for Dispatch {
    #[inline(always)]
    fn next(hart: &mut Hart, ram: &mut Ram, rest: &[Uop]) -> Flow {
        match rest.split_first() {
            Some((op, rest)) => (op.run)(hart, ram, op, rest),
            None => Flow::Fall,
        }
    }
}

/// The next one is known to be of this kind, and goes on as `N` says.
pub(crate) struct Then<M, N = Dispatch>(PhantomData<(M, N)>);

impl<M: Micro, N: Next> Next for Then<M, N> {
    #[inline(always)]
    fn next(hart: &mut Hart, ram: &mut Ram, rest: &[Uop]) -> Flow {
        match rest.split_first() {
            Some((op, rest)) => M::run::<N>(hart, ram, op, rest),
            None => Flow::Fall,
        }
    }
}

/// Leaves the block by a branch that is not its last instruction, and whose exit is in `rd`.
#[inline(always)]
pub(crate) fn leave_by(hart: &mut Hart, op: &Uop) -> Flow {
    hart.pc = hart.pc.wrapping_add(op.imm);
    hart.executed = u32::from(op.index) + 1;
    if op.rd == 0 { Flow::FirstExit } else { Flow::SecondExit }
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
