//! Work that nobody waits for any more: dropping a future stops the waiting, not the work.
//!
//! What was begun holds things (ranges of a lock, clusters) that must not be let go of before its I/O has ended. So an
//! abandoned future becomes an orphan, and whoever waits next drives it beside its own work. Nothing is spawned.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::request::{BoxFuture, Completion, Op};

/// The orphans of one node or edge. Cloning gives another handle on the same ones.
#[derive(Clone, Default)]
pub struct Orphans(Arc<Shared>);

#[derive(Default)]
struct Shared {
    list: Mutex<Vec<BoxFuture<Completion>>>,
    count: AtomicUsize,
    /// Requests that wait, and could drive orphans.
    waiters: Mutex<Vec<(u64, Waker)>>,
    next_waiter: AtomicU64,
}

/// What happens to work whose future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// It goes on as an orphan, if it was ever polled.
    Kept,
    /// It ends.
    Dropped,
}

impl Orphans {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) == 0
    }

    /// The work, which drives orphans while it waits: they may hold what it waits for.
    pub fn attend(
        &self,
        work: impl Future<Output = Completion> + Send + 'static,
        abandoned: Abandoned,
    ) -> Op {
        let id = self.0.next_waiter.fetch_add(1, Ordering::Relaxed);
        let orphans = self.clone();
        Op::wait(Attended { orphans, id, work: Some(Box::pin(work)), abandoned, started: false })
    }

    /// Work whose I/O is on its way already, kept even if it was never polled, which drives orphans while it waits: its I/O
    /// may wait for theirs.
    pub fn attend_started(&self, work: BoxFuture<Completion>) -> Op {
        let id = self.0.next_waiter.fetch_add(1, Ordering::Relaxed);
        let abandoned = Abandoned::Kept;
        Op::wait(Attended { orphans: self.clone(), id, work: Some(work), abandoned, started: true })
    }

    /// Does the work, and drives orphans while it waits: for work that is no request, and ends when it is dropped.
    pub async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        let waiter = Waiter { orphans: self, id: self.0.next_waiter.fetch_add(1, Ordering::Relaxed) };
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            self.await_them(waiter.id, cx.waker());
            self.poll(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Drives all orphans to their end.
    pub async fn settle(&self) {
        let none_left = || if self.is_empty() { Poll::Ready(()) } else { Poll::Pending };
        self.beside(std::future::poll_fn(|_| none_left())).await;
    }

    fn await_them(&self, id: u64, waker: &Waker) {
        let mut waiters = self.0.waiters.lock();
        match waiters.iter_mut().find(|(other, _)| *other == id) {
            Some((_, known)) => known.clone_from(waker),
            None => waiters.push((id, waker.clone())),
        }
    }

    /// A waiter is gone. It may have been the one that orphans would wake, so the others take over.
    fn leave(&self, id: u64) {
        self.0.waiters.lock().retain(|(other, _)| *other != id);
        if !self.is_empty() {
            self.wake();
        }
    }

    fn wake(&self) {
        self.0.waiters.lock().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// Takes over work that nobody waits for any more, and wakes those who can drive it.
    fn adopt(&self, work: BoxFuture<Completion>) {
        {
            let mut list = self.0.list.lock();
            list.push(work);
            self.0.count.store(list.len(), Ordering::Relaxed);
        }
        self.wake();
    }

    fn poll(&self, cx: &mut Context<'_>) {
        if self.is_empty() {
            return;
        }
        let mut taken = std::mem::take(&mut *self.0.list.lock());
        taken.retain_mut(|orphan| orphan.as_mut().poll(cx).is_pending());
        let none_left = {
            let mut list = self.0.list.lock();
            list.append(&mut taken);
            self.0.count.store(list.len(), Ordering::Relaxed);
            list.is_empty()
        };
        if none_left {
            // Who settles waits for just that.
            self.wake();
        }
    }
}

/// Somebody who waits, and drives orphans.
struct Waiter<'a> {
    orphans: &'a Orphans,
    id: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.orphans.leave(self.id);
    }
}

/// A request on its way.
struct Attended {
    orphans: Orphans,
    id: u64,
    work: Option<BoxFuture<Completion>>,
    abandoned: Abandoned,
    started: bool,
}

impl Future for Attended {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        self.started = true;
        // Known as a waiter first: whoever abandons work from now on wakes this one.
        self.orphans.await_them(self.id, cx.waker());
        self.orphans.poll(cx);
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
        if let (Some(work), Abandoned::Kept, true) = (self.work.take(), self.abandoned, self.started) {
            self.orphans.adopt(work);
        }
        self.orphans.leave(self.id);
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
        let (orphans, gate, done) = (Orphans::default(), Arc::default(), Arc::default());
        let Op::Wait(mut first) = orphans.attend(work(&gate, &done), Abandoned::Kept) else {
            panic!("it waits")
        };
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(first);
        assert!(!orphans.is_empty());
        gate.store(true, Ordering::Relaxed);
        now(orphans.attend(std::future::ready(Completion::done(Bufs::none())), Abandoned::Kept).finish());
        assert!(done.load(Ordering::Relaxed) && orphans.is_empty());
    }

    #[test]
    fn what_never_began_is_gone() {
        let (orphans, gate, done) = (Orphans::default(), Arc::new(AtomicBool::new(true)), Arc::default());
        drop(orphans.attend(work(&gate, &done), Abandoned::Kept));
        now(orphans.settle());
        assert!(orphans.is_empty() && !done.load(Ordering::Relaxed));
    }
}
