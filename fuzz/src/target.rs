//! What is done to an image, and what must hold whatever the image is.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::{Access, Buf, Completion, ExtentFlags, Fix, Flags, Node, Op, Preallocation, Request};
use cowbell_checker::Verdict;
use cowbell_difftest::rng::Rng;
use cowbell_qcow2::{OpenOptions, Qcow2};

use crate::file::CountingFile;

/// One way of using an image. An error is a finding; its text up to ` [` is the same for all of its kind.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&CountingFile, u64) -> Result<(), String>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "open", run: open },
    Target { name: "read", run: read },
    Target { name: "check", run: check },
    Target { name: "write", run: write },
    Target { name: "repair", run: repair },
];

/// Polls after which a future counts as stuck: memory answers at once.
const POLLS_MAX: u32 = 1_000_000;
/// Extents that are asked for at most; a disk of many is looked at only in part.
const EXTENTS_MAX: u32 = 2_000;
/// Bytes that are read of each extent.
const READ_MAX: u64 = 64 << 10;
/// Bytes that are read at most in all.
const READ_TOTAL_MAX: u64 = 8 << 20;

/// The value of a future that has to wait for nobody else; `None` when it is stuck.
pub fn block_until<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..POLLS_MAX).find_map(|_| match future.as_mut().poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    })
}

/// The completion of a request.
pub fn drive(op: Op) -> Completion {
    match op {
        Op::Done(completion) => completion,
        Op::Wait(future) => block_until(future).expect("the request is stuck"),
    }
}

fn wait<T>(what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    block_until(future).ok_or_else(|| format!("{what} is stuck"))
}

/// The image, or nothing when it is refused, which is always allowed.
fn opened(file: &CountingFile, access: Access, options: OpenOptions) -> Result<Option<Arc<Qcow2>>, String> {
    let options = OpenOptions { access, ..options };
    Ok(wait("open", Qcow2::open(file.node(), None, options))?.ok())
}

fn must_be_untouched(file: &CountingFile) -> Result<(), String> {
    if file.is_mutated() { Err("a read-only image is written to".into()) } else { Ok(()) }
}

/// Opening and `info` change nothing.
fn open(file: &CountingFile, _seed: u64) -> Result<(), String> {
    if let Some(image) = opened(file, Access::ReadOnly, OpenOptions::default())? {
        let _ = wait("info", image.info())?;
        let _ = wait("close", image.close())?;
    }
    must_be_untouched(file)
}

/// Extents cover the disk, zeroes read as zeroes, and data reads as what lies where the map says.
fn read(file: &CountingFile, _seed: u64) -> Result<(), String> {
    let Some(image) = opened(file, Access::ReadOnly, OpenOptions::default())? else { return Ok(()) };
    let (mut at, mut total) = (0, 0);
    for _ in 0..EXTENTS_MAX {
        if at >= image.len() {
            break;
        }
        let Ok(extent) = drive(image.submit(Request::status(at, image.len() - at))).into_extent() else {
            // Damaged: it cannot be read here either. Look further on.
            let _ = drive(image.submit(Request::read(at, Buf::zeroed(512.min(image.len() - at) as usize))));
            at += 64 << 10;
            continue;
        };
        if extent.len == 0 || extent.len > image.len() - at {
            return Err(format!("an extent of wrong length [{} at {at}]", extent.len));
        }
        let len = extent.len.min(READ_MAX);
        if total < READ_TOTAL_MAX {
            total += len;
            read_extent(file, &*image, at, len, &extent)?;
        }
        at += extent.len;
    }
    let _ = wait("close", image.close())?;
    must_be_untouched(file)
}

fn read_extent(
    file: &CountingFile,
    image: &dyn Node,
    at: u64,
    len: u64,
    extent: &cowbell_block::Extent,
) -> Result<(), String> {
    let completion = drive(image.submit(Request::read(at, Buf::zeroed(len as usize))));
    let Ok(bufs) = completion.into_bufs() else { return Ok(()) };
    let got = bufs.to_contiguous();
    if extent.flags.contains(ExtentFlags::ZERO) && !bufs.is_zero() {
        return Err(format!("zeroes are mapped and data is read [{at:#x}]"));
    }
    let plain = extent.flags.contains(ExtentFlags::DATA) && !extent.flags.contains(ExtentFlags::COMPRESSED);
    if let (true, Some(map)) = (plain, &extent.map) {
        let there = drive(file.memory().submit(Request::read(map.offset, Buf::zeroed(len as usize))));
        if let Ok(there) = there.into_bufs()
            && there.to_contiguous()[..] != got[..]
        {
            return Err(format!("the map names another place than the data's [{at:#x}]"));
        }
    }
    Ok(())
}

/// A check changes nothing, and never calls clean what the independent checker calls corrupt.
fn check(file: &CountingFile, _seed: u64) -> Result<(), String> {
    let Some(image) = opened(file, Access::ReadOnly, OpenOptions::default())? else { return Ok(()) };
    let report = wait("check", image.check(Fix::None))?;
    let _ = wait("close", image.close())?;
    must_be_untouched(file)?;
    let Ok(report) = report else { return Ok(()) };
    if file.len() > 1 << 20 {
        return Ok(());
    }
    let content = file.memory().content();
    let Ok(other) = cowbell_checker::check(&content, cowbell_checker::Limits::default()) else {
        return Ok(());
    };
    let ours_clean = report.corruptions == 0 && report.check_errors == 0;
    match other.verdict() {
        Verdict::Corrupt if ours_clean => {
            let text = other.to_string();
            let counts = |line: &&str| {
                let tolerated = TOLERATED.iter().any(|(words, _)| line.contains(words));
                !line.starts_with("leaked") && !line.contains(" corruptions, ") && !tolerated
            };
            match text.lines().find(counts) {
                Some(line) => {
                    Err(format!("the independent checker finds more: {} [{text}]", without_numbers(line)))
                }
                None => Ok(()),
            }
        }
        // A flag that could be set and is not only costs speed: an error for the reference and for us alone.
        Verdict::Clean
            if report
                .findings
                .iter()
                .any(|line| line.starts_with("ERROR") && !line.contains("OFLAG_COPIED")) =>
        {
            Err(format!("the independent checker finds it clean [{:?}]", report.findings.first()))
        }
        _ => Ok(()),
    }
}

/// What the independent checker calls corrupt, and the reference and ours do not, with the reason.
const TOLERATED: [(&str, &str); 6] = [
    ("COPIED set without a cluster", "an entry without an offset is unallocated, whatever its flag"),
    ("lies beyond the end of the file", "a file that ends inside its last clusters reads as zeroes there"),
    ("that may not share", "the refcount covers all owners; the overlap checks stop the write"),
    ("is named twice", "the same for two guest clusters"),
    ("entries, the disk needs", "a snapshot's table that is short reads as zeroes behind its end"),
    ("bitmap", "bitmaps are kept, and looked into by a later version"),
];

/// The words of a finding, which are the same for all of its kind.
fn without_numbers(line: &str) -> String {
    let words = line.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Arbitrary requests on a hostile image: what says how to find everything else stays as it is.
fn write(file: &CountingFile, seed: u64) -> Result<(), String> {
    let before = file.memory().clone();
    let header = head(&before);
    let Some(image) = opened(file, Access::ReadWrite, OpenOptions::default())? else { return Ok(()) };
    let mut rng = Rng::new(seed ^ 0xf022);
    for _ in 0..4 + rng.below(12) {
        let batch: Vec<Op> =
            (0..1 + rng.below(4)).map(|_| image.submit(request(&*image, &mut rng))).collect();
        drive_all(batch)?;
    }
    let _ = wait("flush", async { drive(image.submit(Request::flush())) })?;
    let _ = wait("close", image.close())?;
    let after = head(&before);
    // Magic, version, backing name, cluster size; encryption; snapshots. The rest may change with growth.
    for (name, range) in [("header", 0..24), ("crypt method", 32..36), ("snapshots", 60..72)] {
        if after.get(range.clone()) != header.get(range) {
            return Err(format!("writing changed the {name}"));
        }
    }
    Ok(())
}

/// The first bytes of the file.
fn head(memory: &cowbell_block::MemNode) -> Vec<u8> {
    let len = memory.len().min(104) as usize;
    let completion = drive(memory.submit(Request::read(0, Buf::zeroed(len))));
    completion.into_bufs().map(|bufs| bufs.to_contiguous().to_vec()).unwrap_or_default()
}

/// Drives requests side by side.
fn drive_all(batch: Vec<Op>) -> Result<(), String> {
    let mut waiting: Vec<_> = batch
        .into_iter()
        .filter_map(|op| match op {
            Op::Done(_) => None,
            Op::Wait(future) => Some(future),
        })
        .collect();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        waiting.retain_mut(|future| future.as_mut().poll(&mut context).is_pending());
        if waiting.is_empty() {
            return Ok(());
        }
    }
    Err("requests are stuck".into())
}

/// Any request, also beyond the end, mostly within the first clusters.
fn request(image: &dyn Node, rng: &mut Rng) -> Request {
    let size = image.len();
    let offset = match rng.below(10) {
        0 => rng.below(size.saturating_add(1 << 16)),
        1 => size.saturating_sub(rng.below(1 << 16)),
        _ => rng.below(size.min(256 << 10)),
    };
    let offset = if rng.percent(70) { offset / 512 * 512 } else { offset };
    let len = match rng.below(4) {
        0 => 512,
        1 => 1 + rng.below(64 << 10),
        _ => (1 + rng.below(16)) * 512,
    };
    let len = if rng.percent(95) { len.min(size.saturating_sub(offset)) } else { len };
    match rng.below(20) {
        0..9 => {
            let data = vec![rng.below(256) as u8; len as usize];
            let flags = if rng.percent(10) { Flags::FUA } else { Flags::default() };
            Request::write(offset, Buf::copy_of(&data)).with_flags(flags)
        }
        9..11 => Request::write_zeroes(offset, len),
        11..13 => Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP),
        13..16 => Request::discard(offset, len),
        16..18 => Request::read(offset, Buf::zeroed(len as usize)),
        18 => Request::flush(),
        _ => Request::truncate(size.saturating_add(rng.below(1 << 20) / 512 * 512), Preallocation::Off),
    }
}

/// A second repair finds nothing left that the first could have repaired.
fn repair(file: &CountingFile, _seed: u64) -> Result<(), String> {
    let options = OpenOptions { skip_repair: true, ..OpenOptions::default() };
    let Some(image) = opened(file, Access::ReadWrite, options.clone())? else { return Ok(()) };
    let first = wait("repair", image.check(Fix::All))?;
    let _ = wait("close", image.close())?;
    if first.is_err() {
        return Ok(());
    }
    let Some(image) = opened(file, Access::ReadWrite, options)? else {
        return Err("a repaired image does not open".into());
    };
    let second = wait("second repair", image.check(Fix::All))?;
    let _ = wait("close", image.close())?;
    match second {
        Ok(report) if report.corruptions_fixed + report.leaks_fixed > 0 => Err(format!(
            "a second repair still repairs [{} corruptions, {} leaks; {:?}]",
            report.corruptions_fixed,
            report.leaks_fixed,
            report.findings.first()
        )),
        _ => Ok(()),
    }
}
