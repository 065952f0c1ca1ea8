//! Fuzzing in a seeded loop, on the stable toolchain: a valid image, its fields damaged, and what the engine makes
//! of it.
//!
//! | module | duty |
//! |---|---|
//! | [`input`] | images: from the corpus, made by the engine, damaged; a few hostile ones by construction |
//! | [`target`] | what is done to an image, and what must hold |
//! | [mod@file] | the file below, in memory: counts I/Os |
//! | [`heap`] | counts memory (the only `unsafe` here) |
//!
//! The limits of `reliability.md`, 4.9, hold for each execution: heap, I/Os, time. The same seed does the same.
#![deny(unsafe_code)]

mod file;
mod heap;
mod input;
mod target;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cowbell_difftest::rng::Rng;
use input::{Corpus, Input};
use target::{TARGETS, Target};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const USAGE: &str = "\
usage: cowbell-fuzz [--seconds N] [--seed N] [--count N] [--target NAME] [--corpus DIR] [--out DIR] [FILE]...
With FILEs, only these are tried, on every target.";

/// Findings that are known and open: one signature per line, with what is to become of it. They are counted and
/// named, and do not fail the run.
const KNOWN: &str = include_str!("../known.txt");

fn is_known(signature: &str) -> bool {
    let lines = KNOWN.lines().filter_map(|line| line.split('#').next()).map(str::trim);
    lines.filter(|line| !line.is_empty()).any(|known| signature == known)
}

/// Most bytes of heap one execution may take, beside the file itself.
const HEAP_BYTES_MAX: u64 = 64 << 20;
/// Longest execution.
const TIME_MAX: Duration = Duration::from_secs(1);
/// An execution that takes this long never ends: the program says which it was, and stops.
const HANG_S: u64 = 20;

/// The command line.
struct Options {
    seconds: u64,
    seed: u64,
    count: u64,
    target: Option<String>,
    corpus: PathBuf,
    out: PathBuf,
    files: Vec<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Option<Self> {
        let mut options = Self {
            seconds: 60,
            seed: 1,
            count: u64::MAX,
            target: None,
            corpus: concat!(env!("CARGO_MANIFEST_DIR"), "/corpus").into(),
            out: "target/fuzz".into(),
            files: Vec::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--seconds" => options.seconds = args.next()?.parse().ok()?,
                "--seed" => options.seed = args.next()?.parse().ok()?,
                "--count" => options.count = args.next()?.parse().ok()?,
                "--target" => options.target = Some(args.next()?.clone()),
                "--corpus" => options.corpus = args.next()?.into(),
                "--out" => options.out = args.next()?.into(),
                file if !file.starts_with("--") => options.files.push(file.into()),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = format!("panic at {place}: {}", info.payload_as_str().unwrap_or("(no text)"));
        if !EXECUTING.load(Ordering::Relaxed) {
            eprintln!("cowbell-fuzz itself: {text}");
        }
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = text;
        }
    }));
    std::thread::spawn(watch);
    match Session::new(options).run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cowbell-fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Text of the panic that was caught last.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
/// Whether a panic is the engine's, and will be caught.
static EXECUTING: AtomicBool = AtomicBool::new(false);
/// Executions so far, and what the present one is: for the watchdog.
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
static PRESENT: Mutex<String> = Mutex::new(String::new());

/// Ends the program when an execution does not end.
fn watch() {
    let mut seen = u64::MAX;
    loop {
        std::thread::sleep(Duration::from_secs(HANG_S));
        let now = EXECUTIONS.load(Ordering::Relaxed);
        if now == seen {
            let present = PRESENT.lock().map(|text| text.clone()).unwrap_or_default();
            if !present.is_empty() {
                println!("FINDING hang: {present} has not ended in {HANG_S} s");
                std::process::exit(1);
            }
        }
        seen = now;
    }
}

struct Session {
    options: Options,
    corpus: Corpus,
    /// What was found, by signature: how often.
    found: BTreeMap<String, u64>,
    slowest: BTreeMap<&'static str, Duration>,
}

impl Session {
    fn new(options: Options) -> Self {
        Self { options, corpus: Corpus::default(), found: BTreeMap::new(), slowest: BTreeMap::new() }
    }

    /// Runs everything; whether nothing was found.
    fn run(mut self) -> Result<bool, String> {
        let began = Instant::now();
        if self.options.files.is_empty() {
            self.corpus = Corpus::load(&self.options.corpus)?;
            self.run_fixed();
            self.run_seeds(began);
        } else {
            for path in self.options.files.clone() {
                let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                self.run_all(&Input::of_file(path.display().to_string(), bytes));
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let executions = EXECUTIONS.load(Ordering::Relaxed);
        for (name, took) in &self.slowest {
            println!("{name:<10} slowest execution {:>8.2} ms", took.as_secs_f64() * 1e3);
        }
        for (signature, times) in &self.found {
            let known = if is_known(signature) { " (known)" } else { "" };
            println!("{times:>8} times{known}: {signature}");
        }
        println!("fuzz: {executions} executions, {:.0}/s", executions as f64 / seconds);
        println!("fuzz: {} passed, {} failed", executions - self.failed(), self.failed());
        Ok(self.failed() == 0)
    }

    fn failed(&self) -> u64 {
        self.found.iter().filter(|(signature, _)| !is_known(signature)).map(|(_, times)| times).sum()
    }

    /// The corpus as it is, and the images that are hostile by construction.
    fn run_fixed(&mut self) {
        for input in self.corpus.inputs() {
            self.run_all(&input);
        }
        for input in input::hostile() {
            self.run_all(&input);
        }
    }

    fn run_seeds(&mut self, began: Instant) {
        let end = self.options.seed.saturating_add(self.options.count);
        let time = Duration::from_secs(self.options.seconds);
        for seed in self.options.seed..end {
            if began.elapsed() > time {
                break;
            }
            let mut rng = Rng::new(seed);
            let input = self.corpus.damaged(seed, &mut rng);
            self.run_all(&input);
        }
    }

    fn run_all(&mut self, input: &Input) {
        for target in TARGETS {
            if self.options.target.as_deref().is_none_or(|only| only == target.name) {
                self.execute(target, input);
            }
        }
    }

    fn execute(&mut self, target: &Target, input: &Input) {
        if let Ok(mut present) = PRESENT.lock() {
            *present = format!("{} on {}", target.name, input.name);
        }
        let file = input.file();
        let before = heap::start();
        let began = Instant::now();
        EXECUTING.store(true, Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| (target.run)(&file, input.seed)));
        EXECUTING.store(false, Ordering::Relaxed);
        let took = began.elapsed();
        let grown = file.allocated().saturating_sub(input.allocated());
        let heap_bytes = heap::peak().saturating_sub(before).saturating_sub(grown);
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
        let slowest = self.slowest.entry(target.name).or_default();
        *slowest = (*slowest).max(took);
        let complaint = match result {
            Err(_) => Some(LAST_PANIC.lock().map(|text| text.clone()).unwrap_or_default()),
            Ok(Err(complaint)) => Some(complaint),
            Ok(Ok(())) if heap_bytes > HEAP_BYTES_MAX => Some(format!("heap: {} MiB", heap_bytes >> 20)),
            Ok(Ok(())) if file.ios() > input.ios_max() => Some("I/Os: more than the limit".into()),
            Ok(Ok(())) if took > TIME_MAX => Some("time: more than a second".into()),
            Ok(Ok(())) => input.limits.broken(target.name, took, heap_bytes),
        };
        if let Some(complaint) = complaint {
            self.report(target, input, &complaint);
        }
    }

    /// Prints a finding once for each signature, and keeps its input.
    fn report(&mut self, target: &Target, input: &Input, complaint: &str) {
        // Numbers differ from input to input; what they belong to does not.
        let kind: String = complaint.split(" [").next().unwrap_or_default().into();
        let signature = format!("{}: {kind}", target.name);
        let times = self.found.entry(signature).or_insert(0);
        *times += 1;
        if *times > 1 {
            return;
        }
        println!("FINDING {} on {}: {complaint}", target.name, input.name);
        let name = format!("{}-{}.img", target.name, self.found.len());
        let path = self.options.out.join(name);
        let saved = match input.bytes() {
            Some(bytes) => {
                std::fs::create_dir_all(&self.options.out).and_then(|()| std::fs::write(&path, bytes))
            }
            None => Ok(()),
        };
        match saved {
            Ok(()) => println!("    again: cargo run --release -p cowbell-fuzz -- {}", path.display()),
            Err(error) => println!("    (not saved: {error})"),
        }
    }
}
