//! Random requests, side by side, against a model; and every cut of what they wrote.

mod support;

use std::sync::Arc;

use cowbell_block::{Access, BoxFuture, Buf, Completion, ExtentFlags, Flags, MemNode, Node, Request};
use cowbell_vpc::CreateOptions;
use support::{Chance, Change, Film, image, now, open, parent_of, race, read, with_blocks};

const LEN: u64 = 40 * 512;
const BLOCK: u32 = 4096;

/// An image of small blocks, and its parent with some content if it is a differencing one.
fn image_of(chance: &Chance, differencing: bool) -> (MemNode, Option<Arc<dyn Node>>, Vec<u8>) {
    let exact = CreateOptions { size: LEN, exact: true, ..CreateOptions::default() };
    let base = with_blocks(&image(&exact), BLOCK);
    let mut model = vec![0; LEN as usize];
    if !differencing {
        return (base, None, model);
    }
    let parent = open(Arc::new(base), None, Access::ReadWrite).expect("opens");
    for _ in 0..6 {
        let (at, byte) = (chance.below(38) * 512, 200 + chance.below(50) as u8);
        model[at as usize..at as usize + 1024].fill(byte);
        now(parent.submit(Request::write(at, Buf::copy_of(&[byte; 1024]))).finish()).result.expect("written");
    }
    let child =
        image(&CreateOptions { parent: Some(parent_of(&parent, "base.vpc")), ..CreateOptions::default() });
    (with_blocks(&child, BLOCK), Some(parent), model)
}

/// What a sector may hold after a cut: what was flushed last, and all that was written since.
type Possible = Vec<Vec<u8>>;

struct Run {
    film: Arc<Film>,
    parent: Option<Arc<dyn Node>>,
    /// For each number of changes from which on it holds, what each sector may hold.
    after: Vec<(usize, Vec<Possible>)>,
}

fn scramble(seed: u64, differencing: bool) -> Run {
    let chance = Chance::new(seed);
    let (file, parent, mut model) = image_of(&chance, differencing);
    let film = Film::new(file.clone(), chance.clone());
    let disk = open(film.clone(), parent.clone(), Access::ReadWrite).expect("opens");
    let mut possible: Vec<Possible> = model.chunks(512).map(|sector| vec![sector.to_vec()]).collect();
    let mut after = Vec::new();
    for round in 0..8u64 {
        let mut futures: Vec<BoxFuture<Completion>> = Vec::new();
        let mut at = chance.below(4) * 512;
        let patience = if chance.below(3) == 0 { 60 } else { 0 };
        let mut expected = Vec::new();
        while at < LEN - 512 && futures.len() < 6 {
            let len = ((1 + chance.below(12)) * 512).min(LEN - at);
            let byte = 1 + (round * 6 + futures.len() as u64) as u8;
            let flags = if chance.below(6) == 0 { Flags::FUA } else { Flags::empty() };
            let (request, value) = match chance.below(4) {
                0 => (Request::read(at, Buf::zeroed(len as usize)), None),
                1 => (Request::write_zeroes(at, len).with_flags(flags), Some(0)),
                _ => (
                    Request::write(at, Buf::copy_of(&vec![byte; len as usize])).with_flags(flags),
                    Some(byte),
                ),
            };
            futures.push(Box::pin(disk.submit(request).finish()));
            expected.push((at as usize, len as usize, value));
            at += len + chance.below(4) * 512;
        }
        for (at, len, value) in &expected {
            if let Some(value) = value {
                let sectors = &mut possible[at / 512..(at + len) / 512];
                sectors.iter_mut().for_each(|sector| sector.push(vec![*value; 512]));
            }
        }
        let from = film.changes.lock().expect("nobody panicked").len();
        after.push((from, possible.clone()));
        let done = race(&chance, futures, patience);
        for ((at, len, value), completion) in expected.into_iter().zip(done) {
            match (completion, value) {
                (Some(completion), None) => {
                    let got = completion.into_bufs().expect("read").to_contiguous();
                    assert!(got[..] == model[at..at + len], "seed {seed}: read at {at}");
                }
                (Some(completion), Some(value)) => {
                    completion.result.expect("written");
                    model[at..at + len].fill(value);
                }
                // Given up: it may have begun, and then goes on.
                (None, Some(_)) => {
                    // Whoever waits at the disk drives it; some time later it is done.
                    for _ in 0..30 {
                        now(disk.submit(Request::flush()).finish()).result.expect("flushed");
                    }
                    model[at..at + len].copy_from_slice(&read(&disk, at as u64, len));
                }
                (None, None) => {}
            }
        }
        if chance.below(2) == 0 {
            now(disk.submit(Request::flush()).finish()).result.expect("flushed");
            possible = model.chunks(512).map(|sector| vec![sector.to_vec()]).collect();
            let from = film.changes.lock().expect("nobody panicked").len();
            after.push((from, possible.clone()));
        }
        assert!(read(&disk, 0, LEN as usize) == model, "seed {seed} round {round}");
        check_status(&disk, &model, differencing);
    }
    now(disk.close()).expect("closed");
    let again = open(Arc::new(file), parent.clone(), Access::ReadWrite).expect("opens again");
    assert!(read(&again, 0, LEN as usize) == model, "seed {seed}: reopened");
    Run { film, parent, after }
}

/// What is said to read as zeroes does, and what is said to be in the file is there.
fn check_status(disk: &Arc<dyn Node>, model: &[u8], differencing: bool) {
    let mut at = 0;
    while at < LEN {
        let extent = now(disk.submit(Request::status(at, LEN - at)).finish()).into_extent().expect("status");
        let range = at as usize..(at + extent.len) as usize;
        if extent.flags.contains(ExtentFlags::ZERO) {
            assert!(model[range.clone()].iter().all(|byte| *byte == 0) && !differencing);
        }
        if let Some(map) = extent.map {
            let there = read(&map.node, map.offset, extent.len as usize);
            assert!(there == model[range], "at {at}");
        }
        at += extent.len;
    }
}

/// Leaves out a part of what was not durable at every cut, and looks at what is left.
fn cut(seed: u64, run: &Run) {
    let chance = Chance::new(seed + 1);
    let changes = run.film.changes.lock().expect("nobody panicked").clone();
    let (fresh, _, _) = image_of(&Chance::new(seed), run.parent.is_some());
    for (index, (from, possible)) in run.after.iter().enumerate() {
        let to = run.after.get(index + 1).map_or(changes.len(), |next| next.0);
        for end in *from..=to {
            if chance.below(4) != 0 {
                continue;
            }
            let durable =
                changes[..end].iter().rposition(|change| matches!(change, Change::Flush)).unwrap_or(0);
            let file = MemNode::with_content(&fresh.content());
            for (at, change) in changes[..end].iter().enumerate() {
                if at < durable || chance.below(2) == 0 {
                    change.apply(&file);
                }
            }
            let disk = open(Arc::new(file), run.parent.clone(), Access::ReadWrite);
            let disk = disk.unwrap_or_else(|e| panic!("seed {seed} cut at {end}: {e}"));
            for (sector, values) in read(&disk, 0, LEN as usize).chunks(512).zip(possible) {
                assert!(
                    values.iter().any(|value| value == sector) || mixed(sector, values),
                    "seed {seed} cut at {end}: a sector of {}",
                    sector[0]
                );
            }
        }
    }
}

/// A dynamic image's new block reads as zeroes until its data is there.
fn mixed(sector: &[u8], values: &[Vec<u8>]) -> bool {
    values.len() > 1 && sector.iter().all(|byte| *byte == 0)
}

#[test]
fn dynamic_images_do_as_the_model_and_survive_cuts() {
    for seed in 0..150 {
        cut(seed, &scramble(seed, false));
    }
}

#[test]
fn differencing_images_do_as_the_model_and_survive_cuts() {
    for seed in 0..150 {
        cut(seed, &scramble(seed, true));
    }
}
