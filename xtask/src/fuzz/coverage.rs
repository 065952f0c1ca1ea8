//! How much of the parsers the corpus reaches, line by line.
//!
//! libFuzzer runs every target once over its corpus and tells which blocks of the code were entered (`fuzz/coverage.c` lends it
//! the two functions that it asks for names of places); `addr2line` turns them into lines. What is counted:
//!
//! - the files in [`PARSERS`], which read what an image or a user wrote; of these not the functions named there, which write, tell, or
//!   run what was read;
//! - in them each line at which some block begins. A line is reached when one of its blocks was entered by any target, in any of
//!   the places where the compiler has put it;
//! - no declarations and attributes (derived code, texts of errors), no functions named `fmt`, no tests;
//! - no line that has nothing but panics left: a block that `objdump` shows to end in a call of the library's panics is the
//!   failing side of checked arithmetic, of an index or of an assertion, which no input may reach.

mod panics;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::Outcome;

/// A file that is counted, and what of it.
struct Parser {
    file: &'static str,
    /// Functions that do not parse.
    without: &'static [&'static str],
}

const fn all(file: &'static str) -> Parser {
    Parser { file, without: &[] }
}

/// What reads bytes or words from outside, by the format that it reads.
const PARSERS: &[Parser] = &[
    all("crates/block/src/blkdebug/config.rs"),
    // The file of rules is read by way of a driver that no fuzzed process has.
    Parser { file: "crates/block/src/blkdebug/options.rs", without: &["from", "read_config", "extended"] },
    Parser {
        file: "crates/block/src/blkdebug/rules.rs",
        without: &["of", "matches", "to_json", "add", "event", "check", "break_at", "forget", "remove"],
    },
    all("crates/block/src/blkdebug/words.rs"),
    all("crates/block/src/names.rs"),
    Parser { file: "crates/block/src/naming.rs", without: &["from", "location_of"] },
    all("crates/block/src/naming/tree.rs"),
    all("crates/block/src/options/de_value.rs"),
    all("crates/block/src/options/size.rs"),
    all("crates/luks/src/algorithm.rs"),
    Parser {
        file: "crates/luks/src/header.rs",
        without: &[
            "from",
            "encode",
            "slot_field",
            "key_material_bytes",
            "active_slots",
            "facts",
            "raw",
            "empty",
            "fresh_layout",
            "padded",
        ],
    },
    Parser { file: "crates/qcow2/src/bitmap/directory.rs", without: &["flags_at", "encode"] },
    all("crates/qcow2/src/bitmap/shape.rs"),
    // No fuzzed process has a key, so that what follows one is not counted here.
    Parser {
        file: "crates/qcow2/src/crypto.rs",
        without: &[
            "from",
            "open",
            "facts",
            "cipher",
            "sector",
            "decrypted",
            "legacy_cipher",
            "is_encrypted",
            "read_stored",
            "write_stored",
            "encrypt",
            "amend_keys",
            "write",
            "read_any",
            "write_any",
            "widened",
        ],
    },
    all("crates/qcow2/src/header/parse.rs"),
    Parser {
        file: "crates/qcow2/src/snapshot/rows.rs",
        without: &["new", "set_extra", "completed", "stored_len", "write_to", "put", "finish"],
    },
    Parser { file: "crates/qcow2/src/table.rs", without: &["encode", "make_zero", "with_copied_flag"] },
    Parser { file: "crates/vpc/src/footer.rs", without: &["new", "id_text"] },
    Parser { file: "crates/vpc/src/header.rs", without: &["seal"] },
    Parser { file: "crates/vpc/src/locator.rs", without: &["encode", "space"] },
];
/// Least part of the lines, in percent. It only ever rises.
const PERCENT_MIN: f64 = 95.0;

/// Lines of one file: reached, or not by anything.
#[derive(Default)]
struct Lines {
    reached: BTreeSet<usize>,
    missed: BTreeSet<usize>,
}

/// Counts and prints; fails when less than [`PERCENT_MIN`] is reached.
pub fn report(program: &Path, targets: &[(String, String)]) -> Result<Outcome> {
    let library = build_library()?;
    let (mut taken, mut known) = (BTreeSet::new(), BTreeSet::new());
    for (target, corpus) in targets {
        let text = run(program, &library, target, corpus)?;
        let before = known.len();
        for line in text.lines() {
            if let Some(offsets) = line.strip_prefix('C').filter(|rest| rest.starts_with("0x")) {
                taken.extend(offsets_in(offsets));
                known.extend(offsets_in(offsets));
            } else if let Some(offsets) = line.strip_prefix('U').filter(|rest| rest.starts_with("0x")) {
                known.extend(offsets_in(offsets));
            }
        }
        if known.len() == before && before == 0 {
            bail!("libFuzzer told no coverage of {target}:\n{text}");
        }
    }
    let files = lines_of(program, &known, &taken)?;
    Ok(print(&files))
}

fn print(files: &BTreeMap<&'static str, Lines>) -> Outcome {
    let (mut reached_in_all, mut seen_in_all) = (0, 0);
    for (file, lines) in files {
        let (reached, seen) = (lines.reached.len(), lines.reached.len() + lines.missed.len());
        reached_in_all += reached;
        seen_in_all += seen;
        println!("{file:<45} {reached:>4} of {seen:>4} lines {:>6.1} %", percent(reached, seen));
        let source = fs::read_to_string(file).unwrap_or_default();
        for line in &lines.missed {
            println!("    {line:>4} {}", source.lines().nth(line - 1).unwrap_or_default());
        }
    }
    let all = percent(reached_in_all, seen_in_all);
    println!("the corpus reaches {reached_in_all} of {seen_in_all} lines of the parsers: {all:.1} %");
    if all < PERCENT_MIN {
        return Outcome::Failed(format!(
            "the corpus reaches {all:.1} % of the parsers' lines, not {PERCENT_MIN} %"
        ));
    }
    Outcome::Passed
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// The library that libFuzzer finds names by.
fn build_library() -> Result<PathBuf> {
    fs::create_dir_all("target/fuzz").context("target/fuzz")?;
    let library = std::env::current_dir()?.join("target/fuzz/coverage.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, Path::new("fuzz/coverage.c")])
        .status()
        .context("starting cc")?;
    if status.success() { Ok(library) } else { bail!("fuzz/coverage.c does not compile") }
}

/// What libFuzzer prints about one target over its corpus.
fn run(program: &Path, library: &Path, target: &str, corpus: &str) -> Result<String> {
    let output = Command::new(program)
        .env("COWBELL_FUZZ_TARGET", target)
        .env("LD_PRELOAD", library)
        .args(["-runs=0", "-print_full_coverage=1", "-verbosity=0", "-max_len=65536"])
        .arg(format!("fuzz/corpus/{corpus}"))
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        bail!("the target {target} has a finding in its corpus:\n{text}")
    }
}

/// Offsets, written one behind the other.
fn offsets_in(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split("0x").filter_map(|digits| u64::from_str_radix(digits.trim(), 16).ok())
}

/// The parsers' lines at these offsets: each belongs to the innermost function of ours that was inlined there.
fn lines_of(
    program: &Path,
    known: &BTreeSet<u64>,
    taken: &BTreeSet<u64>,
) -> Result<BTreeMap<&'static str, Lines>> {
    let mut files: BTreeMap<&'static str, Lines> = BTreeMap::new();
    let mut missed = Vec::new();
    for (offset, file, number) in places(program, known)? {
        if taken.contains(&offset) {
            files.entry(file).or_default().reached.insert(number);
        } else {
            missed.push((offset, file, number));
        }
    }
    // libFuzzer tells the place behind the first byte of a block.
    let starts = missed.iter().map(|(offset, _, _)| offset - 1).collect();
    let panics = panics::leading_to(program, &starts)?;
    for (offset, file, number) in missed {
        if !panics.contains(&(offset - 1)) {
            files.entry(file).or_default().missed.insert(number);
        }
    }
    for lines in files.values_mut() {
        lines.missed = lines.missed.difference(&lines.reached).copied().collect();
    }
    if let Some(missing) = PARSERS.iter().find(|parser| !files.contains_key(parser.file)) {
        bail!("no line of {} is in the program: the list of parsers is out of date", missing.file);
    }
    Ok(files)
}

/// Offsets with the parsers' lines to which they belong, without the lines that are not counted.
fn places(program: &Path, known: &BTreeSet<u64>) -> Result<Vec<(u64, &'static str, usize)>> {
    let list = "target/fuzz/offsets";
    let text: String = known.iter().map(|offset| format!("{offset:#x}\n")).collect();
    fs::write(list, text).context(list)?;
    let output = Command::new("addr2line")
        .args(["-a", "-i", "-e"])
        .arg(program)
        .stdin(File::open(list).context(list)?)
        .output()
        .context("starting addr2line (Debian: binutils)")?;
    let mut uncounted: BTreeMap<&'static str, BTreeSet<usize>> = BTreeMap::new();
    let mut places = Vec::new();
    let (mut offset, mut settled) = (0, true);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(digits) = line.strip_prefix("0x") {
            offset = u64::from_str_radix(digits, 16).context("what addr2line printed")?;
            settled = false;
        } else if !settled && is_ours(line) {
            settled = true;
            let Some((parser, number)) = parser_line(line) else { continue };
            let uncounted = uncounted.entry(parser.file).or_insert_with(|| {
                source::left_out(&fs::read_to_string(parser.file).unwrap_or_default(), parser.without)
            });
            if !uncounted.contains(&number) {
                places.push((offset, parser.file, number));
            }
        }
    }
    Ok(places)
}

fn is_ours(place: &str) -> bool {
    (place.contains("crates/") || place.contains("fuzz/src/"))
        && !place.contains("/.cargo/")
        && !place.contains("/rustlib/")
}

/// `…/crates/x/src/y.rs:12 (discriminator 3)` of a parser.
fn parser_line(place: &str) -> Option<(&'static Parser, usize)> {
    let (path, number) = place.split(" (").next()?.rsplit_once(':')?;
    let parser = PARSERS.iter().find(|parser| path.ends_with(parser.file))?;
    Some((parser, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_places_are_understood() {
        assert_eq!(offsets_in("0x120x3f 0x7\n").collect::<Vec<_>>(), [0x12, 0x3f, 7]);
        let place = "/work/crates/luks/src/header.rs:87 (discriminator 2)";
        let found = |place| parser_line(place).map(|(parser, number)| (parser.file, number));
        assert_eq!(found(place), Some(("crates/luks/src/header.rs", 87)));
        assert_eq!(found("/work/crates/luks/src/node.rs:87"), None);
        assert_eq!(found("??:0"), None);
        assert!(is_ours("/work/crates/luks/src/node.rs:1") && !is_ours("/root/.cargo/x/crates/y.rs:1"));
    }
}
