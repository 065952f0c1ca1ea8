//! Against an independent implementation (`rustc_apfloat`) in every rounding mode, against the host, and by
//! properties where neither knows the answer.

use super::*;
use proptest::prelude::*;
use rustc_apfloat::ieee::{Double as ApDouble, Single as ApSingle};
use rustc_apfloat::{Float, Round, Status};

const MODES: [(Rounding, Round); 5] = [
    (Rounding::Rne, Round::NearestTiesToEven),
    (Rounding::Rtz, Round::TowardZero),
    (Rounding::Rdn, Round::TowardNegative),
    (Rounding::Rup, Round::TowardPositive),
    (Rounding::Rmm, Round::NearestTiesToAway),
];

fn oracle_flags(status: Status) -> u8 {
    let pairs = [
        (Status::INVALID_OP, NV),
        (Status::DIV_BY_ZERO, DZ),
        (Status::OVERFLOW, OF),
        (Status::UNDERFLOW, UF),
        (Status::INEXACT, NX),
    ];
    pairs.iter().filter(|(status_bit, _)| status.contains(*status_bit)).map(|(_, flag)| flag).sum()
}

/// Patterns that meet the edges: near each other, near the ends of the range, few bits set.
fn patterns<F: Format>() -> impl Strategy<Value = u64> {
    let all = F::SIGN | (F::SIGN - 1);
    let exponents =
        prop::sample::select(vec![0u64, 1, 2, 24, 53, 54, 100, 120, 126, 127, 128, 150, 253, 254, 255]);
    let edge =
        (any::<u64>(), exponents, 0u32..60, any::<bool>()).prop_map(move |(bits, exponent, cut, middle)| {
            let field = if middle { (F::BIAS as u64) + exponent % 64 - 32 } else { exponent };
            let field = field.min((1 << F::EXPONENT) - 1);
            let fraction = (bits >> cut << cut) & (F::QUIET * 2 - 1);
            (bits & F::SIGN) | field << (F::PRECISION - 1) | fraction
        });
    prop_oneof![any::<u64>().prop_map(move |bits| bits & all), edge]
}

/// Flags the oracle gives otherwise than IEEE 754 does: no overflow when the result is the largest number, and
/// underflow judged on the subnormal's precision when the result is the smallest normal one.
fn unsaid_flags<F: Format>(result: u64) -> u8 {
    let magnitude = result & !F::SIGN;
    (u8::from(magnitude == F::INFINITY - 1) * OF) | (u8::from(magnitude == F::QUIET * 2) * UF)
}

/// Runs one operation of ours, fast path and slow path, and compares with the oracle's answer.
#[track_caller]
fn check<F: Format>(ours: impl Fn(Rounding, &mut u8) -> u64, oracle: impl Fn(Round) -> (u128, Status)) {
    for (rounding, oracle_rounding) in MODES {
        let (expect, status) = oracle(oracle_rounding);
        let expect = if is_nan::<F>(expect as u64) { F::CANONICAL_NAN } else { expect as u64 };
        for sticky in [0, NX] {
            let mut flags = sticky;
            let got = ours(rounding, &mut flags);
            let expect_flags = oracle_flags(status) | sticky;
            let unsaid = unsaid_flags::<F>(expect);
            let seen = (got, flags & !unsaid);
            assert_eq!(seen, (expect, expect_flags & !unsaid), "{rounding:?}: {got:#x} {expect:#x}");
        }
    }
}

macro_rules! against_oracle {
    ($name:ident, $format:ident, $ap:ident) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(3000))]
            #[test]
            fn $name(a in patterns::<$format>(), b in patterns::<$format>(), c in patterns::<$format>()) {
                let ap = |bits: u64| $ap::from_bits(bits.into());
                let apply = |s: rustc_apfloat::StatusAnd<$ap>| (s.value.to_bits(), s.status);
                check::<$format>(|r, f| add::<$format>(a, b, r, f), |r| apply(ap(a).add_r(ap(b), r)));
                check::<$format>(|r, f| sub::<$format>(a, b, r, f), |r| apply(ap(a).sub_r(ap(b), r)));
                check::<$format>(|r, f| mul::<$format>(a, b, r, f), |r| apply(ap(a).mul_r(ap(b), r)));
                check::<$format>(|r, f| div::<$format>(a, b, r, f), |r| apply(ap(a).div_r(ap(b), r)));
                // The oracle takes infinity times zero plus a quiet NaN as quiet; RISC-V does not.
                if !is_nan::<$format>(c) {
                    check::<$format>(
                        |r, f| fma::<$format>(a, b, c, r, f),
                        |r| apply(ap(a).mul_add_r(ap(b), ap(c), r)),
                    );
                }
                check::<$format>(
                    |r, f| from_int::<$format>((a as i64) < 0, (a as i64).unsigned_abs(), r, f),
                    |r| apply($ap::from_i128_r(i128::from(a as i64), r)),
                );
                for (width, min, max) in [(32, i128::from(i32::MIN), i128::from(i32::MAX)),
                                          (64, i128::from(i64::MIN), i128::from(i64::MAX))] {
                    for (rounding, oracle_rounding) in MODES {
                        let mut exact = false;
                        let expect = ap(a).to_i128_r(width, oracle_rounding, &mut exact);
                        let mut flags = 0;
                        let got = to_int::<$format>(a, rounding, min, max, &mut flags);
                        prop_assert_eq!(flags, oracle_flags(expect.status));
                        // RISC-V saturates a NaN upwards whatever its sign.
                        let value = if is_nan::<$format>(a) { max } else { expect.value };
                        prop_assert_eq!(got, value);
                    }
                }
            }
        }
    };
}

against_oracle!(single_agrees_with_apfloat, Single, ApSingle);
against_oracle!(double_agrees_with_apfloat, Double, ApDouble);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn square_roots_agree_with_the_host(a in patterns::<Double>(), b in patterns::<Single>()) {
        let mut flags = 0;
        let expect = f64::from_bits(a).sqrt();
        let got = soft::sqrt::<Double>(a, Rounding::Rne, &mut flags);
        prop_assert!(got == expect.to_bits() || (expect.is_nan() && got == Double::CANONICAL_NAN));
        let mut fast_flags = 0;
        prop_assert_eq!((sqrt::<Double>(a, Rounding::Rne, &mut fast_flags), fast_flags), (got, flags));
        let expect = f32::from_bits(b as u32).sqrt();
        let got = soft::sqrt::<Single>(b, Rounding::Rne, &mut flags);
        prop_assert!(got == u64::from(expect.to_bits()) || (expect.is_nan() && got == Single::CANONICAL_NAN));
    }

    /// Down and up enclose the root, next to each other, or are both exactly it.
    #[test]
    fn directed_square_roots_enclose(a in 1u64..Double::INFINITY) {
        let (mut down_flags, mut up_flags) = (0, 0);
        let down = soft::sqrt::<Double>(a, Rounding::Rdn, &mut down_flags);
        let up = soft::sqrt::<Double>(a, Rounding::Rup, &mut up_flags);
        prop_assert_eq!(down_flags, up_flags);
        prop_assert_eq!(up - down, u64::from(down_flags == NX));
        prop_assert_eq!(soft::sqrt::<Double>(a, Rounding::Rtz, &mut down_flags), down);
    }

    #[test]
    fn narrowing_agrees_with_the_host(a in patterns::<Double>(), b in patterns::<Single>()) {
        let mut flags = 0;
        let host = f64::from_bits(a) as f32;
        if !host.is_nan() {
            prop_assert_eq!(narrow(a, Rounding::Rne, &mut flags), u64::from(host.to_bits()));
        }
        let host = f64::from(f32::from_bits(b as u32));
        if !host.is_nan() {
            prop_assert_eq!(widen(b, &mut flags), host.to_bits());
        }
    }
}

#[test]
fn comparisons_and_selection_treat_nans_as_specified() {
    let (one, two) = (1.0f64.to_bits(), 2.0f64.to_bits());
    let (quiet, signalling) = (Double::CANONICAL_NAN, Double::INFINITY | 1);
    #[track_caller]
    fn check<T: PartialEq + std::fmt::Debug>(run: impl FnOnce(&mut u8) -> T, expect: (T, u8)) {
        let mut flags = 0;
        let value = run(&mut flags);
        assert_eq!((value, flags), expect);
    }
    check(|f| compare_eq::<Double>(one, quiet, f), (false, 0));
    check(|f| compare_eq::<Double>(one, signalling, f), (false, NV));
    check(|f| compare_lt::<Double>(one, quiet, f), (false, NV));
    check(|f| compare_lt::<Double>(one, two, f), (true, 0));
    check(|f| compare_le::<Double>(0, Double::SIGN, f), (true, 0));
    check(|f| compare_lt::<Double>(Double::SIGN, 0, f), (false, 0));
    check(|f| min::<Double>(0, Double::SIGN, f), (Double::SIGN, 0));
    check(|f| max::<Double>(Double::SIGN, 0, f), (0, 0));
    check(|f| min::<Double>(quiet, two, f), (two, 0));
    check(|f| max::<Double>(signalling, two, f), (two, NV));
    check(|f| max::<Double>(quiet, quiet, f), (Double::CANONICAL_NAN, 0));
    check(|_| classify::<Double>(signalling), (1 << 8, 0));
    check(|_| classify::<Double>(Double::SIGN | 1), (1 << 2, 0));
    check(|f| fma::<Double>(Double::INFINITY, 0, quiet, Rounding::Rne, f), (Double::CANONICAL_NAN, NV));
}
