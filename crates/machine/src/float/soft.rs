//! The operations in integers: take apart, compute exactly (or with a sticky bit far below the last place),
//! round once.

use super::{DZ, Format, NV, NX, OF, Rounding, UF, is_nan, is_signalling};

/// A number taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Nan,
    Infinity,
    Zero,
    /// `significand * 2^exponent`, the significand not zero.
    Finite {
        exponent: i32,
        significand: u64,
    },
}

pub(super) fn unpack<F: Format>(bits: u64) -> (bool, Class) {
    let fraction_bits = F::PRECISION - 1;
    let fraction = bits & ((1 << fraction_bits) - 1);
    let field = ((bits & F::INFINITY) >> fraction_bits) as i32;
    let lowest = 1 - F::BIAS - fraction_bits as i32;
    let class = if bits & F::INFINITY == F::INFINITY {
        if fraction == 0 { Class::Infinity } else { Class::Nan }
    } else if field == 0 {
        if fraction == 0 { Class::Zero } else { Class::Finite { exponent: lowest, significand: fraction } }
    } else {
        Class::Finite { exponent: lowest + field - 1, significand: fraction | 1 << fraction_bits }
    };
    (bits & F::SIGN != 0, class)
}

/// Whether a magnitude is rounded away from zero, given its last bit and what was cut off.
fn rounds_up(rounding: Rounding, negative: bool, odd: bool, cut: u128, half: u128) -> bool {
    match rounding {
        Rounding::Rne => cut > half || (cut == half && odd),
        Rounding::Rmm => cut >= half,
        Rounding::Rtz => false,
        Rounding::Rdn => negative && cut != 0,
        Rounding::Rup => !negative && cut != 0,
    }
}

/// `value >> shift` rounded to an integer, and whether anything was lost.
pub(super) fn shift_round(value: u128, shift: i32, rounding: Rounding, negative: bool) -> (u128, bool) {
    if shift <= 0 {
        return (value << -shift, false);
    }
    // Beyond 126 places all that matters is that something less than half was there.
    let (kept, cut, half) = if shift > 126 {
        (0, u128::from(value != 0), 2)
    } else {
        (value >> shift, value & ((1 << shift) - 1), 1 << (shift - 1))
    };
    (kept + u128::from(rounds_up(rounding, negative, kept & 1 == 1, cut, half)), cut != 0)
}

/// Rounds `significand * 2^exponent`, not zero and below 2^126, into the format.
pub(super) fn round_pack<F: Format>(
    negative: bool,
    exponent: i32,
    significand: u128,
    rounding: Rounding,
    flags: &mut u8,
) -> u64 {
    let sign = if negative { F::SIGN } else { 0 };
    let precision = F::PRECISION as i32;
    let top = 127 - significand.leading_zeros() as i32;
    let lowest = 1 - F::BIAS - (precision - 1);
    // How many places go when only precision limits, and when the exponent does as well.
    let free_shift = top - (precision - 1);
    let shift = free_shift.max(lowest - exponent);
    let (kept, inexact) = shift_round(significand, shift, rounding, negative);
    let kept = kept as u64;
    if inexact {
        *flags |= NX;
        if is_tiny::<F>(negative, exponent, significand, free_shift, rounding) {
            *flags |= UF;
        }
    }
    if kept == 0 {
        return sign;
    }
    // The hidden bit adds one to the field, and so does a carry out of the rounding.
    let field = (exponent + shift - lowest) as i64;
    let magnitude = ((field as u64) << (precision - 1)).wrapping_add(kept);
    if field > 2 * F::BIAS as i64 || magnitude >= F::INFINITY {
        *flags |= OF | NX;
        let to_infinity = match rounding {
            Rounding::Rne | Rounding::Rmm => true,
            Rounding::Rtz => false,
            Rounding::Rdn => negative,
            Rounding::Rup => !negative,
        };
        return sign | if to_infinity { F::INFINITY } else { F::INFINITY - 1 };
    }
    sign | magnitude
}

/// Tininess after rounding: the value rounded as if the exponent were unbounded is below the normal range.
fn is_tiny<F: Format>(
    negative: bool,
    exponent: i32,
    significand: u128,
    free_shift: i32,
    rounding: Rounding,
) -> bool {
    let top = 127 - significand.leading_zeros() as i32;
    let leading = exponent + top;
    let smallest = 1 - F::BIAS;
    if leading != smallest - 1 {
        return leading < smallest;
    }
    let (kept, _) = shift_round(significand, free_shift, rounding, negative);
    kept < 1 << F::PRECISION
}

fn nan_result<F: Format>(operands: &[u64], flags: &mut u8) -> u64 {
    if operands.iter().any(|&bits| is_signalling::<F>(bits)) {
        *flags |= NV;
    }
    F::CANONICAL_NAN
}

fn invalid<F: Format>(flags: &mut u8) -> u64 {
    *flags |= NV;
    F::CANONICAL_NAN
}

fn zero<F: Format>(negative: bool) -> u64 {
    if negative { F::SIGN } else { 0 }
}

/// A signed number with its leading bit at [`TOP`]; room for one carry above it.
#[derive(Clone, Copy)]
struct Aligned {
    negative: bool,
    exponent: i32,
    significand: u128,
}

const TOP: u32 = 124;

impl Aligned {
    fn new(negative: bool, exponent: i32, significand: u128) -> Aligned {
        let shift = significand.leading_zeros() - (127 - TOP);
        Aligned { negative, exponent: exponent - shift as i32, significand: significand << shift }
    }
}

/// Adds two numbers of at most 106 significant bits.
///
/// The smaller is shifted right with its lost bits jammed into the last place. Bits are lost only when the
/// exponents differ by 19 or more, and then the result keeps its leading bit at 123 or above, so the jammed
/// place lies far below the rounding position.
fn add_aligned<F: Format>(a: Aligned, b: Aligned, rounding: Rounding, flags: &mut u8) -> u64 {
    let swap = (b.exponent, b.significand) > (a.exponent, a.significand);
    let (big, small) = if swap { (b, a) } else { (a, b) };
    let distance = (big.exponent - small.exponent) as u32;
    let low = if distance > TOP {
        1
    } else {
        let lost = small.significand & ((1 << distance) - 1) != 0;
        (small.significand >> distance) | u128::from(lost)
    };
    if big.negative == small.negative {
        return round_pack::<F>(big.negative, big.exponent, big.significand + low, rounding, flags);
    }
    match big.significand - low {
        0 => zero::<F>(rounding == Rounding::Rdn),
        rest => round_pack::<F>(big.negative, big.exponent, rest, rounding, flags),
    }
}

pub(super) fn add<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let ((a_negative, a_class), (b_negative, b_class)) = (unpack::<F>(a), unpack::<F>(b));
    match (a_class, b_class) {
        (Class::Nan, _) | (_, Class::Nan) => nan_result::<F>(&[a, b], flags),
        (Class::Infinity, Class::Infinity) if a_negative != b_negative => invalid::<F>(flags),
        (Class::Infinity, _) => a,
        (_, Class::Infinity) => b,
        (Class::Zero, Class::Zero) if a_negative != b_negative => zero::<F>(rounding == Rounding::Rdn),
        (Class::Zero, _) => b,
        (_, Class::Zero) => a,
        (
            Class::Finite { exponent, significand },
            Class::Finite { exponent: b_exponent, significand: b_significand },
        ) => add_aligned::<F>(
            Aligned::new(a_negative, exponent, significand.into()),
            Aligned::new(b_negative, b_exponent, b_significand.into()),
            rounding,
            flags,
        ),
    }
}

pub(super) fn mul<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let ((a_negative, a_class), (b_negative, b_class)) = (unpack::<F>(a), unpack::<F>(b));
    let negative = a_negative != b_negative;
    match (a_class, b_class) {
        (Class::Nan, _) | (_, Class::Nan) => nan_result::<F>(&[a, b], flags),
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => invalid::<F>(flags),
        (Class::Infinity, _) | (_, Class::Infinity) => zero::<F>(negative) | F::INFINITY,
        (Class::Zero, _) | (_, Class::Zero) => zero::<F>(negative),
        (Class::Finite { exponent, significand }, Class::Finite { exponent: e, significand: s }) => {
            let product = u128::from(significand) * u128::from(s);
            round_pack::<F>(negative, exponent + e, product, rounding, flags)
        }
    }
}

pub(super) fn fma<F: Format>(a: u64, b: u64, c: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let (a_negative, a_class) = unpack::<F>(a);
    let (b_negative, b_class) = unpack::<F>(b);
    let (c_negative, c_class) = unpack::<F>(c);
    let negative = a_negative != b_negative;
    match (a_class, b_class) {
        // Infinity times zero is invalid even when the addend is a quiet NaN.
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => invalid::<F>(flags),
        (Class::Nan, _) | (_, Class::Nan) => nan_result::<F>(&[a, b, c], flags),
        _ if is_nan::<F>(c) => nan_result::<F>(&[c], flags),
        (Class::Infinity, _) | (_, Class::Infinity) => match c_class {
            Class::Infinity if c_negative != negative => invalid::<F>(flags),
            _ => zero::<F>(negative) | F::INFINITY,
        },
        (Class::Zero, _) | (_, Class::Zero) => match c_class {
            Class::Zero if c_negative != negative => zero::<F>(rounding == Rounding::Rdn),
            _ => c,
        },
        (Class::Finite { exponent, significand }, Class::Finite { exponent: e, significand: s }) => {
            let product = u128::from(significand) * u128::from(s);
            match c_class {
                Class::Zero => round_pack::<F>(negative, exponent + e, product, rounding, flags),
                Class::Finite { exponent: ce, significand: cs } => add_aligned::<F>(
                    Aligned::new(negative, exponent + e, product),
                    Aligned::new(c_negative, ce, cs.into()),
                    rounding,
                    flags,
                ),
                Class::Infinity | Class::Nan => c,
            }
        }
    }
}

pub(super) fn div<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    let ((a_negative, a_class), (b_negative, b_class)) = (unpack::<F>(a), unpack::<F>(b));
    let negative = a_negative != b_negative;
    match (a_class, b_class) {
        (Class::Nan, _) | (_, Class::Nan) => nan_result::<F>(&[a, b], flags),
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => invalid::<F>(flags),
        (Class::Infinity, _) => zero::<F>(negative) | F::INFINITY,
        (_, Class::Infinity) | (Class::Zero, _) => zero::<F>(negative),
        (Class::Finite { .. }, Class::Zero) => {
            *flags |= DZ;
            zero::<F>(negative) | F::INFINITY
        }
        (Class::Finite { exponent, significand }, Class::Finite { exponent: e, significand: s }) => {
            let dividend = Aligned::new(false, exponent, significand.into());
            let divisor = u128::from(s);
            let (quotient, rest) = (dividend.significand / divisor, dividend.significand % divisor);
            // At least 72 bits of quotient; the doubled last place takes the sticky bit.
            let sticky = quotient << 1 | u128::from(rest != 0);
            round_pack::<F>(negative, dividend.exponent - e - 1, sticky, rounding, flags)
        }
    }
}

pub(super) fn sqrt<F: Format>(a: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    match unpack::<F>(a) {
        (_, Class::Nan) => nan_result::<F>(&[a], flags),
        (_, Class::Zero) => a,
        (true, _) => invalid::<F>(flags),
        (false, Class::Infinity) => a,
        (false, Class::Finite { exponent, significand }) => {
            let mut value = Aligned::new(false, exponent, significand.into());
            if value.exponent % 2 != 0 {
                value.exponent -= 1;
                value.significand <<= 1;
            }
            let root = value.significand.isqrt();
            let sticky = root << 1 | u128::from(root * root != value.significand);
            round_pack::<F>(false, value.exponent / 2 - 1, sticky, rounding, flags)
        }
    }
}

/// A key whose integer order is the order of the numbers, zeroes equal.
fn order_key<F: Format>(bits: u64) -> i64 {
    let magnitude = (bits & !F::SIGN) as i64;
    if bits & F::SIGN != 0 { -magnitude } else { magnitude }
}

/// `feq`: quiet, only a signalling NaN is invalid.
pub fn compare_eq<F: Format>(a: u64, b: u64, flags: &mut u8) -> bool {
    if is_nan::<F>(a) || is_nan::<F>(b) {
        nan_result::<F>(&[a, b], flags);
        return false;
    }
    order_key::<F>(a) == order_key::<F>(b)
}

/// `flt`: signalling, any NaN is invalid.
pub fn compare_lt<F: Format>(a: u64, b: u64, flags: &mut u8) -> bool {
    if is_nan::<F>(a) || is_nan::<F>(b) {
        *flags |= NV;
        return false;
    }
    order_key::<F>(a) < order_key::<F>(b)
}

/// `fle`: signalling, any NaN is invalid.
pub fn compare_le<F: Format>(a: u64, b: u64, flags: &mut u8) -> bool {
    if is_nan::<F>(a) || is_nan::<F>(b) {
        *flags |= NV;
        return false;
    }
    order_key::<F>(a) <= order_key::<F>(b)
}

/// `fmin`: the number if one operand is a NaN; -0 is below +0.
pub fn min<F: Format>(a: u64, b: u64, flags: &mut u8) -> u64 {
    select::<F>(a, b, flags, |a, b| (order_key::<F>(a), b & F::SIGN) < (order_key::<F>(b), a & F::SIGN))
}

/// `fmax`: the number if one operand is a NaN; +0 is above -0.
pub fn max<F: Format>(a: u64, b: u64, flags: &mut u8) -> u64 {
    select::<F>(a, b, flags, |a, b| (order_key::<F>(a), b & F::SIGN) > (order_key::<F>(b), a & F::SIGN))
}

fn select<F: Format>(a: u64, b: u64, flags: &mut u8, first: impl Fn(u64, u64) -> bool) -> u64 {
    let nan = nan_result::<F>(&[a, b], flags);
    match (is_nan::<F>(a), is_nan::<F>(b)) {
        (true, true) => nan,
        (true, false) => b,
        (false, true) => a,
        (false, false) if first(a, b) => a,
        (false, false) => b,
    }
}

/// `fclass`: one bit out of ten.
pub fn classify<F: Format>(bits: u64) -> u64 {
    let (negative, class) = unpack::<F>(bits);
    let subnormal = bits & F::INFINITY == 0;
    1 << match (class, negative) {
        (Class::Infinity, true) => 0,
        (Class::Finite { .. }, true) if !subnormal => 1,
        (Class::Finite { .. }, true) => 2,
        (Class::Zero, true) => 3,
        (Class::Zero, false) => 4,
        (Class::Finite { .. }, false) if subnormal => 5,
        (Class::Finite { .. }, false) => 6,
        (Class::Infinity, false) => 7,
        (Class::Nan, _) if is_signalling::<F>(bits) => 8,
        (Class::Nan, _) => 9,
    }
}
