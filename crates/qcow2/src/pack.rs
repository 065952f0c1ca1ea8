//! Compressed writes: clusters are compressed side by side and packed one after the other.
//!
//! ```text
//!   submit      a place in the line for its guest clusters, and one in the line of packers
//!   compress    on all cores, in any order
//!   in turn     bytes found ── data written ── entry changed          one writer per host cluster
//! ```
//!
//! Compressed clusters lie byte to byte, and several share a host cluster: each counts as one reference to every
//! host cluster that it touches. Only the packer whose turn it is writes there, from the beginning of a sector:
//! what the sector holds already is written again as it is, so that a cut leaves it whole either way.
//!
//! Packing goes on where it ended only while the host cluster loses no reference (rule R5): a cluster on its way back
//! is never filled further.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::spawn::{self, Running};
use cowbell_block::{Buf, Bufs, Cause, Completion, DebugEvent, ErrorKind, Flags, Op, Request, Result};
use parking_lot::Mutex;

use crate::compress::Codecs;
use crate::engine::Engine;
use crate::geometry::{DataPlace, GuestCluster, HostOffset};
use crate::state::{Corruption, Decision, State};
use crate::table::{Cell, Compressed, Storage};
use crate::write;

/// The unit in which a descriptor counts, and in which storage is whole after a cut.
const SECTOR: usize = 512;

/// What packers share.
#[derive(Default)]
pub(crate) struct Packers {
    turn: RangeLock,
    /// Held while a request takes its two places, so that all requests take them in one order.
    entering: Mutex<()>,
    codecs: Arc<Codecs>,
}

/// Where packing goes on.
pub(crate) struct Pack {
    /// Host offset of the next byte; 0 when a new cluster is to be begun. Never the beginning of a cluster.
    next: u64,
    /// The sector of that byte, as far as it is filled.
    sector: [u8; SECTOR],
}

impl Default for Pack {
    fn default() -> Self {
        Self { next: 0, sector: [0; SECTOR] }
    }
}

/// Bytes that were handed out and are not referenced yet.
struct Place {
    offset: HostOffset,
    clusters: Range<u64>,
    /// What the first sector holds before.
    before: Vec<u8>,
}

/// Starts a compressed write: of whole clusters, or up to the end of the disk.
pub(crate) fn submit(engine: &Arc<Engine>, request: Request) -> Op {
    if let Err(e) = admissible(engine, &request) {
        return Op::failed(request.bufs, e);
    }
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    let clusters = engine.clusters_of(request.offset, request.len);
    let (range, turn) = {
        let _entering = engine.packers.entering.lock();
        let range = engine.ranges.lock(clusters, LockMode::Exclusive);
        (range, engine.packers.turn.lock(0..1, LockMode::Exclusive))
    };
    let worker = engine.clone();
    engine.keep(async move {
        let mut line = Line::new(&worker, request.bufs);
        line.fill(&worker);
        let range = range.await;
        let turn = turn.await;
        if let Err(e) = worker.note_change(request.offset, request.len).await {
            return Completion::failed(line.give_up().await, e);
        }
        let completion = pack(&worker, request.offset, line, request.cause).await;
        drop((turn, range));
        if completion.result.is_ok() && request.flags.contains(Flags::FUA) {
            return worker.flush_for(completion).await;
        }
        completion
    })
}

fn admissible(engine: &Engine, request: &Request) -> std::result::Result<(), ErrorKind> {
    let state = engine.state.lock();
    if state.geometry.data_place == DataPlace::External || state.header.crypt_method != 0 {
        return Err(ErrorKind::Unsupported);
    }
    if state.is_beyond_end(request.offset, request.len) {
        return Err(ErrorKind::Io);
    }
    let whole = |offset| state.geometry.in_cluster(offset) == 0;
    let ends_well = whole(request.end()) || request.end() == state.header.size;
    if whole(request.offset) && ends_well { Ok(()) } else { Err(ErrorKind::InvalidInput) }
}

/// A cluster on its way through a codec: its buffers, and its compressed form unless it has none that is shorter.
type Squeezed = (Bufs, Option<Vec<u8>>);

/// The clusters of one request: some being compressed, the rest waiting.
struct Line {
    rest: Bufs,
    under_way: VecDeque<Work>,
    /// How many are compressed at once.
    width: usize,
}

enum Work {
    Elsewhere(Running<Squeezed>),
    Here(Bufs),
}

impl Line {
    fn new(engine: &Engine, bufs: Bufs) -> Self {
        let cores = engine.around.spawn.as_ref().map_or(1, |spawner| spawner.width());
        // Twice as many as cores, so that none waits for a commit.
        let width = if cores > 1 { 2 * cores } else { 1 };
        Self { rest: bufs, under_way: VecDeque::new(), width }
    }

    /// Puts clusters to work.
    fn fill(&mut self, engine: &Engine) {
        let size = engine.geometry.cluster_size() as usize;
        while self.under_way.len() < self.width && !self.rest.is_empty() {
            let part = self.rest.split_to(size.min(self.rest.len()));
            self.under_way.push_back(match &engine.around.spawn {
                Some(spawner) if self.width > 1 => {
                    let codecs = engine.packers.codecs.clone();
                    let kind = engine.state.lock().header.compression;
                    let work = async move {
                        let packed = codecs.compress(kind, &part, size);
                        (part, packed)
                    };
                    Work::Elsewhere(spawn::run(&**spawner, work))
                }
                _ => Work::Here(part),
            });
        }
    }

    /// The next cluster, compressed.
    async fn next(&mut self, engine: &Engine) -> Option<Squeezed> {
        self.fill(engine);
        Some(match self.under_way.pop_front()? {
            Work::Elsewhere(running) => running.await,
            Work::Here(part) => {
                let kind = engine.state.lock().header.compression;
                let packed =
                    engine.packers.codecs.compress(kind, &part, engine.geometry.cluster_size() as usize);
                (part, packed)
            }
        })
    }

    /// All buffers that are left, in order.
    async fn give_up(mut self) -> Bufs {
        let mut bufs = Bufs::none();
        for work in self.under_way {
            bufs.append(match work {
                Work::Elsewhere(running) => running.await.0,
                Work::Here(part) => part,
            });
        }
        bufs.append(std::mem::take(&mut self.rest));
        bufs
    }
}

async fn pack(engine: &Arc<Engine>, offset: u64, mut line: Line, cause: Cause) -> Completion {
    let (mut done, mut at) = (Bufs::none(), offset);
    while let Some((part, packed)) = line.next(engine).await {
        let len = part.len() as u64;
        let (part, result) = match packed {
            Some(packed) => {
                let stored = store(engine, at, &packed, cause).await;
                engine.packers.codecs.recycle(packed);
                (part, stored)
            }
            None => {
                let completion = write::write(engine, at, part, cause).await;
                (completion.bufs, completion.result.map(drop))
            }
        };
        done.append(part);
        let result = match result {
            Ok(()) => engine.relieve().await,
            failed => failed,
        };
        if let Err(e) = result {
            done.append(line.give_up().await);
            return Completion::failed(done, e);
        }
        at += len;
    }
    Completion::done(done)
}

/// Stores one compressed cluster; once more when a full host may have got room.
async fn store(engine: &Arc<Engine>, at: u64, packed: &[u8], cause: Cause) -> Result<()> {
    let cluster = engine.geometry.guest_cluster(at);
    match store_once(engine, cluster, packed, cause).await {
        Err(e) if e.kind() == ErrorKind::NoSpace && engine.recover_space().await? => {
            store_once(engine, cluster, packed, cause).await
        }
        result => result,
    }
}

async fn store_once(engine: &Arc<Engine>, cluster: GuestCluster, packed: &[u8], cause: Cause) -> Result<()> {
    engine.file.announce(DebugEvent::ClusterAllocBytes, cause).await;
    let len = packed.len() as u64;
    let place = engine.decide(cause, |state| match state.can_pack(cluster)? {
        true => state.allocate_bytes(len).map(Some),
        false => Ok(None),
    });
    // The reference's rule: compressed data overwrites nothing.
    let Some(place) = place.await? else { return Err(ErrorKind::Io.into()) };
    let sectors = place.before.len() + packed.len();
    let mut buf = Buf::scratch(sectors.next_multiple_of(SECTOR));
    let (before, data) = buf.split_at_mut(place.before.len());
    before.copy_from_slice(&place.before);
    data[..packed.len()].copy_from_slice(packed);
    data[packed.len()..].fill(0);
    let last = sectors % SECTOR;
    let mut sector = [0; SECTOR];
    sector[..last].copy_from_slice(&buf[sectors - last..sectors]);
    engine.file.announce(DebugEvent::WriteCompressed, cause).await;
    let written = engine.file.write(place.offset.0 - place.before.len() as u64, buf).await;
    let stored = match written {
        Ok(()) => {
            engine.file.announce(DebugEvent::L2UpdateCompressed, cause).await;
            let compressed = Compressed { offset: place.offset, len };
            engine.decide(cause, |state| state.link_compressed(cluster, compressed)).await
        }
        failed => failed,
    };
    let mut state = engine.state.lock();
    match stored {
        Ok(()) => state.pack.sector = sector,
        Err(_) => {
            // What the sectors hold is not known.
            state.pack.next = 0;
            state.give_back_all(place.clusters);
        }
    }
    stored
}

impl State {
    /// Whether a cluster has no storage that compressed data would replace.
    fn can_pack(&mut self, cluster: GuestCluster) -> Decision<bool> {
        let slot = self.own_l2_slot(cluster)?;
        Ok(self.cell(slot, cluster)?.storage == Storage::None)
    }

    /// Finds `len` bytes, less than a cluster, behind those that were packed before or in a new cluster.
    fn allocate_bytes(&mut self, len: u64) -> Decision<Place> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        assert!(len > 0 && len < size, "what does not get shorter is not packed");
        let next = self.pack.next;
        let (open, room) = (next >> geometry.cluster_bits, size - geometry.in_cluster(next));
        let count = if next == 0 { 0 } else { self.refcount(open)? };
        assert!(next == 0 || count > 0, "a cluster that loses references is not packed any more");
        let usable = next != 0 && count < geometry.refcount_max();
        if usable {
            self.check_overlap(open..open + 1)?;
        }
        let offset = if usable && len <= room {
            next
        } else {
            // Nothing was taken if this stops.
            let fresh = self.allocate(1)?.first;
            if usable && fresh == open + 1 { next } else { fresh << geometry.cluster_bits }
        };
        if offset == next {
            self.set_refcount(open, count + 1)?;
        }
        let end = offset + len;
        if end > Compressed::offset_limit(&geometry) {
            return Err(Corruption::NoAddressSpace { limit: Compressed::offset_limit(&geometry) }.into());
        }
        let filled = if offset == next { next as usize % SECTOR } else { 0 };
        let before = self.pack.sector[..filled].to_vec();
        self.pack.next = if geometry.in_cluster(end) == 0 { 0 } else { end };
        let clusters = offset >> geometry.cluster_bits..geometry.clusters_for(end);
        Ok(Place { offset: HostOffset(offset), clusters, before })
    }

    /// Publishes a compressed cluster.
    fn link_compressed(&mut self, cluster: GuestCluster, compressed: Compressed) -> Decision<()> {
        let slot = self.own_l2_slot(cluster)?;
        assert!(self.cell(slot, cluster)?.storage == Storage::None, "looked at under the same range lock");
        let alloc = self.geometry.all_subclusters();
        self.set_cell(slot, cluster, Cell { storage: Storage::Compressed(compressed), alloc, zero: 0 });
        self.entries_need_barrier = true;
        Ok(())
    }

    /// Host clusters lose a reference: nothing more is packed there.
    pub fn stop_packing(&mut self, clusters: &Range<u64>) {
        if cowbell_block::mutant::is_active("pack-into-freed") {
            return;
        }
        if self.pack.next != 0 && clusters.contains(&(self.pack.next >> self.geometry.cluster_bits)) {
            self.pack.next = 0;
        }
    }
}
