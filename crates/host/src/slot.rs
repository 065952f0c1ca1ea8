//! The hand-over of one result from whoever produces it to the future that waits for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

enum State<T> {
    Pending(Option<Waker>),
    Ready(T),
    /// The producer went away without a result, or the result was taken.
    Gone,
}

/// The producer's end.
pub(crate) struct Completer<T>(Arc<Mutex<State<T>>>);

/// The waiter's end: a future. Dropping it stops the waiting, not the work.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Receipt<T>(Arc<Mutex<State<T>>>);

/// Two ends of one hand-over.
pub(crate) fn slot<T>() -> (Completer<T>, Receipt<T>) {
    let state = Arc::new(Mutex::new(State::Pending(None)));
    (Completer(state.clone()), Receipt(state))
}

impl<T> Completer<T> {
    /// Delivers the result and wakes the waiter.
    pub(crate) fn complete(self, value: T) {
        self.set(State::Ready(value));
    }

    fn set(&self, next: State<T>) {
        let previous = std::mem::replace(&mut *self.0.lock(), next);
        if let State::Pending(Some(waker)) = previous {
            waker.wake();
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        let pending = matches!(*self.0.lock(), State::Pending(_));
        if pending {
            self.set(State::Gone);
        }
    }
}

impl<T> Future for Receipt<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Pending(waker) => {
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => match std::mem::replace(&mut *state, State::Gone) {
                State::Ready(value) => Poll::Ready(value),
                _ => panic!("a worker of the host died, or its result was taken twice"),
            },
        }
    }
}
