//! What must hold of the machine with a real kernel in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::build::path_with_sbin;
use super::fetch::output;
use super::session::Session;
use super::{Guest, symbols};
use crate::step::Outcome;

/// The kernel's command line; its self-tests would be half of the boot.
const APPEND: &str = "console=ttyS0 cryptomgr.notests";

/// As [`APPEND`], for a run that needs no input.
pub fn auto() -> String {
    format!("{APPEND} auto")
}

/// A directory with a copy of the guest's disk.
pub struct Place<'a> {
    program: &'a Path,
    guest: &'a Guest,
    directory: tempfile::TempDir,
}

/// How every run without input ends.
pub struct Expected {
    icount: Value,
    digest: Value,
}

impl Expected {
    /// Whether a run ended like that.
    pub fn is(&self, summary: &Value) -> bool {
        (&self.icount, &self.digest) == (&summary["icount"], &summary["digest"])
    }
}

/// All checks, in under a minute.
pub fn all(program: &Path, guest: &Guest) -> Result<Outcome> {
    let expected = repeats(program, guest)?;
    let kallsyms = typed(&Place::new(program, guest)?)?;
    Ok(match symbols::debug(program, guest, &kallsyms, &expected)? {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::LeftOut(why),
    })
}

impl<'p> Place<'p> {
    /// A place for one run.
    pub fn new(program: &'p Path, guest: &'p Guest) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory")?;
        fs::copy(&guest.disk, directory.path().join("disk.qcow2"))?;
        Ok(Place { program, guest, directory })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Options of `run` for this guest.
    pub fn options<'a>(&'a self, append: &'a str) -> Vec<&'a str> {
        let text = |path: &'a Path| path.to_str().expect("the cache's name is text");
        let initrd = text(&self.guest.initrd);
        let kernel = text(&self.guest.kernel);
        vec![
            "--kernel",
            kernel,
            "--initrd",
            initrd,
            "--append",
            append,
            "--drive",
            "file=disk.qcow2,format=qcow2",
        ]
    }

    fn cowbell(&self, args: &[&str]) -> Result<String> {
        output(Command::new(self.program).args(args).current_dir(self.directory.path()))
    }

    /// The file system on the disk, exported, is clean.
    fn check_file_system(&self) -> Result<()> {
        self.cowbell(&["img", "check", "-q", "disk.qcow2"])?;
        self.cowbell(&["img", "convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "disk.raw"])?;
        let mut check = Command::new("e2fsck");
        check.args(["-f", "-n", "disk.raw"]).env("PATH", path_with_sbin());
        output(check.current_dir(self.directory.path())).map(drop)
    }

    /// The content of a file on the exported disk.
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        let mut dump = Command::new("debugfs");
        dump.args(["-R", &format!("dump {name} dumped"), "disk.raw"]).env("PATH", path_with_sbin());
        output(dump.current_dir(self.directory.path()))?;
        Ok(fs::read(self.directory.path().join("dumped"))?)
    }
}

/// Two runs without input are one, and one behind OpenSBI does the same work.
fn repeats(program: &Path, guest: &Guest) -> Result<Expected> {
    let bios = guest.firmware.to_string_lossy().into_owned();
    let (first, first_file) = alone(&Place::new(program, guest)?, &[])?;
    let (second, second_file) = alone(&Place::new(program, guest)?, &[])?;
    let (_, _) = alone(&Place::new(program, guest)?, &["--bios", &bios])?;
    let expected = Expected { icount: first["icount"].clone(), digest: first["digest"].clone() };
    if !expected.is(&second) || first_file != second_file {
        bail!("two runs differ: {first} and {second}");
    }
    Ok(expected)
}

/// A run without input: its summary, and the random file that it wrote.
fn alone(place: &Place<'_>, more: &[&str]) -> Result<(Value, Vec<u8>)> {
    let append = auto();
    let mut args = vec!["run"];
    args.extend(place.options(&append));
    args.extend(["--summary", "summary.json"]);
    args.extend(more);
    let shown = place.cowbell(&args)?;
    for text in ["hello from ext4", "auto began", "auto ended", "reboot: Power down"] {
        ensure!(shown.contains(text), "the console did not show {text:?}:\n{shown}");
    }
    ensure!(more.is_empty() || shown.contains("OpenSBI"), "OpenSBI was not seen:\n{shown}");
    place.check_file_system()?;
    let random = place.file("/random")?;
    ensure!(random.len() == 1 << 20, "the guest's file has {} bytes", random.len());
    let summary: Value = serde_json::from_slice(&fs::read(place.path().join("summary.json"))?)?;
    println!(
        "{}: {:.0} M instructions, {:.2} CPU s, digest {}",
        if more.is_empty() { "kernel alone" } else { "behind OpenSBI" },
        summary["icount"].as_f64().unwrap_or(0.0) / 1e6,
        summary["host"]["cpu-ns"].as_f64().unwrap_or(0.0) / 1e9,
        summary["digest"]
    );
    Ok((summary, random))
}

/// Somebody types: the shell answers, the machine boots again, the disk takes a file, the machine switches off. Gives the kernel's symbols.
fn typed(place: &Place<'_>) -> Result<Vec<u8>> {
    let mut session = Session::start(place.program, place.directory.path(), &place.options(APPEND))?;
    session.wait_for("~ #")?;
    // The echo of what is typed shows the sum unsolved.
    session.type_line("echo sum-$((40+2)); uname -m")?;
    session.wait_for("sum-42\r\nriscv64\r\n")?;
    session.type_line("echo before > /mnt/kept; umount /mnt && reboot -f")?;
    session.wait_for("reboot: Restarting system")?;
    session.wait_for("~ #")?;
    session.type_line(
        "cat /mnt/kept; seq 1 100000 > /mnt/numbers; cat /proc/kallsyms > /mnt/kallsyms; echo stored-$?",
    )?;
    session.wait_for("before\r\n")?;
    session.wait_for("stored-0")?;
    session.type_line("umount /mnt && poweroff -f")?;
    let status = session.end()?;
    ensure!(status.success(), "the machine ended with {status}");
    place.check_file_system()?;
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    ensure!(place.file("/numbers")? == numbers.as_bytes(), "the guest's file is not what was written");
    println!("commands typed, booted again, files written, file system clean");
    place.file("/kallsyms")
}
