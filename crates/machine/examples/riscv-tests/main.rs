//! Runs the public RISC-V tests, or any program that ends with a word to `tohost`: `riscv-tests [--limit COUNT] PATH...`.
//!
//! A path is a program or a directory of them; other files in it are passed over. Each program is run by both engines,
//! and they must agree in all. `COUNT` is the number of instructions after which a program hangs (default 50 million).

mod htif;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cowbell_machine::Engine;
use htif::Verdict;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut limit = 50_000_000;
    let mut programs = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--limit" {
            let value = arguments.next().ok_or("--limit wants a number of instructions")?;
            limit = value
                .parse()
                .map_err(|_| format!("--limit wants a number of instructions, not '{value}'"))?;
        } else {
            collect(Path::new(&argument), &mut programs)?;
        }
    }
    if programs.is_empty() {
        return Err("no ELF file is given: name test programs, or directories that have them".into());
    }
    report(&programs, limit)
}

/// A file that is named is taken as it is; of a directory, in the order of names, what looks like an ELF file.
fn collect(path: &Path, into: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    if !path.metadata().map_err(told)?.is_dir() {
        into.push(path.to_owned());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path).map_err(told)?.collect::<Result<Vec<_>, _>>().map_err(told)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            collect(&path, into)?;
        } else if kind.is_file() && std::fs::read(&path)?.starts_with(b"\x7fELF") {
            into.push(path);
        }
    }
    Ok(())
}

/// One line for each program, and the sum of them.
fn report(programs: &[PathBuf], limit: u64) -> Result<ExitCode, Box<dyn Error>> {
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for path in programs {
        let data = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let outcome = htif::run(&data, Engine::Blocks, limit);
        let plain = htif::run(&data, Engine::Plain, limit);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let verdict =
            if outcome == plain { outcome.verdict } else { Verdict::Failed("the engines differ".into()) };
        let (word, why) = match verdict {
            Verdict::Passed => (&mut passed, format!("passed    {name}")),
            Verdict::Failed(why) => (&mut failed, format!("FAILED    {name}: {why}")),
            Verdict::LeftOut(why) => (&mut left_out, format!("left out  {name}: {why}")),
        };
        *word += 1;
        println!("{why} ({} instructions)", outcome.count);
        for line in outcome.text.lines() {
            println!("          | {line}");
        }
    }
    println!("{passed} passed, {failed} failed, {left_out} left out");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
