//! Progress as people and programs see it: `-p`, `--progress=json`, a signal that asks, and the interrupt that ends.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cowbell_jobs::Progress;

use cowbell_block::error::errno_text;

use crate::context::Context;
use crate::face::Face;
use crate::flags::{Args, Flag};
use crate::out::complain;

/// Least change in per cent before another figure is printed.
const STEP_PERCENT: f64 = 1.0;
/// Least time between two lines for programs, but for the last.
const STEP_TIME: Duration = Duration::from_millis(250);

/// Who is told how far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Who sends the signal that asks, and nobody else; a terminal under our own name is somebody.
    Asking,
    /// People: one figure that is printed over and over.
    People,
    /// Programs: one JSON object per line, on standard error.
    Programs,
    /// Nobody, whoever asked: `-q`.
    Nobody,
}

impl Audience {
    /// What the flag of this command line asks for.
    ///
    /// # Errors
    /// A form that does not exist.
    pub fn of(args: &Args, flag: &'static Flag) -> Result<Self> {
        match args.value(flag) {
            Some("json") => Ok(Self::Programs),
            None | Some("text") if args.has(flag) => Ok(Self::People),
            None => Ok(Self::Asking),
            Some(other) => bail!("--progress takes 'text' or 'json', not '{other}'"),
        }
    }

    /// The same for a command that is told to print nothing for people.
    pub fn unless(self, quiet: bool) -> Self {
        if quiet && self != Self::Programs { Self::Nobody } else { self }
    }
}

/// Prints how far a job is.
pub struct Meter {
    shown: Shown,
    quiet: bool,
    name: String,
}

enum Shown {
    Nothing,
    /// The last figure that was printed.
    Percent(Mutex<f64>),
    Lines(Mutex<Lines>),
}

/// What lines for programs need.
struct Lines {
    start: Instant,
    last: Option<Instant>,
    done: u64,
    total: u64,
}

impl Meter {
    /// A meter for this audience. SIGINT and SIGTERM become a request to stop.
    pub fn new(cx: &Context, audience: Audience) -> Self {
        // A host that has no such signals leaves the job without them, and nothing else.
        let _ = cowbell_host::signal::catch_interrupts();
        let _ = cowbell_host::signal::catch_progress_requests();
        let watched = cx.face == Face::Cowbell && cowbell_host::terminal::stdout_is_terminal();
        let shown = match audience {
            Audience::Programs => {
                Shown::Lines(Mutex::new(Lines { start: Instant::now(), last: None, done: 0, total: 0 }))
            }
            Audience::People => Shown::Percent(Mutex::new(-1.0)),
            Audience::Asking if watched => Shown::Percent(Mutex::new(-1.0)),
            Audience::Asking | Audience::Nobody => Shown::Nothing,
        };
        let meter = Self { shown, quiet: audience == Audience::Nobody, name: cx.name.clone() };
        match &meter.shown {
            Shown::Percent(last) => show_percent(last, 0.0),
            Shown::Lines(lines) => held(lines).show(),
            Shown::Nothing => {}
        }
        meter
    }

    /// The job is done.
    pub fn complete(&self) {
        match &self.shown {
            Shown::Percent(_) => print_percent(100.0),
            Shown::Lines(lines) => {
                let mut lines = held(lines);
                lines.done = lines.total;
                lines.show();
            }
            Shown::Nothing => {}
        }
    }

    /// Ends the line, however the job ended.
    pub fn end(&self) {
        if matches!(self.shown, Shown::Percent(_)) {
            let mut out = std::io::stdout().lock();
            // As below.
            let _ = writeln!(out);
        }
    }
}

/// A panic while printing leaves nothing half done that matters.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn show_percent(last: &Mutex<f64>, percent: f64) {
    let mut last = held(last);
    let ends = percent <= 0.0 || percent >= 100.0;
    if *last < 0.0 || percent >= *last + STEP_PERCENT || (ends && percent != *last) {
        *last = percent;
        print_percent(percent);
    }
}

fn print_percent(percent: f64) {
    let mut out = std::io::stdout().lock();
    // A lost figure is no reason to fail.
    let _ = write!(out, "    ({percent:.2}/100%)\r");
    let _ = out.flush();
}

impl Lines {
    fn advance(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        if self.last.is_none_or(|last| last.elapsed() >= STEP_TIME) {
            self.show();
        }
    }

    fn show(&mut self) {
        self.last = Some(Instant::now());
        let mut line = json_line(self.done, self.total, self.start.elapsed());
        line.push('\n');
        // As above.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// One line for programs: bytes done and in all, bytes per second since the beginning, and the seconds that are left at
/// this rate (`null` while nobody can know).
fn json_line(done: u64, total: u64, spent: Duration) -> String {
    let rate = if spent.is_zero() { 0.0 } else { done as f64 / spent.as_secs_f64() };
    let left = total.saturating_sub(done);
    let eta = match left {
        0 if total > 0 => "0.0".to_owned(),
        _ if rate > 0.0 => format!("{:.1}", left as f64 / rate),
        _ => "null".to_owned(),
    };
    format!("{{\"done\": {done}, \"total\": {total}, \"rate\": {rate:.0}, \"eta\": {eta}}}")
}

impl Progress for Meter {
    fn advanced(&self, done: u64, total: u64) {
        let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
        match &self.shown {
            Shown::Percent(last) => show_percent(last, percent),
            Shown::Lines(lines) => held(lines).advance(done, total),
            Shown::Nothing if cowbell_host::signal::take_progress_request() => {
                complain(format_args!("    ({percent:.2}/100%)"));
            }
            Shown::Nothing => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        cowbell_host::signal::is_interrupted()
    }

    fn unreadable(&self, offset: u64, _len: u64, error: &cowbell_block::Error) {
        if !self.quiet {
            let reason = errno_text(error.errno());
            complain(format_args!("{}: warning: error while reading offset {offset}: {reason}", self.name));
        }
    }

    fn status_unknown(&self, offset: u64, error: &cowbell_block::Error) {
        if !self.quiet {
            let (name, reason) = (&self.name, errno_text(error.errno()));
            complain(format_args!(
                "{name}: warning: error while reading block status at offset {offset}: {reason}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_is_left_as_far_as_that_can_be_known() {
        let line = |done, total, secs| json_line(done, total, Duration::from_secs(secs));
        assert_eq!(line(0, 0, 0), r#"{"done": 0, "total": 0, "rate": 0, "eta": null}"#);
        assert_eq!(line(0, 100, 3), r#"{"done": 0, "total": 100, "rate": 0, "eta": null}"#);
        assert_eq!(line(50, 200, 5), r#"{"done": 50, "total": 200, "rate": 10, "eta": 15.0}"#);
        assert_eq!(line(200, 200, 5), r#"{"done": 200, "total": 200, "rate": 40, "eta": 0.0}"#);
    }
}
