//! Random 4 KiB reads on each lane and at several depths: wall and processor time per request, and what the
//! first request of each lane costs a fresh process.
//!
//! `cargo run --release -p cowbell-host --example lanes`

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowbell_block::{Buf, CacheMode, Node, Request};
use cowbell_host::{FileNode, FileOptions, Lane, block_on, ring_is_offered, spawn_local};

const FILE_BYTES: u64 = 64 << 20;
const READS: u64 = 20_000;

fn main() {
    let start = Instant::now();
    block_on(async {});
    println!("first block_on                {:8.1} us", micros(start.elapsed()));
    let start = Instant::now();
    let offered = ring_is_offered();
    println!("probing io_uring ({offered:5})      {:8.1} us", micros(start.elapsed()));
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, vec![1; FILE_BYTES as usize]).expect("written");
    std::fs::File::open(&path).and_then(|f| f.sync_all()).expect("synced");
    for (name, cache) in [("cached", CacheMode::WRITEBACK), ("direct", CacheMode::NONE)] {
        for lane in [Lane::Auto, Lane::Ring, Lane::Pool] {
            let start = Instant::now();
            let options = FileOptions { cache, lane, ..FileOptions::read_only() };
            let node = FileNode::open(&path, &options).expect("opened");
            block_on(read(&node, 0));
            let first = micros(start.elapsed());
            for depth in [1, 32] {
                let (wall, cpu) = run(&node, depth);
                println!(
                    "{name} {:4} depth {depth:2}: {wall:6.2} us wall {cpu:6.2} us cpu   (open and first read {first:5.0} us)",
                    format!("{lane:?}")
                );
            }
        }
    }
}

async fn read(node: &FileNode, at: u64) {
    let done = node.submit(Request::read(at, Buf::scratch(4096))).finish().await;
    done.into_bufs().expect("read").recycle();
}

fn run(node: &Arc<FileNode>, depth: u64) -> (f64, f64) {
    let (start, cpu) = (Instant::now(), cpu_time());
    block_on(async {
        let tasks: Vec<_> = (0..depth)
            .map(|worker| {
                let node = node.clone();
                spawn_local(async move {
                    for i in 0..READS / depth {
                        let at =
                            (i * depth + worker).wrapping_mul(0x9e37_79b9_7f4a_7c15) % (FILE_BYTES / 4096);
                        read(&node, at * 4096).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    });
    let per = READS as f64;
    (micros(start.elapsed()) / per, micros(cpu_time() - cpu) / per)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Processor time of the process.
fn cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure and keeps nothing.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(done, 0, "Linux has this clock");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
