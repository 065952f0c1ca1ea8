//! Snapshots and bitmaps: their tables, and everything that changes them.

use cowbell_block::{Access, Buf, NewSnapshot, Node, Request, SnapshotChange, SnapshotName};
use cowbell_qcow2::{OpenOptions, Qcow2, Recording};

use super::judge::Soundness;
use super::{drive, opened, wait};
use crate::choices::Choices;
use crate::file::CountingFile;

/// Most snapshots or bitmaps that are looked at one by one.
const LOOKED_AT_MAX: usize = 8;
/// Bytes that are read of a snapshot.
const READ_BYTES: u64 = 16 << 10;
/// Runs that are read of a bitmap.
const RUNS_MAX: u32 = 64;

/// Snapshots are listed and read, made, applied, renamed and deleted; a sound image stays sound.
pub fn snapshots(file: &CountingFile, choices: &mut Choices<'_>) -> Result<(), String> {
    let sound = Soundness::of(file);
    let Some(image) = opened(file, Access::ReadWrite, OpenOptions::default())? else { return Ok(()) };
    for _ in 0..1 + choices.below(6) {
        let listed = wait("info", image.info())?.map(|info| info.snapshots).unwrap_or_default();
        let names: Vec<String> = listed.iter().take(LOOKED_AT_MAX).map(|known| known.id.clone()).collect();
        for name in &names {
            read_snapshot(&image, name)?;
        }
        let known = |choices: &mut Choices<'_>| {
            let id = names.get(choices.below(names.len() as u64) as usize);
            SnapshotName::IdOrName(id.map_or("none of these", String::as_str).to_owned())
        };
        let change = match choices.below(5) {
            0 | 1 => SnapshotChange::Create(NewSnapshot {
                name: "x".repeat(choices.below(300) as usize),
                icount: choices.percent(50).then_some(1),
                ..NewSnapshot::default()
            }),
            2 => SnapshotChange::Apply(known(choices)),
            3 => SnapshotChange::Delete(known(choices)),
            _ => SnapshotChange::Rename(known(choices), "y".repeat(choices.below(70_000) as usize)),
        };
        let _ = wait("a change of snapshots", image.change_snapshots(change))?;
        overwrite(&image, choices);
    }
    let _ = wait("close", image.close())?;
    sound.must_last(file)
}

/// What was frozen is met by a write.
fn overwrite(image: &Qcow2, choices: &mut Choices<'_>) {
    let offset = choices.below(image.len().min(64 << 10)) / 512 * 512;
    if offset + 512 <= image.len() {
        // It may fail on a damaged image, and must not do harm.
        let _ = drive(image.submit(Request::write(offset, Buf::copy_of(&[7; 512]))));
    }
}

fn read_snapshot(image: &Qcow2, id: &str) -> Result<(), String> {
    let Ok(view) = wait("a snapshot", image.at_snapshot(SnapshotName::Id(id.to_owned())))? else {
        return Ok(());
    };
    let len = view.len().min(READ_BYTES);
    let _ = drive(view.submit(Request::status(0, len)));
    let _ = drive(view.submit(Request::read(0, Buf::zeroed(len as usize))));
    let _ = wait("close", view.close())?;
    Ok(())
}

/// Bitmaps are listed and read, added, removed, cleared, merged, and switched on and off; a sound image stays sound.
pub fn bitmaps(file: &CountingFile, choices: &mut Choices<'_>) -> Result<(), String> {
    let sound = Soundness::of(file);
    let Some(image) = opened(file, Access::ReadWrite, OpenOptions::default())? else { return Ok(()) };
    for _ in 0..1 + choices.below(6) {
        let Ok(listed) = wait("bitmaps", image.bitmaps())? else { break };
        let names: Vec<String> = listed.into_iter().take(LOOKED_AT_MAX).map(|bitmap| bitmap.name).collect();
        for name in &names {
            read_bitmap(&image, name)?;
        }
        let fresh = || "fresh".to_owned();
        let known = names.get(choices.below(names.len() as u64) as usize).cloned().unwrap_or_else(fresh);
        change_bitmaps(&image, &known, choices)?;
        overwrite(&image, choices);
    }
    let _ = wait("close", image.close())?;
    sound.must_last(file)
}

/// One change. It may be refused: what matters is what it leaves.
fn change_bitmaps(image: &Qcow2, name: &str, choices: &mut Choices<'_>) -> Result<(), String> {
    let changed = match choices.below(7) {
        0 => {
            let name = "n".repeat(1 + choices.below(1100) as usize);
            wait("adding", image.add_bitmap(&name, 1 << (7 + choices.below(30))))?
        }
        1 => wait("removing", image.remove_bitmap(name))?,
        2 => wait("clearing", image.clear_bitmap(name))?,
        3 => wait("switching on", image.set_recording(name, Recording::On))?,
        4 => wait("switching off", image.set_recording(name, Recording::Off))?,
        5 => match wait("reading", image.read_bitmap(name))? {
            Ok(mut source) => wait("merging", image.merge_bitmap("fresh", &mut source))?,
            Err(error) => Err(error),
        },
        _ => wait("adding", image.add_bitmap("fresh", 1 << 16))?,
    };
    drop(changed);
    Ok(())
}

/// Runs come in order, and lie on the disk.
fn read_bitmap(image: &Qcow2, name: &str) -> Result<(), String> {
    let Ok(mut reader) = wait("a bitmap", image.read_bitmap(name))? else { return Ok(()) };
    let mut at = 0;
    for _ in 0..RUNS_MAX {
        match wait("a run", reader.next_dirty(at))? {
            Ok(Some(run)) if run.start < at || run.end <= run.start || run.end > reader.disk_size() => {
                return Err(format!("a run out of place [{run:?} from {at}]"));
            }
            Ok(Some(run)) => at = run.end,
            Ok(None) | Err(_) => break,
        }
    }
    Ok(())
}
