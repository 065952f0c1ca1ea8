//! Standard output and error lines.
//!
//! Standard output is collected and written in large pieces; whoever prints to standard error flushes it
//! first where the order of the two matters (a script that reads both through one pipe). A reader that went
//! away changes nothing: what was asked for is done to its end, with the status that it earns, as in the reference.

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, Stdout, Write};
use std::sync::{Arc, Mutex, PoisonError};

use cowbell_block::names;

/// Bytes collected before they are written: one pipe's worth.
const OUT_BYTES: usize = 1 << 16;

/// The collected standard output.
pub struct Out(BufWriter<Stdout>);

impl Out {
    /// Takes standard output for itself.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(OUT_BYTES, io::stdout()))
    }

    /// Prints `text` as it is, names with the bytes they have.
    pub fn put(&mut self, text: &str) {
        guard(self.0.write_all(&names::to_bytes(text)));
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) {
        self.put(text);
        self.put("\n");
    }

    /// Writes what was collected.
    pub fn flush(&mut self) {
        guard(self.0.flush());
    }

    /// Writes what was collected where somebody watches it come. For everybody else it comes behind all that goes to
    /// standard error, as with C's buffers: a log of both is the same as the reference's.
    pub fn flush_to_terminal(&mut self) {
        if cowbell_host::terminal::stdout_is_terminal() {
            self.flush();
        }
    }
}

/// Standard output, shared with requests in flight and with nodes that have something to say.
#[derive(Clone)]
pub struct Printer(Arc<Mutex<Option<Out>>>);

impl Printer {
    /// A printer that has not printed anything.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// Prints to standard output.
    pub fn put(&self, text: &str) {
        // A panic while printing leaves nothing half done that matters.
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.get_or_insert_with(Out::new).put(text);
    }

    /// Writes what was printed.
    pub fn flush(&self) {
        if let Some(out) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            out.flush();
        }
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // Errors were reported by the writes that mattered; a second report from a drop helps nobody.
        let _ = self.0.flush();
    }
}

/// Prints a line to standard error, names with the bytes they have.
pub fn complain(line: impl fmt::Display) {
    mutter(format_args!("{line}\n"));
}

/// Prints to standard error, without ending the line.
pub fn mutter(text: impl fmt::Display) {
    // Whoever closed it does not want to know.
    let _ = io::stderr().write_all(&names::to_bytes(&text.to_string()));
}

fn guard(result: io::Result<()>) {
    match result {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        Err(e) => {
            // Output that is lost must not look like success.
            complain(format_args!("cannot write to standard output: {e}"));
            std::process::exit(1);
        }
    }
}
