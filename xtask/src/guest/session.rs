//! A machine with a console on a socket, and a program that reads what it shows and types.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running machine.
pub struct Session {
    child: Child,
    console: UnixStream,
    shown: Vec<u8>,
    /// Up to where what was shown has been looked at.
    seen: usize,
}

impl Session {
    /// Starts `program run ARGS` in a directory where it makes its console.
    pub fn start(program: &Path, directory: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("run").args(args).args(["--serial", "unix:console,server=on"]).current_dir(directory);
        let mut child =
            command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("starting cowbell run")?;
        let began = Instant::now();
        let console = loop {
            match UnixStream::connect(directory.join("console")) {
                Ok(console) => break console,
                Err(_) if began.elapsed() < PATIENCE && child.try_wait()?.is_none() => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    let _ended = child.kill();
                    return Err(error).context("the machine's console");
                }
            }
        };
        console.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { child, console, shown: Vec::new(), seen: 0 })
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.console.write_all(format!("{line}\n").as_bytes()).context("typing")
    }

    /// Waits until the console shows `text`; gives what came before it.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let began = Instant::now();
        loop {
            let fresh = &self.shown[self.seen..];
            if let Some(at) = find(fresh, text.as_bytes()) {
                let before = String::from_utf8_lossy(&fresh[..at]).into_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            if !self.read()? || began.elapsed() > PATIENCE {
                let shown = String::from_utf8_lossy(&self.shown[self.shown.len().saturating_sub(2000)..])
                    .into_owned();
                bail!("the console did not show {text:?}; it ends with:\n{shown}");
            }
        }
    }

    /// Waits for the machine's end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let began = Instant::now();
        while self.read()? {
            if began.elapsed() > PATIENCE {
                bail!("the machine does not end");
            }
        }
        Ok(self.child.wait()?)
    }

    /// Reads what has come; `false` at the end.
    fn read(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        match self.console.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(len) => {
                self.shown.extend_from_slice(&bytes[..len]);
                Ok(true)
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(e) => Err(e).context("reading the console"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}
