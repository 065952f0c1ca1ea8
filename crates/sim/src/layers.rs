//! Commits and rebases under random schedules, beside a guest that reads: what the guest sees never changes, whenever the
//! power is cut, with unflushed writes of both files lost, torn or reordered.
//!
//! | job | the file behind | what the guest's sectors may come from after a cut |
//! |---|---|---|
//! | commit, then emptying | is written to | the image, else the file behind as the same cut left it; that is raw or qcow2 |
//! | rebase to nothing, then the new header | stays as it was | the image, else the file behind while the header names it |
//!
//! One in three fails at some I/O of one of the files. A job that failed has changed nothing that the guest sees either.

use std::rc::Rc;
use std::sync::Arc;

use cowbell_block::node::Node;
use cowbell_block::{DebugEvent, Root};
use cowbell_jobs::commit::commit;
use cowbell_jobs::rebase::{NewBacking, Store, rebase};
use cowbell_jobs::{Silent, Unpaced};

use crate::bitmaps::Bitmaps;
use crate::config::{Backing, Config, Prestate};
use crate::cuts::{Cuts, every_cut};
use crate::disk::{Clock, History, SimDisk};
use crate::exec::{Granularity, Strategy, World};
use crate::faults::{Fault, FaultKind, Member, Trigger};
use crate::guest::{Guest, GuestSetup};
use crate::image::Built;
use crate::judge::{Allowed, Case, Failure, inspect_once};
use crate::lab::Lab;
use crate::model::Model;
use crate::pool::{Content, Pool, ZERO};
use crate::rng::{Concern, Rng};
use crate::session::empty_states;
use crate::subject::{Files, ImageBytes, Inspection, Source, Subject};
use crate::timeline::Image;

/// What is done to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Commit,
    Rebase,
}

/// A subject whose images are looked at together with the file behind them.
struct Layered {
    below: Rc<dyn Subject>,
    task: Task,
}

impl Subject for Layered {
    fn build(&self, config: &Config, pool: &mut Pool) -> Built {
        self.below.build(config, pool)
    }

    fn open(
        &self,
        files: Files,
        config: &Config,
    ) -> cowbell_block::BoxFuture<cowbell_block::Result<Arc<dyn Node>>> {
        self.below.open(files, config)
    }

    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection {
        let mut inspection = self.below.inspect(image, config);
        let mut name_at = [0; 8];
        image.read(8, &mut name_at);
        let is_named = u64::from_be_bytes(name_at) != 0;
        let mut base = match (self.task, config.backing_image()) {
            (Task::Commit, Some(inner)) => Some(self.base(image, &inner, &mut inspection)),
            _ => None,
        };
        for (sector, source) in inspection.guest.iter_mut().enumerate() {
            if *source == Source::Behind {
                *source = match self.task {
                    Task::Commit if let Some(base) = &mut base => {
                        base.get(sector).copied().unwrap_or(Source::Fixed(ZERO))
                    }
                    Task::Commit => Source::Data(sector as u32),
                    Task::Rebase if is_named => Source::Behind,
                    Task::Rebase => Source::Fixed(ZERO),
                };
            }
        }
        inspection
    }
}

impl Layered {
    /// Where the sectors of the image behind are, which must be as sound as the one above.
    fn base(&self, image: &ImageBytes<'_>, inner: &Config, above: &mut Inspection) -> Vec<Source> {
        let found = image.in_data_file(|image| self.below.inspect(image, inner));
        if let (None, Some(corrupt)) = (&above.corrupt, found.corrupt) {
            let what = format!("the image behind: {}", corrupt.what);
            above.corrupt = Some(Failure::new(corrupt.oracle, what));
        }
        let first = above.contents.len() as u32;
        above.contents.extend(found.contents);
        let moved = |source| match source {
            Source::File(at) => Source::Data(at),
            Source::New(index) => Source::New(first + index),
            Source::Behind => Source::Fixed(ZERO),
            Source::Data(_) | Source::Fixed(_) => source,
        };
        found.guest.into_iter().map(moved).collect()
    }
}

/// The world of a seed. Without snapshots: what they see of the file behind changes with it.
fn world_of(rng: &mut Rng) -> (Task, Config) {
    let task = if rng.one_in(3) { Task::Rebase } else { Task::Commit };
    let config = Config {
        version: if rng.one_in(4) { 2 } else { 3 },
        cluster_bits: *rng.pick(&[9, 10, 12]),
        sectors: *rng.pick(&[33, 40, 72]),
        backing: *rng.pick(&[
            Backing::Raw,
            Backing::Shorter,
            Backing::Longer,
            Backing::Qcow2,
            Backing::Qcow2Shorter,
            Backing::Qcow2Longer,
        ]),
        prestate: *rng.pick(&[Prestate::Fresh, Prestate::Half, Prestate::Full, Prestate::Compressed]),
        lazy: rng.one_in(4),
        l2_slice_bytes: 512,
        ..Config::default()
    };
    let mut config = Config { lazy: config.lazy && config.version == 3, ..config };
    config.legalise();
    (task, config)
}

/// One in three worlds has a fault.
fn fault_of(rng: &mut Rng) -> Option<Fault> {
    let on = if rng.one_in(2) { Member::Image } else { Member::Backing };
    let (trigger, kind) = (Trigger::Nth(rng.below(60)), *rng.pick(&FaultKind::ALL));
    let fault = Fault { on, trigger, kind, sticky: rng.one_in(3) };
    rng.one_in(3).then_some(fault)
}

/// Runs the job of a seed, and looks at every cut.
///
/// # Errors
/// What the first oracle that disagrees says.
pub fn run(lab: &mut Lab, seed: u64) -> Result<(), Failure> {
    let (task, config) = world_of(&mut Rng::stream(seed, Concern::Workload));
    let fault = fault_of(&mut Rng::stream(seed, Concern::Faults));
    run_in(lab, seed, (task, config), fault)
}

/// Commits with a fault right after this event of the image.
///
/// # Errors
/// What the first oracle that disagrees says.
pub fn strike(lab: &mut Lab, event: DebugEvent) -> Result<(), Failure> {
    let config = Config { backing: Backing::Raw, prestate: Prestate::Half, ..Config::default() };
    let trigger = Trigger::Tagged(event, 0);
    let fault = Fault { on: Member::Image, trigger, kind: FaultKind::Eio, sticky: false };
    run_in(lab, 0, (Task::Commit, config), Some(fault))
}

fn run_in(
    lab: &mut Lab,
    seed: u64,
    (task, config): (Task, Config),
    fault: Option<Fault>,
) -> Result<(), Failure> {
    lab.tidy();
    let about = |failure: Failure| {
        let what = format!("{task:?} of seed {seed} ({}) {fault:?}: {}", config.to_text(), failure.what);
        Failure::new(failure.oracle, what)
    };
    let built = lab.built(&config);
    let Worked { history, base, is_done } = work(lab, seed, task, &config, &built, fault).map_err(about)?;
    if task == Task::Commit && is_done {
        let base = content_of(lab, &config, base);
        let differs = |sector: &usize| base.get(*sector).copied().unwrap_or(ZERO) != built.guest[*sector];
        if let Some(sector) = (0..built.guest.len()).find(differs) {
            return Err(about(Failure::new("O2", format!("sector {sector} was not committed"))));
        }
    }
    judge(lab, seed, task, &config, &built, &history).map_err(about)
}

/// What the guest of the file behind reads.
fn content_of(lab: &Lab, config: &Config, base: Image) -> Vec<Content> {
    let Some(inner) = config.backing_image() else { return base.sectors };
    let mut pool = lab.pool.lock();
    let inspection = inspect_once(&*lab.subject, &inner, &mut pool, &base);
    let sources = inspection.guest.iter().enumerate();
    sources.map(|(sector, source)| inspection.content(*source, &base, None, sector, &pool)).collect()
}

/// What a job did.
struct Worked {
    /// Everything that happened to the files.
    history: History,
    /// The file behind at the end.
    base: Image,
    /// Whether everything succeeded.
    is_done: bool,
}

fn work(
    lab: &mut Lab,
    seed: u64,
    task: Task,
    config: &Config,
    built: &Built,
    fault: Option<Fault>,
) -> Result<Worked, Failure> {
    let (clock, host) = (Clock::default(), config.host.clone());
    let disk = |name: &'static str, content: &[Content], len: u64| {
        SimDisk::new(name, &lab.pool, &clock, content, len, host.clone(), Rng::new(seed))
    };
    let image = disk("image", &built.image.sectors, built.image.len);
    let base = disk("backing", &built.backing_file.sectors, built.backing_file.len);
    if task == Task::Rebase {
        base.set_read_only();
    }
    let on = |member: Member| fault.filter(|fault| fault.on == member).into_iter().collect();
    image.set_faults(on(Member::Image));
    base.set_faults(on(Member::Backing));
    let strategy = Strategy::Uniform(Rng::stream(seed, Concern::Schedule));
    let mut world = World::new(vec![image.clone(), base.clone()], strategy, Granularity::Full);
    let guest = Guest::new(GuestSetup {
        subject: lab.subject.clone(),
        config: config.clone(),
        disk: image.clone(),
        backing: Some(base.clone()),
        data: None,
        ops: Vec::new(),
        seed,
        generation: 0,
        values: built.guest.clone(),
        snapshots: Vec::new(),
        state: empty_states(0),
        bitmaps: Bitmaps::new(&[]),
        keys: 0,
        pool: lab.pool.clone(),
    });
    let stopped = |stop: crate::exec::Stop| Failure::new("O11", stop.to_string());
    let reader = guest.clone();
    let opening = open_both(lab.subject.clone(), task, config.clone(), (image.node(), base.node()));
    let opened = world.block_on(opening).map_err(stopped)?;
    let mut done = Ok(());
    match opened {
        Err(error) => done = Err(error),
        Ok((node, below)) => {
            let read = node.clone();
            world.spawn(async move {
                for _ in 0..3 {
                    reader.read_all(&*read).await;
                }
            });
            // With everything else that is going on; nobody reads any more when the image is closed.
            done = done.and(world.block_on(job(task, node.clone(), below)).map_err(stopped)?);
            let closed = world.block_on(async move { node.close().await }).map_err(stopped)?;
            done = done.and(closed.map_err(|error| error.to_string()));
        }
    }
    lab.figures.note_events(&image);
    lab.figures.faults += image.faults_struck() + base.faults_struck();
    let struck = image.faults_struck() + base.faults_struck() > 0;
    if let (Err(error), false) = (&done, struck) {
        return Err(Failure::new("O7", error.clone()));
    }
    if let Some(failure) = guest.failure.borrow_mut().take() {
        return Err(failure);
    }
    if base.forbidden() > 0 {
        return Err(Failure::new("O9", "a rebase tried to change the backing file"));
    }
    let (sectors, len) = base.content();
    let history = match task {
        Task::Commit => image.end_history().beside(base.end_history()),
        Task::Rebase => image.end_history(),
    };
    Ok(Worked { history, base: Image { sectors, len, data_len: 0 }, is_done: done.is_ok() })
}

/// Opens both, the one behind for writing if it is written to.
async fn open_both(
    subject: Rc<dyn Subject>,
    task: Task,
    config: Config,
    (image, base): (Arc<dyn Node>, Arc<dyn Node>),
) -> Result<(Arc<dyn Node>, Arc<dyn Node>), String> {
    let said = |error: cowbell_block::Error| error.to_string();
    let (below, above) = match config.backing_image() {
        Some(inner) if task == Task::Commit => {
            let files = Files { image: base, backing: None, data: None };
            let opened = subject.open(files, &inner).await.map_err(said)?;
            // It is opened already, and the engine takes it as it is.
            (opened, Config { backing: Backing::Raw, ..config })
        }
        _ => (base, config),
    };
    let files = Files { image, backing: Some(below.clone()), data: None };
    let node = subject.open(files, &above).await.map_err(said)?;
    Ok((node, below))
}

/// The job, and what its command does after it.
async fn job(task: Task, node: Arc<dyn Node>, below: Arc<dyn Node>) -> Result<(), String> {
    let top = Root::new(node.clone());
    match task {
        Task::Commit => {
            let base = Root::new(below);
            commit(&top, &base, &Silent, &Unpaced).await.map_err(|e| e.to_string())?;
            node.make_empty().await.map_err(|e| e.to_string())?;
        }
        Task::Rebase => {
            let nothing = NewBacking { root: None, below: None };
            rebase(&top, nothing, Store::Plain, &Silent).await.map_err(|e| e.to_string())?;
            node.change_backing(None, None).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Every cut of both files.
fn judge(
    lab: &mut Lab,
    seed: u64,
    task: Task,
    config: &Config,
    built: &Built,
    history: &History,
) -> Result<(), Failure> {
    let layered = Layered { below: lab.subject.clone(), task };
    let allowed = Allowed::after_cut(&Model::new(&built.guest, &[]), 0, 1);
    let backing = built.backing.as_deref();
    let case = Case { config, backing, shortest: built.guest.len(), leaks_max: u64::MAX };
    every_cut(lab, history, &Cuts { subject: &layered, case, allowed, seed }, &mut |_| {})
}
