//! Blocks of machine code that only lead to a panic: the failing side of checked arithmetic, of an index, of an assertion.
//!
//! Read from what `nm` and `objdump` print (x86-64). A block leads to a panic when every way from its first instruction ends in a
//! call of one of the standard library's functions for it, or goes on with unwinding from one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Parts of the names of functions that never return and are about a failure.
const NAMES: [&str; 9] = [
    "9panicking",
    "_fail",
    "unwrap_failed",
    "len_mismatch",
    "handle_error",
    "capacity_overflow",
    "handle_alloc_error",
    "_Unwind_Resume",
    "resume_unwind",
];

/// Those of the blocks that begin at the offsets `wanted` which only lead to a panic.
pub fn leading_to(program: &Path, wanted: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
    let known = Known::of(program)?;
    let mut child = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn", "-j", ".text"])
        .arg(program)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting objdump (Debian: binutils)")?;
    let output = BufReader::new(child.stdout.take().context("objdump's output")?);
    let (mut found, mut function) = (BTreeSet::new(), Vec::new());
    for line in output.lines() {
        let line = line.context("what objdump printed")?;
        match instruction(&line) {
            Some(instruction) => function.push(instruction),
            None => judge(&std::mem::take(&mut function), wanted, &known, &mut found),
        }
    }
    judge(&function, wanted, &known, &mut found);
    child.wait().context("waiting for objdump")?;
    Ok(found)
}

/// Where failures are handled: functions, and places that hold a pointer to one.
struct Known(BTreeSet<u64>);

impl Known {
    fn of(program: &Path) -> Result<Self> {
        let mut places = BTreeSet::new();
        for line in printed("nm", &[], program)?.lines() {
            let mut words = line.split(' ');
            let (address, name) = (words.next().and_then(hex), words.next_back().unwrap_or_default());
            places.extend(address.filter(|_| is_failure(name)));
        }
        let mut pointers = Vec::new();
        for line in printed("objdump", &["-R"], program)?.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [place, _, target] = words[..] else { continue };
            let points_there = match target.split_once("+0x") {
                Some((_, address)) => hex(address).is_some_and(|address| places.contains(&address)),
                None => is_failure(target),
            };
            pointers.extend(hex(place).filter(|_| points_there));
        }
        places.extend(pointers);
        Ok(Self(places))
    }

    /// Whether a call or a jump of this text ends in a failure.
    fn is_failure(&self, operands: &str) -> bool {
        let target = operands.rsplit_once("# ").map_or(operands, |(_, place)| place);
        let address = target.split(' ').next().and_then(hex);
        address.is_some_and(|address| self.0.contains(&address)) || is_failure(target)
    }
}

fn is_failure(name: &str) -> bool {
    NAMES.iter().any(|part| name.contains(part))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn printed(tool: &str, args: &[&str], program: &Path) -> Result<String> {
    let output = Command::new(tool).args(args).arg(program).output();
    let output = output.with_context(|| format!("starting {tool} (Debian: binutils)"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An address, and the text of the instruction there.
type Instruction = (u64, String);

fn instruction(line: &str) -> Option<Instruction> {
    let (address, text) = line.strip_prefix(' ')?.split_once(":\t")?;
    Some((hex(address.trim())?, text.trim().to_owned()))
}

/// Judges the wanted blocks of one function.
fn judge(function: &[Instruction], wanted: &BTreeSet<u64>, known: &Known, found: &mut BTreeSet<u64>) {
    let (Some((first, _)), Some((last, _))) = (function.first(), function.last()) else { return };
    let mut starts = wanted.range(first..=last).peekable();
    if starts.peek().is_none() {
        return;
    }
    let places: BTreeMap<u64, usize> =
        function.iter().enumerate().map(|(index, (address, _))| (*address, index)).collect();
    for start in starts {
        if places.get(start).is_some_and(|index| !returns(function, &places, *index, known)) {
            found.insert(*start);
        }
    }
}

/// Whether some way from this instruction leads out of the function other than by a failure.
fn returns(function: &[Instruction], places: &BTreeMap<u64, usize>, from: usize, known: &Known) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(index) = open.pop() {
        let Some((_, text)) = function.get(index) else { return true };
        if !seen.insert(index) {
            continue;
        }
        let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
        let operands = operands.trim_start();
        let leaves = name.starts_with("call") || name.starts_with('j');
        match name {
            "ud2" => continue,
            _ if leaves && known.is_failure(operands) => continue,
            _ if name.starts_with("ret") => return true,
            _ if name.starts_with('j') => {
                let target = operands.split(' ').next().and_then(hex);
                let Some(next) = target.and_then(|target| places.get(&target)) else { return true };
                open.push(*next);
                if !name.starts_with("jmp") {
                    open.push(index + 1);
                }
            }
            _ => open.push(index + 1),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: [&str; 9] = [
        "  10:\tincb   0x1(%rip)        # 99 <counter>",
        "  16:\tjne    20 <f+0x10>",
        "  18:\tcall   *0x5(%rip)        # 77 <_DYNAMIC+0x8>",
        "  1e:\tret",
        "  20:\tincb   0x2(%rip)        # 98 <counter>",
        "  26:\tcall   500 <_RNvNtCs1_4core9panicking5panic>",
        "  2b:\tincb   0x3(%rip)        # 97 <counter>",
        "  31:\tcall   600 <something>",
        "  36:\tret",
    ];

    #[test]
    fn only_what_cannot_return_leads_to_a_panic() {
        let function: Vec<Instruction> = CODE.into_iter().filter_map(instruction).collect();
        assert_eq!(function.len(), 9);
        let judged = |places: &[u64]| {
            let (wanted, mut found) = (BTreeSet::from([0x10, 0x20, 0x2b]), BTreeSet::new());
            judge(&function, &wanted, &Known(places.iter().copied().collect()), &mut found);
            found.into_iter().collect::<Vec<_>>()
        };
        // Where 0x77 points to a panic, nothing that begins at 0x10 comes back.
        assert_eq!(judged(&[0x77]), [0x10, 0x20]);
        assert_eq!(judged(&[]), [0x20]);
        assert_eq!(judged(&[0x600]), [0x20, 0x2b]);
    }
}
