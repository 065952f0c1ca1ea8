//! Programs from outside that tests run beside ours: installed where they are missing and that is possible.
//!
//! The tests skip with a message what is not there, so that a missing program leaves something out and fails nothing.

use std::process::Command;

use anyhow::Result;

use crate::step::Outcome;

/// Program, Debian package, and what needs it.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("cryptsetup", "cryptsetup-bin", "LUKS volumes both ways with cryptsetup"),
    ("c++", "g++", "fuzzing that is guided by coverage: libFuzzer is C++"),
];

/// Installs what is missing.
pub fn run() -> Result<Outcome> {
    let mut missing = Vec::new();
    for (program, package, purpose) in PROGRAMS {
        if !runs(program) {
            // Whether it worked is seen by what is there afterwards. A new machine has no lists yet.
            let install = ["install", "-y", "--no-install-recommends", package];
            for args in [&["update"][..], &install[..]] {
                let _ = Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").status();
            }
        }
        if !runs(program) {
            missing.push(format!("{program} (package {package}): {purpose}"));
        }
    }
    Ok(match missing.is_empty() {
        true => Outcome::Passed,
        false => Outcome::LeftOut(missing.join("; ")),
    })
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}
