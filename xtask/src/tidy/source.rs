//! The files of the tree, and what of them is code that ships.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// One file of ours.
#[derive(Debug)]
pub struct Source {
    /// Its path from the workspace's root.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Endings of the files that a person reads as text. Others, such as corpora, have rules of their own.
const TEXT: [&str; 5] = ["rs", "toml", "md", "sh", "txt"];

/// All text files that git knows, or would know after `git add`.
pub fn all() -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("starting git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in names.split('\0').filter(|path| is_text(path)) {
        // A file that is removed but not yet committed as removed is no file of ours any more.
        if let Ok(text) = std::fs::read_to_string(path) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}

fn is_text(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| TEXT.contains(&ending)) || path.starts_with(".ci/")
}

impl Source {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The crate below `crates/` it belongs to.
    pub fn krate(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split_once('/').map(|(name, _)| name)
    }

    /// Whether the whole file is for tests, examples or benches only.
    pub fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        ["/tests/", "/examples/", "/benches/"].iter().any(|part| self.path.contains(part))
            || matches!(name, "tests.rs" | "testing.rs" | "build.rs")
            || name.ends_with("_tests.rs")
    }

    /// Numbered lines of code that ships: no test files, nothing below the unit tests' mark, no comments.
    pub fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let ships = self.is_rust() && !self.is_test_file();
        self.text
            .lines()
            .take_while(move |line| ships && line.trim_end() != "#[cfg(test)]")
            .enumerate()
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }
}

/// Whether `word` stands in `line` with nothing of a name around it.
pub fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let starts_name = word.starts_with(is_name);
    let ends_name = word.ends_with(is_name);
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !(starts_name && before.is_some_and(is_name) || ends_name && after.is_some_and(is_name))
    })
}

#[cfg(test)]
pub fn source(path: &str, text: &str) -> Source {
    Source { path: path.into(), text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_comments_do_not_ship() {
        let text = "use a; // b\n/// c\nfn d() {}\n#[cfg(test)]\nmod tests {}\n";
        let shipped: Vec<_> =
            source("crates/x/src/lib.rs", text).shipped_lines().map(|(n, l)| (n, l.to_owned())).collect();
        assert_eq!(shipped, [(1, "use a; ".into()), (2, String::new()), (3, "fn d() {}".into())]);
        assert_eq!(source("crates/x/tests/a.rs", text).shipped_lines().count(), 0);
        assert_eq!(source("crates/x/src/a_tests.rs", text).shipped_lines().count(), 0);
    }

    #[test]
    fn a_word_stands_alone() {
        assert!(has_word("let x: f64 = 1.0;", "f64"));
        assert!(!has_word("visit_f64(x)", "f64"));
        assert!(has_word("std::env::var(x)", "std::env"));
        assert!(!has_word("std::environment", "std::env"));
    }
}
