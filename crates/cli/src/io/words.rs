//! Words of command lines as numbers and bytes, with the reference's messages.

use cowbell_block::options::SizeError;
use cowbell_block::parse_size;

use crate::size::SIZE_MAX;

/// A size or an offset.
///
/// # Errors
/// The line to print.
pub(super) fn number(word: &str) -> Result<u64, String> {
    let too_large = || format!("Parsing error: argument too large -- {word}\n");
    match parse_size(word) {
        Ok(value) if value <= SIZE_MAX => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => Err(too_large()),
        Err(SizeError::Malformed) => {
            Err(format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {word}\n"))
        }
    }
}

/// A fill byte: decimal, octal or hexadecimal as in C.
///
/// # Errors
/// The line to print.
pub(super) fn pattern(word: &str) -> Result<u8, String> {
    c_number(word)
        .and_then(|value| u8::try_from(value).ok())
        .ok_or_else(|| format!("{word} is not a valid pattern byte\n"))
}

/// An unsigned number as C's `strtol` reads it with base 0.
pub(super) fn c_number(word: &str) -> Option<u64> {
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    match word.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
        _ => word.parse().ok(),
    }
}

/// One value must be a multiple of a sector.
///
/// # Errors
/// The line to print.
pub(super) fn aligned(value: u64, what: &str) -> Result<(), String> {
    match value.is_multiple_of(512) {
        true => Ok(()),
        false => Err(format!("{value} is not a sector-aligned value for '{what}'\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_bytes_in_any_base() {
        for (word, expected) in [
            ("0", Ok(0)),
            ("255", Ok(255)),
            ("0xcd", Ok(0xcd)),
            ("017", Ok(15)),
            ("256", Err(())),
            ("0x", Err(())),
        ] {
            assert_eq!(pattern(word).map_err(|_| ()), expected, "{word}");
        }
    }
}
