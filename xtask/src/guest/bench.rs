//! The machine's speed beside `qemu-system-riscv64`, on the same guests.
//!
//! Bare programs compute, a Linux boots and starts processes. CPU seconds (user and system, of the whole process) are
//! compared, the median of interleaved runs, each of which must show the same results. The reference runs plain, counting
//! (`-icount`), and recording, since each run of this machine can be repeated.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Guest;
use crate::cargo;
use crate::usage;

/// What is measured.
struct Case {
    name: &'static str,
    work: Work,
    /// The goal of `performance.md`, section 4, for the interpreter.
    goal: &'static str,
}

enum Work {
    /// A program of `guests/built`.
    Bare(&'static str),
    /// Linux with this word on its command line.
    Linux(&'static str),
}

const CASES: &[Case] = &[
    Case { name: "integer loop", work: Work::Bare("bench-integer"), goal: ">= 500 MIPS" },
    Case { name: "random access, 8 MiB", work: Work::Bare("bench-memory"), goal: "under Linux <= 1.2 s" },
    Case { name: "floating point", work: Work::Bare("bench-floating"), goal: ">= 200 MIPS" },
    Case { name: "Linux boot to init", work: Work::Linux("bench=boot"), goal: "<= 2.0 s" },
    Case { name: "boot, 200 x fork and exec", work: Work::Linux("bench=fork"), goal: "boot + <= 1.2 s" },
];

/// Who runs it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Plain,
    Counting,
    Recording,
}

const SIDES: [Side; 4] = [Side::Ours, Side::Plain, Side::Counting, Side::Recording];

/// Runs the cases whose name contains the filter, so many times each.
pub fn run(args: &[String]) -> Result<bool> {
    let (mut filter, mut rounds, mut as_json) = (String::new(), 3, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--pairs" => rounds = args.next().context("--pairs needs a number")?.parse()?,
            "--output" => match args.next().map(String::as_str) {
                Some("json") => as_json = true,
                Some("human") => as_json = false,
                other => bail!("--output takes human or json, not {other:?}"),
            },
            name if !name.starts_with('-') => filter = name.to_owned(),
            other => bail!("bench machine does not know {other}"),
        }
    }
    ensure!(rounds > 0, "--pairs takes at least 1");
    let bench = Bench::prepare()?;
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&filter)) {
        rows.push(bench.measure(case, rounds)?);
    }
    let table = if as_json { format!("{:#}\n", Value::from(rows)) } else { text(&bench, &rows) };
    print!("{table}");
    Ok(true)
}

struct Bench {
    program: std::path::PathBuf,
    /// Without it the cases with Linux are left out.
    guest: Option<Guest>,
    reference: Option<String>,
    directory: tempfile::TempDir,
}

impl Bench {
    fn prepare() -> Result<Self> {
        let program = cargo::release_program("cowbell-cli", "cowbell", &[])?;
        let guest = super::prepare(&program)?.map_err(|why| eprintln!("LEFT OUT: {why}")).ok();
        let version = Command::new("qemu-system-riscv64").arg("--version").output().ok();
        let reference = version.and_then(|output| {
            Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
        });
        if reference.is_none() {
            eprintln!("LEFT OUT: qemu-system-riscv64 is not installed");
        }
        let directory = tempfile::tempdir().context("making a directory")?;
        Ok(Self { program, guest, reference, directory })
    }

    fn measure(&self, case: &Case, rounds: usize) -> Result<Value> {
        if matches!(case.work, Work::Linux(_)) && self.guest.is_none() {
            return Ok(json!({ "case": case.name, "left-out": "no Linux guest" }));
        }
        let sides = || SIDES.into_iter().filter(|side| *side == Side::Ours || self.reference.is_some());
        let mut seconds = SIDES.map(|_| Vec::new());
        let mut expected = None;
        for _ in 0..rounds {
            for side in sides() {
                let (spent, shown) = self.run(case, side)?;
                let expected = expected.get_or_insert_with(|| shown.clone());
                ensure!(*expected == shown, "{}: the results differ: {expected:?} and {shown:?}", case.name);
                seconds[side as usize].push(spent);
            }
        }
        let summary: Value =
            serde_json::from_slice(&std::fs::read(self.directory.path().join("summary.json"))?)?;
        let [ours, plain, counting, recording] = seconds.map(|mut of_side| usage::median(&mut of_side));
        let count = summary["icount"].as_f64().unwrap_or(0.0);
        Ok(json!({
            "case": case.name,
            "instructions": summary["icount"],
            "seconds": ours,
            "mips": count / ours / 1e6,
            "reference": { "plain": plain, "icount": counting, "record": recording },
            "goal": case.goal,
        }))
    }

    /// The CPU seconds of one run, and what it shows of its work.
    fn run(&self, case: &Case, side: Side) -> Result<(f64, Vec<String>)> {
        let path = self.directory.path().join("shown");
        let mut command = self.command(case, side)?;
        command.stdout(std::fs::File::create(&path)?).stderr(Stdio::null());
        let spent = usage::measure(&mut command, None)?;
        let shown = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        ensure!(spent.status.success(), "{}: {command:?}: {}:\n{shown}", case.name, spent.status);
        let counts = |line: &&str| match case.work {
            // The reference counts its own instructions a little differently.
            Work::Bare(_) => !line.starts_with("instructions"),
            Work::Linux(_) => line.starts_with("bench "),
        };
        let lines: Vec<String> = shown.lines().map(str::trim).filter(counts).map(str::to_owned).collect();
        ensure!(!lines.is_empty(), "{}: nothing was shown:\n{shown}", case.name);
        Ok((spent.cpu.as_secs_f64(), lines))
    }

    fn command(&self, case: &Case, side: Side) -> Result<Command> {
        let mut command = match side {
            Side::Ours => {
                let mut command = Command::new(&self.program);
                command.args(["run", "--summary", "summary.json"]);
                command
            }
            _ => Command::new("qemu-system-riscv64"),
        };
        command.args(["-M", "virt", "-nographic", "-m", "256"]).stdin(Stdio::null());
        match side {
            Side::Ours | Side::Plain => {}
            Side::Counting => drop(command.args(["-icount", "shift=0,sleep=off"])),
            Side::Recording => drop(command.args(["-icount", "shift=0,rr=record,rrfile=log"])),
        }
        match case.work {
            Work::Bare(name) => {
                let path = Path::new("guests/built").join(format!("{name}.elf")).canonicalize()?;
                if side != Side::Ours {
                    command.args(["-bios", "none"]);
                }
                command.arg("-kernel").arg(path);
            }
            Work::Linux(word) => {
                let guest = self.guest.as_ref().context("a Linux guest")?;
                // Both behind the same firmware.
                command.arg("-bios").arg(&guest.firmware).arg("-kernel").arg(&guest.kernel);
                command.arg("-initrd").arg(&guest.initrd).arg("-append");
                command.arg(format!("console=ttyS0 cryptomgr.notests {word}"));
            }
        }
        command.current_dir(self.directory.path());
        Ok(command)
    }
}

fn text(bench: &Bench, rows: &[Value]) -> String {
    let mut out = format!(
        "CPU seconds; the reference is {}\n\n{:<28} {:>8} {:>8} {:>6} {:>8} {:>8} {:>8}  {}\n",
        bench.reference.as_deref().unwrap_or("not installed"),
        "case",
        "M insns",
        "cowbell",
        "MIPS",
        "plain",
        "icount",
        "record",
        "goal"
    );
    for row in rows {
        if let Some(why) = row["left-out"].as_str() {
            let _ = writeln!(out, "{:<28} LEFT OUT: {why}", row["case"].as_str().unwrap_or_default());
            continue;
        }
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let reference = &row["reference"];
        let _ = writeln!(
            out,
            "{:<28} {:>8.0} {:>8.2} {:>6.0} {:>8.2} {:>8.2} {:>8.2}  {}",
            row["case"].as_str().unwrap_or_default(),
            number(&row["instructions"]) / 1e6,
            number(&row["seconds"]),
            number(&row["mips"]),
            number(&reference["plain"]),
            number(&reference["icount"]),
            number(&reference["record"]),
            row["goal"].as_str().unwrap_or_default()
        );
    }
    out
}
