//! Proves an image consistent, and repairs it: counts every reference, compares with the refcounts, and writes right
//! what is wrong.
//!
//! | module | duty |
//! |---|---|
//! | `scan`, `walk`, `digest` | references: L1 tables, L2 tables on all cores, everything else |
//! | `counts` | how often each cluster is referenced, in memory that follows what the file really references |
//! | `blocks`, `compare` | the refcount structure, and whether it says what was counted |
//! | `flags` | COPIED flags, when some are known to be wrong |
//! | `repair`, `rebuild` | writing |
//! | `snapshots` | the snapshot table, and its repair |
//! | `log`, `topics` | counters and findings; what kinds of findings mean |
//!
//! The passes, their counters and their lines are the reference's, so that scripts find what they know. Invariants:
//! metadata is read in large sequential pieces past the caches, each L2 table once, whatever names it; a repair
//! holds the whole image and leaves nothing cached behind; a cut inside it leaves the image no worse (promise M5).

mod bitmaps;
mod blocks;
mod compare;
mod counts;
pub(crate) mod digest;
mod flags;
mod log;
mod rebuild;
mod repair;
mod scan;
mod snapshots;
mod topics;
pub(crate) mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{CheckReport, Error, ErrorKind, Fix, Result};

use crate::engine::Engine;
use crate::header::Incompatible;
use blocks::Blocks;
use compare::Comparison;
use flags::Then;
use log::Log;
use repair::Leaks;
use scan::Pass;
use snapshots::{Room, Snapshots};

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("the image was not shut down cleanly, and {0} of its tables' entries are damaged; see check")]
    Damaged(u64),
    #[error("the image is read-only and cannot be repaired")]
    ReadOnly,
}

/// Checks an image, and repairs what `fix` allows.
///
/// # Errors
/// The file's; or a repair that is impossible. What was found until then has been told by the image's notice.
pub(crate) async fn run(engine: &Arc<Engine>, fix: Fix) -> Result<CheckReport> {
    let writable = engine.writable.load(Ordering::SeqCst);
    if fix != Fix::None && !writable {
        return Err(Error::new(ErrorKind::ReadOnly, CheckError::ReadOnly));
    }
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    if writable && !engine.corrupt.load(Ordering::SeqCst) {
        engine.flush().await?;
        engine.write_refcounts().await?;
    }
    let mut log = Log::default();
    let result = check_and_settle(engine, fix, &mut log).await;
    if fix != Fix::None {
        engine.start_anew();
    }
    if result.is_err() {
        log.report.findings.iter().for_each(|line| engine.tell(line));
    }
    result.map(|()| log.report)
}

/// Makes refcounts and flags exact on a writable open of an image that was not shut down cleanly.
pub(crate) async fn repair_refcounts(engine: &Arc<Engine>) -> Result<()> {
    let mut log = Log::default();
    let result = check_and_settle(engine, Fix::All, &mut log).await;
    engine.start_anew();
    result?;
    match log.report.corruptions + log.report.check_errors {
        0 => Ok(()),
        left => Err(Error::new(ErrorKind::Corrupt, CheckError::Damaged(left))),
    }
}

/// Most times that a repair starts again.
const ROUNDS_MAX: u32 = 8;

/// Checks and repairs, until another repair would find nothing to do: one may make the file longer, and something may
/// refer to what was beyond its end and no longer is; and what cannot be repaired may refer to what was.
async fn check_and_settle(engine: &Arc<Engine>, fix: Fix, log: &mut Log) -> Result<()> {
    for round in 0..ROUNDS_MAX {
        let len = engine.file.len();
        let mut found = Log::default();
        let done = check_and_repair(engine, fix, &mut found).await;
        let again = found.is_unsettled() || found.met_beyond && engine.file.len() > len;
        match round {
            0 => *log = found,
            _ => log.follow(found),
        }
        done?;
        if fix == Fix::None || !again {
            break;
        }
        engine.start_anew();
    }
    Ok(())
}

async fn check_and_repair(engine: &Arc<Engine>, fix: Fix, log: &mut Log) -> Result<()> {
    let snapshots = Snapshots::read(engine, fix, log).await?;
    let of_snapshots = snapshots.wrong;
    let mut pass = Pass::new(engine, fix, snapshots);
    let (blocks, mut comparison) = look(&mut pass, log).await?;
    // Found wrong so far, and not yet told as wrong refcounts.
    let before = (log.report.corruptions, log.report.leaks);
    comparison.tell(log, Fix::None, &pass.counts, &engine.geometry);
    let mut rebuild = blocks.rebuild || comparison.uncounted;
    let moves = of_snapshots > 0 || rebuild && pass.snapshots.lie_in_header();
    if moves && fix == Fix::All {
        let wanted = if rebuild { Room::Uncounted } else { Room::Counted };
        rebuild |= pass.write_snapshots(&blocks, &comparison, wanted).await? == Room::Uncounted;
    }
    if rebuild && fix == Fix::All {
        (pass, comparison) = rebuild_and_look(pass, &blocks, log).await?;
    } else if fix == Fix::Leaks && (rebuild || comparison.has_lost()) {
        log.line("ERROR need to rebuild refcount structures".to_owned());
        return Err(ErrorKind::Io.into());
    } else if fix != Fix::None && log.report.corruptions + log.report.leaks > 0 {
        (log.report.corruptions, log.report.leaks) = before;
        let errors = log.report.check_errors;
        comparison.tell(log, fix, &pass.counts, &engine.geometry);
        log.report.check_errors = errors;
        let leaks = if before.0 == 0 { Leaks::GivenBack } else { Leaks::Kept };
        pass.fix_refcounts(&comparison, fix, leaks).await?;
        comparison.forget_fixed(fix);
    }
    let suspicious =
        pass.wrong_flags || comparison.wrong_flags || fix != Fix::None && (rebuild || comparison.fixed);
    if suspicious {
        check_flags(&mut pass, &comparison, log).await?;
    }
    match pass.snapshots.moved.take() {
        Some(place) => {
            log.unsettled |= pass.switch_snapshots(place).await?;
            log.report.corruptions_fixed += of_snapshots;
        }
        None => log.report.corruptions += of_snapshots,
    }
    log.report.image_end_offset = comparison.end() << engine.geometry.cluster_bits;
    if fix != Fix::None && log.report.corruptions + log.report.check_errors == 0 {
        mark_consistent(engine).await?;
    }
    Ok(())
}

/// Counts and compares.
async fn look(pass: &mut Pass, log: &mut Log) -> Result<(Blocks, Comparison)> {
    pass.scan(log).await?;
    log.met_beyond |= !pass.beyond.is_empty();
    let blocks = pass.scan_blocks(log).await?;
    pass.tell_overflows(log);
    pass.mend_entries(log).await?;
    let comparison = pass.compare(&blocks).await?;
    Ok((blocks, comparison))
}

/// Makes a new refcount structure, looks once more, and lowers what the old one leaves.
async fn rebuild_and_look(mut pass: Pass, blocks: &Blocks, log: &mut Log) -> Result<(Pass, Comparison)> {
    log.line("Rebuilding refcount structure".to_owned());
    pass.rebuild(&blocks.named).await?;
    let engine = pass.engine.clone();
    let (corruptions, leaks) = (log.report.corruptions, log.report.leaks);
    let snapshots = pass.snapshots;
    drop((pass.counts, pass.header));
    let report = &mut log.report;
    (report.corruptions, report.leaks, report.check_errors) = (0, 0, 0);
    (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) = (0, 0, 0);
    let mut pass = Pass::new(&engine, Fix::None, snapshots);
    let (again, mut comparison) = look(&mut pass, log).await?;
    if again.rebuild || comparison.has_lost() {
        log.line("ERROR rebuilt refcount structure is still broken".to_owned());
    }
    let fixed = (log.report.leaks_fixed, log.report.corruptions_fixed);
    comparison.tell(log, Fix::All, &pass.counts, &engine.geometry);
    // What the rebuild itself left behind is no repair to speak of.
    (log.report.leaks_fixed, log.report.corruptions_fixed) = fixed;
    pass.fix_refcounts(&comparison, Fix::All, Leaks::Kept).await?;
    comparison.forget_fixed(Fix::All);
    pass.fix = Fix::All;
    let report = &mut log.report;
    report.corruptions_fixed += corruptions.saturating_sub(report.corruptions);
    report.leaks_fixed += leaks.saturating_sub(report.leaks);
    Ok((pass, comparison))
}

async fn check_flags(pass: &mut Pass, comparison: &Comparison, log: &mut Log) -> Result<()> {
    let report = &log.report;
    let then = match pass.fix {
        // Only where the refcounts are known to be right by now.
        Fix::Leaks if report.check_errors + report.corruptions + report.leaks == 0 => Then::Repair,
        Fix::All => Then::Repair,
        Fix::None | Fix::Leaks => Then::Tell,
    };
    let wrong = pass.check_flags(log, comparison, then).await?;
    match then {
        Then::Repair => pass.fix_flags(log, &wrong).await,
        Then::Tell => {
            log.report.corruptions += wrong.count;
            Ok(())
        }
    }
}

/// Says in the header that nothing is wrong any more, if it says otherwise.
async fn mark_consistent(engine: &Arc<Engine>) -> Result<()> {
    let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
    if engine.state.lock().header.incompatible.intersects(marks) {
        engine.barrier().await?;
        engine.update_header(|header| header.incompatible -= marks).await?;
        engine.barrier().await?;
        engine.corrupt.store(false, Ordering::SeqCst);
    }
    Ok(())
}

impl Engine {
    /// Forgets all that was known of the file but its header: a repair changed it past the caches.
    fn start_anew(&self) {
        let file_len = self.file.len();
        let mut state = self.state.lock();
        state.l1.forget(0..u64::MAX);
        state.l2.forget(0..u64::MAX);
        state.reftable.forget(0..u64::MAX);
        state.refblocks.forget(0..u64::MAX);
        state.meta = None;
        state.hint = 0;
        state.stop_packing(&(0..u64::MAX));
        state.virgin_from = file_len.next_multiple_of(self.geometry.cluster_size());
    }
}
