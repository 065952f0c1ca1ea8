//! Finds the reference's tools on PATH and judges their version.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The release series whose behaviour we follow.
const SERIES: &str = "10.0.";

/// The reference's tools.
#[derive(Debug)]
pub struct Reference {
    /// The program `qemu-img`.
    pub img: PathBuf,
    /// The program `qemu-io`.
    pub io: PathBuf,
    /// The first line of `qemu-img --version`.
    pub version: String,
}

impl Reference {
    /// The tools on PATH.
    ///
    /// # Errors
    ///
    /// One is missing, or of another release series than [`SERIES`].
    pub fn find() -> Result<Self> {
        let img = on_path("qemu-img").context("qemu-img is not on PATH (package qemu-utils)")?;
        let io = on_path("qemu-io").context("qemu-io is not on PATH (package qemu-utils)")?;
        let version = version_line(&img)?;
        for line in [&version, &version_line(&io)?] {
            if !is_of_series(line) {
                bail!("the tools compared with are {SERIES}x, and this is '{line}'");
            }
        }
        Ok(Self { img, io, version })
    }
}

/// The first file of this name in a directory of PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn version_line(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Our own program answers to these names too, and must not be taken for the reference.
fn is_of_series(line: &str) -> bool {
    !line.contains("cowbell")
        && line.split_once(" version ").is_some_and(|(_, version)| version.starts_with(SERIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_series_is_accepted_and_never_ourselves() {
        assert!(is_of_series("qemu-img version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)"));
        assert!(!is_of_series("qemu-img version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)"));
        assert!(!is_of_series("qemu-img version 10.0.2 (cowbell 0.1.0)"));
        assert!(!is_of_series(""));
    }
}
