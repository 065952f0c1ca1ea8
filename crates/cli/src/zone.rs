//! Local time without a library: the current rule of `/etc/localtime` or `TZ`, and the calendar.
//!
//! Only the dates of snapshots need it. A zone file that cannot be read counts as UTC.

use std::fs;

/// Seconds that local time is ahead of UTC at `unix_sec`.
pub fn offset_seconds(unix_sec: i64) -> i64 {
    let file = match std::env::var("TZ") {
        Ok(zone) if zone.is_empty() => return 0,
        Ok(zone) => {
            let name = zone.trim_start_matches(':');
            let path =
                if name.starts_with('/') { name.to_owned() } else { format!("/usr/share/zoneinfo/{name}") };
            fs::read(path)
        }
        Err(_) => fs::read("/etc/localtime"),
    };
    file.ok().and_then(|bytes| parse(&bytes, unix_sec)).unwrap_or(0)
}

/// Looks up a TZif file: the 64-bit part of version 2 and later.
fn parse(bytes: &[u8], unix_sec: i64) -> Option<i64> {
    const HEADER: usize = 44;
    let count = |bytes: &[u8], field: usize| -> Option<usize> {
        let at = 20 + field * 4;
        Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    if bytes.get(..4)? != b"TZif" || *bytes.get(4)? < b'2' {
        return None;
    }
    // Fields: isutc, isstd, leap, times, types, characters. The first part has times of 4 bytes.
    let first = HEADER
        + count(bytes, 3)? * 5
        + count(bytes, 4)? * 6
        + count(bytes, 5)?
        + count(bytes, 2)? * 8
        + count(bytes, 1)?
        + count(bytes, 0)?;
    let bytes = bytes.get(first..)?;
    let (times, types) = (count(bytes, 3)?, count(bytes, 4)?);
    let time = |i: usize| -> Option<i64> {
        let at = HEADER + i * 8;
        Some(i64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let mut kind = 0;
    for i in 0..times {
        if time(i)? > unix_sec {
            break;
        }
        kind = usize::from(*bytes.get(HEADER + times * 8 + i)?);
    }
    let at = HEADER + times * 9 + kind.min(types.saturating_sub(1)) * 6;
    Some(i64::from(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

/// Year, month and day of a number of days since 1970-01-01.
pub fn civil(days: i64) -> (i64, u32, u32) {
    // Years that begin in March put the leap day at the end.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}
