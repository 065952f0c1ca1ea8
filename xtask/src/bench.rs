//! Us and the reference on the same work, side by side.
//!
//! | module | duty |
//! |---|---|
//! | [`cases`] | what is measured, against which goal of `performance.md` |
//! | [`fixtures`], [`scripts`] | the images and scripts that the cases work on |
//! | [`proof`] | what shows that both sides did the work |
//! | [`table`] | what is printed |
//!
//! Runs are interleaved in pairs, the first of a pair in turn. CPU time (user and system, of the whole process)
//! comes first; wall time decides only where the goal says so. Of the ratios the median counts. Before anything is
//! measured each side runs once: that warms the page cache, and shows that both did the work.

mod cases;
mod fixtures;
mod proof;
mod scripts;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::reference::Reference;
use crate::usage::{self, Spent};
use cases::{Case, Runs};
use proof::Seen;
use table::{Row, Table};

/// Pairs of runs of a case, unless it has its own number or the command line says otherwise.
const PAIRS: usize = 5;

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ours,
    Theirs,
}

/// The command line.
struct Options {
    /// Parts of names; a case that has one of them is measured, and without any every case is.
    filters: Vec<String>,
    json: bool,
    pairs: Option<usize>,
    /// Only the names of the cases are printed.
    list: bool,
    /// The program to measure, instead of the one that is built from these sources.
    program: Option<PathBuf>,
}

/// Runs the cases whose name contains one of the filters. Falling short of a goal is reported, and is no failure.
pub fn run(args: &[String]) -> Result<bool> {
    let options = parse(args)?;
    let chosen = |case: &Case| {
        options.filters.is_empty() || options.filters.iter().any(|part| case.name.contains(part))
    };
    if options.list {
        cases::all().filter(|case| chosen(case)).for_each(|case| println!("{}", case.name));
        return Ok(true);
    }
    let bench = Bench::prepare(options.program)?;
    let mut table = Table::new(&bench.reference.version);
    for case in cases::all().filter(|case| chosen(case)) {
        let began = Instant::now();
        match bench.measure(case, options.pairs.unwrap_or(case.pairs.unwrap_or(PAIRS))) {
            Ok(row) => table.rows.push(row),
            Err(error) => table.failures.push((case.name, format!("{error:#}"))),
        }
        eprintln!("{:<38} {:>6.1} s", case.name, began.elapsed().as_secs_f64());
    }
    print!("{}", if options.json { table.json()? } else { table.text() });
    Ok(table.failures.is_empty())
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options { filters: Vec::new(), json: false, pairs: None, list: false, program: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--output" => match args.next().map(String::as_str) {
                Some("json") => options.json = true,
                Some("human") => options.json = false,
                other => bail!("--output takes human or json, not {other:?}"),
            },
            "--pairs" => options.pairs = Some(args.next().context("--pairs needs a number")?.parse()?),
            "--list" => options.list = true,
            "--program" => {
                options.program = Some(fs::canonicalize(args.next().context("--program needs a path")?)?);
            }
            name if !name.starts_with('-') => options.filters.push(name.to_owned()),
            other => bail!("bench does not know {other}"),
        }
    }
    Ok(options)
}

/// The two programs and the directory with the images.
struct Bench {
    ours: PathBuf,
    reference: Reference,
    directory: PathBuf,
}

impl Bench {
    fn prepare(program: Option<PathBuf>) -> Result<Self> {
        let reference = Reference::find()?;
        let program = match program {
            Some(program) => program,
            None => cargo::release_program("cowbell-cli", "cowbell", &[])?,
        };
        let directory = cargo::target_directory()?.join("bench");
        let ours = directory.join("bin");
        fs::create_dir_all(&ours)?;
        for name in ["qemu-img", "qemu-io"] {
            let link = ours.join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&program, &link).with_context(|| link.display().to_string())?;
        }
        fixtures::make(&reference, &directory)?;
        Ok(Self { ours, reference, directory })
    }

    fn measure(&self, case: &Case, pairs: usize) -> Result<Row> {
        self.prove(case)?;
        let mut row = Row::new(case);
        for pair in 0..pairs {
            let order = if pair % 2 == 0 { [Side::Ours, Side::Theirs] } else { [Side::Theirs, Side::Ours] };
            for side in order {
                let spent = self.run_once(case, side)?;
                row.add(side == Side::Ours, &spent);
            }
        }
        Ok(row)
    }

    /// One measured run.
    fn run_once(&self, case: &Case, side: Side) -> Result<Spent> {
        self.reset(case, side)?;
        let mut command = self.command(case, side);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let spent = usage::measure(&mut command, self.input(case).as_deref())?;
        match spent.status.code() {
            Some(code) if code == case.status => Ok(spent),
            _ => bail!("{side:?}: {command:?}: {}", spent.status),
        }
    }

    /// Runs each side once and compares what they did.
    fn prove(&self, case: &Case) -> Result<()> {
        let mut seen = Vec::new();
        for side in [Side::Theirs, Side::Ours] {
            self.reset(case, side)?;
            let mut command = self.command(case, side);
            match self.input(case) {
                Some(path) => command.stdin(fs::File::open(path)?),
                None => command.stdin(Stdio::null()),
            };
            let output = command.output()?;
            if output.status.code() != Some(case.status) {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                bail!("{side:?}: {command:?}: {}: {}", output.status, text.trim());
            }
            let target = case.target.map(|target| target_name(target, side)).unwrap_or_default();
            seen.push(Seen { output: String::from_utf8_lossy(&output.stdout).into_owned(), target });
        }
        case.proof.check(&seen[0], &seen[1], &self.reference, &self.directory)
    }

    fn command(&self, case: &Case, side: Side) -> Command {
        let (tool, args) = match case.runs {
            Runs::Img(args) => ("qemu-img", args),
            Runs::Io { args, .. } => ("qemu-io", args),
        };
        let program = match (side, tool) {
            (Side::Ours, _) => self.ours.join(tool),
            (Side::Theirs, "qemu-img") => self.reference.img.clone(),
            (Side::Theirs, _) => self.reference.io.clone(),
        };
        let mut command = Command::new(program);
        let target = case.target.map(|target| target_name(target, side)).unwrap_or_default();
        command.args(args.iter().map(|arg| proof::with_target(arg, &target)));
        command.current_dir(&self.directory);
        command
    }

    fn input(&self, case: &Case) -> Option<PathBuf> {
        match case.runs {
            Runs::Io { script, .. } => Some(self.directory.join(script)),
            Runs::Img(_) => None,
        }
    }

    /// Puts the file that the case changes back to what it was before, each side its own.
    fn reset(&self, case: &Case, side: Side) -> Result<()> {
        let Some(target) = case.target else { return Ok(()) };
        let target = self.directory.join(target_name(target, side));
        match case.target_from {
            None => remove(&target),
            Some(from) => {
                remove(&target)?;
                let copied = Command::new("cp")
                    .args(["--sparse=auto", "--reflink=never"])
                    .arg(self.directory.join(from))
                    .arg(&target)
                    .status()?;
                if !copied.success() {
                    bail!("cp {from}: {copied}");
                }
                // Or the first flush that is measured would pay for the copy.
                fs::File::open(&target)?.sync_all().with_context(|| target.display().to_string())
            }
        }
    }
}

fn target_name(target: &str, side: Side) -> String {
    match side {
        Side::Ours => format!("ours-{target}"),
        Side::Theirs => format!("theirs-{target}"),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}
