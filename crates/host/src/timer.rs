//! Sleeping without a thread: timers of the local executor.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use cowbell_block::{BoxFuture, Time};

use crate::exec::{Local, Until};

/// Resolves after `duration`. Must be awaited under [`block_on`](crate::exec::block_on).
pub fn sleep(duration: Duration) -> Sleep {
    // A duration beyond what the clock can count is as good as a century.
    let century = Duration::from_secs(100 * 365 * 86400);
    let now = Instant::now();
    Sleep { deadline: now.checked_add(duration).unwrap_or(now + century) }
}

/// The future of [`sleep`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        Local::with(|local| {
            assert!(local.is_driven(), "a timer needs the local executor");
            local.timers.borrow_mut().add(self.deadline, cx.waker());
        });
        Poll::Pending
    }
}

/// The clock that never goes back, and sleeping by it. Sleepers must be awaited under
/// [`block_on`](crate::exec::block_on).
pub fn time() -> Arc<dyn Time> {
    Arc::new(Monotonic { start: Instant::now() })
}

struct Monotonic {
    start: Instant,
}

impl Time for Monotonic {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn sleep_until(&self, at_ns: u64) -> BoxFuture<()> {
        Box::pin(sleep(Duration::from_nanos(at_ns.saturating_sub(self.now_ns()))))
    }
}

/// The timers set on one thread.
///
/// A timer that nobody waits for any more wakes its task once for nothing; that is cheaper than taking it out.
#[derive(Default)]
pub(crate) struct Timers {
    set: BTreeMap<(Instant, u64), Waker>,
    last: u64,
}

impl Timers {
    fn add(&mut self, deadline: Instant, waker: &Waker) {
        let mut same_time = self.set.range((deadline, 0)..=(deadline, u64::MAX));
        if same_time.any(|(_, w)| w.will_wake(waker)) {
            return;
        }
        self.last += 1;
        self.set.insert((deadline, self.last), waker.clone());
    }

    /// Wakes what is due, and says when the next one will be.
    pub(crate) fn expire(&mut self) -> Until {
        let Some((&(first, _), _)) = self.set.first_key_value() else { return Until::Woken };
        let now = Instant::now();
        if first > now {
            return Until::Deadline(first);
        }
        let later = self.set.split_off(&(now, u64::MAX));
        for waker in std::mem::replace(&mut self.set, later).into_values() {
            waker.wake();
        }
        Until::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::block_on;
    use crate::task::spawn_local;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn timers_fire_in_order_of_their_time() {
        let order = Rc::new(RefCell::new(Vec::new()));
        block_on(async {
            let tasks: Vec<_> = [30, 10, 20]
                .map(|ms| {
                    let order = order.clone();
                    spawn_local(async move {
                        sleep(Duration::from_millis(ms)).await;
                        order.borrow_mut().push(ms);
                    })
                })
                .into();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*order.borrow(), [10, 20, 30]);
    }
}
