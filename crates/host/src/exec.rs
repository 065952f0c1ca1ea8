//! The local executor: futures run on the thread that waits for them.
//!
//! [`block_on`] polls its future, then whatever was [spawned](crate::task::spawn_local) on this thread; when
//! nothing is ready it hands the thread's queued requests to the kernel and sleeps until a completion, a timer
//! or a wake-up from another thread. No thread, ring or descriptor exists before it is needed, so that a
//! program whose requests all meet the page cache pays for none of it.
//!
//! ```text
//!            wake (any thread)                      wake: futex or eventfd
//!   IDLE ───────────────────▶ NOTIFIED ◀──────────── PARKED / IN_RING
//!     ▲  cleared before a poll   │                        ▲
//!     └──────────────────────────┘                        │ nothing ready
//!     └───────────────────────────────────────────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::thread::futex;

use crate::lane::{Finished, Job};
use crate::ring::{Reaped, Ring};
use crate::slot::Completer;
use crate::task::Tasks;
use crate::timer::Timers;

/// Runs `future` to its end on this thread.
///
/// A request finds the thread's ring only if it is submitted *inside* the future: what is submitted before this
/// is called goes to the pool. A signal that arrives while the thread sleeps makes the future be polled again,
/// so that it can look at [the flags](crate::signal).
///
/// Requests to the ring that were started here are finished when this returns, also when it panics. A nested
/// call is allowed; it runs the tasks and timers of the outer one too.
pub fn block_on<F: Future>(future: F) -> F::Output {
    LOCAL.with(|local| {
        let _entered = Entered::new(local);
        let mut future = pin!(future);
        let mut cx = Context::from_waker(&local.waker);
        loop {
            local.parker.clear();
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
            local.tasks.run_ready();
            local.turn();
        }
    })
}

thread_local! {
    static LOCAL: Local = Local::new();
}

/// What one thread needs to run futures.
pub(crate) struct Local {
    depth: Cell<u32>,
    parker: Arc<Parker>,
    waker: Waker,
    ring: RefCell<Option<Ring>>,
    /// Completions between reaping and delivery; kept for its memory.
    reaped: Cell<Vec<Reaped>>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) tasks: Tasks,
}

impl Local {
    fn new() -> Self {
        let parker = Arc::new(Parker::default());
        let waker = Waker::from(parker.clone());
        let tasks = Tasks::new(waker.clone());
        let timers = RefCell::default();
        Self {
            depth: Cell::new(0),
            parker,
            waker,
            ring: RefCell::default(),
            reaped: Cell::default(),
            timers,
            tasks,
        }
    }

    /// Calls `f` with this thread's state.
    pub(crate) fn with<T>(f: impl FnOnce(&Local) -> T) -> T {
        LOCAL.with(f)
    }

    /// Whether a `block_on` drives this thread.
    pub(crate) fn is_driven(&self) -> bool {
        self.depth.get() > 0
    }

    /// Lets the world move: submits, sleeps if nothing is ready, and delivers what came.
    fn turn(&self) {
        let now_or_later = self.timers.borrow_mut().expire();
        let notified = self.parker.is_notified();
        let mut ring = self.ring.borrow_mut();
        if let Some(ring) = ring.as_mut().filter(|ring| ring.in_flight() > 0) {
            let mut reaped = self.reaped.take();
            if notified || !self.parker.enter_ring() {
                ring.poll(&mut reaped);
            } else {
                let woken = ring.wait(self.parker.event(), now_or_later.timeout(), &mut reaped);
                self.parker.leave_ring(woken);
            }
            return self.deliver(reaped);
        }
        drop(ring);
        if !notified {
            self.parker.park(now_or_later.timeout());
        }
    }

    /// Wakes the waiters, with the ring free again: a waker may submit.
    fn deliver(&self, mut reaped: Vec<Reaped>) {
        for (done, finished) in reaped.drain(..) {
            done.complete(finished);
        }
        self.reaped.set(reaped);
    }
}

/// Queues `job` on this thread's ring; gives it back when nobody drives the thread or there is no ring.
pub(crate) fn submit_to_ring(job: Job, done: Completer<Finished>) -> Result<(), (Job, Completer<Finished>)> {
    LOCAL.with(|local| {
        if !local.is_driven() {
            return Err((job, done));
        }
        // The ring is borrowed only while wakers run in `drain` of a dying thread: then the pool serves.
        let Ok(mut ring) = local.ring.try_borrow_mut() else { return Err((job, done)) };
        if ring.is_none() {
            *ring = Ring::new();
        }
        match ring.as_mut() {
            Some(ring) => ring.push(job, done),
            None => Err((job, done)),
        }
    })
}

/// One level of `block_on`.
struct Entered<'a>(&'a Local);

impl<'a> Entered<'a> {
    fn new(local: &'a Local) -> Self {
        local.depth.set(local.depth.get() + 1);
        Self(local)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let local = self.0;
        local.depth.set(local.depth.get() - 1);
        if local.is_driven() {
            // The inner level may have taken notice of a wake-up that was meant for the outer one.
            return local.parker.notify();
        }
        let mut reaped = local.reaped.take();
        if let Some(ring) = local.ring.borrow_mut().as_mut() {
            ring.drain(&mut reaped);
        }
        local.deliver(reaped);
    }
}

const IDLE: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;
const IN_RING: u32 = 3;

/// Puts a thread to sleep and wakes it.
#[derive(Default)]
struct Parker {
    state: AtomicU32,
    event: OnceLock<OwnedFd>,
}

impl Parker {
    fn clear(&self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }

    fn is_notified(&self) -> bool {
        self.state.load(Ordering::SeqCst) == NOTIFIED
    }

    fn notify(&self) {
        match self.state.swap(NOTIFIED, Ordering::SeqCst) {
            // Failure would mean that nobody waits there.
            PARKED => {
                let _nobody = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
            }
            IN_RING => {
                if let Some(event) = self.event.get() {
                    // Failure means that the counter is full, so the waiter is being woken already.
                    let _full = rustix::io::write(event, &1u64.to_ne_bytes());
                }
            }
            _ => {}
        }
    }

    fn park(&self, timeout: Option<Duration>) {
        if self.state.compare_exchange(IDLE, PARKED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        let timeout = timeout.map(|t| futex::Timespec {
            tv_sec: t.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        // An interruption, a time-out and a wake-up all end the same way: the caller polls again.
        let _why = futex::wait(&self.state, futex::Flags::PRIVATE, PARKED, timeout.as_ref());
        self.clear();
    }

    /// The descriptor that ends a wait in the ring.
    fn event(&self) -> RawFd {
        let event = self.event.get_or_init(|| {
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .expect("the process may open one descriptor more")
        });
        event.as_raw_fd()
    }

    /// Announces a wait in the ring; fails when a wake-up came first.
    fn enter_ring(&self) -> bool {
        self.event();
        self.state.compare_exchange(IDLE, IN_RING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn leave_ring(&self, woken: bool) {
        self.clear();
        if woken && let Some(event) = self.event.get() {
            // Takes the wake-up out of the counter, so that the next wait sleeps. One that is written only
            // now, by a thread that was slow between notifying and writing, ends the next wait for nothing.
            let _empty = rustix::io::read(event, &mut [0u8; 8]);
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

/// When to stop sleeping.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// A timer just fired.
    Now,
    /// The next timer's time.
    Deadline(Instant),
    /// No timer is set.
    Woken,
}

impl Until {
    fn timeout(self) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::Deadline(at) => Some(at.saturating_duration_since(Instant::now())),
            Self::Woken => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pool, timer};

    #[test]
    fn a_ready_future_needs_nothing() {
        assert_eq!(block_on(async { 7 }), 7);
        Local::with(|local| assert!(local.ring.borrow().is_none() && local.parker.event.get().is_none()));
    }

    #[test]
    fn a_pool_thread_wakes_the_sleeper() {
        let start = Instant::now();
        let answer = block_on(pool::run(|| {
            std::thread::sleep(Duration::from_millis(20));
            42
        }));
        assert_eq!(answer, 42);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn nested_calls_do_not_lose_wakeups() {
        let value = block_on(async {
            let outer = pool::run(|| 1);
            let inner = block_on(pool::run(|| 2));
            timer::sleep(Duration::from_millis(5)).await;
            outer.await + inner
        });
        assert_eq!(value, 3);
    }
}
