//! The outcome of a check.

use std::fmt;

use crate::finding::{CLASSES, Class, Finding, Severity};

/// The outcome of a check in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing but notes.
    Clean,
    /// Space is lost, nothing else.
    LeaksOnly,
    /// At least one corruption.
    Corrupt,
}

/// Everything a check found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Numbers about the image.
    pub summary: Summary,
    findings: Vec<Finding>,
    findings_max: usize,
    counts: [u64; CLASSES],
}

/// Numbers about an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// The dirty bit: refcounts need not be consistent.
    pub dirty: bool,
    /// The corrupt bit. It is no finding by itself.
    pub marked_corrupt: bool,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Distinct L2 tables.
    pub l2_tables: u64,
    /// Entries that name a host cluster (or one in the data file), each L2 table counted once.
    pub data_entries: u64,
    /// Entries that name a compressed cluster, each L2 table counted once.
    pub compressed_entries: u64,
    /// End of the last cluster with a refcount other than zero, in bytes.
    pub image_end_offset: u64,
}

impl Report {
    /// The findings kept, at most [`Limits::findings_max`](crate::Limits::findings_max).
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many findings of a class there are, also those not kept.
    pub fn count(&self, class: Class) -> u64 {
        self.counts.get(class as usize).copied().unwrap_or(0)
    }

    /// How many findings were counted but not kept.
    pub fn dropped(&self) -> u64 {
        let total = self.counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        total.saturating_sub(u64::try_from(self.findings.len()).unwrap_or(u64::MAX))
    }

    /// Number of leaked clusters.
    pub fn leaks(&self) -> u64 {
        self.total(Severity::Leak)
    }

    /// Number of corruptions.
    pub fn corruptions(&self) -> u64 {
        self.total(Severity::Corruption)
    }

    /// The verdict with each class at its own severity.
    pub fn verdict(&self) -> Verdict {
        self.verdict_with(Class::severity)
    }

    /// The verdict with severities of the caller's choice, for example
    /// [`Class::severity_when_dirty`] for an image with lazy refcounts that was not closed.
    pub fn verdict_with(&self, severity: impl Fn(Class) -> Severity) -> Verdict {
        let found = Class::ALL.into_iter().filter(|class| self.count(*class) > 0).map(severity);
        match found.max() {
            None | Some(Severity::Note) => Verdict::Clean,
            Some(Severity::Leak) => Verdict::LeaksOnly,
            Some(Severity::Corruption) => Verdict::Corrupt,
        }
    }

    pub(crate) fn reset(&mut self, findings_max: usize) {
        self.summary = Summary::default();
        self.findings.clear();
        self.findings_max = findings_max;
        self.counts = [0; CLASSES];
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if let Some(count) = self.counts.get_mut(finding.class() as usize) {
            *count = count.saturating_add(1);
        }
        if self.findings.len() < self.findings_max {
            self.findings.push(finding);
        }
    }

    fn total(&self, severity: Severity) -> u64 {
        Class::ALL
            .into_iter()
            .filter(|class| class.severity() == severity)
            .fold(0, |sum, class| sum.saturating_add(self.count(class)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if self.dropped() > 0 {
            writeln!(f, "... and {} more", self.dropped())?;
        }
        write!(f, "{} corruptions, {} leaked clusters", self.corruptions(), self.leaks())
    }
}
