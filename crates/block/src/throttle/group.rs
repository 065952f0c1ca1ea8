//! Groups of throttled nodes: shared limits, and turns.
//!
//! Reads and changes queue apart, though a limit may count both. In each queue the members take turns, so that a node
//! with many requests does not hold up one with few; a member's own requests keep their order. One waiting request of
//! a queue is *next*: it alone watches the clock, and passes the role on when it goes or gives up.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::bucket::Buckets;
use super::limits::Limits;
use crate::outside::Time;
use crate::request::BoxFuture;

/// Whether a request reads or changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// Limits that several nodes keep together. Cloning gives another handle.
#[derive(Clone)]
pub struct ThrottleGroup(Arc<Shared>);

struct Shared {
    name: String,
    limits: Limits,
    time: Arc<dyn Time>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buckets: Buckets,
    queues: [Queue; 2],
    last_member: u64,
    last_ticket: u64,
}

/// The requests of one direction that wait.
#[derive(Default)]
struct Queue {
    /// By member, in the order they came. No member is there without requests.
    waiting: BTreeMap<u64, VecDeque<Waiting>>,
    /// Whose request went last.
    turn: u64,
    /// Member and ticket of the request that watches the clock: there is one whenever somebody waits.
    next: Option<(u64, u64)>,
}

struct Waiting {
    ticket: u64,
    waker: Option<Waker>,
}

impl ThrottleGroup {
    /// A group that nobody belongs to yet, and the time that it obeys.
    pub fn new(name: &str, limits: Limits, time: Arc<dyn Time>) -> Self {
        Self(Arc::new(Shared { name: name.to_owned(), limits, time, state: Mutex::default() }))
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A new member.
    pub(super) fn join(&self) -> Member {
        let mut state = self.0.state.lock();
        state.last_member += 1;
        Member { group: self.clone(), id: state.last_member }
    }
}

/// Groups by name. Cloning is cheap.
#[derive(Clone, Default)]
pub struct ThrottleGroups(Arc<BTreeMap<String, ThrottleGroup>>);

impl ThrottleGroups {
    /// Adds a group, in place of one with its name.
    pub fn add(&mut self, group: ThrottleGroup) {
        Arc::make_mut(&mut self.0).insert(group.name().to_owned(), group);
    }

    /// The group of this name.
    pub fn get(&self, name: &str) -> Option<ThrottleGroup> {
        self.0.get(name).cloned()
    }
}

/// One node's place in a group.
pub(super) struct Member {
    group: ThrottleGroup,
    id: u64,
}

impl Member {
    pub(super) fn group(&self) -> &ThrottleGroup {
        &self.group
    }

    /// Lets a request of `bytes` pass at once (`None`), or gives it a place in the line.
    pub(super) fn admit(&self, direction: Direction, bytes: u64) -> Option<Turn> {
        let shared = &self.group.0;
        if shared.limits.is_unlimited() {
            return None;
        }
        let now_ns = shared.time.now_ns();
        let mut state = shared.state.lock();
        if state.queue(direction).waiting.is_empty()
            && state.try_pass(&shared.limits, direction, bytes, now_ns) == 0
        {
            state.queue(direction).turn = self.id;
            return None;
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        let queue = state.queue(direction);
        queue.waiting.entry(self.id).or_default().push_back(Waiting { ticket, waker: None });
        queue.elect();
        let place = Place { member: self.id, ticket };
        Some(Turn { shared: shared.clone(), direction, bytes, place: Some(place), sleep: None })
    }
}

impl State {
    fn queue(&mut self, direction: Direction) -> &mut Queue {
        &mut self.queues[direction as usize]
    }

    /// Counts the request if it need not wait. Returns the nanoseconds that it has to.
    fn try_pass(&mut self, limits: &Limits, direction: Direction, bytes: u64, now_ns: u64) -> u64 {
        self.buckets.leak(limits, now_ns);
        let wait = self.buckets.wait_ns(limits, direction);
        if wait == 0 {
            self.buckets.pour(limits, direction, bytes);
        }
        wait
    }
}

impl Queue {
    /// Chooses who is next, if nobody is: the first request of the member after the one whose turn it was.
    fn elect(&mut self) {
        if self.next.is_some() {
            return;
        }
        let after = self.waiting.range_mut(self.turn + 1..).next().map(|(member, _)| *member);
        let member = after.or_else(|| self.waiting.keys().next().copied());
        let Some(member) = member else { return };
        let first = self.waiting.get_mut(&member).and_then(|line| line.front_mut());
        let first = first.expect("a member that is listed has requests");
        self.next = Some((member, first.ticket));
        if let Some(waker) = first.waker.take() {
            waker.wake();
        }
    }

    fn leave(&mut self, place: Place) {
        if let Some(line) = self.waiting.get_mut(&place.member) {
            line.retain(|waiting| waiting.ticket != place.ticket);
            if line.is_empty() {
                self.waiting.remove(&place.member);
            }
        }
        if self.next == Some((place.member, place.ticket)) {
            self.next = None;
        }
        self.elect();
    }
}

#[derive(Clone, Copy)]
struct Place {
    member: u64,
    ticket: u64,
}

/// Waits until a request may pass. Dropped before that, it leaves the line.
#[must_use = "futures do nothing unless polled"]
pub(super) struct Turn {
    shared: Arc<Shared>,
    direction: Direction,
    bytes: u64,
    /// `None` when it has passed.
    place: Option<Place>,
    sleep: Option<BoxFuture<()>>,
}

impl Turn {
    /// Whether the request passes now; if not, `sleep` is what it waits for, unless others are before it.
    fn try_pass(&mut self, place: Place, cx: &mut Context<'_>) -> bool {
        let now_ns = self.shared.time.now_ns();
        let mut state = self.shared.state.lock();
        let queue = state.queue(self.direction);
        if queue.next != Some((place.member, place.ticket)) {
            let line = queue.waiting.get_mut(&place.member).into_iter().flatten();
            if let Some(waiting) = line.into_iter().find(|waiting| waiting.ticket == place.ticket) {
                waiting.waker = Some(cx.waker().clone());
            }
            return false;
        }
        let wait = state.try_pass(&self.shared.limits, self.direction, self.bytes, now_ns);
        if wait > 0 {
            self.sleep = Some(self.shared.time.sleep_until(now_ns.saturating_add(wait)));
            return false;
        }
        let queue = state.queue(self.direction);
        queue.turn = place.member;
        queue.leave(place);
        true
    }
}

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let place = self.place.expect("not polled after completion");
        loop {
            if let Some(sleep) = &mut self.sleep {
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.sleep = None;
            }
            if self.try_pass(place, cx) {
                self.place = None;
                return Poll::Ready(());
            }
            if self.sleep.is_none() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.shared.state.lock().queue(self.direction).leave(place);
        }
    }
}
