//! One test program of the public RISC-V suites: loaded, run, and judged by what it writes to `tohost`.
//!
//! The word at the symbol `tohost` is the program's way to its host: 1 says that it passed, another odd number `2n + 1`
//! that its case `n` failed (its exit status, from programs in C). An even number is a request: device 1, command 1
//! prints a character; device 0 names eight words in memory with a system call, of which `write` and `exit` are served here
//! and answered in `fromhost`. What nobody reads stays there, so it is enough to look at it now and then.

use cowbell_machine::elf::{self, ElfError};
use cowbell_machine::port::NoConsole;
use cowbell_machine::{Boot, BootModule, Engine, Exit, Machine, MachineConfig, ModuleKind, Ports};

/// Instructions between two looks at `tohost`.
const PIECE: u64 = 1000;
/// More than any of them needs; little, since all of it goes into the digest.
const RAM_BYTES: u64 = 32 << 20;
/// Most bytes that one system call may print.
const PRINT_MAX: u64 = 1 << 20;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says that all is well.
    Passed,
    /// Why not.
    Failed(String),
    /// Why it says nothing here.
    LeftOut(String),
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Instructions until its last word was seen.
    pub count: u64,
    /// What it printed.
    pub text: String,
    /// The state it left, for comparison between engines.
    pub digest: u128,
}

impl Outcome {
    fn early(verdict: Verdict) -> Outcome {
        Outcome { verdict, count: 0, text: String::new(), digest: 0 }
    }
}

/// Runs one program for at most `limit` instructions.
pub fn run(data: &[u8], engine: Engine, limit: u64) -> Outcome {
    let left_out = |why: String| Outcome::early(Verdict::LeftOut(why));
    let symbol = |name| elf::symbol(data, name);
    let tohost = match symbol("tohost") {
        Err(ElfError::Foreign) => return left_out("no executable for 64-bit RISC-V".into()),
        Err(error) => return left_out(error.to_string()),
        Ok(None) => return left_out("no symbol 'tohost': nothing says how it ends".into()),
        Ok(Some(address)) => address,
    };
    let fromhost = symbol("fromhost").ok().flatten();
    let config = MachineConfig { engine, ram_bytes: RAM_BYTES, ..MachineConfig::default() };
    let mut machine = match Machine::new(&config, Ports::new(Box::new(NoConsole))) {
        Ok(machine) => machine,
        Err(error) => return left_out(error.to_string()),
    };
    let module = BootModule { kind: Some(ModuleKind::Kernel), data: data.to_vec(), bootargs: String::new() };
    if let Err(error) = machine.boot(&config, &Boot { bios: None, modules: vec![module] }) {
        return left_out(error.to_string());
    }
    let mut host = Host { machine, tohost, fromhost, text: String::new() };
    let verdict = host.watch(limit);
    let (count, digest) = (host.machine.count(), host.machine.digest());
    Outcome { verdict, count, text: host.text, digest }
}

struct Host {
    machine: Machine,
    tohost: u64,
    fromhost: Option<u64>,
    text: String,
}

impl Host {
    fn watch(&mut self, limit: u64) -> Verdict {
        loop {
            let count = self.machine.count();
            if count >= limit {
                return Verdict::Failed(format!("not at its end after {limit} instructions"));
            }
            match self.machine.run((count + PIECE).min(limit)) {
                Exit::Finished(finish) => {
                    return Verdict::Failed(format!("ended by {finish:?}, not by tohost"));
                }
                Exit::Idle { .. } if self.word(self.tohost) == Some(0) => {
                    return Verdict::Failed("waits for an interrupt that cannot come".into());
                }
                _ => {}
            }
            match self.word(self.tohost) {
                None => return Verdict::LeftOut(format!("tohost at {:#x} is not in memory", self.tohost)),
                Some(0) => {}
                Some(1) => return Verdict::Passed,
                Some(odd) if odd & 1 == 1 => return Verdict::Failed(format!("case {}", odd >> 1)),
                Some(request) => {
                    if let Some(verdict) = self.serve(request) {
                        return verdict;
                    }
                }
            }
        }
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.machine.bus().ram.read_number(address, 8)
    }

    fn put(&mut self, address: u64, value: u64) {
        self.machine.bus_mut().ram.write(address, &value.to_le_bytes());
        self.machine.drop_caches();
    }

    /// Does what the program asks for; a verdict when that ends it or cannot be done.
    fn serve(&mut self, request: u64) -> Option<Verdict> {
        const PRINT: u64 = 0x0101;
        const EXIT: u64 = 93;
        const WRITE: u64 = 64;
        self.put(self.tohost, 0);
        if request >> 48 == PRINT {
            self.text.push(char::from(request as u8));
            return None;
        }
        let unknown =
            || Some(Verdict::LeftOut(format!("asks its host for {request:#x}, which is not served here")));
        let call: Option<Vec<u64>> = (0..4).map(|index| self.word(request.wrapping_add(8 * index))).collect();
        let (Some(call), 0) = (call, request >> 48) else { return unknown() };
        match *call {
            [EXIT, 0, ..] => Some(Verdict::Passed),
            [EXIT, status, ..] => Some(Verdict::Failed(format!("exit status {status}"))),
            [WRITE, _, address, len] => {
                let mut bytes = vec![0; len.min(PRINT_MAX) as usize];
                self.machine.bus().ram.read(address, &mut bytes);
                self.text.push_str(&String::from_utf8_lossy(&bytes));
                self.put(request, bytes.len() as u64);
                self.put(self.fromhost?, 1);
                None
            }
            _ => Some(Verdict::LeftOut(format!("asks its host for system call {}", call[0]))),
        }
    }
}
