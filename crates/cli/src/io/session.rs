//! The open image, the requests in flight, and what is printed where.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use cowbell_block::{Completion, ErrorKind, Node, Op, Operation, Request};
use cowbell_host::task::JoinHandle;
use cowbell_host::{spawn_local, terminal};

use super::opening::{self, Settings};
use crate::context::Context as Surroundings;
use crate::open::{CloseError, Image};
use crate::out::Printer;

/// Tells what came of a request.
type Tell = Box<dyn FnOnce()>;

/// One run of the tool.
pub(super) struct Session<'a> {
    pub(super) cx: &'a Surroundings,
    /// Buffers are placed badly on purpose.
    pub(super) misalign: bool,
    image: Option<Image>,
    /// The node on top is the filter that the user did not name (`-C`).
    copies_on_read: bool,
    printer: Printer,
    /// Somebody watches: each command's output is shown at once.
    live: bool,
    in_flight: Vec<JoinHandle<()>>,
    /// How to tell about requests that are done.
    finished: Rc<RefCell<Vec<Tell>>>,
}

/// How the session goes on after a command.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct After {
    pub(super) failed: bool,
    pub(super) quit: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(cx: &'a Surroundings, misalign: bool) -> Self {
        Self {
            cx,
            misalign,
            image: None,
            copies_on_read: false,
            printer: cx.printer.clone(),
            live: terminal::stdout_is_terminal(),
            in_flight: Vec::new(),
            finished: Rc::default(),
        }
    }

    /// Prints to standard output.
    pub(super) fn put(&self, text: &str) {
        self.printer.put(text);
    }

    /// A handle for requests that print when they are done.
    pub(super) fn printer(&self) -> Printer {
        self.printer.clone()
    }

    /// Shows what was printed.
    pub(super) fn flush(&self) {
        self.printer.flush();
    }

    /// Shows what was printed if somebody watches.
    pub(super) fn flush_if_live(&self) {
        if self.live {
            self.flush();
        }
    }

    /// The open image.
    pub(super) fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// The node that the user named.
    pub(super) fn named_node(&self) -> Option<Arc<dyn Node>> {
        let node = self.image()?.node();
        if self.copies_on_read { node.primary() } else { Some(node) }
    }

    /// The open image, writable.
    pub(super) fn image_mut(&mut self) -> Option<&mut Image> {
        self.image.as_mut()
    }

    /// Opens an image in place of none.
    ///
    /// # Errors
    /// `can't open device NAME: REASON`.
    pub(super) async fn open(&mut self, name: &str, settings: &Settings) -> Result<()> {
        self.image = Some(opening::open(self.cx, name, settings).await?);
        self.copies_on_read = settings.copies_on_read();
        Ok(())
    }

    /// Closes the image after its requests are done.
    ///
    /// # Errors
    /// What could not be written.
    pub(super) async fn close(&mut self) -> Result<(), CloseError> {
        self.wait_for_all().await;
        match self.image.take() {
            Some(image) => image.close().await,
            None => Ok(()),
        }
    }

    /// Submits a request to the open image.
    pub(super) fn submit(&self, request: Request) -> Op {
        let image = self.image().expect("commands that send requests need an open image");
        // Storage grows by writes, but not by a user's.
        let on_disk = matches!(
            request.op,
            Operation::Read | Operation::Write | Operation::WriteZeroes | Operation::Discard
        );
        if on_disk && request.end() > image.node().len() {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        image.submit(request)
    }

    /// Sends a request and waits for it. Requests in flight get their turn first, as they were sent first.
    pub(super) async fn request(&self, request: Request) -> Completion {
        self.give_turns().await;
        self.submit(request).finish().await
    }

    /// Keeps a request in flight while the session goes on.
    ///
    /// It goes as far as it can at once, so that whatever it announces or locks comes before the next command. What
    /// came of it is told later: when the session waits for something, never in the middle of a command.
    pub(super) fn start(&mut self, op: Op, then: impl FnOnce(Completion) + 'static) {
        self.in_flight.retain(|handle| !handle.is_finished());
        let mut request = Box::pin(op.finish());
        let first = request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let finished = self.finished.clone();
        self.in_flight.push(spawn_local(async move {
            let completion = match first {
                Poll::Ready(completion) => completion,
                Poll::Pending => request.await,
            };
            finished.borrow_mut().push(Box::new(move || then(completion)));
        }));
    }

    /// Tells what came of the requests that are done.
    pub(super) fn tell_finished(&self) {
        let finished = std::mem::take(&mut *self.finished.borrow_mut());
        finished.into_iter().for_each(|tell| tell());
    }

    /// Gives the requests in flight their turn, without telling about those that are done.
    pub(super) async fn let_requests_run(&self) {
        if !self.in_flight.is_empty() {
            let_others_run().await;
        }
    }

    /// Gives the requests in flight their turn: those that are done are told.
    pub(super) async fn give_turns(&self) {
        self.let_requests_run().await;
        self.tell_finished();
    }

    /// Whether so much is in flight that it is time to look after it.
    pub(super) fn is_crowded(&self) -> bool {
        self.in_flight.len() >= IN_FLIGHT_MAX
    }

    /// Waits until nothing is in flight.
    pub(super) async fn wait_for_all(&mut self) {
        for handle in std::mem::take(&mut self.in_flight) {
            handle.await;
            self.tell_finished();
        }
    }
}

/// Requests started by `aio_read` and `aio_write` that may be in flight without anybody looking: bounds the memory of
/// a long script.
const IN_FLIGHT_MAX: usize = 128;

/// Gives every task that is ready one turn.
async fn let_others_run() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
