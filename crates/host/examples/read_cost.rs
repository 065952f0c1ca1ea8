//! What a cached 4 KiB request costs above its bare system call.
//!
//! `cargo run --release -p cowbell-host --example read_cost [-- read|write|bare SECONDS]`: without arguments
//! all are measured in turns, and of each the fastest twentieth printed (a busy
//! machine only ever adds); with one, it runs for a profiler.

use std::io::{IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use cowbell_block::{Buf, Bufs, Child, Node, Op, Request};
use cowbell_host::{FileNode, FileOptions};
use rustix::io::ReadWriteFlags;

/// Small enough for the processor's cache, which would otherwise serve whoever comes second.
const FILE_BYTES: u64 = 256 << 10;
const BLOCK: usize = 4096;
/// Requests per measurement.
const BATCH: u32 = 2_000;
/// Measurements of each kind.
const ROUNDS: usize = 401;

type Run<'a> = (&'static str, Box<dyn FnMut() + 'a>);

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, vec![1; FILE_BYTES as usize]).expect("written");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("opened");
    let node = FileNode::open(&path, &FileOptions::read_write()).expect("opened");
    let child = Child::new(node.clone());
    let mut offsets = (1u64..).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (FILE_BYTES / 4096) * 4096);
    let mut next = move || offsets.next().expect("endless");
    let mut memory = Buf::zeroed(BLOCK);
    let mut memory2 = Buf::zeroed(BLOCK);
    let mut bufs: [Bufs; 4] = std::array::from_fn(|_| Buf::zeroed(BLOCK).into());
    let [a, b, c, d] = &mut bufs;
    let mut n = next.clone();
    let bare_read = move || {
        let mut piece = [IoSliceMut::new(&mut memory)];
        rustix::io::preadv2(&file, &mut piece, n(), ReadWriteFlags::NOWAIT).expect("cached");
    };
    let file2 = std::fs::File::options().read(true).write(true).open(&path).expect("opened");
    let mut n = next.clone();
    let bare_write = move || {
        memory2[0] = 1;
        let piece = [IoSlice::new(&memory2)];
        rustix::io::pwritev2(&file2, &piece, n(), ReadWriteFlags::empty()).expect("cached");
    };
    let mut n = next.clone();
    let read = || submit(a, |bufs| node.submit(Request::read(n(), bufs)));
    let mut n = next.clone();
    let write = || submit(b, |bufs| node.submit(Request::write(n(), bufs)));
    let mut n = next.clone();
    let child_read = || submit(c, |bufs| child.submit(Request::read(n(), bufs)));
    let child_write = || submit(d, |bufs| child.submit(Request::write(next(), bufs)));
    let mut runs: Vec<Run<'_>> = vec![
        ("bare preadv2", Box::new(bare_read)),
        ("read", Box::new(read)),
        ("read through an edge", Box::new(child_read)),
        ("bare pwritev2", Box::new(bare_write)),
        ("write", Box::new(write)),
        ("write through an edge", Box::new(child_write)),
    ];
    let mut args = std::env::args().skip(1);
    if let Some(name) = args.next() {
        let name = if name == "bare" { "bare preadv2".to_owned() } else { name };
        let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(3);
        let (_, run) = runs.iter_mut().find(|(known, _)| *known == name).expect("read, write or bare");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            (0..BATCH).for_each(|_| run());
        }
        return;
    }
    report(&mut runs);
}

fn submit(bufs: &mut Bufs, run: impl FnOnce(Bufs) -> Op) {
    let Op::Done(done) = run(std::mem::take(bufs)) else { panic!("the page cache has it") };
    *bufs = done.into_bufs().expect("it works");
}

fn report(runs: &mut [Run<'_>]) {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); runs.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..BATCH).for_each(|_| run());
            times.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
        }
    }
    let mut bare = 0.0;
    for ((name, _), times) in runs.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let low = times[ROUNDS / 20];
        if name.starts_with("bare") {
            bare = low;
        }
        println!("{name:24} {low:7.1} ns  above {:6.1} ns", low - bare);
    }
}
