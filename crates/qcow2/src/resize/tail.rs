//! Takes away what lies behind the disk's end.
//!
//! A table that maps nothing on the disk goes as a whole: its L1 entry becomes empty, and once that is durable what the
//! table refers to loses a reference, and so does the table. It need not be written, and if a snapshot shares it, it
//! stays as it is. Only the table that the end lies in loses entries one by one.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::Result;

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{DataPlace, HostCluster, HostOffset};
use crate::meta::TableKind;
use crate::snapshot::Entries;
use crate::state::{Corruption, Decision, EntryPlace, State};
use crate::table::{L1Entry, L2Entry};

/// Clusters that lose a reference, and why.
type Referred = (Range<u64>, Dropped);

impl Engine {
    /// Removes all mappings behind `size`, as far as tables reach: an earlier cut may have left some behind the old end
    /// as well. The caller holds the whole disk, which ends there in the file already.
    pub(super) async fn cut_off(self: &Arc<Self>, size: u64) -> Result<()> {
        let kept = self.geometry.l1_entries_for(size);
        let per_table = self.geometry.l2_entries() << self.geometry.cluster_bits;
        self.unmap_beyond(size, kept.saturating_mul(per_table)).await?;
        // From here on the file has the latest entries of the tables that go.
        for index in self.tables_among(kept..u64::MAX).await? {
            self.drop_table(index).await?;
            self.relieve().await?;
        }
        Ok(())
    }

    /// Removes the table of an L1 index, of which no slice has changes that are not in the file.
    async fn drop_table(self: &Arc<Self>, index: u64) -> Result<()> {
        let entry = self.decide(NO_CAUSE, |state| state.l1_entry(index)).await?;
        let L1Entry::Table(table, _) = entry else { return Ok(()) };
        self.check_table(table, index).await?;
        let content = self.file.read(table.0, self.geometry.cluster_size() as usize).await?;
        // Known as a whole before anything changes.
        let referred = match self.referred(table, &content) {
            Ok(referred) => referred,
            Err(corruption) => return Err(self.report(corruption).await),
        };
        content.recycle();
        self.decide(NO_CAUSE, |state| state.drop_table(index, table, &referred)).await
    }

    /// What the entries of a table refer to.
    fn referred(&self, table: HostOffset, content: &[u8]) -> std::result::Result<Vec<Referred>, Corruption> {
        let geometry = self.geometry;
        let entries = Entries::new(content, geometry);
        let (mut referred, mut at) = (Vec::new(), 0);
        while let Some(index) = entries.next(at) {
            let raw = entries.raw(index);
            at = index + 1;
            match L2Entry::decode(raw, &geometry) {
                // An external file counts nothing.
                L2Entry::Normal(..) | L2Entry::ZeroAllocated(..)
                    if geometry.data_place == DataPlace::External => {}
                L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) => {
                    if !geometry.is_aligned(host) {
                        let at = EntryPlace { table: table.0, index: index as u64 };
                        return Err(Corruption::ClusterUnaligned { offset: host.0, at });
                    }
                    let (first, len) = (geometry.host_cluster(host).0, entries.run(index, raw));
                    referred.push((first..first + len as u64, Dropped::CutOff));
                    at = index + len;
                }
                // Others may share these host clusters: only the refcount tells.
                L2Entry::Compressed(compressed) => {
                    referred.push((compressed.clusters(&geometry), Dropped::Replaced));
                }
                L2Entry::Unallocated | L2Entry::ZeroPlain => {}
            }
        }
        Ok(referred)
    }
}

impl State {
    /// Removes the L2 table of an L1 index, and a reference to each of what it referred to.
    fn drop_table(&mut self, index: u64, table: HostOffset, referred: &[Referred]) -> Decision<()> {
        self.set_l1_entry(index, L1Entry::Empty)?;
        let per_table = self.geometry.slices_per_cluster();
        self.l2.forget(index * per_table..(index + 1) * per_table);
        let cluster = self.geometry.host_cluster(table);
        if let Some(meta) = self.meta.as_mut() {
            meta.remove_table(TableKind::L2, cluster.0);
        }
        for (clusters, why) in referred {
            self.free_later(HostCluster(clusters.start)..HostCluster(clusters.end), *why);
        }
        self.free_later(cluster..HostCluster(cluster.0 + 1), Dropped::CutOff);
        Ok(())
    }
}
