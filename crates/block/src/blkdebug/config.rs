//! Rule files of `blkdebug`: sections, and keys with quoted values.
//!
//! The reference reads them with `sscanf`, and scripts live with what that accepts: a value without quotes is
//! empty, and a line whose `=` is not set apart by blanks is a key as a whole.

use super::rules::{Rule, RuleError, Section};

/// Longest line in bytes, its newline included; the rest counts as the next line.
const LINE_BYTES_MAX: usize = 1023;
/// Longest name of a section or key in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A file that holds no rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No such section.
    #[error("There is no option group '{0}'")]
    Group(String),
    /// A key before the first section.
    #[error("no group defined")]
    NoGroup,
    /// Neither section, key, comment nor empty.
    #[error("parse error")]
    Parse,
    /// A rule that is none.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

/// The rules in a file.
///
/// # Errors
/// The first line that cannot be understood, or the first rule that is none.
pub fn parse(text: &[u8]) -> Result<Vec<Rule>, ConfigError> {
    let mut groups: Vec<(Section, Vec<(String, String)>)> = Vec::new();
    for line in lines(text) {
        if line.first().is_none_or(|b| matches!(b, b'\n' | b'#')) {
            continue;
        }
        if line[0] == b'[' {
            let name = group_name(line).ok_or(ConfigError::Parse)?;
            let section = Section::ALL.into_iter().find(|section| section.name() == name);
            groups.push((section.ok_or(ConfigError::Group(name))?, Vec::new()));
            continue;
        }
        let (key, value) = pair(line).ok_or(ConfigError::Parse)?;
        let (section, pairs) = groups.last_mut().ok_or(ConfigError::NoGroup)?;
        if !section.has(&key) {
            return Err(RuleError::Key(key).into());
        }
        pairs.push((key, value));
    }
    // Errors are injected by the rules of one kind and states set by those of the other: each kind keeps its order.
    let of = |wanted: Section| groups.iter().filter(move |(section, _)| *section == wanted);
    let rules = Section::ALL.into_iter().flat_map(of);
    rules.map(|(section, pairs)| Ok(Rule::new(*section, pairs)?)).collect()
}

/// Lines with their newlines.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|b| *b == b'\n').flat_map(|line| line.chunks(LINE_BYTES_MAX))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `[name "id"]` or `[name]`; the id has no meaning.
fn group_name(line: &[u8]) -> Option<String> {
    let rest = &line[1..];
    let word = rest.iter().take_while(|b| !b.is_ascii_whitespace()).count();
    let after: &[u8] = rest[word..].trim_ascii_start();
    if word > 0 && word <= NAME_BYTES_MAX && after.first() == Some(&b'"') && after.len() > 1 {
        return Some(text(&rest[..word]));
    }
    let len = rest.iter().take_while(|b| **b != b']').count().min(NAME_BYTES_MAX);
    (len > 0).then(|| text(&rest[..len]))
}

/// `key = "value"`.
fn pair(line: &[u8]) -> Option<(String, String)> {
    let line = line.trim_ascii_start();
    let word = line.iter().take_while(|b| !b.is_ascii_whitespace()).count().min(NAME_BYTES_MAX);
    if word == 0 {
        return None;
    }
    let after = line[word..].trim_ascii_start().strip_prefix(b"=").map(<[u8]>::trim_ascii_start);
    let value = after.and_then(|rest| rest.strip_prefix(b"\"")).unwrap_or_default();
    let value = &value[..value.iter().position(|b| *b == b'"').unwrap_or(value.len())];
    Some((text(&line[..word]), text(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(rules) => format!("{} rules", rules.len()),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn files_are_read_as_the_reference_reads_them() {
        // Each seen with qemu-io 10.0.2.
        for (file, expect) in [
            ("[inject-error]\nevent = \"read_aio\"\n", "1 rules"),
            ("\n#x\n\n", "0 rules"),
            ("[inject-error \"x\"]\n event = \"read_aio\"\n", "1 rules"),
            ("[inject-error]\r\nevent = \"read_aio\"\r\n", "1 rules"),
            ("[inject-error]\n", "Missing event name for rule"),
            ("[inject-error]\nevent = \"foo\"\n", "invalid parameter value: foo"),
            ("[foo]\n", "There is no option group 'foo'"),
            ("event = \"x\"\n", "no group defined"),
            ("[inject-error]\nfoo = \"x\"\n", "Invalid parameter 'foo'"),
            ("[inject-error]\nevent = read_aio\n", "invalid parameter value: "),
            ("[inject-error]\n event=\"read_aio\"\n", "Invalid parameter 'event=\"read_aio\"'"),
            ("  \n", "parse error"),
            ("[inject-error\nevent=\"read_aio\"\n", "There is no option group 'inject-error\n'"),
        ] {
            assert_eq!(outcome(file), expect, "{file:?}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for text in [&b"[\n"[..], b"[", b"[]\n", b"\xff\xfe = \"\xff\"\n", b"[a \"\n", b"=\n", b"[ \"\"]\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&vec![b'['; 1 << 16]).is_err());
    }
}
