//! The public RISC-V tests on the machine, wherever their programs come from.
//!
//! No package that this project may fetch has them built, so the command takes what a user of the field has at hand: a
//! checkout's `isa` directory, or any programs that tell their end by `tohost`.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cargo;
use crate::step::Outcome;

/// Runs the programs named, and those in the directories named, as the caller sees them from `directory`.
pub fn run(args: &[String], directory: &Path) -> Result<Outcome> {
    if args.is_empty() {
        bail!("riscv-tests takes programs, or directories of them: for instance a built checkout's 'isa'");
    }
    cargo::must(&["build", "--quiet", "--release", "-p", "cowbell-machine", "--example", "riscv-tests"])?;
    let program = cargo::target_directory()?.join("release/examples/riscv-tests");
    let mut after_option = false;
    let mut call = Vec::new();
    for arg in args {
        let is_path = !std::mem::replace(&mut after_option, arg.starts_with("--")) && !after_option;
        call.push(if is_path { directory.join(arg).to_string_lossy().into_owned() } else { arg.clone() });
    }
    cargo::program(&program, &call.iter().map(String::as_str).collect::<Vec<_>>())
}
