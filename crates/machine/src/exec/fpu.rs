//! The meaning of the floating-point operations on NaN-boxed registers.

use crate::float::{self, Double, Format, Rounding, Single};
use crate::isa::Op;

const BOX: u64 = 0xffff_ffff_0000_0000;

/// The single in a register; what is not boxed reads as the canonical NaN.
#[inline(always)]
const fn unbox(register: u64) -> u64 {
    if register >= BOX { register & !BOX } else { Single::CANONICAL_NAN }
}

/// An operation on floating registers with a floating result.
#[inline(always)]
pub fn compute(op: Op, a: u64, b: u64, c: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    match op {
        Op::FaddS
        | Op::FsubS
        | Op::FmulS
        | Op::FdivS
        | Op::FsqrtS
        | Op::FmaddS
        | Op::FmsubS
        | Op::FnmsubS
        | Op::FnmaddS
        | Op::FsgnjS
        | Op::FsgnjnS
        | Op::FsgnjxS
        | Op::FminS
        | Op::FmaxS => BOX | arithmetic::<Single>(op, unbox(a), unbox(b), unbox(c), rounding, flags),
        Op::FcvtSD => BOX | float::narrow(a, rounding, flags),
        Op::FcvtDS => float::widen(unbox(a), flags),
        _ => arithmetic::<Double>(op, a, b, c, rounding, flags),
    }
}

#[inline(always)]
fn arithmetic<F: Format>(op: Op, a: u64, b: u64, c: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    match op {
        Op::FaddS | Op::FaddD => float::add::<F>(a, b, rounding, flags),
        Op::FsubS | Op::FsubD => float::sub::<F>(a, b, rounding, flags),
        Op::FmulS | Op::FmulD => float::mul::<F>(a, b, rounding, flags),
        Op::FdivS | Op::FdivD => float::div::<F>(a, b, rounding, flags),
        Op::FsqrtS | Op::FsqrtD => float::sqrt::<F>(a, rounding, flags),
        Op::FmaddS | Op::FmaddD => float::fma::<F>(a, b, c, rounding, flags),
        Op::FmsubS | Op::FmsubD => float::fma::<F>(a, b, c ^ F::SIGN, rounding, flags),
        Op::FnmsubS | Op::FnmsubD => float::fma::<F>(a ^ F::SIGN, b, c, rounding, flags),
        Op::FnmaddS | Op::FnmaddD => float::fma::<F>(a ^ F::SIGN, b, c ^ F::SIGN, rounding, flags),
        Op::FsgnjS | Op::FsgnjD => a & !F::SIGN | b & F::SIGN,
        Op::FsgnjnS | Op::FsgnjnD => a & !F::SIGN | !b & F::SIGN,
        Op::FsgnjxS | Op::FsgnjxD => a ^ b & F::SIGN,
        Op::FminS | Op::FminD => float::min::<F>(a, b, flags),
        Op::FmaxS | Op::FmaxD => float::max::<F>(a, b, flags),
        _ => 0,
    }
}

/// An operation on floating registers with an integer result.
#[inline(always)]
pub fn to_integer(op: Op, a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    match op {
        Op::FmvXW => a as i32 as i64 as u64,
        Op::FmvXD => a,
        Op::FeqS => float::compare_eq::<Single>(unbox(a), unbox(b), flags).into(),
        Op::FltS => float::compare_lt::<Single>(unbox(a), unbox(b), flags).into(),
        Op::FleS => float::compare_le::<Single>(unbox(a), unbox(b), flags).into(),
        Op::FeqD => float::compare_eq::<Double>(a, b, flags).into(),
        Op::FltD => float::compare_lt::<Double>(a, b, flags).into(),
        Op::FleD => float::compare_le::<Double>(a, b, flags).into(),
        Op::FclassS => float::classify::<Single>(unbox(a)),
        Op::FclassD => float::classify::<Double>(a),
        Op::FcvtWS | Op::FcvtWuS | Op::FcvtLS | Op::FcvtLuS => {
            integer::<Single>(op, unbox(a), rounding, flags)
        }
        _ => integer::<Double>(op, a, rounding, flags),
    }
}

fn integer<F: Format>(op: Op, a: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let (min, max) = match op {
        Op::FcvtWS | Op::FcvtWD => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Op::FcvtWuS | Op::FcvtWuD => (0, i128::from(u32::MAX)),
        Op::FcvtLS | Op::FcvtLD => (i128::from(i64::MIN), i128::from(i64::MAX)),
        _ => (0, i128::from(u64::MAX)),
    };
    let value = float::to_int::<F>(a, rounding, min, max, flags) as u64;
    match op {
        // Both 32-bit results are sign-extended, the unsigned one too.
        Op::FcvtWS | Op::FcvtWD | Op::FcvtWuS | Op::FcvtWuD => value as i32 as i64 as u64,
        _ => value,
    }
}

/// An operation on an integer register with a floating result.
#[inline(always)]
pub fn from_integer(op: Op, a: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let (negative, magnitude) = match op {
        Op::FcvtSW | Op::FcvtDW => ((a as i32) < 0, u64::from((a as i32).unsigned_abs())),
        Op::FcvtSWu | Op::FcvtDWu => (false, u64::from(a as u32)),
        Op::FcvtSL | Op::FcvtDL => ((a as i64) < 0, (a as i64).unsigned_abs()),
        _ => (false, a),
    };
    match op {
        Op::FmvWX => BOX | a,
        Op::FmvDX => a,
        Op::FcvtSW | Op::FcvtSWu | Op::FcvtSL | Op::FcvtSLu => {
            BOX | float::from_int::<Single>(negative, magnitude, rounding, flags)
        }
        _ => float::from_int::<Double>(negative, magnitude, rounding, flags),
    }
}

/// The rounding mode an instruction asks for; `None` when it is reserved, which makes the instruction illegal.
#[inline(always)]
pub fn rounding(field: u8, frm: u8) -> Option<Rounding> {
    Rounding::from_bits(if field == 7 { frm } else { field })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_that_is_not_boxed_is_a_nan() {
        let mut flags = 0;
        let one = BOX | u64::from(1.0f32.to_bits());
        let check = |a, b, expect, flags: &mut u8| {
            assert_eq!(compute(Op::FaddS, a, b, 0, Rounding::Rne, flags), expect);
        };
        check(one, one, BOX | u64::from(2.0f32.to_bits()), &mut flags);
        check(one & !BOX, one, BOX | Single::CANONICAL_NAN, &mut flags);
        assert_eq!(flags, 0);
    }

    #[test]
    fn conversions_saturate_and_extend() {
        #[track_caller]
        fn check(op: Op, value: f64, expect: (u64, u8)) {
            let mut flags = 0;
            let got = to_integer(op, value.to_bits(), 0, Rounding::Rtz, &mut flags);
            assert_eq!((got, flags), expect, "{op:?} {value}");
        }
        check(Op::FcvtWD, -1.5, (u64::MAX, float::NX));
        check(Op::FcvtWuD, 4294967295.0, (u64::MAX, 0));
        check(Op::FcvtWuD, -1.0, (0, float::NV));
        check(Op::FcvtWuD, -0.5, (0, float::NX));
        check(Op::FcvtWD, 3e9, (0x7fff_ffff, float::NV));
        check(Op::FcvtLuD, 1.8446744073709552e19, (u64::MAX, float::NV));
        check(Op::FcvtLD, -9.223372036854776e18, (1 << 63, 0));
        check(Op::FcvtLD, f64::NAN, (i64::MAX as u64, float::NV));
    }
}
