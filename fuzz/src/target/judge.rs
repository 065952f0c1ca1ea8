//! Check and repair, held against the independent checker.

use cowbell_block::{Access, Fix, Node};
use cowbell_checker::{Finding, Limits, Report, Severity, Verdict};
use cowbell_qcow2::OpenOptions;

use super::{must_be_untouched, opened, wait};
use crate::choices::Choices;
use crate::file::CountingFile;

/// A check changes nothing, and never calls clean what the independent checker calls corrupt.
pub fn check(file: &CountingFile, _: &mut Choices<'_>) -> Result<(), String> {
    let Some(image) = opened(file, Access::ReadOnly, OpenOptions::default())? else { return Ok(()) };
    let report = wait("check", image.check(Fix::None))?;
    let _ = wait("close", image.close())?;
    must_be_untouched(file)?;
    let Ok(report) = report else { return Ok(()) };
    let Some(other) = verdict(file, BYTES_MAX) else { return Ok(()) };
    let ours_clean = report.corruptions == 0 && report.check_errors == 0;
    let ours_bad =
        |line: &cowbell_block::Finding| line.starts_with("ERROR") && !line.contains("OFLAG_COPIED");
    match other.verdict() {
        Verdict::Corrupt if ours_clean => {
            match other.findings().iter().find(|finding| counts(finding, &other, file)) {
                Some(finding) => {
                    let kind = without_numbers(&finding.to_string());
                    Err(format!("the independent checker finds more: {kind} [{finding}]"))
                }
                None => Ok(()),
            }
        }
        // A flag that could be set and is not only costs speed: an error for the reference and for us alone.
        Verdict::Clean if report.findings.iter().any(ours_bad) => {
            Err(format!("the independent checker finds it clean [{:?}]", report.findings.first()))
        }
        _ => Ok(()),
    }
}

/// Longest file that is shown to the independent checker as a whole.
const BYTES_MAX: u64 = 1 << 20;

/// What the independent checker says; nothing when it refuses, or the file is too long.
fn verdict(file: &CountingFile, bytes_max: u64) -> Option<Report> {
    if file.len() > bytes_max {
        return None;
    }
    cowbell_checker::check(&file.memory().content(), Limits::default()).ok()
}

/// Whether our check, which is the reference's, must find it as well.
///
/// It need not where the class is none there (`Class::severity_in_reference`), nor what begins less than a cluster
/// beyond the end of the file: a file may end inside its last cluster, which reads as zeroes then.
fn counts(finding: &Finding, report: &Report, file: &CountingFile) -> bool {
    let class = finding.class();
    let both = [class.severity_in_reference(), class.severity()];
    let (Finding::TableBeyondEof { offset, .. } | Finding::DataBeyondEof { offset, .. }) = finding else {
        return both == [Severity::Corruption; 2];
    };
    *offset >= file.len() + report.summary.cluster_size
}

/// Whether an image is sound, by the independent checker's word, before something is done with it.
pub struct Soundness(bool);

impl Soundness {
    /// Of the image as it is now. One that was not shut down cleanly does not count.
    pub fn of(file: &CountingFile) -> Self {
        let sound = |report: &Report| report.verdict() != Verdict::Corrupt && !report.summary.dirty;
        Self(verdict(file, BYTES_MAX).is_some_and(|report| sound(&report)))
    }

    /// A sound image is sound afterwards.
    pub fn must_last(self, file: &CountingFile) -> Result<(), String> {
        let Some(report) = verdict(file, 16 * BYTES_MAX).filter(|_| self.0) else { return Ok(()) };
        if report.verdict() != Verdict::Corrupt {
            return Ok(());
        }
        let bad = report.findings().iter().find(|finding| finding.severity() == Severity::Corruption);
        let finding = bad.map(ToString::to_string).unwrap_or_default();
        Err(format!("a sound image is no longer: {} [{finding}]", without_numbers(&finding)))
    }
}

/// The words of a finding, which are the same for all of its kind.
fn without_numbers(line: &str) -> String {
    let words = line.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// A second repair finds nothing left that the first could have repaired.
pub fn repair(file: &CountingFile, _: &mut Choices<'_>) -> Result<(), String> {
    let options = OpenOptions { skip_repair: true, ..OpenOptions::default() };
    let Some(image) = opened(file, Access::ReadWrite, options.clone())? else { return Ok(()) };
    let first = wait("repair", image.check(Fix::All))?;
    let _ = wait("close", image.close())?;
    if first.is_err() {
        return Ok(());
    }
    let Some(image) = opened(file, Access::ReadWrite, options)? else {
        return Err("a repaired image does not open".into());
    };
    let second = wait("second repair", image.check(Fix::All))?;
    let _ = wait("close", image.close())?;
    match second {
        Ok(report) if report.corruptions_fixed + report.leaks_fixed > 0 => Err(format!(
            "a second repair still repairs [{} corruptions, {} leaks; {:?}]",
            report.corruptions_fixed,
            report.leaks_fixed,
            report.findings.first()
        )),
        _ => Ok(()),
    }
}
