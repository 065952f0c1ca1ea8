//! The one entry for checks, on a developer's machine and in CI alike.
//!
//! | module | duty |
//! |---|---|
//! | [`ci`] | the whole of CI: which checks, in which order, with which share of the minutes |
//! | [`step`] | runs one check after another, times them, prints the table |
//! | [`cargo`] | calls cargo; knows where the built programs lie |
//! | [`sim`] | the simulation: short in CI, long in a soak |
//! | [`riscv_tests`] | the public RISC-V tests that somebody has built |
//! | [mod@reference] | finds the reference's tools and judges their version |
//! | [`startup`] | what starting the program costs |
//! | [`mod@fuzz`] | hostile input: a seeded loop, and libFuzzer where it can be compiled |
//! | [`demo`] | the README's commands exist, and the demo runs |
//! | [`guest`] | a real Linux for the machine, and what must hold with it |
//! | [`tidy`] | rules on the tree that are worth a test |
//! | [mod@bench] | the reference and us on the same work, side by side |
//! | [`usage`] | CPU time and peak memory of one process (the only `unsafe` here) |
#![deny(unsafe_code)]

mod bench;
mod cargo;
mod ci;
mod demo;
mod fuzz;
mod guest;
mod packages;
mod reference;
mod riscv_tests;
mod sim;
mod startup;
mod step;
mod targets;
mod tidy;
mod usage;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci [--strict]              everything CI runs; --strict fails on what had to be left out
  test                       cargo test of the whole workspace
  sim                        the simulation, with CI's share of minutes
  soak [--minutes N]         the simulation, fuzzing and differential tests for longer (default 60)
  difftest [ARGUMENT]...     differential tests against the reference's tools
  fuzz [--seconds N]         fuzzing in a seeded loop, then guided by coverage (default 60)
  fuzz --coverage            which lines of the parsers the corpus reaches, and which not
  guest linux                gets Debian's riscv64 kernel by apt, and checks the machine with it
  guest programs             builds the small guests again and compares
  riscv-tests [--limit N] PATH...
                             runs built RISC-V tests (programs that end by 'tohost'), each in both engines
  bench [FILTER]... [--list] [--output json] [--pairs N] [--program PATH]
                             us and the reference on the same work, interleaved: cases whose name has one of
                             the filters in it; of the program that is built, or of the one at PATH
  bench machine [FILTER] [--output json] [--pairs N]
                             the machine and qemu-system-riscv64 on the same guests
  tidy                       rules on the tree";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; `Ok(false)` is a check that failed and said so.
fn run(args: &[String]) -> Result<bool> {
    let caller = std::env::current_dir().context("finding the current directory")?;
    std::env::set_current_dir(cargo::workspace_root()).context("entering the workspace")?;
    let Some((command, rest)) = args.split_first() else { bail!("{USAGE}") };
    match command.as_str() {
        "ci" => ci::run(parse_strict(rest)?),
        "test" => ci::alone("test", ci::test),
        "sim" => sim::run(sim::Share::CI),
        "soak" => sim::soak(number(rest, "--minutes", 60)?),
        "difftest" => ci::alone("differential tests", || ci::difftest(rest)),
        "fuzz" if rest == ["--coverage"] => ci::alone("fuzz coverage", fuzz::coverage),
        "fuzz" => {
            let seconds = number(rest, "--seconds", 60)?;
            ci::alone("fuzz", || fuzz::run(seconds))
        }
        "guest" => guest::run(rest),
        "riscv-tests" => ci::alone("RISC-V tests", || riscv_tests::run(rest, &caller)),
        "bench" if rest.first().is_some_and(|first| first == "machine") => guest::bench::run(&rest[1..]),
        "bench" => bench::run(rest),
        "tidy" => ci::alone("tidy", tidy::run),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        other => bail!("there is no command '{other}'\n{USAGE}"),
    }
}

fn parse_strict(args: &[String]) -> Result<ci::Strictness> {
    match args {
        [] => Ok(ci::Strictness::Lenient),
        [flag] if flag == "--strict" => Ok(ci::Strictness::Strict),
        _ => bail!("ci takes nothing but --strict\n{USAGE}"),
    }
}

/// The value of the only option a command has, or its default.
fn number(args: &[String], option: &str, default: u64) -> Result<u64> {
    match args {
        [] => Ok(default),
        [name, value] if name == option => value.parse().with_context(|| format!("{option} {value}")),
        _ => bail!("only '{option} N' can be given here\n{USAGE}"),
    }
}
