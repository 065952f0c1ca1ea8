//! How far the simulation's targets were reached: the figures of its commands, put together.
//!
//! Rates are per second of CPU time, so that what else runs on the machine does not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;
use crate::step::Outcome;

/// The figures of one run, in a file that the commands add to.
pub struct Reached {
    file: Option<PathBuf>,
}

impl Reached {
    /// With nothing reached yet.
    pub fn begin() -> Self {
        let file = cargo::target_directory().ok().map(|directory| directory.join("sim-figures.txt"));
        if let Some(file) = &file {
            // There is none on the first run.
            let _ = fs::remove_file(file);
        }
        Self { file }
    }

    /// The file's name, for the commands.
    pub fn file(&self) -> Result<String> {
        let file = self.file.as_ref().context("cargo names no target directory")?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Prints the table of targets.
    pub fn print(&self) -> Result<Outcome> {
        let file = self.file()?;
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        table(&sums(&text)).iter().for_each(|line| println!("{line}"));
        Ok(Outcome::Passed)
    }
}

type Sums = BTreeMap<String, u64>;

/// Figures of the same name added up; of times to kill, the longest.
fn sums(text: &str) -> Sums {
    let mut sums = Sums::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        let Ok(value) = value.parse::<u64>() else { continue };
        let sum = sums.entry(name.to_owned()).or_insert(0);
        *sum = match name {
            "slowest_us" | "events" | "events_struck" => (*sum).max(value),
            _ => *sum + value,
        };
    }
    sums
}

fn table(sums: &Sums) -> Vec<String> {
    let of = |name: &str| sums.get(name).copied().unwrap_or(0);
    let per_second = |n: u64, micros: u64| n as f64 * 1e6 / micros.max(1) as f64;
    let violations = of("failures");
    let states = per_second(of("states"), of("judging_us"));
    let schedules = per_second(of("raced"), of("racing_us"));
    let everywhere = per_second(of("schedules"), of("running_us"));
    let recovered = 100.0 * of("recoveries") as f64 / of("distinct").max(1) as f64;
    let shown = 100.0 * of("shown") as f64 / of("distinct").max(1) as f64;
    let extent =
        if of("explored_all") > 0 { "all of length 1 and 2" } else { "time was over before the end" };
    let rows = [
        (
            "T1",
            "crash states, violations",
            format!("{}, {violations}", of("states")),
            "200000, 0",
            of("states") >= 200_000 && violations == 0,
        ),
        ("T2", "states judged per second of CPU", format!("{states:.0}"), "50000", states >= 50_000.0),
        (
            "T3",
            "exhaustive sequences",
            format!("{}: {extent}", of("explored")),
            "all (soak)",
            of("explored_all") > 0,
        ),
        ("T4", "states recovered and cut again", format!("{recovered:.2} %"), "1 %", recovered >= 1.0),
        (
            "T5",
            "mutants killed, slowest",
            format!("{} of {}, {:.1} s", of("killed"), of("mutants"), of("slowest_us") as f64 / 1e6),
            "all, 60 s",
            of("killed") == of("mutants") && of("mutants") > 0,
        ),
        (
            "T6",
            "schedules of pairs, triples per second",
            format!("{schedules:.0}; {everywhere:.0} in all worlds"),
            "20000",
            schedules >= 20_000.0,
        ),
        (
            "T6",
            "pairs, of them under all schedules",
            format!("{}, {}; {} triples", of("pairs"), of("pairs_complete"), of("triples")),
            "all",
            of("pairs") > 0 && of("pairs") == of("pairs_complete"),
        ),
        (
            "T7",
            "seeds run twice with equal traces",
            format!("{}", of("repeated")),
            "100",
            of("repeated") >= 100 && violations == 0,
        ),
        (
            "T8",
            "faults struck; events right before",
            format!("{}; {} of {}", of("faults"), of("events_struck"), of("events")),
            "100 % of events",
            of("events") > 0 && of("events_struck") == of("events"),
        ),
        (
            "O4",
            "states the reference's check judged",
            format!("{shown:.2} % by metadata; {} asked", of("asked")),
            "0.1 %",
            shown >= 0.1,
        ),
    ];
    let head = format!("{:<4}{:<40}{:<36}{:<18}", "", "target", "reached", "asked");
    let line = |(id, what, reached, asked, good): &(&str, &str, String, &str, bool)| {
        format!("{id:<4}{what:<40}{reached:<36}{asked:<18}{}", if *good { "reached" } else { "SHORT" })
    };
    std::iter::once(head).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up_and_short_is_said() {
        let text = "states 150000\nstates 60000\njudging_us 1000000\nkilled 3\nmutants 3\nslowest_us 5\nslowest_us 7\n";
        let sums = sums(text);
        assert_eq!((sums["states"], sums["slowest_us"]), (210_000, 7));
        let table = table(&sums);
        let verdict =
            |id: &str| table.iter().find(|line| line.starts_with(id)).map(|line| line.ends_with("reached"));
        assert_eq!((verdict("T1"), verdict("T2"), verdict("T5")), (Some(true), Some(true), Some(true)));
        assert_eq!((verdict("T3"), verdict("T8")), (Some(false), Some(false)));
    }
}
