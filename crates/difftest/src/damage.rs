//! Damaged images: `check` of both sides must agree on the exit class and on the counters.

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::{Config, IMAGE};
use crate::lab::{Lab, Ran, Side};
use crate::ops;
use cowbell_difftest::layout::{Layout, put};
use cowbell_difftest::rng::Rng;

/// Differences that were looked at and are meant to stay. One per line: `FIELD VALUE WHAT  # reason`, where
/// `*` at the end stands for anything.
const REVIEWED: &str = include_str!("../reviewed.txt");

/// Damages per seed: making the image costs more than checking it.
const DAMAGES: u64 = 8;

/// Builds the image of a seed, and checks it with one field after another damaged.
pub fn run(lab: &mut Lab<'_>, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut config = Config::random(&mut rng);
    // Copies of a large image cost more than they show.
    while config.size > 4 << 20 {
        config = Config::random(&mut rng);
    }
    lab.note(&format!("# d4, seed {seed}: {config:?}"));
    let mut model = config.make(lab, Side::Theirs, &mut rng)?;
    for number in 0..=config.snapshots {
        let commands = ops::batch(&config, Side::Theirs, &mut model, &mut rng);
        lab.io(Side::Theirs, &["-f", "qcow2", IMAGE], &commands)?.ok("their io")?;
        if number < config.snapshots {
            lab.img(Side::Theirs, &["snapshot", "-c", &format!("s{number}"), IMAGE])?.ok("their snapshot")?;
        }
    }
    let image = lab.read(IMAGE)?;
    let layout = Layout::of(&image);
    let mut failures = String::new();
    for number in 0..DAMAGES {
        let Some((field, value, how)) = layout.damage(&mut rng) else { continue };
        let mut damaged = image.clone();
        put(&mut damaged, &field, value);
        let name = format!("damaged-{number}.qcow2");
        lab.write(&name, &damaged)?;
        let before = layout.value(&field);
        lab.note(&format!(
            "# {name}: {} at {:#x}: {before:#x} -> {value:#x} ({how})",
            field.name, field.offset
        ));
        for difference in differences(lab, &name, &damaged, layout.cluster)? {
            if !is_reviewed(field.name, how, &difference) {
                let _ = write!(
                    failures,
                    "\n    {name}: {} {how} at {:#x}: {before:#x} -> {value:#x}: {difference}",
                    field.name, field.offset
                );
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// What the two sides tell differently about an image.
fn differences(lab: &mut Lab<'_>, name: &str, image: &[u8], cluster: u64) -> Result<Vec<String>, String> {
    let args = ["check", "-f", "qcow2", "--output=json", name];
    let theirs = lab.img(Side::Theirs, &args)?;
    if theirs.status == 124 {
        // The reference takes too long over some damage; there is nothing to compare with.
        return Ok(Vec::new());
    }
    let ours = lab.img(Side::Ours, &args)?;
    let mut found = Vec::new();
    let beyond = leaks_beyond(&ours, (image.len() as u64).div_ceil(cluster));
    // The reference does not look at refcounts of clusters beyond the file's end, and we do.
    let ours_status = match (ours.status, beyond) {
        (3, 1..) if counter(&parse(&ours), "leaks") == beyond => 0,
        (status, _) => status,
    };
    if ours.status > 63 {
        found.push(format!("crash: {}", ours.describe()));
    } else if theirs.status != ours_status {
        let first = |ran: &Ran| ran.err.lines().next().unwrap_or_default().to_owned();
        found.push(format!(
            "exit: theirs {} ({}), ours {} ({})",
            theirs.status,
            first(&theirs),
            ours.status,
            first(&ours)
        ));
    } else if matches!(theirs.status, 0 | 2 | 3) {
        found.extend(counters(&parse(&theirs), &parse(&ours), beyond));
    }
    if lab.read(name)? != image {
        found.push("write: check without repair changed the file".into());
    }
    found.extend(repair_differences(lab, name, image, beyond)?);
    Ok(found)
}

/// What the two sides tell differently about repairing an image, each its own copy. A second repair of ours finds
/// nothing to do.
fn repair_differences(
    lab: &mut Lab<'_>,
    name: &str,
    image: &[u8],
    beyond: u64,
) -> Result<Vec<String>, String> {
    let copies = [format!("theirs-{name}"), format!("ours-{name}")];
    for copy in &copies {
        lab.write(copy, image)?;
    }
    let args = |copy| ["check", "-r", "all", "-f", "qcow2", "--output=json", copy];
    let theirs = lab.img(Side::Theirs, &args(&copies[0]))?;
    if theirs.status == 124 {
        return Ok(Vec::new());
    }
    let ours = lab.img(Side::Ours, &args(&copies[1]))?;
    let mut found = Vec::new();
    if ours.status > 63 {
        found.push(format!("repair-crash: {}", ours.describe()));
    } else if theirs.status != ours.status {
        let last = |ran: &Ran| ran.err.lines().last().unwrap_or_default().to_owned();
        let (their_last, our_last) = (last(&theirs), last(&ours));
        found.push(format!(
            "repair-exit: theirs {} ({their_last}), ours {} ({our_last})",
            theirs.status, ours.status
        ));
    } else if matches!(theirs.status, 0 | 2 | 3) {
        let (theirs, ours) = (parse(&theirs), parse(&ours));
        found.extend(counters(&theirs, &ours, 0).into_iter().map(|what| format!("repair-{what}")));
        for key in ["corruptions-fixed", "leaks-fixed"] {
            let (theirs, ours) = (counter(&theirs, key), counter(&ours, key));
            // What we found beyond the end we repair as well.
            if theirs != ours && theirs != ours.saturating_sub(beyond) {
                found.push(format!("repair-{key}: theirs {theirs}, ours {ours}"));
            }
        }
    }
    let again = lab.img(Side::Ours, &args(&copies[1]))?;
    let report = parse(&again);
    if counter(&report, "corruptions-fixed") + counter(&report, "leaks-fixed") > 0 {
        found.push(format!("repair-again: a second repair repairs once more: {}", again.err));
    }
    Ok(found)
}

/// How many leaked clusters beyond the end of a file of so many clusters are named.
fn leaks_beyond(ran: &Ran, clusters: u64) -> u64 {
    let named = ran.err.lines().filter_map(|line| line.strip_prefix("Leaked cluster "));
    let numbers = named.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    numbers.filter(|number| *number >= clusters).count() as u64
}

fn parse(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_default()
}

/// A counter; those that are zero are left out of the JSON.
fn counter(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or(0)
}

/// The counters of `check`'s JSON that differ.
fn counters(theirs: &Value, ours: &Value, leaks_beyond: u64) -> Vec<String> {
    const KEYS: [&str; 8] = [
        "corruptions",
        "leaks",
        "check-errors",
        "image-end-offset",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
    ];
    KEYS.iter()
        .filter(|key| !(leaks_beyond > 0 && **key == "image-end-offset"))
        .filter_map(|key| {
            let beyond = if *key == "leaks" { leaks_beyond } else { 0 };
            let (theirs, ours) = (counter(theirs, key), counter(ours, key).saturating_sub(beyond));
            (theirs != ours).then(|| format!("{key}: theirs {theirs}, ours {ours}"))
        })
        .collect()
}

/// Whether the list has the difference.
fn is_reviewed(field: &str, how: &str, difference: &str) -> bool {
    let what = difference.split(':').next().unwrap_or_default();
    REVIEWED.lines().filter_map(|line| line.split('#').next()).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let matches = |pattern: &str, word: &str| match pattern.strip_suffix('*') {
            Some(head) => word.starts_with(head),
            None => pattern == word,
        };
        match words[..] {
            [f, h, w] => matches(f, field) && matches(h, how) && matches(w, what),
            _ => false,
        }
    })
}
