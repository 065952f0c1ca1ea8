//! The debugger's door: the GDB remote protocol, through the `gdbstub` crate.
//!
//! A debugger looks without being seen: its reads walk page tables without a trace and set no bits, breakpoints
//! change no memory, and stopping changes no count. Its writes are the one exception, and are its user's wish.
//!
//! One thread is shown: the first hart's, or the one that met a breakpoint. Nothing here waits or knows a socket:
//! an [`Attendant`] carries the bytes and keeps the machine's surroundings going.

mod registers;
mod target;
mod watch;

pub use registers::{DebugArch, RegisterId};
pub use target::Debugged;

use crate::device::Finish;
use crate::machine::{Exit, Machine};
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, SingleThreadStopReason};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The debugger let go; the machine may run on, and another debugger may come.
    Detached,
    /// The connection is gone without a word.
    Lost {
        /// The machine was standing, and is to stand until another debugger comes.
        stands: bool,
    },
    /// The debugger asked for the machine's end.
    Killed,
    /// The guest ended its run.
    Finished(Finish),
    /// The attendant wanted to end it.
    Quit,
}

/// Why a session broke off.
#[derive(Debug, thiserror::Error)]
#[error("the debugger does not keep to the protocol: {reason}")]
pub struct SessionError {
    /// What the stub said.
    pub reason: String,
}

/// What the debugger sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing yet.
    Nothing,
    /// Some bytes.
    Bytes(Vec<u8>),
    /// Nothing more will come.
    Closed,
}

/// The other end of the connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the debugger is gone")]
pub struct Gone;

/// What a session needs from its surroundings.
pub trait Attendant {
    /// Takes what the debugger sent, without waiting.
    fn receive(&mut self) -> Received;

    /// Sends to the debugger.
    ///
    /// # Errors
    /// When it is gone.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone>;

    /// The machine stands, and the debugger thinks: waits until there is something to receive, or [`Self::quits`]
    /// has changed. May return early.
    fn wait(&mut self);

    /// The machine ran a while and came to `exit`, which is a limit unless it cannot go on by itself (a disk that is
    /// late, idle time to be lived). May sleep a little, and is called again while that lasts.
    fn attend(&mut self, machine: &mut Machine, exit: Exit);

    /// Whether the session shall end, whatever the debugger wants.
    fn quits(&self) -> bool;
}

/// The attendant, shared by the connection and the target, which use it in turn.
type Shared<'a> = RefCell<&'a mut dyn Attendant>;

/// Serves one debugger until it leaves or the guest ends.
///
/// # Errors
/// When the debugger breaks the protocol.
pub fn serve(machine: &mut Machine, attendant: &mut dyn Attendant) -> Result<Ended, SessionError> {
    let attendant = RefCell::new(attendant);
    let mut debugged = Debugged::new(machine, &attendant);
    let outcome = Session { attendant: &attendant, pending: VecDeque::new() }.run(&mut debugged);
    debugged.leave();
    match outcome {
        Ok(Ended::Finished(finish)) => Ok(Ended::Finished(machine.bus().finish.unwrap_or(finish))),
        Ok(ended) => Ok(ended),
        // Nothing is sent while the machine runs.
        Err(error) if error.is_connection_error() => Ok(Ended::Lost { stands: true }),
        Err(error) => Err(SessionError { reason: error.to_string() }),
    }
}

/// Bytes to the debugger, sent when a packet is whole.
struct Link<'a, 'b> {
    attendant: &'a Shared<'b>,
    buffer: Vec<u8>,
}

impl Connection for Link<'_, '_> {
    type Error = Gone;

    fn write(&mut self, byte: u8) -> Result<(), Gone> {
        self.buffer.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Gone> {
        let bytes = std::mem::take(&mut self.buffer);
        if bytes.is_empty() { Ok(()) } else { self.attendant.borrow_mut().send(&bytes) }
    }
}

struct Session<'a, 'b> {
    attendant: &'a Shared<'b>,
    /// Received and not looked at.
    pending: VecDeque<u8>,
}

type Failure = GdbStubError<Infallible, Gone>;

impl<'a, 'b> Session<'a, 'b> {
    fn run(&mut self, target: &mut Debugged<'a, 'b>) -> Result<Ended, Failure> {
        let link = Link { attendant: self.attendant, buffer: Vec::new() };
        let mut state = GdbStub::new(link).run_state_machine(target)?;
        loop {
            if let GdbStubStateMachine::Disconnected(stub) = &state {
                return Ok(ended(stub.get_reason()));
            }
            if self.attendant.borrow().quits() {
                return Ok(Ended::Quit);
            }
            if !self.receive() {
                return Ok(Ended::Lost { stands: !matches!(state, GdbStubStateMachine::Running(_)) });
            }
            let byte = self.pending.pop_front();
            state = match state {
                GdbStubStateMachine::Idle(stub) => match byte {
                    Some(byte) => stub.incoming_data(target, byte)?,
                    None => {
                        self.attendant.borrow_mut().wait();
                        stub.into()
                    }
                },
                GdbStubStateMachine::Running(stub) => match byte {
                    Some(byte) => stub.incoming_data(target, byte)?,
                    None => match target.advance() {
                        Some(reason) => stub.report_stop(target, reason)?,
                        None => stub.into(),
                    },
                },
                GdbStubStateMachine::CtrlCInterrupt(stub) => {
                    let stopped: Option<SingleThreadStopReason<u64>> =
                        Some(SingleThreadStopReason::Signal(Signal::SIGINT));
                    stub.interrupt_handled(target, stopped)?
                }
                GdbStubStateMachine::Disconnected(_) => state,
            };
        }
    }

    /// Takes what is there, when nothing is left to look at. `false` when the debugger is gone.
    fn receive(&mut self) -> bool {
        if !self.pending.is_empty() {
            return true;
        }
        match self.attendant.borrow_mut().receive() {
            Received::Nothing => true,
            Received::Bytes(bytes) => {
                self.pending.extend(bytes);
                true
            }
            Received::Closed => false,
        }
    }
}

fn ended(reason: DisconnectReason) -> Ended {
    match reason {
        DisconnectReason::Disconnect => Ended::Detached,
        DisconnectReason::Kill => Ended::Killed,
        DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_) => {
            Ended::Finished(Finish::PowerOff(0))
        }
    }
}
