//! Decoding a block.

use super::int_ops::{Jump, JumpRegister};
use super::uop::{Dispatch, EXITS, Flow, Handler, Micro, Uop, fall_through, leave_before};
use super::{float_ops, fuse, int_ops, mem_ops, system_ops};
use crate::hart::{Hart, SINK};
use crate::isa::{Format, Insn, Op, decode};
use crate::ram::{PAGE, Page, Ram};

/// Instructions in a block at most; the depth of calls when tail calls are not optimised.
pub const LEN_MAX: u32 = 64;

/// A decoded block.
pub(crate) struct Built {
    /// Instructions.
    pub(crate) len: u32,
    /// Bytes of code it was decoded from.
    pub(crate) bytes: u64,
    /// Whether the ways out of it (by the first [`Flow`]s) stay in the page whatever the virtual address is.
    pub(crate) stays_in_page: [bool; WAYS],
    pub(crate) ops: Box<[Uop]>,
}

/// Ways out of a block that may be linked: the first so many of [`Flow`].
pub(crate) const WAYS: usize = 2 + EXITS as usize;

/// A micro-operation on its way into a block.
pub(super) struct Item {
    pub(super) uop: Uop,
    pub(super) insn: Insn,
    pub(super) role: Role,
}

/// What an operation is in its block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// One of those between.
    Inner,
    /// A branch that is not the last instruction.
    Exit,
    /// What ends the block.
    Last,
    /// Two instructions already, which fuse with nothing.
    Merged,
}

/// A block in the making.
struct Builder {
    items: Vec<Item>,
    /// Page offset of its start.
    start: u64,
    /// Page offset of the next instruction.
    at: u64,
    /// Page offset behind the code it depends on.
    end: u64,
    /// Instructions so far.
    index: u32,
    exits: u8,
    stays_in_page: [bool; WAYS],
}

/// Decodes from `offset` of a page up to a jump, an instruction for the plain executor, `limit`, or `len_max`
/// instructions. Goes on behind forward branches, as if they were never taken, and along forward jumps. When that is
/// nothing at all, the block leaves it to the plain executor.
pub(crate) fn block(bytes: &Page, offset: u64, limit: u64, len_max: u32) -> Built {
    let mut builder = Builder {
        items: Vec::with_capacity(16),
        start: offset,
        at: offset,
        end: offset,
        index: 0,
        exits: 0,
        stays_in_page: [false; WAYS],
    };
    let mut ended = false;
    while !ended && builder.index < len_max && builder.at < limit {
        let Some(insn) = decode_at(bytes, builder.at) else { break };
        ended = builder.add(&insn);
    }
    builder.finish(ended)
}

impl Builder {
    fn uop(&self, run: Handler, insn: &Insn) -> Uop {
        Uop {
            run,
            imm: insn.imm64(),
            rd: if insn.rd == 0 { SINK } else { insn.rd },
            rs1: insn.rs1,
            rs2: insn.rs2,
            rs3: insn.rs3,
            index: self.index as u8,
            len: insn.len,
            offset: self.offset(),
        }
    }

    fn offset(&self) -> u16 {
        (self.at - self.start) as u16
    }

    fn push(&mut self, uop: Uop, insn: &Insn, role: Role) {
        self.items.push(Item { uop, insn: *insn, role });
    }

    /// Adds an instruction. True when the block ends with it.
    fn add(&mut self, insn: &Insn) -> bool {
        let lowered = lower(insn);
        let mut next = self.at + u64::from(insn.len);
        self.end = next;
        let mut ended = false;
        match lowered {
            Lowered::System => {
                let uop = Uop { imm: insn.raw.into(), ..self.uop(system, insn) };
                self.push(uop, insn, Role::Last);
                return true;
            }
            Lowered::Nothing => {}
            Lowered::Op(run) => self.add_inner(run, insn),
            Lowered::Last(run) => match self.jump_inside(insn) {
                // The way goes on there.
                Some(target) if insn.op == Op::Jal => next = target,
                Some(target) => self.add_exit(insn, target),
                None => {
                    self.add_last(run, insn);
                    ended = true;
                }
            },
        }
        self.at = next;
        self.index += 1;
        self.stays_in_page[Flow::Fall as usize] = next < PAGE;
        ended
    }

    fn add_inner(&mut self, run: Handler, insn: &Insn) {
        let uop = float_ops::with_rounding(self.uop(run, insn), insn);
        match self.items.pop_if(|before| before.role == Role::Inner && fuse::can_follow(&before.insn, insn)) {
            Some(first) => self.push(fuse::constant(first.uop, &first.insn, insn), insn, Role::Merged),
            None => self.push(uop, insn, Role::Inner),
        }
    }

    /// Where a jump that need not end the block leads: forward, in this page, whatever the virtual address is.
    fn jump_inside(&self, insn: &Insn) -> Option<u64> {
        let possible = match insn.op {
            Op::Jal => insn.rd == 0,
            Op::Jalr => false,
            _ => self.exits < EXITS,
        };
        let target = self.at.wrapping_add(insn.imm64());
        (possible && target > self.at && target < PAGE).then_some(target)
    }

    fn add_exit(&mut self, insn: &Insn, target: u64) {
        let Some(run) = int_ops::exit(insn.op) else { return };
        let uop = Uop { imm: target - self.start, rd: self.exits, ..self.uop(run, insn) };
        self.push(uop, insn, Role::Exit);
        self.stays_in_page[Flow::FirstExit as usize + usize::from(self.exits)] = true;
        self.exits += 1;
    }

    fn add_last(&mut self, run: Handler, insn: &Insn) {
        let mut uop = self.uop(run, insn);
        if insn.op != Op::Jalr {
            uop.imm = uop.imm.wrapping_add(uop.offset.into());
            self.stays_in_page[Flow::Taken as usize] = self.start.wrapping_add(uop.imm) < PAGE;
        }
        match self
            .items
            .pop_if(|before| before.role == Role::Inner && fuse::counts_before(&before.insn, insn))
        {
            Some(before) => self.push(fuse::count_and_branch(uop, &before.insn, insn), insn, Role::Merged),
            None => self.push(uop, insn, Role::Last),
        }
    }

    fn finish(mut self, ended: bool) -> Built {
        if !ended {
            // Nothing jumps: an operation without an instruction moves the pc on.
            let nothing = Insn { len: 0, ..Insn::new(Op::Illegal, 0, 0) };
            let uop = self.uop(if self.index == 0 { plain } else { end_of_block }, &nothing);
            self.push(uop, &nothing, Role::Merged);
        }
        fuse::runs(&mut self.items);
        Built {
            len: self.index,
            bytes: self.end - self.start,
            stays_in_page: self.stays_in_page,
            ops: self.items.into_iter().map(|item| item.uop).collect(),
        }
    }
}

/// The instruction at a page offset, unless part of it lies in the next page.
fn decode_at(bytes: &Page, at: u64) -> Option<Insn> {
    let at = at as usize;
    let low = u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
    if low & 3 != 3 {
        return Some(decode(low.into()));
    }
    debug_assert!(at < PAGE as usize);
    let high = u16::from_le_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]);
    Some(decode(u32::from(high) << 16 | u32::from(low)))
}

enum Lowered {
    /// The plain executor's.
    System,
    /// It does nothing but be counted.
    Nothing,
    /// One micro-operation.
    Op(Handler),
    /// One that ends the block.
    Last(Handler),
}

fn lower(insn: &Insn) -> Lowered {
    match insn.op {
        Op::Fence | Op::FenceI | Op::Pause => return Lowered::Nothing,
        Op::Jal => return Lowered::Last(Jump::run::<Dispatch>),
        Op::Jalr => return Lowered::Last(JumpRegister::run::<Dispatch>),
        _ => {}
    }
    let silent = insn.rd == 0;
    let handler = match insn.op.format() {
        Format::B => return int_ops::branch(insn.op).map_or(Lowered::System, Lowered::Last),
        Format::U | Format::I | Format::R | Format::R1 if silent => return Lowered::Nothing,
        Format::U | Format::I | Format::R | Format::R1 => int_ops::integer(insn.op),
        Format::Load | Format::Store | Format::FLoad | Format::FStore | Format::Amo | Format::Lr => {
            mem_ops::memory(insn.op)
        }
        Format::Cbo => mem_ops::memory(insn.op),
        Format::FRm
        | Format::F
        | Format::F1Rm
        | Format::F4
        | Format::FCmp
        | Format::FToX
        | Format::FToXRm
        | Format::XToF
        | Format::XToFRm => float_ops::float(insn.op),
        Format::Csr | Format::CsrI | Format::Fence2 => system_ops::system(insn),
        Format::None | Format::J => None,
    };
    handler.map_or(Lowered::System, Lowered::Op)
}

fn end_of_block(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    fall_through(hart, op)
}

/// What only the plain executor can look at: part of it lies in the next page.
fn plain(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    leave_before(hart, op)
}

/// An instruction for the plain executor, whose bits are the immediate.
fn system(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    leave_before(hart, op);
    Flow::System
}
