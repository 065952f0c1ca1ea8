//! Conversions between the formats, and to and from integers.

use super::soft::{Class, round_pack, shift_round, unpack};
use super::{Double, Format, NV, NX, Rounding, Single, is_signalling};

/// The value of an integer, given as sign and magnitude, in the format.
pub fn from_int<F: Format>(negative: bool, magnitude: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if magnitude == 0 {
        return 0;
    }
    round_pack::<F>(negative, 0, magnitude.into(), rounding, flags)
}

/// The value rounded to an integer in `min ..= max`; out of range and NaN saturate and are invalid.
pub fn to_int<F: Format>(bits: u64, rounding: Rounding, min: i128, max: i128, flags: &mut u8) -> i128 {
    let (negative, class) = unpack::<F>(bits);
    let (exponent, significand) = match class {
        Class::Zero => return 0,
        Class::Finite { exponent, significand } if exponent <= 64 => (exponent, significand),
        Class::Finite { .. } | Class::Infinity => {
            *flags |= NV;
            return if negative { min } else { max };
        }
        Class::Nan => {
            *flags |= NV;
            return max;
        }
    };
    let (magnitude, inexact) = shift_round(significand.into(), -exponent, rounding, negative);
    let value = if negative { -(magnitude as i128) } else { magnitude as i128 };
    if value < min || value > max {
        *flags |= NV;
        return value.clamp(min, max);
    }
    if inexact {
        *flags |= NX;
    }
    value
}

fn convert<From: Format, To: Format>(bits: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let (negative, class) = unpack::<From>(bits);
    let sign = if negative { To::SIGN } else { 0 };
    match class {
        Class::Nan => {
            if is_signalling::<From>(bits) {
                *flags |= NV;
            }
            To::CANONICAL_NAN
        }
        Class::Infinity => sign | To::INFINITY,
        Class::Zero => sign,
        Class::Finite { exponent, significand } => {
            round_pack::<To>(negative, exponent, significand.into(), rounding, flags)
        }
    }
}

/// Double to single.
pub fn narrow(bits: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    convert::<Double, Single>(bits, rounding, flags)
}

/// Single to double, which is always exact.
pub fn widen(bits: u64, flags: &mut u8) -> u64 {
    convert::<Single, Double>(bits, Rounding::Rne, flags)
}
