//! Random batches of operations by one side or by both in turn, on one file.

use crate::config::{Config, IMAGE};
use crate::judge;
use crate::lab::{Lab, Side};
use crate::model::Model;
use crate::ops;
use crate::options::Kind;
use cowbell_difftest::rng::Rng;

/// Runs the sequence of a seed.
pub fn run(lab: &mut Lab<'_>, kind: Kind, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let config = Config::random(&mut rng);
    lab.note(&format!("# {kind}, seed {seed}: {config:?}"));
    let first = match kind {
        Kind::Ours => Side::Ours,
        Kind::Theirs => Side::Theirs,
        _ => rng.pick(&[Side::Ours, Side::Theirs]),
    };
    let mut model = config.make(lab, first, &mut rng)?;
    let mut snapshots: Vec<(String, Model)> = Vec::new();
    let batches = match kind {
        Kind::PingPong => 3 + rng.below(4),
        _ => 1 + u64::from(config.snapshots) + rng.below(2),
    };
    let mut side = first;
    for index in 0..batches {
        write(lab, &config, side, &mut model, &mut rng)?;
        let wanted = config.snapshots as usize;
        if snapshots.len() < wanted && (rng.percent(50) || batches - index <= wanted as u64) {
            let by = snapshot_side(kind, &mut rng);
            snapshots.push(take_snapshot(lab, by, index, &mut model)?);
        } else if !snapshots.is_empty() && rng.percent(40) {
            change_snapshot(lab, snapshot_side(kind, &mut rng), &mut snapshots, &mut model, &mut rng)?;
        }
        if kind == Kind::PingPong {
            check_between(lab, side)?;
            side = other(side);
        }
    }
    judge::judge(lab, &mut model)?;
    for (name, model) in &mut snapshots {
        judge::snapshot(lab, name, model)?;
    }
    Ok(())
}

fn other(side: Side) -> Side {
    match side {
        Side::Ours => Side::Theirs,
        Side::Theirs => Side::Ours,
    }
}

/// One batch. No command of it may fail, and each read must find what the model has.
fn write(
    lab: &mut Lab<'_>,
    config: &Config,
    side: Side,
    model: &mut Model,
    rng: &mut Rng,
) -> Result<(), String> {
    let commands = ops::batch(config, side, model, rng);
    let mut args = vec!["-f", "qcow2"];
    if rng.percent(25) {
        args.extend(["-t", rng.pick(&["writethrough", "unsafe", "none", "directsync"])]);
    }
    args.push(IMAGE);
    let ran = lab.io(side, &args, &commands)?;
    let who = side.name();
    let complaint = ran.out.lines().chain(ran.err.lines()).find(|line| {
        ["failed", "error", "panicked", "not found", "corrupt"].iter().any(|w| line.contains(w))
    });
    match complaint {
        Some(line) => Err(format!("{who} io: {line} (status {})", ran.status)),
        None => ran.ok(&format!("{who} io")).map(|_| ()),
    }
}

/// After one side wrote, the other finds the image clean.
fn check_between(lab: &mut Lab<'_>, wrote: Side) -> Result<(), String> {
    let args = ["check", "-f", "qcow2", IMAGE];
    let by = other(wrote);
    lab.img(by, &args)?.ok(&format!("check by {} after {} wrote", by.name(), wrote.name()))?;
    Ok(())
}

/// Who works on snapshots: both do, also where the other one writes.
fn snapshot_side(kind: Kind, rng: &mut Rng) -> Side {
    match kind {
        Kind::Ours if rng.percent(60) => Side::Ours,
        Kind::Theirs if rng.percent(60) => Side::Theirs,
        _ => rng.pick(&[Side::Ours, Side::Theirs]),
    }
}

/// Makes an internal snapshot, and notes what it must read as.
fn take_snapshot(
    lab: &mut Lab<'_>,
    by: Side,
    number: u64,
    model: &mut Model,
) -> Result<(String, Model), String> {
    let name = format!("s{number}");
    lab.img(by, &["snapshot", "-c", &name, IMAGE])?.ok("a snapshot")?;
    check_between(lab, by)?;
    let args = ["convert", "-f", "qcow2", "-O", "raw", IMAGE, "read.raw"];
    lab.img(Side::Theirs, &args)?.ok("their convert")?;
    model.settle(&lab.read("read.raw")?).map_err(|e| format!("theirs: {e}"))?;
    Ok((name, model.clone()))
}

/// Applies or deletes one of the snapshots.
fn change_snapshot(
    lab: &mut Lab<'_>,
    by: Side,
    snapshots: &mut Vec<(String, Model)>,
    model: &mut Model,
    rng: &mut Rng,
) -> Result<(), String> {
    let at = rng.below(snapshots.len() as u64) as usize;
    if rng.percent(50) {
        let (name, then) = &snapshots[at];
        lab.img(by, &["snapshot", "-a", name, IMAGE])?.ok("applying a snapshot")?;
        *model = then.clone();
    } else {
        let (name, _) = snapshots.remove(at);
        lab.img(by, &["snapshot", "-d", &name, IMAGE])?.ok("deleting a snapshot")?;
    }
    check_between(lab, by)
}
