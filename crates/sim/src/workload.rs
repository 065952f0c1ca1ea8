//! What guests do: random operations in random worlds, and the alphabet of the exhaustive explorer.

use std::ops::Range;

use cowbell_block::DebugEvent;

use crate::bitmaps::BitmapOp;
use crate::config::{Backing, Config, Crypt, DataPlace, Format, GIVEN_BACK, Prestate};
use crate::disk::{Atom, HostConfig};
use crate::exec::Granularity;
use crate::faults::{Fault, FaultKind, Member, Trigger};
use crate::guest::state::STATE_SECTORS;
use crate::rng::{Concern, Rng};
use crate::scenario::{Amendment, GuestOp, KeyOp, Scenario, Schedule, SnapshotOp};
use crate::vhd;

/// The scenario of a seed: a world and a workload, each drawn from its own stream (swarm testing: every seed
/// leaves out some kinds of operations, so that others meet more often).
pub fn random(seed: u64) -> Scenario {
    let config = Config::random(&mut Rng::stream(seed, Concern::Config));
    let mut rng = Rng::stream(seed, Concern::Workload);
    if rng.one_in(CHURN_ONE_IN) {
        return churn(seed, config, &mut rng);
    }
    let keys = if config.crypt == Crypt::Luks { 3 } else { 0 };
    let state = if config.vm_state { 5 } else { 0 };
    let mut weights = [8, 3, 4, 3, 3, 1, 3, 1, 2, 3, 3, 1, if config.bitmaps { 3 } else { 0 }, keys, state];
    for (weight, leave_out) in weights[1..].iter_mut().zip([3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 4, 4]) {
        if rng.one_in(leave_out) {
            *weight = 0;
        }
    }
    let mut hot = hot_clusters(&config);
    if rng.one_in(2) {
        // Everything about three clusters: requests meet.
        let first = rng.between(hot.start, hot.end.saturating_sub(3).max(hot.start));
        hot = first..hot.end.min(first + 3);
    }
    let count = rng.between(2, 14);
    let mut sectors = config.sectors;
    let mut next = || {
        let op = operation(&mut rng, &weights, &config, &hot, sectors);
        if let GuestOp::Resize { to } = &op {
            sectors = *to;
        }
        op
    };
    let ops: Vec<_> = (0..count).map(|_| next()).collect();
    let lanes = *rng.pick(&[1, 1, 2, 2, 3, 4, 8]);
    let schedule = match rng.below(5) {
        0 => Schedule::Fifo,
        1 => Schedule::Stall(rng.below(60) as u32),
        2 => Schedule::Pct(rng.between(2, 4) as u32),
        _ => Schedule::Uniform,
    };
    let faults = faults(&mut Rng::stream(seed, Concern::Faults));
    let ops = never_opened_again(ops, &faults);
    Scenario { seed, config, lanes, ops, faults, granularity: Granularity::Full, schedule, cut: None }
}

/// Sometimes one fault; mostly none, since errors hide what would have come after them.
pub(crate) fn faults(rng: &mut Rng) -> Vec<Fault> {
    if !rng.one_in(4) {
        return Vec::new();
    }
    let trigger = match rng.below(4) {
        0 => Trigger::Tagged(*rng.pick(DebugEvent::ALL), rng.below(3)),
        1 => Trigger::Budget(rng.below(8) << 10),
        _ => Trigger::Nth(rng.below(60)),
    };
    let kind = match trigger {
        Trigger::Budget(_) => FaultKind::Enospc,
        _ => *rng.pick(&FaultKind::ALL),
    };
    let on = if rng.one_in(6) { Member::Backing } else { Member::Image };
    vec![Fault { on, trigger, kind, sticky: rng.one_in(3) }]
}

/// A host that drops what a flush should have saved goes on showing it. Whoever opens the image again takes it for durable,
/// and no engine can know better: what such a host was asked to keep is not opened again before a cut.
pub(crate) fn never_opened_again(mut ops: Vec<GuestOp>, faults: &[Fault]) -> Vec<GuestOp> {
    if faults.iter().any(|fault| fault.kind == FaultKind::FlushDrops) {
        ops.retain(|op| !matches!(op, GuestOp::Reopen | GuestOp::Amend { .. }));
    }
    ops
}

/// One in so many seeds does nothing but give storage back and take it again.
const CHURN_ONE_IN: u64 = 60;

/// The same few clusters written and freed over and over: the file must not grow with the number of rounds (O8).
fn churn(seed: u64, config: Config, rng: &mut Rng) -> Scenario {
    let per = config.cluster_sectors();
    let discard = if rng.one_in(2) { GIVEN_BACK } else { 0 };
    let config = Config { sectors: config.sectors.max(8 * per), discard, ..config };
    let first = rng.below(config.clusters() - 3);
    let mut ops = Vec::new();
    for _ in 0..rng.between(30, 60) {
        let cluster = (first + rng.below(3)) * per;
        let at = clip(cluster..cluster + per, config.sectors, config.grain());
        ops.push(GuestOp::Write { at: at.clone(), fua: rng.one_in(8) });
        ops.push(match rng.below(2) {
            0 => GuestOp::Discard { at },
            _ => GuestOp::Zero { at, unmap: true, fua: false },
        });
        if !rng.one_in(4) {
            ops.push(GuestOp::Flush);
        }
    }
    Scenario { seed, config, lanes: 1, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// The clusters that a workload is about: around an L2 boundary if the disk reaches over one.
pub fn hot_clusters(config: &Config) -> Range<u64> {
    let (clusters, boundary) = (config.clusters(), config.l2_entries());
    if clusters > boundary {
        boundary.saturating_sub(6)..clusters.min(boundary + 6)
    } else {
        0..clusters.min(10)
    }
}

fn operation(rng: &mut Rng, weights: &[u64; 15], config: &Config, hot: &Range<u64>, sectors: u64) -> GuestOp {
    let mut pick = rng.below(weights.iter().sum());
    let mut kind = 0;
    while pick >= weights[kind] {
        pick -= weights[kind];
        kind += 1;
    }
    if kind == 8 {
        let to = match rng.below(3) {
            0 => sectors - rng.below(sectors / 2),
            _ => sectors + rng.between(1, growth_max(config)),
        };
        return GuestOp::Resize { to: to.next_multiple_of(config.grain()) };
    }
    if kind == 9 {
        let which = rng.below(3) as u32;
        let change = match rng.below(4) {
            0 if config.vm_state => SnapshotOp::Suspend,
            0 | 1 => SnapshotOp::Create,
            2 => SnapshotOp::Apply(which),
            _ => SnapshotOp::Delete(which),
        };
        return GuestOp::Snapshot { change };
    }
    if kind == 14 {
        let from = rng.below(STATE_SECTORS as u64);
        let at = from..rng.between(from + 1, STATE_SECTORS as u64);
        return if rng.one_in(3) { GuestOp::LoadState { at } } else { GuestOp::SaveState { at } };
    }
    if kind == 13 {
        let which = rng.below(3) as u32;
        let change = if rng.one_in(2) { KeyOp::Add(which) } else { KeyOp::Remove(which) };
        return GuestOp::Key { change };
    }
    if kind == 12 {
        let (which, other) = (rng.below(3) as u32, rng.below(3) as u32);
        let change = match rng.below(7) {
            0 | 1 => BitmapOp::Add,
            2 => BitmapOp::Remove(which),
            3 => BitmapOp::Clear(which),
            4 => BitmapOp::Enable(which),
            5 => BitmapOp::Disable(which),
            _ => BitmapOp::Merge(which, other),
        };
        return GuestOp::Bitmap { change };
    }
    if kind == 11 {
        let change = match rng.below(3) {
            0 => Amendment::Version(rng.between(2, 3) as u32),
            _ => Amendment::RefcountOrder(rng.below(7) as u32),
        };
        return GuestOp::Amend { change };
    }
    let at = place(rng, config, hot, sectors);
    if kind == 10 {
        let per = config.cluster_sectors();
        let at = at.start / per * per..at.end.next_multiple_of(per).min(sectors);
        return GuestOp::Compressed { at };
    }
    let op = plain_operation(rng, kind, at);
    match op {
        GuestOp::Write { .. } | GuestOp::Zero { .. } | GuestOp::Discard { .. } if rng.one_in(12) => {
            GuestOp::Abandon { polls: rng.below(8) as u8, op: Box::new(op) }
        }
        op => op,
    }
}

fn plain_operation(rng: &mut Rng, kind: usize, at: Range<u64>) -> GuestOp {
    match kind {
        0 => GuestOp::Write { at, fua: rng.one_in(6) },
        1 => GuestOp::Zero { at, unmap: rng.one_in(2), fua: rng.one_in(8) },
        2 => GuestOp::Discard { at },
        3 => GuestOp::Read { at },
        4 => GuestOp::Flush,
        5 => GuestOp::Reopen,
        6 => GuestOp::Flush,
        _ => GuestOp::Status { at },
    }
}

/// How much a disk grows at most in one step: over an L2 boundary where clusters are small.
fn growth_max(config: &Config) -> u64 {
    (config.l2_entries() * config.cluster_sectors() * 3 / 2).min(500)
}

/// A range: mostly in the hot clusters, or where a disk that grew has grown; of any shape.
fn place(rng: &mut Rng, config: &Config, hot: &Range<u64>, sectors: u64) -> Range<u64> {
    let per = config.cluster_sectors();
    let cluster = if sectors > config.sectors && rng.one_in(3) {
        rng.between((config.sectors - 1) / per, (sectors - 1) / per)
    } else if rng.one_in(10) {
        rng.below(config.clusters())
    } else {
        rng.between(hot.start, hot.end - 1)
    };
    let cluster = cluster.min((sectors - 1) / per);
    let start = cluster * per;
    let range = match rng.below(6) {
        0 => start..start + 1,
        1 => start..start + per,
        2 => start..start + per * rng.between(1, 3),
        3 => start + rng.below(per)..start + per + rng.between(1, per),
        4 => {
            let from = start + rng.below(per);
            from..from + rng.between(1, per)
        }
        _ => start + per - 1..start + per + 1,
    };
    clip(range, sectors, config.grain())
}

/// The part of a range that is on the disk, in whole blocks.
fn clip(range: Range<u64>, sectors: u64, grain: u64) -> Range<u64> {
    let end = range.end.next_multiple_of(grain).min(sectors);
    (range.start / grain * grain).min(end - grain)..end
}

/// The alphabet of the exhaustive explorer: every shape of every operation at a hot place, next to it, and
/// beyond an L2 boundary.
pub fn alphabet(config: &Config) -> Vec<GuestOp> {
    if config.format == Format::Vhd {
        return vhd::alphabet(config);
    }
    let per = config.cluster_sectors();
    let boundary = config.l2_entries().min(config.clusters() - 1);
    let hot = boundary.saturating_sub(3) * per;
    let (next, far) = (hot + per, boundary * per);
    let clip = |range: Range<u64>| clip(range, config.sectors, config.grain());
    let write = |range| GuestOp::Write { at: clip(range), fua: false };
    let zero = |range, unmap| GuestOp::Zero { at: clip(range), unmap, fua: false };
    let discard = |range| GuestOp::Discard { at: clip(range) };
    let part = (per / 2).max(1);
    let mut ops = vec![
        write(hot..hot + 1),
        write(hot + per - part..hot + per),
        write(hot..hot + per),
        write(hot..hot + 2 * per),
        write(hot + per - 1..hot + per + 1),
        write(next..next + 1),
        write(next..next + per),
        write(far..far + per),
        write(far - 1..far + 1),
        GuestOp::Write { at: hot..hot + per, fua: true },
        zero(hot..hot + per, false),
        zero(hot..hot + per, true),
        zero(hot..hot + part, false),
        zero(hot..hot + 2 * per, true),
        zero(far - 1..far + per, true),
        GuestOp::Zero { at: next..next + per, unmap: false, fua: true },
        discard(hot..hot + per),
        discard(hot..hot + 2 * per),
        discard(far - 1..far + per),
        discard(0..config.sectors),
        GuestOp::Resize { to: hot + per + config.grain() },
        GuestOp::Resize { to: config.sectors + growth_max(config).next_multiple_of(config.grain()) },
        GuestOp::Compressed { at: clip(hot..hot + per) },
        GuestOp::Snapshot { change: SnapshotOp::Create },
        GuestOp::Snapshot { change: SnapshotOp::Apply(0) },
        GuestOp::Snapshot { change: SnapshotOp::Delete(0) },
        GuestOp::Amend { change: Amendment::RefcountOrder(if config.refcount_order == 5 { 4 } else { 5 }) },
        GuestOp::Amend { change: Amendment::Version(2) },
        GuestOp::Read { at: clip(hot..hot + 2 * per) },
        GuestOp::Status { at: clip(hot..hot + 2 * per) },
        GuestOp::Flush,
        GuestOp::Reopen,
    ];
    if config.bitmaps {
        let changes = [
            BitmapOp::Add,
            BitmapOp::Remove(0),
            BitmapOp::Clear(0),
            BitmapOp::Enable(0),
            BitmapOp::Disable(0),
            BitmapOp::Merge(1, 0),
        ];
        ops.extend(changes.map(|change| GuestOp::Bitmap { change }));
    }
    if config.crypt == Crypt::Luks {
        ops.extend([KeyOp::Add(1), KeyOp::Remove(0)].map(|change| GuestOp::Key { change }));
    }
    if config.vm_state {
        ops.push(GuestOp::SaveState { at: 1..9 });
        ops.push(GuestOp::LoadState { at: 0..STATE_SECTORS as u64 });
        ops.push(GuestOp::Snapshot { change: SnapshotOp::Suspend });
    }
    let mut seen = Vec::new();
    ops.retain(|op| {
        let new = !seen.contains(op);
        seen.push(op.clone());
        new
    });
    ops
}

/// The worlds of the exhaustive explorer: pre-states times geometries.
pub fn explored_configs() -> Vec<Config> {
    let base = Config::default();
    let small = Config { cluster_bits: 9, sectors: 70, l2_slice_bytes: 512, ..base.clone() };
    let mut configs = Vec::new();
    for prestate in [Prestate::Fresh, Prestate::Full, Prestate::Snapshot, Prestate::Mixed] {
        configs.push(Config { prestate, sectors: 262, vm_state: true, ..base.clone() });
        configs.push(Config { prestate, lazy: true, ..small.clone() });
    }
    let backed = Config { backing: Backing::Shorter, sectors: 262, ..base.clone() };
    configs.push(Config { prestate: Prestate::Mixed, ..backed.clone() });
    configs.push(Config { prestate: Prestate::Half, version: 2, ..backed });
    configs.push(Config { prestate: Prestate::Created, refcount_order: 0, ..small.clone() });
    configs.push(Config { refcount_order: 6, ..small.clone() }.near_boundary(false));
    configs.push(Config { prestate: Prestate::Snapshot, refcount_order: 1, bitmaps: true, ..small.clone() });
    let blocks = HostConfig { alignment: 4096, atom: Atom::Block, ..HostConfig::default() };
    configs.push(Config {
        prestate: Prestate::Mixed,
        cluster_bits: 12,
        sectors: 96,
        backing: Backing::Qcow2Longer,
        zstd: true,
        host: blocks.clone(),
        ..base.clone()
    });
    configs.push(Config { prestate: Prestate::Half, backing: Backing::Qcow2Shorter, host: blocks, ..small });
    configs.push(Config {
        prestate: Prestate::Mixed,
        extended: true,
        cluster_bits: 14,
        sectors: 300,
        ..base
    });
    for data in [DataPlace::Outside, DataPlace::Raw] {
        configs.push(Config { data, prestate: Prestate::Half, sectors: 262, ..Config::default() });
    }
    configs.push(encrypted(Crypt::Aes));
    configs.iter_mut().for_each(Config::legalise);
    configs
}

/// A world whose data is encrypted.
pub fn encrypted(crypt: Crypt) -> Config {
    Config { crypt, prestate: Prestate::Half, cluster_bits: 12, sectors: 96, ..Config::default() }
}

/// The worlds in which every I/O fails once: those of the explorer, and what only they would leave out.
pub fn faulted_configs() -> Vec<Config> {
    let small = Config { cluster_bits: 9, l2_slice_bytes: 512, ..Config::default() };
    let mut configs = explored_configs();
    configs.push(Config { refcount_order: 6, ..small }.near_boundary(true));
    configs.push(encrypted(Crypt::Luks));
    configs
}
