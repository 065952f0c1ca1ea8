//! COPIED flags of the active tables after references were dropped.
//!
//! A cluster that nobody shares any more may be written in place: its entry must say so, or the image has a wrong
//! flag. Tables whose flags change are copied, like everything here.

use cowbell_block::Result;

use super::blocks::Missing;
use super::shadow::{Change, Mark, Place, Shadow};
use super::tables::{
    Entries, L1Place, TableRef, batch_end, encode_l1, entry_mut, pieces, read_batch, set_flag,
};
use crate::geometry::{HostCluster, HostOffset};
use crate::table::{L1Entry, L2Entry, Ownership};

/// Writes a new active L1 table, with copies of the tables whose flags change. `None` when no flag does.
pub(super) async fn refresh(shadow: &mut Shadow) -> Result<Option<(HostOffset, u32)>> {
    let engine = shadow.engine.clone();
    let geometry = engine.geometry;
    let old = L1Place::active(&engine);
    let clusters = geometry.clusters_for(old.entries * 8);
    let place = shadow.own(clusters, 1).await?;
    let mut changed = false;
    for piece in pieces(old.entries) {
        let mut entries = old.read(&engine, piece.start, piece.end - piece.start).await?;
        changed |= refresh_piece(shadow, piece.start, &mut entries).await?;
        shadow.write_sparse(place, piece.start * 8, encode_l1(&entries)).await?;
    }
    if !changed {
        shadow.disown(place.first..place.first + clusters);
        return Ok(None);
    }
    shadow.cover(place.first..place.first + clusters).await?;
    shadow.drop_structure(old.offset, old.entries * 8);
    Ok(Some((geometry.host_offset(HostCluster(place.first)), old.entries as u32)))
}

/// Brings the flags of a piece of the L1 table, and of its tables, up to date; says whether an entry changed.
async fn refresh_piece(shadow: &mut Shadow, first: u64, entries: &mut [L1Entry]) -> Result<bool> {
    let engine = shadow.engine.clone();
    let mut private = Vec::new();
    for (l1_index, entry) in (first..).zip(entries.iter()) {
        let L1Entry::Table(offset, _) = *entry else { continue };
        if shadow.refcount(engine.geometry.host_cluster(offset).0).await? == 1 {
            private.push(TableRef { offset, l1_index, change: 0 });
        }
    }
    private.sort_unstable_by_key(|table| table.offset);
    let place = shadow.own_cleared(private.len() as u64, 1).await?;
    let (mut used, mut changed, mut at) = (0, false, 0);
    while at < private.len() {
        let end = batch_end(&private, at, &engine.geometry);
        changed |= refresh_batch(shadow, &private[at..end], place, &mut used, (first, entries)).await?;
        at = end;
    }
    shadow.disown(place.first + used..place.first + private.len() as u64);
    shadow.cover(place.first..place.first + used).await?;
    Ok(changed)
}

/// The same for tables that lie side by side.
async fn refresh_batch(
    shadow: &mut Shadow,
    batch: &[TableRef],
    place: Place,
    used: &mut u64,
    (first, entries): (u64, &mut [L1Entry]),
) -> Result<bool> {
    let engine = shadow.engine.clone();
    let geometry = engine.geometry;
    let size = geometry.cluster_size() as usize;
    let mut content = read_batch(&engine, batch).await?;
    let mut changed = false;
    for table in batch {
        let mut bytes = content.split_to(size);
        let entry = &mut entries[(table.l1_index - first) as usize];
        let mut host = table.offset;
        if shadow.refresh_table(&mut bytes).await? {
            let cluster = geometry.host_cluster(table.offset).0;
            shadow.marks.push(Mark { clusters: cluster..cluster + 1, change: Change::Drop });
            host = geometry.host_offset(HostCluster(place.first + *used));
            shadow.write_sparse(place.skip(*used), 0, bytes).await?;
            *used += 1;
        } else {
            bytes.recycle();
        }
        let new = L1Entry::Table(host, Ownership::Private);
        changed |= *entry != new;
        *entry = new;
    }
    content.recycle();
    Ok(changed)
}

impl Shadow {
    /// The refcount of a cluster as it will be.
    async fn refcount(&mut self, cluster: u64) -> Result<u64> {
        loop {
            match self.blocks.refcount(cluster) {
                Ok(count) => return Ok(count),
                Err(missing) => self.blocks.load(&self.engine.clone(), &missing).await?,
            }
        }
    }

    /// Brings the flags of a private table up to date; says whether one changed.
    async fn refresh_table(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let (mut at, mut changed) = (0, false);
        while let Err(missing) = self.refresh_entries(bytes, &mut at, &mut changed) {
            self.blocks.load(&self.engine.clone(), &missing).await?;
        }
        Ok(changed)
    }

    /// Goes on from entry `at`, until refcounts are missing.
    fn refresh_entries(
        &self,
        bytes: &mut [u8],
        at: &mut usize,
        changed: &mut bool,
    ) -> std::result::Result<(), Missing> {
        let geometry = self.engine.geometry;
        while let Some(index) = Entries::new(bytes, geometry).next(*at) {
            let entries = Entries::new(bytes, geometry);
            let raw = entries.raw(index);
            let mut len = 1;
            if let L2Entry::Normal(host, flag) | L2Entry::ZeroAllocated(host, flag) =
                L2Entry::decode(raw, &geometry)
            {
                let first = geometry.host_cluster(host).0;
                let (count, alike) = self.blocks.run_of(first, entries.run(index, raw) as u64)?;
                len = alike as usize;
                let right = if count == 1 { Ownership::Private } else { Ownership::Shared };
                if flag != right {
                    (index..index + len).for_each(|i| set_flag(entry_mut(bytes, i, &geometry), right));
                    *changed = true;
                }
            }
            *at = index + len;
        }
        Ok(())
    }
}
