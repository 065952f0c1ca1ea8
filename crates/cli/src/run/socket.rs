//! Addresses of sockets: `tcp:HOST:PORT` and `unix:PATH`, to listen at or to connect to.

use std::io::{ErrorKind, Read, Result as IoResult, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host and port, as `HOST:PORT`.
    Tcp(String),
    /// A path.
    Unix(PathBuf),
}

impl Address {
    /// Reads `tcp:HOST:PORT` or `unix:PATH`. Without a host it is this machine's own.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let bad = || anyhow!("'{text}' is no address: tcp:HOST:PORT and unix:PATH are known");
        let (host, port) =
            text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(bad)?;
        port.parse::<u16>().map_err(|_| bad())?;
        let host = if host.is_empty() { "localhost" } else { host };
        Ok(Self::Tcp(format!("{host}:{port}")))
    }

    /// Listens there, without waiting for anybody.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn listen(&self) -> Result<Listener> {
        let listener = match self {
            Self::Tcp(address) => TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| Listener::Tcp(listener))),
            Self::Unix(path) => bind_unix(path).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(listener, path.clone()))
            }),
        };
        listener.with_context(|| format!("cannot listen at {self}"))
    }

    /// Connects to somebody who listens there.
    ///
    /// # Errors
    /// When nobody does.
    pub fn connect(&self) -> Result<Stream> {
        let stream = match self {
            Self::Tcp(address) => TcpStream::connect(address).map(Stream::Tcp),
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        };
        let stream = stream.and_then(Stream::prepared);
        stream.with_context(|| format!("cannot connect to {self}"))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket file that nobody listens at any more is in the way of the next one.
fn bind_unix(path: &Path) -> IoResult<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            let abandoned =
                matches!(UnixStream::connect(path), Err(e) if e.kind() == ErrorKind::ConnectionRefused);
            if !is_socket || !abandoned {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// A socket that waits for connections.
#[derive(Debug)]
pub enum Listener {
    /// Over the network.
    Tcp(TcpListener),
    /// On this machine; its file is removed at the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Somebody who has connected.
    pub fn accept(&self) -> Option<Stream> {
        let stream = match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        };
        // Who went away before being accepted is not missed.
        stream.and_then(Stream::prepared).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody else may have removed it.
            let _gone = std::fs::remove_file(path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// A connection. Nothing on it waits.
#[derive(Debug)]
pub enum Stream {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
}

/// What reading from a connection gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing yet.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The other end is gone.
    Closed,
}

impl Stream {
    fn prepared(self) -> IoResult<Self> {
        match &self {
            Self::Tcp(stream) => {
                // Single characters and small packets are to go out at once.
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
            }
            Self::Unix(stream) => stream.set_nonblocking(true)?,
        }
        Ok(self)
    }

    /// Reads what is there.
    pub fn receive(&mut self, into: &mut [u8]) -> Incoming {
        let read = match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        };
        match read {
            Ok(0) => Incoming::Closed,
            Ok(len) => Incoming::Bytes(len),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Incoming::Nothing,
            Err(_) => Incoming::Closed,
        }
    }

    /// Writes what fits; how much that was.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn send(&mut self, bytes: &[u8]) -> IoResult<usize> {
        let written = match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        };
        match written {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            result => result,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// An address with the options of a console: `ADDRESS[,server=on[,wait=off]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: Address,
    /// Who calls whom.
    pub role: Role,
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We connect.
    Client,
    /// We listen, and the machine starts at once.
    Server,
    /// We listen, and the machine starts when somebody has connected.
    WaitingServer,
}

impl Endpoint {
    /// Reads it.
    ///
    /// # Errors
    /// Names what is not known.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let address = Address::parse(parts.next().unwrap_or_default())?;
        let (mut server, mut wait) = (false, true);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, "on"));
            match key {
                "server" => server = super::values::on_off(key, value)?,
                "wait" => wait = super::values::on_off(key, value)?,
                "nowait" => wait = !super::values::on_off(key, value)?,
                _ => bail!("'{text}': there is no key '{key}': server and wait are known"),
            }
        }
        let role = match (server, wait) {
            (false, _) => Role::Client,
            (true, false) => Role::Server,
            (true, true) => Role::WaitingServer,
        };
        Ok(Self { address, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_roles() {
        let check = |text: &str, address: Address, role| {
            assert_eq!(Endpoint::parse(text).expect("understood"), Endpoint { address, role }, "{text}");
        };
        check("tcp::1234", Address::Tcp("localhost:1234".into()), Role::Client);
        check("tcp:[::1]:7,server", Address::Tcp("[::1]:7".into()), Role::WaitingServer);
        check("unix:/x/y,server=on,wait=off", Address::Unix("/x/y".into()), Role::Server);
        for bad in ["", "unix:", "tcp:host", "tcp::99999", "udp::1", "unix:a,telnet=on", "unix:a,wait=x"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).expect("bound"));
        let listener = address.listen().expect("replaced");
        assert!(address.listen().is_err());
        // The look whether anybody listens was a call as well.
        drop(listener.accept().expect("somebody looked"));
        let mut caller = address.connect().expect("somebody listens");
        let mut called = listener.accept().expect("somebody called");
        assert_eq!(caller.send(b"hi").expect("sent"), 2);
        let mut bytes = [0; 8];
        assert_eq!(called.receive(&mut bytes), Incoming::Bytes(2));
        assert_eq!(called.receive(&mut bytes), Incoming::Nothing);
        drop(caller);
        assert_eq!(called.receive(&mut bytes), Incoming::Closed);
        drop(listener);
        assert!(!path.exists());
    }
}
