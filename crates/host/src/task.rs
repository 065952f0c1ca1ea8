//! Many futures in flight on one thread.
//!
//! A task spawned here is polled by the `block_on` of the same thread, whenever its own waker was called;
//! it need not be `Send`. Tasks that are not finished when `block_on` returns go on in the next one, and end
//! with the thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::exec::Local;

/// Starts `future` on this thread. Dropping the handle lets it run on alone.
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let state = Rc::new(RefCell::new(Join::Running(None)));
    let result = state.clone();
    let task = Box::pin(async move {
        let output = future.await;
        let previous = std::mem::replace(&mut *result.borrow_mut(), Join::Finished(output));
        if let Join::Running(Some(waker)) = previous {
            waker.wake();
        }
    });
    Local::with(|local| local.tasks.add(task));
    JoinHandle(state)
}

/// Waits for a task; resolves to its output.
#[must_use = "drop it explicitly to let the task run on alone"]
pub struct JoinHandle<T>(Rc<RefCell<Join<T>>>);

enum Join<T> {
    Running(Option<Waker>),
    Finished(T),
    Taken,
}

impl<T> JoinHandle<T> {
    /// Whether the task has ended and its output was not taken.
    pub fn is_finished(&self) -> bool {
        matches!(*self.0.borrow(), Join::Finished(_))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.borrow_mut();
        if let Join::Running(waker) = &mut *state {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, Join::Taken) {
            Join::Finished(output) => Poll::Ready(output),
            _ => panic!("a task's output was taken twice"),
        }
    }
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one thread.
pub(crate) struct Tasks {
    slots: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Arc<Ready>,
}

struct Task {
    /// Absent while it is being polled.
    future: Option<LocalFuture>,
    /// Woken while it was being polled, seen by a nested `block_on` that could not poll it.
    missed: bool,
    handle: Arc<Handle>,
}

/// Tasks to poll, filled by wakers on any thread.
struct Ready {
    queue: Mutex<VecDeque<Arc<Handle>>>,
    thread: Waker,
}

struct Handle {
    index: usize,
    queued: AtomicBool,
    done: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        if self.done.load(Ordering::SeqCst) || self.queued.swap(true, Ordering::SeqCst) {
            return;
        }
        let ready = self.ready.clone();
        ready.queue.lock().push_back(self);
        ready.thread.wake_by_ref();
    }
}

impl Tasks {
    /// No tasks; `thread` wakes the executor.
    pub(crate) fn new(thread: Waker) -> Self {
        let ready = Arc::new(Ready { queue: Mutex::default(), thread });
        Self { slots: RefCell::default(), free: RefCell::default(), ready }
    }

    fn add(&self, future: LocalFuture) {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or(slots.len());
        let (queued, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let handle = Arc::new(Handle { index, queued, done, ready: self.ready.clone() });
        let task = Some(Task { future: Some(future), missed: false, handle: handle.clone() });
        if index == slots.len() {
            slots.push(task);
        } else {
            slots[index] = task;
        }
        drop(slots);
        handle.wake();
    }

    /// Polls every task that was woken before this call.
    pub(crate) fn run_ready(&self) {
        let count = self.ready.queue.lock().len();
        for _ in 0..count {
            let Some(handle) = self.ready.queue.lock().pop_front() else { return };
            self.poll(handle);
        }
    }

    fn poll(&self, handle: Arc<Handle>) {
        handle.queued.store(false, Ordering::SeqCst);
        let Some(mut future) = self.take(&handle) else { return };
        let waker = Waker::from(handle.clone());
        let pending = future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        let mut slots = self.slots.borrow_mut();
        if pending {
            let task = slots[handle.index].as_mut().expect("only a finished task leaves its slot");
            task.future = Some(future);
            if std::mem::take(&mut task.missed) {
                drop(slots);
                handle.wake();
            }
            return;
        }
        handle.done.store(true, Ordering::SeqCst);
        slots[handle.index] = None;
        drop(slots);
        self.free.borrow_mut().push(handle.index);
    }
}

impl Tasks {
    /// The future to poll, unless the wake-up is stale or the task runs further up on this very stack.
    fn take(&self, handle: &Arc<Handle>) -> Option<LocalFuture> {
        let mut slots = self.slots.borrow_mut();
        let task = slots[handle.index].as_mut().filter(|task| Arc::ptr_eq(&task.handle, handle))?;
        task.missed = task.future.is_none();
        task.future.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::block_on;
    use crate::pool;

    #[test]
    fn tasks_run_side_by_side_and_are_joined() {
        let sum: u32 = block_on(async {
            let tasks: Vec<_> =
                (0..50).map(|i| spawn_local(async move { pool::run(move || i).await })).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        });
        assert_eq!(sum, 49 * 50 / 2);
    }

    #[test]
    fn a_detached_task_goes_on_in_the_next_block_on() {
        let flag = Rc::new(RefCell::new(0));
        let seen = flag.clone();
        let task = spawn_local(async move {
            pool::run(|| std::thread::sleep(std::time::Duration::from_millis(10))).await;
            *seen.borrow_mut() += 1;
        });
        block_on(async {});
        assert_eq!(*flag.borrow(), 0);
        block_on(task);
        assert_eq!(*flag.borrow(), 1);
    }
}
