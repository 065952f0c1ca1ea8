//! Runs scenarios and judges what they leave: while they run (O1, O7, O11), when they end (O3, O8), and at every
//! cut that their history allows (O2, O3, O6), with recovery and a second cut for some of them (O5).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::config::Config;
use crate::crash::{CrashSet, Depth, Image, Survivors, Timeline};
use crate::disk::{Clock, History, HostConfig, SimDisk};
use crate::exec::{Granularity, Pct, Stop, Strategy, World};
use crate::guest::{Guest, GuestSetup};
use crate::image::Built;
use crate::judge::{Allowed, Case, Failure, Judge, check_guest, inspect_once};
use crate::pool::{Content, HashIndex, Pool, SharedPool};
use crate::repair;
use crate::rng::{Concern, Rng, mix};
use crate::scenario::{Cut, Scenario, Schedule};
use crate::subject::{Inspection, Subject};

/// What is kept from run to run: contents, images, the judge's memory.
pub struct Lab {
    /// What is under test.
    pub subject: Rc<dyn Subject>,
    /// All contents.
    pub pool: SharedPool,
    /// The judge.
    pub judge: Judge,
    built: Vec<(Config, Rc<Built>)>,
    /// Figures.
    pub figures: Figures,
    closed: Closed,
    /// The history of the last session, whatever its end.
    pub last: History,
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Runs of the engine.
    pub runs: u64,
    /// Guest operations.
    pub operations: u64,
    /// Recoveries after a cut.
    pub recoveries: u64,
    /// Repairs, each checked, repeated and cut.
    pub repairs: u64,
    /// Faults that struck.
    pub faults: u64,
    /// How often each debug event was announced.
    pub events: Vec<u64>,
    /// Different configurations, counted when they change.
    pub configs: u64,
    /// Runs per value of each setting.
    pub settings: BTreeMap<(&'static str, String), u64>,
    last_config: Option<(Config, u64)>,
    /// Steps of the worlds' clocks.
    pub steps: u64,
}

impl Figures {
    /// Brings [`Figures::settings`] up to date.
    pub fn book(&mut self) {
        let Some((config, runs)) = self.last_config.take() else { return };
        for key in SETTINGS {
            *self.settings.entry((key, config.value_of(key))).or_insert(0) += runs;
        }
    }
}

/// The settings whose values are counted.
pub const SETTINGS: [&str; 7] =
    ["version", "cluster_bits", "refcount_order", "lazy", "backing", "prestate", "alignment"];

/// Inspections of images that were closed in one configuration: under many schedules the end is the same.
#[derive(Default)]
struct Closed {
    config: Config,
    known: HashIndex<Inspection>,
}

impl Closed {
    /// The image's key; what is known of another configuration is forgotten.
    fn key(&mut self, pool: &Pool, config: &Config, image: &Image) -> u64 {
        if self.config != *config || self.known.len() > 1000 {
            self.known.clear();
            self.config = config.clone();
        }
        image.sectors.iter().fold(mix(image.len), |key, content| mix(key ^ pool.hash(*content)))
    }
}

/// How a session begins.
#[derive(Clone)]
pub struct Start {
    /// The file.
    pub image: Image,
    /// What the guest reads.
    pub guest: Vec<Content>,
    /// Restarts before.
    pub generation: u32,
    /// Clusters that nobody uses.
    pub leaks: u64,
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
    /// Whether the run came to its end and the image was closed without an error.
    pub closed: bool,
}

/// A failure, and where the power was cut for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What an oracle says.
    pub failure: Failure,
    /// The cut after which it says so.
    pub cut: Option<Cut>,
}

impl From<Failure> for Found {
    fn from(failure: Failure) -> Self {
        Self { failure, cut: None }
    }
}

/// How much is done with the history of a run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How thoroughly each cut is looked at.
    pub depth: Depth,
    /// One in so many judged states is recovered from; 0 for none.
    pub recover_one_in: u64,
    /// Most recoveries from one run.
    pub recoveries_max: usize,
    /// Whether the power is cut again during what follows a recovery.
    pub second_cut: bool,
    /// Whether what was recovered is also checked and repaired when it has no leaks.
    pub repair: bool,
}

impl Effort {
    /// Everything, with recovery from 2 % of the states.
    pub const FULL: Self =
        Self { depth: Depth::FULL, recover_one_in: 40, recoveries_max: 12, second_cut: true, repair: true };
    /// For random workloads.
    pub const QUICK: Self =
        Self { depth: Depth::QUICK, recover_one_in: 30, recoveries_max: 6, second_cut: true, repair: false };
    /// No recovery.
    pub const STATES: Self =
        Self { depth: Depth::FULL, recover_one_in: 0, recoveries_max: 0, second_cut: false, repair: false };
}

/// Where a run is cut.
#[derive(Clone, Copy)]
struct Place<'a> {
    time: u64,
    /// Only this state, instead of many.
    survivors: Option<&'a Survivors>,
    /// Clusters that were lost before the run.
    leaks_before: u64,
}

impl Lab {
    /// A laboratory for one subject.
    pub fn new(subject: Rc<dyn Subject>) -> Self {
        Self {
            subject,
            pool: Pool::shared(),
            judge: Judge::default(),
            built: Vec::new(),
            figures: Figures::default(),
            closed: Closed::default(),
            last: History::default(),
        }
    }

    /// The image that worlds of this configuration begin with.
    pub fn built(&mut self, config: &Config) -> Rc<Built> {
        let key = Config { host: HostConfig::default(), ..config.clone() };
        if let Some((_, built)) = self.built.iter().find(|(c, _)| *c == key) {
            return built.clone();
        }
        if self.built.len() >= 64 {
            self.built.clear();
        }
        let built = Rc::new(self.subject.build(&key, &mut self.pool.lock()));
        self.built.push((key, built.clone()));
        built
    }

    /// Forgets contents when there are too many. Only between runs.
    pub fn tidy(&mut self) {
        if self.pool.lock().count() > 200_000 {
            self.built.clear();
            self.closed.known.clear();
            self.judge.begin_run();
            self.pool.lock().truncate(1);
        }
    }

    /// Runs a scenario and judges everything about it. The `cut` of the scenario, if there is one, says where
    /// to look; otherwise every cut that its history allows is looked at.
    ///
    /// # Errors
    /// What the first oracle that disagrees says.
    pub fn judge(&mut self, scenario: &Scenario, effort: Effort) -> Result<Run, Found> {
        self.tidy();
        let run = self.run(scenario)?;
        match &scenario.cut {
            None => self.explore(scenario, &run, effort, 0)?,
            Some(cut) => {
                let mut cuts = Vec::new();
                self.judge.begin_run();
                let place = Place { time: cut.step, survivors: cut.survivors.as_ref(), leaks_before: 0 };
                self.one_cut(scenario, &run, place, effort, &mut cuts)?;
                self.recover_all(scenario, cuts, effort)?;
            }
        }
        Ok(run)
    }

    /// Runs a scenario and judges what it leaves when it ends by itself.
    ///
    /// # Errors
    /// What the first oracle that disagrees says.
    pub fn run(&mut self, scenario: &Scenario) -> Result<Run, Found> {
        let built = self.built(&scenario.config);
        let start = Start { image: built.image.clone(), guest: built.guest.clone(), generation: 0, leaks: 0 };
        self.session(scenario, &built, start)
    }

    fn session(&mut self, scenario: &Scenario, built: &Built, start: Start) -> Result<Run, Found> {
        let recovered = start.generation > 0;
        let (mut world, guest, disk) = self.set_up(scenario, built, start);
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
            world.exploring = everything;
            match world.block_on(guest.clone().finish()) {
                Ok(clean) => closed = clean,
                Err(stop) => outcome = Err(stop),
            }
        }
        self.note(&disk, &guest);
        self.note_config(&scenario.config);
        let (sectors, len) = disk.content();
        let run = Run {
            history: disk.end_history(),
            end: Image { sectors, len },
            choices: std::mem::take(&mut world.choices),
            counts: std::mem::take(&mut world.counts),
            trace_hash: disk.trace_hash(),
            end_time: disk.clock().now(),
            faults_struck: disk.faults_struck(),
            closed,
            guest: guest.clone(),
        };
        drop(world);
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

    fn set_up(&mut self, scenario: &Scenario, built: &Built, start: Start) -> (World, Rc<Guest>, SimDisk) {
        let clock = Clock::default();
        let config = &scenario.config;
        let rng = Rng::stream(scenario.seed, Concern::Host);
        let Image { sectors, len } = &start.image;
        let host = config.host.clone();
        let disk = SimDisk::new("image", &self.pool, &clock, sectors, *len, host.clone(), rng.clone());
        disk.set_faults(scenario.faults.clone());
        let mut disks = vec![disk.clone()];
        let backing = built.backing.as_ref().map(|content| {
            let len = content.len() as u64 * 512;
            let host = HostConfig { alignment: 1, ..host };
            let backing = SimDisk::new("backing", &self.pool, &clock, content, len, host, rng);
            backing.set_read_only();
            disks.push(backing.clone());
            backing.node()
        });
        let mut world = World::new(disks, strategy(scenario), scenario.granularity);
        world.cut_at = scenario.cut.as_ref().map(|c| c.step).filter(|_| start.generation == 0);
        let guest = Guest::new(GuestSetup {
            subject: self.subject.clone(),
            config: config.clone(),
            disk: disk.clone(),
            backing,
            ops: scenario.ops.clone(),
            seed: scenario.seed,
            generation: start.generation,
            values: start.guest,
            pool: self.pool.clone(),
        });
        (world, guest, disk)
    }

    fn note(&mut self, disk: &SimDisk, guest: &Guest) {
        self.figures.runs += 1;
        self.figures.operations += guest.finished.get();
        self.figures.faults += disk.faults_struck();
        self.figures.steps += disk.clock().now();
        let counts = disk.event_counts();
        self.figures.events.resize(counts.len(), 0);
        for (sum, count) in self.figures.events.iter_mut().zip(counts) {
            *sum += u64::from(count);
        }
    }

    /// Counts runs per setting; runs of one configuration come in a row and are booked together.
    fn note_config(&mut self, config: &Config) {
        let figures = &mut self.figures;
        if let Some((last, runs)) = &mut figures.last_config
            && last == config
        {
            *runs += 1;
            return;
        }
        figures.book();
        figures.configs += 1;
        figures.last_config = Some((config.clone(), 1));
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
            return Err(Failure::new("O3", format!("after a clean close: {corrupt}")).into());
        }
        if inspection.leaks > 0 && !recovered && !run.guest.lost.get() {
            let what = format!("{} clusters leaked after a clean close", inspection.leaks);
            return Err(Failure::new("O8", what).into());
        }
        let allowed = Allowed::after_cut(&run.guest.model.borrow(), run.end_time);
        let case = case(scenario, built);
        check_guest(inspection, &case, &pool, &run.end, &allowed)?;
        Ok(())
    }

    /// Looks at every cut that the history of a run allows.
    ///
    /// # Errors
    /// What the first oracle that disagrees says, with the cut.
    pub fn explore(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        effort: Effort,
        leaks_before: u64,
    ) -> Result<(), Found> {
        let mut cuts = Vec::new();
        self.judge.begin_run();
        for time in cut_times(run) {
            let place = Place { time, survivors: None, leaks_before };
            self.one_cut(scenario, run, place, effort, &mut cuts)?;
        }
        self.recover_all(scenario, cuts, effort)
    }

    /// Judges the states of one cut, and picks some to recover from.
    fn one_cut(
        &mut self,
        scenario: &Scenario,
        run: &Run,
        place: Place<'_>,
        effort: Effort,
        cuts: &mut Vec<(Start, Cut)>,
    ) -> Result<(), Found> {
        let Place { time, survivors, leaks_before } = place;
        let built = self.built(&scenario.config);
        let leaks_max = leak_bound(scenario, run, time).saturating_add(leaks_before);
        let case = Case { leaks_max, ..case(scenario, &built) };
        let mut timeline = Timeline::new(&run.history);
        timeline.advance(time);
        let allowed = Allowed::after_cut(&run.guest.model.borrow(), time);
        let mut pool = self.pool.lock();
        let mut set = CrashSet::new(&timeline, &pool);
        let mut rng = Rng::stream(scenario.seed ^ time, Concern::Crash);
        self.judge.begin_cut();
        self.judge.adopt(&mut set);
        let (judge, subject) = (&mut self.judge, &*self.subject);
        let mut found = None;
        let mut visit = |set: &mut CrashSet| {
            let cut = |set: &CrashSet| Cut { step: time, survivors: Some(set.survivors()) };
            match judge.state(subject, &case, &mut pool, set, &allowed) {
                Err(failure) => {
                    found = Some(Found { failure, cut: Some(cut(set)) });
                    return ControlFlow::Break(());
                }
                Ok(true) if wants_recovery(effort, set, cuts.len()) || survivors.is_some() => {
                    let (guest, leaks) = judge.guest_of(set, &case);
                    let start = Start { image: set.image().clone(), guest, generation: 1, leaks };
                    cuts.push((start, cut(set)));
                }
                Ok(_) => {}
            }
            ControlFlow::Continue(())
        };
        let _ = match survivors {
            Some(survivors) => {
                set.make(survivors);
                visit(&mut set)
            }
            None => set.enumerate(effort.depth, &mut rng, &mut visit),
        };
        found.map_or(Ok(()), Err)
    }

    /// Opens what cuts left, reads everything, goes on with the workload, and cuts the power again.
    fn recover_all(
        &mut self,
        scenario: &Scenario,
        cuts: Vec<(Start, Cut)>,
        effort: Effort,
    ) -> Result<(), Found> {
        let built = self.built(&scenario.config);
        for (start, cut) in cuts {
            let leaks = start.leaks;
            let again = Scenario { faults: Vec::new(), cut: None, ..scenario.clone() };
            self.figures.recoveries += 1;
            let at_cut = |mut found: Found| {
                found.failure.what = format!("after recovery: {}", found.failure.what);
                found.cut = Some(cut.clone());
                found
            };
            if self.subject.can_check() && (effort.repair || start.leaks > 0) {
                self.figures.repairs += 1;
                repair::check_and_repair(self, &again, &built, &start).map_err(|f| at_cut(f.into()))?;
            }
            let run = self.session(&again, &built, start).map_err(at_cut)?;
            if effort.second_cut {
                let second = Effort { depth: Depth { random_masks: 4, ..Depth::QUICK }, ..Effort::STATES };
                self.explore(&again, &run, second, leaks).map_err(at_cut)?;
            }
        }
        Ok(())
    }
}

fn wants_recovery(effort: Effort, set: &CrashSet, taken: usize) -> bool {
    effort.recover_one_in > 0
        && taken < effort.recoveries_max
        && set.state().key.is_multiple_of(effort.recover_one_in)
}

fn case<'a>(scenario: &'a Scenario, built: &'a Built) -> Case<'a> {
    let backing = built.backing.as_deref();
    Case { config: &scenario.config, backing, snapshots: &built.snapshots, leaks_max: u64::MAX }
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

/// Most clusters that may leak after a cut at `time`: those written since the last flush that completed began,
/// whose pointers may be lost, and those that mutations since the flush before it may have freed, since
/// counting down rides in the next flush. Lazy refcounts and failed I/Os make no such promise.
fn leak_bound(scenario: &Scenario, run: &Run, time: u64) -> u64 {
    if scenario.config.lazy || run.faults_struck > 0 {
        return u64::MAX;
    }
    let flushes = run.guest.flushes.borrow();
    let before: Vec<u64> = flushes.iter().filter(|(_, end)| *end <= time).map(|(start, _)| *start).collect();
    let last = before.last().copied().unwrap_or(0);
    let last_but_one = before.len().checked_sub(2).map_or(0, |i| before[i]);
    let bits = scenario.config.cluster_bits;
    let mut written = BTreeSet::new();
    for io in run.history.ios.iter().filter(|io| io.is_mutation() && io.applied.is_some_and(|t| t > last)) {
        written.extend(io.offset >> bits..(io.offset + io.len).div_ceil(1 << bits));
    }
    let model = run.guest.model.borrow();
    let per = scenario.config.cluster_sectors();
    let freed: u64 = model.touched_since(last_but_one).map(|at| at.end.div_ceil(per) - at.start / per).sum();
    // A table that a write made its own leaves the shared one behind.
    written.len() as u64 + freed + 4
}

/// The times just before something became durable, the times at which the guest was promised durability, and
/// the end. In between, the states of a cut are among those of the next such time.
fn cut_times(run: &Run) -> Vec<u64> {
    let mut timeline = Timeline::new(&run.history);
    let mut times = Vec::new();
    while let Some(barrier) = timeline.next_barrier() {
        timeline.advance(barrier - 1);
        if timeline.has_volatile() {
            times.push(barrier - 1);
        }
        timeline.advance(barrier);
    }
    times.extend(run.guest.durable_times.borrow().iter());
    times.push(run.end_time);
    times.sort_unstable();
    times.dedup();
    times
}
