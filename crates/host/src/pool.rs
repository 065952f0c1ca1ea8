//! A small pool of threads for calls that may wait where io_uring is not to be had.
//!
//! Nothing exists until the first job. Threads are added while jobs wait and none is idle, up to
//! [`THREADS_MAX`]; a thread that had nothing to do for a while ends. When [`QUEUE_MAX`] jobs wait, the
//! submitter runs its job itself: that bounds the queue and can never deadlock.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::slot::{Receipt, slot};

/// Most threads: enough to keep a fast disk's queue busy, few enough not to crowd two cores.
const THREADS_MAX: usize = 16;
/// Most jobs that wait; more than any tool keeps in flight.
const QUEUE_MAX: usize = 256;
/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Stack of a pool thread in bytes: jobs are system calls.
const STACK_BYTES: usize = 128 << 10;

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { queue: VecDeque::new(), threads: 0, idle: 0 });
static WORK: Condvar = Condvar::new();

/// Runs `job` on a pool thread; the receipt resolves to its result.
pub(crate) fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Receipt<T> {
    let (done, receipt) = slot();
    spawn(Box::new(move || done.complete(job())));
    receipt
}

/// Runs `job` on a pool thread, or here when the queue is full or the host gives no thread.
fn spawn(job: Job) {
    let mut pool = POOL.lock();
    if pool.queue.len() >= QUEUE_MAX {
        drop(pool);
        return job();
    }
    pool.queue.push_back(job);
    if pool.queue.len() <= pool.idle {
        WORK.notify_one();
        return;
    }
    if pool.threads < THREADS_MAX {
        pool.threads += 1;
        drop(pool);
        let builder = std::thread::Builder::new().name("cowbell-io".into()).stack_size(STACK_BYTES);
        if builder.spawn(work).is_ok() {
            return;
        }
        pool = POOL.lock();
        pool.threads -= 1;
    }
    let stranded = if pool.threads == 0 { pool.queue.pop_front() } else { None };
    drop(pool);
    if let Some(job) = stranded {
        job();
    }
}

fn work() {
    let mut pool = POOL.lock();
    loop {
        while let Some(job) = pool.queue.pop_front() {
            drop(pool);
            job();
            pool = POOL.lock();
        }
        pool.idle += 1;
        let timed_out = WORK.wait_for(&mut pool, IDLE).timed_out();
        pool.idle -= 1;
        if timed_out && pool.queue.is_empty() {
            pool.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn many_jobs_all_run_and_the_queue_stays_bounded() {
        let ran = Arc::new(AtomicUsize::new(0));
        let receipts: Vec<_> = (0..2000)
            .map(|i| {
                let ran = ran.clone();
                run(move || {
                    ran.fetch_add(1, Ordering::Relaxed);
                    i
                })
            })
            .collect();
        let sum: usize = crate::exec::block_on(async {
            let mut sum = 0;
            for receipt in receipts {
                sum += receipt.await;
            }
            sum
        });
        assert_eq!((sum, ran.load(Ordering::Relaxed)), (2000 * 1999 / 2, 2000));
        assert!(POOL.lock().threads <= THREADS_MAX);
    }
}
