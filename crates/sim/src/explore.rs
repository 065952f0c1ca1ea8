//! The exhaustive explorer: all sequences of one and two operations, with and without a flush after each, in
//! every pre-state; and every operation with every single fault.

use crate::config::Config;
use crate::disk::IoKind;
use crate::faults::{Fault, FaultKind, Member, Trigger};
use crate::lab::{Effort, Found, Lab};
use crate::scenario::{GuestOp, Scenario};
use crate::workload::alphabet;

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

/// Runs one operation with each single fault at each of its I/Os, once and sticky, and looks at every cut that
/// follows. Returns the number of runs.
///
/// # Errors
/// The first scenario that fails.
pub fn faults_of(lab: &mut Lab, scenario: &Scenario, effort: Effort) -> Result<u64, Box<Failed>> {
    let plain = lab.run(scenario).map_err(|found| Box::new((scenario.clone(), found)))?;
    let image = plain.history.ios.iter().map(|io| io.kind);
    let backing = std::iter::repeat_n(IoKind::Read, plain.backing_ios as usize);
    let image = (0..).zip(image).map(|(nth, kind)| (Member::Image, nth, kind));
    let backing = (0..).zip(backing).map(|(nth, kind)| (Member::Backing, nth, kind));
    let targets: Vec<(Member, u64, IoKind)> = image.chain(backing).collect();
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
