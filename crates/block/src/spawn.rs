//! Work beside the caller: how engines use all cores although they know no threads.
//!
//! Whoever opens an image may hand in a [`Spawner`]. Without one, or with one of width 1, everything is done where
//! it was asked for. A task is a future, so that it can read from nodes as well as compute; it must not wait for
//! another task of the same spawner, since all of them may run on one thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::request::BoxFuture;

/// Runs tasks beside whoever spawned them.
pub trait Spawn: Send + Sync {
    /// How many tasks make progress at once: more than one or two per core in flight only cost memory.
    fn width(&self) -> usize;

    /// Starts a task. It runs to its end whoever loses interest in it.
    fn spawn(&self, task: BoxFuture<()>);
}

/// The way to all cores that an engine is given.
pub type Spawner = Arc<dyn Spawn>;

/// Runs `work` beside the caller. It is under way at once; the future resolves to its output.
///
/// # Panics
/// Awaiting panics if `work` did.
pub fn run<T: Send + 'static>(
    spawner: &dyn Spawn,
    work: impl Future<Output = T> + Send + 'static,
) -> Running<T> {
    let place = Arc::new(Mutex::new(Place::Empty(None)));
    let end = End(place.clone());
    spawner.spawn(Box::pin(async move {
        let output = work.await;
        end.put(Place::Filled(output));
    }));
    Running(place)
}

/// The output of a task, once it is there. Dropping it lets the task run on.
#[must_use = "futures do nothing unless polled"]
pub struct Running<T>(Arc<Mutex<Place<T>>>);

enum Place<T> {
    Empty(Option<Waker>),
    Filled(T),
    /// The task died, or its output was taken.
    Gone,
}

/// The task's end of the hand-over.
struct End<T>(Arc<Mutex<Place<T>>>);

impl<T> End<T> {
    fn put(&self, next: Place<T>) {
        let previous = std::mem::replace(&mut *self.0.lock(), next);
        if let Place::Empty(Some(waker)) = previous {
            waker.wake();
        }
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        let unfinished = matches!(*self.0.lock(), Place::Empty(_));
        if unfinished {
            self.put(Place::Gone);
        }
    }
}

impl<T> Future for Running<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut place = self.0.lock();
        if let Place::Empty(waker) = &mut *place {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *place, Place::Gone) {
            Place::Filled(output) => Poll::Ready(output),
            _ => panic!("a task died, or its output was taken twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::now;

    /// Runs each task to its end where it is spawned.
    struct Here;

    impl Spawn for Here {
        fn width(&self) -> usize {
            1
        }

        fn spawn(&self, task: BoxFuture<()>) {
            now(task);
        }
    }

    /// Loses every task.
    struct Nowhere;

    impl Spawn for Nowhere {
        fn width(&self) -> usize {
            1
        }

        fn spawn(&self, task: BoxFuture<()>) {
            drop(task);
        }
    }

    #[test]
    fn a_task_hands_its_output_over() {
        assert_eq!(now(run(&Here, async { 6 * 7 })), 42);
    }

    #[test]
    #[should_panic(expected = "a task died")]
    fn a_lost_task_is_no_endless_wait() {
        now(run(&Nowhere, async { 1 }));
    }
}
