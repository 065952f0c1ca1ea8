//! A fair lock over ranges of numbers, shared or exclusive.
//!
//! Order is first come, first served: a request waits for every conflicting one that holds the lock *or asked
//! for it earlier*, so that nothing starves and two overlapping requests run in the order of their submission.
//! A request takes all its ranges at once (it has one), so there are no deadlocks between requests.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Whether others may hold overlapping ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// The lock over all ranges of one thing.
#[derive(Clone, Default)]
pub struct RangeLock(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next_ticket: u64,
    held: Vec<Entry>,
    queue: VecDeque<Entry>,
}

struct Entry {
    ticket: u64,
    range: Range<u64>,
    mode: LockMode,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, range: &Range<u64>, mode: LockMode) -> bool {
        self.range.start < range.end
            && range.start < self.range.end
            && (self.mode == LockMode::Exclusive || mode == LockMode::Exclusive)
    }
}

impl RangeLock {
    /// A lock that nobody holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `range` if nobody holds or awaits a conflicting one.
    pub fn try_lock(&self, range: Range<u64>, mode: LockMode) -> Option<RangeGuard> {
        let mut table = self.0.lock();
        let blocked = table.held.iter().chain(&table.queue).any(|e| e.conflicts(&range, mode));
        if blocked {
            return None;
        }
        let ticket = table.issue();
        table.held.push(Entry { ticket, range, mode, waker: None });
        drop(table);
        Some(RangeGuard { lock: self.clone(), ticket })
    }

    /// Takes `range`, waiting in line. The place in the line is taken by this call, not by the first poll.
    pub fn lock(&self, range: Range<u64>, mode: LockMode) -> RangeLockFuture {
        let mut table = self.0.lock();
        let ticket = table.issue();
        table.queue.push_back(Entry { ticket, range, mode, waker: None });
        drop(table);
        RangeLockFuture { lock: self.clone(), ticket, waiting: true }
    }

    /// Number of holders and waiters: zero when quiet.
    pub fn in_use(&self) -> usize {
        let table = self.0.lock();
        table.held.len() + table.queue.len()
    }
}

impl Table {
    fn issue(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Wakes every waiter that nothing before it blocks any more.
    fn wake_ready(&mut self) {
        for i in 0..self.queue.len() {
            if self.is_ready(i)
                && let Some(waker) = self.queue[i].waker.take()
            {
                waker.wake();
            }
        }
    }

    fn is_ready(&self, index: usize) -> bool {
        let Entry { range, mode, .. } = &self.queue[index];
        let blocks = |e: &Entry| e.conflicts(range, *mode);
        !self.held.iter().any(blocks) && !self.queue.iter().take(index).any(blocks)
    }
}

/// Waits for a range; resolves to the guard.
#[must_use = "futures do nothing unless polled"]
pub struct RangeLockFuture {
    lock: RangeLock,
    ticket: u64,
    waiting: bool,
}

impl Future for RangeLockFuture {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RangeGuard> {
        let lock = self.lock.clone();
        let mut table = lock.0.lock();
        let ticket = self.ticket;
        let index =
            table.queue.iter().position(|e| e.ticket == ticket).expect("polled before it was granted");
        if !table.is_ready(index) {
            table.queue[index].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut entry = table.queue.remove(index).expect("the index was just found");
        entry.waker = None;
        table.held.push(entry);
        drop(table);
        self.waiting = false;
        Poll::Ready(RangeGuard { lock, ticket })
    }
}

impl Drop for RangeLockFuture {
    fn drop(&mut self) {
        if self.waiting {
            let mut table = self.lock.0.lock();
            table.queue.retain(|e| e.ticket != self.ticket);
            table.wake_ready();
        }
    }
}

/// Holds a range until dropped.
#[must_use = "the range is free again as soon as the guard is dropped"]
pub struct RangeGuard {
    lock: RangeLock,
    ticket: u64,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut table = self.lock.0.lock();
        let index = table.held.iter().position(|e| e.ticket == self.ticket).expect("a guard holds its entry");
        table.held.swap_remove(index);
        if !table.queue.is_empty() {
            table.wake_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{Exclusive, Shared};

    fn poll(future: &mut RangeLockFuture) -> Option<RangeGuard> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn shared_ranges_overlap_exclusive_ones_do_not() {
        let lock = RangeLock::new();
        let a = lock.try_lock(0..4, Shared).expect("free");
        let b = lock.try_lock(2..6, Shared).expect("shared");
        assert!(lock.try_lock(3..4, Exclusive).is_none());
        let c = lock.try_lock(6..7, Exclusive).expect("adjacent");
        drop((a, b, c));
        assert_eq!(lock.in_use(), 0);
    }

    #[test]
    fn waiters_are_served_in_order() {
        let lock = RangeLock::new();
        let first = lock.try_lock(0..2, Exclusive).expect("free");
        let mut second = lock.lock(1..3, Exclusive);
        let mut third = lock.lock(2..4, Shared);
        assert!(poll(&mut third).is_none(), "must not overtake the second");
        assert!(lock.try_lock(2..3, Shared).is_none(), "nor may a newcomer");
        drop(first);
        assert!(poll(&mut third).is_none());
        let guard = poll(&mut second).expect("first is gone");
        drop(guard);
        assert!(poll(&mut third).is_some());
    }

    #[test]
    fn an_abandoned_wait_leaves_the_line() {
        let lock = RangeLock::new();
        let first = lock.try_lock(0..1, Exclusive).expect("free");
        let second = lock.lock(0..1, Exclusive);
        let mut third = lock.lock(0..1, Exclusive);
        drop(second);
        drop(first);
        assert!(poll(&mut third).is_some());
        assert_eq!(lock.in_use(), 0);
    }
}
