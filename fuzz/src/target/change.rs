//! Writing.

use std::task::{Context, Waker};

use cowbell_block::{Access, Buf, Flags, MemNode, Node, Op, Preallocation, Request};
use cowbell_qcow2::OpenOptions;

use super::judge::Soundness;
use super::{POLLS_MAX, drive, opened, wait};
use crate::choices::Choices;
use crate::file::CountingFile;

/// Arbitrary requests on a hostile image: what says how to find everything else stays as it is.
pub fn write(file: &CountingFile, choices: &mut Choices<'_>) -> Result<(), String> {
    let sound = Soundness::of(file);
    let before = file.memory().clone();
    let header = head(&before);
    let Some(image) = opened(file, Access::ReadWrite, OpenOptions::default())? else { return Ok(()) };
    for _ in 0..4 + choices.below(12) {
        let batch: Vec<Op> =
            (0..1 + choices.below(4)).map(|_| image.submit(request(&*image, choices))).collect();
        drive_all(batch)?;
    }
    let _ = wait("flush", async { drive(image.submit(Request::flush())) })?;
    let _ = wait("close", image.close())?;
    let after = head(&before);
    // Magic and version, backing name, cluster size; encryption; snapshots. The rest may change with growth, and the
    // length of a name that is nowhere means nothing.
    let named = header.get(8..16).is_some_and(|offset| offset != [0; 8]);
    let backing = if named { 8..20 } else { 8..16 };
    let kept = [
        ("header", 0..8),
        ("backing name", backing),
        ("cluster size", 20..24),
        ("crypt method", 32..36),
        ("snapshots", 60..72),
    ];
    for (name, range) in kept {
        if after.get(range.clone()) != header.get(range) {
            return Err(format!("writing changed the {name}"));
        }
    }
    sound.must_last(file)
}

/// The first bytes of the file.
fn head(memory: &MemNode) -> Vec<u8> {
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
fn request(image: &dyn Node, choices: &mut Choices<'_>) -> Request {
    let size = image.len();
    let offset = match choices.below(10) {
        0 => choices.below(size.saturating_add(1 << 16)),
        1 => size.saturating_sub(choices.below(1 << 16)),
        _ => choices.below(size.min(256 << 10)),
    };
    let offset = if choices.percent(70) { offset / 512 * 512 } else { offset };
    let len = match choices.below(4) {
        0 => 512,
        1 => 1 + choices.below(64 << 10),
        _ => (1 + choices.below(16)) * 512,
    };
    let len = if choices.percent(95) { len.min(size.saturating_sub(offset)) } else { len };
    match choices.below(20) {
        0..9 => {
            let data = vec![choices.below(256) as u8; len as usize];
            let flags = if choices.percent(10) { Flags::FUA } else { Flags::default() };
            Request::write(offset, Buf::copy_of(&data)).with_flags(flags)
        }
        9..11 => Request::write_zeroes(offset, len),
        11..13 => Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP),
        13..16 => Request::discard(offset, len),
        16..18 => Request::read(offset, Buf::zeroed(len as usize)),
        18 => Request::flush(),
        _ => Request::truncate(size.saturating_add(choices.below(1 << 20) / 512 * 512), Preallocation::Off),
    }
}
