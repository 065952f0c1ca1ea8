//! Commits and rebases under random schedules, beside a guest that reads: what the guest sees never changes, whenever the
//! power is cut, with unflushed writes of both files lost, torn or reordered.
//!
//! | job | the file behind | what the guest's sectors may come from after a cut |
//! |---|---|---|
//! | commit, then emptying | is written to | the image, else the file behind as the same cut left it |
//! | rebase to nothing, then the new header | stays as it was | the image, else the file behind while the header names it |

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use cowbell_block::Root;
use cowbell_block::node::Node;
use cowbell_jobs::commit::commit;
use cowbell_jobs::rebase::{NewBacking, Store, rebase};
use cowbell_jobs::{Silent, Unpaced};

use crate::bitmaps::Bitmaps;
use crate::config::{Backing, Config, Prestate};
use crate::crash::{CrashSet, Depth};
use crate::disk::{Clock, History, SimDisk};
use crate::exec::{Granularity, Strategy, World};
use crate::guest::{Guest, GuestSetup};
use crate::image::Built;
use crate::judge::{Allowed, Case, Failure};
use crate::lab::Lab;
use crate::model::Model;
use crate::pool::{Content, Pool, ZERO};
use crate::rng::{Concern, Rng};
use crate::session::empty_states;
use crate::subject::{Files, ImageBytes, Inspection, Source, Subject};
use crate::timeline::Timeline;

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
        for (sector, source) in inspection.guest.iter_mut().enumerate() {
            if *source == Source::Behind {
                *source = match self.task {
                    Task::Commit => Source::Data(sector as u32),
                    Task::Rebase if is_named => Source::Behind,
                    Task::Rebase => Source::Fixed(ZERO),
                };
            }
        }
        inspection
    }
}

/// The world of a seed. Without snapshots: what they see of the file behind changes with it.
fn world_of(rng: &mut Rng) -> (Task, Config) {
    let task = if rng.one_in(3) { Task::Rebase } else { Task::Commit };
    let config = Config {
        version: if rng.one_in(4) { 2 } else { 3 },
        cluster_bits: *rng.pick(&[9, 10, 12]),
        sectors: *rng.pick(&[33, 40, 72]),
        backing: *rng.pick(&[Backing::Raw, Backing::Shorter, Backing::Longer]),
        prestate: *rng.pick(&[Prestate::Fresh, Prestate::Half, Prestate::Full, Prestate::Compressed]),
        lazy: rng.one_in(4),
        l2_slice_bytes: 512,
        ..Config::default()
    };
    let mut config = Config { lazy: config.lazy && config.version == 3, ..config };
    config.legalise();
    (task, config)
}

/// Runs the job of a seed, and looks at every cut.
///
/// # Errors
/// What the first oracle that disagrees says.
pub fn run(lab: &mut Lab, seed: u64) -> Result<(), Failure> {
    lab.tidy();
    let mut rng = Rng::stream(seed, Concern::Workload);
    let (task, config) = world_of(&mut rng);
    let about = |failure: Failure| {
        let what = format!("{task:?} of seed {seed} ({}): {}", config.to_text(), failure.what);
        Failure::new(failure.oracle, what)
    };
    let built = lab.built(&config);
    let (history, base) = work(lab, seed, task, &config, &built).map_err(about)?;
    if task == Task::Commit {
        let differs = |sector: &usize| base.get(*sector).copied().unwrap_or(ZERO) != built.guest[*sector];
        if let Some(sector) = (0..built.guest.len()).find(differs) {
            return Err(about(Failure::new("O2", format!("sector {sector} was not committed"))));
        }
    }
    judge(lab, seed, task, &config, &built, &history).map_err(about)
}

/// Everything that happened to the files, and what the file behind holds at the end.
fn work(
    lab: &mut Lab,
    seed: u64,
    task: Task,
    config: &Config,
    built: &Built,
) -> Result<(History, Vec<Content>), Failure> {
    let (clock, host) = (Clock::default(), config.host.clone());
    let disk = |name: &'static str, content: &[Content], len: u64| {
        SimDisk::new(name, &lab.pool, &clock, content, len, host.clone(), Rng::new(seed))
    };
    let image = disk("image", &built.image.sectors, built.image.len);
    let base = disk("backing", &built.backing_file.sectors, built.backing_file.len);
    if task == Task::Rebase {
        base.set_read_only();
    }
    let strategy = Strategy::Uniform(Rng::stream(seed, Concern::Schedule));
    let mut world = World::new(vec![image.clone(), base.clone()], strategy, Granularity::Full);
    let guest = Guest::new(GuestSetup {
        subject: lab.subject.clone(),
        config: config.clone(),
        disk: image.clone(),
        backing: None,
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
    let below = base.node();
    let files = Files { image: image.node(), backing: Some(below.clone()), data: None };
    let stopped = |stop: crate::exec::Stop| Failure::new("O11", stop.to_string());
    let failed = |error: String| Failure::new("O7", error);
    let opened = world.block_on(lab.subject.open(files, config)).map_err(stopped)?;
    let node = opened.map_err(|error| failed(error.to_string()))?;
    let reader = (guest.clone(), node.clone());
    world.spawn(async move {
        for _ in 0..3 {
            reader.0.read_all(&*reader.1).await;
        }
    });
    // With everything else that is going on; nobody reads any more when the image is closed.
    let done = world.block_on(job(task, node.clone(), below)).map_err(stopped)?;
    done.map_err(failed)?;
    let closed = world.block_on(async move { node.close().await }).map_err(stopped)?;
    closed.map_err(|error| failed(error.to_string()))?;
    if let Some(failure) = guest.failure.borrow_mut().take() {
        return Err(failure);
    }
    if base.forbidden() > 0 {
        return Err(Failure::new("O9", "a rebase tried to change the backing file"));
    }
    let content = base.content().0;
    let history = match task {
        Task::Commit => image.end_history().beside(base.end_history()),
        Task::Rebase => image.end_history(),
    };
    Ok((history, content))
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
    let mut rng = Rng::stream(seed, Concern::Crash);
    let mut pool = lab.pool.lock();
    let judge = &mut lab.judge;
    let mut timeline = Timeline::new(history);
    judge.begin_run();
    loop {
        let barrier = timeline.next_barrier();
        timeline.advance(barrier.map_or(u64::MAX, |barrier| barrier - 1));
        let mut set = CrashSet::new(&timeline, &pool, config.host.atom);
        judge.begin_cut();
        judge.adopt(&mut set);
        let mut failure = None;
        let _ = set.enumerate(Depth::QUICK, &mut rng, &mut |set| match judge
            .state(&layered, &case, &mut pool, set, &allowed)
        {
            Ok(_) => ControlFlow::Continue(()),
            Err(found) => {
                failure = Some(found);
                ControlFlow::Break(())
            }
        });
        if let Some(found) = failure {
            let at = barrier.map_or("at the end".to_owned(), |barrier| format!("before step {barrier}"));
            return Err(Failure::new(found.oracle, format!("cut {at}: {}", found.what)));
        }
        match barrier {
            Some(barrier) => timeline.advance(barrier),
            None => return Ok(()),
        }
    }
}
