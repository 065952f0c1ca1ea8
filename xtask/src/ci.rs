//! The whole of CI: which checks, in which order, with which share of the minutes.
//!
//! Cheap checks come first; what needs the release build comes last. On two cores and from an empty target
//! directory the whole has 25 minutes, and the limit that nothing may break is 60.

use anyhow::Result;

use crate::cargo;
use crate::reference::Reference;
use crate::sim::{self, Share};
use crate::step::{Outcome, Steps};
use crate::{demo, fuzz, guest, packages, startup, tidy};

/// What becomes of a check that cannot run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// It is named, and the run passes.
    Lenient,
    /// It is named, and the run fails.
    Strict,
}

/// Runs everything and prints the table.
pub fn run(strictness: Strictness) -> Result<bool> {
    guest::install_tools();
    let mut steps = Steps::default();
    steps.run("programs for tests", packages::run);
    steps.run("tidy", tidy::run);
    steps.run("licences", tidy::licences);
    steps.run("format", || cargo::call(&["fmt", "--all", "--check"]));
    steps.run("clippy", || cargo::call(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    steps.run("clippy with mutants", || {
        cargo::call(&[
            "clippy",
            "-p",
            "cowbell-sim",
            "--all-targets",
            "--features",
            "mutants",
            "--",
            "-D",
            "warnings",
        ])
    });
    steps.run("docs", || {
        cargo::call_with(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])
    });
    steps.run("test", test);
    steps.run("build", || cargo::call(&["build", "--release", "-p", "cowbell-cli"]));
    steps.run("start-up time", startup::run);
    steps.run("guest programs", guest::programs::rebuild);
    steps.run("linux guest", guest::linux);
    steps.run("README and demo", demo::run);
    steps.run("differential tests", || difftest(&[]));
    steps.run("fuzz smoke", fuzz::smoke);
    sim::steps(&mut steps, Share::CI, sim::CI_SEEDS);
    Ok(conclude(&steps, strictness))
}

/// Runs one check by itself.
pub fn alone(name: &str, check: impl FnOnce() -> Result<Outcome>) -> Result<bool> {
    let mut steps = Steps::default();
    steps.run(name, check);
    Ok(conclude(&steps, Strictness::Strict))
}

/// Prints the table and what was left out; says whether the run passed.
pub fn conclude(steps: &Steps, strictness: Strictness) -> bool {
    steps.print_table();
    let mut complete = true;
    for (name, why) in steps.left_out() {
        complete = false;
        println!("\n!!! LEFT OUT: {name}\n!!! {why}");
    }
    !steps.any_failed() && (complete || strictness == Strictness::Lenient)
}

/// The tests of every crate, with cargo's own runner: its closing lines say what ran.
pub fn test() -> Result<Outcome> {
    cargo::call(&["test", "--workspace"])
}

/// Differential tests, where the reference's tools are those we compare with.
pub fn difftest(args: &[String]) -> Result<Outcome> {
    match Reference::find() {
        Ok(reference) => println!(
            "reference: {} ({}, {})",
            reference.version,
            reference.img.display(),
            reference.io.display()
        ),
        Err(why) => return Ok(Outcome::LeftOut(format!("{why:#}"))),
    }
    let ours = cargo::release_program("cowbell-cli", "cowbell", &[])?;
    let program = cargo::release_program("cowbell-difftest", "cowbell-difftest", &[])?;
    let ours = ours.to_string_lossy().into_owned();
    let mut call = vec!["--cowbell", &ours];
    call.extend(args.iter().map(String::as_str));
    cargo::program(&program, &call)
}
