//! The seam to the outside: whoever runs a machine brings input, waiting, and the connection to a debugger.
//!
//! All of it is called on the machine's thread, between two pieces of its run.

use std::future::Future;
use std::pin::Pin;

use cowbell_machine::gdb::{Gone, Received};
use cowbell_machine::port::ConsoleId;

/// Bytes that somebody typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Into which console.
    pub console: ConsoleId,
    /// What.
    pub bytes: Vec<u8>,
}

/// That the run shall end, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The user typed the escape.
    Quit,
    /// A signal came.
    Interrupted,
    /// The console cannot be written to any more.
    ConsoleGone,
}

/// What a machine needs from outside.
pub trait Surroundings {
    /// Drives the future to its end on this thread.
    fn drive(&mut self, work: Pin<&mut dyn Future<Output = ()>>);

    /// Shows all output that was collected.
    fn flush(&mut self);

    /// Takes input that has come, at most `room` bytes for each console, without waiting.
    fn take_input(&mut self, room: usize) -> Vec<Input>;

    /// Whether input can still come: a machine that sleeps without it sleeps for ever.
    fn can_wake(&self) -> bool;

    /// Waits until there is input, a debugger, or a wish, and at most so many nanoseconds; gives those that passed.
    fn wait(&mut self, for_ns: Option<u64>) -> u64;

    /// Whether the run shall end.
    fn wish(&self) -> Option<Wish>;

    /// Whether a debugger has connected since the last session.
    fn debugger_waits(&mut self) -> bool;

    /// Takes what the debugger sent, without waiting.
    fn debugger_receive(&mut self) -> Received;

    /// Sends to the debugger.
    ///
    /// # Errors
    /// When it is gone.
    fn debugger_send(&mut self, bytes: &[u8]) -> Result<(), Gone>;

    /// The session is over: the next debugger may come.
    fn debugger_leaves(&mut self);
}
