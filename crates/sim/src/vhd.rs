//! Another subject: dynamic VHD images (`vpc`), looked at by a reader of their own.
//!
//! The format has no refcounts and no check, so what is promised is about the guest's data: each sector is its last flushed
//! value or one written since (O1, O2), whatever of the file's writes a cut loses, and a footer is always found.

use std::sync::Arc;

use cowbell_block::node::{Access, Node};
use cowbell_block::{BoxFuture, Child, Result};
use cowbell_vpc::node::Metadata;
use cowbell_vpc::{CreateOptions, OpenOptions, SizeRule, Vpc};

use crate::config::Config;
use crate::engine::edit;
use crate::exec::Granularity;
use crate::image::Built;
use crate::judge::Failure;
use crate::keys::Repeating;
use crate::pool::{Pool, SECTOR, ZERO};
use crate::rng::{Concern, Rng};
use crate::scenario::{GuestOp, Scenario, Schedule};
use crate::subject::{Files, ImageBytes, Inspection, Source, Subject};
use crate::timeline::Image;

/// Sectors of a block: the size that everybody uses.
const BLOCK: u64 = 4096;
/// A block table entry of a block that is not there.
const NOT_THERE: u32 = u32::MAX;

/// The driver of `cowbell-vpc`.
#[derive(Default)]
pub struct Vhd;

impl Subject for Vhd {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        let size = config.sectors * SECTOR as u64;
        let image = edit(&Image::default(), config, pool, |files| async move {
            let options = CreateOptions { size, exact: true, ..CreateOptions::default() };
            cowbell_vpc::create(&Child::new(files.image), &options, &Repeating::new(0)).await
        });
        Built { image, guest: vec![ZERO; config.sectors as usize], ..Built::default() }
    }

    fn open(&self, files: Files, _: &Config) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let metadata = Metadata::read(&Child::new(files.image.clone()), SizeRule::Creator).await?;
            let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::default() };
            Ok(Arc::new(Vpc::open(files.image, metadata, None, options).await?) as Arc<dyn Node>)
        })
    }

    fn inspect(&self, image: &ImageBytes<'_>, _: &Config) -> Inspection {
        let mut inspection = Inspection::default();
        match sources(image) {
            Ok(guest) => inspection.guest = guest,
            Err(what) => inspection.corrupt = Some(Failure::new("O3", what)),
        }
        inspection
    }
}

/// Where each sector is, by the copy of the footer at the beginning, the header, and the tables that they lead to.
fn sources(image: &ImageBytes<'_>) -> std::result::Result<Vec<Source>, String> {
    let bytes = |at: u64, len: usize| {
        let mut out = [0; 8];
        image.read(at, &mut out[8 - len..]);
        u64::from_be_bytes(out)
    };
    let mut cookie = [0; 8];
    image.read(0, &mut cookie);
    if cookie != *b"conectix" {
        return Err("there is no footer at the beginning".to_owned());
    }
    let (sectors, header) = (bytes(48, 8) / SECTOR as u64, bytes(16, 8));
    let (table, block) = (bytes(header + 16, 8), bytes(header + 32, 4) / SECTOR as u64);
    if block != BLOCK {
        return Err(format!("blocks have {block} sectors"));
    }
    let mut guest = Vec::with_capacity(sectors as usize);
    for number in 0..sectors.div_ceil(BLOCK) {
        let entry = bytes(table + number * 4, 4) as u32;
        let mut present = [0; BLOCK as usize / 8];
        if entry != NOT_THERE {
            image.read(u64::from(entry) * SECTOR as u64, &mut present);
        }
        for within in 0..BLOCK.min(sectors - number * BLOCK) {
            let is_there = present[within as usize / 8] >> (7 - within % 8) & 1 == 1;
            guest.push(match is_there {
                true => Source::File(entry + 1 + within as u32),
                false => Source::Fixed(ZERO),
            });
        }
    }
    Ok(guest)
}

/// A random scenario: requests around the boundary between two blocks, up to four at a time.
pub fn scenario(seed: u64) -> Scenario {
    let mut rng = Rng::stream(seed, Concern::Workload);
    let config = Config { cluster_bits: 21, sectors: BLOCK + 40, ..Config::default() };
    let mut ops = Vec::new();
    for _ in 0..rng.between(2, 10) {
        let near = if rng.one_in(2) { BLOCK - 6 } else { 0 };
        let from = near + rng.below(8);
        let at = from..from + rng.between(1, 6);
        ops.push(match rng.below(8) {
            0..3 => GuestOp::Write { at, fua: rng.one_in(5) },
            3 => GuestOp::Zero { at, unmap: rng.one_in(2), fua: false },
            4 => GuestOp::Discard { at },
            5 => GuestOp::Read { at },
            6 => GuestOp::Flush,
            _ => GuestOp::Reopen,
        });
    }
    let lanes = *rng.pick(&[1, 2, 4]);
    let schedule = match rng.below(3) {
        0 => Schedule::Fifo,
        1 => Schedule::Stall(rng.below(30) as u32),
        _ => Schedule::Uniform,
    };
    Scenario { seed, config, lanes, ops, granularity: Granularity::Full, schedule, ..Scenario::default() }
}
