//! Sizes, as they are read from command lines and printed for people.

/// Why a size was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// Not a number with a suffix.
    Malformed,
    /// Negative, or beyond 64 bits.
    OutOfRange,
}

/// Largest size that the tools accept: offsets of files are signed.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// Parses a size: a decimal integer or fraction, or a hexadecimal integer, with an optional suffix.
///
/// # Errors
/// When it is no size, or none that fits.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('-') {
        let negative = rest.starts_with(|c: char| c.is_ascii_digit());
        return Err(if negative { SizeError::OutOfRange } else { SizeError::Malformed });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        // A `b` would be a digit, so hexadecimal numbers take no suffix of one byte, and no fraction.
        if end == 0 || end != hex.len() {
            return Err(SizeError::Malformed);
        }
        return u64::from_str_radix(hex, 16).map_err(|_| SizeError::OutOfRange);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Err(SizeError::Malformed);
    }
    let whole: u64 = text[..end].parse().map_err(|_| SizeError::OutOfRange)?;
    let rest = &text[end..];
    let (fraction, suffix) = match rest.strip_prefix('.') {
        None => (0.0, rest),
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let digits = if end == 0 { "0" } else { &rest[..end] };
            (format!("0.{digits}").parse().map_err(|_| SizeError::Malformed)?, &rest[end..])
        }
    };
    let unit = unit(suffix).ok_or(SizeError::Malformed)?;
    if unit == 1 && fraction != 0.0 {
        return Err(SizeError::Malformed);
    }
    let scaled = whole.checked_mul(unit).ok_or(SizeError::OutOfRange)?;
    let part: f64 = fraction * unit as f64 + 0.5;
    scaled.checked_add(part as u64).ok_or(SizeError::OutOfRange)
}

fn unit(suffix: &str) -> Option<u64> {
    Some(match suffix {
        "" | "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return None,
    })
}

/// Parses the argument called `what`, with the messages of `qemu-img`.
///
/// # Errors
/// The message, lines separated by newlines.
pub fn parse_named(what: &str, text: &str, min: u64, max: u64) -> Result<u64, SizeErrorText> {
    let value = match parse(text) {
        Ok(value) => value,
        Err(SizeError::OutOfRange) => u64::MAX,
        Err(SizeError::Malformed) => return Err(SizeErrorText::Malformed(what.to_owned())),
    };
    if value < min || value > max {
        return Err(SizeErrorText::Range { what: what.to_owned(), min, max });
    }
    Ok(value)
}

/// The messages of [`parse_named`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SizeErrorText {
    /// Not a size: two lines.
    Malformed(String),
    /// Beyond the limits.
    Range {
        /// The argument.
        what: String,
        /// Least value allowed.
        min: u64,
        /// Greatest value allowed.
        max: u64,
    },
}

impl SizeErrorText {
    /// The lines to report, each with the program's prefix.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Malformed(what) => vec![
                format!("Invalid {what} specified. You may use k, M, G, T, P or E suffixes for "),
                "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.".to_owned(),
            ],
            Self::Range { what, min, max } => {
                vec![format!("Invalid {what} specified. Must be between {min} and {max}.")]
            }
        }
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
    fn sizes_are_read_with_suffixes_and_fractions() {
        let cases: &[(&str, Result<u64, SizeError>)] = &[
            ("0", Ok(0)),
            ("512", Ok(512)),
            ("1k", Ok(1024)),
            ("1K", Ok(1024)),
            ("1.5M", Ok(3 << 19)),
            ("0x10", Ok(16)),
            ("7E", Ok(7 << 60)),
            ("16E", Err(SizeError::OutOfRange)),
            ("-1", Err(SizeError::OutOfRange)),
            ("", Err(SizeError::Malformed)),
            ("1X", Err(SizeError::Malformed)),
            ("1kb", Err(SizeError::Malformed)),
            ("1.5", Err(SizeError::Malformed)),
            ("1.k", Ok(1024)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), *expected, "{text}");
        }
    }

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
