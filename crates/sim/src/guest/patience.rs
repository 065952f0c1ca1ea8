//! Waiting with an end: how work comes to be abandoned.

use std::pin::Pin;
use std::task::{Context, Poll};

use cowbell_block::request::Completion;

/// Waits for a completion, for so many polls at most.
pub(super) struct Patience<F> {
    pub working: Pin<Box<F>>,
    pub polls: Option<u8>,
}

impl<F: Future<Output = Completion>> Future for Patience<F> {
    type Output = Option<Completion>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Completion>> {
        if self.polls == Some(0) {
            return Poll::Ready(None);
        }
        if let Poll::Ready(completion) = self.working.as_mut().poll(cx) {
            return Poll::Ready(Some(completion));
        }
        match &mut self.polls {
            Some(1) => Poll::Ready(None),
            Some(left) => {
                *left -= 1;
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }
}
