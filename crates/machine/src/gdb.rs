//! The debugger's door: the GDB remote protocol over any byte stream, through the `gdbstub` crate.
//!
//! A debugger looks without being seen: its reads walk page tables without a trace and set no bits, breakpoints
//! change no memory, and stopping changes no count. Its writes are the one exception, and are its user's wish.
//!
//! One thread is shown: the first hart's, or the one that met a breakpoint.

mod registers;
mod target;
mod watch;

pub use registers::{DebugArch, RegisterId};
pub use target::Debugged;

use crate::device::Finish;
use crate::machine::{Exit, Machine};
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use std::convert::Infallible;
use std::marker::PhantomData;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The debugger let go; the machine may run on, and another debugger may come.
    Detached,
    /// The debugger asked for the machine's end.
    Killed,
    /// The guest ended its run.
    Finished(Finish),
}

/// Why a session broke off.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the debugger failed: {reason}")]
pub struct SessionError {
    /// What the stub said.
    pub reason: String,
}

/// Serves one debugger until it leaves or the guest ends.
///
/// `wait` is called when the machine cannot go on by itself (a disk that is late, idle time to be lived) and may
/// sleep a little; it is called again while that lasts.
///
/// # Errors
/// When the connection fails.
pub fn serve<C>(
    machine: &mut Machine,
    connection: C,
    wait: &mut dyn FnMut(&mut Machine, Exit),
) -> Result<Ended, SessionError>
where
    C: ConnectionExt,
    C::Error: std::fmt::Debug,
{
    let mut debugged = Debugged::new(machine, wait);
    let outcome = GdbStub::new(connection).run_blocking::<Loop<'_, C>>(&mut debugged);
    debugged.leave();
    match outcome {
        Ok(DisconnectReason::Disconnect) => Ok(Ended::Detached),
        Ok(DisconnectReason::Kill) => Ok(Ended::Killed),
        Ok(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_)) => {
            Ok(Ended::Finished(machine.bus().finish.unwrap_or(Finish::PowerOff(0))))
        }
        Err(error) => Err(SessionError { reason: format!("{error:?}") }),
    }
}

struct Loop<'a, C>(PhantomData<(&'a (), C)>);

type WaitError<C> = WaitForStopReasonError<Infallible, <C as Connection>::Error>;

impl<'a, C: ConnectionExt> BlockingEventLoop for Loop<'a, C> {
    type Target = Debugged<'a>;
    type Connection = C;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Self::Target,
        connection: &mut C,
    ) -> Result<Event<Self::StopReason>, WaitError<C>> {
        loop {
            if connection.peek().map_err(WaitForStopReasonError::Connection)?.is_some() {
                let byte = connection.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
            if let Some(reason) = target.advance() {
                return Ok(Event::TargetStopped(reason));
            }
        }
    }

    fn on_interrupt(_: &mut Self::Target) -> Result<Option<Self::StopReason>, Infallible> {
        Ok(Some(SingleThreadStopReason::Signal(gdbstub::common::Signal::SIGINT)))
    }
}
