//! Snapshot tables that a repair has to write anew: an entry that lacks what version 3 wants, or has more extra data than
//! anybody reads. Wherever the repair is cut, the disk and its snapshots are what they were, nothing else is wrong, and
//! another repair ends right (M5).

use std::sync::Arc;

use cowbell_block::Node;
use cowbell_block::node::{CheckReport, Fix};

use crate::bitmaps::Bitmaps;
use crate::config::{Backing, Config, Prestate};
use crate::cuts::{Cuts, every_cut};
use crate::disk::{Clock, History, SimDisk};
use crate::engine::{Engine, open_for_check};
use crate::exec::{Granularity, Strategy, World};
use crate::image::Built;
use crate::judge::{Allowed, Case, Failure, check_guest, inspect_once};
use crate::lab::Lab;
use crate::model::Model;
use crate::pool::{Pool, SECTOR};
use crate::rng::{Concern, Rng};
use crate::session::initial_bitmaps;
use crate::timeline::Image;

/// States of one repair that are repaired again.
const AGAIN_MAX: usize = 6;
/// Bytes of extra data that nobody reads.
const EXTRA_TOO_LONG: usize = 1040;

/// What is wrong with the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// It does not say how long the disk is.
    Short,
    /// It has too much extra data.
    Long,
}

/// The world of a seed.
fn world_of(rng: &mut Rng) -> (Config, Damage) {
    let damage = if rng.one_in(2) { Damage::Short } else { Damage::Long };
    let mut config = Config {
        // The entry stays in the one cluster of its table.
        cluster_bits: if damage == Damage::Long { 12 } else { *rng.pick(&[9, 10, 12]) },
        refcount_order: *rng.pick(&[2, 4, 6]),
        sectors: *rng.pick(&[33, 72, 96]),
        prestate: *rng.pick(&[Prestate::Snapshot, Prestate::Shared, Prestate::Mixed]),
        backing: *rng.pick(&[Backing::None, Backing::Shorter]),
        l2_slice_bytes: 512,
        ..Config::default()
    };
    config.legalise();
    (config, damage)
}

/// The image with a damaged snapshot table.
fn damaged(image: &Image, config: &Config, damage: Damage, pool: &mut Pool) -> Image {
    let mut header = [0; 8];
    header.copy_from_slice(&pool.bytes(image.get(0))[64..72]);
    let first = u64::from_be_bytes(header) / SECTOR as u64;
    let sectors = first..first + config.cluster_sectors();
    let mut table: Vec<u8> = sectors.clone().flat_map(|sector| *pool.bytes(image.get(sector))).collect();
    let names: Vec<u8> = table[56..61].to_vec();
    let extra: Vec<u8> = match damage {
        Damage::Short => Vec::new(),
        Damage::Long => {
            table[40..56].iter().copied().chain(std::iter::repeat(3)).take(EXTRA_TOO_LONG).collect()
        }
    };
    table[36..40].copy_from_slice(&(extra.len() as u32).to_be_bytes());
    table[40..].fill(0);
    let rest = [extra, names].concat();
    table[40..40 + rest.len()].copy_from_slice(&rest);
    let mut image = image.clone();
    let contents = pool.intern_all(&table);
    for (sector, content) in sectors.zip(contents) {
        image.sectors[sector as usize] = content;
    }
    image
}

/// Damages the table of a seed's world, repairs it, and looks at every cut.
///
/// # Errors
/// What the first oracle that disagrees says.
pub fn run(lab: &mut Lab, seed: u64) -> Result<(), Failure> {
    lab.tidy();
    let (config, damage) = world_of(&mut Rng::stream(seed, Concern::Config));
    let built = lab.built(&config);
    let image = damaged(&built.image, &config, damage, &mut lab.pool.lock());
    let about = |failure: Failure| {
        let what = format!("repair of a {damage:?} entry ({}): {}", config.to_text(), failure.what);
        Failure::new(failure.oracle, what)
    };
    let strategy = Strategy::Uniform(Rng::stream(seed, Concern::Schedule));
    let repaired = repair(lab, &built, &config, &image, strategy).map_err(about)?;
    if repaired.report.corruptions_fixed == 0 {
        return Err(about(Failure::new("O4", "the repair found nothing to mend")));
    }
    check_mended(lab, &built, &config, &repaired.end).map_err(about)?;
    let (forgiving, mut left) = (Engine::with_broken_snapshot_tables(), Vec::new());
    let cuts =
        Cuts { subject: &forgiving, case: case(&built, &config), allowed: allowed(&built, &config), seed };
    every_cut(lab, &repaired.history, &cuts, &mut |set| {
        if set.state().key.is_multiple_of(8) && left.len() < AGAIN_MAX {
            left.push(set.image().clone());
        }
    })
    .map_err(about)?;
    lab.figures.recoveries += left.len() as u64;
    for image in left {
        let again = |failure: Failure| {
            about(Failure::new(failure.oracle, format!("repaired again after a cut: {}", failure.what)))
        };
        let repaired = repair(lab, &built, &config, &image, Strategy::Fifo).map_err(again)?;
        check_mended(lab, &built, &config, &repaired.end).map_err(again)?;
        let second = repair(lab, &built, &config, &repaired.end, Strategy::Fifo).map_err(again)?;
        if second.end != repaired.end {
            return Err(again(Failure::new("O4", "a second repair changes the image")));
        }
    }
    Ok(())
}

/// What a repair did.
struct Repaired {
    history: History,
    end: Image,
    report: CheckReport,
}

fn repair(
    lab: &mut Lab,
    built: &Built,
    config: &Config,
    image: &Image,
    strategy: Strategy,
) -> Result<Repaired, Failure> {
    let (clock, host) = (Clock::default(), config.host.clone());
    let (pool, rng) = (&lab.pool, Rng::new(0));
    let disk = SimDisk::new("image", pool, &clock, &image.sectors, image.len, host.clone(), rng.clone());
    let backing = built.backing_disk(pool, &clock, &host, rng);
    let disks = std::iter::once(disk.clone()).chain(backing.clone()).collect();
    let mut world = World::new(disks, strategy, Granularity::Full);
    let (file, behind) = (disk.node(), backing.map(|disk| disk.node()));
    let work = async move {
        let node: Arc<dyn Node> = open_for_check(file, behind).await?;
        let report = node.check(Fix::All).await?;
        node.close().await?;
        Ok::<_, cowbell_block::Error>(report)
    };
    let done = world.block_on(work).map_err(|stop| Failure::new("O11", stop.to_string()))?;
    let report = done.map_err(|error| Failure::new("O4", format!("the repair fails: {error}")))?;
    lab.figures.repairs += 1;
    let (sectors, len) = disk.content();
    Ok(Repaired { history: disk.end_history(), end: Image { sectors, len, data_len: 0 }, report })
}

/// Nothing is wrong any more, and all disks are what they were.
fn check_mended(lab: &mut Lab, built: &Built, config: &Config, image: &Image) -> Result<(), Failure> {
    let mut pool = lab.pool.lock();
    let inspection = inspect_once(&*lab.subject, config, &mut pool, image);
    if let Some(corrupt) = &inspection.corrupt {
        return Err(Failure::new(corrupt.oracle, format!("after the repair: {}", corrupt.what)));
    }
    if inspection.leaks > 0 {
        return Err(Failure::new("O8", format!("{} clusters are lost after the repair", inspection.leaks)));
    }
    check_guest(&inspection, &case(built, config), &pool, image, &allowed(built, config))
}

fn case<'a>(built: &'a Built, config: &'a Config) -> Case<'a> {
    Case { config, backing: built.backing.as_deref(), shortest: built.guest.len(), leaks_max: u64::MAX }
}

fn allowed(built: &Built, config: &Config) -> Allowed {
    let model = Model::new(&built.guest, &built.snapshots);
    Allowed::after_cut(&model, 0, 1).with_bitmaps(&Bitmaps::new(&initial_bitmaps(config)), 0, &model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::subject::Subject;

    #[test]
    fn broken_snapshot_tables_are_mended_wherever_it_is_cut() {
        let mut lab = Lab::of(Format::Qcow2);
        for seed in 0..60 {
            run(&mut lab, seed).unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        }
    }

    /// Whoever does not forgive the damage finds it.
    #[test]
    fn the_damage_is_seen() {
        let mut lab = Lab::of(Format::Qcow2);
        for seed in 0..8 {
            let (config, damage) = world_of(&mut Rng::stream(seed, Concern::Config));
            let built = lab.built(&config);
            let mut pool = lab.pool.lock();
            let image = damaged(&built.image, &config, damage, &mut pool);
            let seen =
                |subject: &dyn Subject, pool: &mut Pool| inspect_once(subject, &config, pool, &image).corrupt;
            assert_eq!(seen(&*lab.subject, &mut pool).map(|failure| failure.oracle), Some("O3"));
            assert_eq!(seen(&Engine::with_broken_snapshot_tables(), &mut pool), None);
        }
    }
}
