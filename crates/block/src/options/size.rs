//! Sizes as people write them.

/// A size that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional suffix.
    #[error("not a number with an optional suffix of B, k, M, G, T, P or E")]
    Malformed,
    /// More than 64 bits hold.
    #[error("out of range")]
    OutOfRange,
}

/// Reads an integer, decimal or `0x` hexadecimal, or a decimal fraction, with a suffix of `b k K m M g G t T p P e E`
/// (powers of 1024; none means bytes). A fraction needs a suffix above `B` and is rounded to the nearest byte; hexadecimal
/// takes no suffix, whose letters could be digits. Blanks and one `+` may stand before.
///
/// # Errors
/// The text is no size, or a number that is negative or beyond 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_ascii_start();
    if let Some(rest) = text.strip_prefix('-') {
        let is_number = !rest.is_empty() && digits_len(rest) == rest.len();
        return Err(if is_number { SizeError::OutOfRange } else { SizeError::Malformed });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // Not for `from_str_radix` alone: it takes a sign.
        if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SizeError::Malformed);
        }
        return u64::from_str_radix(hex, 16).map_err(|_| SizeError::OutOfRange);
    }
    let whole_len = digits_len(text);
    let (whole, rest) = text.split_at(whole_len);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits_len(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Malformed);
    }
    let unit = unit(suffix)?;
    let whole = match whole {
        "" => 0,
        digits => digits.parse::<u64>().map_err(|_| SizeError::OutOfRange)?,
    };
    let part = scaled_fraction(fraction, unit)?;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::OutOfRange)
}

fn digits_len(text: &str) -> usize {
    text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len()
}

fn unit(suffix: &str) -> Result<u64, SizeError> {
    let power = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        "e" | "E" => 6,
        _ => return Err(SizeError::Malformed),
    };
    Ok(1 << (10 * power))
}

/// `0.digits * unit`, rounded to the nearest.
fn scaled_fraction(digits: &str, unit: u64) -> Result<u64, SizeError> {
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    if unit == 1 {
        return Err(SizeError::Malformed);
    }
    // In floating point, as the reference does: of a fraction with many digits both shall make the same number of bytes.
    let fraction: f64 = format!("0.{digits}").parse().map_err(|_| SizeError::Malformed)?;
    Ok((fraction * unit as f64 + 0.5) as u64)
}

/// A plain number that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// Not a number.
    #[error("not a number")]
    Malformed,
    /// More than 64 bits hold.
    #[error("too large")]
    TooLarge,
}

/// Reads a number as C's `strtoull` does for any base: `0x` makes it hexadecimal and `0` octal, blanks and a sign may
/// stand before, and what is negative counts down from 2^64.
///
/// # Errors
/// The text is no number, or one that 64 bits do not hold.
pub fn parse_number(text: &str) -> Result<u64, NumberError> {
    let text = text.trim_ascii_start();
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None if digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    // Not for `from_str_radix` alone: it takes a sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(NumberError::Malformed);
    }
    let value = u64::from_str_radix(digits, radix).map_err(|_| NumberError::TooLarge)?;
    Ok(if is_negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_read_as_c_reads_them() {
        for (text, expect) in [
            ("0", Ok(0)),
            ("16", Ok(16)),
            ("0x10", Ok(16)),
            ("010", Ok(8)),
            (" \t+7", Ok(7)),
            ("-1", Ok(u64::MAX)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(NumberError::TooLarge)),
            ("", Err(NumberError::Malformed)),
            ("-", Err(NumberError::Malformed)),
            ("0x", Err(NumberError::Malformed)),
            ("08", Err(NumberError::Malformed)),
            ("--1", Err(NumberError::Malformed)),
            ("5 ", Err(NumberError::Malformed)),
            ("1k", Err(NumberError::Malformed)),
        ] {
            assert_eq!(parse_number(text), expect, "{text:?}");
        }
    }

    fn check(text: &str, expect: Result<u64, SizeError>) {
        assert_eq!(parse_size(text), expect, "{text:?}");
    }

    #[test]
    fn numbers_with_suffixes() {
        check("0", Ok(0));
        check("512b", Ok(512));
        check("64k", Ok(65536));
        check("64K", Ok(65536));
        check("1.5G", Ok(3 << 29));
        check("12.345M", Ok(12_944_671));
        check("7.9999999999E", Ok(9_223_372_036_739_483_648));
        check(".5k", Ok(512));
        check("1.k", Ok(1024));
        check("0x10", Ok(16));
        check("7E", Ok(7 << 60));
        check("18446744073709551615", Ok(u64::MAX));
        check("1.0", Ok(1));
        check(" 1024", Ok(1024));
        check("\t+1k", Ok(1024));
        check("0x10b", Ok(0x10b));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "k", "-1k", "+-1", "1.5", "1kk", "1 k", "1k ", "0x", "0x+1", "0x10k", "1e3", ".", "1z",
            "0x1.8", "１",
        ] {
            check(text, Err(SizeError::Malformed));
        }
        for text in ["-1", "-0", "16E", "18446744073709551616", "99999999999999999999P"] {
            check(text, Err(SizeError::OutOfRange));
        }
    }
}
