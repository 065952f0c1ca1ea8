//! Threads that run tasks beside the caller's: one per core, for engines that compute.
//!
//! Nothing exists until the first task, and a thread that had nothing to do for a while ends. Each thread drives
//! its task with an executor of its own, so that tasks may read and write; a task that waits keeps its thread, which
//! is right for tasks that mostly compute.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use cowbell_block::BoxFuture;
use cowbell_block::spawn::{Spawn, Spawner};
use parking_lot::{Condvar, Mutex};

use crate::exec::block_on;

/// How long a thread waits for a task before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Stack of a worker in bytes: codecs keep their tables on the heap.
const STACK_BYTES: usize = 1 << 20;

struct Workers;

struct Queue {
    tasks: VecDeque<BoxFuture<()>>,
    threads: usize,
    idle: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { tasks: VecDeque::new(), threads: 0, idle: 0 });
static WORK: Condvar = Condvar::new();

/// Asked for once and late: the answer takes the system longer than a small program runs.
static WIDTH: OnceLock<usize> = OnceLock::new();

/// The way to all cores.
pub fn workers() -> Spawner {
    Arc::new(Workers)
}

impl Spawn for Workers {
    fn width(&self) -> usize {
        *WIDTH.get_or_init(|| available_parallelism().map_or(1, usize::from))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        let mut queue = QUEUE.lock();
        queue.tasks.push_back(task);
        if queue.tasks.len() <= queue.idle {
            WORK.notify_one();
            return;
        }
        if queue.threads >= self.width() {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let builder = std::thread::Builder::new().name("cowbell-work".into()).stack_size(STACK_BYTES);
        if builder.spawn(work).is_ok() {
            return;
        }
        // The host gives no thread. Without any, nobody but the caller can run what waits.
        let mut queue = QUEUE.lock();
        queue.threads -= 1;
        let stranded = if queue.threads == 0 { queue.tasks.pop_back() } else { None };
        drop(queue);
        if let Some(task) = stranded {
            block_on(task);
        }
    }
}

fn work() {
    let mut queue = QUEUE.lock();
    loop {
        while let Some(task) = queue.tasks.pop_front() {
            drop(queue);
            // The thread outlives a task that panics; whoever waits for the task learns it.
            let task = std::panic::AssertUnwindSafe(|| block_on(task));
            let _died = std::panic::catch_unwind(task);
            queue = QUEUE.lock();
        }
        queue.idle += 1;
        let timed_out = WORK.wait_for(&mut queue, IDLE).timed_out();
        queue.idle -= 1;
        if timed_out && queue.tasks.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowbell_block::spawn::run;

    #[test]
    fn tasks_run_on_threads_of_their_own() {
        let spawner = workers();
        let here = std::thread::current().id();
        let tasks: Vec<_> =
            (0..100).map(|i| run(&*spawner, async move { (i, std::thread::current().id()) })).collect();
        block_on(async {
            for (index, task) in tasks.into_iter().enumerate() {
                let (i, thread) = task.await;
                assert!(i == index && thread != here);
            }
        });
    }

    #[test]
    fn a_task_that_panics_takes_nobody_along() {
        let spawner = workers();
        let died = run(&*spawner, async { panic!("on purpose") });
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block_on(died)));
        assert!(waited.is_err());
        assert_eq!(block_on(run(&*spawner, async { 5 })), 5);
    }
}
