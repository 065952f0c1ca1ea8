//! Every ordered pair of request kinds, in every placement to each other, on clusters of every kind, under all
//! interleavings at I/O points up to a bound.

use crate::config::{Backing, Config, Prestate};
use crate::exec::{DepthFirst, Granularity};
use crate::explore::Failed;
use crate::lab::{Effort, Lab};
use crate::rng::{Concern, Rng};
use crate::scenario::{GuestOp, Scenario, Schedule, SnapshotOp};

/// Sectors in a cluster here.
const PER: u64 = 4;

/// Most schedules of one scenario.
pub const SCHEDULES_MAX: u64 = 5000;

/// How the second request lies to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The same sectors.
    Same,
    /// Other sectors of the same cluster.
    Disjoint,
    /// Shifted by half a cluster, over two clusters.
    Overlapping,
    /// In the next cluster.
    Adjacent,
}

const PLACEMENTS: [Placement; 4] =
    [Placement::Same, Placement::Disjoint, Placement::Overlapping, Placement::Adjacent];

const STATES: [Prestate; 7] = [
    Prestate::Fresh,
    Prestate::Zero,
    Prestate::ZeroAllocated,
    Prestate::Full,
    Prestate::Shared,
    Prestate::Snapshot,
    Prestate::Compressed,
];

/// The kinds of requests; each is given the cluster it is about, and the sectors in it.
fn kinds(at: std::ops::Range<u64>) -> Vec<GuestOp> {
    let first = at.start / PER * PER;
    let cluster = first..first + PER;
    vec![
        GuestOp::Write { at: at.clone(), fua: false },
        GuestOp::Write { at: cluster.clone(), fua: false },
        GuestOp::Write { at: first..first + 2 * PER, fua: false },
        GuestOp::Write { at: at.clone(), fua: true },
        GuestOp::Zero { at: cluster.clone(), unmap: false, fua: false },
        GuestOp::Zero { at: cluster.clone(), unmap: true, fua: false },
        GuestOp::Zero { at: at.clone(), unmap: true, fua: false },
        GuestOp::Discard { at: cluster.clone() },
        GuestOp::Discard { at: first..first + 2 * PER },
        GuestOp::Compressed { at: cluster.clone() },
        GuestOp::Read { at: cluster.clone() },
        GuestOp::Status { at: cluster },
        GuestOp::Flush,
    ]
}

/// All scenarios, without a schedule yet.
pub fn scenarios() -> Vec<Scenario> {
    let mut out = Vec::new();
    let first = 4..5;
    for prestate in STATES {
        for placement in PLACEMENTS {
            let second = match placement {
                Placement::Same => 4..5,
                Placement::Disjoint => 6..8,
                Placement::Overlapping => 6..10,
                Placement::Adjacent => 8..9,
            };
            for a in kinds(first.clone()) {
                for b in kinds(second.clone()) {
                    let backing = if out.len() % 5 == 0 { Backing::Raw } else { Backing::None };
                    let config = Config {
                        prestate,
                        backing,
                        cluster_bits: 11,
                        sectors: 16,
                        l2_slice_bytes: 512,
                        ..Config::default()
                    };
                    for ops in surroundings(&a, &b) {
                        out.push(Scenario {
                            seed: out.len() as u64,
                            config: config.clone(),
                            lanes: 3,
                            ops,
                            granularity: Granularity::IoPoints,
                            schedule: Schedule::Choices(Vec::new()),
                            ..Scenario::default()
                        });
                    }
                }
            }
        }
    }
    out
}

/// The pair alone with warm caches, and the pair beside a flush that has something to do, with what the pair needs
/// not in the caches.
fn surroundings(a: &GuestOp, b: &GuestOp) -> [Vec<GuestOp>; 2] {
    let (warm, dirty) = (GuestOp::Read { at: 0..16 }, GuestOp::Write { at: 13..14, fua: false });
    let wait = GuestOp::Wait;
    [vec![warm, wait.clone(), a.clone(), b.clone()], vec![dirty, wait, a.clone(), GuestOp::Flush, b.clone()]]
}

/// Three requests under random priorities: any kinds, any placements, on clusters of any kind, some with a flush or a
/// change of snapshots or length beside them. The space is far too large for all schedules.
pub fn triple(seed: u64) -> Scenario {
    let mut rng = Rng::stream(seed, Concern::Workload);
    let place = |placement: &Placement| match placement {
        Placement::Same => 4..5,
        Placement::Disjoint => 6..8,
        Placement::Overlapping => 6..10,
        Placement::Adjacent => 8..9,
    };
    let backing = *rng.pick(&[Backing::None, Backing::None, Backing::Raw, Backing::Qcow2Shorter]);
    let prestate = *rng.pick(&STATES);
    let config = Config { prestate, backing, cluster_bits: 11, sectors: 16, ..Config::default() };
    let mut ops = vec![GuestOp::Read { at: 0..16 }, GuestOp::Wait];
    if rng.one_in(2) {
        ops.clear();
    }
    for _ in 0..3 {
        let mut kinds = kinds(place(rng.pick(&PLACEMENTS)));
        kinds.push(GuestOp::Resize { to: 24 });
        kinds.push(GuestOp::Snapshot { change: SnapshotOp::Create });
        kinds.push(GuestOp::Snapshot { change: SnapshotOp::Delete(0) });
        ops.push(rng.pick(&kinds).clone());
    }
    if rng.one_in(3) {
        ops.push(GuestOp::Flush);
    }
    let schedule = Schedule::Pct(rng.between(2, 4) as u32);
    Scenario { seed, config, lanes: 3, ops, granularity: Granularity::Full, schedule, ..Scenario::default() }
}

/// What was done for one scenario.
#[derive(Clone, Copy, Debug, Default)]
pub struct Covered {
    /// Schedules run.
    pub schedules: u64,
    /// Whether these were all.
    pub complete: bool,
}

/// Runs all schedules of a scenario, up to `bound`; one in 16 of them is also cut everywhere.
///
/// # Errors
/// The first schedule that fails.
pub fn all_schedules(lab: &mut Lab, scenario: &Scenario, bound: u64) -> Result<Covered, Box<Failed>> {
    let mut search = DepthFirst::default();
    let mut scenario = scenario.clone();
    let mut covered = Covered::default();
    while covered.schedules < bound {
        scenario.schedule = Schedule::Choices(search.prefix().to_vec());
        let cut = covered.schedules.is_multiple_of(16);
        covered.schedules += 1;
        let effort = Effort { recover_one_in: 0, ..Effort::QUICK };
        lab.tidy();
        let outcome = if cut { lab.judge(&scenario, effort) } else { lab.run(&scenario) };
        let run = outcome.map_err(|found| Box::new((scenario.clone(), found)))?;
        if !search.advance_from(&run.choices, &run.counts) {
            covered.complete = true;
            break;
        }
    }
    Ok(covered)
}
