//! The exhaustive explorer: all sequences of one and two operations, with and without a flush after each, in
//! every pre-state; and every operation with every single fault.

use cowbell_block::DebugEvent;

use crate::config::{Config, DataPlace};
use crate::disk::IoKind;
use crate::events::announced;
use crate::faults::{Fault, FaultKind, Member, Trigger};
use crate::lab::{Effort, Found, Lab};
use crate::layers;
use crate::scenario::{GuestOp, Scenario};
use crate::workload::{alphabet, faulted_configs};

/// A scenario that failed.
pub type Failed = (Scenario, Found);

/// All sequences of `length` operations of the alphabet, each with and without flushes in between.
pub fn sequences(config: &Config, length: u32) -> impl Iterator<Item = Scenario> + use<> {
    let letters = alphabet(config);
    let (count, config) = (letters.len() as u64, config.clone());
    let total = count.pow(length) << length;
    (0..total).map(move |number| {
        let mut rest = number;
        let mut ops = Vec::new();
        for _ in 0..length {
            ops.push(letters[(rest % count) as usize].clone());
            rest /= count;
            if rest & 1 == 1 {
                ops.push(GuestOp::Flush);
            }
            rest >>= 1;
        }
        Scenario { seed: number, config: config.clone(), ops, ..Scenario::default() }
    })
}

/// Strikes the first I/O after every debug event once, in the first scenario that announces it. Returns the number
/// of runs; what could not be struck is told by [`crate::events::missed`].
///
/// # Errors
/// The first scenario that fails.
pub fn strike_every_event(lab: &mut Lab, effort: Effort) -> Result<u64, Box<Failed>> {
    let mut runs = 0;
    let struck = |lab: &Lab, event: DebugEvent| {
        lab.figures.events_struck.get(event as usize).is_some_and(|count| *count > 0)
    };
    for scenario in announcing() {
        if announced().all(|event| struck(lab, event)) {
            break;
        }
        let before = lab.figures.events.clone();
        lab.run(&scenario).map_err(|found| Box::new((scenario.clone(), found)))?;
        runs += 1;
        let count = |counts: &[u64], event: DebugEvent| counts.get(event as usize).copied().unwrap_or(0);
        for event in announced() {
            if struck(lab, event) || count(&lab.figures.events, event) == count(&before, event) {
                continue;
            }
            let (on, trigger) = match event {
                DebugEvent::ReadBackingAio => (Member::Backing, Trigger::Nth(0)),
                // Zeroes are written as such to data files.
                event if scenario.config.data != DataPlace::Inside => {
                    (zeroed_file(event), Trigger::Tagged(event, 0))
                }
                event => (Member::Image, Trigger::Tagged(event, 0)),
            };
            let faults = vec![Fault { on, trigger, kind: FaultKind::Eio, sticky: false }];
            let faulted = Scenario { faults, ..scenario.clone() };
            runs += 1;
            lab.judge(&faulted, effort).map_err(|found| Box::new((faulted, found)))?;
        }
    }
    // An image is emptied after a commit, which is no operation of a guest.
    if !struck(lab, DebugEvent::EmptyImagePrepare) {
        runs += 1;
        layers::strike(lab, DebugEvent::EmptyImagePrepare)
            .map_err(|failure| Box::new((Scenario::default(), failure.into())))?;
    }
    Ok(runs)
}

/// The file that an event is announced to before an I/O, where there is a data file.
fn zeroed_file(event: DebugEvent) -> Member {
    if event == DebugEvent::PwritevZero { Member::Data } else { Member::Image }
}

/// Scenarios in which every event is announced: every operation in every world, and one that needs new refcount blocks.
pub fn announcing() -> impl Iterator<Item = Scenario> {
    let config = Config { cluster_bits: 9, refcount_order: 6, l2_slice_bytes: 512, ..Config::default() };
    let config = config.near_boundary(false);
    let ops = vec![GuestOp::Write { at: 0..config.sectors.min(32), fua: false }, GuestOp::Flush];
    let growing = Scenario { config, ops, ..Scenario::default() };
    let single = faulted_configs().into_iter().flat_map(|config| sequences(&config, 1));
    std::iter::once(growing).chain(single)
}

/// Runs one operation with each single fault at each of its I/Os, once and sticky, and looks at every cut that
/// follows. Returns the number of runs.
///
/// # Errors
/// The first scenario that fails.
pub fn faults_of(lab: &mut Lab, scenario: &Scenario, effort: Effort) -> Result<u64, Box<Failed>> {
    let plain = lab.run(scenario).map_err(|found| Box::new((scenario.clone(), found)))?;
    let of = |member: Member| {
        let ios = plain.history.ios.iter().filter(move |io| io.file == member);
        (0..).zip(ios.map(|io| io.kind)).map(move |(nth, kind)| (member, nth, kind))
    };
    let backing = std::iter::repeat_n(IoKind::Read, plain.backing_ios as usize);
    let backing = (0..).zip(backing).map(|(nth, kind)| (Member::Backing, nth, kind));
    let targets: Vec<(Member, u64, IoKind)> =
        of(Member::Image).chain(of(Member::Data)).chain(backing).collect();
    let mut runs = 0;
    for (on, nth, io) in targets {
        for kind in FaultKind::ALL.into_iter().filter(|f| f.fits(io)) {
            for sticky in [false, true] {
                let faults = vec![Fault { on, trigger: Trigger::Nth(nth), kind, sticky }];
                let faulted = Scenario { faults, ..scenario.clone() };
                runs += 1;
                if let Err(found) = lab.judge(&faulted, effort) {
                    return Err(Box::new((faulted, found)));
                }
            }
        }
    }
    Ok(runs)
}
