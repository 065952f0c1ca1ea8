//! What an engine must not know: clock, threads, environment, random order.
//!
//! An engine gets clock, randomness, spawning and I/O passed in, or the simulation could not replay a seed.

use super::source::{Source, has_word};

/// The crates whose behaviour is a function of what is passed in.
const ENGINES: [&str; 8] = ["block", "luks", "qcow2", "vpc", "jobs", "inspect", "machine", "vm"];

/// What a line of an engine must not contain, and why.
const FORBIDDEN: [(&str, &str); 13] = [
    ("Instant::now", "the clock is passed in"),
    ("SystemTime", "the clock is passed in"),
    ("thread::spawn", "no threads in an engine"),
    ("thread::scope", "no threads in an engine"),
    ("thread::sleep", "no threads in an engine"),
    ("std::env", "no environment in an engine"),
    ("env::var", "no environment in an engine"),
    ("std::fs", "files are reached through nodes"),
    ("std::net", "sockets are reached through nodes"),
    ("std::process", "no processes in an engine"),
    ("RandomState", "maps must have a fixed order"),
    ("thread_rng", "randomness is passed in"),
    ("block_on", "no library waits by itself"),
];

/// Ways to walk over a map in its own order.
const WALKS: [&str; 8] = ["iter", "iter_mut", "keys", "values", "values_mut", "drain", "into_iter", "retain"];

/// Offences against the rules of this module.
pub fn check(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| source.krate().is_some_and(|krate| ENGINES.contains(&krate)))
        .flat_map(offences)
        .collect()
}

fn offences(source: &Source) -> Vec<String> {
    let maps: Vec<&str> = source.shipped_lines().filter_map(|(_, line)| map_name(line)).collect();
    let mut offences = Vec::new();
    let mut lines = source.shipped_lines().peekable();
    while let Some((number, line)) = lines.next() {
        // What is collected and sorted at once has an order again.
        let sorted = lines.peek().is_some_and(|(_, next)| next.contains(".sort"));
        let mut offend =
            |why: &str| offences.push(format!("{}:{number}: {why}: {}", source.path, line.trim()));
        for (word, why) in FORBIDDEN {
            if has_word(line, word) {
                offend(why);
            }
        }
        if is_randomly_seeded(line) {
            offend("a map needs a fixed hasher");
        }
        if !sorted && maps.iter().any(|map| walks(line, map)) {
            offend("a hash map is walked in its own order");
        }
    }
    offences
}

/// The name of the field or variable that this line declares to be a hash map or set.
fn map_name(line: &str) -> Option<&str> {
    let (before, _) = line.split_once(": HashMap<").or_else(|| line.split_once(": HashSet<"))?;
    before.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next()
}

/// Whether the line names a hash map's type without naming its hasher, or makes one with the default hasher.
fn is_randomly_seeded(line: &str) -> bool {
    ["HashMap", "HashSet"].iter().any(|map| {
        let named = has_word(line, &format!("{map}<")) && !line.contains("Hasher");
        let made = has_word(line, &format!("{map}::new")) || has_word(line, &format!("{map}::from"));
        named || made
    })
}

fn walks(line: &str, map: &str) -> bool {
    let by_method = WALKS.iter().any(|walk| has_word(line, &format!("{map}.{walk}(")));
    let by_loop = line.trim_start().starts_with("for ")
        && [" in &", " in &mut ", " in ", " in &self.", " in &mut self."]
            .iter()
            .any(|start| line.contains(&format!("{start}{map} {{")));
    by_method || by_loop
}

#[cfg(test)]
mod tests {
    use super::super::source::source;
    use super::*;

    fn check_one(text: &str, expect: usize) {
        let found = check(&[source("crates/qcow2/src/x.rs", text)]);
        assert_eq!(found.len(), expect, "{text:?}: {found:?}");
        assert_eq!(check(&[source("crates/host/src/x.rs", text)]), [""; 0], "hosts may");
    }

    #[test]
    fn each_rule_strikes() {
        check_one("let now = Instant::now();\n", 1);
        check_one("std::thread::spawn(f);\n", 1);
        check_one("let x = std::env::args();\n", 1);
        check_one("// Instant::now is not used here\n", 0);
        check_one("#[cfg(test)]\nlet now = Instant::now();\n", 0);
    }

    #[test]
    fn maps_are_fixed_and_not_walked() {
        check_one("index: HashMap<u64, u64, BuildHasherDefault<H>>,\nself.index.get(&1)\n", 0);
        check_one("index: HashMap<u64, u64>,\n", 1);
        check_one("let a = HashMap::new();\n", 1);
        check_one("index: HashMap<u64, u64, BuildHasherDefault<H>>,\nself.index.values().sum()\n", 1);
        check_one("index: HashMap<u64, u64, BuildHasherDefault<H>>,\nfor x in &self.index {\n", 1);
        check_one(
            "index: HashMap<u64, u64, BuildHasherDefault<H>>,\nlet a = self.index.keys();\na.sort();\n",
            0,
        );
    }
}
