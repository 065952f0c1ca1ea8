//! The values of a rule's keys, from words.

use super::rules::{IoType, RuleError, SECTOR};

pub(super) fn number(text: Option<&str>, key: &'static str) -> Result<Option<u64>, RuleError> {
    let Some(text) = text else { return Ok(None) };
    c_number(text).map(Some).ok_or(RuleError::Number(key))
}

/// A number as C reads it with base 0.
fn c_number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    match text.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// Where a request must reach. `-1` is the long way to say that there is no such place.
pub(super) fn sector(text: Option<&str>) -> Result<Option<u64>, RuleError> {
    match text {
        None | Some("-1") => Ok(None),
        text => Ok(number(text, "sector")?.map(|sector| sector.saturating_mul(SECTOR))),
    }
}

pub(super) fn switch(text: Option<&str>, key: &'static str) -> Result<bool, RuleError> {
    match text {
        None => Ok(false),
        Some(word) => crate::options::BoolOpt::from_word(word).map(|b| b.0).ok_or(RuleError::Switch(key)),
    }
}

pub(super) fn iotype(word: &str) -> Result<IoType, RuleError> {
    let known = IoType::ALL.into_iter().find(|kind| kind.name() == word);
    known.ok_or_else(|| RuleError::Value(word.to_owned()))
}

/// The errors that have names: those that hosts give for storage.
const ERRNO_NAMES: [(&str, i32); 26] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("ENXIO", 6),
    ("EBADF", 9),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EFAULT", 14),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("ENODEV", 19),
    ("EINVAL", 22),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("EPIPE", 32),
    ("ENOTSUP", 95),
    ("EOPNOTSUPP", 95),
    ("ETIMEDOUT", 110),
    ("ESTALE", 116),
    ("EDQUOT", 122),
    ("ENOMEDIUM", 123),
    ("ECANCELED", 125),
    ("ESHUTDOWN", 108),
];

/// Largest code that a host gives.
const ERRNO_MAX: u64 = 4095;

pub(super) fn errno(text: &str) -> Result<i32, RuleError> {
    if let Some((_, code)) = ERRNO_NAMES.iter().find(|(name, _)| *name == text) {
        return Ok(*code);
    }
    match c_number(text) {
        Some(code) if code <= ERRNO_MAX => Ok(code as i32),
        Some(_) => Err(RuleError::Errno(text.to_owned())),
        None => Err(RuleError::Number("errno")),
    }
}
