//! The engine's own `check` on what a cut left: it agrees with the independent checker (O4), its repair leaves
//! nothing to repair and changes nothing the guest sees, and a cut inside the repair makes nothing worse (M5).

use std::ops::ControlFlow;
use std::sync::Arc;

use cowbell_block::node::{CheckReport, Fix, Node};

use crate::bitmaps::Bitmaps;
use crate::config::Crypt;
use crate::crash::{CrashSet, Depth};
use crate::disk::{Clock, History, HostConfig, SimDisk};
use crate::exec::{Granularity, Strategy, World};
use crate::image::{Built, data_disk};
use crate::judge::{Allowed, Case, Failure, check_guest, inspect_once};
use crate::lab::Lab;
use crate::model::Model;
use crate::rng::{Concern, Rng};
use crate::scenario::Scenario;
use crate::session::{Start, shortest};
use crate::subject::Files;
use crate::timeline::{Image, Timeline};

/// Checks and repairs what a cut left.
///
/// # Errors
/// What the first oracle that disagrees says.
pub fn check_and_repair(
    lab: &mut Lab,
    scenario: &Scenario,
    built: &Built,
    start: &Start,
) -> Result<(), Failure> {
    let clock = Clock::default();
    let config = &scenario.config;
    let rng = Rng::stream(scenario.seed, Concern::Host);
    let host = HostConfig { done_one_in: 0, ..config.host.clone() };
    let (sectors, len) = (start.image.parts(config.data).0, start.image.len);
    let disk = SimDisk::new("image", &lab.pool, &clock, sectors, len, host.clone(), rng.clone());
    let mut disks = vec![disk.clone()];
    let data = data_disk(&start.image, config, &lab.pool, &clock, &host, rng.clone());
    disks.extend(data.clone());
    let backing = built.backing_disk(&lab.pool, &clock, &host, rng);
    disks.extend(backing.clone());
    let mut world = World::new(disks, Strategy::Fifo, Granularity::IoPoints);
    world.exploring = false;
    let node = |disk: &Option<SimDisk>| disk.as_ref().map(SimDisk::node);
    let files = Files { image: disk.node(), backing: node(&backing), data: node(&data) };
    let opened = world.block_on(lab.subject.open(files, config));
    let node = opened
        .map_err(|stop| Failure::new("O11", stop.to_string()))?
        .map_err(|error| Failure::new("O5", format!("what the cut left does not open: {error}")))?;

    let first = check(&mut world, &node, Fix::None)?;
    if first.corruptions > 0 || !config.lazy && first.leaks != start.leaks {
        let what = format!(
            "check says {} corruptions, {} leaks; the checker says 0 and {}: {}",
            first.corruptions,
            first.leaks,
            start.leaks,
            first.findings.iter().map(|line| &**line).collect::<Vec<_>>().join("; ")
        );
        return Err(Failure::new("O4", what));
    }
    let second = check(&mut world, &node, Fix::All)?;
    if second.leaks_fixed != first.leaks || second.leaks > 0 || second.corruptions > 0 {
        return Err(Failure::new("O4", format!("the repair of {} leaks says {second:?}", first.leaks)));
    }
    let before = disk.content();
    let third = check(&mut world, &node, Fix::All)?;
    if third.leaks_fixed + third.corruptions_fixed > 0 || disk.content() != before {
        return Err(Failure::new("O4", "a second repair changes the image".to_owned()));
    }
    drop(node);
    if backing.is_some_and(|backing| backing.forbidden() > 0) {
        return Err(Failure::new("O9", "a repair tried to change the backing file"));
    }

    let (model, bitmaps) = (Model::new(&start.guest, &start.snapshots), Bitmaps::new(&start.bitmaps));
    let allowed = Allowed::after_cut(&model, 0, 1).with_bitmaps(&bitmaps, 0, &model);
    let allowed = match config.vm_state {
        true => allowed.with_state(Allowed::after_cut(&Model::new(&start.state.0, &start.state.1), 0, 1)),
        false => allowed,
    };
    let allowed =
        if config.crypt == Crypt::Luks { allowed.with_keys((start.keys, start.keys)) } else { allowed };
    // A repair takes leaks away and makes none.
    let leaks_max = start.leaks;
    let backing = built.backing.as_deref();
    let case = Case { config, backing, shortest: shortest(scenario, built), leaks_max };
    {
        let mut pool = lab.pool.lock();
        let mut image = Image { sectors: before.0, len: before.1, data_len: 0 };
        if let Some(data) = &data {
            let (sectors, len) = data.content();
            image = image.with_data(&sectors, len);
        }
        let inspection = inspect_once(&*lab.subject, config, &mut pool, &image);
        if let Some(corrupt) = &inspection.corrupt {
            return Err(Failure::new(corrupt.oracle, format!("after a repair: {}", corrupt.what)));
        }
        if inspection.leaks > 0 {
            return Err(Failure::new("O8", format!("{} leaks are left after a repair", inspection.leaks)));
        }
        check_guest(&inspection, &case, &pool, &image, &allowed)?;
    }
    let mut history = disk.end_history();
    if let Some(data) = &data {
        history = history.beside(data.end_history());
    }
    cut_the_repair(lab, scenario, &case, &history, &allowed)
}

fn check(world: &mut World, node: &Arc<dyn Node>, fix: Fix) -> Result<CheckReport, Failure> {
    world
        .block_on(node.check(fix))
        .map_err(|stop| Failure::new("O11", stop.to_string()))?
        .map_err(|error| Failure::new("O4", format!("check fails: {error}")))
}

/// Every cut inside the check and repair.
fn cut_the_repair(
    lab: &mut Lab,
    scenario: &Scenario,
    case: &Case<'_>,
    history: &History,
    allowed: &Allowed,
) -> Result<(), Failure> {
    let mut rng = Rng::stream(scenario.seed, Concern::Crash);
    let mut pool = lab.pool.lock();
    let (judge, subject) = (&mut lab.judge, &*lab.subject);
    let mut timeline = Timeline::new(history);
    judge.begin_run();
    while let Some(barrier) = timeline.next_barrier() {
        timeline.advance(barrier - 1);
        if timeline.has_volatile() {
            let mut set = CrashSet::new(&timeline, &pool, scenario.config.host.atom);
            judge.begin_cut();
            judge.adopt(&mut set);
            let mut failure = None;
            let _ = set.enumerate(Depth::QUICK, &mut rng, &mut |set| match judge
                .state(subject, case, &mut pool, set, allowed)
            {
                Ok(_) => ControlFlow::Continue(()),
                Err(found) => {
                    failure = Some(found);
                    ControlFlow::Break(())
                }
            });
            if let Some(found) = failure {
                return Err(Failure::new(found.oracle, format!("cut in a repair: {}", found.what)));
            }
        }
        timeline.advance(barrier);
    }
    Ok(())
}
