//! The seeded executor: one thread, and every choice of what happens next is explicit.
//!
//! At each step the enabled choices are: poll a ready task, let a submitted I/O take effect (*apply*), report
//! an I/O that took effect as *complete*. A [`Strategy`] picks one; the picks are recorded, so that any run can
//! be repeated from its list of choices. Choice 0 is always the plainest: run tasks first, then serve the oldest
//! I/O. A list of choices that ends early goes on with zeroes, so lists shrink by truncation.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::disk::{IoStep, SimDisk};
use crate::rng::{Rng, mix};

/// Polls without any I/O making progress before the run counts as a livelock.
const LIVELOCK_POLLS: u32 = 10_000;

/// Where the strategy has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Granularity {
    /// Everywhere: task polls, applications and completions.
    #[default]
    Full,
    /// Only between I/Os. Tasks run in order of their wake-ups, and an I/O is applied when it completes,
    /// unless another one in flight conflicts with it.
    IoPoints,
}

/// How the next step is picked.
#[derive(Clone, Debug)]
pub enum Strategy {
    /// Always the first choice.
    Fifo,
    /// Any choice with equal probability.
    Uniform(Rng),
    /// Random priorities with a few points of change.
    Pct(Pct),
    /// The first choice, but this I/O of the first disk waits until nothing else can happen.
    Stall(u32),
    /// The choices of an earlier run, then the first choice.
    Replay(Vec<u16>),
}

/// Probabilistic concurrency testing: each task and I/O gets a random priority at birth; at `depth - 1` random
/// steps whatever is on top falls to the bottom.
#[derive(Clone, Debug)]
pub struct Pct {
    seed: u64,
    changes: Vec<u64>,
    fallen: Vec<u64>,
}

impl Pct {
    /// For runs of about `steps` steps.
    pub fn new(rng: &mut Rng, depth: u32, steps: u64) -> Self {
        let changes = (1..depth).map(|_| rng.below(steps.max(1))).collect();
        Self { seed: rng.next_u64(), changes, fallen: Vec::new() }
    }

    fn pick(&mut self, step: u64, options: &[Choice]) -> usize {
        let top = self.top(options);
        if !self.changes.contains(&step) {
            return top;
        }
        self.fallen.push(options[top].actor());
        self.top(options)
    }

    fn top(&self, options: &[Choice]) -> usize {
        let rank = |choice: &Choice| {
            let actor = choice.actor();
            match self.fallen.iter().position(|f| *f == actor) {
                Some(position) => (0, mix(position as u64)),
                None => (1, mix(self.seed ^ actor)),
            }
        };
        (0..options.len()).max_by_key(|i| rank(&options[*i])).unwrap_or(0)
    }
}

/// Something that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Poll(u32),
    Io(u32, IoStep),
}

impl Choice {
    /// A number for the task or I/O behind the choice.
    fn actor(&self) -> u64 {
        match self {
            Self::Poll(task) => u64::from(*task),
            Self::Io(disk, step) => 1 << 40 | u64::from(*disk) << 32 | u64::from(step.io()),
        }
    }
}

/// Why a run ended before its tasks did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Requests are open and nothing can happen any more.
    Deadlock,
    /// Tasks run without end and do no I/O.
    Livelock,
    /// The step of the power cut was reached.
    Cut,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deadlock => "deadlock: requests are open and nothing is ready",
            Self::Livelock => "livelock: tasks are polled without end and no I/O completes",
            Self::Cut => "the power was cut",
        })
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct Ready {
    list: Vec<u32>,
    queued: Vec<bool>,
}

struct TaskWaker {
    task: u32,
    ready: Arc<Mutex<Ready>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let mut ready = self.ready.lock();
        if !ready.queued[self.task as usize] {
            ready.queued[self.task as usize] = true;
            ready.list.push(self.task);
        }
    }
}

/// One simulated world: tasks, disks, and a strategy that decides.
pub struct World {
    tasks: Vec<Option<Task>>,
    wakers: Vec<Waker>,
    ready: Arc<Mutex<Ready>>,
    disks: Vec<SimDisk>,
    strategy: Strategy,
    granularity: Granularity,
    options: Vec<Choice>,
    steps: Vec<IoStep>,
    /// Picks so far, only where there was more than one option.
    pub choices: Vec<u16>,
    /// How many options each pick had.
    pub counts: Vec<u16>,
    /// Whether the strategy is asked at all; otherwise it is always the first choice, unrecorded.
    pub exploring: bool,
    /// Step before which the power is cut.
    pub cut_at: Option<u64>,
    clock: crate::disk::Clock,
    idle_polls: u32,
    live: usize,
}

impl World {
    /// A world around `disks`, which share one clock.
    pub fn new(disks: Vec<SimDisk>, strategy: Strategy, granularity: Granularity) -> Self {
        let clock = disks.first().map_or_else(Default::default, |d| d.clock());
        Self {
            tasks: Vec::new(),
            wakers: Vec::new(),
            ready: Arc::default(),
            disks,
            strategy,
            granularity,
            options: Vec::new(),
            steps: Vec::new(),
            choices: Vec::new(),
            counts: Vec::new(),
            exploring: true,
            cut_at: None,
            clock,
            idle_polls: 0,
            live: 0,
        }
    }

    /// Adds a task; it is ready at once.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        let id = self.tasks.len() as u32;
        self.tasks.push(Some(Box::pin(task)));
        self.wakers.push(Waker::from(Arc::new(TaskWaker { task: id, ready: self.ready.clone() })));
        self.live += 1;
        let mut ready = self.ready.lock();
        ready.queued.push(true);
        ready.list.push(id);
    }

    /// Runs until every task has finished and no I/O is in flight.
    ///
    /// # Errors
    /// When the run cannot go on, or the power was cut. Tasks left over are dropped with the world.
    pub fn run(&mut self) -> Result<(), Stop> {
        self.idle_polls = 0;
        loop {
            self.collect();
            if self.options.is_empty() {
                return if self.live == 0 { Ok(()) } else { Err(Stop::Deadlock) };
            }
            if self.cut_at.is_some_and(|cut| self.clock.now() >= cut) {
                return Err(Stop::Cut);
            }
            let index = self.pick();
            self.clock.tick();
            match self.options[index] {
                Choice::Poll(task) => self.poll(task)?,
                Choice::Io(disk, step) => {
                    self.idle_polls = 0;
                    self.disks[disk as usize].step(step);
                }
            }
        }
    }

    /// Runs one future to its end, with everything else that is going on.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn block_on<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> Result<T, Stop> {
        let slot = std::rc::Rc::new(std::cell::Cell::new(None));
        let result = slot.clone();
        self.spawn(async move { result.set(Some(future.await)) });
        self.run()?;
        slot.take().ok_or(Stop::Deadlock)
    }

    fn collect(&mut self) {
        self.options.clear();
        self.options.extend(self.ready.lock().list.iter().map(|t| Choice::Poll(*t)));
        if self.granularity == Granularity::IoPoints && !self.options.is_empty() {
            self.options.truncate(1);
            return;
        }
        for (number, disk) in self.disks.iter().enumerate() {
            self.steps.clear();
            disk.enabled(self.granularity, &mut self.steps);
            self.options.extend(self.steps.iter().map(|s| Choice::Io(number as u32, *s)));
        }
    }

    fn pick(&mut self) -> usize {
        let count = self.options.len();
        if count == 1 || !self.exploring {
            return 0;
        }
        let position = self.choices.len();
        let index = match &mut self.strategy {
            Strategy::Fifo => 0,
            Strategy::Uniform(rng) => rng.below(count as u64) as usize,
            Strategy::Stall(io) => {
                let stalled = |choice: &Choice| matches!(choice, Choice::Io(0, step) if step.io() == *io);
                self.options.iter().position(|c| !stalled(c)).unwrap_or(0)
            }
            Strategy::Pct(pct) => pct.pick(position as u64, &self.options),
            Strategy::Replay(list) => list.get(position).map_or(0, |c| usize::from(*c)).min(count - 1),
        };
        self.choices.push(index as u16);
        self.counts.push(count as u16);
        index
    }

    fn poll(&mut self, task: u32) -> Result<(), Stop> {
        {
            let mut ready = self.ready.lock();
            ready.queued[task as usize] = false;
            ready.list.retain(|t| *t != task);
        }
        self.idle_polls += 1;
        if self.idle_polls > LIVELOCK_POLLS {
            return Err(Stop::Livelock);
        }
        let Some(future) = &mut self.tasks[task as usize] else { return Ok(()) };
        let waker = self.wakers[task as usize].clone();
        if let Poll::Ready(()) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.tasks[task as usize] = None;
            self.live -= 1;
        }
        Ok(())
    }
}

/// Depth-first enumeration of all schedules of something that can be run again and again.
#[derive(Default)]
pub struct DepthFirst {
    prefix: Vec<u16>,
}

impl DepthFirst {
    /// The strategy for the next run.
    pub fn strategy(&self) -> Strategy {
        Strategy::Replay(self.prefix.clone())
    }

    /// The choices the next run begins with.
    pub fn prefix(&self) -> &[u16] {
        &self.prefix
    }

    /// Learns what the run did. False when there is no schedule left.
    pub fn advance(&mut self, world: &World) -> bool {
        self.advance_from(&world.choices, &world.counts)
    }

    /// Like [`DepthFirst::advance`], from the recorded lists.
    pub fn advance_from(&mut self, choices: &[u16], counts: &[u16]) -> bool {
        let last = (0..choices.len()).rev().find(|i| choices[*i] + 1 < counts[*i]);
        let Some(last) = last else { return false };
        self.prefix.clear();
        self.prefix.extend_from_slice(&choices[..last]);
        self.prefix.push(choices[last] + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    async fn yield_now() {
        let mut done = false;
        std::future::poll_fn(|cx| {
            if done {
                return Poll::Ready(());
            }
            done = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn run(strategy: Strategy) -> (Vec<u32>, World) {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut world = World::new(Vec::new(), strategy, Granularity::Full);
        for task in 0..3 {
            let order = order.clone();
            world.spawn(async move {
                order.borrow_mut().push(task);
                yield_now().await;
                order.borrow_mut().push(task);
            });
        }
        world.run().expect("nothing blocks");
        let order = order.borrow().clone();
        (order, world)
    }

    #[test]
    fn depth_first_finds_every_interleaving() {
        let mut search = DepthFirst::default();
        let mut seen = Vec::new();
        loop {
            let (order, world) = run(search.strategy());
            seen.push(order);
            if !search.advance(&world) {
                break;
            }
        }
        seen.sort();
        let runs = seen.len();
        seen.dedup();
        assert_eq!((runs, seen.len()), (90, 90), "6! / (2! 2! 2!) orders, each once");
    }

    #[test]
    fn a_seed_repeats_and_its_choices_replay_it() {
        let (first, world) = run(Strategy::Uniform(Rng::new(3)));
        assert_eq!(run(Strategy::Uniform(Rng::new(3))).0, first);
        assert_eq!(run(Strategy::Replay(world.choices)).0, first);
        let mut rng = Rng::new(5);
        let pct = Pct::new(&mut rng, 3, 10);
        assert_eq!(run(Strategy::Pct(pct.clone())).0, run(Strategy::Pct(pct)).0);
    }

    #[test]
    fn stalls_are_errors() {
        let mut world = World::new(Vec::new(), Strategy::Fifo, Granularity::Full);
        world.spawn(std::future::pending());
        assert_eq!(world.run(), Err(Stop::Deadlock));
        let mut world = World::new(Vec::new(), Strategy::Fifo, Granularity::Full);
        world.spawn(async {
            loop {
                yield_now().await;
            }
        });
        assert_eq!(world.run(), Err(Stop::Livelock));
    }
}
