//! The machine's life: pieces of its run, and between them input, late disks, idle time, a debugger.
//!
//! ```text
//!            ┌──── input, a debugger, a wish to end ────┐
//!            ▼                                          │
//!   run a piece ──► limit of the piece ─────────────────┤
//!            ├────► a disk is late: drive its requests ─┤
//!            ├────► idle time to be lived: wait ────────┘
//!            └────► the guest ended, the limit is reached, nothing can wake it
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use cowbell_machine::gdb::{self, Attendant, Gone, Received};
use cowbell_machine::port::{Console, ConsoleId, Disk};
use cowbell_machine::{Boot, ConfigError, Exit, Finish, Machine, MachineConfig, Ports, boot::BootError};

use crate::disk::{BlockDisk, Drive, Notice};
use crate::surroundings::{Surroundings, Wish};

/// Instructions between two looks at the outside: some ten milliseconds.
const PIECE: u64 = 4_000_000;
/// Bytes of input taken at once; no more than a UART holds for a guest that is slow to read.
const INPUT_MAX: usize = 4096;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched off, or asked for a reset that is not to be done.
    Finished(Finish),
    /// The instruction count that was asked for is reached.
    Limit,
    /// Every hart waits for an interrupt that cannot come.
    Asleep,
    /// Somebody wanted it to end.
    Wished(Wish),
    /// The debugger ended it.
    Killed,
}

/// Whether a machine starts at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At once.
    #[default]
    Running,
    /// When a debugger lets it.
    Stopped,
}

/// Why a machine cannot be, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Its options contradict what there can be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A debugger broke the protocol.
    #[error(transparent)]
    Debugger(#[from] gdb::SessionError),
}

/// A machine and its disks.
pub struct Vm {
    machine: Machine,
    disks: Vec<BlockDisk>,
    limit: u64,
}

impl Vm {
    /// A machine with these drives, ready to run what `boot` says.
    ///
    /// # Errors
    /// When there can be no such machine or there is nothing to boot, or something is malformed or does not fit.
    pub fn new(
        config: &MachineConfig,
        boot: &Boot,
        drives: Vec<Drive>,
        console: Box<dyn Console>,
        notice: &Notice,
    ) -> Result<Vm, VmError> {
        let disks: Vec<BlockDisk> =
            drives.into_iter().map(|drive| BlockDisk::new(drive, notice.clone())).collect();
        let ports = disks.iter().map(|disk| Box::new(disk.clone()) as Box<dyn Disk>).collect();
        let mut machine = Machine::new(config, Ports { disks: ports, ..Ports::new(console) })?;
        machine.boot(config, boot)?;
        Ok(Vm { machine, disks, limit: u64::MAX })
    }

    /// A reset boots this again, instead of ending the run.
    pub fn set_restart(&mut self, config: MachineConfig, boot: Boot) {
        self.machine.set_restart(config, boot);
    }

    /// The run ends when this many instructions have been executed.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The disks.
    pub fn disks(&self) -> &[BlockDisk] {
        &self.disks
    }

    /// Runs until something ends it, and until no request is in flight.
    ///
    /// # Errors
    /// When a debugger breaks the protocol.
    pub fn run(&mut self, start: Start, outside: &mut dyn Surroundings) -> Result<End, VmError> {
        let end = self.run_to_end(start, outside);
        outside.flush();
        let disks = &self.disks;
        let quiet = async {
            for disk in disks {
                disk.quiet().await;
            }
        };
        outside.drive(pin!(quiet));
        end
    }

    fn run_to_end(&mut self, start: Start, outside: &mut dyn Surroundings) -> Result<End, VmError> {
        let mut stopped = start == Start::Stopped;
        loop {
            if let Some(wish) = outside.wish() {
                return Ok(End::Wished(wish));
            }
            if outside.debugger_waits() {
                match self.debug(outside)? {
                    gdb::Ended::Killed => return Ok(End::Killed),
                    gdb::Ended::Finished(finish) => return Ok(End::Finished(finish)),
                    gdb::Ended::Lost { stands } => stopped = stands,
                    gdb::Ended::Detached | gdb::Ended::Quit => stopped = false,
                }
                continue;
            }
            if stopped {
                outside.wait(None);
                continue;
            }
            pass_input(&mut self.machine, outside);
            let piece = self.machine.count().saturating_add(PIECE);
            match self.machine.run(piece.min(self.limit)) {
                Exit::Finished(finish) => return Ok(End::Finished(finish)),
                Exit::Limit if self.machine.count() >= self.limit => return Ok(End::Limit),
                Exit::Idle { for_ns: None } if !outside.can_wake() => return Ok(End::Asleep),
                exit => self.go_on(exit, outside),
            }
        }
    }

    /// Does what the machine waits for.
    fn go_on(&mut self, exit: Exit, outside: &mut dyn Surroundings) {
        go_on(&mut self.machine, &self.disks, exit, outside);
    }

    /// Serves the debugger that is there.
    fn debug(&mut self, outside: &mut dyn Surroundings) -> Result<gdb::Ended, VmError> {
        let mut session = Session { disks: &self.disks, outside };
        let ended = gdb::serve(&mut self.machine, &mut session);
        outside.debugger_leaves();
        Ok(ended?)
    }
}

fn pass_input(machine: &mut Machine, outside: &mut dyn Surroundings) {
    let room = [ConsoleId::Uart, ConsoleId::Virtio].map(|console| machine.input_room(console));
    let room = room.into_iter().min().unwrap_or(0).min(INPUT_MAX);
    for input in outside.take_input(room) {
        machine.input(input.console, &input.bytes);
    }
}

fn go_on(machine: &mut Machine, disks: &[BlockDisk], exit: Exit, outside: &mut dyn Surroundings) {
    outside.flush();
    match exit {
        Exit::DiskLate => {
            // All disks are looked at, so that none stands still behind another.
            let progress = poll_fn(|cx| {
                let finished = disks.iter().filter(|disk| disk.poll_running(cx)).count() > 0;
                let idle = disks.iter().all(|disk| disk.in_flight() == 0);
                if finished || idle { Poll::Ready(()) } else { Poll::Pending }
            });
            outside.drive(pin!(progress));
        }
        Exit::Idle { for_ns } => {
            let passed = outside.wait(for_ns);
            if for_ns.is_some() {
                machine.pass_idle(passed);
            }
        }
        Exit::Limit | Exit::Restarted | Exit::Breakpoint { .. } | Exit::Finished(_) => {}
    }
}

/// The surroundings of a machine as a debugger's session needs them.
struct Session<'a> {
    disks: &'a [BlockDisk],
    outside: &'a mut dyn Surroundings,
}

impl Attendant for Session<'_> {
    fn receive(&mut self) -> Received {
        self.outside.debugger_receive()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.outside.debugger_send(bytes)
    }

    fn wait(&mut self) {
        self.outside.flush();
        self.outside.wait(None);
    }

    fn attend(&mut self, machine: &mut Machine, exit: Exit) {
        pass_input(machine, self.outside);
        go_on(machine, self.disks, exit, self.outside);
    }

    fn quits(&self) -> bool {
        self.outside.wish().is_some()
    }
}
