//! A freed cluster in somebody else's hands: one request is under way, its cluster is freed, the freeing becomes
//! durable, and the cluster is given to another guest cluster. Each I/O in turn is held up as long as anything
//! else can happen, so that whoever still knows the old place meets the new owner there.

use crate::bitmaps::BitmapOp;
use crate::config::{Backing, Config, Crypt, DataPlace, Prestate};
use crate::disk::{Atom, HostConfig};
use crate::exec::Granularity;
use crate::explore::Failed;
use crate::lab::{Effort, Lab};
use crate::scenario::{Amendment, GuestOp, KeyOp, Scenario, Schedule, SnapshotOp};
use crate::workload::encrypted;

/// All such stories, without an I/O to hold up yet.
pub fn stories() -> Vec<Scenario> {
    let mut out =
        vec![moved_table(), abandoned_write(), bitmap_beside_writes(), replaced_disk(), amended_disk()];
    out.extend([DataPlace::Inside, DataPlace::Outside].map(half_stored_blocks));
    // The other one takes long, and fails at each I/O elsewhere.
    out.extend(changed_keys().into_iter().take(1));
    let states = [Prestate::Half, Prestate::Full, Prestate::Mixed, Prestate::Snapshot, Prestate::Compressed];
    for prestate in states {
        for backing in [Backing::None, Backing::Raw] {
            let config = Config { prestate, backing, cluster_bits: 10, sectors: 40, ..Config::default() };
            // Clusters 4 and 5 are the old place, 7 (not allocated in half-full images) and 9 the new one.
            let begins = [
                GuestOp::Read { at: 8..10 },
                GuestOp::Read { at: 6..14 },
                GuestOp::Write { at: 8..9, fua: false },
                GuestOp::Write { at: 8..11, fua: false },
                GuestOp::Zero { at: 9..11, unmap: true, fua: false },
            ];
            let frees = [
                GuestOp::Discard { at: 8..12 },
                GuestOp::Zero { at: 8..12, unmap: true, fua: true },
                GuestOp::Write { at: 8..12, fua: false },
            ];
            for begin in &begins {
                for free in &frees {
                    let ops = vec![
                        begin.clone(),
                        free.clone(),
                        GuestOp::Flush,
                        GuestOp::Write { at: 14..16, fua: false },
                        GuestOp::Write { at: 19..20, fua: true },
                    ];
                    let seed = out.len() as u64;
                    let (config, granularity) = (config.clone(), Granularity::IoPoints);
                    out.push(Scenario { seed, config, lanes: 2, ops, granularity, ..Scenario::default() });
                }
            }
        }
    }
    out
}

/// The L1 table moves while a part of it is being read from its old place: whoever changes that part afterwards must not
/// do it there. The part lies in another slice than the end of the disk, which the growth itself looks at.
fn moved_table() -> Scenario {
    let config = Config { cluster_bits: 9, sectors: 64 * 64 + 64, l2_slice_bytes: 512, ..Config::default() };
    let ops = vec![
        GuestOp::Read { at: 0..1 },
        GuestOp::Resize { to: config.sectors + 200 },
        GuestOp::Wait,
        GuestOp::Write { at: 0..1, fua: true },
        GuestOp::Reopen,
    ];
    Scenario { config, lanes: 2, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// Nobody waits any more for a write in place; its cluster is freed and given away, and only then the write happens.
fn abandoned_write() -> Scenario {
    let config = Config { prestate: Prestate::Half, sectors: 40, ..Config::default() };
    let write = GuestOp::Write { at: 8..9, fua: false };
    let ops = vec![
        write.clone(),
        GuestOp::Wait,
        GuestOp::Abandon { polls: 1, op: Box::new(write) },
        GuestOp::Discard { at: 8..10 },
        GuestOp::Flush,
        GuestOp::Write { at: 14..16, fua: false },
        GuestOp::Write { at: 18..20, fua: true },
    ];
    Scenario { config, lanes: 1, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// The directory of bitmaps moves while the disk is being written to.
fn bitmap_beside_writes() -> Scenario {
    let config = Config { bitmaps: true, prestate: Prestate::Half, sectors: 40, ..Config::default() };
    let ops = vec![
        GuestOp::Write { at: 4..6, fua: false },
        GuestOp::Bitmap { change: BitmapOp::Add },
        GuestOp::Write { at: 6..9, fua: false },
        GuestOp::Flush,
        GuestOp::Bitmap { change: BitmapOp::Add },
    ];
    Scenario { config, lanes: 2, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// Blocks of 4096 bytes of which a half has storage: by a guest with smaller ones, whose subclusters these are.
fn half_stored_blocks(data: DataPlace) -> Scenario {
    let host = HostConfig { alignment: 4096, atom: Atom::Block, ..HostConfig::default() };
    let config = Config {
        cluster_bits: 16,
        sectors: 256,
        extended: true,
        prestate: Prestate::Mixed,
        data,
        host,
        ..Config::default()
    };
    let ops = vec![GuestOp::Write { at: 0..128, fua: false }, GuestOp::Write { at: 128..256, fua: false }];
    Scenario { config, lanes: 1, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// The image becomes another version while a cluster that it has just given up is being read.
fn amended_disk() -> Scenario {
    let config = Config {
        version: 2,
        cluster_bits: 12,
        sectors: 96,
        prestate: Prestate::Snapshot,
        ..Config::default()
    };
    let ops = vec![
        GuestOp::Read { at: 0..96 },
        GuestOp::Zero { at: 64..65, unmap: true, fua: false },
        GuestOp::Amend { change: Amendment::Version(3) },
    ];
    Scenario { config, lanes: 4, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// The disk becomes that of a snapshot while a cluster that only the old one has is being read; then others write.
fn replaced_disk() -> Scenario {
    let config = Config { prestate: Prestate::Snapshot, sectors: 40, ..Config::default() };
    let ops = vec![
        GuestOp::Write { at: 8..10, fua: true },
        GuestOp::Wait,
        GuestOp::Read { at: 8..10 },
        GuestOp::Snapshot { change: SnapshotOp::Apply(0) },
        GuestOp::Write { at: 14..16, fua: true },
        GuestOp::Write { at: 18..20, fua: true },
        GuestOp::Write { at: 22..24, fua: true },
    ];
    Scenario { config, lanes: 2, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
}

/// A passphrase takes the place of another one beside writes: one of them opens the image whenever the power is cut.
pub fn changed_keys() -> [Scenario; 2] {
    let key = |change: KeyOp| GuestOp::Key { change };
    let ops = vec![
        key(KeyOp::Add(1)),
        GuestOp::Write { at: 4..12, fua: false },
        GuestOp::Wait,
        key(KeyOp::Remove(0)),
        GuestOp::Write { at: 8..18, fua: true },
    ];
    let again = [GuestOp::Reopen, key(KeyOp::Add(2)), GuestOp::Wait, key(KeyOp::Remove(1)), GuestOp::Reopen];
    let longer: Vec<_> = ops.iter().cloned().chain(again).collect();
    let story = |ops, backing| {
        let config = Config { backing, ..encrypted(Crypt::Luks) };
        Scenario { config, lanes: 2, ops, granularity: Granularity::IoPoints, ..Scenario::default() }
    };
    [story(ops, Backing::None), story(longer, Backing::Raw)]
}

/// Runs a story with each of its I/Os held up in turn, and looks at every cut. Returns the number of runs.
///
/// # Errors
/// The first run that fails.
pub fn hold_up_each(lab: &mut Lab, story: &Scenario, effort: Effort) -> Result<u64, Box<Failed>> {
    let mut run = |scenario: Scenario| match lab.judge(&scenario, effort) {
        Ok(run) => Ok(run.history.ios.len() as u32),
        Err(found) => Err(Box::new((scenario, found))),
    };
    let ios = run(story.clone())?;
    for io in 0..ios {
        run(Scenario { schedule: Schedule::Stall(io), ..story.clone() })?;
    }
    Ok(u64::from(ios) + 1)
}
