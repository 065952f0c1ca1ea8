//! Command lines on both tools: exit status, standard output and standard error must be the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::judge;
use crate::lab::{Lab, Ran, Side, Tools, quote};
use crate::options::{Keep, Options};
use crate::parity_table::{CASES, Case, Expect, FIXTURES};

/// Command lines of the table on which the tools still differ, one per line. They are run and counted, and do not
/// fail; one that has become the same is named, to be taken from the list.
const OPEN: &str = include_str!("../open.txt");

/// Runs the table; returns how many cases ran and how many failed.
pub fn run(tools: &Tools, options: &Options) -> (usize, usize) {
    let mut lab = match Lab::new(tools, &options.out.join("parity")) {
        Ok(lab) => lab,
        Err(error) => {
            println!("FAILED parity: {error}");
            return (1, 1);
        }
    };
    if let Err(error) = make_fixtures(&mut lab) {
        println!("FAILED parity: {error}");
        return (1, 1);
    }
    let (mut ran, mut failed, mut open) = (0, 0, 0);
    for case in CASES.iter().filter(|case| case.line().contains(&options.filter)) {
        ran += 1;
        let is_open = OPEN.lines().any(|line| line == case.line());
        match run_case(&lab, tools, case) {
            Ok(None) if is_open => println!("parity: the same now, take it from open.txt: {}", case.line()),
            Ok(None) => {}
            Ok(Some(_)) if is_open && options.filter.is_empty() => open += 1,
            Ok(Some(difference)) => {
                failed += 1;
                println!("FAILED parity: {}\n{difference}", case.line());
            }
            Err(error) => {
                failed += 1;
                println!("FAILED parity: {}: {error}", case.line());
            }
        }
    }
    println!("parity: {open} of {ran} command lines differ and are listed as open");
    if options.keep == Keep::Failures && failed == 0 {
        lab.remove();
    }
    (ran, failed)
}

/// The images that the cases look at, made by the reference.
fn make_fixtures(lab: &mut Lab<'_>) -> Result<(), String> {
    for (tool, args, input) in FIXTURES {
        let args: Vec<&str> = args.split_whitespace().collect();
        let ran = match *tool {
            "img" => lab.img(Side::Theirs, &args)?,
            "io" => lab.io(Side::Theirs, &args, input)?,
            _ => {
                lab.write(tool, input.as_bytes())?;
                continue;
            }
        };
        ran.ok(&quote(&args))?;
    }
    Ok(())
}

/// Runs a case on both sides, each in its own copy of the fixtures.
fn run_case(fixtures: &Lab<'_>, tools: &Tools, case: &Case) -> Result<Option<String>, String> {
    let mut results = Vec::new();
    for side in [Side::Theirs, Side::Ours] {
        // Both in a directory of the same name: paths are part of the output.
        let mut lab = Lab::new(tools, &fixtures.dir.join("run"))?;
        copy_files(fixtures, &lab)?;
        let args: Vec<&str> = case.args.to_vec();
        let ran = match case.tool {
            "img" => lab.img(side, &args)?,
            _ => lab.io(side, &args, case.input)?,
        };
        let mut ran = normalise(ran);
        if case.input.contains("aio_") {
            // Whether the next prompt comes before a request is done is a matter of speed.
            ran.out = ran.out.replace("qemu-io> ", "");
        }
        if let Some(file) = case.makes {
            // What the command made is compared by what the reference finds in it.
            let info = lab.img(Side::Theirs, &["info", file])?;
            let check = lab.img(Side::Theirs, &["check", file])?;
            let disk_size_out = |text: String| {
                text.lines()
                    .filter(|line| !line.contains("disk size:"))
                    .map(|l| format!("{l}\n"))
                    .collect::<String>()
            };
            ran.out += &disk_size_out(info.out + &info.err);
            ran.out += &check.status.to_string();
        }
        results.push(ran);
    }
    Ok(difference(&results[0], &results[1], case.expect))
}

fn copy_files(from: &Lab<'_>, to: &Lab<'_>) -> Result<(), String> {
    for entry in fs::read_dir(&from.dir).map_err(|e| e.to_string())?.flatten() {
        let path = entry.path();
        if path.is_file() && path.extension().is_none_or(|ending| ending != "io") {
            let sparse = if is_mostly_stored(&path) { "--sparse=never" } else { "--sparse=auto" };
            let status = std::process::Command::new("cp")
                .arg(sparse)
                .arg(&path)
                .arg(&to.dir)
                .status()
                .map_err(|e| e.to_string())?;
            if !status.success() {
                return Err(format!("cp {}: {status}", path.display()));
            }
        }
    }
    Ok(())
}

/// Whether a copy should have no holes. Those of a sparse file are part of what is reported, and kept; but what was allocated
/// and never written would become a hole as well, and the image would look preallocated.
fn is_mostly_stored(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.blocks().saturating_mul(512) >= meta.len() / 4 * 3)
}

/// Replaces what differs from run to run: times, and what follows from them.
fn normalise(mut ran: Ran) -> Ran {
    ran.out = ran.out.lines().map(|line| format!("{}\n", without_times(line))).collect();
    ran.err = ran.err.lines().map(|line| format!("{}\n", without_chance(line))).collect();
    ran
}

/// Generated names of nodes (`#block1` and two digits): the reference throws dice for the last two.
fn without_chance(line: &str) -> String {
    const NAME: &str = "#block";
    let mut parts = line.split(NAME);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        out.push_str(NAME);
        out.push_str(&part[..digits.saturating_sub(2)]);
        out.push('*');
        out.push_str(&part[digits..]);
    }
    out
}

/// `64 KiB, 1 ops; 00.02 sec (7.501 MiB/sec and 60.0090 ops/sec)` without the part after the semicolon; the
/// machine-readable form `65536,1,0:00:00.02,1.2,3.4` without what follows the second comma.
fn without_times(line: &str) -> String {
    if let Some((before, after)) = line.split_once("ops; ")
        && after.contains("ops/sec)")
    {
        return format!("{before}ops; TIME");
    }
    let fields: Vec<&str> = line.split(',').collect();
    if fields.len() == 5 && fields[2].contains(':') {
        return format!("{},{},TIME", fields[0], fields[1]);
    }
    line.to_owned()
}

fn difference(theirs: &Ran, ours: &Ran, expect: Expect) -> Option<String> {
    let same_status = theirs.status == ours.status;
    let same = match expect {
        Expect::Same => same_status && same_text(&theirs.out, &ours.out) && theirs.err == ours.err,
        Expect::SameStatus => same_status,
        Expect::SameOutput => same_status && same_text(&theirs.out, &ours.out),
    };
    if same {
        return None;
    }
    let mut text = format!("    status: theirs {}, ours {}\n", theirs.status, ours.status);
    for (name, theirs, ours) in [("out", &theirs.out, &ours.out), ("err", &theirs.err, &ours.err)] {
        if theirs != ours {
            text += &format!("    {name}, theirs:\n{}    {name}, ours:\n{}", indent(theirs), indent(ours));
        }
    }
    Some(text)
}

/// Whether two outputs are the same; the order of JSON's keys is none.
fn same_text(theirs: &str, ours: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    match (parse(theirs), parse(ours)) {
        (Some(theirs), Some(ours)) => judge::difference(&theirs, &ours, "").is_none(),
        _ => theirs == ours,
    }
}

fn indent(text: &str) -> String {
    text.lines().take(25).map(|line| format!("      |{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_by_chance_are_taken_out() {
        let line = "Read-only block node '#block134' cannot support read-write users";
        assert_eq!(without_chance(line), "Read-only block node '#block1*' cannot support read-write users");
        assert_eq!(without_chance("qemu-io: nothing of a node"), "qemu-io: nothing of a node");
    }

    #[test]
    fn times_are_taken_out() {
        let line = "64 KiB, 1 ops; 00.02 sec (7.501 MiB/sec and 60.0090 ops/sec)";
        assert_eq!(without_times(line), "64 KiB, 1 ops; TIME");
        assert_eq!(without_times("65536,1,0:00:00.02,1.2,3.4"), "65536,1,TIME");
        assert_eq!(without_times("virtual size: 64 MiB"), "virtual size: 64 MiB");
    }
}
