//! What is told at the end: what was done, which configurations were covered, and how far each target of the design was
//! reached. Every figure is a measured one.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::events;
use crate::figures::{SETTINGS, cpu_time};
use crate::lab::Lab;

/// How much of its sequences the explorer went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explored {
    /// Time was over before.
    Part,
    /// All of them.
    All,
}

/// What a command did, beside what the laboratory counts.
#[derive(Debug, Default)]
pub struct Told {
    /// Scenarios tried.
    pub workloads: u64,
    /// Oracles that disagreed, and mutants that survived.
    pub failures: u32,
    /// What the explorer went through.
    pub explored: Option<Explored>,
    /// Seeds that were run twice, with equal traces unless there are failures.
    pub repeated: u64,
    /// Pairs of requests tried.
    pub pairs: u64,
    /// Those tried under all schedules.
    pub pairs_complete: u64,
    /// Triples of requests tried.
    pub triples: u64,
    /// Mutants killed, all of them, and the longest that one took.
    pub mutants: Option<(usize, usize, Duration)>,
    /// Seconds that it took by the clock on the wall.
    pub seconds: f64,
}

impl Told {
    /// Prints everything.
    pub fn print(&self, lab: &Lab) {
        let (counters, figures) = (lab.judge.counters, &lab.figures);
        let rate = |n: u64| n as f64 / self.seconds;
        println!("{:>12} workloads   {:>12.0}/s", self.workloads, rate(self.workloads));
        println!("{:>12} schedules   {:>12.0}/s", figures.runs, rate(figures.runs));
        println!("{:>12} operations  {:>12.0}/s", figures.operations, rate(figures.operations));
        println!("{:>12} states      {:>12.0}/s", counters.states, rate(counters.states));
        println!("{:>12} distinct    {:>12.0}/s", counters.judged, rate(counters.judged));
        println!("{:>12} inspected   {:>12.0}/s", counters.inspected, rate(counters.inspected));
        println!("{:>12} recoveries", figures.recoveries);
        println!("{:>12} repairs", figures.repairs);
        println!("{:>12} faults struck", figures.faults);
        println!("{:>12} failures in {:.1} s", self.failures, self.seconds);
        print_coverage(lab);
    }

    /// CPU time spent in anything but judging the states of cuts.
    fn running(&self, lab: &Lab) -> Duration {
        cpu_time().saturating_sub(lab.figures.judging)
    }

    /// Adds the figures that targets are about to a file, one `name value` a line.
    ///
    /// # Errors
    /// The file's.
    pub fn append(&self, lab: &Lab, file: &Path) -> std::io::Result<()> {
        let (counters, figures) = (lab.judge.counters, &lab.figures);
        let micros = |time: Duration| time.as_micros() as u64;
        let mut lines = vec![
            ("failures", u64::from(self.failures)),
            ("states", counters.states),
            ("distinct", counters.judged),
            ("judging_us", micros(figures.judging)),
            ("recoveries", figures.recoveries),
            ("schedules", figures.runs),
            ("running_us", micros(self.running(lab))),
            ("repeated", self.repeated),
            ("faults", figures.faults),
            ("pairs", self.pairs),
            ("pairs_complete", self.pairs_complete),
            ("triples", self.triples),
            ("asked", lab.reference.as_ref().map_or(0, |reference| reference.asked)),
            ("shown", counters.shown),
        ];
        if self.pairs + self.triples > 0 {
            // What goes on after a cut belongs to the cut.
            lines.push(("raced", figures.runs - figures.recoveries));
            lines.push(("racing_us", micros(self.running(lab).saturating_sub(figures.recovering))));
        }
        if let Some(explored) = self.explored {
            lines.push(("explored", self.workloads));
            lines.push(("explored_all", u64::from(explored == Explored::All)));
        }
        if let Some((killed, all, slowest)) = self.mutants {
            lines.extend([
                ("killed", killed as u64),
                ("mutants", all as u64),
                ("slowest_us", micros(slowest)),
            ]);
        }
        if figures.events_struck.iter().any(|count| *count > 0) {
            let all = events::announced().count();
            lines.push(("events", all as u64));
            lines.push(("events_struck", (all - events::missed(&figures.events_struck).len()) as u64));
        }
        let mut out = OpenOptions::new().create(true).append(true).open(file)?;
        lines.iter().try_for_each(|(name, value)| writeln!(out, "{name} {value}"))
    }
}

fn print_coverage(lab: &Lab) {
    let figures = &lab.figures;
    println!("configurations covered: {}", figures.configs);
    for key in SETTINGS {
        let values = figures.settings.iter().filter(|((k, _), _)| *k == key);
        let list: Vec<String> = values.map(|((_, value), runs)| format!("{value} ({runs})")).collect();
        println!("  {key:15} {}", list.join(", "));
    }
    let seen = |event: &cowbell_block::DebugEvent| {
        figures.events.get(*event as usize).is_some_and(|count| *count > 0)
    };
    let all = events::announced().count();
    println!(
        "debug events: {all} are announced by the engine, {} were seen",
        events::announced().filter(seen).count()
    );
    let missed = events::missed(&figures.events_struck);
    println!("  a fault struck right after {} of them; missed: {}", all - missed.len(), missed.join(" "));
    match &lab.reference {
        Some(reference) => println!(
            "states whose metadata the reference's check judged: {}, {} times asked",
            lab.judge.counters.shown, reference.asked
        ),
        None => println!("states shown to the reference's check: none, qemu-img is not on PATH"),
    }
}
