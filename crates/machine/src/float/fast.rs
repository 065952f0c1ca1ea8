//! The host's floating-point unit, where it provably gives the same result and flags.
//!
//! All of this is round-to-nearest-even, which is the only mode Rust code runs in. A result is used only when it
//! is a number well inside the normal range, so that neither overflow nor underflow can have happened, and when
//! the inexact flag is known: it is set already, or the error term (representable, by the bounds below) says so.
//!
//! - sum: Knuth's two-sum gives the error exactly unless an intermediate overflows, and then it is not finite.
//! - product, quotient, root: one fused multiply-add gives the exact residue when its last place, at least
//!   `2^(e - 2p)` for a result of exponent `e`, is representable.
//! - fused multiply-add: used only once the flag is set; finding its error costs more than the slow path.

use super::{Double, Format, NX, Single};

macro_rules! fast_format {
    ($marker:ident, $float:ident, $bits:ident, $precision:literal, $exponent:literal, $low:literal, $high:literal) => {
        impl Format for $marker {
            const PRECISION: u32 = $precision;
            const EXPONENT: u32 = $exponent;

            #[inline]
            fn fast_add(a: u64, b: u64, flags: &mut u8) -> Option<u64> {
                let (a, b) = ($float::from_bits(a as $bits), $float::from_bits(b as $bits));
                let sum = a + b;
                if !sum.is_finite() {
                    return None;
                }
                if *flags & NX == 0 {
                    let b_part = sum - a;
                    let error = (a - (sum - b_part)) + (b - b_part);
                    if !error.is_finite() {
                        return None;
                    }
                    *flags |= u8::from(error != 0.0) * NX;
                }
                Some(sum.to_bits().into())
            }

            #[inline]
            fn fast_mul(a: u64, b: u64, flags: &mut u8) -> Option<u64> {
                let (a, b) = ($float::from_bits(a as $bits), $float::from_bits(b as $bits));
                let product = a * b;
                if !in_range(product) {
                    return None;
                }
                if *flags & NX == 0 {
                    *flags |= u8::from(a.mul_add(b, -product) != 0.0) * NX;
                }
                return Some(product.to_bits().into());

                fn in_range(value: $float) -> bool {
                    ($low..$high).contains(&value.abs())
                }
            }

            #[inline]
            fn fast_div(a: u64, b: u64, flags: &mut u8) -> Option<u64> {
                let (a, b) = ($float::from_bits(a as $bits), $float::from_bits(b as $bits));
                let quotient = a / b;
                // The divisor is finite and not zero, or the quotient would be out of range.
                if !($low..$high).contains(&quotient.abs()) || !($low..$high).contains(&a.abs()) {
                    return None;
                }
                if *flags & NX == 0 {
                    *flags |= u8::from(quotient.mul_add(b, -a) != 0.0) * NX;
                }
                Some(quotient.to_bits().into())
            }

            #[inline]
            fn fast_sqrt(a: u64, flags: &mut u8) -> Option<u64> {
                let a = $float::from_bits(a as $bits);
                // A negative number is in no positive range.
                if !($low..$high).contains(&a) {
                    return None;
                }
                let root = a.sqrt();
                if *flags & NX == 0 {
                    *flags |= u8::from(root.mul_add(root, -a) != 0.0) * NX;
                }
                Some(root.to_bits().into())
            }

            #[inline]
            fn fast_fma(a: u64, b: u64, c: u64, flags: &mut u8) -> Option<u64> {
                if *flags & NX == 0 {
                    return None;
                }
                let a = $float::from_bits(a as $bits);
                let result = a.mul_add($float::from_bits(b as $bits), $float::from_bits(c as $bits));
                ($low..$high).contains(&result.abs()).then(|| result.to_bits().into())
            }
        }
    };
}

// 2^-90 and 2^126; 2^-900 and 2^1000.
fast_format!(Single, f32, u32, 24, 8, 8.077_936e-28, 8.507_059e37);
fast_format!(Double, f64, u64, 53, 11, 1.183_051_899_559_036e-271, 1.071_508_607_186_267_3e301);
