//! Check and repair, held against the independent checker.

use cowbell_block::{Access, CheckReport, Fix, MemNode, Node};
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

/// A second repair finds nothing left that the first could have repaired, and one that is cut can be run again and ends
/// as right.
pub fn repair(file: &CountingFile, choices: &mut Choices<'_>) -> Result<(), String> {
    let copy = (file.len() <= BYTES_MAX).then(|| file.memory().content());
    let Some(Ok(first)) = repaired(file)? else { return Ok(()) };
    let Some(second) = repaired(file)? else { return Err("a repaired image does not open".into()) };
    if let Ok(report) = second
        && report.corruptions_fixed + report.leaks_fixed > 0
    {
        return Err(format!(
            "a second repair still repairs [{} corruptions, {} leaks; {:?}]",
            report.corruptions_fixed,
            report.leaks_fixed,
            report.findings.first()
        ));
    }
    match copy {
        Some(content) if is_right(&first) => repair_cut(&content, choices.below(CHANGES_MAX)),
        _ => Ok(()),
    }
}

/// Repairs are cut within so many changes: most have fewer.
const CHANGES_MAX: u64 = 16;

/// What a repair of an image says; `None` when the image does not open.
fn repaired(file: &CountingFile) -> Result<Option<cowbell_block::Result<CheckReport>>, String> {
    let options = OpenOptions { skip_repair: true, ..OpenOptions::default() };
    let Some(image) = opened(file, Access::ReadWrite, options)? else { return Ok(None) };
    let report = wait("repair", image.check(Fix::All))?;
    let _ = wait("close", image.close())?;
    Ok(Some(report))
}

fn is_right(report: &CheckReport) -> bool {
    report.corruptions + report.leaks + report.check_errors == 0
}

/// Cuts the repair of an image that can be repaired, and repairs again.
fn repair_cut(content: &[u8], changes: u64) -> Result<(), String> {
    let file = CountingFile::new(MemNode::with_content(content));
    file.cut_after(changes);
    let _ = repaired(&file)?;
    file.cut_after(u64::MAX);
    match repaired(&file)? {
        Some(Ok(report)) if is_right(&report) => Ok(()),
        Some(Ok(report)) => Err(format!(
            "a repair after a cut leaves something [after {changes} changes: {:?}]",
            report.findings.last()
        )),
        Some(Err(e)) => Err(format!("a repair after a cut fails [after {changes} changes: {e}]")),
        None => Err(format!("an image whose repair was cut does not open [after {changes} changes]")),
    }
}
