//! Where a console leads: this program's own input and output, a file, a socket, or nowhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context as _, Result, bail};

use super::socket::{Endpoint, Incoming, Listener, Role, Stream};
use crate::flags::{Args, run as flags};

/// Output kept for a socket whose other end does not read; what comes then is dropped.
const BACKLOG_MAX: usize = 1 << 20;

/// What a console was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    Null,
    /// Output into a file.
    File(String),
    /// A socket.
    Socket(Endpoint),
}

impl Wanted {
    fn parse(option: &str, text: &str) -> Result<Self> {
        Ok(match text {
            "stdio" | "mon:stdio" => Self::Stdio,
            "null" | "none" => Self::Null,
            _ => match text.split_once(':') {
                Some(("file", path)) if !path.is_empty() => Self::File(path.to_owned()),
                Some(("unix" | "tcp", _)) => {
                    Self::Socket(Endpoint::parse(text).with_context(|| option.to_owned())?)
                }
                _ => bail!(
                    "{option}: '{text}' is no device: stdio, null, file:PATH, unix:PATH and tcp:HOST:PORT are known"
                ),
            },
        })
    }
}

/// Both consoles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The serial port.
    pub serial: Wanted,
    /// The virtio console.
    pub virtio: Wanted,
}

impl Choice {
    /// As the options say.
    ///
    /// # Errors
    /// A device that does not exist; both consoles on standard input.
    pub fn of(args: &Args) -> Result<Self> {
        let wanted = |flag, option, default| match args.value(flag) {
            Some(text) => Wanted::parse(option, text),
            None => Ok(default),
        };
        let virtio = wanted(&flags::VIRTIO_CONSOLE, "--virtio-console", Wanted::Null)?;
        let free = if virtio == Wanted::Stdio { Wanted::Null } else { Wanted::Stdio };
        let serial = wanted(&flags::SERIAL, "--serial", free)?;
        if serial == Wanted::Stdio && virtio == Wanted::Stdio {
            bail!("only one console can lead to stdio");
        }
        Ok(Self { serial, virtio })
    }
}

/// A console's other end.
pub enum Channel {
    /// Standard input and output; whether input can still come.
    Stdio {
        /// Not at its end.
        open: bool,
    },
    /// Nowhere.
    Null,
    /// Output into a file.
    File(File),
    /// A socket.
    Socket {
        /// Who may call.
        listener: Option<Listener>,
        /// Who is connected.
        stream: Option<Stream>,
        /// Output that did not fit yet.
        backlog: VecDeque<u8>,
    },
}

/// Nothing can be written any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl Channel {
    /// Opens it. A waiting server is not waited for here.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn open(wanted: &Wanted) -> Result<Self> {
        Ok(match wanted {
            Wanted::Stdio => Self::Stdio { open: true },
            Wanted::Null => Self::Null,
            Wanted::File(path) => {
                Self::File(File::create(path).with_context(|| format!("cannot write to '{path}'"))?)
            }
            Wanted::Socket(endpoint) => {
                let (listener, stream) = match endpoint.role {
                    Role::Client => (None, Some(endpoint.address.connect()?)),
                    Role::Server | Role::WaitingServer => (Some(endpoint.address.listen()?), None),
                };
                Self::Socket { listener, stream, backlog: VecDeque::new() }
            }
        })
    }

    /// Whether input can still come.
    pub fn can_wake(&self) -> bool {
        match self {
            Self::Stdio { open } => *open,
            Self::Null | Self::File(_) => false,
            Self::Socket { listener, stream, .. } => listener.is_some() || stream.is_some(),
        }
    }

    /// Whether somebody is connected, where that matters.
    pub fn is_connected(&self) -> bool {
        !matches!(self, Self::Socket { stream: None, .. })
    }

    /// What becomes readable when there is input, or somebody calls.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stdio { open: true } => Some(rustix::stdio::stdin()),
            Self::Socket { stream: Some(stream), .. } => Some(stream.as_fd()),
            Self::Socket { listener: Some(listener), .. } => Some(listener.as_fd()),
            _ => None,
        }
    }

    /// Takes what has come, for a descriptor that is readable.
    pub fn receive(&mut self, into: &mut [u8]) -> usize {
        match self {
            Self::Stdio { open } => match rustix::io::read(rustix::stdio::stdin(), into) {
                Ok(0) => {
                    *open = false;
                    0
                }
                Ok(len) => len,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => 0,
                Err(_) => {
                    *open = false;
                    0
                }
            },
            Self::Null | Self::File(_) => 0,
            Self::Socket { listener, stream, .. } => {
                let Some(connected) = stream else {
                    *stream = listener.as_ref().and_then(Listener::accept);
                    return 0;
                };
                match connected.receive(into) {
                    Incoming::Bytes(len) => len,
                    Incoming::Nothing => 0,
                    Incoming::Closed => {
                        *stream = None;
                        0
                    }
                }
            }
        }
    }

    /// Writes output, or keeps it for a socket that is slow.
    ///
    /// # Errors
    /// When it can never be written.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        match self {
            Self::Stdio { .. } => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush()).or_else(|error| match error.kind() {
                    // Somebody made the terminal non-blocking: what does not fit is lost, as on a real line.
                    ErrorKind::WouldBlock => Ok(()),
                    _ => Err(Broken),
                })
            }
            Self::Null => Ok(()),
            Self::File(file) => file.write_all(bytes).map_err(|_| Broken),
            Self::Socket { stream, backlog, .. } => {
                if stream.is_some() {
                    let room = BACKLOG_MAX.saturating_sub(backlog.len());
                    backlog.extend(&bytes[..bytes.len().min(room)]);
                } else {
                    backlog.clear();
                }
                self.push();
                Ok(())
            }
        }
    }

    /// Sends what a socket has room for.
    pub fn push(&mut self) {
        let Self::Socket { stream, backlog, .. } = self else { return };
        while let (Some(connected), false) = (&mut *stream, backlog.is_empty()) {
            match connected.send(backlog.as_slices().0) {
                Ok(0) => return,
                Ok(len) => drop(backlog.drain(..len)),
                Err(_) => *stream = None,
            }
        }
    }
}
