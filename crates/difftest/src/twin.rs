//! The same random commands on two sets of images, one by our tools, one by the reference's; after each command both
//! sets must be in the same state, by the reference's word on both.
//!
//! Compared are: whether the command succeeded, the chain's facts, the content, the check's exit class, and how both tools
//! map our images. A difference that was looked at and is meant to stay has its line in `reviewed-twin.txt`.

use std::fs;

use serde_json::Value;

use crate::judge::{difference, without_holes};
use crate::lab::{Lab, Side, Tools, quote};
use crate::options::Options;
use cowbell_difftest::rng::Rng;

/// Commands per sequence.
const STEPS: u64 = 10;
/// The images: each but the first lies over another, at least at first.
const IMAGES: [&str; 3] = ["base.q", "mid.q", "top.q"];
/// Differences that are meant to stay: `COMMAND WHAT  # reason`.
const REVIEWED: &str = include_str!("../reviewed-twin.txt");

/// Both sets of images.
pub struct Twins<'a> {
    ours: Lab<'a>,
    theirs: Lab<'a>,
}

/// One command line, for `qemu-img`, or for `qemu-io` with its commands.
struct Step {
    args: Vec<String>,
    commands: Option<String>,
}

impl Step {
    fn img(line: &str) -> Self {
        Self { args: line.split_whitespace().map(str::to_owned).collect(), commands: None }
    }

    fn io(file: &str, commands: String) -> Self {
        Self { args: vec!["-t".into(), "writeback".into(), file.into()], commands: Some(commands) }
    }

    /// The command's name, for the list of what was reviewed.
    fn name(&self) -> &str {
        if self.commands.is_some() { "io" } else { &self.args[0] }
    }
}

impl<'a> Twins<'a> {
    /// Two empty directories below the one of the seed.
    pub fn new(tools: &'a Tools, options: &Options, seed: u64) -> Result<Self, String> {
        let dir = options.out.join(format!("d5-{seed}"));
        let _ = fs::remove_dir_all(&dir);
        Ok(Self { ours: Lab::new(tools, &dir.join("ours"))?, theirs: Lab::new(tools, &dir.join("theirs"))? })
    }

    /// Leaves nothing behind.
    pub fn remove(self) {
        if let Some(dir) = self.ours.dir.parent() {
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// Runs the sequence of a seed.
    pub fn run(&mut self, seed: u64) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        for step in beginning(&mut rng) {
            self.step(&step)?;
        }
        self.same_state("create")?;
        for number in 0..STEPS {
            let step = random_step(&mut rng, number);
            let told = step.commands.clone().unwrap_or_default().replace('\n', "; ");
            let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
            let context = |e: String| format!("{e}\n    after step {number}: {} {told}", quote(&args));
            self.step(&step).map_err(context)?;
            self.same_state(step.name()).map_err(context)?;
        }
        Ok(())
    }

    /// The same command on both sides; both succeed, or both fail.
    fn step(&mut self, step: &Step) -> Result<(), String> {
        let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
        let mut run = |side| {
            let lab = match side {
                Side::Ours => &mut self.ours,
                Side::Theirs => &mut self.theirs,
            };
            match &step.commands {
                Some(commands) => lab.io(side, &args, commands),
                None => lab.img(side, &args),
            }
        };
        let (theirs, ours) = (run(Side::Theirs)?, run(Side::Ours)?);
        if (theirs.status == 0) == (ours.status == 0) || is_reviewed(step.name(), "status") {
            return Ok(());
        }
        Err(format!("status\n    theirs: {}    ours: {}", theirs.describe(), ours.describe()))
    }

    fn same_state(&mut self, command: &str) -> Result<(), String> {
        for file in IMAGES {
            for (what, found) in [
                ("info", self.same_info(file)?),
                ("map", self.same_map(file)?),
                ("content", self.same_content(file)?),
                ("check", self.same_check(file)?),
            ] {
                match found {
                    Some(found) if !is_reviewed(command, what) => {
                        return Err(format!("{file}: {what}: {found}"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What the reference prints about an image of each set.
    fn both(&mut self, args: &[&str]) -> Result<(Value, Value), String> {
        let parse = |lab: &mut Lab<'_>| {
            let ran = lab.img(Side::Theirs, args)?;
            // An image that does not open is the same on both sides, or not.
            Ok::<_, String>(serde_json::from_str(&ran.out).unwrap_or_else(|_| Value::from(ran.err)))
        };
        Ok((parse(&mut self.theirs)?, parse(&mut self.ours)?))
    }

    fn same_info(&mut self, file: &str) -> Result<Option<String>, String> {
        let (mut theirs, mut ours) = self.both(&["info", "--backing-chain", "--output=json", file])?;
        for value in [&mut theirs, &mut ours] {
            value.as_array_mut().into_iter().flatten().for_each(strip);
        }
        Ok(difference(&theirs, &ours, "info"))
    }

    /// Both tools map our image alike. The twins' maps differ: parts of clusters that are zeroed become zero clusters there
    /// and are left alone here if they read as zeroes, and what is copied down is divided otherwise.
    fn same_map(&mut self, file: &str) -> Result<Option<String>, String> {
        let mut map = |side| {
            let ran = self.ours.img(side, &["map", "--output=json", file])?;
            Ok::<_, String>(serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|_| Value::from(ran.err)))
        };
        let (theirs, ours) = (map(Side::Theirs)?, map(Side::Ours)?);
        Ok(difference(&without_holes(&theirs), &without_holes(&ours), "map"))
    }

    fn same_content(&mut self, file: &str) -> Result<Option<String>, String> {
        let read = |lab: &mut Lab<'_>| {
            let ran = lab.img(Side::Theirs, &["convert", "-O", "raw", file, "read.raw"])?;
            if ran.status == 0 { lab.read("read.raw") } else { Ok(ran.err.into_bytes()) }
        };
        let (theirs, ours) = (read(&mut self.theirs)?, read(&mut self.ours)?);
        if theirs.len() != ours.len() {
            return Ok(Some(format!("theirs has {} bytes, ours {}", theirs.len(), ours.len())));
        }
        let at = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        Ok(at.map(|at| format!("byte {at}: theirs {:#04x}, ours {:#04x}", theirs[at], ours[at])))
    }

    fn same_check(&mut self, file: &str) -> Result<Option<String>, String> {
        let check = |lab: &mut Lab<'_>| Ok::<_, String>(lab.img(Side::Theirs, &["check", file])?.status);
        let (theirs, ours) = (check(&mut self.theirs)?, check(&mut self.ours)?);
        // Leaks of the reference are no reason for ours to have some.
        let fine = theirs == ours || (theirs == 3 && ours == 0);
        Ok((!fine).then(|| format!("theirs ends with {theirs}, ours with {ours}")))
    }
}

/// Whether a line of the list names this command and difference.
fn is_reviewed(command: &str, what: &str) -> bool {
    REVIEWED.lines().any(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.next() == Some(command) && words.next() == Some(what)
    })
}

/// Takes out what depends on the time and on where things lie in the file.
fn strip(info: &mut Value) {
    let Some(object) = info.as_object_mut() else { return };
    for key in ["actual-size", "children"] {
        object.remove(key);
    }
    for snapshot in object.get_mut("snapshots").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(snapshot) = snapshot.as_object_mut() {
            snapshot.remove("date-sec");
            snapshot.remove("date-nsec");
        }
    }
}

/// A chain of three, of random forms.
fn beginning(rng: &mut Rng) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, file) in IMAGES.into_iter().enumerate() {
        let cluster = rng.pick(&["512", "4k", "64k", "64k"]);
        // An overlay of version 2 has nothing to hide its backing file with when it grows: the reference refuses, and here
        // zeroes are stored.
        let compat = if rng.percent(15) && index == 0 { "0.10" } else { "1.1" };
        let size = 512 * (200 + rng.below(6000));
        let below = match index {
            0 => String::new(),
            index => format!("-b {} -F qcow2", IMAGES[index - 1]),
        };
        let line =
            format!("create -q -f qcow2 -o cluster_size={cluster},compat={compat} {below} {file} {size}");
        steps.push(Step::img(&line));
        steps.push(Step::io(file, requests(rng, size)));
    }
    steps
}

/// A few requests inside so many bytes.
fn requests(rng: &mut Rng, size: u64) -> String {
    let mut out = String::new();
    for _ in 0..1 + rng.below(5) {
        let offset = rng.below(size / 512) * 512;
        let len = ((1 + rng.below(200)) * 512).min(size - offset);
        let line = match rng.below(6) {
            0 => format!("write -q -z {offset} {len}"),
            1 => format!("write -q -z -u {offset} {len}"),
            2 => format!("discard -q {offset} {len}"),
            _ => format!("write -q -P {} {offset} {len}", 1 + rng.below(255)),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

fn random_step(rng: &mut Rng, number: u64) -> Step {
    let file = rng.pick(&IMAGES);
    let (bitmap, snapshot) = (rng.pick(&["b0", "b1"]), rng.pick(&["s0", "s1"]));
    let line = match rng.below(16) {
        0..=4 => return Step::io(file, requests(rng, 512 * 200)),
        5 => format!("resize -q {file} +{}", 512 * (1 + rng.below(2000))),
        6 => format!("resize -q --shrink {file} {}", 512 * (100 + rng.below(3000))),
        7 => format!("snapshot -q {} {snapshot} {file}", rng.pick(&["-c", "-c", "-a", "-d"])),
        8 => {
            let option = rng.pick(&["--add", "--add", "--remove", "--clear", "--enable", "--disable"]);
            format!("bitmap {option} {file} {bitmap}")
        }
        9 => format!("bitmap --merge b0 {file} b1"),
        10 => format!("commit -q {} top.q", rng.pick(&["", "-d", "-b base.q", "-b mid.q"])),
        11 => {
            let below = rng.pick(&["base.q", "mid.q"]);
            format!("rebase -q -b {below} -F qcow2 top.q")
        }
        12 => {
            let option = rng.pick(&["compat=0.10", "compat=1.1", "lazy_refcounts=on", "refcount_bits=32"]);
            let file = if option == "compat=0.10" { IMAGES[0] } else { file };
            format!("amend -q -o {option} {file}")
        }
        13 => {
            let option = rng.pick(&["", "-c", "-S 64k", "-W", "-o cluster_size=4k", "-o compat=0.10"]);
            format!("convert -q -O qcow2 {option} {file} new-{number}.q")
        }
        14 => format!("convert -q -O qcow2 -B base.q -F qcow2 top.q new-{number}.q"),
        _ => format!("check -q -r {} {file}", rng.pick(&["leaks", "all"])),
    };
    Step::img(&line)
}
