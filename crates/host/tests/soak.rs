//! Many requests on every lane, from several threads and tasks at once, with timers in between: nothing may be
//! lost, mixed up or waited for in vain.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cowbell_block::{Buf, CacheMode, Child, Flags, Request};
use cowbell_host::{FileNode, FileOptions, Lane, Locking, block_on, sleep, spawn_local};

const THREADS: u64 = 3;
const TASKS: u64 = 12;
const ROUNDS: u64 = 60;
/// Bytes that one task has for itself.
const SPAN: u64 = 64 << 10;

fn open(path: &Path) -> Vec<Arc<FileNode>> {
    let lanes = [Lane::Auto, Lane::Ring, Lane::Pool];
    let caches = [CacheMode::WRITEBACK, CacheMode::NONE];
    let mut nodes = Vec::new();
    for (lane, cache) in lanes.into_iter().flat_map(|lane| caches.map(|cache| (lane, cache))) {
        let options = FileOptions { lane, cache, locking: Locking::Off, ..FileOptions::read_write() };
        match FileNode::open(path, &options) {
            Ok(node) => nodes.push(node),
            Err(e) => eprintln!("skipped {cache:?}: {e}"),
        }
    }
    nodes
}

/// A small generator: what is done only has to be varied and repeatable.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

async fn work(children: Vec<Child>, id: u64) {
    let (base, mut state) = (id * SPAN, id + 1);
    let mut expect = vec![0u8; SPAN as usize];
    for round in 0..ROUNDS {
        let child = &children[random(&mut state) as usize % children.len()];
        let at = random(&mut state) % (SPAN - 1);
        let len = (random(&mut state) % 9000 + 1).min(SPAN - at);
        let range = at as usize..(at + len) as usize;
        match random(&mut state) % 8 {
            0..3 => {
                let byte = random(&mut state) as u8;
                let flags = if round % 16 == 0 { Flags::FUA } else { Flags::empty() };
                let write = Request::write(base + at, Buf::copy_of(&vec![byte; len as usize]));
                child.submit(write.with_flags(flags)).finish().await.result.expect("written");
                expect[range].fill(byte);
            }
            3 => {
                let zeroes = Request::write_zeroes(base + at, len).with_flags(Flags::MAY_UNMAP);
                child.submit(zeroes).finish().await.result.expect("zeroed");
                expect[range].fill(0);
            }
            4 => sleep(Duration::from_micros(random(&mut state) % 500)).await,
            5 if round % 8 == 0 => child.flush().await.expect("flushed"),
            // A request that nobody waits for.
            6 => drop(child.submit(Request::read(base + at, Buf::zeroed(len as usize)))),
            _ => {
                let got = child.read(base + at, len as usize).await.expect("read");
                assert!(got[..] == expect[range], "task {id}, round {round}: {at}+{len}");
            }
        }
    }
}

#[test]
fn nothing_is_lost_between_lanes_tasks_and_threads() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, vec![0; (THREADS * TASKS * SPAN) as usize]).expect("written");
    // Spans are whole blocks, so that read-modify-write cycles of different tasks never meet.
    let nodes = open(&path);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let nodes = nodes.clone();
            scope.spawn(move || {
                block_on(async move {
                    let tasks: Vec<_> = (0..TASKS)
                        .map(|task| {
                            let children = nodes.iter().cloned().map(|node| Child::new(node)).collect();
                            spawn_local(work(children, thread * TASKS + task))
                        })
                        .collect();
                    for task in tasks {
                        task.await;
                    }
                });
            });
        }
    });
}
