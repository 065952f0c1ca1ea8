//! CPU time, wall time and peak memory of one process.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What a process used from start to exit.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// User and system time, of all its threads.
    pub cpu: Duration,
    /// From its start until it was reaped.
    pub wall: Duration,
    /// Largest resident set, in bytes.
    pub peak_bytes: u64,
    /// How it ended.
    pub status: ExitStatus,
}

/// Runs a program, with `input` as its standard input, and measures it alone: not its siblings.
pub fn measure(command: &mut Command, input: Option<&Path>) -> Result<Spent> {
    match input {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            command.stdin(file)
        }
        None => command.stdin(Stdio::null()),
    };
    let began = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let pid = libc::pid_t::try_from(child.id()).context("process id")?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `status` and `usage` are valid for writes for the length of the call, and `pid` is a child of
    // this process that nobody else waits for: `child` is dropped below without waiting.
    let reaped = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
    let wall = began.elapsed();
    if reaped != pid {
        return Err(std::io::Error::last_os_error()).context("waiting for a program");
    }
    // SAFETY: a `rusage` is plain numbers, for which zeroes are valid; the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    Ok(Spent {
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        wall,
        peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        status: ExitStatus::from_raw(status),
    })
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// The median; of an even number of values the upper of the two in the middle. Zero of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_is_seen_busy() {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit 3"]);
        let spent = measure(&mut command, None).unwrap();
        assert_eq!(spent.status.code(), Some(3));
        assert!(spent.cpu > Duration::from_millis(1), "{spent:?}");
        assert!(spent.peak_bytes > 100_000, "{spent:?}");
    }

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut []), 0.0);
    }
}
