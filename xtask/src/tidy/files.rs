//! Size, tabs, blanks, marks of unfinished work.

use super::source::{Source, has_word};

/// Most lines of a file of ours. One that nears it has a second duty somewhere inside.
const LINES_MAX: usize = 1000;
/// Macros that mark unfinished or forgotten work. Spelled in two parts, or this file would offend.
const UNFINISHED: [&str; 3] = [concat!("todo", "!"), concat!("unimplemented", "!"), concat!("dbg", "!")];

/// Offences against the rules of this module.
pub fn check(sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(offences).collect()
}

fn offences(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut offences = Vec::new();
    let lines = source.text.lines().count();
    if source.is_rust() && lines > LINES_MAX {
        offences.push(format!("{path}: {lines} lines, and at most {LINES_MAX} are allowed"));
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        offences.push(format!("{path}: the last line has no end"));
    }
    for (index, line) in source.text.lines().enumerate() {
        let number = index + 1;
        if line.contains('\t') {
            offences.push(format!("{path}:{number}: a tab"));
        }
        if line.ends_with(' ') {
            offences.push(format!("{path}:{number}: a blank at the end of the line"));
        }
        if source.is_rust() && UNFINISHED.iter().any(|mark| has_word(line, mark)) {
            offences.push(format!("{path}:{number}: unfinished work: {}", line.trim()));
        }
    }
    offences
}

#[cfg(test)]
mod tests {
    use super::super::source::source;
    use super::*;

    fn check_one(path: &str, text: &str, expect: usize) {
        let found = check(&[source(path, text)]);
        assert_eq!(found.len(), expect, "{text:?}: {found:?}");
    }

    #[test]
    fn each_rule_strikes() {
        check_one("a.rs", "fn a() {}\n", 0);
        check_one("a.rs", "\tfn a() {}\n", 1);
        check_one("a.md", "text \n", 1);
        check_one("a.md", "text", 1);
        check_one("a.rs", &format!("fn a() {{ {}(); }}\n", UNFINISHED[0]), 1);
        check_one("a.rs", &"x\n".repeat(LINES_MAX + 1), 1);
        check_one("a.md", &"x\n".repeat(LINES_MAX + 1), 0);
    }
}
