//! The small programs of `guests/`: built again and compared, where the compiler is the one that built them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::fetch::output;
use crate::step::Outcome;

const COMPILER: &str = "riscv64-unknown-elf-gcc";

/// Builds them in a directory of their own.
pub fn rebuild() -> Result<Outcome> {
    let built = Path::new("guests/built");
    let recorded = fs::read_to_string(built.join("compiler")).context("guests/built/compiler")?;
    let version = output(Command::new(COMPILER).arg("--version")).unwrap_or_default();
    let here = version.lines().next().unwrap_or("none");
    if here != recorded.trim_end() {
        println!("not built again: they are from '{}', and here is '{here}'", recorded.trim_end());
        return Ok(Outcome::Passed);
    }
    let directory = tempfile::tempdir().context("making a directory")?;
    for entry in fs::read_dir("guests")? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, directory.path().join(path.file_name().unwrap_or_default()))?;
        }
    }
    output(Command::new("sh").arg("build.sh").current_dir(directory.path()))?;
    let mut differing = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(built)? {
        let name = entry?.file_name();
        let fresh = fs::read(directory.path().join("built").join(&name)).unwrap_or_default();
        count += 1;
        if fresh != fs::read(built.join(&name))? {
            differing.push(name.to_string_lossy().into_owned());
        }
    }
    println!("{count} files built again with {here}");
    Ok(match differing.as_slice() {
        [] => Outcome::Passed,
        names => Outcome::Failed(format!(
            "guests/built differs from what guests/build.sh makes: {}",
            names.join(", ")
        )),
    })
}
