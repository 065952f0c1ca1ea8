//! Differential tests: our tools and the reference's on the same images, from seeds.
//!
//! | kind | who writes | what is compared |
//! |---|---|---|
//! | `d1` | ours | both check clean, both read the model, both map the same |
//! | `d2` | theirs | the same |
//! | `d3` | in turn, on one file | the same |
//! | `d4` | nobody: a field of a valid image is damaged | exit class and counters of `check` |
//! | `d5` | each on its own twin of the images | the state of both after each command |
//! | `parity` | command lines from a table | exit status, standard output and error |
//!
//! A failure prints its seed and leaves its directory, with a script that runs the same commands again, by the
//! tool that ran them or by the other one.
#![forbid(unsafe_code)]

mod config;
mod damage;
mod judge;
mod lab;
mod model;
mod ops;
mod options;
mod parity;
mod parity_table;
mod sequence;
mod twin;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::{Lab, Tools};
use options::{Kind, Options};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help") {
        println!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(&args) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("cowbell-difftest: {message}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let tools = match Tools::prepare(&options.cowbell, &options.out) {
        Ok(tools) => tools,
        Err(message) => {
            eprintln!("cowbell-difftest: {message}");
            return ExitCode::FAILURE;
        }
    };
    println!("theirs: {}", tools.version);
    let failures = run_all(&options, &tools);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs what the options name; returns the number of failures.
fn run_all(options: &Options, tools: &Tools) -> usize {
    let mut failures = 0;
    for (kind, count) in options.plan() {
        let began = Instant::now();
        let (ran, failed) = match kind {
            Kind::Parity => parity::run(tools, options),
            _ => run_seeds(kind, count, options, tools),
        };
        let seconds = began.elapsed().as_secs_f64();
        println!("{kind}: {} passed, {failed} failed in {seconds:.1} s", ran - failed);
        failures += failed;
    }
    failures
}

/// Runs seeds of one kind over some threads; returns how many ran, and how many of them failed.
fn run_seeds(kind: Kind, count: u64, options: &Options, tools: &Tools) -> (usize, usize) {
    let deadline = Instant::now() + Duration::from_secs(options.seconds);
    let next = AtomicU64::new(0);
    let totals = Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let many = totals.lock().is_ok_and(|t: std::sync::MutexGuard<'_, (usize, usize)>| {
                        t.1 >= options.failures_max
                    });
                    if index >= count || Instant::now() > deadline || many {
                        break;
                    }
                    let failed = run_seed(kind, options.seed + index, options, tools);
                    if let Ok(mut totals) = totals.lock() {
                        totals.0 += 1;
                        totals.1 += usize::from(failed);
                    }
                }
            });
        }
    });
    totals.into_inner().unwrap_or((0, 1))
}

/// Runs the twins of one seed; whether they came to differ.
fn run_twins(seed: u64, options: &Options, tools: &Tools) -> bool {
    let mut twins = match twin::Twins::new(tools, options, seed) {
        Ok(twins) => twins,
        Err(error) => {
            println!("FAILED d5-{seed}: {error}");
            return true;
        }
    };
    match twins.run(seed) {
        Ok(()) => {
            if options.keep == options::Keep::Failures {
                twins.remove();
            }
            false
        }
        Err(failure) => {
            println!(
                "FAILED d5-{seed}: {failure}\n    again: cargo xtask difftest --kind d5 --seed {seed} --sequences 1"
            );
            true
        }
    }
}

/// Runs one seed; whether it failed.
fn run_seed(kind: Kind, seed: u64, options: &Options, tools: &Tools) -> bool {
    if kind == Kind::Twins {
        return run_twins(seed, options, tools);
    }
    let name = format!("{kind}-{seed}");
    let mut lab = match Lab::new(tools, &options.out.join(&name)) {
        Ok(lab) => lab,
        Err(error) => {
            println!("FAILED {name}: {error}");
            return true;
        }
    };
    let result = match kind {
        Kind::Damage => damage::run(&mut lab, seed),
        _ => sequence::run(&mut lab, kind, seed),
    };
    match result {
        Ok(()) => {
            if options.keep == options::Keep::Failures {
                lab.remove();
            }
            false
        }
        Err(failure) => {
            let script = lab.write_script();
            println!(
                "FAILED {name}: {failure}\n    again: cargo xtask difftest --kind {kind} --seed {seed} \
                 --sequences 1\n    by hand: {script}"
            );
            true
        }
    }
}
