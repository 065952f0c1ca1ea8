//! The scripts that the cases run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::fixtures::{CLUSTER, FULL_BYTES, MIXED_BYTES, Numbers, WIDE_BYTES};

/// Requests of one script.
const REQUESTS: u64 = 20_000;
/// Requests of a script that allocates a cluster each.
const ALLOCATIONS: u64 = 4_000;
/// Requests of a long script, each of them little work.
const LONG: u64 = 100_000;
/// Tables of the fragmented image.
const TABLES: u64 = 1_500;

/// Writes all scripts.
pub fn write_all(directory: &Path) -> Result<()> {
    let write = |name: &str, text: String| fs::write(directory.join(name), text).context(name.to_owned());
    let pages = FULL_BYTES / 4096;
    let (mut numbers, mut wide) = (Numbers(11), Numbers(17));
    let mut random = |grain: u64| numbers.next() % (MIXED_BYTES / grain) * grain;
    write("read-1.io", each(REQUESTS, |_| format!("read -q {} 4k", random(4096))))?;
    write("read-32.io", batches(REQUESTS, |_| format!("aio_read -q {} 4k", random(4096))))?;
    write("read-64k.io", batches(REQUESTS / 4, |_| format!("aio_read -q {} 64k", random(CLUSTER))))?;
    let odd = |index: u64| index * 7919 % pages * 4096;
    write("overwrite-32.io", batches(REQUESTS, |i| format!("aio_write -q -P {} {} 4k", i % 255, odd(i))))?;
    write("allocate-sequential.io", each(REQUESTS, |i| format!("write -q -P {} {} 4k", i % 255, i * 4096)))?;
    write("allocate-1.io", each(ALLOCATIONS, |i| format!("write -q -P {} {} 4k", i % 255, i * CLUSTER)))?;
    let aio = |i: u64, len: &str| format!("aio_write -q -P {} {} {len}", i % 255, i * CLUSTER);
    write("allocate-32.io", batches(ALLOCATIONS, |i| aio(i, "4k")))?;
    write("allocate-64k.io", batches(ALLOCATIONS, |i| aio(i, "64k")))?;
    write(
        "read-wide.io",
        each(REQUESTS, |_| format!("read -q {} 4k", wide.next() % (WIDE_BYTES / 4096) * 4096)),
    )?;
    write("allocate-flush.io", groups(ALLOCATIONS, 8, "aio_flush\nflush\n", |i| aio(i, "4k")))?;
    write("long.io", each(LONG, |i| format!("{} -q {} 512", ["read", "write"][i as usize % 2], i * 512)))?;
    // One cluster for each table of 512 MiB, in an order that is not theirs in the file.
    let table = |i: u64| i * 1_009 % TABLES;
    write("fragment.io", each(TABLES, |i| format!("write -q {} 64k", table(i) << 29)))
}

/// A line for each number.
pub fn each(count: u64, mut line: impl FnMut(u64) -> String) -> String {
    let mut text = String::new();
    for index in 0..count {
        let _ = writeln!(text, "{}", line(index));
    }
    text
}

/// As [`each`], waiting after each 32.
fn batches(count: u64, line: impl FnMut(u64) -> String) -> String {
    groups(count, 32, "aio_flush\n", line) + "aio_flush\n"
}

/// As [`each`], with `after` after each `size` lines.
fn groups(count: u64, size: u64, after: &str, mut line: impl FnMut(u64) -> String) -> String {
    let mut text = String::new();
    for index in 0..count {
        let _ = writeln!(text, "{}", line(index));
        if index % size == size - 1 {
            text.push_str(after);
        }
    }
    text
}
