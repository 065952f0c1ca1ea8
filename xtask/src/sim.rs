//! The simulation: a share of minutes in CI, as long as asked for in a soak.

use anyhow::Result;

use crate::cargo;
use crate::ci::{self, Strictness};
use crate::fuzz;
use crate::step::{Outcome, Steps};
use crate::targets::Reached;

/// Minutes for each way of searching.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Random scenarios, one per seed.
    seeds: f64,
    /// Every sequence of one operation, then sequences of two.
    explore: f64,
    /// A fault at every I/O of short sequences.
    faults: f64,
    /// Every pair of request kinds, over all interleavings.
    pairs: f64,
    /// Three requests at a time, under random priorities.
    triples: f64,
    /// Commits and rebases under random schedules.
    layers: f64,
    /// Random scenarios on VHD images, and a fault at every I/O of single operations.
    vhd: f64,
    /// Ordering steps switched off one by one: each must be noticed.
    mutants: f64,
}

impl Share {
    /// What one CI run gives.
    pub const CI: Self = Self {
        seeds: 2.0,
        explore: 1.25,
        faults: 0.75,
        pairs: 1.0,
        triples: 0.25,
        layers: 0.25,
        vhd: 0.25,
        mutants: 0.5,
    };

    /// Shares in the same proportion that add up to `minutes`.
    fn scaled_to(minutes: f64) -> Self {
        let Self { seeds, explore, faults, pairs, triples, layers, vhd, mutants } = Self::CI;
        let factor = minutes / (seeds + explore + faults + pairs + triples + layers + vhd + mutants);
        Self {
            seeds: seeds * factor,
            explore: explore * factor,
            faults: faults * factor,
            pairs: pairs * factor,
            triples: triples * factor,
            layers: layers * factor,
            vhd: vhd * factor,
            mutants: mutants * factor,
        }
    }
}

/// The seeds of a CI run, the same each time: what is new is for the soak to find.
pub const CI_SEEDS: &[&str] = &["--seeds", "0..2500"];

/// Adds the simulation's steps to a run, and tells how far its targets were reached.
pub fn steps(steps: &mut Steps, share: Share, seeds: &'static [&'static str]) {
    let reached = Reached::begin();
    steps.run("sim: seeds", || simulate(&reached, "run", seeds, share.seeds));
    steps.run("sim: explore", || simulate(&reached, "explore", &["--length", "2"], share.explore));
    steps.run("sim: faults", || simulate(&reached, "faults", &[], share.faults));
    steps.run("sim: pairs", || simulate(&reached, "pairs", &[], share.pairs));
    steps.run("sim: triples", || simulate(&reached, "triples", &[], share.triples));
    steps.run("sim: layers", || simulate(&reached, "layers", &[], share.layers));
    steps.run("sim: vhd", || simulate(&reached, "vhd", &[], share.vhd));
    steps.run("sim: mutants", || simulate(&reached, "mutants", &[], share.mutants));
    steps.run("sim: targets", || reached.print());
}

/// The simulation alone.
pub fn run(share: Share) -> Result<bool> {
    let mut all = Steps::default();
    steps(&mut all, share, CI_SEEDS);
    Ok(ci::conclude(&all, Strictness::Strict))
}

/// Half of the time for the simulation, the rest for fuzzing and the differential tests.
pub fn soak(minutes: u64) -> Result<bool> {
    let mut all = Steps::default();
    steps(&mut all, Share::scaled_to(minutes as f64 / 2.0), &[]);
    all.run("fuzz", || fuzz::run(minutes * 60 / 4));
    let seconds = (minutes * 60 / 4).to_string();
    all.run("differential tests", || {
        ci::difftest(&["--sequences".into(), "10000".into(), "--seconds".into(), seconds])
    });
    Ok(ci::conclude(&all, Strictness::Lenient))
}

fn simulate(reached: &Reached, command: &str, args: &[&str], minutes: f64) -> Result<Outcome> {
    let program = cargo::release_program("cowbell-sim", "cowbell-sim", &["mutants"])?;
    let minutes = format!("{minutes:.2}");
    let figures = reached.file()?;
    let mut call = vec![command];
    call.extend_from_slice(args);
    call.extend(["--minutes", &minutes, "--figures", &figures]);
    cargo::program(&program, &call)
}
