//! The program: runs seeds, the explorer, pairs and mutants, prints figures, and writes what fails down.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cowbell_block::DebugEvent;

use crate::engine::Engine;
use crate::explore::{self, sequences};
use crate::figures::SETTINGS;
use crate::lab::{Effort, Found, Lab};
use crate::mutants::{self, Fate};
use crate::pairs;
use crate::reuse;
use crate::scenario::Scenario;
use crate::shrink::{report, shrink};
use crate::workload::{self, explored_configs, faulted_configs};

const USAGE: &str = "\
usage: cowbell-sim run [--seeds A..B] [--minutes N] [--keep-going]
       cowbell-sim explore [--length N] [--config I] [--minutes N] [--keep-going]
       cowbell-sim faults [--minutes N] [--keep-going]
       cowbell-sim pairs [--minutes N] [--bound N] [--keep-going]
       cowbell-sim mutants [--only ID]
       cowbell-sim replay FILE | --seed N";

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
        "mutants" => session.mutants(),
        "replay" => session.replay(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    session.lab.figures.book();
    session.print_figures();
    if session.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Most different failures that are shrunk in one session.
const FAILURES_MAX: u32 = 20;

/// One in so many seeds is run twice more, to compare the traces.
const REPEAT_ONE_IN: u64 = 20;

struct Session {
    options: Options,
    lab: Lab,
    began: Instant,
    workloads: u64,
    failures: u32,
    /// What the explorer went through.
    explored: Option<&'static str>,
    /// Seeds that were run twice.
    repeated: u64,
    /// What failed already, to tell a new failure from the same one again.
    known: Vec<String>,
}

impl Session {
    fn new(options: Options) -> Self {
        let lab = Lab::new(Rc::new(Engine::default()));
        Self {
            options,
            lab,
            began: Instant::now(),
            workloads: 0,
            failures: 0,
            explored: None,
            repeated: 0,
            known: Vec::new(),
        }
    }

    fn is_over(&self) -> bool {
        let late = self
            .options
            .minutes
            .is_some_and(|minutes| self.began.elapsed() > Duration::from_secs_f64(minutes * 60.0));
        late || self.failures > 0 && !self.options.keep_going || self.failures >= FAILURES_MAX
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
        let hash = || Lab::new(Rc::new(Engine::default())).run(scenario).ok().map(|run| run.trace_hash);
        let (first, second) = (hash(), hash());
        self.repeated += 1;
        if first != second {
            self.failures += 1;
            println!("FAILURE O10: two runs differ\n{}", scenario.to_text());
        }
    }

    fn explore(&mut self) {
        let configs = explored_configs();
        let longest = self.options.length.unwrap_or(2);
        self.explored = Some("stopped before the end");
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
        self.explored = Some("all of them");
    }

    fn faults(&mut self) {
        for config in faulted_configs() {
            for scenario in sequences(&config, 1) {
                if self.is_over() {
                    return;
                }
                self.workloads += 1;
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
            self.workloads += 1;
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
            self.workloads += 1;
            if let Err(failed) = reuse::hold_up_each(&mut self.lab, &story, Effort::QUICK) {
                self.failed(&failed.0, &failed.1, Effort::QUICK);
            }
        }
        println!("{done} of {} pairs, {complete} of them under all schedules", scenarios.len());
    }

    fn mutants(&mut self) {
        let make_lab = || Lab::new(Rc::new(Engine::default()));
        let mut each = |fate: &Fate| {
            let seconds = fate.took.as_secs_f64();
            match &fate.killed_by {
                Some(failed) => {
                    let found = &failed.1.failure;
                    println!(
                        "killed    {:28} {seconds:6.1} s {:7} scenarios: {found}",
                        fate.id, fate.scenarios
                    );
                }
                None => println!("SURVIVED  {:28} {seconds:6.1} s: {}", fate.id, fate.removes),
            }
        };
        let fates = mutants::hunt(&make_lab, self.options.only.as_deref(), &mut each);
        if fates.is_empty() {
            println!("no mutants: build with --features mutants");
            self.failures += 1;
        }
        let survivors = fates.iter().filter(|f| f.killed_by.is_none()).count();
        println!("{} of {} mutants killed", fates.len() - survivors, fates.len());
        self.failures += survivors as u32;
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
        match self.lab.judge(&scenario, Effort::FULL) {
            Ok(run) => {
                println!("passes; trace hash {:016x}", run.trace_hash);
                print_log(&run.history);
            }
            Err(found) => {
                println!("FAILS: {}", found.failure);
                self.failures += 1;
                let plain = Scenario { cut: None, ..scenario };
                match self.lab.run(&plain) {
                    Ok(run) => print_log(&run.history),
                    Err(_) => print_log(&self.lab.last),
                }
            }
        }
    }

    fn try_one(&mut self, scenario: &Scenario, effort: Effort) {
        self.workloads += 1;
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
        self.failures += 1;
        let text = report(&small, &failure);
        let name = format!(
            "{:016x}",
            crate::rng::mix(text.bytes().fold(0, |h, b| crate::rng::mix(h ^ u64::from(b))))
        );
        let directory =
            PathBuf::from(std::env::var_os("COWBELL_SIM_OUT").unwrap_or_else(|| "target/sim".into()));
        let file = directory.join(format!("{name}.txt"));
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&file, &text));
        println!("FAILURE {failure}\n{text}");
        match written {
            Ok(()) => println!("replay: cargo run --release -p cowbell-sim -- replay {}", file.display()),
            Err(error) => println!("(the scenario could not be written: {error})"),
        }
    }

    fn print_figures(&self) {
        let seconds = self.began.elapsed().as_secs_f64();
        let counters = self.lab.judge.counters;
        let figures = &self.lab.figures;
        let rate = |n: u64| n as f64 / seconds;
        println!("{:>12} workloads   {:>12.0}/s", self.workloads, rate(self.workloads));
        println!("{:>12} schedules   {:>12.0}/s", figures.runs, rate(figures.runs));
        println!("{:>12} operations  {:>12.0}/s", figures.operations, rate(figures.operations));
        println!("{:>12} states      {:>12.0}/s", counters.states, rate(counters.states));
        println!("{:>12} distinct    {:>12.0}/s", counters.judged, rate(counters.judged));
        println!("{:>12} inspected   {:>12.0}/s", counters.inspected, rate(counters.inspected));
        println!("{:>12} recoveries", figures.recoveries);
        println!("{:>12} repairs", figures.repairs);
        println!("{:>12} faults struck", figures.faults);
        println!("{:>12} failures in {seconds:.1} s", self.failures);
        self.print_coverage();
        self.print_targets(seconds);
    }

    fn print_coverage(&self) {
        let figures = &self.lab.figures;
        println!("configurations covered: {}", figures.configs);
        for key in SETTINGS {
            let values = figures.settings.iter().filter(|((k, _), _)| *k == key);
            let list: Vec<String> = values.map(|((_, value), runs)| format!("{value} ({runs})")).collect();
            println!("  {key:15} {}", list.join(", "));
        }
        let events = self.lab.figures.events.iter().zip(DebugEvent::ALL);
        let hit: Vec<&str> = events.filter(|(count, _)| **count > 0).map(|(_, event)| event.name()).collect();
        println!("debug events seen: {} of 47: {}", hit.len(), hit.join(" "));
    }

    /// The targets of `reliability.md` that this run says something about.
    fn print_targets(&self, seconds: f64) {
        let counters = self.lab.judge.counters;
        let figures = &self.lab.figures;
        let recovered = 100.0 * figures.recoveries as f64 / counters.judged.max(1) as f64;
        let verdict = if self.failures == 0 { "0 violations" } else { "VIOLATIONS" };
        println!("targets:");
        println!("  T1  crash states                 {} of 200,000 per CI run, {verdict}", counters.states);
        println!(
            "  T2  states per second            {:.0} of 50,000 (with everything else this run did)",
            counters.states as f64 / seconds
        );
        if let Some(longest) = self.explored {
            println!("  T3  exhaustive sequences         {} workloads, {longest}", self.workloads);
        }
        println!("  T4  recovered and cut again      {recovered:.2} % of distinct states, 1 % asked");
        println!(
            "  T6  schedules per second         {:.0} of 20,000 (with everything else this run did)",
            figures.runs as f64 / seconds
        );
        if self.repeated > 0 {
            println!("  T7  seeds run twice              {} of 100, traces equal", self.repeated);
        }
        println!("  T8  faults struck                {}, {verdict}", figures.faults);
        println!("  T18 leaks after a clean close    {}", if self.failures == 0 { "0" } else { "see above" });
    }
}

fn first_word(text: &str) -> String {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn print_log(history: &crate::disk::History) {
    for (number, io) in history.ios.iter().enumerate() {
        println!(
            "  io {number}: {} {:#x}+{:#x}{} [{}] for request {}: {}..{}..{}{}",
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
