//! Requests that wait for somebody to resume them, each alone: the others go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::Notice;
use crate::event::Suspension;

/// The suspended requests of one node.
pub(super) struct Suspended {
    list: Arc<Mutex<List>>,
    notice: Notice,
}

#[derive(Default)]
struct List {
    /// One per breakpoint hit, in that order: a request that hit several waits for as many resumes.
    entries: Vec<Entry>,
    next: u64,
    /// Those who wait for something to be suspended.
    watching: Vec<Waker>,
}

struct Entry {
    tag: String,
    /// The request; several entries may be of one.
    request: u64,
    waker: Option<Waker>,
}

impl Suspended {
    pub(super) fn new(notice: Notice) -> Self {
        Self { list: Arc::default(), notice }
    }

    /// Suspends the request that announces: it goes on when all of these are resumed.
    pub(super) fn suspend(&self, tags: Vec<String>) -> Suspension {
        let mut list = self.list.lock();
        let request = list.next;
        list.next += 1;
        for tag in tags {
            (self.notice)(&format!("blkdebug: Suspended request '{tag}'"));
            list.entries.push(Entry { tag, request, waker: None });
        }
        let watching = std::mem::take(&mut list.watching);
        drop(list);
        watching.into_iter().for_each(Waker::wake);
        Box::pin(Wait { list: self.list.clone(), request })
    }

    /// Resumes the youngest suspension of this name; whether there was one.
    pub(super) fn resume(&self, tag: &str) -> bool {
        let mut list = self.list.lock();
        let Some(at) = list.entries.iter().rposition(|entry| entry.tag == tag) else { return false };
        (self.notice)(&format!("blkdebug: Resuming request '{tag}'"));
        let entry = list.entries.remove(at);
        drop(list);
        if let Some(waker) = entry.waker {
            waker.wake();
        }
        true
    }

    /// Whether a request is suspended under this name; if not, `waker` is told when one is suspended.
    pub(super) fn is_suspended(&self, tag: &str, waker: &Waker) -> bool {
        let mut list = self.list.lock();
        if list.entries.iter().any(|entry| entry.tag == tag) {
            return true;
        }
        list.watching.push(waker.clone());
        false
    }

    /// The names under which requests are suspended.
    pub(super) fn tags(&self) -> Vec<String> {
        self.list.lock().entries.iter().map(|entry| entry.tag.clone()).collect()
    }
}

/// A request on hold. One that is given up is suspended no longer.
struct Wait {
    list: Arc<Mutex<List>>,
    request: u64,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut list = self.list.lock();
        let mut poll = Poll::Ready(());
        for entry in list.entries.iter_mut().filter(|entry| entry.request == self.request) {
            entry.waker = Some(cx.waker().clone());
            poll = Poll::Pending;
        }
        poll
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.list.lock().entries.retain(|entry| entry.request != self.request);
    }
}
