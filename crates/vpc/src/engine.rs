//! Requests to images that grow: where bytes lie, new blocks, and the order on disk.
//!
//! A write first sees to it that its blocks are there ([`Engine::allocate`], one at a time), then writes its data in
//! place, then sets its bits in memory. A block never moves, so that nothing is locked while data is on its way. What the
//! file does not know yet is written by [`Engine::flush`]: data durable, then bitmaps and table, then these durable.
//! Until then the file shows the disk as it was.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::modes::Modes;
use cowbell_block::mutant;
use cowbell_block::orphans::{Abandoned, Orphans};
use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::{
    Buf, Bufs, Cause, Child, Completion, ErrorKind, Extent, ExtentFlags, Flags, Mapping, Op, Operation,
    Request, Result,
};
use parking_lot::Mutex;

use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::state::{Bits, State};

/// An image that grows.
pub(crate) struct Engine {
    pub(crate) file: Child,
    pub(crate) backing: Option<Child>,
    pub(crate) footer: Footer,
    pub(crate) len: u64,
    pub(crate) state: Mutex<State>,
    pub(crate) modes: Modes,
    pub(crate) writable: AtomicBool,
    /// A flush failed: what is durable is unknown until the image is opened again.
    poisoned: AtomicBool,
    /// Something was written since the image was opened. Data in place leaves no trace in the tables, and one that a flush
    /// does not cover may be on its way while that flush ends: so a close of whoever wrote flushes.
    touched: AtomicBool,
    /// One new block, or one that is marked as whole, at a time.
    allocating: RangeLock,
    flushing: RangeLock,
    pub(crate) orphans: Orphans,
}

/// Where the beginning of a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In the image's file, here.
    File(u64),
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In the parent.
    Parent,
    /// The bitmap of this block has to tell.
    Bitmap(u32),
}

impl Engine {
    pub(crate) fn new(
        file: Child,
        backing: Option<Child>,
        footer: Footer,
        len: u64,
        state: State,
        modes: Modes,
        writable: bool,
    ) -> Self {
        Self {
            file,
            backing,
            footer,
            len,
            state: Mutex::new(state),
            modes,
            writable: AtomicBool::new(writable),
            poisoned: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            allocating: RangeLock::new(),
            flushing: RangeLock::new(),
            orphans: Orphans::default(),
        }
    }

    fn is_differencing(&self) -> bool {
        self.footer.disk_type() == DiskType::Differencing
    }

    pub(crate) fn submit(self: &Arc<Self>, request: Request) -> Op {
        if request.op.is_mutation() && !self.writable.load(Ordering::Relaxed) {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        let request = match self.modes.shape(request) {
            ControlFlow::Continue(request) => request,
            ControlFlow::Break(op) => return op,
        };
        let on_disk = matches!(request.op, Operation::Read | Operation::Write | Operation::WriteZeroes);
        if on_disk && request.end() > self.len {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        if request.op.is_mutation() && self.poisoned.load(Ordering::Relaxed) {
            return Op::failed(request.bufs, ErrorKind::Poisoned);
        }
        if request.op.is_mutation() {
            self.touched.store(true, Ordering::Relaxed);
        }
        let engine = self.clone();
        match request.op {
            Operation::Read => self.read(request),
            Operation::Write if request.flags.contains(Flags::COMPRESSED) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::Write | Operation::WriteZeroes => self.write(request),
            Operation::Flush => {
                let flush = async move { done(request.bufs, engine.flush().await) };
                self.orphans.attend(flush, Abandoned::Kept)
            }
            Operation::Status => Op::wait(async move {
                match engine.status(&request).await {
                    Ok(extent) => Completion::extent(extent),
                    Err(e) => Completion::failed(request.bufs, e),
                }
            }),
            Operation::Truncate(_) => Op::failed(request.bufs, cowbell_block::node::NoResize),
            // Blocks have no way back.
            Operation::Discard
            | Operation::CopyFrom { .. }
            | Operation::VmStateRead
            | Operation::VmStateWrite => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    /// What the beginning of `at..end` is, and how long that beginning is.
    fn source(&self, at: u64, end: u64) -> (Source, u64) {
        let state = self.state.lock();
        let block_bytes = state.layout.block_bytes;
        let (block, inside) = ((at / block_bytes) as u32, at % block_bytes);
        let Some(data) = state.data(block) else {
            let most = (end.div_ceil(block_bytes) - u64::from(block)) as u32;
            let run = u64::from(state.absent_run(block, most)) * block_bytes - inside;
            let source = if self.is_differencing() { Source::Parent } else { Source::Zero };
            return (source, run.min(end - at));
        };
        let len = (block_bytes - inside).min(end - at);
        if !self.is_differencing() {
            return (Source::File(data + inside), len);
        }
        match state.own_run(block, inside, inside + len) {
            None => (Source::Bitmap(block), len),
            Some((true, run)) => (Source::File(data + inside), run),
            Some((false, run)) => (Source::Parent, run),
        }
    }

    /// The same, with the bitmap loaded that has to tell.
    async fn settled_source(&self, at: u64, end: u64, cause: Cause) -> Result<(Source, u64)> {
        loop {
            match self.source(at, end) {
                (Source::Bitmap(block), _) => self.load_bitmap(block, cause).await?,
                found => return Ok(found),
            }
        }
    }

    async fn load_bitmap(&self, block: u32, cause: Cause) -> Result<()> {
        let (place, len) = {
            let state = self.state.lock();
            match state.place(block) {
                Some(place) if !state.has_bitmap(block) => (place, state.layout.bitmap_bytes),
                _ => return Ok(()),
            }
        };
        // A bitmap that is not in memory is in the file as it is, and does not change there meanwhile.
        let read = Request::read(place, Buf::scratch(len as usize)).caused_by(cause);
        let bufs = self.file.submit(read).finish().await.into_bufs()?;
        self.state.lock().keep_bitmap(block, &bufs.to_contiguous());
        bufs.recycle();
        Ok(())
    }

    fn read(self: &Arc<Self>, mut request: Request) -> Op {
        match self.source(request.offset, request.end()) {
            (Source::File(offset), len) if len == request.len => {
                request.offset = offset;
                self.file.submit(request)
            }
            (Source::Zero, len) if len == request.len => {
                request.bufs.fill(0, len as usize, 0);
                Op::done(request.bufs)
            }
            _ if request.len == 0 => Op::done(request.bufs),
            _ => {
                let engine = self.clone();
                Op::wait(async move { engine.read_pieces(request).await })
            }
        }
    }

    async fn read_pieces(&self, mut request: Request) -> Completion {
        let (mut at, end) = (request.offset, request.end());
        let mut bufs = Bufs::none();
        while at < end {
            let (source, len) = match self.settled_source(at, end, request.cause).await {
                Ok(found) => found,
                Err(e) => return self.broken_off(bufs, request.bufs, e),
            };
            let part = request.bufs.split_to(len as usize);
            let completion = self.read_piece(source, at, part, request.cause).await;
            bufs.append(completion.bufs);
            if let Err(e) = completion.result {
                return self.broken_off(bufs, request.bufs, e);
            }
            at += len;
        }
        Completion::done(bufs)
    }

    fn broken_off(&self, mut bufs: Bufs, rest: Bufs, error: cowbell_block::Error) -> Completion {
        bufs.append(rest);
        Completion::failed(bufs, error)
    }

    async fn read_piece(&self, source: Source, at: u64, mut part: Bufs, cause: Cause) -> Completion {
        let len = part.len() as u64;
        match (source, &self.backing) {
            (Source::File(offset), _) => {
                self.file.submit(Request::read(offset, part).caused_by(cause)).finish().await
            }
            (Source::Parent, Some(parent)) if at < parent.len() => {
                let inside = len.min(parent.len() - at) as usize;
                let mut first = part.split_to(inside);
                let completion = parent.submit(Request::read(at, first).caused_by(cause)).finish().await;
                first = completion.bufs;
                part.fill(0, part.len(), 0);
                first.append(part);
                Completion { bufs: first, result: completion.result }
            }
            _ => {
                part.fill(0, len as usize, 0);
                Completion::done(part)
            }
        }
    }

    /// Whether a write needs nothing but its data at this place in the file: its block is there, and so are its bits.
    fn in_place(&self, request: &Request) -> Option<u64> {
        let state = self.state.lock();
        let block_bytes = state.layout.block_bytes;
        let (block, inside) = ((request.offset / block_bytes) as u32, request.offset % block_bytes);
        if request.len == 0 || inside + request.len > block_bytes {
            return None;
        }
        let data = state.data(block)?;
        let bits = match self.is_differencing() {
            true => state.own_run(block, inside, inside + request.len) == Some((true, request.len)),
            false => state.is_full(block),
        };
        bits.then_some(data + inside)
    }

    fn write(self: &Arc<Self>, mut request: Request) -> Op {
        if !request.flags.contains(Flags::FUA)
            && let Some(offset) = self.in_place(&request)
        {
            request.offset = offset;
            return match self.file.submit(request) {
                // On a file of larger blocks it may wait for others, whom nobody may be waiting for any more.
                Op::Wait(future) => self.orphans.attend_started(future),
                done => done,
            };
        }
        let engine = self.clone();
        let work = async move {
            let mut request = request;
            let mut bufs = Bufs::none();
            let mut result = engine.write_pieces(&mut request, &mut bufs).await;
            if result.is_ok() && request.flags.contains(Flags::FUA) {
                result = engine.flush().await;
            }
            bufs.append(request.bufs);
            done(bufs, result)
        };
        self.orphans.attend(work, Abandoned::Kept)
    }

    /// Writes block by block; buffers that are done with go to `bufs`.
    async fn write_pieces(&self, request: &mut Request, bufs: &mut Bufs) -> Result<()> {
        let zeroes = matches!(request.op, Operation::WriteZeroes);
        let (mut at, end) = (request.offset, request.end());
        let block_bytes = self.state.lock().layout.block_bytes;
        while at < end {
            let (block, inside) = ((at / block_bytes) as u32, at % block_bytes);
            let len = (block_bytes - inside).min(end - at);
            let is_there = self.state.lock().place(block).is_some();
            if zeroes && !is_there && !self.is_differencing() {
                at += len;
                continue;
            }
            let data = self.prepare(block, request.cause).await?;
            if mutant::is_active("vpc-bits-before-data") {
                self.own(block, inside, inside + len, request.cause).await?;
            }
            let part = match zeroes {
                true => Request::write_zeroes(data + inside, len),
                // Zeroes that were detected keep their buffers to the end.
                false => Request::write(data + inside, request.bufs.split_to(len as usize)),
            };
            let flags = request.flags - Flags::FUA;
            let written = self.file.submit(part.with_flags(flags).caused_by(request.cause)).finish().await;
            bufs.append(written.bufs);
            written.result?;
            self.own(block, inside, inside + len, request.cause).await?;
            at += len;
        }
        if self.state.lock().is_crowded() {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sees to it that a block is there, and its bitmap known. Returns where its data lies.
    async fn prepare(&self, block: u32, cause: Cause) -> Result<u64> {
        let place = {
            let state = self.state.lock();
            state.place(block).map(|place| (place, state.is_full(block)))
        };
        match place {
            None => self.allocate(block, cause).await?,
            Some(_) if self.is_differencing() => self.load_bitmap(block, cause).await?,
            Some((_, true)) => {}
            Some((place, false)) => self.fill_bits(block, place, cause).await?,
        }
        let data = self.state.lock().data(block);
        Ok(data.expect("it was there or was made"))
    }

    /// Marks all sectors of a dynamic image's block. What we read of it does not depend on its bits, but others may look at
    /// them: so they are durable before data comes into the block, or what a cut leaves there would be one thing to us and
    /// another one to them.
    async fn fill_bits(&self, block: u32, place: u64, cause: Cause) -> Result<()> {
        let _turn = self.allocating.lock(0..1, LockMode::Exclusive).await;
        if self.state.lock().is_full(block) {
            return Ok(());
        }
        self.load_bitmap(block, cause).await?;
        let is_full = {
            let mut state = self.state.lock();
            let end = state.layout.block_bytes.min(self.len - u64::from(block) * state.layout.block_bytes);
            state.own_run(block, 0, end).map(|run| {
                state.drop_bitmap(block);
                run == (true, end)
            })
        };
        if is_full == Some(false) && !mutant::is_active("vpc-bits-of-old") {
            self.write_bits(place, Bits::All, cause).await?;
            self.file.flush().await?;
        }
        self.state.lock().set_full(block);
        Ok(())
    }

    /// Marks sectors of a block as the image's own, when their data is in the file.
    async fn own(&self, block: u32, at: u64, end: u64, cause: Cause) -> Result<()> {
        while self.is_differencing() && !self.state.lock().set_bits(block, at, end) {
            // It made room for others meanwhile.
            self.load_bitmap(block, cause).await?;
        }
        Ok(())
    }

    async fn write_bits(&self, place: u64, bits: Bits, cause: Cause) -> Result<()> {
        let len = self.state.lock().layout.bitmap_bytes;
        let mut buf = Buf::zeroed(len as usize);
        if bits == Bits::All {
            buf.fill(0xff);
        }
        self.file.submit(Request::write(place, buf).caused_by(cause)).finish().await.into_bufs()?.recycle();
        Ok(())
    }

    /// Makes a block behind all others: a new footer behind it, its bitmap, zeroes. Its entry is the last.
    async fn allocate(&self, block: u32, cause: Cause) -> Result<()> {
        let _turn = match mutant::is_active("vpc-blocks-side-by-side") {
            true => None,
            false => Some(self.allocating.lock(0..1, LockMode::Exclusive).await),
        };
        let (offset, whole) = {
            let state = self.state.lock();
            if state.place(block).is_some() {
                return Ok(());
            }
            (state.free, state.layout.whole_block())
        };
        State::check_place(offset)?;
        let (end, file_len) = (offset + whole, self.file.len());
        let footer = Request::write(end, Buf::copy_of(self.footer.bytes())).caused_by(cause);
        self.file.submit(footer).finish().await.into_bufs()?.recycle();
        // Whatever lies there besides the old footer was left behind by somebody: a block reads as zeroes at first.
        if file_len > offset + FOOTER_BYTES as u64 && !mutant::is_active("vpc-remains-shown") {
            let zeroes = Request::write_zeroes(offset, file_len.min(end) - offset).caused_by(cause);
            self.file.submit(zeroes).finish().await.result?;
        }
        let bits = if self.is_differencing() { Bits::None } else { Bits::All };
        self.write_bits(offset, bits, cause).await?;
        self.state.lock().link(block, offset, bits);
        Ok(())
    }

    /// Makes everything durable that was written before.
    pub(crate) async fn flush(&self) -> Result<()> {
        let _turn = self.flushing.lock(0..1, LockMode::Exclusive).await;
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(ErrorKind::Poisoned.into());
        }
        let changes = self.state.lock().take_changes();
        let result = self.write_back(&changes.writes).await;
        if result.is_err() && !mutant::is_active("vpc-poison-forgotten") {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        self.state.lock().settle(&changes);
        result
    }

    /// The data that tables speak of is durable before the tables are written.
    async fn write_back(&self, writes: &[(u64, Vec<u8>)]) -> Result<()> {
        if writes.is_empty() {
            return self.file.flush().await;
        }
        if !mutant::is_active("vpc-table-beside-data") {
            self.file.flush().await?;
        }
        for (offset, bytes) in writes {
            self.file.write(*offset, Buf::copy_of(bytes)).await?;
        }
        self.file.flush().await
    }

    async fn status(&self, request: &Request) -> Result<Extent> {
        let end = request.end().min(self.len);
        if request.offset >= end {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED;
            return Ok(Extent { len: 0, flags, map: None });
        }
        let (source, len) = self.settled_source(request.offset, end, request.cause).await?;
        let (mut flags, map) = match source {
            Source::File(offset) => {
                let map = Mapping { node: self.file.node(), offset };
                (ExtentFlags::DATA | ExtentFlags::ALLOCATED, Some(map))
            }
            Source::Zero => (ExtentFlags::ZERO | ExtentFlags::ALLOCATED, None),
            Source::Parent | Source::Bitmap(_) => (ExtentFlags::empty(), None),
        };
        flags.set(ExtentFlags::EOF, request.offset + len == self.len);
        Ok(Extent { len, flags, map })
    }

    /// Ends writing: nothing is half done, and everything is in the file.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.orphans.settle().await;
        let in_memory = self.state.lock().is_dirty();
        let touched = self.touched.load(Ordering::Relaxed) && !mutant::is_active("vpc-close-unflushed");
        match self.writable.load(Ordering::Relaxed) && (touched || in_memory) {
            true => self.flush().await,
            false => Ok(()),
        }
    }
}

fn done(bufs: Bufs, result: Result<()>) -> Completion {
    match result {
        Ok(()) => Completion::done(bufs),
        Err(e) => Completion::failed(bufs, e),
    }
}
