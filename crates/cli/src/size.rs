//! Sizes, as they are read from command lines and printed for people.

use anyhow::{Result, bail};
use cowbell_block::create::CreateOptionError;
use cowbell_block::options::{NumberError, OptionError, SizeError, parse_number};
use cowbell_block::parse_size;

use crate::img::target::SIZE_HINT;

/// Largest size that the tools accept: offsets of files are signed.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// Parses the argument called `what`, with the messages of `qemu-img`.
///
/// # Errors
/// The message.
pub fn parse_named(what: &str, text: &str, min: u64, max: u64) -> Result<u64> {
    match parse_size(text) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        Err(SizeError::Malformed) => bail!("Invalid {what} specified: '{text}'."),
        _ => bail!("Invalid {what} specified. Must be between {min} and {max}."),
    }
}

/// What the reference says below a message about a size that it could not read.
pub fn hint(error: &cowbell_block::Error) -> String {
    let mut cause = error.cause().map(|cause| cause as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        let option = match error.downcast_ref::<CreateOptionError>() {
            Some(CreateOptionError::Value(option)) => Some(option),
            _ => error.downcast_ref::<OptionError>(),
        };
        if matches!(option, Some(OptionError::ExpectsSize { .. })) {
            return format!("\n{SIZE_HINT}");
        }
        cause = error.source();
    }
    String::new()
}

/// The error as the tools say it, with the hint that belongs to it.
pub fn reworded(error: cowbell_block::Error) -> anyhow::Error {
    match hint(&error).as_str() {
        "" => error.into(),
        hint => anyhow::anyhow!("{error}{hint}"),
    }
}

/// Parses a number without a suffix, called `what`, as C reads numbers of any base.
///
/// # Errors
/// The message.
pub fn parse_count(what: &str, text: &str, min: u64, max: u64) -> Result<u64> {
    let is_negative = text.trim_ascii_start().starts_with('-');
    match parse_number(text) {
        Ok(n) if (min..=max).contains(&n) && (!is_negative || n == 0) => Ok(n),
        Err(NumberError::Malformed) => bail!("Invalid {what} specified: '{text}'."),
        _ => bail!("Invalid {what} specified. Must be between {min} and {max}."),
    }
}

/// A size for people: three significant digits and a binary unit that switches up at 1000.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < UNITS.len() && bytes as f64 / scale as f64 >= 1000.0 {
        unit += 1;
        scale <<= 10;
    }
    format!("{} {}", three_digits(bytes as f64 / scale as f64), UNITS[unit])
}

/// C's `%0.3g` for values from 0 to 1000.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        // The limits are those of the value *after* rounding to three digits.
        v if v < 0.9995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        v if v < 999.5 => 0,
        _ => return "1e+03".to_owned(),
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A size as `io` prints it: three decimals, dropped when they are all zero.
pub fn io_form(value: f64) -> String {
    const UNITS: [(u32, &str); 6] =
        [(60, " EiB"), (50, " PiB"), (40, " TiB"), (30, " GiB"), (20, " MiB"), (10, " KiB")];
    let (text, unit) = match UNITS.iter().find(|(shift, _)| value >= (1u64 << shift) as f64) {
        Some((shift, unit)) => (format!("{:.3}", value / (1u64 << shift) as f64), *unit),
        None => (format!("{value:.6}"), " bytes"),
    };
    let text = text.find(".000").map_or(text.as_str(), |at| &text[..at]);
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_sizes_have_three_digits() {
        let cases: &[(u64, &str)] = &[
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (197_120, "192 KiB"),
            (590_336, "576 KiB"),
            (1_343_488, "1.28 MiB"),
            (67_108_864, "64 MiB"),
            (1_023_600, "1e+03 KiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human(*bytes), *expected, "{bytes}");
        }
    }

    #[test]
    fn io_sizes_drop_empty_decimals() {
        assert_eq!(io_form(48.0), "48 bytes");
        assert_eq!(io_form(65536.0), "64 KiB");
        assert_eq!(io_form(1.5 * 1024.0 * 1024.0), "1.500 MiB");
        assert_eq!(io_form(12.345_678_9), "12.345679 bytes");
    }
}
