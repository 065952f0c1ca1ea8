//! The guest: issues the operations of a scenario, up to so many at a time, and holds each answer against the
//! reference disk.

mod life;
mod looks;
mod patience;
pub mod state;
mod tables;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use cowbell_block::node::Node;
use cowbell_block::request::{Cause, Flags, Request};
use cowbell_block::{Buf, Child, ErrorKind, Operation, Preallocation};

use patience::Patience;

use crate::bitmaps::Bitmaps;
use crate::config::{Config, Crypt};
use crate::disk::{Clock, SimDisk};
use crate::judge::{Allowed, Failure};
use crate::keys::{KeyRing, Keys};
use crate::model::{Model, Ticket};
use crate::pool::{Content, SECTOR, SharedPool, ZERO};
use crate::scenario::GuestOp;
use crate::stamp::{COMPRESSIBLE, Stamp};
use crate::subject::{Files, Subject};

/// The guest of one session. Shared by its tasks.
pub struct Guest {
    /// The reference disk.
    pub model: RefCell<Model>,
    /// The same for the VM state area, until the length of the disk changes.
    pub state: RefCell<Model>,
    state_until: Cell<u64>,
    /// The image, while it is open.
    pub node: RefCell<Option<Arc<dyn Node>>>,
    /// The first thing that went wrong.
    pub failure: RefCell<Option<Failure>>,
    /// Times at which a flush or a write with FUA completed.
    pub durable_times: RefCell<Vec<u64>>,
    /// Begin and end of every flush, and of every close, that succeeded.
    pub flushes: RefCell<Vec<(u64, u64)>>,
    /// Times at which nothing was under way.
    pub idle_times: RefCell<Vec<u64>>,
    /// Operations that ended.
    pub finished: Cell<u64>,
    /// Operations that failed.
    pub failed: Cell<u64>,
    /// Whether an image was given up without a close that succeeded.
    pub lost: Cell<bool>,
    abandoned: RefCell<Vec<Ticket>>,
    /// A change of snapshots or of the length is under way: one at a time, or nobody could say how long a snapshot is.
    changing_all: Cell<bool>,
    /// A change of snapshots or of the length failed, so nobody knows which there are, or how long the next would be.
    lost_track: Cell<bool>,
    /// What the bitmaps must say.
    bitmaps: RefCell<Bitmaps>,
    changing_bitmaps: Cell<bool>,
    /// Which passphrases open the image.
    keys: RefCell<KeyRing>,
    changing_keys: Cell<bool>,
    /// The image has other features than the configuration says.
    amended: Cell<bool>,
    /// It is being amended: whoever comes late is told to open it again.
    amending: Cell<bool>,
    /// Begin of each change of length, and the new length.
    resizes: RefCell<Vec<(u64, u64)>>,
    subject: Rc<dyn Subject>,
    config: Config,
    disk: SimDisk,
    backing: Option<SimDisk>,
    data: Option<SimDisk>,
    ops: Vec<GuestOp>,
    seed: u64,
    generation: u32,
    pool: SharedPool,
    clock: Clock,
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    next: usize,
    running: usize,
    barrier: bool,
    waiting: Vec<Waker>,
}

/// What a guest needs to know.
pub struct GuestSetup {
    /// What is under test.
    pub subject: Rc<dyn Subject>,
    /// The world.
    pub config: Config,
    /// The image file.
    pub disk: SimDisk,
    /// The backing file.
    pub backing: Option<SimDisk>,
    /// The data file.
    pub data: Option<SimDisk>,
    /// What to do.
    pub ops: Vec<GuestOp>,
    /// For the stamps.
    pub seed: u64,
    /// Restarts before.
    pub generation: u32,
    /// What the disk holds.
    pub values: Vec<Content>,
    /// What its snapshots hold.
    pub snapshots: Vec<Vec<Content>>,
    /// What the VM state area holds, and that of each snapshot.
    pub state: (Vec<Content>, Vec<Vec<Content>>),
    /// Its bitmaps.
    pub bitmaps: Bitmaps,
    /// The passphrases that open it.
    pub keys: Keys,
    /// All contents.
    pub pool: SharedPool,
}

impl Guest {
    /// A guest that has not started.
    pub fn new(setup: GuestSetup) -> Rc<Self> {
        Rc::new(Self {
            model: RefCell::new(Model::new(&setup.values, &setup.snapshots)),
            state: RefCell::new(Model::new(&setup.state.0, &setup.state.1)),
            state_until: Cell::new(u64::MAX),
            node: RefCell::new(None),
            failure: RefCell::new(None),
            durable_times: RefCell::default(),
            flushes: RefCell::default(),
            idle_times: RefCell::default(),
            finished: Cell::new(0),
            failed: Cell::new(0),
            lost: Cell::new(false),
            abandoned: RefCell::default(),
            changing_all: Cell::new(false),
            lost_track: Cell::new(false),
            amended: Cell::new(false),
            amending: Cell::new(false),
            bitmaps: RefCell::new(setup.bitmaps),
            changing_bitmaps: Cell::new(false),
            keys: RefCell::new(KeyRing::new(setup.keys)),
            changing_keys: Cell::new(false),
            resizes: RefCell::default(),
            clock: setup.disk.clock(),
            subject: setup.subject,
            config: setup.config,
            disk: setup.disk,
            backing: setup.backing,
            data: setup.data,
            ops: setup.ops,
            seed: setup.seed,
            generation: setup.generation,
            pool: setup.pool,
            queue: RefCell::default(),
        })
    }

    /// A step of its own for each thing that begins or ends, so that order is never in doubt.
    fn instant(&self) -> u64 {
        self.clock.tick();
        self.clock.now()
    }

    /// Remembers the first failure.
    pub fn fail(&self, failure: Failure) {
        self.failure.borrow_mut().get_or_insert(failure);
    }

    fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Whether errors have an excuse.
    fn was_faulted(&self) -> bool {
        let others = self.backing.iter().chain(&self.data);
        std::iter::once(&self.disk).chain(others).any(|disk| disk.faults_struck() > 0)
    }

    /// The files, as the subject gets them.
    fn files(&self) -> Files {
        let node = |disk: &Option<SimDisk>| disk.as_ref().map(SimDisk::node);
        Files { image: self.disk.node(), backing: node(&self.backing), data: node(&self.data) }
    }

    /// Opens the image.
    pub async fn open(self: Rc<Self>) {
        let opened = self.subject.open(self.files(), &self.config).await;
        match opened {
            Ok(node) => *self.node.borrow_mut() = Some(node),
            Err(_) if self.was_faulted() => self.lost.set(true),
            Err(error) => self.fail(Failure::new("O5", format!("the image does not open: {error}"))),
        }
    }

    /// One lane: takes operation after operation.
    pub async fn lane(self: Rc<Self>) {
        while let Some((number, op)) = self.take().await {
            if self.queue.borrow().running == 1 && self.abandoned.borrow().is_empty() {
                self.idle_times.borrow_mut().push(self.instant());
            }
            if !self.has_failed() {
                self.execute(number, &op).await;
                self.finished.set(self.finished.get() + 1);
            }
            self.done(op.holds_up_others());
        }
    }

    async fn take(&self) -> Option<(u32, GuestOp)> {
        std::future::poll_fn(|cx| {
            let mut queue = self.queue.borrow_mut();
            let Some(op) = self.ops.get(queue.next) else { return Poll::Ready(None) };
            if queue.barrier || op.waits_for_others() && queue.running > 0 {
                queue.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            queue.barrier = op.holds_up_others();
            queue.running += 1;
            queue.next += 1;
            Poll::Ready(Some((queue.next as u32, op.clone())))
        })
        .await
    }

    fn done(&self, held_up_others: bool) {
        let waiting = {
            let mut queue = self.queue.borrow_mut();
            queue.running -= 1;
            queue.barrier &= !held_up_others;
            std::mem::take(&mut queue.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until nothing else is under way; nothing else begins from now on.
    async fn alone(&self) {
        std::future::poll_fn(|cx| {
            let mut queue = self.queue.borrow_mut();
            queue.barrier = true;
            if queue.running == 1 {
                return Poll::Ready(());
            }
            queue.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn execute(&self, number: u32, op: &GuestOp) {
        match op {
            GuestOp::Reopen => return self.reopen().await,
            GuestOp::Amend { change } => return self.amend(*change).await,
            _ => {}
        }
        let Some(node) = self.node.borrow().clone() else { return };
        let (op, patience) = match op {
            GuestOp::Abandon { polls, op } => (&**op, Some(*polls)),
            op => (op, None),
        };
        let Some(op) = self.on_the_disk(op) else { return };
        let cause = Cause { request: u64::from(number), origin: 0 };
        match &op {
            GuestOp::Write { at, fua } => {
                let (request, ticket) = self.stamped(at, number);
                self.mutate(&*node, request.caused_by(cause), ticket, *fua, patience).await;
            }
            GuestOp::Compressed { at } => {
                let (request, ticket) = self.stamped(at, number | COMPRESSIBLE);
                let request = request.with_flags(Flags::COMPRESSED);
                self.mutate(&*node, request.caused_by(cause), ticket, false, patience).await;
            }
            GuestOp::Zero { at, unmap, fua } => {
                let zeroes = std::iter::repeat_n(ZERO, (at.end - at.start) as usize);
                let ticket = self.model.borrow_mut().begin_write(self.instant(), at.start, zeroes);
                let flags = if *unmap { Flags::MAY_UNMAP } else { Flags::empty() };
                let len = (at.end - at.start) * SECTOR as u64;
                let request = Request::write_zeroes(at.start * SECTOR as u64, len).with_flags(flags);
                self.mutate(&*node, request.caused_by(cause), ticket, *fua, patience).await;
            }
            GuestOp::Discard { at } => {
                let ticket = self.model.borrow_mut().begin_discard(self.instant(), at.clone());
                let len = (at.end - at.start) * SECTOR as u64;
                let request = Request::discard(at.start * SECTOR as u64, len);
                self.mutate(&*node, request.caused_by(cause), ticket, false, patience).await;
            }
            GuestOp::Read { at } => self.read(&*node, at.clone(), cause).await,
            GuestOp::Status { at } => self.status(&*node, at.clone(), cause).await,
            GuestOp::Flush => self.flush(&node, cause).await,
            GuestOp::Resize { to } => {
                if self.changing_all.replace(true) {
                    return;
                }
                let now = self.instant();
                let ticket = self.model.borrow_mut().begin_resize(now, *to);
                self.resizes.borrow_mut().push((now, *to));
                // The VM state lies elsewhere then, and whoever wants it there stores it anew.
                self.state_until.set(self.state_until.get().min(now));
                let grows = *to > self.model.borrow().shortest(now);
                let how = if grows { self.config.preallocation } else { Preallocation::Off };
                let request = Request::truncate(*to * SECTOR as u64, how);
                self.mutate(&*node, request.caused_by(cause), ticket, false, None).await;
                self.changing_all.set(false);
            }
            GuestOp::Bitmap { change } if self.config.bitmaps => {
                self.change_bitmaps(&*node, *change, number).await;
            }
            GuestOp::Snapshot { change } if self.data.is_none() => self.snapshot(&*node, *change).await,
            GuestOp::SaveState { at } if self.config.vm_state => {
                self.save_state(&*node, at.clone(), number, cause).await;
            }
            GuestOp::LoadState { at } if self.config.vm_state => {
                self.load_state(&*node, at.clone(), cause).await;
            }
            GuestOp::Key { change } if self.config.crypt == Crypt::Luks => {
                self.change_keys(&*node, *change).await;
            }
            GuestOp::Bitmap { .. }
            | GuestOp::Key { .. }
            | GuestOp::SaveState { .. }
            | GuestOp::LoadState { .. }
            | GuestOp::Snapshot { .. }
            | GuestOp::Wait
            | GuestOp::Reopen
            | GuestOp::Amend { .. }
            | GuestOp::Abandon { .. } => {}
        }
    }

    /// What may be there after a power cut at `time`.
    pub fn allowed_after_cut(&self, time: u64) -> Allowed {
        let (model, bitmaps) = (self.model.borrow(), self.bitmaps.borrow());
        let allowed = Allowed::after_cut(&model, time, self.config.grain());
        let allowed =
            if self.config.bitmaps { allowed.with_bitmaps(&bitmaps, time, &model) } else { allowed };
        let allowed = match self.config.vm_state && time < self.state_until.get() {
            true => allowed.with_state(Allowed::after_cut(&self.state.borrow(), time, 1)),
            false => allowed,
        };
        match self.config.crypt {
            Crypt::Luks => allowed.with_keys(self.keys.borrow().after_cut(time)),
            Crypt::None | Crypt::Aes => allowed,
        }
    }

    /// A write of stamps, begun.
    fn stamped(&self, at: &Range<u64>, operation: u32) -> (Request, Ticket) {
        let mut buf = Buf::scratch((at.end - at.start) as usize * SECTOR);
        let mut values = Vec::with_capacity((at.end - at.start) as usize);
        let mut pool = self.pool.lock();
        for (sector, chunk) in at.clone().zip(buf.as_chunks_mut::<SECTOR>().0) {
            let (seed, generation) = (self.seed, self.generation);
            let content = pool.intern_stamp(&Stamp { seed, operation, sector, generation });
            chunk.copy_from_slice(pool.bytes(content));
            values.push(content);
        }
        let ticket = self.model.borrow_mut().begin_write(self.instant(), at.start, values.into_iter());
        (Request::write(at.start * SECTOR as u64, buf), ticket)
    }

    /// The part of an operation that is on the disk whatever its length is just now; `None` if nothing is.
    fn on_the_disk(&self, op: &GuestOp) -> Option<GuestOp> {
        let len = self.model.borrow().shortest(self.clock.now());
        match (op, op.range()) {
            (GuestOp::Resize { to }, _) => (*to != len).then(|| op.clone()),
            // Whole clusters only.
            (GuestOp::Compressed { at }, _) if at.end > len => None,
            (_, Some(range)) if range.end > len => {
                (range.start < len).then(|| op.with_range(range.start..len))
            }
            _ => Some(op.clone()),
        }
    }

    async fn mutate(
        &self,
        node: &dyn Node,
        request: Request,
        ticket: Ticket,
        fua: bool,
        patience: Option<u8>,
    ) {
        // Version 2 has nothing to discard to, and cannot change its length beside snapshots; a bitmap that a cut left
        // inconsistent keeps the length as it is.
        let compressed = request.flags.contains(Flags::COMPRESSED);
        let resizes = matches!(request.op, Operation::Truncate(_));
        let may_be_refused = match request.op {
            Operation::Discard => true,
            Operation::Truncate(_) => self.config.version < 3 || self.config.bitmaps || self.amended.get(),
            // Only what has no storage is stored compressed; the reference's error.
            Operation::Write => compressed,
            _ => false,
        };
        let name = request.op.name();
        let (start, end) = (self.clock.now(), request.end().div_ceil(SECTOR as u64));
        let flags = if fua { Flags::FUA } else { Flags::empty() };
        let working = node.submit(request.with_flags(flags)).finish();
        let Some(completion) = Patience { working: Box::pin(working), polls: patience }.await else {
            self.abandoned.borrow_mut().push(ticket);
            return self.model.borrow_mut().abandon(ticket);
        };
        let now = self.instant();
        match completion.result {
            Ok(_) => {
                self.model.borrow_mut().end(now, ticket, fua);
                if fua {
                    self.durable_times.borrow_mut().push(now);
                }
                completion.bufs.recycle();
            }
            Err(error) => {
                self.model.borrow_mut().fail(now, ticket);
                let refused = may_be_refused
                    && (matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Busy)
                        || compressed && matches!(error.kind(), ErrorKind::Io | ErrorKind::InvalidInput));
                if resizes {
                    self.learn_length(node);
                }
                if !refused && !self.fell_off(start, end) {
                    self.excuse(name, &error);
                }
            }
        }
    }

    /// Whether the disk got shorter than `end` sectors after `start`: whoever was under way there may fail.
    fn fell_off(&self, start: u64, end: u64) -> bool {
        self.resizes.borrow().iter().any(|(began, to)| *began > start && *to < end)
    }

    /// A change of length failed. If it was refused, the node knows how long the disk is; otherwise nobody does.
    fn learn_length(&self, node: &dyn Node) {
        if self.was_faulted() {
            return self.lost_track.set(true);
        }
        let now = self.instant();
        let found = node.len() / SECTOR as u64;
        if let Err(mismatch) = self.model.borrow_mut().read_size(now, now, found) {
            let what = format!("the disk has {found} sectors; allowed: {:?}", mismatch.allowed);
            self.fail(Failure::new("O1", what));
        }
    }

    /// Errors need a fault that struck.
    fn excuse(&self, name: &str, error: &cowbell_block::Error) {
        self.failed.set(self.failed.get() + 1);
        let retired = self.amending.get() && error.kind() == ErrorKind::InvalidInput;
        if !retired && !self.was_faulted() {
            self.fail(Failure::new("O7", format!("{name} failed though nothing was wrong: {error}")));
        }
    }

    async fn flush(&self, node: &Arc<dyn Node>, cause: Cause) {
        let start = self.instant();
        // Through an edge, as those above an image do it: what the edge announces is announced as well.
        let above = Child::new(node.clone());
        let completion = above.submit(Request::flush().caused_by(cause)).finish().await;
        let now = self.instant();
        match completion.result {
            Ok(_) => {
                self.flushed(now, start);
            }
            Err(error) => self.excuse("flush", &error),
        }
    }
}
