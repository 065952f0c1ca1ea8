//! What starting the program costs: `info` of a small image, from start to exit.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::step::Outcome;
use crate::usage;

/// The budget of `performance.md`, section 1.
const CPU_MS_MAX: f64 = 3.0;
/// Runs; their median is compared, so that one run disturbed by others does not decide.
const RUNS: usize = 41;

/// Checks the median of CPU time against the budget; wall time is shown beside it.
pub fn run() -> Result<Outcome> {
    let program = cargo::release_program("cowbell-cli", "cowbell", &[])?;
    let directory = tempfile::tempdir().context("making a directory")?;
    let image = directory.path().join("small.qcow2");
    let made = Command::new(&program)
        .args(["img", "create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("64M")
        .status()
        .context("starting cowbell")?;
    if !made.success() {
        bail!("cowbell img create: {made}");
    }
    let mut cpu_ms = Vec::new();
    let mut wall_ms = Vec::new();
    let mut peak_bytes = 0;
    for _ in 0..RUNS {
        let mut info = Command::new(&program);
        info.args(["img", "info"]).arg(&image).stdout(Stdio::null());
        let spent = usage::measure(&mut info, None)?;
        if !spent.status.success() {
            bail!("cowbell img info: {}", spent.status);
        }
        cpu_ms.push(spent.cpu.as_secs_f64() * 1e3);
        wall_ms.push(spent.wall.as_secs_f64() * 1e3);
        peak_bytes = spent.peak_bytes.max(peak_bytes);
    }
    let (cpu, wall) = (usage::median(&mut cpu_ms), usage::median(&mut wall_ms));
    let kib = peak_bytes / 1024;
    println!(
        "info of a small image: CPU {cpu:.2} ms (budget {CPU_MS_MAX} ms), wall {wall:.2} ms, peak {kib} KiB"
    );
    Ok(if cpu <= CPU_MS_MAX {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("starting costs {cpu:.2} ms of CPU, and may cost {CPU_MS_MAX} ms"))
    })
}
