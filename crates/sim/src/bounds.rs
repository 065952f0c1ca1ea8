//! Where a run may be cut, and how much a cut may cost.

use std::collections::BTreeSet;
use std::ops::Range;

use cowbell_block::Preallocation;

use crate::config::Format;
use crate::faults::Member;
use crate::scenario::{GuestOp, Scenario};
use crate::session::Run;
use crate::timeline::Timeline;
use crate::vhd;

/// Most clusters that may leak after a cut at `time` that left the dirty bit clear (T18): those written since the
/// last flush that completed began, whose pointers may be lost, and those that were freed and not yet counted down in
/// the file: that takes a flush without anybody under way who knew them, and then another one. Failed I/Os make no such
/// promise.
pub(crate) fn leak_bound(scenario: &Scenario, run: &Run, time: u64) -> u64 {
    // An interrupted amendment leaves a whole refcount structure behind, or the clusters of zeroes that got storage.
    // And VM state may take a longer L1 table, and whole tables that a change of the length takes away again.
    let unbounded = |op: &GuestOp| matches!(op, GuestOp::Amend { .. } | GuestOp::SaveState { .. });
    if run.faults_struck > 0 || scenario.ops.iter().any(unbounded) {
        return u64::MAX;
    }
    let flushes = run.guest.flushes.borrow();
    let before: Vec<u64> = flushes.iter().filter(|(_, end)| *end <= time).map(|(start, _)| *start).collect();
    let last = before.last().copied().unwrap_or(0);
    let last_but_one = before.len().checked_sub(2).map_or(0, |i| before[i]);
    let idle_times = run.guest.idle_times.borrow();
    let settled = idle_times.iter().copied().filter(|idle| *idle <= last_but_one).max().unwrap_or(0);
    let config = &scenario.config;
    let bits = config.cluster_bits;
    let mut written = BTreeSet::new();
    for io in run
        .history
        .ios
        .iter()
        .filter(|io| io.file == Member::Image && io.is_mutation() && io.applied.is_some_and(|t| t > last))
    {
        written.extend(io.offset >> bits..(io.offset + io.len).div_ceil(1 << bits));
    }
    let model = run.guest.model.borrow();
    let per = config.cluster_sectors();
    let freed: u64 = model.touched_since(settled).map(|at| at.end.div_ceil(per) - at.start / per).sum();
    // A longer disk leaves its old L1 table behind, and what an interrupted change left beyond the old end; a shorter
    // one its tail, and the tables of that.
    let targets = scenario.ops.iter().filter_map(|op| match op {
        GuestOp::Resize { to } => Some(*to),
        _ => None,
    });
    let longest = targets.chain([config.sectors]).max().unwrap_or(0);
    let left_behind = |at: Range<u64>| {
        config.l1_clusters(longest) + config.tables(longest) + longest.div_ceil(per) - at.start / per
    };
    let resized = model.resizes().filter(|(start, _)| *start > settled);
    let tables: u64 = resized.map(|(_, at)| left_behind(at)).sum();
    // A table that a write made its own leaves the shared one behind.
    written.len() as u64 + freed + tables + 4
}

/// Most bytes that the file may have (O8): what it had, what the run's live clusters and tables take at their peak,
/// and what waits in quarantine. Clusters that were freed and became free again must have been used again: the bound
/// does not grow with the number of rounds. Failed I/Os, abandoned requests, snapshots, compressed writes, bitmaps,
/// amendments and preallocation are left out.
pub(crate) fn length_bound(scenario: &Scenario, run: &Run) -> u64 {
    let unbounded = |op: &GuestOp| {
        use GuestOp::{Abandon, Amend, Compressed, SaveState, Snapshot};
        matches!(op, Abandon { .. } | Snapshot { .. } | Compressed { .. } | Amend { .. } | SaveState { .. })
    };
    let preallocated = scenario.config.preallocation != Preallocation::Off;
    if run.faults_struck > 0 || scenario.config.bitmaps || preallocated || scenario.ops.iter().any(unbounded)
    {
        return u64::MAX;
    }
    let config = &scenario.config;
    if config.format == Format::Vhd {
        return run.history.base_len.max(vhd::whole_len(config)).next_multiple_of(4096);
    }
    let per = config.cluster_sectors();
    let model = run.guest.model.borrow();
    let clusters = |at: &Range<u64>| at.start / per..at.end.div_ceil(per);
    let (mut live, mut widest) = (BTreeSet::new(), 1);
    for (_, at) in model.mutations() {
        live.extend(clusters(at));
        widest = widest.max(clusters(at).count() as u64);
    }
    // Growing hides what a longer backing file holds, with zeroes of its own where there are no zero clusters.
    model.resizes().for_each(|(_, at)| live.extend(clusters(&at)));
    let tables: BTreeSet<u64> = live.iter().map(|cluster| cluster / config.l2_entries()).collect();
    // Free again is what was freed before the last but one flush.
    let flushes: Vec<u64> = run.guest.flushes.borrow().iter().map(|(start, _)| *start).collect();
    let window = |from: usize| {
        let begin = from.checked_sub(1).map_or(0, |i| flushes[i]);
        let end = flushes.get(from + 1).copied().unwrap_or(u64::MAX);
        let inside = model.mutations().filter(|(start, at)| (begin..end).contains(start) && !at.is_empty());
        // Its clusters, and the table that it may have had to copy.
        inside.map(|(_, at)| clusters(at).count() as u64 + 1).sum::<u64>()
    };
    let waiting = (0..=flushes.len()).map(window).max().unwrap_or(0) + scenario.lanes as u64 * (widest + 1);
    let l1: u64 = model.resizes().map(|(_, at)| 2 * config.l1_clusters(at.end)).sum();
    // Gaps shorter than the longest run that is asked for in one piece may stay unused.
    let data = widest * (live.len() as u64 + 2 * tables.len() as u64 + waiting) + l1;
    let before = run.history.base_len.div_ceil(1 << config.cluster_bits);
    // What counts it all: blocks, themselves counted, and the refcount tables that named them.
    let blocks = |clusters: u64| clusters.div_ceil(config.refblock_entries() - 1);
    let table = |clusters: u64| (blocks(clusters) * 8).div_ceil(1 << config.cluster_bits);
    let new_blocks = blocks(before + data + 1) - blocks(before).min(blocks(before + data + 1)) + 1;
    let new_tables = if table(before + data + new_blocks) > table(before).max(1) {
        3 * table(before + data + new_blocks) + 2
    } else {
        0
    };
    (before + data + new_blocks + new_tables) << config.cluster_bits
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
