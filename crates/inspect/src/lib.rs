//! What an untrusted file could be: every format that its bytes fit, what it would make others open, what it claims and
//! which limits that exceeds.
//!
//! | module | duty |
//! |---|---|
//! | [`source`] | the file, read in bounded pieces |
//! | `magic` | formats that are known by bytes at fixed places |
//! | `disk` | partition tables and what begins in partitions |
//! | [`mod@reference`] | names of other files, taken apart |
//! | `qcow2` | a qcow2 image, whatever is wrong with it |
//! | `other` | LUKS, VHD, VHDX, VMDK and VDI, as far as their headers go |
//!
//! Nothing here fails: what cannot be read or makes no sense is said in the [`Report`]. It is a second look at the formats
//! beside the engines, lenient where they refuse; what the engine says of a header is part of the report. Nothing is
//! opened, and memory is bounded by [`source::PIECE_MAX`] and the limits on lists, whatever the file claims.
#![forbid(unsafe_code)]

mod disk;
mod magic;
mod other;
mod qcow2;
pub mod reference;
pub mod source;

use cowbell_block::names;
use serde_json::{Map, Value};

pub use reference::Reference;
pub use source::Source;

use source::File;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It asks for more than is allowed, or for what nobody knows.
    Limit,
    /// It contradicts the format or itself.
    Broken,
    /// It is what an attack would look like.
    Danger,
}

impl Severity {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Limit => "limit",
            Self::Broken => "broken",
            Self::Danger => "danger",
        }
    }
}

/// Something that a reader should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// How bad it is.
    pub severity: Severity,
    /// A sentence.
    pub text: String,
}

/// Something that the file could be.
#[derive(Clone, Debug, Default)]
pub struct Candidate {
    /// The format: as a driver calls it, where there is one.
    pub format: String,
    /// How certain it is by its own marks, 1 to 100.
    pub certainty: u8,
    /// What speaks for it.
    pub evidence: Vec<String>,
    /// What it says of itself.
    pub facts: Map<String, Value>,
    /// What it names outside of itself.
    pub references: Vec<Reference>,
    /// What is to be said of it.
    pub remarks: Vec<Remark>,
}

impl Candidate {
    fn new(format: impl Into<String>, certainty: u8, evidence: impl Into<String>) -> Self {
        Self { format: format.into(), certainty, evidence: vec![evidence.into()], ..Self::default() }
    }

    fn fact(&mut self, key: &str, value: impl Into<Value>) {
        self.facts.insert(key.to_owned(), value.into());
    }

    fn remark(&mut self, severity: Severity, text: impl Into<String>) {
        // A hostile file could have one for each of millions of entries.
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(Remark { severity, text: text.into() });
        }
    }
}

/// Most remarks about one candidate.
const REMARKS_MAX: usize = 200;

/// All that is to be said of a file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its length in bytes.
    pub len: u64,
    /// What it could be, the most certain first; `raw` is always among them.
    pub candidates: Vec<Candidate>,
    /// What concerns the file as a whole.
    pub remarks: Vec<Remark>,
}

/// Looks at a file.
pub fn inspect(source: &dyn Source) -> Report {
    let file = File::new(source);
    let mut candidates = vec![];
    candidates.extend(qcow2::look(&file));
    candidates.extend(other::look(&file));
    candidates.extend(magic::look(&file));
    let mut raw = disk::look(&file);
    if candidates.iter().any(|candidate| candidate.certainty >= CERTAIN) {
        // What matters for a disk only.
        raw.remarks.retain(|remark| remark.severity > Severity::Note);
    }
    let mut report = Report { len: file.len(), candidates, remarks: Vec::new() };
    report.judge(&raw);
    report.candidates.push(raw);
    report.candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.certainty));
    if let Some(error) = file.failure() {
        let text = format!("a part of the file could not be read: {error}");
        report.remarks.push(Remark { severity: Severity::Broken, text });
    }
    report
}

/// Certainty from which on something counts as a format of its own, not as a hint.
const CERTAIN: u8 = 80;
/// Formats that are nothing but a wrapping of the disk: two of them at once are a contradiction.
const IMAGES: &[&str] =
    &["qcow2", "qcow", "qed", "luks", "vpc", "vhdx", "vmdk", "vdi", "parallels", "bochs", "cloop", "dmg"];

/// The fact about a candidate whose marks are at the end of the file alone.
const FOOTER_ONLY: &str = "footer-only";

impl Report {
    /// Whether programs may take the file for different things.
    pub fn is_ambiguous(&self) -> bool {
        self.remarks.iter().any(|remark| remark.severity == Severity::Danger)
    }

    /// Says where the candidates contradict each other. `raw` is what the bytes are without a format.
    fn judge(&mut self, raw: &Candidate) {
        let certain = |candidate: &&Candidate| candidate.certainty >= CERTAIN;
        let images: Vec<&str> = self
            .candidates
            .iter()
            .filter(certain)
            .map(|candidate| candidate.format.as_str())
            .filter(|format| IMAGES.contains(format))
            .collect();
        let others: Vec<&str> = self
            .candidates
            .iter()
            .filter(certain)
            .map(|candidate| candidate.format.as_str())
            .filter(|format| !IMAGES.contains(format))
            .collect();
        // A mark at the end alone leaves the disk before it as it is: there a partition table is as it should be.
        let at_start =
            |candidate: &&Candidate| !candidate.facts.contains_key(FOOTER_ONLY) && certain(candidate);
        let mut begins = self.candidates.iter().filter(at_start).map(|c| c.format.clone());
        let begins = begins.find(|format| IMAGES.contains(&format.as_str()));
        let disk = raw.facts.contains_key("partition-table");
        let mut danger = |text: String| self.remarks.push(Remark { severity: Severity::Danger, text });
        if images.len() > 1 {
            danger(format!("it is {} at once: programs may disagree about what it is", images.join(" and ")));
        }
        if let Some(image) = begins.filter(|_| disk) {
            danger(format!(
                "it begins like {image} and has a partition table: a guest with a raw disk can write such a header to \
                 make its host open other files; name the format when opening it"
            ));
        }
        if let (Some(image), false) = (images.first(), others.is_empty()) {
            danger(format!(
                "it is {image} and {} at once: programs may disagree about what it is",
                others.join(", ")
            ));
        }
    }
}

/// Text from the file, fit for a terminal.
fn text(bytes: &[u8]) -> String {
    let text = names::from_bytes(bytes);
    text.chars().flat_map(printable).collect()
}

/// A character, or how it is written where it could do harm: control characters, those that turn the direction of
/// writing, and bytes that are no text.
fn printable(c: char) -> Vec<char> {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match names::byte_of(c) {
        Some(byte) => format!("\\x{byte:02x}").chars().collect(),
        None if c.is_control() || turns => c.escape_default().collect(),
        None => vec![c],
    }
}

#[cfg(test)]
mod tests;
