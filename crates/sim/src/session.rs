//! One session of a guest: from opening an image to closing it, judged while it runs (O1, O7, O11) and when it ends
//! (O3, O8).

use std::rc::Rc;

use cowbell_block::DebugEvent;

use crate::bitmaps::Bitmaps;
use crate::bounds::length_bound;
use crate::config::{Config, Crypt, DataPlace};
use crate::disk::{Clock, History, SimDisk};
use crate::exec::{Granularity, Pct, Stop, Strategy, World};
use crate::faults::{Fault, Member};
use crate::guest::state::STATE_SECTORS;
use crate::guest::{Guest, GuestSetup};
use crate::image::{Built, data_disk};
use crate::judge::{Case, Failure, check_guest, inspect_once};
use crate::keys::Keys;
use crate::lab::{Found, Lab};
use crate::pool::{Content, HashIndex, Pool, ZERO};
use crate::recorded::Recorded;
use crate::rng::{Concern, Rng, mix};
use crate::scenario::{GuestOp, Scenario, Schedule};
use crate::subject::{Inspection, Source};
use crate::timeline::Image;

/// Inspections of images that were closed: under many schedules the end is the same.
#[derive(Default)]
pub(crate) struct Closed {
    configs: Vec<Config>,
    known: HashIndex<Inspection>,
}

/// Configurations whose inspections are kept.
const CONFIGS_MAX: usize = 32;
/// Inspections that are kept.
const KNOWN_MAX: usize = 4000;

impl Closed {
    /// Forgets everything: contents are about to get other numbers.
    pub fn clear(&mut self) {
        self.configs.clear();
        self.known.clear();
    }

    /// The key of an image that a world of this configuration left.
    fn key(&mut self, pool: &Pool, config: &Config, image: &Image) -> u64 {
        let known = self.configs.iter().position(|known| known == config);
        if known.is_none() && self.configs.len() == CONFIGS_MAX || self.known.len() > KNOWN_MAX {
            self.clear();
        }
        let number = known.filter(|number| *number < self.configs.len()).unwrap_or_else(|| {
            self.configs.push(config.clone());
            self.configs.len() - 1
        });
        let key = mix(image.lens_hash() ^ mix(number as u64));
        image.sectors.iter().fold(key, |key, content| mix(key ^ pool.hash(*content)))
    }
}

/// How a session begins.
#[derive(Clone)]
pub struct Start {
    /// The file.
    pub image: Image,
    /// What the guest reads.
    pub guest: Vec<Content>,
    /// What the guest of each snapshot reads.
    pub snapshots: Vec<Vec<Content>>,
    /// The bitmaps.
    pub bitmaps: Vec<Recorded>,
    /// The passphrases that open it.
    pub keys: Keys,
    /// What the VM state area holds, and that of each snapshot.
    pub state: (Vec<Content>, Vec<Vec<Content>>),
    /// Restarts before.
    pub generation: u32,
    /// Clusters that nobody uses.
    pub leaks: u64,
}

/// What a session is made of.
struct Set {
    world: World,
    guest: Rc<Guest>,
    disk: SimDisk,
    backing: Option<SimDisk>,
    data: Option<SimDisk>,
}

impl Set {
    /// The disks beside the image's.
    fn others(&self) -> impl Iterator<Item = &SimDisk> {
        self.backing.iter().chain(&self.data)
    }
}

/// The faults of a scenario that are about one file.
fn faults_on(scenario: &Scenario, member: Member) -> Vec<Fault> {
    scenario.faults.iter().filter(|fault| fault.on == member).copied().collect()
}

/// A run that is over.
pub struct Run {
    /// What the disk lived through.
    pub history: History,
    /// What the guest knows.
    pub guest: Rc<Guest>,
    /// The file at the end.
    pub end: Image,
    /// The picks that were made.
    pub choices: Vec<u16>,
    /// How many options each pick had.
    pub counts: Vec<u16>,
    /// A hash of everything that happened (O10).
    pub trace_hash: u64,
    /// Time of the end.
    pub end_time: u64,
    /// Faults that struck.
    pub faults_struck: u64,
    /// I/Os of the backing file.
    pub backing_ios: u64,
    /// Whether the run came to its end and the image was closed without an error.
    pub closed: bool,
}

impl Lab {
    /// Runs a scenario and judges what it leaves when it ends by itself.
    ///
    /// # Errors
    /// What the first oracle that disagrees says.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Run, Found> {
        let built = self.built(&scenario.config);
        let start = Start {
            image: built.image.clone(),
            guest: built.guest.clone(),
            snapshots: built.snapshots.clone(),
            bitmaps: initial_bitmaps(&scenario.config),
            keys: initial_keys(&scenario.config),
            state: empty_states(built.snapshots.len()),
            generation: 0,
            leaks: 0,
        };
        self.session(scenario, &built, start)
    }

    pub(crate) fn session(&mut self, scenario: &Scenario, built: &Built, start: Start) -> Result<Run, Found> {
        let recovered = start.generation > 0;
        let mut set = self.set_up(scenario, built, start);
        let (guest, disk) = (set.guest.clone(), set.disk.clone());
        let world = &mut set.world;
        // With choices at I/O points only, opening and closing are not what is being explored.
        let everything = scenario.granularity == Granularity::Full;
        world.exploring = everything;
        let mut outcome = world.block_on(guest.clone().open());
        if outcome.is_ok() {
            world.exploring = true;
            for _ in 0..scenario.lanes.max(1) {
                world.spawn(guest.clone().lane());
            }
            outcome = world.run();
        }
        let mut closed = false;
        if outcome.is_ok() {
            disk.heal();
            set.others().for_each(SimDisk::heal);
            let world = &mut set.world;
            world.exploring = everything;
            match world.block_on(guest.clone().finish()) {
                Ok(clean) => closed = clean,
                Err(stop) => outcome = Err(stop),
            }
        }
        self.note(&set);
        self.figures.note_config(&scenario.config);
        let (sectors, len) = disk.content();
        let (mut history, mut end) = (disk.end_history(), Image { sectors, len, data_len: 0 });
        if let Some(data) = &set.data {
            history = history.beside(data.end_history());
            let (sectors, len) = data.content();
            end = end.with_data(&sectors, len);
        }
        let Set { mut world, backing, data, .. } = set;
        let others = || backing.iter().chain(&data);
        let run = Run {
            history,
            end,
            choices: std::mem::take(&mut world.choices),
            counts: std::mem::take(&mut world.counts),
            trace_hash: others().fold(disk.trace_hash(), |hash, other| mix(hash ^ other.trace_hash())),
            end_time: disk.clock().now(),
            faults_struck: disk.faults_struck() + others().map(SimDisk::faults_struck).sum::<u64>(),
            backing_ios: backing.as_ref().map_or(0, |b| b.with_history(|history| history.ios.len() as u64)),
            closed,
            guest: guest.clone(),
        };
        drop(world);
        if let Some(forbidden) = backing.as_ref().map(SimDisk::forbidden).filter(|n| *n > 0) {
            let what = format!("{forbidden} attempts to change the backing file");
            guest.fail(Failure::new("O9", what));
        }
        if let Some(failure) = guest.failure.borrow_mut().take() {
            self.last = run.history;
            return Err(failure.into());
        }
        match outcome {
            Err(Stop::Cut) | Ok(()) => {}
            Err(stop) => {
                self.last = run.history;
                return Err(Failure::new("O11", stop.to_string()).into());
            }
        }
        if closed && let Err(found) = self.check_closed(scenario, built, &run, recovered) {
            self.last = run.history;
            return Err(found);
        }
        Ok(run)
    }

    fn set_up(&mut self, scenario: &Scenario, built: &Built, start: Start) -> Set {
        let clock = Clock::default();
        let config = &scenario.config;
        let rng = Rng::stream(scenario.seed, Concern::Host);
        let (sectors, len) = (start.image.parts(config.data).0, start.image.len);
        let host = config.host.clone();
        let disk = SimDisk::new("image", &self.pool, &clock, sectors, len, host.clone(), rng.clone());
        disk.set_faults(faults_on(scenario, Member::Image));
        let data = data_disk(&start.image, config, &self.pool, &clock, &host, rng.clone());
        let backing = built.backing_disk(&self.pool, &clock, &host, rng);
        let others = [(&backing, Member::Backing), (&data, Member::Data)];
        let mut disks = vec![disk.clone()];
        for (other, member) in others {
            if let Some(other) = other {
                other.set_faults(faults_on(scenario, member));
                disks.push(other.clone());
            }
        }
        let mut world = World::new(disks, strategy(scenario), scenario.granularity);
        world.cut_at = scenario.cut.as_ref().map(|c| c.step).filter(|_| start.generation == 0);
        let guest = Guest::new(GuestSetup {
            subject: self.subject.clone(),
            config: config.clone(),
            disk: disk.clone(),
            backing: backing.clone(),
            data: data.clone(),
            ops: scenario.ops.clone(),
            seed: scenario.seed,
            generation: start.generation,
            values: start.guest,
            snapshots: start.snapshots,
            bitmaps: Bitmaps::new(&start.bitmaps),
            keys: start.keys,
            state: start.state,
            pool: self.pool.clone(),
        });
        Set { world, guest, disk, backing, data }
    }

    fn note(&mut self, set: &Set) {
        let Set { disk, backing, guest, data, .. } = set;
        self.figures.runs += 1;
        self.figures.operations += guest.finished.get();
        self.figures.faults += disk.faults_struck() + set.others().map(SimDisk::faults_struck).sum::<u64>();
        self.figures.steps += disk.clock().now();
        for disk in std::iter::once(disk).chain(data) {
            self.figures.note_events(disk);
        }
        // It is announced to the image's file, and what comes right after is a read of another one.
        let behind = backing.as_ref().map_or(0, SimDisk::faults_struck);
        self.figures.events_struck[DebugEvent::ReadBackingAio as usize] += behind;
    }

    /// A closed image is sound, without leaks, and holds what the guest wrote.
    fn check_closed(
        &mut self,
        scenario: &Scenario,
        built: &Built,
        run: &Run,
        recovered: bool,
    ) -> Result<(), Found> {
        let mut pool = self.pool.lock();
        let key = self.closed.key(&pool, &scenario.config, &run.end);
        let (closed, subject) = (&mut self.closed.known, &*self.subject);
        let inspection =
            closed.entry(key).or_insert_with(|| inspect_once(subject, &scenario.config, &mut pool, &run.end));
        if let Some(corrupt) = &inspection.corrupt {
            let what = format!("after a clean close: {}", corrupt.what);
            return Err(Failure::new(corrupt.oracle, what).into());
        }
        if inspection.leaks > 0 && !recovered && !run.guest.lost.get() {
            let what = format!("{} clusters leaked after a clean close", inspection.leaks);
            return Err(Failure::new("O8", what).into());
        }
        let length_max = length_bound(scenario, run);
        let longest = { run.history.ios.iter() }
            .filter(|io| io.file == Member::Image)
            .filter_map(|io| io.new_len)
            .max()
            .unwrap_or(0);
        if longest > length_max {
            let what = format!("the file grew to {longest} bytes; {length_max} suffice");
            return Err(Failure::new("O8", what).into());
        }
        let allowed = run.guest.allowed_after_cut(run.end_time);
        let case = case(scenario, built);
        check_guest(inspection, &case, &pool, &run.end, &allowed)?;
        if scenario.config.data == DataPlace::Raw {
            let guest = inspection.guest.iter().enumerate();
            let differs = |(sector, source): &(usize, &Source)| {
                run.end.data(*sector as u32) != source.content(&run.end, case.backing, *sector)
            };
            if let Some((sector, _)) = { guest }.find(differs) {
                let what = format!("sector {sector} of the raw data file is not what the disk holds there");
                return Err(Failure::new("O2", what).into());
            }
        }
        Ok(())
    }
}

pub(crate) fn case<'a>(scenario: &'a Scenario, built: &'a Built) -> Case<'a> {
    let backing = built.backing.as_deref();
    Case { config: &scenario.config, backing, shortest: shortest(scenario, built), leaks_max: u64::MAX }
}

/// Sectors that the disk always has.
pub(crate) fn shortest(scenario: &Scenario, built: &Built) -> usize {
    let targets = scenario.ops.iter().filter_map(|op| match op {
        GuestOp::Resize { to } => Some(*to),
        _ => None,
    });
    targets.min().unwrap_or(u64::MAX).min(built.guest.len() as u64) as usize
}

/// The bitmaps that worlds of this configuration begin with.
pub(crate) fn initial_bitmaps(config: &Config) -> Vec<Recorded> {
    let changes =
        Recorded { name: "changes".into(), consistent: true, recording: true, ..Recorded::default() };
    if config.bitmaps { vec![changes] } else { Vec::new() }
}

/// The passphrases that open images of this configuration at the beginning.
pub(crate) fn initial_keys(config: &Config) -> Keys {
    Keys::from(config.crypt == Crypt::Luks)
}

/// The VM state area of an image in which nothing was stored there, and that of each of so many snapshots.
pub(crate) fn empty_states(snapshots: usize) -> (Vec<Content>, Vec<Vec<Content>>) {
    let empty = vec![ZERO; STATE_SECTORS];
    (empty.clone(), vec![empty; snapshots])
}

fn strategy(scenario: &Scenario) -> Strategy {
    let mut rng = Rng::stream(scenario.seed, Concern::Schedule);
    match &scenario.schedule {
        Schedule::Fifo => Strategy::Fifo,
        Schedule::Stall(io) => Strategy::Stall(*io),
        Schedule::Uniform => Strategy::Uniform(rng),
        Schedule::Pct(depth) => {
            let steps = 30 * scenario.ops.len() as u64 + 30;
            Strategy::Pct(Pct::new(&mut rng, *depth, steps))
        }
        Schedule::Choices(list) => Strategy::Replay(list.clone()),
    }
}
