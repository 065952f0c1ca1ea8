//! [`Insn`] as text: GNU spelling without aliases, so that each form reads back to the same value.

use super::{Format, Insn, Op};
use crate::csr;
use std::fmt;

/// Names of the integer registers in the calling convention.
pub const X_NAMES: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];
/// Names of the floating-point registers in the calling convention.
pub const F_NAMES: [&str; 32] = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4",
    "fa5", "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8",
    "ft9", "ft10", "ft11",
];

impl fmt::Display for Insn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.op.mnemonic();
        let x = |number: u8| X_NAMES[number as usize & 31];
        let f = |number: u8| F_NAMES[number as usize & 31];
        let (rd, rs1, rs2, imm) = (self.rd, self.rs1, self.rs2, self.imm);
        let rm = RoundingSuffix(self.rm);
        match self.op.format() {
            Format::None => out.write_str(name),
            Format::R => write!(out, "{name} {}, {}, {}", x(rd), x(rs1), x(rs2)),
            Format::R1 => write!(out, "{name} {}, {}", x(rd), x(rs1)),
            Format::I if self.op == Op::Jalr => write!(out, "{name} {}, {imm}({})", x(rd), x(rs1)),
            Format::I => write!(out, "{name} {}, {}, {imm}", x(rd), x(rs1)),
            Format::Load => write!(out, "{name} {}, {imm}({})", x(rd), x(rs1)),
            Format::Store => write!(out, "{name} {}, {imm}({})", x(rs2), x(rs1)),
            Format::B => write!(out, "{name} {}, {}, {imm}", x(rs1), x(rs2)),
            Format::U => write!(out, "{name} {}, {:#x}", x(rd), (imm as u32) >> 12),
            Format::J => write!(out, "{name} {}, {imm}", x(rd)),
            Format::Csr => write!(out, "{name} {}, {}, {}", x(rd), csr::Name(imm as u16), x(rs1)),
            Format::CsrI => write!(out, "{name} {}, {}, {rs1}", x(rd), csr::Name(imm as u16)),
            Format::Lr => write!(out, "{name} {}, ({})", x(rd), x(rs1)),
            Format::Amo => write!(out, "{name} {}, {}, ({})", x(rd), x(rs2), x(rs1)),
            Format::Fence2 => write!(out, "{name} {}, {}", x(rs1), x(rs2)),
            Format::Cbo => write!(out, "{name} ({})", x(rs1)),
            Format::FLoad => write!(out, "{name} {}, {imm}({})", f(rd), x(rs1)),
            Format::FStore => write!(out, "{name} {}, {imm}({})", f(rs2), x(rs1)),
            Format::FRm => write!(out, "{name} {}, {}, {}{rm}", f(rd), f(rs1), f(rs2)),
            Format::F => write!(out, "{name} {}, {}, {}", f(rd), f(rs1), f(rs2)),
            Format::F1Rm => write!(out, "{name} {}, {}{rm}", f(rd), f(rs1)),
            Format::F4 => write!(out, "{name} {}, {}, {}, {}{rm}", f(rd), f(rs1), f(rs2), f(self.rs3)),
            Format::FCmp => write!(out, "{name} {}, {}, {}", x(rd), f(rs1), f(rs2)),
            Format::FToX => write!(out, "{name} {}, {}", x(rd), f(rs1)),
            Format::FToXRm => write!(out, "{name} {}, {}{rm}", x(rd), f(rs1)),
            Format::XToF => write!(out, "{name} {}, {}", f(rd), x(rs1)),
            Format::XToFRm => write!(out, "{name} {}, {}{rm}", f(rd), x(rs1)),
        }
    }
}

/// `, rne` and so on; nothing for the dynamic mode, which the assembler assumes.
struct RoundingSuffix(u8);

impl fmt::Display for RoundingSuffix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => out.write_str(", rne"),
            1 => out.write_str(", rtz"),
            2 => out.write_str(", rdn"),
            3 => out.write_str(", rup"),
            4 => out.write_str(", rmm"),
            _ => Ok(()),
        }
    }
}
