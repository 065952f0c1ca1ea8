//! The test of the tests: each ordering step of the engine is switched off in turn, and an oracle must notice.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::config::Format;
use crate::damaged;
use crate::explore::Failed;
use crate::figures::cpu_time;
use crate::lab::{Effort, Lab};
use crate::layers;
use crate::pairs;
use crate::reuse;
use crate::scenario::Scenario;
use crate::vhd;
use crate::workload;

/// CPU time after which a mutant counts as survivor: what else runs on the machine does not count.
pub const SURVIVAL: Duration = Duration::from_secs(60);

/// How one mutant fared.
pub struct Fate {
    /// Its name.
    pub id: &'static str,
    /// What it takes away.
    pub removes: &'static str,
    /// What failed, if anything did.
    pub killed_by: Option<String>,
    /// How much CPU time it took.
    pub took: Duration,
    /// How many scenarios it took.
    pub scenarios: u64,
}

/// Switches each ordering step off in turn and looks for a failure. Only with the feature `mutants`; without it
/// there is nothing to switch off, and the list is empty.
pub fn hunt(only: Option<&str>, each: &mut dyn FnMut(&Fate)) -> Vec<Fate> {
    let mut fates = Vec::new();
    if !cfg!(feature = "mutants") {
        return fates;
    }
    let of = |format: Format, list: &'static [(&str, &str)]| list.iter().map(move |mutant| (format, mutant));
    let all = of(Format::Qcow2, cowbell_qcow2::MUTANTS).chain(of(Format::Vhd, cowbell_vpc::MUTANTS));
    for (format, (id, removes)) in all.filter(|(_, (id, _))| only.is_none_or(|o| o == *id)) {
        activate(Some(id));
        let began = cpu_time();
        // The engine's own assertions stand in front of the oracles: one that fails has noticed as well.
        let hunted = catch_unwind(AssertUnwindSafe(|| match format {
            Format::Qcow2 => hunt_one(&mut Lab::of(format), began),
            Format::Vhd => hunt_vhd(&mut Lab::of(format), began),
        }));
        let (killed_by, scenarios) = match hunted {
            Ok((failed, scenarios)) => (failed.map(|failed| failed.1.failure.to_string()), scenarios),
            Err(panic) => (Some(format!("assertion: {}", text_of(&*panic))), 1),
        };
        activate(None);
        let fate = Fate { id, removes, killed_by, took: cpu_time() - began, scenarios };
        each(&fate);
        fates.push(fate);
    }
    fates
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    formatted.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

#[cfg(feature = "mutants")]
fn activate(id: Option<&'static str>) {
    cowbell_block::mutant::activate(id);
}

#[cfg(not(feature = "mutants"))]
fn activate(_: Option<&str>) {}

/// Random workloads on VHD images, with faults.
fn hunt_vhd(lab: &mut Lab, began: Duration) -> (Option<Box<Failed>>, u64) {
    let mut seeds = (0..).take_while(|_| cpu_time() - began < SURVIVAL);
    let found = seeds.find_map(|seed| {
        let scenario = vhd::scenario(seed);
        lab.judge(&scenario, Effort::QUICK).err().map(|found| (seed + 1, Box::new((scenario, found))))
    });
    match found {
        Some((scenarios, failed)) => (Some(failed), scenarios),
        None => (None, seeds.next().unwrap_or(0)),
    }
}

/// Random workloads, with a pair of requests under all schedules now and then.
fn hunt_one(lab: &mut Lab, began: Duration) -> (Option<Box<Failed>>, u64) {
    let pairs = pairs::scenarios();
    let mut stories = reuse::stories().into_iter();
    let mut scenarios = 0;
    for seed in 0.. {
        if cpu_time() - began > SURVIVAL {
            break;
        }
        scenarios += 1;
        let mut scenario = workload::random(seed);
        scenario.faults.clear();
        if let Err(found) = lab.judge(&scenario, Effort::QUICK) {
            return (Some(Box::new((scenario, found))), scenarios);
        }
        if let Some(story) = stories.next() {
            scenarios += 1;
            if let Err(failed) =
                reuse::hold_up_each(lab, &story, Effort { recover_one_in: 0, ..Effort::QUICK })
            {
                return (Some(failed), scenarios);
            }
        }
        scenarios += 1;
        if let Err(failure) = layers::run(lab, seed).and_then(|()| damaged::run(lab, seed)) {
            return (Some(Box::new((Scenario::default(), failure.into()))), scenarios);
        }
        if seed % 8 == 0 {
            let pair = &pairs[(crate::rng::mix(seed) % pairs.len() as u64) as usize];
            scenarios += 1;
            if let Err(failed) = pairs::all_schedules(lab, pair, 200) {
                return (Some(failed), scenarios);
            }
        }
    }
    (None, scenarios)
}
