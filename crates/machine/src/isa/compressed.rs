//! The 16-bit encodings (Zca, Zcd): each decodes to the instruction it stands for.

use super::{Insn, Op};

/// One bit of `bits` moved from position `from` to position `to`.
const fn bit(bits: u32, from: u32, to: u32) -> i32 {
    (((bits >> from) & 1) << to) as i32
}

/// A run of bits moved: `width` bits from `from` to `to`.
const fn run(bits: u32, from: u32, width: u32, to: u32) -> i32 {
    (((bits >> from) & ((1 << width) - 1)) << to) as i32
}

const fn sign_extend(value: i32, width: u32) -> i32 {
    value << (32 - width) >> (32 - width)
}

/// Decodes a compressed instruction; all zeroes and the reserved forms are illegal.
pub(super) fn decode(half: u16) -> Insn {
    let bits = half as u32;
    let funct3 = bits >> 13;
    let insn = match bits & 3 {
        0 => quadrant_0(bits, funct3),
        1 => quadrant_1(bits, funct3),
        _ => quadrant_2(bits, funct3),
    };
    insn.unwrap_or(Insn::new(Op::Illegal, bits, 2))
}

fn insn(bits: u32, op: Op, rd: u32, rs1: u32, rs2: u32, imm: i32) -> Option<Insn> {
    Some(Insn { rd: rd as u8, rs1: rs1 as u8, rs2: rs2 as u8, imm, ..Insn::new(op, bits, 2) })
}

fn quadrant_0(bits: u32, funct3: u32) -> Option<Insn> {
    let low = 8 + ((bits >> 2) & 7);
    let base = 8 + ((bits >> 7) & 7);
    let offset_w = run(bits, 10, 3, 3) | bit(bits, 6, 2) | bit(bits, 5, 6);
    let offset_d = run(bits, 10, 3, 3) | run(bits, 5, 2, 6);
    match funct3 {
        0 => {
            let imm = run(bits, 11, 2, 4) | run(bits, 7, 4, 6) | bit(bits, 6, 2) | bit(bits, 5, 3);
            if imm == 0 { None } else { insn(bits, Op::Addi, low, 2, 0, imm) }
        }
        1 => insn(bits, Op::Fld, low, base, 0, offset_d),
        2 => insn(bits, Op::Lw, low, base, 0, offset_w),
        3 => insn(bits, Op::Ld, low, base, 0, offset_d),
        5 => insn(bits, Op::Fsd, 0, base, low, offset_d),
        6 => insn(bits, Op::Sw, 0, base, low, offset_w),
        7 => insn(bits, Op::Sd, 0, base, low, offset_d),
        _ => None,
    }
}

fn quadrant_1(bits: u32, funct3: u32) -> Option<Insn> {
    let rd = (bits >> 7) & 31;
    let imm = sign_extend(run(bits, 2, 5, 0) | bit(bits, 12, 5), 6);
    match funct3 {
        0 => insn(bits, Op::Addi, rd, rd, 0, imm),
        1 if rd != 0 => insn(bits, Op::Addiw, rd, rd, 0, imm),
        2 => insn(bits, Op::Addi, rd, 0, 0, imm),
        3 if rd == 2 => {
            let imm =
                bit(bits, 12, 9) | bit(bits, 6, 4) | bit(bits, 5, 6) | run(bits, 3, 2, 7) | bit(bits, 2, 5);
            if imm == 0 { None } else { insn(bits, Op::Addi, 2, 2, 0, sign_extend(imm, 10)) }
        }
        3 if imm != 0 => insn(bits, Op::Lui, rd, 0, 0, imm << 12),
        4 => arithmetic(bits, imm),
        5 => {
            let offset = bit(bits, 12, 11)
                | bit(bits, 11, 4)
                | run(bits, 9, 2, 8)
                | bit(bits, 8, 10)
                | bit(bits, 7, 6)
                | bit(bits, 6, 7)
                | run(bits, 3, 3, 1)
                | bit(bits, 2, 5);
            insn(bits, Op::Jal, 0, 0, 0, sign_extend(offset, 12))
        }
        6 | 7 => {
            let offset = bit(bits, 12, 8)
                | run(bits, 10, 2, 3)
                | run(bits, 5, 2, 6)
                | run(bits, 3, 2, 1)
                | bit(bits, 2, 5);
            let op = if funct3 == 6 { Op::Beq } else { Op::Bne };
            insn(bits, op, 0, 8 + (rd & 7), 0, sign_extend(offset, 9))
        }
        _ => None,
    }
}

fn arithmetic(bits: u32, imm: i32) -> Option<Insn> {
    const REGISTER: [Option<Op>; 8] = [
        Some(Op::Sub),
        Some(Op::Xor),
        Some(Op::Or),
        Some(Op::And),
        Some(Op::Subw),
        Some(Op::Addw),
        None,
        None,
    ];
    let rd = 8 + ((bits >> 7) & 7);
    let rs2 = 8 + ((bits >> 2) & 7);
    match (bits >> 10) & 3 {
        0 => insn(bits, Op::Srli, rd, rd, 0, imm & 0x3f),
        1 => insn(bits, Op::Srai, rd, rd, 0, imm & 0x3f),
        2 => insn(bits, Op::Andi, rd, rd, 0, imm),
        _ => {
            let op = REGISTER[(((bits >> 12) & 1) << 2 | ((bits >> 5) & 3)) as usize]?;
            insn(bits, op, rd, rd, rs2, 0)
        }
    }
}

fn quadrant_2(bits: u32, funct3: u32) -> Option<Insn> {
    let rd = (bits >> 7) & 31;
    let rs2 = (bits >> 2) & 31;
    let load_w = bit(bits, 12, 5) | run(bits, 4, 3, 2) | run(bits, 2, 2, 6);
    let load_d = bit(bits, 12, 5) | run(bits, 5, 2, 3) | run(bits, 2, 3, 6);
    let store_w = run(bits, 9, 4, 2) | run(bits, 7, 2, 6);
    let store_d = run(bits, 10, 3, 3) | run(bits, 7, 3, 6);
    match funct3 {
        0 => insn(bits, Op::Slli, rd, rd, 0, run(bits, 2, 5, 0) | bit(bits, 12, 5)),
        1 => insn(bits, Op::Fld, rd, 2, 0, load_d),
        2 if rd != 0 => insn(bits, Op::Lw, rd, 2, 0, load_w),
        3 if rd != 0 => insn(bits, Op::Ld, rd, 2, 0, load_d),
        4 => match ((bits >> 12) & 1, rd, rs2) {
            (0, 0, 0) => None,
            (0, _, 0) => insn(bits, Op::Jalr, 0, rd, 0, 0),
            (0, _, _) => insn(bits, Op::Add, rd, 0, rs2, 0),
            (_, 0, 0) => insn(bits, Op::Ebreak, 0, 0, 0, 0),
            (_, _, 0) => insn(bits, Op::Jalr, 1, rd, 0, 0),
            _ => insn(bits, Op::Add, rd, rd, rs2, 0),
        },
        5 => insn(bits, Op::Fsd, 0, 2, rs2, store_d),
        6 => insn(bits, Op::Sw, 0, 2, rs2, store_w),
        7 => insn(bits, Op::Sd, 0, 2, rs2, store_d),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode as decode_any;

    #[track_caller]
    fn check(half: u16, expect: &str) {
        let insn = decode_any(half as u32 | 0xabcd_0000);
        assert_eq!(insn.to_string(), expect, "{half:#06x}");
        assert_eq!((insn.len, insn.raw), (2, half as u32));
    }

    /// The left-hand sides were assembled by GNU as from the compressed mnemonics.
    #[test]
    fn decodes_to_what_it_stands_for() {
        check(0x0000, "illegal");
        check(0x0001, "addi zero, zero, 0");
        check(0x1141, "addi sp, sp, -16");
        check(0xe406, "sd ra, 8(sp)");
        check(0x60a2, "ld ra, 8(sp)");
        check(0x0141, "addi sp, sp, 16");
        check(0x8082, "jalr zero, 0(ra)");
        check(0x9002, "ebreak");
        check(0x4501, "addi a0, zero, 0");
        check(0x852e, "add a0, zero, a1");
        check(0x952e, "add a0, a0, a1");
        check(0x9502, "jalr ra, 0(a0)");
        check(0x7139, "addi sp, sp, -64");
        check(0x1008, "addi a0, sp, 32");
        check(0x6505, "lui a0, 0x1");
        check(0x757d, "lui a0, 0xfffff");
        check(0x8d0d, "sub a0, a0, a1");
        check(0x9d2d, "addw a0, a0, a1");
        check(0xa001, "jal zero, 0");
        check(0xbffd, "jal zero, -2");
        check(0xdd7d, "beq a0, zero, -2");
        check(0x2588, "fld fa0, 8(a1)");
        check(0xa588, "fsd fa0, 8(a1)");
    }
}
