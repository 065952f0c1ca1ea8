//! Fuzzing: a seeded loop that needs nothing, and libFuzzer, which is guided by the coverage that it sees.
//!
//! libFuzzer is C++. Where that cannot be compiled the guided part is left out with a message and the step passes: the
//! seeded loop has run every target over the whole corpus by then.
//!
//! [`mod@coverage`] says how much of the parsers the corpus reaches.

mod coverage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::step::Outcome;

/// Damaged inputs that CI tries in the seeded loop, the same each time: what is new is for the soak to find. About half
/// a minute.
const CI_COUNT: &str = "15000";
/// Executions of each guided target in CI: the same inputs each time, as long as the code is the same.
const CI_GUIDED_RUNS: u64 = 4_000;
/// Seconds after which CI leaves a guided target.
const CI_GUIDED_SECONDS_MAX: u64 = 20;
/// Counts coverage of our code, and tells libFuzzer what is compared. All of it is for the stable compiler.
const COVERAGE_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// What CI runs.
pub fn smoke() -> Result<Outcome> {
    match seeded(&["--count", CI_COUNT, "--seconds", "180"])? {
        Outcome::Passed => guided(Extent::Runs(CI_GUIDED_RUNS)),
        other => Ok(other),
    }
}

/// Both ways of fuzzing, for so many seconds in all.
pub fn run(seconds: u64) -> Result<Outcome> {
    match seeded(&["--seconds", &(seconds / 2).to_string()])? {
        Outcome::Passed => guided(Extent::Seconds(seconds.div_ceil(2))),
        other => Ok(other),
    }
}

fn seeded(args: &[&str]) -> Result<Outcome> {
    let program = cargo::release_program("cowbell-fuzz", "cowbell-fuzz", &[])?;
    cargo::program(&program, args)
}

/// How far the guided targets go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// So many executions of each, with the same random numbers each time, and nothing found before.
    Runs(u64),
    /// So many seconds for all together, with new random numbers, from all that was found before.
    Seconds(u64),
}

/// How much of the parsers the corpus reaches.
pub fn coverage() -> Result<Outcome> {
    match build_guided()? {
        Ok(program) => coverage::report(&program, &targets()?),
        Err(why) => Ok(Outcome::LeftOut(why)),
    }
}

/// The guided program, or why there can be none here.
fn build_guided() -> Result<std::result::Result<PathBuf, String>> {
    if !compiles_cpp() {
        return Ok(Err("there is no C++ compiler (Debian: g++)".into()));
    }
    let host = host()?;
    println!("$ cargo build --profile fuzz --target {host} -p cowbell-fuzz --features guided");
    let args = ["build", "--quiet", "--profile", "fuzz", "--target", &host, "-p", "cowbell-fuzz", "--bin"];
    let args = [&args[..], &["cowbell-fuzz-guided", "--features", "guided"]].concat();
    if let Outcome::Failed(why) = cargo::call_with(&args, &[("RUSTFLAGS", COVERAGE_FLAGS)])? {
        bail!("{why}");
    }
    Ok(Ok(cargo::target_directory()?.join(&host).join("fuzz/cowbell-fuzz-guided")))
}

/// Every target over its corpus, and so far beyond.
fn guided(extent: Extent) -> Result<Outcome> {
    let program = match build_guided()? {
        Ok(program) => program,
        Err(why) => {
            println!("!!! {why}: the coverage-guided part is left out");
            return Ok(Outcome::Passed);
        }
    };
    let targets = targets()?;
    let each = match extent {
        Extent::Runs(_) => extent,
        Extent::Seconds(all) => Extent::Seconds((all / targets.len().max(1) as u64).max(1)),
    };
    for (target, corpus) in &targets {
        if !fuzz_one(&program, target, corpus, each)? {
            return Ok(Outcome::Failed(format!("the target {target} has a finding: target/fuzz/{target}-*")));
        }
    }
    Ok(Outcome::Passed)
}

/// Every target, and the directory of its corpus.
fn targets() -> Result<Vec<(String, String)>> {
    let program = cargo::release_program("cowbell-fuzz", "cowbell-fuzz", &[])?;
    let output = Command::new(&program).arg("--targets").output().context("starting cowbell-fuzz")?;
    let text = String::from_utf8(output.stdout).context("what cowbell-fuzz --targets printed")?;
    let pair =
        |line: &str| line.split_once(' ').map(|(target, corpus)| (target.to_owned(), corpus.to_owned()));
    text.lines().map(pair).collect::<Option<_>>().context("what cowbell-fuzz --targets printed")
}

/// Whether one target holds. What is found on the way goes into a directory of its own.
fn fuzz_one(program: &Path, target: &str, corpus: &str, extent: Extent) -> Result<bool> {
    let found = match extent {
        Extent::Runs(_) => format!("target/fuzz/fresh/{target}"),
        Extent::Seconds(_) => format!("target/fuzz/corpus/{target}"),
    };
    if matches!(extent, Extent::Runs(_)) && Path::new(&found).exists() {
        std::fs::remove_dir_all(&found).with_context(|| found.clone())?;
    }
    std::fs::create_dir_all(&found).with_context(|| found.clone())?;
    let mut command = Command::new(program);
    command.env("COWBELL_FUZZ_TARGET", target).args([
        "-max_len=65536".into(),
        "-timeout=20".into(),
        "-rss_limit_mb=1024".into(),
        "-reload=0".into(),
        "-verbosity=0".into(),
        "-print_final_stats=1".into(),
        format!("-artifact_prefix=target/fuzz/{target}-"),
    ]);
    match extent {
        Extent::Runs(runs) => {
            let (runs, longest) =
                (format!("-runs={runs}"), format!("-max_total_time={CI_GUIDED_SECONDS_MAX}"));
            command.args(["-seed=1".into(), runs, longest]);
        }
        Extent::Seconds(seconds) => {
            command.arg(format!("-max_total_time={seconds}"));
        }
    }
    let dictionary = format!("fuzz/dictionaries/{target}.txt");
    if Path::new(&dictionary).exists() {
        command.arg(format!("-dict={dictionary}"));
    }
    command.args([found, format!("fuzz/corpus/{corpus}")]);
    let output = command.output().with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let stat = |name: &str| {
        let line = text.lines().find(|line| line.contains(name));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("?").to_owned()
    };
    let (runs, speed) = (stat("number_of_executed_units"), stat("average_exec_per_sec"));
    println!("guided {target:<10} {runs:>8} executions, {speed:>6}/s");
    if !output.status.success() {
        println!("{text}");
    }
    Ok(output.status.success())
}

/// What C++ is compiled with, as the `cc` crate finds it.
fn compiles_cpp() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The triple of this machine, as the compiler calls it. Named, so that what runs while building is not instrumented.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("starting rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc names no host")?.to_owned())
}
