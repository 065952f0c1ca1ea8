//! What a long range is: L2 tables read in large pieces, beside the cache.
//!
//! A guest's request needs one entry of a table or a few, and the cache reads as much. Who asks about a whole disk (map,
//! measure, a copy, a change of the version) needs all entries of one table after the other, once: read by the slice
//! that is a call for each 4 KiB, and they push out what the cache held.
//!
//! The piece read last is kept, with the age that the mappings had before it was read. While that age is theirs, and no
//! entry was newer in memory than in the file then, what the piece says is so. Whoever asks while mappings change is
//! answered from the cache.

use std::sync::Arc;

use cowbell_block::{Buf, Cause, DebugEvent, Result};

use crate::engine::Engine;
use crate::entries::Entries;
use crate::geometry::{GuestCluster, HostOffset};
use crate::map::Run;
use crate::state::{Decision, Stop};
use crate::table::L1Entry;

/// Most bytes of a table that are read at once.
const WINDOW_BYTES: u64 = 128 << 10;

/// A piece of an L2 table.
pub(crate) struct Window {
    age: (u64, u64),
    first: GuestCluster,
    host: HostOffset,
    bytes: Buf,
}

impl Engine {
    /// The beginning of a range, as [`map_run`](crate::state::State::map_run) has it, for callers who go through the
    /// whole range.
    ///
    /// # Errors
    /// The file's, or a damaged table.
    pub(crate) async fn next_run(self: &Arc<Self>, offset: u64, len: u64, cause: Cause) -> Result<Run> {
        if self.geometry.slices_per_cluster() > 1 {
            let mut found = self.run_in_window(offset, len);
            if found.is_none() && self.is_far(offset, len) {
                self.move_window(self.geometry.guest_cluster(offset), cause).await?;
                found = self.run_in_window(offset, len);
            }
            match found {
                Some(Ok(run)) => return Ok(run),
                Some(Err(Stop::Corrupt(corruption))) => return Err(self.report(corruption).await),
                Some(Err(Stop::Need(_))) | None => {}
            }
        }
        self.decide(cause, |state| state.map_run(offset, len)).await
    }

    /// Whether a range goes on beyond the slice in which it begins.
    fn is_far(&self, offset: u64, len: u64) -> bool {
        let slice = |at| self.geometry.l2_slice(self.geometry.guest_cluster(at));
        slice(offset) != slice(offset + len - 1)
    }

    fn run_in_window(&self, offset: u64, len: u64) -> Option<Decision<Run>> {
        let (age, version) = {
            let state = self.state.lock();
            (state.mapping_age(), state.header.version)
        };
        let window = self.window.lock();
        let window = window.as_ref().filter(|window| window.age == age)?;
        let (first, host, geometry) = (window.first, window.host, &self.geometry);
        let entries = Entries { bytes: &window.bytes, first, host, geometry, version };
        let cluster = geometry.guest_cluster(offset).0;
        (first.0..entries.end()).contains(&cluster).then(|| entries.run(offset, len))
    }

    /// Reads the table that maps `cluster`, from there on, if there is one and the file has all that is known of it.
    async fn move_window(self: &Arc<Self>, cluster: GuestCluster, cause: Cause) -> Result<()> {
        let geometry = self.geometry;
        let index = geometry.l1_index(cluster);
        let L1Entry::Table(table, _) = self.decide_l1(index).await? else { return Ok(()) };
        self.check_table(table, index).await?;
        let (age, _pin) = {
            let mut state = self.state.lock();
            if !state.is_mapping_written() {
                return Ok(());
            }
            match state.l1_entry(index) {
                Ok(L1Entry::Table(now, _)) if now == table => {}
                _ => return Ok(()),
            }
            // The table's cluster is nobody else's as long as it is pinned.
            (state.mapping_age(), state.epochs.pin())
        };
        let slice = geometry.l2_slice(cluster);
        let first = GuestCluster(slice * geometry.l2_slice_entries());
        let inside = slice % geometry.slices_per_cluster() * self.slice_bytes();
        let host = HostOffset(table.0 + inside);
        self.tell_of_load(1, host.0, slice, cause);
        self.file.announce(DebugEvent::L2Load, cause).await;
        let len = WINDOW_BYTES.min(geometry.cluster_size() - inside);
        // What cannot be read as a whole can perhaps in part, as far as it is needed.
        let Ok(bytes) = self.file.read(host.0, len as usize).await else { return Ok(()) };
        if let Some(old) = self.window.lock().replace(Window { age, first, host, bytes }) {
            old.bytes.recycle();
        }
        Ok(())
    }
}
