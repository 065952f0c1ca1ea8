//! Proves an image consistent: counts every reference and compares with the refcounts.
//!
//! Reads metadata in large sequential pieces past the caches. Memory follows what the file really references:
//! counts live in chunks made on first touch, L1 entries are collected and each distinct L2 table is read
//! once, in file order, with its multiplicity; so a header's claims cost nothing.

mod bitmaps;
mod counts;
mod entries;
mod scan;
mod stored;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{CheckReport, Error, ErrorKind, Fix, Result};

use crate::engine::{Engine, NO_CAUSE};
use crate::header::Incompatible;
use counts::Counts;
use stored::Stored;

/// Findings kept as lines; beyond that they are only counted.
const FINDINGS_MAX: usize = 100_000;

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("the image was not shut down cleanly, and {0} of its tables' entries are damaged; see check")]
    Damaged(u64),
    #[error("the image is read-only and cannot be repaired")]
    ReadOnly,
}

/// Checks an image, and repairs refcounts as `fix` allows.
///
/// # Errors
/// The file's; or a repair of an image that is read-only.
pub(crate) async fn run(engine: &Arc<Engine>, fix: Fix) -> Result<CheckReport> {
    if fix != Fix::None && !engine.writable.load(Ordering::SeqCst) {
        return Err(Error::new(ErrorKind::ReadOnly, CheckError::ReadOnly));
    }
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    if engine.writable.load(Ordering::SeqCst) {
        engine.flush().await?;
        engine.write_refcounts().await?;
    }
    let mut pass = Pass::run(engine).await?;
    if fix == Fix::None {
        return Ok(pass.report);
    }
    if let Err(corruption) = engine.map_metadata().await? {
        // Refcounts could not be written without hitting something else.
        pass.corruption(format!("ERROR {corruption}"));
    }
    if pass.structural() > 0 {
        engine
            .tell("qcow2: this version of cowbell repairs refcounts only, and not while tables are damaged");
        return Ok(pass.report);
    }
    let found = std::mem::take(&mut pass.report.findings);
    if fix == Fix::All {
        raise(engine, &pass).await?;
    }
    lower(engine, &pass).await?;
    engine.settle_refcounts().await?;
    let mut after = Pass::run(engine).await?.report;
    if fix == Fix::All && after.corruptions > 0 {
        engine.tell("qcow2: this version of cowbell repairs refcounts only; the corruptions above remain");
    }
    after.leaks_fixed = pass.report.leaks.saturating_sub(after.leaks);
    after.corruptions_fixed = pass.report.corruptions.saturating_sub(after.corruptions);
    after.findings.splice(0..0, found.into_iter().map(|line| line.replacen("Leaked", "Repairing", 1)));
    Ok(after)
}

/// Makes refcounts exact on a writable open of an image that was not shut down cleanly.
pub(crate) async fn repair_refcounts(engine: &Arc<Engine>) -> Result<()> {
    let pass = Pass::run(engine).await?;
    if let Err(corruption) = engine.map_metadata().await? {
        return Err(engine.report(corruption).await);
    }
    if pass.structural() > 0 {
        return Err(Error::new(ErrorKind::Corrupt, CheckError::Damaged(pass.structural())));
    }
    raise(engine, &pass).await?;
    lower(engine, &pass).await?;
    engine.settle_refcounts().await?;
    debug_assert!(!engine.state.lock().header.incompatible.contains(Incompatible::DIRTY));
    Ok(())
}

/// Raises refcounts that are too low. First, and durably: a cut then leaves leaks at worst (promise M5).
async fn raise(engine: &Arc<Engine>, pass: &Pass) -> Result<()> {
    for (cluster, count) in &pass.too_low {
        engine.decide(NO_CAUSE, |state| state.set_refcount(*cluster, *count)).await?;
    }
    engine.write_refcounts().await?;
    engine.barrier().await
}

/// Lowers refcounts that are too high.
async fn lower(engine: &Arc<Engine>, pass: &Pass) -> Result<()> {
    for (clusters, count) in &pass.too_high {
        for cluster in clusters.clone() {
            engine.decide(NO_CAUSE, |state| state.set_refcount(cluster, *count)).await?;
        }
    }
    let mut state = engine.state.lock();
    state.hint = 0;
    state.stop_packing(&(0..u64::MAX));
    drop(state);
    Ok(())
}

/// One look at everything.
struct Pass {
    counts: Counts,
    stored: Stored,
    report: CheckReport,
    refcount_max: u64,
    cluster_bits: u32,
    wrong_flags: Vec<String>,
    wrong_flags_omitted: u64,
    wrong_flag_count: u64,
    /// Clusters with too low a refcount, and what it should be.
    too_low: Vec<(u64, u64)>,
    /// Runs of clusters with too high a refcount, and what it should be.
    too_high: Vec<(std::ops::Range<u64>, u64)>,
}

impl Pass {
    async fn run(engine: &Arc<Engine>) -> Result<Self> {
        let mut pass = Self {
            counts: Counts::new(),
            stored: Stored::open(engine).await?,
            report: CheckReport::default(),
            refcount_max: engine.geometry.refcount_max(),
            cluster_bits: engine.geometry.cluster_bits,
            wrong_flags: Vec::new(),
            wrong_flags_omitted: 0,
            wrong_flag_count: 0,
            too_low: Vec::new(),
            too_high: Vec::new(),
        };
        pass.scan(engine).await?;
        pass.compare(engine).await?;
        // The reference tells wrong flags after wrong refcounts.
        let (flags, more) = (std::mem::take(&mut pass.wrong_flags), pass.wrong_flags_omitted);
        pass.wrong_flag_count = flags.len() as u64 + more;
        flags.into_iter().for_each(|line| pass.corruption(line));
        pass.report.corruptions += more;
        pass.report.findings_omitted += more;
        Ok(pass)
    }

    /// Corruptions other than wrong refcounts and the flags that follow from them.
    fn structural(&self) -> u64 {
        self.report.corruptions - self.too_low.len() as u64 - self.wrong_flag_count
    }

    fn find(&mut self, line: String) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(line);
        } else {
            self.report.findings_omitted += 1;
        }
    }

    fn wrong_flag(&mut self, line: String) {
        if self.wrong_flags.len() < FINDINGS_MAX {
            self.wrong_flags.push(line);
        } else {
            self.wrong_flags_omitted += 1;
        }
    }

    fn corruption(&mut self, line: String) {
        self.report.corruptions += 1;
        self.find(line);
    }
}
