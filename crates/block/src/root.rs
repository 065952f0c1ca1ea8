//! Where requests are born: the gate that admits them, and draining.
//!
//! A guest device, an export, a job or a tool holds a [`Root`]. The gate is here and nowhere else: what is
//! admitted, and all it causes below, is never held up again, so draining cannot deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::child::Child;
use crate::error::ErrorKind;
use crate::node::Node;
use crate::request::{Completion, Flags, Op, Request};

/// A user of the graph.
#[derive(Clone)]
pub struct Root(Arc<Shared>);

struct Shared {
    child: Child,
    requests: AtomicU64,
    gate: Mutex<Gate>,
    /// Requests admitted and not finished. Changed under no lock; `gate` is taken only when it is closed.
    in_flight: AtomicU64,
    closed: AtomicU64,
}

#[derive(Default)]
struct Gate {
    waiting: Vec<Waker>,
    draining: Vec<Waker>,
}

impl Root {
    /// A root above `node`.
    pub fn new(node: Arc<dyn Node>) -> Self {
        Self(Arc::new(Shared {
            child: Child::new(node),
            requests: AtomicU64::new(0),
            gate: Mutex::default(),
            in_flight: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        }))
    }

    /// The node below.
    pub fn node(&self) -> Arc<dyn Node> {
        self.0.child.node()
    }

    /// The edge to the node below.
    pub fn child(&self) -> &Child {
        &self.0.child
    }

    /// Starts a request, or holds it until the gate opens. Numbers it, unless its cause has a number already.
    pub fn submit(&self, request: Request) -> Op {
        self.submit_with(request, Flags::empty())
    }

    /// [`Root::submit`] with what the user's mode adds to the request, which is not told as asked for.
    pub fn submit_with(&self, mut request: Request, added: Flags) -> Op {
        if request.cause.request == 0 {
            request.cause.request = self.0.requests.fetch_add(1, Ordering::Relaxed) + 1;
        }
        if request.flags.contains(Flags::COMPRESSED) && !self.node().compresses() {
            return Op::failed(request.bufs, ErrorKind::Unsupported);
        }
        let user = self.identity();
        let Some(ticket) = self.admit() else {
            let root = self.clone();
            return Op::wait(async move {
                let ticket = root.admitted().await;
                let completion = root.0.child.submit_for(user, request, added).finish().await;
                drop(ticket);
                completion
            });
        };
        match self.0.child.submit_for(user, request, added) {
            Op::Done(completion) => Op::Done(completion),
            Op::Wait(future) => Op::wait(async move {
                let completion: Completion = future.await;
                drop(ticket);
                completion
            }),
        }
    }

    /// A number that no other root has as long as this one lives, for logs.
    pub fn identity(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }

    /// Requests admitted and not finished.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Closes the gate and waits until nothing is in flight. The gate opens again when the guard is dropped.
    pub async fn drain(&self) -> DrainGuard {
        let guard = self.close_gate();
        self.quiet().await;
        guard
    }

    /// Closes the gate; nested closings add up.
    pub fn close_gate(&self) -> DrainGuard {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
        DrainGuard(self.clone())
    }

    /// Waits until nothing is in flight.
    pub async fn quiet(&self) {
        std::future::poll_fn(|cx| {
            let mut gate = self.0.gate.lock();
            if self.in_flight() == 0 {
                return Poll::Ready(());
            }
            gate.draining.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn admit(&self) -> Option<Ticket> {
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket(self.clone());
        // Counted first and looked second: a drain that closes in between sees the count.
        (self.0.closed.load(Ordering::SeqCst) == 0).then_some(ticket)
    }

    async fn admitted(&self) -> Ticket {
        std::future::poll_fn(|cx| {
            let mut gate = self.0.gate.lock();
            if self.0.closed.load(Ordering::SeqCst) != 0 {
                gate.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            drop(gate);
            match self.admit() {
                Some(ticket) => Poll::Ready(ticket),
                None => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Counts one request in flight.
struct Ticket(Root);

impl Drop for Ticket {
    fn drop(&mut self) {
        let left = self.0.0.in_flight.fetch_sub(1, Ordering::SeqCst) - 1;
        if left == 0 && self.0.0.closed.load(Ordering::SeqCst) != 0 {
            let waiters = std::mem::take(&mut self.0.0.gate.lock().draining);
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

/// Keeps a root's gate closed while it lives.
#[must_use = "the gate opens again as soon as the guard is dropped"]
pub struct DrainGuard(Root);

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.0.0.closed.fetch_sub(1, Ordering::SeqCst) == 1 {
            let waiters = std::mem::take(&mut self.0.0.gate.lock().waiting);
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}
