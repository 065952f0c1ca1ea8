//! Work that must not stop half way: it goes on when its submitter loses interest.
//!
//! Dropping a request's future stops the waiting, not the work. A node that is about to leave something half done
//! hands its future to [`Kept::attend`]; if the result is dropped on the way, the future stays here, and whoever
//! waits at this node next drives it: it may hold what they wait for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::request::{BoxFuture, Completion, Op};

/// The abandoned work of one node. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Kept(Arc<Shared>);

#[derive(Default)]
struct Shared {
    orphans: Mutex<Vec<BoxFuture<Completion>>>,
    count: AtomicUsize,
    /// Who waits at this node, and could drive orphans.
    waiters: Mutex<Vec<(u64, Waker)>>,
    next_waiter: AtomicU64,
}

impl Kept {
    /// Nothing abandoned yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for `work`, which goes on if the waiting ends once it has begun.
    pub fn attend(&self, work: impl Future<Output = Completion> + Send + 'static) -> Op {
        let id = self.0.next_waiter.fetch_add(1, Ordering::Relaxed);
        let kept = self.0.clone();
        Op::wait(Attended { kept, id, work: Some(Box::pin(work)), started: false })
    }

    /// Whether abandoned work waits to be finished.
    pub fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Acquire) == 0
    }

    /// Finishes abandoned work.
    pub fn settle(&self) -> Settled {
        let id = self.0.next_waiter.fetch_add(1, Ordering::Relaxed);
        Settled { kept: self.0.clone(), id }
    }
}

impl Shared {
    fn register(&self, id: u64, waker: &Waker) {
        let mut waiters = self.waiters.lock();
        match waiters.iter_mut().find(|(other, _)| *other == id) {
            Some((_, known)) => known.clone_from(waker),
            None => waiters.push((id, waker.clone())),
        }
    }

    /// A waiter is gone. It may have been the one that orphans would wake, so the others take over.
    fn leave(&self, id: u64) {
        let mut waiters = self.waiters.lock();
        waiters.retain(|(other, _)| *other != id);
        if self.count.load(Ordering::Acquire) != 0 {
            waiters.iter().for_each(|(_, waker)| waker.wake_by_ref());
        }
    }

    fn adopt(&self, work: BoxFuture<Completion>) {
        let mut orphans = self.orphans.lock();
        orphans.push(work);
        self.count.store(orphans.len(), Ordering::Release);
        drop(orphans);
        self.waiters.lock().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    fn drive(&self, cx: &mut Context<'_>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        // Outside of the lock: what is driven may abandon work of its own.
        let mut orphans = std::mem::take(&mut *self.orphans.lock());
        orphans.retain_mut(|orphan| orphan.as_mut().poll(cx).is_pending());
        let mut kept = self.orphans.lock();
        kept.append(&mut orphans);
        self.count.store(kept.len(), Ordering::Release);
    }
}

/// Work that somebody waits for.
struct Attended {
    kept: Arc<Shared>,
    id: u64,
    work: Option<BoxFuture<Completion>>,
    started: bool,
}

impl Future for Attended {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        self.started = true;
        // Known as a waiter first: whoever abandons work from now on wakes this one.
        self.kept.register(self.id, cx.waker());
        self.kept.drive(cx);
        let work = self.work.as_mut().expect("not polled after completion");
        let result = work.as_mut().poll(cx);
        if result.is_ready() {
            self.work = None;
        }
        result
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if let (Some(work), true) = (self.work.take(), self.started) {
            self.kept.adopt(work);
        }
        self.kept.leave(self.id);
    }
}

/// The future of [`Kept::settle`].
#[must_use = "futures do nothing unless polled"]
pub struct Settled {
    kept: Arc<Shared>,
    id: u64,
}

impl Future for Settled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.kept.register(self.id, cx.waker());
        self.kept.drive(cx);
        match self.kept.count.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        self.kept.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::buf::Bufs;
    use crate::testing::now;

    /// Ready when told so; notes when it has ended.
    fn work(gate: &Arc<AtomicBool>, done: &Arc<AtomicBool>) -> impl Future<Output = Completion> + use<> {
        let (gate, done) = (gate.clone(), done.clone());
        async move {
            std::future::poll_fn(|cx| match gate.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            })
            .await;
            done.store(true, Ordering::Relaxed);
            Completion::done(Bufs::none())
        }
    }

    #[test]
    fn what_has_begun_goes_on_and_others_drive_it() {
        let (kept, gate, done) = (Kept::new(), Arc::default(), Arc::default());
        let Op::Wait(mut first) = kept.attend(work(&gate, &done)) else { panic!("it waits") };
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(first);
        assert!(!kept.is_empty());
        gate.store(true, Ordering::Relaxed);
        now(kept.attend(std::future::ready(Completion::done(Bufs::none()))).finish());
        assert!(done.load(Ordering::Relaxed) && kept.is_empty());
    }

    #[test]
    fn what_never_began_is_gone() {
        let (kept, gate, done) = (Kept::new(), Arc::new(AtomicBool::new(true)), Arc::default());
        drop(kept.attend(work(&gate, &done)));
        now(kept.settle());
        assert!(kept.is_empty() && !done.load(Ordering::Relaxed));
    }
}
