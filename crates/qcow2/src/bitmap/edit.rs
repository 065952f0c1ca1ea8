//! Adds, removes, clears and merges bitmaps: new tables and a new directory in new clusters, then one switch.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::{LockMode, RangeGuard};
use cowbell_block::{Buf, Result, mutant, names};

use super::directory::{self, Entry, Flags};
use super::reader::BitmapReader;
use super::shape::{Shape, TableEntry};
use super::store::{Combined, combine};
use super::table::{Content, Table};
use super::{
    BITMAPS_MAX, BitmapError, CannotStore, DIRECTORY_BYTES_MAX, GRANULARITY_BITS_MAX, GRANULARITY_BITS_MIN,
    NAME_BYTES_MAX, PHYSICAL_BYTES_MAX, Recording, bits, find,
};
use crate::engine::{Dropped, Engine};
use crate::geometry::{Geometry, HostCluster, HostOffset};
use crate::header::BitmapsExtension;
use crate::meta::Structure;

/// See [`crate::Qcow2::add_bitmap`].
pub(super) async fn add(engine: &Arc<Engine>, name: &str, granularity: u64) -> Result<()> {
    if name.is_empty() {
        return Err(BitmapError::EmptyName.into());
    }
    let bits = GRANULARITY_BITS_MIN..=GRANULARITY_BITS_MAX;
    if !granularity.is_power_of_two() || !bits.contains(&granularity.trailing_zeros()) {
        return Err(BitmapError::Granularity.into());
    }
    let (_whole, mut entries) = begin(engine).await?;
    let entry = Entry {
        at: HostOffset(0),
        name: names::to_bytes(name).into_owned(),
        table: HostOffset(0),
        table_entries: 0,
        flags: Flags::AUTO,
        granularity_bits: granularity.trailing_zeros(),
    };
    let (version, size) = {
        let state = engine.state.lock();
        (state.header.version, state.header.size)
    };
    if let Some(reason) = obstacle(&engine.geometry, version, size, &entries, &entry) {
        return Err(BitmapError::CannotStore { name: name.to_owned(), reason }.into());
    }
    if entries.iter().any(|known| known.name == entry.name) {
        return Err(BitmapError::Exists(name.to_owned()).into());
    }
    if entry.name.contains(&0) {
        return Err(BitmapError::NulInName.into());
    }
    let mut change = Change::new(engine);
    let shape = entry.shape(&engine.geometry, size);
    entries.push(change.table(entry, None, shape, None).await?);
    change.publish(entries).await
}

/// What stands against storing one more bitmap.
fn obstacle(
    geometry: &Geometry,
    version: u32,
    size: u64,
    entries: &[Entry],
    entry: &Entry,
) -> Option<CannotStore> {
    let directory_bytes: u64 = entries.iter().chain([entry]).map(Entry::stored_bytes).sum();
    [
        (version < 3, CannotStore::Version),
        (entry.name.len() > NAME_BYTES_MAX, CannotStore::NameLength),
        (!is_storable(entry.shape(geometry, size)), CannotStore::Space),
        (entries.len() >= BITMAPS_MAX as usize, CannotStore::Count),
        (directory_bytes > DIRECTORY_BYTES_MAX, CannotStore::Directory),
        (size == 0, CannotStore::Empty),
    ]
    .into_iter()
    .find_map(|(stands, reason)| stands.then_some(reason))
}

/// Whether a bitmap stays within what the format has room for.
pub(super) fn is_storable(shape: Shape) -> bool {
    shape.entries() << shape.cluster_bits <= PHYSICAL_BYTES_MAX
}

/// See [`crate::Qcow2::remove_bitmap`].
pub(super) async fn remove(engine: &Arc<Engine>, name: &str) -> Result<()> {
    let (_whole, mut entries) = begin(engine).await?;
    let found = entries.iter().position(|entry| entry.name == *names::to_bytes(name));
    let gone = entries.remove(found.ok_or_else(|| BitmapError::NotFound(name.to_owned()))?);
    let mut change = Change::new(engine);
    change.drop_table(&gone).await?;
    change.publish(entries).await
}

impl Engine {
    /// Removes all bitmaps. The caller holds the whole disk, and they are stored.
    pub(crate) async fn drop_bitmaps(self: &Arc<Self>) -> Result<()> {
        let header = self.state.lock().header.clone();
        let mut change = Change::new(self);
        for entry in directory::read(&self.file, &header, &self.geometry).await? {
            change.drop_table(&entry).await?;
        }
        if change.dropped.is_empty() { Ok(()) } else { change.publish(Vec::new()).await }
    }
}

/// See [`crate::Qcow2::clear_bitmap`].
pub(super) async fn clear(engine: &Arc<Engine>, name: &str) -> Result<()> {
    let (_whole, mut entries) = begin(engine).await?;
    let index = find(&entries, name)?;
    let size = engine.state.lock().header.size;
    let mut change = Change::new(engine);
    change.drop_table(&entries[index]).await?;
    let shape = entries[index].shape(&engine.geometry, size);
    entries[index] = change.table(entries[index].clone(), None, shape, None).await?;
    change.publish(entries).await
}

/// See [`crate::Qcow2::set_recording`].
pub(super) async fn set_recording(engine: &Arc<Engine>, name: &str, recording: Recording) -> Result<()> {
    let (_whole, entries) = begin(engine).await?;
    let entry = &entries[find(&entries, name)?];
    let flags = match recording {
        Recording::On => Flags::AUTO,
        Recording::Off => Flags::empty(),
    };
    if entry.flags != flags {
        // Four bytes in one sector: before or after.
        engine.write_bitmap_flags(entry.flags_at(), flags).await?;
        engine.barrier().await?;
    }
    engine.track_bitmaps().await
}

/// See [`crate::Qcow2::merge_bitmap`].
pub(super) async fn merge(engine: &Arc<Engine>, name: &str, source: &mut BitmapReader) -> Result<()> {
    let (_whole, mut entries) = begin(engine).await?;
    let index = find(&entries, name)?;
    let (destination, from) = (engine.state.lock().header.size, source.disk_size());
    if destination != from {
        return Err(BitmapError::Sizes { destination, from }.into());
    }
    let entry = entries[index].clone();
    let mut change = Change::new(engine);
    let shape = entry.shape(&engine.geometry, destination);
    entries[index] = change.table(entry.clone(), Some(&entry), shape, Some(source)).await?;
    change.publish(entries).await
}

/// Waits until nothing else is under way, and brings the bitmaps of the file up to date.
async fn begin(engine: &Arc<Engine>) -> Result<(RangeGuard, Vec<Entry>)> {
    let whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    engine.check_writable()?;
    engine.store_bitmaps().await?;
    let header = engine.state.lock().header.clone();
    let entries = directory::read(&engine.file, &header, &engine.geometry).await?;
    Ok((whole, entries))
}

/// What is prepared for a switch. Dropped before it, it takes back the new clusters.
pub(super) struct Change {
    engine: Arc<Engine>,
    /// New clusters that nothing in the file refers to.
    taken: Vec<Range<u64>>,
    /// Clusters that nothing will refer to after the switch.
    dropped: Vec<Range<u64>>,
}

impl Change {
    pub fn new(engine: &Arc<Engine>) -> Self {
        Self { engine: engine.clone(), taken: Vec::new(), dropped: Vec::new() }
    }

    /// Makes a new table of `shape` for a bitmap: what `old` has, and the dirty bytes of `source`. The clusters of the
    /// old table are dropped, and those of its bits that the new one does not name.
    pub async fn table(
        &mut self,
        mut entry: Entry,
        old: Option<&Entry>,
        shape: Shape,
        mut source: Option<&mut BitmapReader>,
    ) -> Result<Entry> {
        let engine = self.engine.clone();
        let entries = shape.entries();
        let offset = self.take(entries * 8).await?;
        let mut new = Table::new(engine.clone(), offset, entries, Content::Fresh);
        let old_entries = old.map_or(0, |old| u64::from(old.table_entries));
        let at = old.map_or(HostOffset(0), |old| old.table);
        let mut before = Table::new(engine.clone(), at, old_entries, Content::Stored);
        for index in 0..entries.max(old_entries) {
            let was = if index < old_entries { before.get(index).await? } else { TableEntry::Zeros };
            let now = match (&mut source, index < entries) {
                (_, false) => TableEntry::Zeros,
                (None, true) => was,
                (Some(source), true) => self.merged(was, shape, index, source).await?,
            };
            if index < entries {
                new.set(index, now).await?;
            }
            if let TableEntry::Data(host) = was
                && now != was
            {
                add_cluster(&mut self.dropped, engine.geometry.host_cluster(host).0);
            }
        }
        new.write_back().await?;
        if old.is_some() {
            self.drop_range(at, old_entries * 8);
        }
        entry.table = offset;
        entry.table_entries = entries as u32;
        Ok(entry)
    }

    /// A table entry with the bits of `source` added.
    async fn merged(
        &mut self,
        was: TableEntry,
        shape: Shape,
        index: u64,
        source: &mut BitmapReader,
    ) -> Result<TableEntry> {
        let window = shape.bits_of(index);
        let bytes = shape.bytes_of(window.clone());
        let mut mask: Option<Buf> = None;
        let mut from = bytes.start;
        while let Some(dirty) = source.next_dirty(from).await?.filter(|dirty| dirty.start < bytes.end) {
            let part = shape.bits_for(dirty.start..dirty.end.min(bytes.end));
            let cluster = self.engine.geometry.cluster_size() as usize;
            let mask = mask.get_or_insert_with(|| Buf::zeroed(cluster));
            bits::set(mask, part.start - window.start..part.end - window.start);
            from = dirty.end;
        }
        let Some(mask) = mask else { return Ok(was) };
        Ok(match combine(&self.engine, was, mask, window.end - window.start).await? {
            Combined::Same => was,
            Combined::Ones => TableEntry::Ones,
            Combined::Bytes(bytes, _) => {
                let (host, owned) = self.engine.write_bits(bytes).await?;
                add_cluster(&mut self.taken, owned.first);
                TableEntry::Data(host)
            }
        })
    }

    /// Drops a bitmap's table and bits.
    pub async fn drop_table(&mut self, entry: &Entry) -> Result<()> {
        let entries = u64::from(entry.table_entries);
        let mut table = Table::new(self.engine.clone(), entry.table, entries, Content::Stored);
        for index in 0..entries {
            // What is not valid names nothing: an inconsistent bitmap must be removable.
            let named = table.get(index).await;
            match named {
                Ok(TableEntry::Data(host)) => {
                    add_cluster(&mut self.dropped, self.engine.geometry.host_cluster(host).0);
                }
                Ok(_) => {}
                Err(e) if e.kind() == cowbell_block::ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        self.drop_range(entry.table, entries * 8);
        Ok(())
    }

    fn drop_range(&mut self, offset: HostOffset, bytes: u64) {
        let first = self.engine.geometry.host_cluster(offset).0;
        self.dropped.push(first..first + self.engine.geometry.clusters_for(bytes));
    }

    /// New clusters in a row.
    async fn take(&mut self, bytes: u64) -> Result<HostOffset> {
        let taken = self.engine.take_contiguous(self.engine.geometry.clusters_for(bytes)).await?;
        self.taken.push(taken.clone());
        Ok(self.engine.geometry.host_offset(HostCluster(taken.start)))
    }

    /// Makes this the image's directory. Everything prepared is durable before the header names it.
    pub async fn publish(mut self, entries: Vec<Entry>) -> Result<()> {
        let engine = self.engine.clone();
        let old = engine.state.lock().header.bitmaps();
        let new = match entries.is_empty() {
            true => None,
            false => Some(self.write_directory(&entries).await?),
        };
        engine.write_refcounts().await?;
        if !mutant::is_active("bitmap-directory-unsettled") {
            engine.barrier().await?;
        }
        // From here on the file may refer to them.
        self.taken.clear();
        engine.rewrite_header(|header| header.set_bitmaps(new.as_ref())).await?;
        if let Some(old) = &old {
            self.drop_range(old.directory, old.directory_bytes);
        }
        {
            let mut state = engine.state.lock();
            for clusters in self.dropped.drain(..) {
                state.free_later(HostCluster(clusters.start)..HostCluster(clusters.end), Dropped::Replaced);
            }
            if let Some(map) = state.meta.as_mut() {
                map.remove_fixed(Structure::BitmapDirectory);
                if let Some(BitmapsExtension { directory, directory_bytes, .. }) = new {
                    let first = engine.geometry.host_cluster(directory).0;
                    let end = first + engine.geometry.clusters_for(directory_bytes);
                    map.add_fixed(first..end, Structure::BitmapDirectory);
                }
            }
        }
        engine.track_bitmaps().await
    }

    async fn write_directory(&mut self, entries: &[Entry]) -> Result<BitmapsExtension> {
        let bytes = directory::encode(entries);
        let directory = self.take(bytes.len() as u64).await?;
        self.engine.file.write(directory.0, Buf::copy_of(&bytes)).await?;
        Ok(BitmapsExtension { count: entries.len() as u32, directory_bytes: bytes.len() as u64, directory })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        self.taken.drain(..).for_each(|clusters| state.give_back_all(clusters));
    }
}

/// Adds a cluster to ranges; neighbours become one.
fn add_cluster(ranges: &mut Vec<Range<u64>>, cluster: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == cluster => last.end += 1,
        _ => ranges.push(cluster..cluster + 1),
    }
}
