//! Turns: pieces are written in the order in which they were taken.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

pub(super) struct Turns(Mutex<State>);

struct State {
    /// The number whose turn it is.
    now: u64,
    /// No turns any more: everybody may go on, and will see why.
    released: bool,
    waiting: Vec<(u64, Waker)>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { now: 0, released: false, waiting: Vec::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing inside can panic half way, so a poisoned lock holds a good state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all numbers below `number` have passed.
    pub(super) async fn wait(&self, number: u64) {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            if state.released || state.now == number {
                return Poll::Ready(());
            }
            match state.waiting.iter_mut().find(|(n, _)| *n == number) {
                Some((_, waker)) => waker.clone_from(cx.waker()),
                None => state.waiting.push((number, cx.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }

    /// Hands the turn to the next number.
    pub(super) fn pass(&self) {
        let mut state = self.state();
        state.now += 1;
        let now = state.now;
        if let Some(at) = state.waiting.iter().position(|(n, _)| *n == now) {
            state.waiting.swap_remove(at).1.wake();
        }
    }

    /// Lets everybody go on.
    pub(super) fn release_all(&self) {
        let mut state = self.state();
        state.released = true;
        state.waiting.drain(..).for_each(|(_, waker)| waker.wake());
    }
}
