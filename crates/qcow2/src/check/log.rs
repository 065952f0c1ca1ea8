//! What a check found: counters, and lines for people in the order of the reference.

use cowbell_block::{CheckReport, Finding};

/// Findings kept as lines; beyond that they are only counted.
const LINES_MAX: usize = 100_000;

/// The report while it is being made.
#[derive(Default)]
pub(super) struct Log {
    pub report: CheckReport,
    /// Something refers to what lies beyond the end of the file.
    pub met_beyond: bool,
    /// The repair changed refcounts that flags depend on after it had looked at the flags.
    pub unsettled: bool,
}

/// Where a finding about a mapping belongs: the L1 table (0 is the active one), its entry, the L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub owner: u32,
    pub l1_index: u32,
    /// 0 is the L1 entry itself, `n + 1` entry `n` of the L2 table.
    pub entry: u32,
}

/// Findings that are made in the order of the file and told in the order of the tables.
#[derive(Default)]
pub(super) struct Unsorted {
    lines: Vec<(Place, Finding)>,
    omitted: u64,
}

impl Unsorted {
    /// Adds a line that is told `times` times.
    pub fn add(&mut self, place: Place, times: u64, line: &dyn Fn() -> Finding) {
        let room = (LINES_MAX - self.lines.len()) as u64;
        for _ in 0..times.min(room) {
            self.lines.push((place, line()));
        }
        self.omitted += times.saturating_sub(room);
    }

    /// Tells the lines in their order.
    pub fn tell(mut self, log: &mut Log) {
        self.lines.sort_by_key(|(place, _)| *place);
        self.lines.into_iter().for_each(|(_, line)| log.line(line));
        log.report.findings_omitted += self.omitted;
    }
}

impl Log {
    /// Whether something was repaired and something else could not be, which may look different now.
    pub fn is_unsettled(&self) -> bool {
        let CheckReport { corruptions, leaks, check_errors, .. } = self.report;
        self.unsettled || self.has_repaired() && corruptions + leaks + check_errors > 0
    }

    fn has_repaired(&self) -> bool {
        self.report.corruptions_fixed + self.report.leaks_fixed > 0
    }

    /// Goes on with what a further round found; all of it told already unless the round repaired something.
    pub fn follow(&mut self, next: Self) {
        let repaired = next.has_repaired();
        let before = std::mem::replace(self, next);
        let report = &mut self.report;
        if !repaired {
            (report.findings, report.findings_omitted) = (Vec::new(), 0);
        }
        report.corruptions_fixed += before.report.corruptions_fixed;
        report.leaks_fixed += before.report.leaks_fixed;
        report.findings.splice(0..0, before.report.findings);
        report.findings_omitted += before.report.findings_omitted;
    }

    /// Whether further lines are only counted.
    pub fn is_full(&self) -> bool {
        self.report.findings.len() >= LINES_MAX
    }

    /// A line that counts as nothing.
    pub fn line(&mut self, line: impl Into<Finding>) {
        self.line_with(|| line.into());
    }

    /// A line that is made only if there is room for it.
    pub fn line_with(&mut self, line: impl FnOnce() -> Finding) {
        match self.is_full() {
            false => self.report.findings.push(line()),
            true => self.report.findings_omitted += 1,
        }
    }

    /// A corruption.
    pub fn corruption(&mut self, line: impl Into<Finding>) {
        self.report.corruptions += 1;
        self.line(line);
    }

    /// Something that could not be checked.
    pub fn error(&mut self, line: impl Into<Finding>) {
        self.report.check_errors += 1;
        self.line(line);
    }
}
