//! The program: runs seeds, the explorer, pairs and mutants, prints figures, and writes what fails down.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::config::Format;
use crate::damaged;
use crate::events;
use crate::explore::{self, sequences};
use crate::lab::{Effort, Found, Lab};
use crate::layers;
use crate::mutants::{self, Fate};
use crate::pairs;
use crate::reference::Reference;
use crate::reuse;
use crate::scenario::Scenario;
use crate::shrink::{report, shrink};
use crate::told::{Explored, Told};
use crate::vhd;
use crate::workload::{self, explored_configs, faulted_configs};

const USAGE: &str = "\
usage: cowbell-sim run [--seeds A..B] [--minutes N] [--keep-going]
       cowbell-sim explore [--length N] [--config I] [--minutes N] [--keep-going]
       cowbell-sim faults [--minutes N] [--keep-going]
       cowbell-sim pairs [--minutes N] [--bound N] [--keep-going]
       cowbell-sim triples [--seeds A..B] [--minutes N] [--keep-going]
       cowbell-sim layers [--seeds A..B] [--minutes N] [--keep-going]
       cowbell-sim vhd [--seeds A..B] [--minutes N] [--keep-going]
       cowbell-sim mutants [--only ID]
       cowbell-sim replay FILE | --seed N
  each also with --figures FILE: what was reached is added to it";

/// Options of the command line.
#[derive(Debug, Default)]
struct Options {
    seeds: Option<(u64, u64)>,
    minutes: Option<f64>,
    length: Option<u32>,
    config: Option<usize>,
    seed: Option<u64>,
    file: Option<PathBuf>,
    keep_going: bool,
    bound: Option<u64>,
    only: Option<String>,
    figures: Option<PathBuf>,
}

fn parse(args: &[String]) -> Option<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => {
                let (from, to) = args.next()?.split_once("..")?;
                options.seeds = Some((from.parse().ok()?, to.parse().ok()?));
            }
            "--minutes" => options.minutes = Some(args.next()?.parse().ok()?),
            "--length" => options.length = Some(args.next()?.parse().ok()?),
            "--config" => options.config = Some(args.next()?.parse().ok()?),
            "--seed" => options.seed = Some(args.next()?.parse().ok()?),
            "--bound" => options.bound = Some(args.next()?.parse().ok()?),
            "--figures" => options.figures = Some(args.next()?.into()),
            "--only" => options.only = Some(args.next()?.clone()),
            "--keep-going" => options.keep_going = true,
            other if !other.starts_with("--") => options.file = Some(other.into()),
            _ => return None,
        }
    }
    Some(options)
}

/// Runs the program with these arguments.
pub fn main(args: Vec<String>) -> ExitCode {
    let parsed = args.split_first().and_then(|(command, rest)| Some((command.as_str(), parse(rest)?)));
    let Some((command, options)) = parsed else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut session = Session::new(options);
    match command {
        "run" => session.run(),
        "explore" => session.explore(),
        "faults" => session.faults(),
        "pairs" => session.pairs(),
        "triples" => session.triples(),
        "layers" => session.layers(),
        "vhd" => session.vhd(),
        "mutants" => session.mutants(),
        "replay" => session.replay(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    session.lab.figures.book();
    session.told.seconds = session.began.elapsed().as_secs_f64();
    session.told.print(&session.lab);
    if let Some(file) = &session.options.figures
        && let Err(error) = session.told.append(&session.lab, file)
    {
        eprintln!("{}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if session.told.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Most different failures that are shrunk in one session.
const FAILURES_MAX: u32 = 20;

/// Cuts, and no recovery from them.
const NO_RECOVERY: Effort = Effort { recover_one_in: 0, glance_one_in: 0, ..Effort::QUICK };

/// One in so many seeds is run twice more, to compare the traces.
const REPEAT_ONE_IN: u64 = 20;

struct Session {
    options: Options,
    lab: Lab,
    began: Instant,
    told: Told,
    /// What failed already, to tell a new failure from the same one again.
    known: Vec<String>,
}

impl Session {
    fn new(options: Options) -> Self {
        let mut lab = Lab::of(Format::Qcow2);
        lab.reference = Reference::find(&directory());
        Self { options, lab, began: Instant::now(), told: Told::default(), known: Vec::new() }
    }

    fn is_over(&self) -> bool {
        let late = self
            .options
            .minutes
            .is_some_and(|minutes| self.began.elapsed() > Duration::from_secs_f64(minutes * 60.0));
        late || self.told.failures > 0 && !self.options.keep_going || self.told.failures >= FAILURES_MAX
    }

    fn run(&mut self) {
        let (from, to) =
            self.options.seeds.unwrap_or((0, if self.options.minutes.is_some() { u64::MAX } else { 2000 }));
        for seed in from..to {
            if self.is_over() {
                break;
            }
            let scenario = workload::random(seed);
            self.try_one(&scenario, Effort::QUICK);
            if seed % REPEAT_ONE_IN == 0 {
                self.repeat(&scenario);
            }
        }
    }

    /// O10: the same run has the same trace.
    fn repeat(&mut self, scenario: &Scenario) {
        let hash = || Lab::of(Format::Qcow2).run(scenario).ok().map(|run| run.trace_hash);
        let (first, second) = (hash(), hash());
        self.told.repeated += 1;
        if first != second {
            self.told.failures += 1;
            println!("FAILURE O10: two runs differ\n{}", scenario.to_text());
        }
    }

    fn explore(&mut self) {
        let configs = explored_configs();
        let longest = self.options.length.unwrap_or(2);
        self.told.explored = Some(Explored::Part);
        for length in 1..=longest {
            for (index, config) in configs.iter().enumerate() {
                if self.options.config.is_some_and(|only| only != index) {
                    continue;
                }
                for scenario in sequences(config, length) {
                    if self.is_over() {
                        return;
                    }
                    self.try_one(&scenario, Effort::FULL);
                }
            }
        }
        self.told.explored = Some(Explored::All);
    }

    fn faults(&mut self) {
        if let Err(failed) = explore::strike_every_event(&mut self.lab, Effort::QUICK) {
            self.failed(&failed.0, &failed.1, Effort::QUICK);
        }
        let missed = events::missed(&self.lab.figures.events_struck);
        if !missed.is_empty() && !self.is_over() {
            self.told.failures += 1;
            println!("FAILURE T8: no fault struck after {}", missed.join(", "));
        }
        for story in reuse::changed_keys() {
            if let Err(failed) = explore::faults_of(&mut self.lab, &story, NO_RECOVERY) {
                self.failed(&failed.0, &failed.1, NO_RECOVERY);
            }
            self.told.workloads += 1;
        }
        for config in faulted_configs() {
            for scenario in sequences(&config, 1) {
                if self.is_over() {
                    return;
                }
                self.told.workloads += 1;
                if let Err(failed) = explore::faults_of(&mut self.lab, &scenario, Effort::QUICK) {
                    self.failed(&failed.0, &failed.1, Effort::QUICK);
                }
            }
        }
    }

    fn pairs(&mut self) {
        let bound = self.options.bound.unwrap_or(pairs::SCHEDULES_MAX);
        let scenarios = pairs::scenarios();
        let (mut complete, mut done) = (0u64, 0u64);
        for scenario in &scenarios {
            if self.is_over() {
                break;
            }
            self.told.workloads += 1;
            match pairs::all_schedules(&mut self.lab, scenario, bound) {
                Ok(covered) => complete += u64::from(covered.complete),
                Err(failed) => self.failed(&failed.0, &failed.1, Effort::QUICK),
            }
            done += 1;
        }
        for story in reuse::stories() {
            if self.is_over() {
                break;
            }
            self.told.workloads += 1;
            if let Err(failed) = reuse::hold_up_each(&mut self.lab, &story, Effort::QUICK) {
                self.failed(&failed.0, &failed.1, Effort::QUICK);
            }
        }
        println!("{done} of {} pairs, {complete} of them under all schedules", scenarios.len());
        (self.told.pairs, self.told.pairs_complete) = (done, complete);
    }

    fn triples(&mut self) {
        let (from, to) = self.options.seeds.unwrap_or((0, u64::MAX));
        for seed in from..to {
            if self.is_over() {
                break;
            }
            self.try_one(&pairs::triple(seed), Effort { glance_one_in: 25, ..NO_RECOVERY });
            self.told.triples += 1;
        }
    }

    fn layers(&mut self) {
        let (from, to) = self.options.seeds.unwrap_or((0, u64::MAX));
        for seed in from..to {
            if self.is_over() {
                break;
            }
            self.told.workloads += 1;
            let outcome = layers::run(&mut self.lab, seed).and_then(|()| match seed % 4 {
                0 => damaged::run(&mut self.lab, seed),
                _ => Ok(()),
            });
            if let Err(failure) = outcome {
                self.told.failures += 1;
                println!("FAILURE {failure}\nreplay: cowbell-sim layers --seeds {seed}..{}", seed + 1);
            }
        }
    }

    fn vhd(&mut self) {
        self.lab = Lab::of(Format::Vhd);
        let effort = Effort { repair: false, ..Effort::QUICK };
        for scenario in vhd::faulted_configs().flat_map(|config| sequences(&config, 1)) {
            if self.is_over() {
                return;
            }
            self.told.workloads += 1;
            if let Err(failed) = explore::faults_of(&mut self.lab, &scenario, effort) {
                self.failed(&failed.0, &failed.1, effort);
            }
        }
        let (from, to) = self.options.seeds.unwrap_or((0, u64::MAX));
        for seed in from..to {
            if self.is_over() {
                break;
            }
            self.try_one(&vhd::scenario(seed), effort);
        }
    }

    fn mutants(&mut self) {
        let mut each = |fate: &Fate| {
            let seconds = fate.took.as_secs_f64();
            match &fate.killed_by {
                Some(found) => println!(
                    "killed    {:28} {seconds:6.1} s {:7} scenarios: {found}",
                    fate.id, fate.scenarios
                ),
                None => println!("SURVIVED  {:28} {seconds:6.1} s: {}", fate.id, fate.removes),
            }
        };
        let fates = mutants::hunt(self.options.only.as_deref(), &mut each);
        if fates.is_empty() {
            println!("no mutants: build with --features mutants");
            self.told.failures += 1;
        }
        let survivors = fates.iter().filter(|f| f.killed_by.is_none()).count();
        println!("{} of {} mutants killed", fates.len() - survivors, fates.len());
        let slowest = fates.iter().map(|fate| fate.took).max().unwrap_or_default();
        self.told.mutants = Some((fates.len() - survivors, fates.len(), slowest));
        self.told.failures += survivors as u32;
    }

    fn replay(&mut self) {
        let scenario = match (self.options.seed, &self.options.file) {
            (Some(seed), _) => workload::random(seed),
            (None, Some(file)) => {
                let text =
                    std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                Scenario::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
            }
            _ => panic!("{USAGE}"),
        };
        print!("{}", scenario.to_text());
        self.lab = Lab::of(scenario.config.format);
        match self.lab.judge(&scenario, Effort::FULL) {
            Ok(run) => {
                println!("passes; trace hash {:016x}", run.trace_hash);
                print_log(&run.history);
            }
            Err(found) => {
                println!("FAILS: {}", found.failure);
                self.told.failures += 1;
                let plain = Scenario { cut: None, ..scenario };
                match self.lab.run(&plain) {
                    Ok(run) => print_log(&run.history),
                    Err(_) => print_log(&self.lab.last),
                }
            }
        }
    }

    fn try_one(&mut self, scenario: &Scenario, effort: Effort) {
        self.told.workloads += 1;
        if let Err(found) = self.lab.judge(scenario, effort) {
            self.failed(scenario, &found, effort);
        }
    }

    fn failed(&mut self, scenario: &Scenario, found: &Found, effort: Effort) {
        let small = shrink(&mut self.lab, scenario, found, effort);
        let failure = match self.lab.judge(&small, effort) {
            Err(found) => found.failure,
            Ok(_) => found.failure.clone(),
        };
        let kind: Vec<String> = small.ops.iter().map(|o| format!("{o:?}")).map(|o| first_word(&o)).collect();
        let signature = format!(
            "{} {kind:?} {:?}",
            failure.oracle,
            small.faults.iter().map(|f| f.kind).collect::<Vec<_>>()
        );
        if self.known.contains(&signature) {
            return;
        }
        self.known.push(signature);
        self.told.failures += 1;
        let text = report(&small, &failure);
        let name = format!(
            "{:016x}",
            crate::rng::mix(text.bytes().fold(0, |h, b| crate::rng::mix(h ^ u64::from(b))))
        );
        let directory = directory();
        let file = directory.join(format!("{name}.txt"));
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&file, &text));
        println!("FAILURE {failure}\n{text}");
        match written {
            Ok(()) => println!("replay: cargo run --release -p cowbell-sim -- replay {}", file.display()),
            Err(error) => println!("(the scenario could not be written: {error})"),
        }
    }
}

/// Where failing scenarios are written.
fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os("COWBELL_SIM_OUT").unwrap_or_else(|| "target/sim".into()))
}

fn first_word(text: &str) -> String {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn print_log(history: &crate::disk::History) {
    for (number, io) in history.ios.iter().enumerate() {
        println!(
            "  io {number}: {} {} {:#x}+{:#x}{} [{}] for request {}: {}..{}..{}{}",
            io.file.name(),
            io.kind.name(),
            io.offset,
            io.len,
            if io.fua { " fua" } else { "" },
            io.tag.name(),
            io.cause,
            io.submitted,
            io.applied.map_or("-".into(), |t| t.to_string()),
            io.completed.map_or("-".into(), |t| t.to_string()),
            io.fault.map_or(String::new(), |f| format!(" {}", f.name())),
        );
    }
}
