//! The instruction set as values: one [`Insn`] per instruction.
//!
//! [`decode`] turns the bytes of an instruction into an [`Insn`]; the plain executor, the lowering to
//! micro-operations and the disassembler (`Display`) all consume that value and nothing else. Compressed
//! instructions decode to the instruction they stand for, with `len` 2.

mod compressed;
mod decode;
mod disasm;
mod op;

pub use decode::decode;
pub use disasm::{F_NAMES, X_NAMES};
pub use op::{Format, Op};

/// One decoded instruction.
///
/// Fields that the operation's [`Format`] does not name are zero. Register fields are numbers below 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Insn {
    /// What it does.
    pub op: Op,
    /// Destination register.
    pub rd: u8,
    /// First source register, or the immediate of `csrr?i`.
    pub rs1: u8,
    /// Second source register.
    pub rs2: u8,
    /// Third source register (fused multiply-add).
    pub rs3: u8,
    /// Rounding mode field of floating-point operations.
    pub rm: u8,
    /// Length in bytes: 2 or 4.
    pub len: u8,
    /// Sign-extended immediate; the CSR number (zero-extended) for `csrr*`.
    pub imm: i32,
    /// The bits as they stood in memory; 16 of them for a compressed instruction.
    pub raw: u32,
}

impl Insn {
    /// An instruction of `op` with every operand zero.
    pub(crate) const fn new(op: Op, raw: u32, len: u8) -> Insn {
        Insn { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len, imm: 0, raw }
    }

    /// The immediate as the 64-bit operand it stands for.
    pub const fn imm64(&self) -> u64 {
        self.imm as i64 as u64
    }
}
