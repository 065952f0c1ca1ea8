//! `check --explain`: findings by kind, with where each is, what it means for the data and what a repair does.

use std::collections::HashSet;
use std::fmt::Write;

use cowbell_block::{Finding, Topic, Whereabouts};
use serde_json::{Value, json};

/// Findings of one kind that are listed for people; programs get all of them.
const LISTED_MAX: usize = 20;
/// Columns of the explaining text.
const COLUMNS: usize = 100;

/// The findings as they were told last: first it is said what is wrong, then that it is repaired.
pub fn latest(findings: Vec<Finding>) -> Vec<Finding> {
    let mut seen = HashSet::new();
    let mut latest: Vec<Finding> = findings
        .into_iter()
        .rev()
        .filter(|finding| match finding.topic() {
            Some(topic) => {
                finding.place() == Whereabouts::default() || seen.insert((topic.name, finding.place()))
            }
            None => false,
        })
        .collect();
    latest.reverse();
    latest
}

/// The text for people; nothing where nothing was found.
pub fn text(findings: &[Finding]) -> String {
    let mut topics: Vec<&'static Topic> = Vec::new();
    for topic in findings.iter().filter_map(Finding::topic) {
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    let mut out = String::new();
    for topic in topics {
        let all: Vec<&Finding> = findings.iter().filter(|f| f.topic() == Some(topic)).collect();
        let _ = writeln!(out, "\n{} ({}):", topic.name, all.len());
        wrap(&mut out, topic.meaning);
        wrap(&mut out, &format!("Repair: {}", topic.repair));
        for finding in all.iter().take(LISTED_MAX) {
            let _ = writeln!(out, "  - {finding}");
            let place = place(finding);
            if !place.is_empty() {
                let _ = writeln!(out, "      {place}");
            }
        }
        if all.len() > LISTED_MAX {
            let _ =
                writeln!(out, "  - ... and {} more (all of them with --output=json)", all.len() - LISTED_MAX);
        }
    }
    out
}

/// Where a finding is, in words.
fn place(finding: &Finding) -> String {
    let place = finding.place();
    let mut parts = Vec::new();
    if let Some((offset, len)) = place.host {
        parts.push(format!("at {offset:#x} in the file, {len} bytes"));
    }
    match (place.guest, place.snapshot) {
        (Some(guest), None) => parts.push(format!("for the disk from {guest:#x} on")),
        (Some(guest), Some(number)) => {
            parts.push(format!("for snapshot number {number} from {guest:#x} of its disk on"));
        }
        (None, Some(number)) => parts.push(format!("snapshot number {number}")),
        (None, None) => {}
    }
    parts.join("; ")
}

fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split(' ') {
        let len = word.chars().count();
        if column == 0 || column + 1 + len > COLUMNS {
            out.push_str(if column == 0 { "    " } else { "\n    " });
            column = 4;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += len;
    }
    out.push('\n');
}

/// All findings for programs.
pub fn json(findings: &[Finding]) -> Value {
    findings
        .iter()
        .filter_map(|finding| finding.topic().map(|topic| (finding, topic)))
        .map(|(finding, topic)| {
            let place = finding.place();
            let mut value = json!({
                "kind": topic.name,
                "line": &**finding,
                "meaning": topic.meaning,
                "repair": topic.repair,
            });
            let numbers = [
                ("file-offset", place.host.map(|(offset, _)| offset)),
                ("file-length", place.host.map(|(_, len)| len)),
                ("disk-offset", place.guest),
                ("snapshot", place.snapshot.map(u64::from)),
            ];
            for (key, number) in numbers {
                if let Some(number) = number {
                    value[key] = number.into();
                }
            }
            value
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &Topic = &Topic { name: "leak", meaning: "Space is lost.", repair: "It is found." };

    #[test]
    fn findings_of_a_kind_are_told_together() {
        let leak = |cluster: u64| {
            Finding::new(TOPIC, format!("Leaked cluster {cluster}")).in_file(cluster << 16, 1 << 16)
        };
        let all = vec![leak(3), Finding::from("Rebuilding".to_owned()), leak(5).on_disk(512).of_snapshot(2)];
        assert_eq!(
            text(&all),
            "\nleak (2):\n    Space is lost.\n    Repair: It is found.\n  - Leaked cluster 3\n      \
             at 0x30000 in the file, 65536 bytes\n  - Leaked cluster 5\n      at 0x50000 in the file, 65536 bytes; \
             for snapshot number 2 from 0x200 of its disk on\n"
        );
        let value = json(&all);
        assert_eq!(value.as_array().map(Vec::len), Some(2), "a line about the check itself is no finding");
        assert_eq!(value[1]["file-offset"], 5 << 16);
        assert_eq!((&value[1]["snapshot"], &value[0]["snapshot"]), (&json!(2), &Value::Null));
    }

    #[test]
    fn what_is_repaired_is_told_once() {
        let at = |line: &str, cluster: u64| Finding::new(TOPIC, line.to_owned()).in_file(cluster, 1);
        let all =
            vec![at("Leaked", 1), at("Leaked", 2), Finding::from("Done".to_owned()), at("Repairing", 1)];
        assert_eq!(latest(all), [at("Leaked", 2), at("Repairing", 1)]);
    }

    #[test]
    fn long_texts_are_wrapped() {
        let mut out = String::new();
        wrap(&mut out, &"word ".repeat(50));
        assert!(out.lines().count() == 3 && out.lines().all(|line| line.len() <= COLUMNS), "{out}");
    }
}
