//! The kernel's symbols for GDB, and a debugging session with them.
//!
//! Debian's package with debugging information is some hundred megabytes; names and addresses are all that is needed
//! here, and the running kernel tells them (`/proc/kallsyms`). This kernel does not move itself at boot, so that they hold
//! for every run.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::check::Expected;
use super::{Guest, check};

/// Debugs a run with GDB, which must end as one without: looking changes nothing. Or why that cannot be done here.
pub fn debug(
    program: &Path,
    guest: &Guest,
    kallsyms: &[u8],
    expected: &Expected,
) -> Result<std::result::Result<(), String>> {
    if Command::new("gdb-multiarch").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(Err("no debugging of the kernel: gdb-multiarch is not installed".into()));
    }
    let place = check::Place::new(program, guest)?;
    let directory = place.path();
    fs::write(directory.join("kernel.sym"), symbol_file(kallsyms)?)?;
    let append = check::auto();
    let mut args = vec!["run"];
    args.extend(place.options(&append));
    args.extend(["--serial", "null", "--summary", "summary.json", "-S", "--gdb", "unix:gdb"]);
    let child = Command::new(program).args(&args).current_dir(directory).stdin(Stdio::null()).spawn();
    let mut machine = Machine(child.context("starting cowbell run")?);
    machine.wait_for(&directory.join("gdb"))?;
    gdb(directory, FIRST)?;
    gdb(directory, SECOND)?;
    let status = machine.0.wait()?;
    ensure!(status.success(), "the debugged machine ended with {status}");
    let summary: Value = serde_json::from_slice(&fs::read(directory.join("summary.json"))?)?;
    ensure!(
        expected.is(&summary),
        "a debugged run ends otherwise: {} instructions, digest {}",
        summary["icount"],
        summary["digest"]
    );
    println!("debugged with symbols, twice, and ended as if nobody had looked");
    Ok(Ok(()))
}

/// Commands, and what GDB prints after each.
type Script = &'static [(&'static str, &'static str)];

const FIRST: Script = &[
    ("monitor icount", "0"),
    ("hbreak start_kernel", "Hardware assisted breakpoint 1"),
    ("continue", "start_kernel ()"),
    ("p $priv", "= 1"),
    ("p/x $satp >> 60", "= 0x"),
    ("x/i $pc", "<start_kernel>"),
    ("info symbol $stvec", "handle_exception in section"),
    // The beginning of the kernel's Image, by its physical address.
    ("monitor physical", ""),
    ("x/hx 0x80200000", "0x5a4d"),
    ("monitor virtual", ""),
    ("p/x *(unsigned char *)linux_banner@5", "{0x4c, 0x69, 0x6e, 0x75, 0x78}"),
    ("break kernel_clone", "Breakpoint 2"),
    ("continue", "kernel_clone ()"),
    ("delete", ""),
    ("stepi 100", ""),
    ("watch *(unsigned long *)&jiffies_64", "Hardware watchpoint 3"),
    ("continue", "New value ="),
    ("delete", ""),
    ("shell (sleep 0.3; kill -INT $PPID) &", ""),
    ("continue", "SIGINT"),
    ("detach", "detached"),
];

const SECOND: Script = &[
    ("p $priv", "= "),
    ("break do_exit", "Breakpoint 1"),
    ("continue", "do_exit ()"),
    ("detach", "detached"),
];

/// Runs GDB with a script, and looks for what it must print, in that order.
fn gdb(directory: &Path, script: Script) -> Result<()> {
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args([
        "-nx",
        "-batch",
        "-ex",
        "set confirm off",
        "-ex",
        "file kernel.sym",
        "-ex",
        "target remote gdb",
    ]);
    for (number, (command, _)) in script.iter().enumerate() {
        // Its own output goes two ways; marks keep the order known.
        gdb.args(["-ex", &format!("echo [{number}]\\n"), "-ex", command]);
    }
    let output =
        gdb.current_dir(directory).stdin(Stdio::null()).output().context("starting gdb-multiarch")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    for (number, (command, expected)) in script.iter().enumerate() {
        let after = text.split(&format!("[{number}]\n")).nth(1).unwrap_or_default();
        let answer = after.split(&format!("[{}]\n", number + 1)).next().unwrap_or_default();
        // What a monitor command says comes by the other way.
        let said = if command.starts_with("monitor") {
            errors.contains(expected)
        } else {
            answer.contains(expected)
        };
        if !said {
            bail!("GDB's '{command}' did not answer {expected:?} but {answer:?}; all:\n{text}{errors}");
        }
    }
    Ok(())
}

/// Ends the machine when a check fails.
struct Machine(Child);

impl Machine {
    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let began = Instant::now();
        while !socket.exists() {
            if let Some(status) = self.0.try_wait()? {
                bail!("the machine ended with {status} before a debugger came");
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "the machine waits for no debugger");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

const EHDR: usize = 64;
const SHDR: usize = 64;
const SYM: usize = 24;

/// An ELF file with the kernel's symbols and without its code.
fn symbol_file(kallsyms: &[u8]) -> Result<Vec<u8>> {
    let text = String::from_utf8_lossy(kallsyms);
    let mut symbols = vec![0; SYM];
    let mut strings = vec![0];
    let (mut low, mut high) = (u64::MAX, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some(kind), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            // Modules name themselves in a fourth word; they come and go.
            continue;
        };
        let address = u64::from_str_radix(address, 16).context("an address of kallsyms")?;
        // Per-processor variables and constants are no addresses.
        if address < 1 << 63 || matches!(kind, "a" | "A") {
            continue;
        }
        (low, high) = (low.min(address), high.max(address));
        let is_code = matches!(kind, "t" | "T" | "w" | "W");
        let info = (u8::from(kind.chars().all(char::is_uppercase)) << 4) | if is_code { 2 } else { 1 };
        symbols.extend(u32::try_from(strings.len())?.to_le_bytes());
        symbols.extend([info, 0, 1, 0]);
        symbols.extend(address.to_le_bytes());
        symbols.extend(0u64.to_le_bytes());
        strings.extend(name.bytes());
        strings.push(0);
    }
    ensure!(symbols.len() > 10_000 * SYM, "kallsyms names only {} symbols", symbols.len() / SYM - 1);
    let names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
    let (symbols_at, strings_at) = (EHDR, EHDR + symbols.len());
    let names_at = strings_at + strings.len();
    let headers_at = (names_at + names.len()).next_multiple_of(8);
    // Name, type, flags, address, place, size, link, info, alignment, entry size; locals come first, and all count as such.
    let count = (symbols.len() / SYM) as u64;
    let sections: [[u64; 10]; 5] = [
        [0; 10],
        [1, 8, 6, low, EHDR as u64, high - low + 4096, 0, 0, 4, 0],
        [7, 2, 0, 0, symbols_at as u64, symbols.len() as u64, 3, count, 8, SYM as u64],
        [15, 3, 0, 0, strings_at as u64, strings.len() as u64, 0, 0, 1, 0],
        [23, 3, 0, 0, names_at as u64, names.len() as u64, 0, 0, 1, 0],
    ];
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend(2u16.to_le_bytes());
    out.extend(243u16.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend([low, 0, headers_at as u64].iter().flat_map(|value| value.to_le_bytes()));
    out.extend(0u32.to_le_bytes());
    out.extend([EHDR as u16, 56, 0, SHDR as u16, 5, 4].iter().flat_map(|value| value.to_le_bytes()));
    out.extend(symbols);
    out.extend(strings);
    out.extend(names);
    out.resize(headers_at, 0);
    for [name, kind, flags, address, place, size, link, info, align, entry] in sections {
        out.extend([name as u32, kind as u32].iter().flat_map(|value| value.to_le_bytes()));
        out.extend([flags, address, place, size].iter().flat_map(|value| value.to_le_bytes()));
        out.extend([link as u32, info as u32].iter().flat_map(|value| value.to_le_bytes()));
        out.extend([align, entry].iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(out)
}
