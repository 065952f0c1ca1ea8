//! Forms of option values.

use anyhow::{Result, anyhow, bail};

/// A number, decimal or hexadecimal.
///
/// # Errors
/// Names the option and the value.
pub fn count(option: &str, text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| anyhow!("{option} takes a number, not '{text}'"))
}

/// A size of memory: MiB, unless a suffix says otherwise.
///
/// # Errors
/// When it is none.
pub fn memory(text: &str) -> Result<u64> {
    let bytes = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<u64>().ok().and_then(|mib| mib.checked_mul(1 << 20))
    } else {
        cowbell_block::parse_size(text).ok()
    };
    bytes.ok_or_else(|| anyhow!("-m takes a size such as 512, 512M or 2G, not '{text}'"))
}

/// `on` or `off`.
///
/// # Errors
/// Names the key.
pub fn on_off(key: &str, text: &str) -> Result<bool> {
    match text {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => bail!("'{key}' takes on or off, not '{text}'"),
    }
}

/// `base=DATETIME` as nanoseconds since 1970.
///
/// # Errors
/// When it is malformed, or out of the clock's range.
pub fn rtc_base(text: &str) -> Result<u64> {
    let bad =
        || anyhow!("--rtc takes base=YYYY-MM-DD or base=YYYY-MM-DDTHH:MM:SS from 1970 on, not '{text}'");
    let moment = text.strip_prefix("base=").ok_or_else(bad)?;
    let (date, time) = moment.split_once('T').unwrap_or((moment, "00:00:00"));
    let [year, month, day] = fields(date, '-').ok_or_else(bad)?;
    let [hour, minute, second] = fields(time, ':').ok_or_else(bad)?;
    let days = days_since_1970(year, month, day).ok_or_else(bad)?;
    if hour > 23 || minute > 59 || second > 59 {
        return Err(bad());
    }
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    seconds.checked_mul(1_000_000_000).ok_or_else(bad)
}

fn fields(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let digits = part.len() >= 2 && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse().ok()).flatten()
    });
    let found = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(found)
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |index: usize| LENGTHS[index] + u64::from(index == 1 && is_leap(year));
    let index = usize::try_from(month).ok()?.checked_sub(1).filter(|index| *index < 12)?;
    if year < 1970 || day == 0 || day > length(index) {
        return None;
    }
    let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    Some(years + (0..index).map(length).sum::<u64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_counted_from_1970() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(rtc_base(text).ok(), expect.map(|seconds| seconds * 1_000_000_000), "{text}");
        };
        check("base=1970-01-01", Some(0));
        check("base=2026-01-01T00:00:00", Some(1_767_225_600));
        check("base=2000-02-29T23:59:59", Some(951_868_799));
        check("base=2100-02-29", None);
        check("base=2001-13-01", None);
        check("base=2001-01-01T24:00:00", None);
        check("base=9999-01-01", None);
        check("2026-01-01", None);
        check("base=utc", None);
    }

    #[test]
    fn a_bare_number_of_memory_is_in_mebibytes() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(memory(text).ok(), expect, "{text}");
        check("64", Some(64 << 20));
        check("64M", Some(64 << 20));
        check("1G", Some(1 << 30));
        check("", None);
        check("x", None);
        check("99999999999999999999", None);
    }
}
