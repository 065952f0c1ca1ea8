//! The machine's surroundings: two consoles, the debugger's socket, signals, and waiting for any of them.

use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use cowbell_host::{RawTerminal, block_on, ready, signal};
use cowbell_machine::gdb::{Gone, Received};
use cowbell_machine::port::{Console, ConsoleId};
use cowbell_vm::escape::{self, Escapes};
use cowbell_vm::{Input, Surroundings, Wish};

use super::channel::{Channel, Choice, Wanted};
use super::socket::{Address, Incoming, Listener, Role, Stream};
use crate::flags::{Args, run as flags};
use crate::out::{complain, mutter};

/// Input kept for a guest that does not read: more stays where it is.
const TYPED_MAX: usize = 4096;
/// Output collected before it is written at once.
const OUTPUT_MAX: usize = 16 << 10;
/// The longest sleep: a signal may come right before it, and is seen after it.
const SLEEP_MAX: Duration = Duration::from_millis(200);

const CONSOLES: [ConsoleId; 2] = [ConsoleId::Uart, ConsoleId::Virtio];

/// The address that `--gdb` or `-s` says.
///
/// # Errors
/// When it is none.
pub fn debugger_address(args: &Args) -> Result<Option<Address>> {
    match args.value(&flags::GDB) {
        Some(text) => Ok(Some(Address::parse(text)?)),
        None if args.has(&flags::GDB_DEFAULT) => Ok(Some(Address::parse("tcp::1234")?)),
        None => Ok(None),
    }
}

/// One console: its other end, what was typed, and what is to be shown.
struct Line {
    channel: Channel,
    typed: VecDeque<u8>,
    output: Vec<u8>,
    broken: bool,
}

impl Line {
    fn show(&mut self) {
        let output = std::mem::take(&mut self.output);
        if output.is_empty() {
            self.channel.push();
        } else {
            self.broken |= self.channel.put(&output).is_err();
        }
        // Its memory is used again.
        self.output = output;
        self.output.clear();
    }
}

type Lines = Arc<Mutex<[Line; 2]>>;

fn lock(lines: &Lines) -> MutexGuard<'_, [Line; 2]> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine's door to the lines.
struct Output(Lines);

impl Console for Output {
    fn write(&mut self, console: ConsoleId, bytes: &[u8]) {
        let line = &mut lock(&self.0)[console as usize];
        line.output.extend_from_slice(bytes);
        if line.output.len() >= OUTPUT_MAX {
            line.show();
        }
    }
}

/// The surroundings.
pub struct Front {
    lines: Lines,
    choice: Choice,
    terminal: Option<RawTerminal>,
    escapes: Escapes,
    debugger: Option<Listener>,
    session: Option<Stream>,
    wish: Option<Wish>,
}

impl Front {
    /// Opens consoles and the debugger's socket; nobody is waited for, and the terminal stays as it is.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn new(choice: Choice, debugger: Option<Address>) -> Result<Self> {
        let line = |wanted| -> Result<Line> {
            let channel = Channel::open(wanted)?;
            Ok(Line { channel, typed: VecDeque::new(), output: Vec::new(), broken: false })
        };
        let lines = [line(&choice.serial)?, line(&choice.virtio)?];
        Ok(Self {
            lines: Arc::new(Mutex::new(lines)),
            choice,
            terminal: None,
            escapes: Escapes::default(),
            debugger: debugger.map(|address| address.listen()).transpose()?,
            session: None,
            wish: None,
        })
    }

    /// The machine's end of the consoles.
    pub fn console(&self) -> Box<dyn Console> {
        Box::new(Output(self.lines.clone()))
    }

    /// Whether somebody may type at any moment.
    pub fn is_interactive(&self) -> bool {
        let wanted = [&self.choice.serial, &self.choice.virtio];
        wanted.into_iter().any(|wanted| match wanted {
            Wanted::Stdio => cowbell_host::terminal::stdin_is_terminal(),
            Wanted::Socket(_) => true,
            Wanted::Null | Wanted::File(_) => false,
        })
    }

    /// Waits for those who must be there before the machine starts, and takes the terminal.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub fn open(&mut self) -> Result<()> {
        for (index, wanted) in [self.choice.serial.clone(), self.choice.virtio.clone()].iter().enumerate() {
            let Wanted::Socket(endpoint) = wanted else { continue };
            if endpoint.role != Role::WaitingServer {
                continue;
            }
            complain(format_args!("waiting for a connection at {}", endpoint.address));
            while !lock(&self.lines)[index].channel.is_connected() && self.wish().is_none() {
                self.wait(None);
            }
        }
        if [&self.choice.serial, &self.choice.virtio].contains(&&Wanted::Stdio) {
            self.terminal = RawTerminal::enter()?;
        }
        Ok(())
    }

    /// Gives the terminal back.
    pub fn close(&mut self) {
        self.flush();
        self.terminal = None;
    }

    /// Reads what has come on those lines that are `readable`.
    fn pump(&mut self, readable: [bool; 2]) {
        let mut asked = Vec::new();
        for (index, line) in lock(&self.lines).iter_mut().enumerate() {
            if !readable[index] {
                continue;
            }
            let mut bytes = [0; TYPED_MAX];
            let room = TYPED_MAX - line.typed.len().min(TYPED_MAX);
            let len = line.channel.receive(&mut bytes[..room]);
            let is_terminal = self.terminal.is_some() && matches!(line.channel, Channel::Stdio { .. });
            if is_terminal {
                let (through, commands) = self.escapes.take(&bytes[..len]);
                line.typed.extend(through);
                asked.extend(commands);
            } else {
                line.typed.extend(&bytes[..len]);
            }
        }
        for command in asked {
            match command {
                escape::Command::Quit => self.wish = Some(Wish::Quit),
                escape::Command::Help => mutter(escape::HELP),
            }
        }
    }

    /// Looks at every descriptor for at most `timeout`, and reads from the consoles.
    fn look(&mut self, timeout: Duration) {
        let readable = {
            let lines = lock(&self.lines);
            let mut watched: Vec<(Option<usize>, BorrowedFd<'_>)> = Vec::new();
            for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.typed.len() < TYPED_MAX) {
                watched.extend(line.channel.descriptor().map(|descriptor| (Some(index), descriptor)));
            }
            match (&self.session, &self.debugger) {
                (Some(session), _) => watched.push((None, session.as_fd())),
                (None, Some(listener)) => watched.push((None, listener.as_fd())),
                (None, None) => {}
            }
            let descriptors: Vec<_> = watched.iter().map(|(_, descriptor)| *descriptor).collect();
            // A host without memory for this has larger troubles; the caller looks again.
            let ready = ready::readable(&descriptors, Some(timeout)).unwrap_or_default();
            let mut readable = [false; 2];
            for ((index, _), ready) in watched.iter().zip(ready) {
                if let Some(index) = index {
                    readable[*index] = ready;
                }
            }
            readable
        };
        self.pump(readable);
    }
}

impl Surroundings for Front {
    fn drive(&mut self, work: Pin<&mut dyn Future<Output = ()>>) {
        block_on(work);
    }

    fn flush(&mut self) {
        for line in lock(&self.lines).iter_mut() {
            line.show();
            if line.broken && self.wish.is_none() {
                self.wish = Some(Wish::ConsoleGone);
            }
        }
    }

    fn take_input(&mut self, room: usize) -> Vec<Input> {
        self.flush();
        self.look(Duration::ZERO);
        let mut lines = lock(&self.lines);
        let inputs = CONSOLES.into_iter().zip(lines.iter_mut()).map(|(console, line)| {
            let len = line.typed.len().min(room);
            Input { console, bytes: line.typed.drain(..len).collect() }
        });
        inputs.filter(|input| !input.bytes.is_empty()).collect()
    }

    fn can_wake(&self) -> bool {
        let lines = lock(&self.lines);
        self.debugger.is_some() || lines.iter().any(|line| line.channel.can_wake() || !line.typed.is_empty())
    }

    fn wait(&mut self, for_ns: Option<u64>) -> u64 {
        let began = Instant::now();
        let sleep = for_ns.map_or(SLEEP_MAX, |ns| Duration::from_nanos(ns).min(SLEEP_MAX));
        self.look(sleep);
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wish(&self) -> Option<Wish> {
        self.wish.or_else(|| signal::is_interrupted().then_some(Wish::Interrupted))
    }

    fn debugger_waits(&mut self) -> bool {
        if self.session.is_none() {
            self.session = self.debugger.as_ref().and_then(Listener::accept);
        }
        self.session.is_some()
    }

    fn debugger_receive(&mut self) -> Received {
        let mut bytes = [0; 4096];
        match self.session.as_mut().map(|session| session.receive(&mut bytes)) {
            Some(Incoming::Bytes(len)) => Received::Bytes(bytes[..len].to_vec()),
            Some(Incoming::Nothing) => Received::Nothing,
            Some(Incoming::Closed) | None => Received::Closed,
        }
    }

    fn debugger_send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.session.as_mut().ok_or(Gone)?.send(rest).map_err(|_| Gone)?;
            rest = &rest[sent..];
            // A debugger that does not read is waited for, as long as nobody wants the end.
            if sent == 0 {
                if self.wish().is_some() {
                    return Err(Gone);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn debugger_leaves(&mut self) {
        self.session = None;
    }
}
