//! What is printed.

use anyhow::Result;
use serde_json::json;

use super::cases::{Case, Metric};
use crate::usage::{Spent, median};

/// What was measured of one case.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    goal: f64,
    metric: Metric,
    ours: Vec<Spent>,
    theirs: Vec<Spent>,
}

impl Row {
    /// Nothing yet.
    pub fn new(case: &Case) -> Self {
        Self { name: case.name, goal: case.goal, metric: case.metric, ours: Vec::new(), theirs: Vec::new() }
    }

    /// One run more.
    pub fn add(&mut self, ours: bool, spent: &Spent) {
        if ours { self.ours.push(*spent) } else { self.theirs.push(*spent) }
    }

    /// Median over the pairs of reference / us.
    fn ratio(&self, of: impl Fn(&Spent) -> f64) -> f64 {
        let pairs = self.theirs.iter().zip(&self.ours);
        median(&mut pairs.map(|(theirs, ours)| of(theirs) / of(ours).max(1e-6)).collect::<Vec<_>>())
    }

    fn cpu_ratio(&self) -> f64 {
        self.ratio(|spent| spent.cpu.as_secs_f64())
    }

    fn wall_ratio(&self) -> f64 {
        self.ratio(|spent| spent.wall.as_secs_f64())
    }

    fn is_short(&self) -> bool {
        let ratio = if self.metric == Metric::Cpu { self.cpu_ratio() } else { self.wall_ratio() };
        ratio < self.goal
    }

    fn cpu_ms(runs: &[Spent]) -> f64 {
        median(&mut runs.iter().map(|spent| spent.cpu.as_secs_f64() * 1e3).collect::<Vec<_>>())
    }

    fn peak_mib(runs: &[Spent]) -> f64 {
        median(&mut runs.iter().map(|spent| spent.peak_bytes as f64 / 1048576.0).collect::<Vec<_>>())
    }
}

/// All rows.
#[derive(Debug)]
pub struct Table {
    version: String,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Cases that could not be measured, and why.
    pub failures: Vec<(&'static str, String)>,
}

impl Table {
    /// An empty table beside this reference.
    pub fn new(version: &str) -> Self {
        Self { version: version.to_owned(), rows: Vec::new(), failures: Vec::new() }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "reference: {}\nratios are reference / cowbell, medians of pairs; CPU in ms and memory in MiB are \
             ours/theirs\n\n{:<38} {:>6} {:>9} {:>10} {:>17} {:>15}\n",
            self.version, "case", "goal", "CPU ratio", "wall ratio", "CPU ms", "memory MiB"
        );
        for row in &self.rows {
            let (cpu, wall) = match row.metric {
                Metric::Cpu => ("", " "),
                Metric::Wall => (" ", "*"),
            };
            text += &format!(
                "{:<38} {:>6} {:>8.2}x {:>8.2}x{wall} {:>8.1}/{:<8.1} {:>7.1}/{:<7.1}{}{cpu}\n",
                row.name,
                format!(">={}", row.goal),
                row.cpu_ratio(),
                row.wall_ratio(),
                Row::cpu_ms(&row.ours),
                Row::cpu_ms(&row.theirs),
                Row::peak_mib(&row.ours),
                Row::peak_mib(&row.theirs),
                if row.is_short() { " SHORT" } else { "" },
            );
        }
        if self.rows.iter().any(|row| row.metric == Metric::Wall) {
            text += "* the goal is about wall time\n";
        }
        for (name, why) in &self.failures {
            text += &format!("{name}: NOT MEASURED: {why}\n");
        }
        let short = self.rows.iter().filter(|row| row.is_short()).count();
        text + &format!("{} cases, {short} short of their goal\n", self.rows.len())
    }

    /// For programs.
    pub fn json(&self) -> Result<String> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.name,
                    "goal": row.goal,
                    "metric": if row.metric == Metric::Cpu { "cpu" } else { "wall" },
                    "cpu-ratio": row.cpu_ratio(),
                    "wall-ratio": row.wall_ratio(),
                    "cpu-ms": { "ours": Row::cpu_ms(&row.ours), "theirs": Row::cpu_ms(&row.theirs) },
                    "peak-mib": { "ours": Row::peak_mib(&row.ours), "theirs": Row::peak_mib(&row.theirs) },
                    "short": row.is_short(),
                })
            })
            .collect();
        let failures: Vec<_> =
            self.failures.iter().map(|(case, why)| json!({ "case": case, "error": why })).collect();
        let all = json!({ "reference": self.version, "cases": rows, "not-measured": failures });
        Ok(serde_json::to_string_pretty(&all)? + "\n")
    }
}
