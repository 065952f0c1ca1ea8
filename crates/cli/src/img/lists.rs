//! Lists: what the values of `-o` are, before anybody knows the options (`key=value` and words, commas in values doubled),
//! and which formats there are.

use anyhow::{Result, bail};

/// Whether the value of `-o` asks for the list of options.
pub(super) fn asks_for_help(list: &str) -> bool {
    let mut rest = list;
    while !rest.is_empty() {
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        if matches!(&rest[..end], "help" | "?") {
            return true;
        }
        rest = match rest[end..].strip_prefix('=') {
            Some(value) => &value[value_len(value)..],
            None => &rest[end..],
        };
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    false
}

/// The length of a value: up to the next comma that is not doubled.
fn value_len(text: &str) -> usize {
    let mut at = 0;
    while let Some(comma) = text[at..].find(',') {
        at += comma;
        if !text[at + 1..].starts_with(',') {
            return at;
        }
        at += 2;
    }
    text.len()
}

/// Refuses `-o` values that would hide a mistake: an empty list, or one that ends in the middle.
///
/// # Errors
/// Names the list.
pub(super) fn check_lists<'a>(mut lists: impl Iterator<Item = &'a str>) -> Result<()> {
    match lists.find(|list| !is_list(list)) {
        Some(list) => bail!("Invalid option list: {list}"),
        None => Ok(()),
    }
}

/// Whether this is a list of words without an empty one, or one that begins with a comma of its own (doubled).
fn is_list(list: &str) -> bool {
    let mut rest = list;
    loop {
        let len = value_len(rest);
        if len == 0 || rest.starts_with(",,") {
            return false;
        }
        match rest[len..].strip_prefix(',') {
            Some(more) => rest = more,
            None => return true,
        }
    }
}

/// Columns of the list of formats.
const WIDTH: usize = 76;

/// The formats below the help, in the words that scripts look for.
pub(super) fn formats(names: &[&str]) -> String {
    let mut out = "\nSupported image formats:\n\n ".to_owned();
    let mut column = 1;
    for name in names {
        if column + 1 + name.len() > WIDTH {
            out.push_str("\n ");
            column = 1;
        }
        out.push(' ');
        out.push_str(name);
        column += 1 + name.len();
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_a_word_of_its_own() {
        for list in ["help", "?", "a=1,help", "help,a=1", "help,,", "backing_file=x,?"] {
            assert!(asks_for_help(list), "{list}");
        }
        for list in ["", "a=help", "backing_file=x,,help", "backing_file=x,,,,?", "helper"] {
            assert!(!asks_for_help(list), "{list}");
        }
    }

    #[test]
    fn lists_have_no_empty_words() {
        for list in ["a", "a=1", "a=1,b=2", "a=x,,", "a=x,,,,b", "help,,"] {
            assert!(is_list(list), "{list}");
        }
        for list in ["", ",", ",,", ",a", "a,", ",,a", "a=x,,,", "a,,,b,"] {
            assert!(!is_list(list), "{list}");
        }
    }
}
