//! Debian's `gdb-multiarch` at the machine's door, and that being looked at changes nothing.

use cowbell_machine::gdb::{Attendant, Ended, Gone, Received, serve};
use cowbell_machine::port::NoConsole;
use cowbell_machine::ram::RAM_BASE;
use cowbell_machine::{Exit, Machine, MachineConfig, Ports};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// Counts in t1 and stores it, for ever.
const PROGRAM: [u32; 4] = [
    0x0000_0297, // auipc t0, 0
    0x0013_0313, // addi t1, t1, 1
    0x1062_b023, // sd t1, 256(t0)
    0xff9f_f06f, // j -8
];

fn machine() -> Machine {
    let config = MachineConfig { ram_bytes: 1 << 20, ..MachineConfig::default() };
    let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
    for (at, word) in (0..).zip(PROGRAM) {
        machine.bus_mut().ram.write(RAM_BASE + 4 * at, &word.to_le_bytes());
    }
    machine.harts_mut()[0].pc = RAM_BASE;
    machine
}

/// A socket, and nothing else.
struct Socket(TcpStream);

impl Attendant for Socket {
    fn receive(&mut self) -> Received {
        let mut bytes = [0; 4096];
        self.0.set_nonblocking(true).expect("a socket");
        let read = self.0.read(&mut bytes);
        self.0.set_nonblocking(false).expect("a socket");
        match read {
            Ok(0) => Received::Closed,
            Ok(len) => Received::Bytes(bytes[..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.0.write_all(bytes).map_err(|_| Gone)
    }

    fn wait(&mut self) {
        let _ = self.0.peek(&mut [0]);
    }

    fn attend(&mut self, _: &mut Machine, _: Exit) {}

    fn quits(&self) -> bool {
        false
    }
}

/// Runs GDB with these commands after connecting; `None` when it is not installed.
fn debug(machine: &mut Machine, commands: &[&str]) -> Option<(String, Ended)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-ex", "set confirm off", "-ex", "set architecture riscv:rv64"]);
    gdb.args(["-ex", &format!("target remote {address}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let child = gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let (stream, _) = listener.accept().expect("GDB connects");
    let ended = serve(machine, &mut Socket(stream)).expect("a session");
    let output = child.wait_with_output().expect("GDB ends");
    Some((String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), ended))
}

#[track_caller]
fn check(commands: &[&str], expect: &[&str]) {
    let mut debugged = machine();
    let Some((output, ended)) = debug(&mut debugged, commands) else {
        println!("LEFT OUT: gdb-multiarch is not installed");
        return;
    };
    let mut rest = output.as_str();
    for text in expect {
        let at = rest.find(text).unwrap_or_else(|| panic!("no {text:?} in {rest:?} of:\n{output}"));
        rest = &rest[at + text.len()..];
    }
    assert_eq!(ended, Ended::Detached, "{output}");
    // The law: looking has changed nothing.
    let mut alone = machine();
    alone.run(5000);
    debugged.run(5000);
    assert_eq!(debugged.digest(), alone.digest(), "{output}");
}

#[test]
fn registers_memory_and_steps() {
    check(
        &[
            "p/x $pc",
            "stepi",
            "p/x $pc",
            "p/x $t0",
            "x/2wx 0x80000004",
            "p $priv",
            "p/x $misa",
            "info registers mstatus",
            "monitor icount",
            "detach",
        ],
        &[
            "= 0x80000000",
            "= 0x80000004",
            "= 0x80000000",
            "0x00130313",
            "0x1062b023",
            "= 3",
            "= 0x8000000000",
            "mstatus",
            "1",
            "detached",
        ],
    );
}

#[test]
fn breakpoints_and_watchpoints() {
    check(
        &[
            "break *0x80000008",
            "continue",
            "p $t1",
            "continue",
            "p $t1",
            "monitor icount",
            "delete",
            "watch *(long *)0x80000100",
            "continue",
            "p/x $pc",
            "delete",
            "hbreak *0x8000000c",
            "continue",
            "p $t1",
            "detach",
        ],
        &[
            "Breakpoint 1, 0x0000000080000008",
            "= 1",
            "Breakpoint 1",
            "= 2",
            "Hardware watchpoint 2",
            "New value = 2",
            "= 0x8000000c",
            "= 3",
            "5",
        ],
    );
}

#[test]
fn a_debugger_may_leave_and_come_back() {
    let mut machine = machine();
    let first = debug(&mut machine, &["break *0x80000008", "continue", "detach"]);
    let Some((_, ended)) = first else {
        println!("LEFT OUT: gdb-multiarch is not installed");
        return;
    };
    assert_eq!(ended, Ended::Detached);
    // The first one's breakpoint is gone.
    machine.run(100);
    assert_eq!(machine.count(), 100);
    let (output, _) = debug(&mut machine, &["p $t1", "set var $t1 = 1000", "stepi 4", "p $t1", "detach"])
        .expect("installed");
    assert!(output.contains("= 33") && output.contains("= 1002"), "{output}");
}
