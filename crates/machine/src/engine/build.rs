//! Decoding a block.

use super::uop::{Flow, Handler, Uop, fall_through};
use super::{float_ops, fuse, int_ops, mem_ops};
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
    /// Whether its jump, taken and not, stays in the page whatever the virtual address is.
    pub(crate) stays_in_page: [bool; 2],
    pub(crate) ops: Box<[Uop]>,
}

/// Decodes from `offset` of a page up to a jump, an instruction for the plain executor, `limit`, or `len_max`
/// instructions. `None` when that is nothing at all.
pub(crate) fn block(bytes: &Page, offset: u64, limit: u64, len_max: u32) -> Option<Built> {
    let mut ops = Vec::with_capacity(16);
    let nothing = Insn::new(Op::Illegal, 0, 0);
    let mut at = offset;
    let mut index = 0;
    let mut ended = false;
    // Where the last instruction jumps, relative to the block's start.
    let mut jump = 0;
    let make = |run: Handler, insn: &Insn, index: u32, at: u64| Uop {
        run,
        imm: insn.imm64(),
        rd: if insn.rd == 0 { SINK } else { insn.rd },
        rs1: insn.rs1,
        rs2: insn.rs2,
        rs3: insn.rs3,
        index: index as u8,
        len: insn.len,
        offset: (at - offset) as u16,
    };
    while index < len_max && at < limit {
        let Some(insn) = decode_at(bytes, at) else { break };
        match lower(&insn) {
            Lowered::Plain => break,
            Lowered::Nothing => {}
            Lowered::Op(run) => {
                let op = float_ops::with_rounding(make(run, &insn, index, at), &insn);
                match ops.pop_if(|(_, before): &mut (Uop, Insn)| fuse::can_follow(before, &insn)) {
                    // A pair takes no third: what stands beside it fuses with nothing.
                    Some((first, before)) => ops.push((fuse::constant(first, &before, &insn), nothing)),
                    None => ops.push((op, insn)),
                }
            }
            Lowered::Last(run) => {
                let mut op = make(run, &insn, index, at);
                if insn.op != Op::Jalr {
                    op.imm = op.imm.wrapping_add(op.offset.into());
                }
                jump = op.imm;
                match ops.pop_if(|(_, before)| fuse::counts_before(before, &insn)) {
                    Some((_, before)) => ops.push((fuse::count_and_branch(op, &before, &insn), insn)),
                    None => ops.push((op, insn)),
                }
                ended = true;
            }
        }
        at += u64::from(insn.len);
        index += 1;
        if ended {
            break;
        }
    }
    if index == 0 {
        return None;
    }
    if !ended {
        // Nothing jumps: an operation without an instruction moves the pc on.
        ops.push((make(end_of_block, &nothing, index, at), nothing));
    }
    let stays_in_page = [offset.wrapping_add(jump) < PAGE, at < PAGE];
    Some(Built {
        len: index,
        bytes: at - offset,
        stays_in_page,
        ops: ops.into_iter().map(|(op, _)| op).collect(),
    })
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
    Plain,
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
        Op::Jal => return Lowered::Last(int_ops::jal),
        Op::Jalr => return Lowered::Last(int_ops::jalr),
        _ => {}
    }
    let silent = insn.rd == 0;
    let handler = match insn.op.format() {
        Format::B => return int_ops::branch(insn.op).map_or(Lowered::Plain, Lowered::Last),
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
        Format::None | Format::J | Format::Csr | Format::CsrI | Format::Fence2 => None,
    };
    handler.map_or(Lowered::Plain, Lowered::Op)
}

fn end_of_block(hart: &mut Hart, _: &mut Ram, op: &Uop, _: &[Uop]) -> Flow {
    fall_through(hart, op)
}
