//! Bytes to [`Insn`]: the 32-bit encodings; the 16-bit ones are handed to `compressed`.

use super::{Insn, Op, compressed};

/// Decodes the instruction whose low bits are `bits`.
///
/// Only the low 16 bits are looked at when they say that the instruction is compressed. What is no
/// instruction of this machine decodes to [`Op::Illegal`] with its length and bits.
pub fn decode(bits: u32) -> Insn {
    if bits & 3 != 3 {
        return compressed::decode(bits as u16);
    }
    let Some(op) = operation(bits) else { return Insn::new(Op::Illegal, bits, 4) };
    operands(op, bits)
}

const fn field(bits: u32, low: u32, width: u32) -> u32 {
    (bits >> low) & ((1 << width) - 1)
}

fn operation(bits: u32) -> Option<Op> {
    let funct3 = field(bits, 12, 3);
    Some(match field(bits, 2, 5) {
        0x00 => [Op::Lb, Op::Lh, Op::Lw, Op::Ld, Op::Lbu, Op::Lhu, Op::Lwu].get(funct3 as usize).copied()?,
        0x01 => match funct3 {
            2 => Op::Flw,
            3 => Op::Fld,
            _ => return None,
        },
        0x03 => return misc_mem(bits, funct3),
        0x04 => return op_imm(bits, funct3),
        0x05 => Op::Auipc,
        0x06 => return op_imm_32(bits, funct3),
        0x08 => [Op::Sb, Op::Sh, Op::Sw, Op::Sd].get(funct3 as usize).copied()?,
        0x09 => match funct3 {
            2 => Op::Fsw,
            3 => Op::Fsd,
            _ => return None,
        },
        0x0b => return amo(bits, funct3),
        0x0c => return op_reg(bits, funct3),
        0x0d => Op::Lui,
        0x0e => return op_reg_32(bits, funct3),
        0x10 => [Op::FmaddS, Op::FmaddD].get(fp_format(bits)?).copied()?,
        0x11 => [Op::FmsubS, Op::FmsubD].get(fp_format(bits)?).copied()?,
        0x12 => [Op::FnmsubS, Op::FnmsubD].get(fp_format(bits)?).copied()?,
        0x13 => [Op::FnmaddS, Op::FnmaddD].get(fp_format(bits)?).copied()?,
        0x14 => return op_fp(bits, funct3),
        0x18 => match funct3 {
            0 => Op::Beq,
            1 => Op::Bne,
            4 => Op::Blt,
            5 => Op::Bge,
            6 => Op::Bltu,
            7 => Op::Bgeu,
            _ => return None,
        },
        0x19 if funct3 == 0 => Op::Jalr,
        0x1b => Op::Jal,
        0x1c => return system(bits, funct3),
        _ => return None,
    })
}

/// 0 for single, 1 for double; also refuses the two reserved rounding modes.
fn fp_format(bits: u32) -> Option<usize> {
    if matches!(field(bits, 12, 3), 5 | 6) {
        return None;
    }
    match field(bits, 25, 2) {
        0 => Some(0),
        1 => Some(1),
        _ => None,
    }
}

fn misc_mem(bits: u32, funct3: u32) -> Option<Op> {
    Some(match funct3 {
        // PAUSE is the hint `fence w, 0` with rd = rs1 = x0.
        0 if bits == 0x0100_000f => Op::Pause,
        0 => Op::Fence,
        1 => Op::FenceI,
        2 if field(bits, 7, 5) == 0 => match field(bits, 20, 12) {
            0 => Op::CboInval,
            1 => Op::CboClean,
            2 => Op::CboFlush,
            4 => Op::CboZero,
            _ => return None,
        },
        _ => return None,
    })
}

fn op_imm(bits: u32, funct3: u32) -> Option<Op> {
    let funct6 = field(bits, 26, 6);
    let funct12 = field(bits, 20, 12);
    Some(match funct3 {
        0 => Op::Addi,
        1 => match funct6 {
            0x00 => Op::Slli,
            0x0a => Op::Bseti,
            0x12 => Op::Bclri,
            0x1a => Op::Binvi,
            0x18 => match funct12 {
                0x600 => Op::Clz,
                0x601 => Op::Ctz,
                0x602 => Op::Cpop,
                0x604 => Op::SextB,
                0x605 => Op::SextH,
                _ => return None,
            },
            _ => return None,
        },
        2 => Op::Slti,
        3 => Op::Sltiu,
        4 => Op::Xori,
        5 => match funct6 {
            0x00 => Op::Srli,
            0x10 => Op::Srai,
            0x12 => Op::Bexti,
            0x18 => Op::Rori,
            _ if funct12 == 0x287 => Op::OrcB,
            _ if funct12 == 0x6b8 => Op::Rev8,
            _ => return None,
        },
        6 => Op::Ori,
        _ => Op::Andi,
    })
}

fn op_imm_32(bits: u32, funct3: u32) -> Option<Op> {
    let funct7 = field(bits, 25, 7);
    Some(match (funct3, funct7) {
        (0, _) => Op::Addiw,
        (1, 0x00) => Op::Slliw,
        (1, 0x04 | 0x05) => Op::SlliUw,
        (1, 0x30) => match field(bits, 20, 5) {
            0 => Op::Clzw,
            1 => Op::Ctzw,
            2 => Op::Cpopw,
            _ => return None,
        },
        (5, 0x00) => Op::Srliw,
        (5, 0x20) => Op::Sraiw,
        (5, 0x30) => Op::Roriw,
        _ => return None,
    })
}

fn op_reg(bits: u32, funct3: u32) -> Option<Op> {
    const BASE: [Op; 8] = [Op::Add, Op::Sll, Op::Slt, Op::Sltu, Op::Xor, Op::Srl, Op::Or, Op::And];
    const MULDIV: [Op; 8] = [Op::Mul, Op::Mulh, Op::Mulhsu, Op::Mulhu, Op::Div, Op::Divu, Op::Rem, Op::Remu];
    Some(match (field(bits, 25, 7), funct3) {
        (0x00, _) => BASE[funct3 as usize],
        (0x01, _) => MULDIV[funct3 as usize],
        (0x20, 0) => Op::Sub,
        (0x20, 4) => Op::Xnor,
        (0x20, 5) => Op::Sra,
        (0x20, 6) => Op::Orn,
        (0x20, 7) => Op::Andn,
        (0x05, 1) => Op::Clmul,
        (0x05, 2) => Op::Clmulr,
        (0x05, 3) => Op::Clmulh,
        (0x05, 4) => Op::Min,
        (0x05, 5) => Op::Minu,
        (0x05, 6) => Op::Max,
        (0x05, 7) => Op::Maxu,
        (0x10, 2) => Op::Sh1add,
        (0x10, 4) => Op::Sh2add,
        (0x10, 6) => Op::Sh3add,
        (0x14, 1) => Op::Bset,
        (0x24, 1) => Op::Bclr,
        (0x24, 5) => Op::Bext,
        (0x34, 1) => Op::Binv,
        (0x30, 1) => Op::Rol,
        (0x30, 5) => Op::Ror,
        _ => return None,
    })
}

fn op_reg_32(bits: u32, funct3: u32) -> Option<Op> {
    Some(match (field(bits, 25, 7), funct3) {
        (0x00, 0) => Op::Addw,
        (0x00, 1) => Op::Sllw,
        (0x00, 5) => Op::Srlw,
        (0x20, 0) => Op::Subw,
        (0x20, 5) => Op::Sraw,
        (0x01, 0) => Op::Mulw,
        (0x01, 4) => Op::Divw,
        (0x01, 5) => Op::Divuw,
        (0x01, 6) => Op::Remw,
        (0x01, 7) => Op::Remuw,
        (0x04, 0) => Op::AddUw,
        (0x04, 4) if field(bits, 20, 5) == 0 => Op::ZextH,
        (0x10, 2) => Op::Sh1addUw,
        (0x10, 4) => Op::Sh2addUw,
        (0x10, 6) => Op::Sh3addUw,
        (0x30, 1) => Op::Rolw,
        (0x30, 5) => Op::Rorw,
        _ => return None,
    })
}

fn amo(bits: u32, funct3: u32) -> Option<Op> {
    let (word, double) = match field(bits, 27, 5) {
        0x02 if field(bits, 20, 5) == 0 => (Op::LrW, Op::LrD),
        0x03 => (Op::ScW, Op::ScD),
        0x01 => (Op::AmoSwapW, Op::AmoSwapD),
        0x00 => (Op::AmoAddW, Op::AmoAddD),
        0x04 => (Op::AmoXorW, Op::AmoXorD),
        0x0c => (Op::AmoAndW, Op::AmoAndD),
        0x08 => (Op::AmoOrW, Op::AmoOrD),
        0x10 => (Op::AmoMinW, Op::AmoMinD),
        0x14 => (Op::AmoMaxW, Op::AmoMaxD),
        0x18 => (Op::AmoMinuW, Op::AmoMinuD),
        0x1c => (Op::AmoMaxuW, Op::AmoMaxuD),
        _ => return None,
    };
    match funct3 {
        2 => Some(word),
        3 => Some(double),
        _ => None,
    }
}

fn op_fp(bits: u32, funct3: u32) -> Option<Op> {
    let rs2 = field(bits, 20, 5);
    let funct5 = field(bits, 27, 5);
    let double = match field(bits, 25, 2) {
        0 => false,
        1 => true,
        _ => return None,
    };
    let pick = |single: Op, of_double: Op| if double { of_double } else { single };
    let rounded = !matches!(funct3, 5 | 6);
    Some(match (funct5, funct3, rs2) {
        (0x00, _, _) if rounded => pick(Op::FaddS, Op::FaddD),
        (0x01, _, _) if rounded => pick(Op::FsubS, Op::FsubD),
        (0x02, _, _) if rounded => pick(Op::FmulS, Op::FmulD),
        (0x03, _, _) if rounded => pick(Op::FdivS, Op::FdivD),
        (0x0b, _, 0) if rounded => pick(Op::FsqrtS, Op::FsqrtD),
        (0x04, 0, _) => pick(Op::FsgnjS, Op::FsgnjD),
        (0x04, 1, _) => pick(Op::FsgnjnS, Op::FsgnjnD),
        (0x04, 2, _) => pick(Op::FsgnjxS, Op::FsgnjxD),
        (0x05, 0, _) => pick(Op::FminS, Op::FminD),
        (0x05, 1, _) => pick(Op::FmaxS, Op::FmaxD),
        (0x08, _, 1) if rounded && !double => Op::FcvtSD,
        (0x08, _, 0) if rounded && double => Op::FcvtDS,
        (0x14, 2, _) => pick(Op::FeqS, Op::FeqD),
        (0x14, 1, _) => pick(Op::FltS, Op::FltD),
        (0x14, 0, _) => pick(Op::FleS, Op::FleD),
        (0x18, _, 0) if rounded => pick(Op::FcvtWS, Op::FcvtWD),
        (0x18, _, 1) if rounded => pick(Op::FcvtWuS, Op::FcvtWuD),
        (0x18, _, 2) if rounded => pick(Op::FcvtLS, Op::FcvtLD),
        (0x18, _, 3) if rounded => pick(Op::FcvtLuS, Op::FcvtLuD),
        (0x1a, _, 0) if rounded => pick(Op::FcvtSW, Op::FcvtDW),
        (0x1a, _, 1) if rounded => pick(Op::FcvtSWu, Op::FcvtDWu),
        (0x1a, _, 2) if rounded => pick(Op::FcvtSL, Op::FcvtDL),
        (0x1a, _, 3) if rounded => pick(Op::FcvtSLu, Op::FcvtDLu),
        (0x1c, 0, 0) => pick(Op::FmvXW, Op::FmvXD),
        (0x1c, 1, 0) => pick(Op::FclassS, Op::FclassD),
        (0x1e, 0, 0) => pick(Op::FmvWX, Op::FmvDX),
        _ => return None,
    })
}

fn system(bits: u32, funct3: u32) -> Option<Op> {
    const CSR: [Option<Op>; 8] = [
        None,
        Some(Op::Csrrw),
        Some(Op::Csrrs),
        Some(Op::Csrrc),
        None,
        Some(Op::Csrrwi),
        Some(Op::Csrrsi),
        Some(Op::Csrrci),
    ];
    if funct3 != 0 {
        return CSR[funct3 as usize];
    }
    Some(match bits {
        0x0000_0073 => Op::Ecall,
        0x0010_0073 => Op::Ebreak,
        0x1020_0073 => Op::Sret,
        0x3020_0073 => Op::Mret,
        0x1050_0073 => Op::Wfi,
        0x1800_0073 => Op::SfenceWInval,
        0x1810_0073 => Op::SfenceInvalIr,
        _ if field(bits, 7, 5) == 0 && field(bits, 25, 7) == 0x09 => Op::SfenceVma,
        _ if field(bits, 7, 5) == 0 && field(bits, 25, 7) == 0x0b => Op::SinvalVma,
        _ => return None,
    })
}

/// Fills the operand fields that the operation's format names.
fn operands(op: Op, bits: u32) -> Insn {
    use super::Format::*;
    let mut insn = Insn::new(op, bits, 4);
    let rd = field(bits, 7, 5) as u8;
    let rs1 = field(bits, 15, 5) as u8;
    let rs2 = field(bits, 20, 5) as u8;
    let imm_i = (bits as i32) >> 20;
    let imm_s = ((bits as i32) >> 25 << 5) | rd as i32;
    match op.format() {
        None => {}
        R | Amo | F | FCmp => (insn.rd, insn.rs1, insn.rs2) = (rd, rs1, rs2),
        R1 | Lr | FToX | XToF => (insn.rd, insn.rs1) = (rd, rs1),
        I | Load | FLoad => (insn.rd, insn.rs1, insn.imm) = (rd, rs1, imm_i),
        Store | FStore => (insn.rs1, insn.rs2, insn.imm) = (rs1, rs2, imm_s),
        B => {
            let imm = ((bits as i32) >> 31 << 12)
                | (field(bits, 7, 1) << 11) as i32
                | (field(bits, 25, 6) << 5) as i32
                | (field(bits, 8, 4) << 1) as i32;
            (insn.rs1, insn.rs2, insn.imm) = (rs1, rs2, imm);
        }
        U => (insn.rd, insn.imm) = (rd, (bits & 0xffff_f000) as i32),
        J => {
            let imm = ((bits as i32) >> 31 << 20)
                | (field(bits, 12, 8) << 12) as i32
                | (field(bits, 20, 1) << 11) as i32
                | (field(bits, 21, 10) << 1) as i32;
            (insn.rd, insn.imm) = (rd, imm);
        }
        Csr | CsrI => (insn.rd, insn.rs1, insn.imm) = (rd, rs1, field(bits, 20, 12) as i32),
        Fence2 => (insn.rs1, insn.rs2) = (rs1, rs2),
        Cbo => insn.rs1 = rs1,
        FRm => (insn.rd, insn.rs1, insn.rs2, insn.rm) = (rd, rs1, rs2, field(bits, 12, 3) as u8),
        F1Rm | FToXRm | XToFRm => (insn.rd, insn.rs1, insn.rm) = (rd, rs1, field(bits, 12, 3) as u8),
        F4 => {
            (insn.rd, insn.rs1, insn.rs2, insn.rm) = (rd, rs1, rs2, field(bits, 12, 3) as u8);
            insn.rs3 = field(bits, 27, 5) as u8;
        }
    }
    // The shift amount shares its field with the function code.
    match op {
        Op::Slli
        | Op::Srli
        | Op::Srai
        | Op::SlliUw
        | Op::Rori
        | Op::Bclri
        | Op::Bexti
        | Op::Binvi
        | Op::Bseti => {
            insn.imm &= 0x3f;
        }
        Op::Slliw | Op::Srliw | Op::Sraiw | Op::Roriw => insn.imm &= 0x1f,
        _ => {}
    }
    insn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bits: u32, expect: &str) {
        assert_eq!(decode(bits).to_string(), expect, "{bits:#010x}");
    }

    /// The right-hand sides are what GNU as accepted for these words.
    #[test]
    fn decodes_words_as_the_assembler_wrote_them() {
        check(0x0000_0013, "addi zero, zero, 0");
        check(0xfff0_0513, "addi a0, zero, -1");
        check(0x1234_5537, "lui a0, 0x12345");
        check(0x0000_0517, "auipc a0, 0x0");
        check(0xff5f_f06f, "jal zero, -12");
        check(0x0000_8067, "jalr zero, 0(ra)");
        check(0xfe05_1ee3, "bne a0, zero, -4");
        check(0x0085_3503, "ld a0, 8(a0)");
        check(0xfea1_3c23, "sd a0, -8(sp)");
        check(0x03f5_1513, "slli a0, a0, 63");
        check(0x43f5_5513, "srai a0, a0, 63");
        check(0x02b5_0533, "mul a0, a0, a1");
        check(0x1005_252f, "lr.w a0, (a0)");
        check(0x18b5_262f, "sc.w a2, a1, (a0)");
        check(0x00b5_352f, "amoadd.d a0, a1, (a0)");
        check(0x3000_25f3, "csrrs a1, mstatus, zero");
        check(0x3004_5073, "csrrwi zero, mstatus, 8");
        check(0x02c5_f553, "fadd.d fa0, fa1, fa2");
        check(0x6ac5_f5c3, "fmadd.d fa1, fa1, fa2, fa3");
        check(0xd225_0553, "fcvt.d.l fa0, a0, rne");
        check(0x1200_0073, "sfence.vma zero, zero");
        check(0x0045_200f, "cbo.zero (a0)");
        check(0x2875_5513, "orc.b a0, a0");
        check(0x6b85_5513, "rev8 a0, a0");
        check(0x0805_453b, "zext.h a0, a0");
        check(0x0100_000f, "pause");
    }

    #[test]
    fn reserved_encodings_are_illegal() {
        for bits in [0xffff_ffff, 0x0000_7003 | 0x7000, 0x0200_5053 | 0x5000, 0x0000_207b, 0x3000_4073] {
            check(bits, "illegal");
        }
    }
}
