//! Fuzzing in a seeded loop, on the stable toolchain with nothing else installed: something valid, its fields damaged,
//! and what is made of it. The same seed does the same.
#![deny(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cowbell_difftest::rng::Rng;
use cowbell_fuzz::execute::{Executed, execute, suits};
use cowbell_fuzz::heap;
use cowbell_fuzz::input::{self, Corpus, Input};
use cowbell_fuzz::scene::Scene;
use cowbell_fuzz::target::{TARGETS, Target};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const USAGE: &str = "\
usage: cowbell-fuzz [--seconds N] [--seed N] [--count N] [--target NAME] [--corpus DIR] [--out DIR] [FILE]...
       cowbell-fuzz --targets
       cowbell-fuzz --scene IMAGE DECISIONS
With FILEs, only these are tried: what begins as an image does on every target of images, other files on the target
that is named, as a file of the corpus. --targets lists them with the names of their corpora. --scene writes an image, and decisions in hexadecimal, as such a file.";

/// Findings that are known and open: one signature per line, with what is to become of it. They are counted and
/// named, and do not fail the run.
const KNOWN: &str = include_str!("../known.txt");

fn is_known(signature: &str) -> bool {
    let lines = KNOWN.lines().filter_map(|line| line.split('#').next()).map(str::trim);
    lines.filter(|line| !line.is_empty()).any(|known| signature == known)
}

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

    fn wants(&self, target: &Target) -> bool {
        self.target.as_deref().is_none_or(|only| only == target.name)
    }
}

/// Writes an image and decisions as a file of the corpus to the standard output.
fn write_scene(image: &str, decisions: &str) -> Result<(), String> {
    let bytes = std::fs::read(image).map_err(|e| format!("{image}: {e}"))?;
    let pair = |at: usize| decisions.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let choices: Option<Vec<u8>> = (0..decisions.len()).step_by(2).map(pair).collect();
    let choices = choices.ok_or_else(|| format!("{decisions}: pairs of hexadecimal digits expected"))?;
    let scene = Scene::of_file(&choices, &bytes).encode();
    std::io::stdout().write_all(&scene).map_err(|e| format!("standard output: {e}"))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|flag| flag == "--targets") {
        TARGETS.iter().for_each(|target| println!("{} {}", target.name, input::corpus_of(target)));
        return ExitCode::SUCCESS;
    }
    if let [flag, image, decisions] = args.as_slice()
        && flag == "--scene"
    {
        return match write_scene(image, decisions) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cowbell-fuzz: {error}");
                ExitCode::FAILURE
            }
        };
    }
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
                self.run_file(path.display().to_string(), &bytes);
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
        let whole: Vec<Input> = self.corpus.inputs().collect();
        for input in whole {
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

    fn run_file(&mut self, name: String, bytes: &[u8]) {
        if bytes.starts_with(b"QFI\xfb") {
            return self.run_all(&Input::of_image(name, bytes));
        }
        for target in TARGETS {
            if self.options.wants(target) {
                self.execute(target, &Input::of_corpus(target, name.clone(), bytes));
            }
        }
    }

    fn run_all(&mut self, input: &Input) {
        for target in TARGETS {
            if self.options.wants(target) && suits(target, input) {
                self.execute(target, input);
            }
        }
    }

    fn execute(&mut self, target: &Target, input: &Input) {
        if let Ok(mut present) = PRESENT.lock() {
            *present = format!("{} on {}", target.name, input.name);
        }
        EXECUTING.store(true, Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| execute(target, input)));
        EXECUTING.store(false, Ordering::Relaxed);
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
        let complaint = match result {
            Err(_) => Some(LAST_PANIC.lock().map(|text| text.clone()).unwrap_or_default()),
            Ok(Executed { took, complaint }) => {
                let slowest = self.slowest.entry(target.name).or_default();
                *slowest = (*slowest).max(took);
                complaint
            }
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
        let name = format!("{}-{}", target.name, self.found.len());
        let path = self.options.out.join(name);
        let bytes = input.bytes();
        let saved = std::fs::create_dir_all(&self.options.out).and_then(|()| std::fs::write(&path, bytes));
        match saved {
            Ok(()) => println!(
                "    again: cargo run --release -p cowbell-fuzz --bin cowbell-fuzz -- --target {} {}",
                target.name,
                path.display()
            ),
            Err(error) => println!("    (not saved: {error})"),
        }
    }
}
