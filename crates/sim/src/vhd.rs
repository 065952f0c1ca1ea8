//! Another subject: VHD images (`vpc`) that grow, dynamic and differencing, looked at by a reader of their own.
//!
//! The format has no refcounts and no check, so what is promised is about the guest's data: each sector is its last flushed
//! value or one written since (O1, O2), whatever of the file's writes a cut loses. Of the metadata (O3): a footer is always
//! found, and blocks lie inside the file, each in a place of its own behind the tables.

mod image;

use std::sync::Arc;

use cowbell_block::node::{Access, Node};
use cowbell_block::{BoxFuture, Child, Result};
use cowbell_vpc::node::Metadata;
use cowbell_vpc::{OpenOptions, SizeRule, Vpc};

pub(crate) use image::whole_len;

use crate::config::{Backing, Config, Format, Prestate};
use crate::disk::{Atom, Discards, HostConfig};
use crate::exec::Granularity;
use crate::image::Built;
use crate::judge::Failure;
use crate::pool::{Pool, SECTOR, ZERO};
use crate::rng::{Concern, Rng};
use crate::scenario::{GuestOp, Scenario, Schedule};
use crate::subject::{Files, ImageBytes, Inspection, Source, Subject};
use crate::workload;

/// A block table entry of a block that is not there.
const NOT_THERE: u32 = u32::MAX;

/// The driver of `cowbell-vpc`.
#[derive(Default)]
pub struct Vhd;

impl Subject for Vhd {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        image::build(config, pool)
    }

    fn open(&self, files: Files, _: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let metadata = Metadata::read(&Child::new(files.image.clone()), SizeRule::Creator).await?;
            let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() };
            Ok(Arc::new(Vpc::open(files.image, metadata, files.backing, options).await?) as Arc<dyn Node>)
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        let mut inspection = Inspection::default();
        match sources(image, config) {
            Ok(guest) => inspection.guest = guest,
            Err(what) => inspection.corrupt = Some(Failure::new("O3", what)),
        }
        inspection
    }
}

/// Where each sector is, by the copy of the footer at the beginning, the header, and the tables that they lead to.
fn sources(image: &ImageBytes<'_>, config: &Config) -> std::result::Result<Vec<Source>, String> {
    let number = |at: u64, len: usize| {
        let mut out = [0; 8];
        image.read(at, &mut out[8 - len..]);
        u64::from_be_bytes(out)
    };
    let mut footer = [0; SECTOR];
    image.read(0, &mut footer);
    if !image::is_footer(&footer) {
        return Err("there is no footer at the beginning".to_owned());
    }
    let (len, header) = (number(48, 8) / SECTOR as u64, number(16, 8));
    let (table, block) = (number(header + 16, 8), number(header + 32, 4) / SECTOR as u64);
    if block != config.cluster_sectors() {
        return Err(format!("blocks have {block} sectors"));
    }
    let mut present = vec![0; image::bitmap_sectors(block) as usize * SECTOR];
    let mut places = Vec::new();
    let mut guest = Vec::with_capacity(len as usize);
    let elsewhere = if config.backing == Backing::None { Source::Fixed(ZERO) } else { Source::Behind };
    for index in 0..len.div_ceil(block) {
        let entry = number(table + index * 4, 4) as u32;
        present.fill(0);
        if entry != NOT_THERE {
            image.read(u64::from(entry) * SECTOR as u64, &mut present);
            places.push((u64::from(entry), index));
        }
        let data = entry.wrapping_add(image::bitmap_sectors(block) as u32);
        for within in 0..block.min(len - index * block) {
            let is_there = present[within as usize / 8] >> (7 - within % 8) & 1 == 1;
            guest.push(if is_there { Source::File(data + within as u32) } else { elsewhere });
        }
    }
    check_places(&mut places, config, image.bytes())?;
    Ok(guest)
}

/// Blocks lie behind the tables, on nothing else, and inside the file.
fn check_places(places: &mut [(u64, u64)], config: &Config, len: u64) -> std::result::Result<(), String> {
    places.sort_unstable();
    let mut free = image::tables_end(config);
    for (place, index) in places {
        if *place < free {
            return Err(format!("block {index} at sector {place} lies on something else"));
        }
        free = *place + image::block_sectors(config);
        if free * SECTOR as u64 > len {
            return Err(format!("block {index} ends at sector {free}, the file at byte {len}"));
        }
    }
    Ok(())
}

/// A world: blocks of any size, with and without a parent.
fn world(rng: &mut Rng) -> Config {
    let block_bits = *rng.pick(&[9, 10, 12, 12, 13, 16]);
    let block = 1u64 << (block_bits - 9);
    let mut config = Config {
        format: Format::Vhd,
        cluster_bits: block_bits,
        sectors: block * rng.between(2, 5) + rng.below(block),
        prestate: *rng.pick(&[Prestate::Fresh, Prestate::Half, Prestate::Mixed]),
        ..Config::default()
    };
    if rng.one_in(20) {
        // As the driver makes them.
        (config.prestate, config.cluster_bits, config.sectors) = (Prestate::Created, 21, 4096 + 40);
    }
    if rng.one_in(2) {
        config.backing = *rng.pick(&[Backing::Raw, Backing::Shorter, Backing::Longer]);
    }
    config.host = HostConfig {
        alignment: *rng.pick(&[1, 1, 512, 4096]),
        atom: if rng.one_in(2) { Atom::Sector } else { rng.pick(&Atom::ALL).0 },
        done_one_in: *rng.pick(&[0, 0, 2, 8]),
        discards: Discards::Zero,
        no_fast_zeroes: rng.one_in(4),
        dirty_holes: rng.one_in(4),
        growth_swallows: rng.one_in(4),
    };
    config
}

/// A random scenario: requests around the boundaries between blocks, several at a time.
pub fn scenario(seed: u64) -> Scenario {
    let config = world(&mut Rng::stream(seed, Concern::Config));
    let mut rng = Rng::stream(seed, Concern::Workload);
    let block = config.cluster_sectors();
    let (mut ops, discards) = (Vec::new(), rng.one_in(4));
    for _ in 0..rng.between(2, 12) {
        let boundary = block * rng.below(config.clusters());
        let from = (boundary + rng.below(8)).saturating_sub(4).min(config.sectors - 1);
        let at = from..(from + rng.between(1, 8.max(block.min(40)))).min(config.sectors);
        let op = match rng.below(10) {
            0..4 => GuestOp::Write { at, fua: rng.one_in(5) },
            4 => GuestOp::Zero { at, unmap: rng.one_in(2), fua: rng.one_in(5) },
            5 if discards => GuestOp::Discard { at },
            5 => GuestOp::Status { at },
            6 => GuestOp::Read { at },
            7 | 8 => GuestOp::Flush,
            _ => GuestOp::Reopen,
        };
        ops.push(match op {
            GuestOp::Write { .. } | GuestOp::Zero { .. } if rng.one_in(12) => {
                GuestOp::Abandon { polls: rng.below(8) as u8, op: Box::new(op) }
            }
            op => op,
        });
    }
    let lanes = *rng.pick(&[1, 2, 4]);
    let schedule = match rng.below(4) {
        0 => Schedule::Fifo,
        1 => Schedule::Stall(rng.below(30) as u32),
        2 => Schedule::Pct(rng.between(2, 4) as u32),
        _ => Schedule::Uniform,
    };
    let faults = workload::faults(&mut Rng::stream(seed, Concern::Faults));
    let ops = workload::never_opened_again(ops, &faults);
    Scenario { seed, config, lanes, ops, faults, granularity: Granularity::Full, schedule, cut: None }
}

/// Every shape of every operation, inside a block and over the boundary to the next one.
pub fn alphabet(config: &Config) -> Vec<GuestOp> {
    let block = config.cluster_sectors();
    let write = |at| GuestOp::Write { at, fua: false };
    let zero = |at| GuestOp::Zero { at, unmap: true, fua: false };
    vec![
        write(0..1),
        write(block - 1..block + 1),
        write(block..2 * block),
        GuestOp::Write { at: block..block + 1, fua: true },
        zero(0..1),
        zero(block - 1..block + 1),
        zero(block..2 * block),
        GuestOp::Read { at: 0..2 * block },
        GuestOp::Status { at: 0..2 * block },
        GuestOp::Flush,
        GuestOp::Reopen,
    ]
}

/// The worlds in which every I/O of every operation fails once.
pub fn faulted_configs() -> impl Iterator<Item = Config> {
    let backings = [Backing::None, Backing::Shorter];
    backings.into_iter().flat_map(|backing| {
        [Prestate::Fresh, Prestate::Mixed].map(|prestate| Config {
            format: Format::Vhd,
            cluster_bits: 12,
            sectors: 20,
            backing,
            prestate,
            ..Config::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::explore;
    use crate::lab::{Effort, Lab};

    const EFFORT: Effort = Effort { repair: false, ..Effort::QUICK };

    #[test]
    fn seeds_pass_every_oracle() {
        let mut lab = Lab::new(Rc::new(Vhd));
        for seed in 0..150 {
            let scenario = scenario(seed);
            if let Err(found) = lab.judge(&scenario, EFFORT) {
                panic!("{}\n{}", found.failure, scenario.to_text());
            }
        }
    }

    #[test]
    fn single_operations_pass_every_fault() {
        let mut lab = Lab::new(Rc::new(Vhd));
        for config in faulted_configs() {
            for scenario in explore::sequences(&config, 1).step_by(5) {
                if let Err(failed) = explore::faults_of(&mut lab, &scenario, EFFORT) {
                    panic!("{}\n{}", failed.1.failure, failed.0.to_text());
                }
            }
        }
        assert!(lab.figures.faults > 100);
    }

    /// What a table says of blocks that lie upon each other, or beyond the end, is found.
    #[test]
    fn misplaced_blocks_are_found() {
        let config = Config { cluster_bits: 12, sectors: 20, format: Format::Vhd, ..Config::default() };
        let (first, size) = (image::tables_end(&config), image::block_sectors(&config));
        let verdict = |places: &[u64], sectors: u64| {
            let mut places: Vec<_> = places.iter().copied().zip(0..).collect();
            check_places(&mut places, &config, sectors * 512).is_ok()
        };
        assert!(verdict(&[first + size, first], first + 2 * size));
        assert!(!verdict(&[first + size - 1, first], first + 2 * size));
        assert!(!verdict(&[first, first + size], first + 2 * size - 1));
        assert!(!verdict(&[first - 1], first + size));
    }
}
