//! The README's two commands exist, and the demo does what it says in the time it has.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::cargo;
use crate::step::Outcome;

/// What the README tells a newcomer to run.
const COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo xtask ci"];
/// Seconds the demo may take after the build.
const SECONDS_MAX: f64 = 60.0;

/// Looks for the commands in the README, and runs the demo.
pub fn run() -> Result<Outcome> {
    let readme = std::fs::read_to_string("README.md").context("README.md")?;
    let missing: Vec<_> = COMMANDS.into_iter().filter(|command| !readme.contains(command)).collect();
    if !missing.is_empty() {
        return Ok(Outcome::Failed(format!("README.md does not name: {}", missing.join(", "))));
    }
    let program = cargo::release_program("cowbell-cli", "cowbell", &[])?;
    let began = Instant::now();
    let outcome = cargo::program(&program, &["demo"])?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(match outcome {
        Outcome::Passed if seconds > SECONDS_MAX => {
            Outcome::Failed(format!("the demo took {seconds:.1} s, and may take {SECONDS_MAX} s"))
        }
        other => other,
    })
}
