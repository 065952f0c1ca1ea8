//! The meaning of every operation that computes an integer from two integers.
//!
//! One function, inlined with a constant operation into each micro-operation, and called with a variable one by the
//! plain executor: there is one truth.

use crate::isa::Op;

const fn word(value: u64) -> u64 {
    value as i32 as i64 as u64
}

/// The result of `op` for operands `a` and `b`; `b` is the immediate where the operation has one.
///
/// Operations that are not of this kind give zero; [`is_alu`] tells which are.
#[inline(always)]
pub fn alu(op: Op, a: u64, b: u64) -> u64 {
    let (signed_a, signed_b) = (a as i64, b as i64);
    match op {
        Op::Addi | Op::Add => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::Slti | Op::Slt => u64::from(signed_a < signed_b),
        Op::Sltiu | Op::Sltu => u64::from(a < b),
        Op::Xori | Op::Xor => a ^ b,
        Op::Ori | Op::Or => a | b,
        Op::Andi | Op::And => a & b,
        Op::Slli | Op::Sll => a << (b & 63),
        Op::Srli | Op::Srl => a >> (b & 63),
        Op::Srai | Op::Sra => (signed_a >> (b & 63)) as u64,
        Op::Addiw | Op::Addw => word(a.wrapping_add(b)),
        Op::Subw => word(a.wrapping_sub(b)),
        Op::Slliw | Op::Sllw => word(a << (b & 31)),
        Op::Srliw | Op::Srlw => word(u64::from(a as u32 >> (b & 31))),
        Op::Sraiw | Op::Sraw => (i64::from(a as i32 >> (b & 31))) as u64,

        Op::Mul => a.wrapping_mul(b),
        Op::Mulh => ((i128::from(signed_a) * i128::from(signed_b)) >> 64) as u64,
        Op::Mulhsu => (i128::from(signed_a).wrapping_mul(i128::from(b)) >> 64) as u64,
        Op::Mulhu => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        Op::Div if b == 0 => u64::MAX,
        Op::Div => signed_a.wrapping_div(signed_b) as u64,
        Op::Divu => a.checked_div(b).unwrap_or(u64::MAX),
        Op::Rem if b == 0 => a,
        Op::Rem => signed_a.wrapping_rem(signed_b) as u64,
        Op::Remu => a.checked_rem(b).unwrap_or(a),
        Op::Mulw => word(a.wrapping_mul(b)),
        Op::Divw if b as u32 == 0 => u64::MAX,
        Op::Divw => (a as i32).wrapping_div(b as i32) as i64 as u64,
        Op::Divuw => word((a as u32).checked_div(b as u32).unwrap_or(u32::MAX).into()),
        Op::Remw if b as u32 == 0 => word(a),
        Op::Remw => (a as i32).wrapping_rem(b as i32) as i64 as u64,
        Op::Remuw => word((a as u32).checked_rem(b as u32).unwrap_or(a as u32).into()),

        Op::AddUw => u64::from(a as u32).wrapping_add(b),
        Op::Sh1add => (a << 1).wrapping_add(b),
        Op::Sh2add => (a << 2).wrapping_add(b),
        Op::Sh3add => (a << 3).wrapping_add(b),
        Op::Sh1addUw => (u64::from(a as u32) << 1).wrapping_add(b),
        Op::Sh2addUw => (u64::from(a as u32) << 2).wrapping_add(b),
        Op::Sh3addUw => (u64::from(a as u32) << 3).wrapping_add(b),
        Op::SlliUw => u64::from(a as u32) << (b & 63),
        Op::Andn => a & !b,
        Op::Orn => a | !b,
        Op::Xnor => !(a ^ b),
        Op::Clz => a.leading_zeros().into(),
        Op::Ctz => a.trailing_zeros().into(),
        Op::Cpop => a.count_ones().into(),
        Op::Clzw => (a as u32).leading_zeros().into(),
        Op::Ctzw => (a as u32).trailing_zeros().into(),
        Op::Cpopw => (a as u32).count_ones().into(),
        Op::Max => signed_a.max(signed_b) as u64,
        Op::Maxu => a.max(b),
        Op::Min => signed_a.min(signed_b) as u64,
        Op::Minu => a.min(b),
        Op::SextB => a as i8 as i64 as u64,
        Op::SextH => a as i16 as i64 as u64,
        Op::ZextH => u64::from(a as u16),
        Op::OrcB => or_combine(a),
        Op::Rev8 => a.swap_bytes(),
        Op::Rol => a.rotate_left(b as u32 & 63),
        Op::Ror | Op::Rori => a.rotate_right(b as u32 & 63),
        Op::Rolw => word((a as u32).rotate_left(b as u32 & 31).into()),
        Op::Rorw | Op::Roriw => word((a as u32).rotate_right(b as u32 & 31).into()),
        Op::Clmul => carryless(a, b) as u64,
        Op::Clmulh => (carryless(a, b) >> 64) as u64,
        Op::Clmulr => (carryless(a, b) >> 63) as u64,
        Op::Bclr | Op::Bclri => a & !(1 << (b & 63)),
        Op::Bext | Op::Bexti => a >> (b & 63) & 1,
        Op::Binv | Op::Binvi => a ^ 1 << (b & 63),
        Op::Bset | Op::Bseti => a | 1 << (b & 63),
        _ => 0,
    }
}

/// Each byte that is not zero becomes all ones.
fn or_combine(value: u64) -> u64 {
    let mut bytes = value.to_le_bytes();
    for byte in &mut bytes {
        *byte = if *byte == 0 { 0 } else { 0xff };
    }
    u64::from_le_bytes(bytes)
}

/// The carry-less product, four bits of `b` at a time.
fn carryless(a: u64, b: u64) -> u128 {
    let mut table = [0u128; 16];
    for (index, entry) in table.iter_mut().enumerate() {
        for bit in 0..4 {
            if index >> bit & 1 != 0 {
                *entry ^= u128::from(a) << bit;
            }
        }
    }
    (0..16).rev().fold(0, |product, nibble| product << 4 ^ table[(b >> (4 * nibble)) as usize & 15])
}

/// Whether [`alu`] computes the operation.
pub const fn is_alu(op: Op) -> bool {
    !matches!(op, Op::Lui | Op::Auipc | Op::Jal | Op::Jalr)
        && matches!(op.format(), crate::isa::Format::R | crate::isa::Format::R1 | crate::isa::Format::I)
}

/// Whether a conditional branch is taken.
#[inline(always)]
pub fn branch_taken(op: Op, a: u64, b: u64) -> bool {
    match op {
        Op::Beq => a == b,
        Op::Bne => a != b,
        Op::Blt => (a as i64) < b as i64,
        Op::Bge => a as i64 >= b as i64,
        Op::Bltu => a < b,
        _ => a >= b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(op: Op, a: u64, b: u64, expect: u64) {
        assert_eq!(alu(op, a, b), expect, "{op:?} {a:#x} {b:#x}");
    }

    const MIN: u64 = 1 << 63;

    #[test]
    fn division_at_its_edges() {
        check(Op::Div, 7, 0, u64::MAX);
        check(Op::Div, MIN, u64::MAX, MIN);
        check(Op::Rem, MIN, u64::MAX, 0);
        check(Op::Rem, 7, 0, 7);
        check(Op::Div, -7i64 as u64, 2, -3i64 as u64);
        check(Op::Rem, -7i64 as u64, 2, -1i64 as u64);
        check(Op::Divu, 7, 0, u64::MAX);
        check(Op::Remu, 7, 0, 7);
        check(Op::Divw, 0x8000_0000, u64::MAX, 0xffff_ffff_8000_0000);
        check(Op::Remw, 0x8000_0000, 1 << 32, 0xffff_ffff_8000_0000);
        check(Op::Divuw, 1, 1 << 32, u64::MAX);
        check(Op::Remuw, 0xffff_ffff, 0, u64::MAX);
        check(Op::Divuw, 0xffff_ffff, 1, u64::MAX);
    }

    #[test]
    fn products() {
        check(Op::Mulh, u64::MAX, u64::MAX, 0);
        check(Op::Mulh, MIN, MIN, 1 << 62);
        check(Op::Mulhu, u64::MAX, u64::MAX, u64::MAX - 1);
        check(Op::Mulhsu, u64::MAX, u64::MAX, u64::MAX);
        check(Op::Mulhsu, MIN, u64::MAX, MIN);
        check(Op::Mulw, 0x1_0000, 0x1_0000, 0);
        check(Op::Mulw, 0x8000, 0x1_0000, 0xffff_ffff_8000_0000);
    }

    #[test]
    fn words_are_sign_extended() {
        check(Op::Addw, 0x7fff_ffff, 1, 0xffff_ffff_8000_0000);
        check(Op::Subw, 0, 1, u64::MAX);
        check(Op::Sllw, 1, 31, 0xffff_ffff_8000_0000);
        check(Op::Srlw, 0xffff_ffff_8000_0000, 31, 1);
        check(Op::Srliw, 0x8000_0000, 0, 0xffff_ffff_8000_0000);
        check(Op::Sraw, 0x8000_0000, 31, u64::MAX);
    }

    #[test]
    fn bit_manipulation() {
        check(Op::Clz, 0, 0, 64);
        check(Op::Ctzw, 0xffff_ffff_0000_0000, 0, 32);
        check(Op::Clzw, 0xffff_ffff_0000_0001, 0, 31);
        check(Op::OrcB, 0x0100_0000_8000_00ff, 0, 0xff00_0000_ff00_00ff);
        check(Op::Rev8, 0x0102_0304_0506_0708, 0, 0x0807_0605_0403_0201);
        check(Op::Rolw, 0x8000_0001, 1, 3);
        check(Op::Rorw, 1, 1, 0xffff_ffff_8000_0000);
        check(Op::Rol, MIN | 1, 1, 3);
        check(Op::Clmul, 0b101, 0b11, 0b1111);
        check(Op::Clmulh, MIN, 2, 1);
        check(Op::Clmulr, MIN, 2, 2);
        check(Op::Clmulh, u64::MAX, u64::MAX, 0x5555_5555_5555_5555);
        check(Op::SlliUw, u64::MAX, 4, 0xf_ffff_fff0);
        check(Op::Sh3addUw, u64::MAX, 1, 0x7_ffff_fff9);
        check(Op::Bexti, MIN, 63, 1);
        check(Op::Min, MIN, 1, MIN);
        check(Op::Minu, MIN, 1, 1);
        check(Op::SextB, 0x80, 0, (-128i64) as u64);
        check(Op::Andn, 0xff, 0x0f, 0xf0);
    }
}
