//! Calls cargo, and knows where the programs that it built lie.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::step::Outcome;

/// The directory of the workspace's manifest.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The cargo that runs us, or the one on PATH.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `cargo ARGS` with its output shown.
pub fn call(args: &[&str]) -> Result<Outcome> {
    call_with(args, &[])
}

/// As [`call`], with these variables set.
pub fn call_with(args: &[&str], env: &[(&str, &str)]) -> Result<Outcome> {
    println!("$ cargo {}", args.join(" "));
    let status = cargo().args(args).envs(env.iter().copied()).status().context("starting cargo")?;
    Ok(if status.success() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("cargo {}: {status}", args.join(" ")))
    })
}

/// As [`call`], where going on makes no sense after a failure.
pub fn must(args: &[&str]) -> Result<()> {
    match call(args)? {
        Outcome::Passed => Ok(()),
        Outcome::Failed(why) | Outcome::LeftOut(why) => bail!("{why}"),
    }
}

/// Runs a program with its output shown.
pub fn program(path: &Path, args: &[&str]) -> Result<Outcome> {
    println!("$ {} {}", path.display(), args.join(" "));
    let status =
        Command::new(path).args(args).status().with_context(|| format!("starting {}", path.display()))?;
    Ok(if status.success() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("{} {}: {status}", path.display(), args.join(" ")))
    })
}

/// What `cargo metadata` tells about the workspace and all it depends on.
pub fn metadata() -> Result<Value> {
    let output = cargo().args(["metadata", "--format-version", "1"]).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("what cargo metadata printed")
}

/// Where cargo puts what it builds.
pub fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

/// Builds a program in release, and says where it lies.
pub fn release_program(package: &str, name: &str, features: &[&str]) -> Result<PathBuf> {
    let features = features.join(",");
    let mut args = vec!["build", "--quiet", "--release", "-p", package, "--bin", name];
    if !features.is_empty() {
        args.extend(["--features", &features]);
    }
    must(&args)?;
    Ok(target_directory()?.join("release").join(name))
}
