//! Satisfies what decisions lack: reads table slices, makes private L2 tables and refcount blocks.
//!
//! Each thing is loaded or made once: those who need the same wait in line and find it done.

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Cause, DebugEvent, Result, TraceEvent, mutant};

use crate::cache::Full;
use crate::engine::{Dropped, Engine};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::BitmapsExtension;
use crate::meta::{MetaMap, Structure, TableKind};
use crate::snapshot::SnapshotTable;
use crate::state::{Corruption, Decision, Need, State, Stop};
use crate::table::{self, L1Entry, Ownership};

/// Bytes of one piece when a whole table is read.
const PIECE_BYTES: u64 = 1 << 20;

/// Which caches must make room.
#[derive(Clone, Copy)]
enum Tables {
    Mapping,
    Refcounts,
}

impl Engine {
    /// Asks for a decision until nothing is lacking.
    pub(crate) async fn decide<T>(
        self: &Arc<Self>,
        cause: Cause,
        mut question: impl FnMut(&mut State) -> Decision<T>,
    ) -> Result<T> {
        loop {
            let answer = question(&mut self.state.lock());
            match answer {
                Ok(value) => return Ok(value),
                Err(Stop::Need(need)) => self.satisfy(need, cause).await?,
                Err(Stop::Corrupt(corruption)) => return Err(self.report(corruption).await),
            }
        }
    }

    pub(crate) async fn satisfy(self: &Arc<Self>, need: Need, cause: Cause) -> Result<()> {
        match need {
            Need::L1(key) => self.load_l1(key).await,
            Need::L2(key) => self.load_l2(key, cause).await,
            Need::Reftable(key) => self.load_reftable(key, cause).await,
            Need::Refblock(key) => self.load_refblock(key, cause).await,
            Need::Meta => self.load_meta().await,
            // Boxed: making tables needs decisions of its own.
            Need::NewRefblock(index) => Box::pin(self.new_refblock(index, cause)).await,
            Need::OwnL2(index) => Box::pin(self.own_l2(index, cause)).await,
        }
    }

    async fn load_l1(self: &Arc<Self>, key: u64) -> Result<()> {
        let _turn = self.loading.l1.lock(key..key + 1, LockMode::Exclusive).await;
        loop {
            let place = {
                let mut state = self.state.lock();
                match state.l1_place(key) {
                    Some(place) if state.l1.find(key).is_none() => place,
                    _ => return Ok(()),
                }
            };
            let data = self.read_slice(place.0, place.1).await?;
            let mut moved = false;
            self.cache_it(Tables::Mapping, data, |state, data| {
                // The table was replaced while we read: read the new one.
                moved = state.l1_place(key) != Some(place) && !mutant::is_active("stale-slice");
                if moved { Ok(()) } else { state.l1.insert(key, place.0, data, true).map(drop) }
            })
            .await?;
            if !moved {
                return Ok(());
            }
        }
    }

    async fn load_reftable(self: &Arc<Self>, key: u64, cause: Cause) -> Result<()> {
        let _turn = self.loading.reftable.lock(key..key + 1, LockMode::Exclusive).await;
        loop {
            let host = {
                let mut state = self.state.lock();
                if state.reftable.find(key).is_some() {
                    return Ok(());
                }
                state.reftable_place(key)
            };
            self.file.announce(DebugEvent::ReftableLoad, cause).await;
            let data = self.read_slice(host, self.slice_bytes()).await?;
            let mut moved = false;
            self.cache_it(Tables::Refcounts, data, |state, data| {
                moved = state.reftable_place(key) != host && !mutant::is_active("stale-slice");
                if moved { Ok(()) } else { state.reftable.insert(key, host, data, true).map(drop) }
            })
            .await?;
            if !moved {
                return Ok(());
            }
        }
    }

    async fn load_l2(self: &Arc<Self>, key: u64, cause: Cause) -> Result<()> {
        let _turn = self.loading.l2.lock(key..key + 1, LockMode::Exclusive).await;
        let index = key / self.geometry.slices_per_cluster();
        loop {
            let entry = self.decide_l1(index).await?;
            let L1Entry::Table(table, _) = entry else { return Ok(()) };
            if self.state.lock().l2.find(key).is_some() {
                return Ok(());
            }
            self.check_table(table, index).await?;
            let host = HostOffset(table.0 + key % self.geometry.slices_per_cluster() * self.slice_bytes());
            self.tell_of_load(1, host.0, key, cause);
            self.file.announce(DebugEvent::L2Load, cause).await;
            let data = self.read_slice(host, self.slice_bytes()).await?;
            let mut moved = false;
            self.cache_it(Tables::Mapping, data, |state, data| match state.l1_entry(index) {
                // The table was copied while we read: read the copy.
                Ok(L1Entry::Table(now, ownership)) if now == table => {
                    let private = ownership == Ownership::Private;
                    state.l2.insert(key, host, data, private).map(drop)
                }
                _ => {
                    moved = true;
                    Ok(())
                }
            })
            .await?;
            if !moved {
                return Ok(());
            }
        }
    }

    /// Fails unless an L2 table can lie at this offset.
    pub(crate) async fn check_table(self: &Arc<Self>, table: HostOffset, index: u64) -> Result<()> {
        let corruption = if !self.geometry.is_aligned(table) {
            Corruption::L2TableUnaligned { offset: table.0, index }
        } else if table.0 >= self.file.len() {
            Corruption::L2TableOutside { offset: table.0, index }
        } else {
            return Ok(());
        };
        Err(self.report(corruption).await)
    }

    /// An L1 entry, its slice loaded if need be.
    pub(crate) async fn decide_l1(self: &Arc<Self>, index: u64) -> Result<L1Entry> {
        loop {
            let answer = self.state.lock().l1_entry(index);
            match answer {
                Ok(entry) => return Ok(entry),
                Err(Stop::Need(Need::L1(key))) => self.load_l1(key).await?,
                Err(stop) => unreachable!("an L1 lookup needs L1 slices only: {stop:?}"),
            }
        }
    }

    async fn load_refblock(self: &Arc<Self>, key: u64, cause: Cause) -> Result<()> {
        let _turn = self.loading.refblock.lock(key..key + 1, LockMode::Exclusive).await;
        let index = key / self.geometry.slices_per_cluster();
        let block = loop {
            let answer = self.state.lock().reftable_entry(index);
            match answer {
                Ok(raw) => break table::refblock_offset(raw),
                Err(Stop::Need(Need::Reftable(key))) => self.load_reftable(key, cause).await?,
                Err(stop) => unreachable!("a refcount table lookup needs its slices only: {stop:?}"),
            }
        };
        let Some(block) = block else { return Ok(()) };
        if self.state.lock().refblocks.find(key).is_some() {
            return Ok(());
        }
        if !self.geometry.is_aligned(block) {
            return Err(self.report(Corruption::RefblockUnaligned { offset: block.0, index }).await);
        }
        if block.0 >= self.file.len() {
            return Err(self.report(Corruption::RefblockOutside { offset: block.0, index }).await);
        }
        let host = HostOffset(block.0 + key % self.geometry.slices_per_cluster() * self.slice_bytes());
        self.tell_of_load(0, host.0, key, cause);
        self.file.announce(DebugEvent::RefblockLoad, cause).await;
        let data = self.read_slice(host, self.slice_bytes()).await?;
        self.cache_it(Tables::Refcounts, data, |state, data| {
            state.refblocks.insert(key, host, data, true).map(drop)
        })
        .await
    }

    async fn read_slice(self: &Arc<Self>, host: HostOffset, len: u64) -> Result<Buf> {
        self.file.read(host.0, len as usize).await
    }

    /// Puts a slice into its cache, writing back when there is no room.
    async fn cache_it(
        self: &Arc<Self>,
        tables: Tables,
        data: Buf,
        mut insert: impl FnMut(&mut State, &[u8]) -> std::result::Result<(), Full>,
    ) -> Result<()> {
        self.clean_caches();
        loop {
            if insert(&mut self.state.lock(), &data).is_ok() {
                data.recycle();
                return Ok(());
            }
            match tables {
                // Needed inside a flush as well, so it must not wait for one.
                Tables::Refcounts => self.write_refcounts().await?,
                Tables::Mapping => Box::pin(self.flush()).await?,
            }
        }
    }

    /// Forgets slices that were not used for a while, when the time has come. Asked when a slice is loaded: memory
    /// grows at no other time.
    fn clean_caches(&self) {
        let Some(cleaning) = &self.around.cleaning else { return };
        let now = (cleaning.clock)();
        let mut state = self.state.lock();
        if now.saturating_sub(state.cleaned_at) >= cleaning.every_secs {
            state.cleaned_at = now;
            state.l2.forget_unused();
            state.refblocks.forget_unused();
        }
    }

    /// Reads all tables of tables once, to know where metadata lies.
    async fn load_meta(self: &Arc<Self>) -> Result<()> {
        let _turn = self.loading.meta.lock(0..1, LockMode::Exclusive).await;
        if self.state.lock().meta.is_some() {
            return Ok(());
        }
        match self.map_metadata().await? {
            Ok(map) => {
                self.state.lock().meta = Some(map);
                Ok(())
            }
            Err(corruption) => Err(self.report(corruption).await),
        }
    }

    /// Where metadata lies, or which structures overlap.
    ///
    /// # Errors
    /// The file's.
    pub(crate) async fn map_metadata(self: &Arc<Self>) -> Result<std::result::Result<MetaMap, Corruption>> {
        let geometry = self.geometry;
        let (header, checks) = {
            let state = self.state.lock();
            (state.header.clone(), state.overlap_checks)
        };
        let mut map = MetaMap::new(checks);
        let clusters = |offset: HostOffset, bytes: u64| {
            let first = geometry.host_cluster(offset).0;
            first..first + geometry.clusters_for(bytes)
        };
        let l1_bytes = u64::from(header.l1_entries) * 8;
        let reftable_bytes = u64::from(header.reftable_clusters) << geometry.cluster_bits;
        let snapshots = SnapshotTable::read(&self.file, &header).await?;
        let directory = |e: BitmapsExtension| clusters(e.directory, e.directory_bytes);
        let written = [
            (0..1, Structure::Header),
            (clusters(header.l1_offset, l1_bytes), Structure::ActiveL1),
            (clusters(header.reftable_offset, reftable_bytes), Structure::RefcountTable),
            (clusters(header.snapshots_offset, snapshots.table_bytes), Structure::SnapshotTable),
            (header.bitmaps().map_or(0..0, directory), Structure::BitmapDirectory),
            (header.crypto().map_or(0..0, |e| clusters(e.offset, e.len)), Structure::CryptoHeader),
        ];
        for (range, name) in written {
            if let Some(other) = map.overlap(range.clone()) {
                return Ok(Err(Corruption::StructuresOverlap { name, other }));
            }
            map.add_fixed(range, name);
        }
        for snapshot in snapshots.entries.iter().filter(|s| s.fault(&geometry).is_none()) {
            map.add_fixed(
                clusters(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8),
                Structure::InactiveL1,
            );
        }
        // An unaligned entry is met, and reported, when its table is used.
        let mut add = |kind: TableKind, table: HostOffset| {
            let cluster = geometry.host_cluster(table).0;
            if !geometry.is_aligned(table) {
                return Ok(());
            }
            match map.overlap(cluster..cluster + 1) {
                Some(other) => Err(Corruption::TableOverlaps { offset: table.0, other }),
                None => {
                    map.add_table(kind, cluster);
                    Ok(())
                }
            }
        };
        let tables = self
            .try_each_entry(header.l1_offset, l1_bytes, |_, raw| match L1Entry::decode(raw) {
                L1Entry::Table(table, _) => add(TableKind::L2, table),
                L1Entry::Empty => Ok(()),
            })
            .await?;
        if let Err(corruption) = tables {
            return Ok(Err(corruption));
        }
        let blocks = self
            .try_each_entry(header.reftable_offset, reftable_bytes, |_, raw| {
                match table::refblock_offset(raw) {
                    Some(block) => add(TableKind::Refblock, block),
                    None => Ok(()),
                }
            })
            .await?;
        if let Err(corruption) = blocks {
            return Ok(Err(corruption));
        }
        if map.wants_inactive_l2() {
            for snapshot in snapshots.entries.iter().filter(|s| s.fault(&geometry).is_none()) {
                let bytes = u64::from(snapshot.l1_entries) * 8;
                self.each_entry(snapshot.l1_offset, bytes, |_, raw| {
                    if let L1Entry::Table(table, _) = L1Entry::decode(raw) {
                        map.add_table(TableKind::InactiveL2, geometry.host_cluster(table).0);
                    }
                })
                .await?;
            }
        }
        Ok(Ok(map))
    }

    /// Reads a table of 8-byte entries in large pieces, past the caches.
    pub(crate) async fn each_entry(
        self: &Arc<Self>,
        offset: HostOffset,
        bytes: u64,
        mut f: impl FnMut(u64, u64),
    ) -> Result<()> {
        let all = |index, raw| {
            f(index, raw);
            Ok::<(), std::convert::Infallible>(())
        };
        self.try_each_entry(offset, bytes, all).await.map(|_| ())
    }

    /// Like [`Engine::each_entry`], until `f` has seen enough.
    async fn try_each_entry<E>(
        self: &Arc<Self>,
        offset: HostOffset,
        bytes: u64,
        mut f: impl FnMut(u64, u64) -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<(), E>> {
        let mut at = 0;
        while at < bytes {
            let n = PIECE_BYTES.min(bytes - at);
            let piece = self.file.read(offset.0 + at, n as usize).await?;
            let mut enough = Ok(());
            for (i, raw) in piece.chunks_exact(8).enumerate() {
                let raw = u64::from_be_bytes(*raw.first_chunk().expect("eight bytes"));
                if raw != 0 && enough.is_ok() {
                    enough = f(at / 8 + i as u64, raw);
                }
            }
            piece.recycle();
            if enough.is_err() {
                return Ok(enough);
            }
            at += n;
        }
        Ok(Ok(()))
    }

    /// Gives an L1 entry a table of its own: a fresh one, or a copy of a shared one.
    ///
    /// The table's clusters are written before the L1 entry changes in memory, and the entry reaches the file
    /// only after a barrier, so a pointer to an unwritten table never does.
    async fn own_l2(self: &Arc<Self>, index: u64, cause: Cause) -> Result<()> {
        let _turn = self.loading.tables.lock(index..index + 1, LockMode::Exclusive).await;
        let old = match self.decide(cause, |state| state.l1_entry(index)).await? {
            L1Entry::Table(_, Ownership::Private) => return Ok(()),
            L1Entry::Table(table, Ownership::Shared) => {
                self.check_table(table, index).await?;
                Some(table)
            }
            L1Entry::Empty => None,
        };
        let this = Arc::as_ptr(self).addr() as u64;
        self.trace(TraceEvent::Qcow2L2Allocate, [this, index]);
        let owned = self.decide(cause, |state| state.allocate(1)).await?;
        let host = HostOffset(owned.first << self.geometry.cluster_bits);
        self.trace(TraceEvent::Qcow2L2AllocateWriteL2, [this, index]);
        if let Err(e) = self.fill_l2(old, host, cause).await {
            self.state.lock().give_back(owned);
            return Err(e);
        }
        let linked = self.link_table(index, host, old, cause).await;
        if linked.is_err() {
            self.state.lock().give_back(owned);
        }
        linked
    }

    /// Refers to a private L2 table that was written, in place of `old`.
    pub(crate) async fn link_table(
        self: &Arc<Self>,
        index: u64,
        host: HostOffset,
        old: Option<HostOffset>,
        cause: Cause,
    ) -> Result<()> {
        let cluster = self.geometry.host_cluster(host);
        self.decide(cause, |state| {
            state.set_l1_entry(index, L1Entry::Table(host, Ownership::Private))?;
            let per_table = state.geometry.slices_per_cluster();
            state.l2.forget(index * per_table..(index + 1) * per_table);
            let meta = state.meta.as_mut().ok_or(Need::Meta)?;
            meta.add_table(TableKind::L2, cluster.0);
            if let Some(old) = old {
                let old = state.geometry.host_cluster(old);
                meta.remove_table(TableKind::L2, old.0);
                state.free_later(old..HostCluster(old.0 + 1), Dropped::Replaced);
            }
            Ok(())
        })
        .await?;
        self.trace(TraceEvent::Qcow2L2AllocateDone, [Arc::as_ptr(self).addr() as u64, index, 0]);
        Ok(())
    }

    /// Writes the content of a new L2 table: zeroes, or the shared table's entries.
    async fn fill_l2(
        self: &Arc<Self>,
        old: Option<HostOffset>,
        host: HostOffset,
        cause: Cause,
    ) -> Result<()> {
        let len = self.geometry.cluster_size() as usize;
        let content = match old {
            None => Buf::zeroed(len),
            Some(old) => {
                self.file.announce(DebugEvent::L2AllocCowRead, cause).await;
                let mut copy = self.file.read(old.0, len).await?;
                // A shared table has no private clusters; a wrong flag must not survive the copy.
                for raw in copy.chunks_exact_mut(self.geometry.l2_entry_bytes() as usize) {
                    let entry = u64::from_be_bytes(*raw.first_chunk().expect("eight bytes"));
                    let shared = table::L2Entry::with_copied_flag(entry, Ownership::Shared);
                    raw[..8].copy_from_slice(&shared.to_be_bytes());
                }
                copy
            }
        };
        self.file.announce(DebugEvent::L2AllocWrite, cause).await;
        if cowbell_block::mutant::is_active("l2-table-unwritten") {
            return Ok(());
        }
        self.file.write(host.0, content).await
    }
}

impl State {
    /// Where slice `key` of the L1 table lies, and its length; `None` beyond the table's end.
    fn l1_place(&self, key: u64) -> Option<(HostOffset, u64)> {
        let slice = u64::from(self.geometry.slice_bytes);
        let rest =
            (u64::from(self.header.l1_entries) * 8).checked_sub(key * slice).filter(|rest| *rest > 0)?;
        Some((HostOffset(self.header.l1_offset.0 + key * slice), slice.min(rest)))
    }

    /// Where slice `key` of the refcount table lies.
    fn reftable_place(&self, key: u64) -> HostOffset {
        HostOffset(self.header.reftable_offset.0 + key * u64::from(self.geometry.slice_bytes))
    }
}
