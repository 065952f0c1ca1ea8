//! What `img inspect` prints for people.

use std::fmt::Write;

use cowbell_host::sandbox::Part;
use cowbell_inspect::{Candidate, Remark};
use serde_json::{Map, Value};

use super::{LIMITS, Told};
use crate::size::human;

/// Certainty from which on a candidate is shown with its facts.
const SHOWN: u8 = 50;

/// The whole text.
pub(super) fn text(told: &Told<'_>) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "file: {}", told.name);
    let _ = writeln!(out, "length: {} ({} bytes)", human(told.report.len), told.report.len);
    confinement(&mut out, told);
    out.push_str("\nIt could be:\n");
    for candidate in &told.report.candidates {
        let evidence = candidate.evidence.join("; ");
        let _ = writeln!(out, "  {:<12} {:>3} %  {evidence}", candidate.format, candidate.certainty);
    }
    let probes: Vec<String> = told.probes.iter().map(|(name, score)| format!("{name} ({score})")).collect();
    match probes.as_slice() {
        [] => out.push_str("Without a format given, it is taken for raw.\n"),
        all => {
            let _ = writeln!(out, "Drivers that claim it when no format is given: {}.", all.join(", "));
        }
    }
    remarks(&mut out, &told.report.remarks, "");
    for candidate in &told.report.candidates {
        if candidate.certainty >= SHOWN || !candidate.remarks.is_empty() || !candidate.facts.is_empty() {
            section(&mut out, candidate);
        }
    }
    out
}

fn confinement(out: &mut String, told: &Told<'_>) {
    let limits = format!("{} of memory, {} s", human(LIMITS.memory_bytes), LIMITS.cpu_seconds);
    let Some(confinement) = &told.confinement else {
        let _ = writeln!(out, "looked at: not confined, as asked; at most {limits}");
        return;
    };
    let _ = writeln!(out, "looked at: by a process with at most {limits}");
    for (name, part) in [("landlock", &confinement.landlock), ("seccomp", &confinement.seccomp)] {
        let _ = match part {
            Part::Holds(what) => writeln!(out, "  {name}: {what}"),
            Part::Partly(what) => writeln!(out, "  {name}: in part: {what}"),
            Part::Absent(why) => writeln!(out, "  {name}: NOT in force: {why}"),
        };
    }
}

fn section(out: &mut String, candidate: &Candidate) {
    let _ = writeln!(out, "\nAs {}:", candidate.format);
    facts(out, &candidate.facts, "  ");
    for reference in &candidate.references {
        let _ = writeln!(out, "  {}: {} ({})", reference.role, reference.name, reference.kind.meaning());
        facts(out, &reference.details, "    ");
    }
    remarks(out, &candidate.remarks, "  ");
}

fn remarks(out: &mut String, remarks: &[Remark], indent: &str) {
    for remark in remarks {
        let _ = writeln!(out, "{indent}{}: {}", remark.severity.word().to_uppercase(), remark.text);
    }
}

fn facts(out: &mut String, facts: &Map<String, Value>, indent: &str) {
    for (key, value) in facts {
        let key = key.replace('-', " ");
        match value {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let _ = writeln!(out, "{indent}{key}:");
                list.iter().for_each(|item| {
                    let _ = writeln!(out, "{indent}  {}", one_line(item));
                });
            }
            other => {
                let _ = writeln!(out, "{indent}{key}: {}", one_line(other));
            }
        }
    }
}

fn one_line(value: &Value) -> String {
    let join = |parts: Vec<String>| if parts.is_empty() { "none".to_owned() } else { parts.join(", ") };
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "unknown".to_owned(),
        Value::Array(list) => join(list.iter().map(one_line).collect()),
        // Dates of snapshots are for programs.
        Value::Object(map) => join(
            map.iter()
                .filter(|(key, _)| *key != "date-sec")
                .map(|(key, value)| format!("{} {}", key.replace('-', " "), one_line(value)))
                .collect(),
        ),
        other => other.to_string(),
    }
}
