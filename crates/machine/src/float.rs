//! Floating point, exact in rounding and flags, the same on every host.
//!
//! `soft` computes every operation in integers and is right by construction: an exact value is rounded once.
//! `fast` answers from the host's unit where the result and the inexact flag are provably the same, which is
//! round-to-nearest away from the edges of the range. NaN results are canonical.

mod convert;
mod fast;
mod soft;

pub use convert::{from_int, narrow, to_int, widen};
pub use soft::{classify, compare_eq, compare_le, compare_lt, max, min};

/// Invalid operation.
pub const NV: u8 = 16;
/// Division of a finite number by zero.
pub const DZ: u8 = 8;
/// Overflow.
pub const OF: u8 = 4;
/// Underflow: tiny after rounding, and inexact.
pub const UF: u8 = 2;
/// Inexact.
pub const NX: u8 = 1;

/// Rounding mode, as encoded in instructions and in `frm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Rne,
    /// Towards zero.
    Rtz,
    /// Down.
    Rdn,
    /// Up.
    Rup,
    /// To nearest, ties away from zero.
    Rmm,
}

impl Rounding {
    /// The static modes; `None` for reserved values and for "dynamic" (7).
    pub const fn from_bits(bits: u8) -> Option<Rounding> {
        Some(match bits {
            0 => Rounding::Rne,
            1 => Rounding::Rtz,
            2 => Rounding::Rdn,
            3 => Rounding::Rup,
            4 => Rounding::Rmm,
            _ => return None,
        })
    }
}

/// A binary interchange format. Bit patterns travel as `u64`, a single in the low half.
pub trait Format {
    /// Bits of precision, the hidden one included.
    const PRECISION: u32;
    /// Bits of the exponent field.
    const EXPONENT: u32;
    /// Exponent bias, and largest exponent.
    const BIAS: i32 = (1 << (Self::EXPONENT - 1)) - 1;
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::PRECISION - 1 + Self::EXPONENT);
    /// Positive infinity.
    const INFINITY: u64 = ((1 << Self::EXPONENT) - 1) << (Self::PRECISION - 1);
    /// The quiet bit of a NaN.
    const QUIET: u64 = 1 << (Self::PRECISION - 2);
    /// The only NaN this machine produces.
    const CANONICAL_NAN: u64 = Self::INFINITY | Self::QUIET;

    /// `fast` for this format, all `None` where the host cannot answer.
    fn fast_add(a: u64, b: u64, flags: &mut u8) -> Option<u64>;
    /// Product.
    fn fast_mul(a: u64, b: u64, flags: &mut u8) -> Option<u64>;
    /// Quotient.
    fn fast_div(a: u64, b: u64, flags: &mut u8) -> Option<u64>;
    /// Square root.
    fn fast_sqrt(a: u64, flags: &mut u8) -> Option<u64>;
    /// `a * b + c`.
    fn fast_fma(a: u64, b: u64, c: u64, flags: &mut u8) -> Option<u64>;
}

/// IEEE 754 binary32.
#[derive(Debug)]
pub enum Single {}
/// IEEE 754 binary64.
#[derive(Debug)]
pub enum Double {}

/// Whether `bits` is a NaN.
pub fn is_nan<F: Format>(bits: u64) -> bool {
    bits & !F::SIGN > F::INFINITY
}

/// Whether `bits` is a signalling NaN.
pub fn is_signalling<F: Format>(bits: u64) -> bool {
    is_nan::<F>(bits) && bits & F::QUIET == 0
}

/// `a + b`.
#[inline]
pub fn add<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if rounding == Rounding::Rne
        && let Some(sum) = F::fast_add(a, b, flags)
    {
        return sum;
    }
    soft::add::<F>(a, b, rounding, flags)
}

/// `a - b`.
#[inline]
pub fn sub<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    // A NaN's sign does not survive, so flipping it is harmless.
    add::<F>(a, b ^ F::SIGN, rounding, flags)
}

/// `a * b`.
#[inline]
pub fn mul<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if rounding == Rounding::Rne
        && let Some(product) = F::fast_mul(a, b, flags)
    {
        return product;
    }
    soft::mul::<F>(a, b, rounding, flags)
}

/// `a / b`.
#[inline]
pub fn div<F: Format>(a: u64, b: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if rounding == Rounding::Rne
        && let Some(quotient) = F::fast_div(a, b, flags)
    {
        return quotient;
    }
    soft::div::<F>(a, b, rounding, flags)
}

/// The square root.
#[inline]
pub fn sqrt<F: Format>(a: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if rounding == Rounding::Rne
        && let Some(root) = F::fast_sqrt(a, flags)
    {
        return root;
    }
    soft::sqrt::<F>(a, rounding, flags)
}

/// `a * b + c`, rounded once.
#[inline]
pub fn fma<F: Format>(a: u64, b: u64, c: u64, rounding: Rounding, flags: &mut u8) -> u64 {
    if rounding == Rounding::Rne
        && let Some(result) = F::fast_fma(a, b, c, flags)
    {
        return result;
    }
    soft::fma::<F>(a, b, c, rounding, flags)
}

#[cfg(test)]
mod tests;
