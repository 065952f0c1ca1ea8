//! Where a run may be cut, and how much a cut may cost.

use std::collections::BTreeSet;

use crate::scenario::Scenario;
use crate::session::Run;
use crate::timeline::Timeline;

/// Most clusters that may leak after a cut at `time`: those written since the last flush that completed began,
/// whose pointers may be lost, and those that mutations since the flush before it may have freed, since
/// counting down rides in the next flush. Lazy refcounts and failed I/Os make no such promise.
pub(crate) fn leak_bound(scenario: &Scenario, run: &Run, time: u64) -> u64 {
    if scenario.config.lazy || run.faults_struck > 0 {
        return u64::MAX;
    }
    let flushes = run.guest.flushes.borrow();
    let before: Vec<u64> = flushes.iter().filter(|(_, end)| *end <= time).map(|(start, _)| *start).collect();
    let last = before.last().copied().unwrap_or(0);
    let last_but_one = before.len().checked_sub(2).map_or(0, |i| before[i]);
    let bits = scenario.config.cluster_bits;
    let mut written = BTreeSet::new();
    for io in run.history.ios.iter().filter(|io| io.is_mutation() && io.applied.is_some_and(|t| t > last)) {
        written.extend(io.offset >> bits..(io.offset + io.len).div_ceil(1 << bits));
    }
    let model = run.guest.model.borrow();
    let per = scenario.config.cluster_sectors();
    let freed: u64 = model.touched_since(last_but_one).map(|at| at.end.div_ceil(per) - at.start / per).sum();
    // A table that a write made its own leaves the shared one behind.
    written.len() as u64 + freed + 4
}

/// The times just before something became durable, the times at which the guest was promised durability, and
/// the end. In between, the states of a cut are among those of the next such time.
pub(crate) fn cut_times(run: &Run) -> Vec<u64> {
    let mut timeline = Timeline::new(&run.history);
    let mut times = Vec::new();
    while let Some(barrier) = timeline.next_barrier() {
        timeline.advance(barrier - 1);
        if timeline.has_volatile() {
            times.push(barrier - 1);
        }
        timeline.advance(barrier);
    }
    times.extend(run.guest.durable_times.borrow().iter());
    times.push(run.end_time);
    times.sort_unstable();
    times.dedup();
    times
}
