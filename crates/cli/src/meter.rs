//! Progress as people see it: `-p`, a signal that asks, and the interrupt that ends.

use std::io::Write;
use std::sync::Mutex;

use cowbell_jobs::Progress;

use crate::context::Context;
use crate::face::Face;

/// Least change in per cent before another figure is printed.
const STEP_PERCENT: f64 = 1.0;

/// Prints how far a job is.
pub struct Meter {
    shown: Option<Mutex<f64>>,
    quiet: bool,
    name: String,
}

impl Meter {
    /// A meter that prints if `visible`, or to a terminal under our own name; otherwise only when a signal asks.
    ///
    /// SIGINT and SIGTERM become a request to stop.
    pub fn new(cx: &Context, visible: bool, quiet: bool) -> Self {
        // A host that has no such signals leaves the job without them, and nothing else.
        let _ = cowbell_host::signal::catch_interrupts();
        let _ = cowbell_host::signal::catch_progress_requests();
        let visible = visible || (cx.face == Face::Cowbell && cowbell_host::terminal::stdout_is_terminal());
        let meter =
            Self { shown: (visible && !quiet).then(|| Mutex::new(-1.0)), quiet, name: cx.name.clone() };
        meter.show(0.0);
        meter
    }

    fn show(&self, percent: f64) {
        let Some(last) = &self.shown else { return };
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ends = percent <= 0.0 || percent >= 100.0;
        if *last < 0.0 || percent >= *last + STEP_PERCENT || (ends && percent != *last) {
            *last = percent;
            print_percent(percent);
        }
    }

    /// The job is done.
    pub fn complete(&self) {
        if self.shown.is_some() {
            print_percent(100.0);
        }
    }

    /// Ends the line, however the job ended.
    pub fn end(&self) {
        if self.shown.is_some() {
            let mut out = std::io::stdout().lock();
            // As above.
            let _ = writeln!(out);
        }
    }
}

fn print_percent(percent: f64) {
    let mut out = std::io::stdout().lock();
    // A lost figure is no reason to fail.
    let _ = write!(out, "    ({percent:.2}/100%)\r");
    let _ = out.flush();
}

impl Progress for Meter {
    fn advanced(&self, done: u64, total: u64) {
        let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
        self.show(percent);
        if self.shown.is_none() && cowbell_host::signal::take_progress_request() {
            eprintln!("    ({percent:.2}/100%)");
        }
    }

    fn is_cancelled(&self) -> bool {
        cowbell_host::signal::is_interrupted()
    }

    fn unreadable(&self, offset: u64, _len: u64, error: &cowbell_block::Error) {
        if !self.quiet {
            eprintln!("{}: warning: error while reading offset {offset}: {error}", self.name);
        }
    }
}
