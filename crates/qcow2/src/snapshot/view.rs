//! A snapshot opened read-only, beside the disk: an engine of its own over the same file.
//!
//! The tables and clusters of a snapshot never change while it exists, so its caches need not know of the disk's.

use std::sync::Arc;

use cowbell_block::{Result, SnapshotName};

use super::SnapshotTable;
use crate::OpenOptions;
use crate::engine::Engine;
use crate::open::capacities;
use crate::state::{Settings, State};

/// Opens a snapshot. While the view lives no snapshot can be deleted.
pub(crate) async fn open_view(engine: &Arc<Engine>, which: &SnapshotName) -> Result<Arc<Engine>> {
    engine.check_usable()?;
    let mut header = engine.state.lock().header.clone();
    let (_, snapshot) = SnapshotTable::find(&engine.file, &header, which).await?;
    snapshot.check(&engine.geometry)?;
    header.l1_offset = snapshot.l1_offset;
    header.l1_entries = snapshot.l1_entries;
    header.size = snapshot.info.disk_size - snapshot.info.disk_size % 512;
    let usual = OpenOptions::default();
    let caches = capacities(&engine.geometry, usual.l2_cache_bytes, usual.refcount_cache_bytes);
    let settings = {
        let state = engine.state.lock();
        Settings { lazy: false, discards: state.discards, overlap_checks: state.overlap_checks }
    };
    let state = State::new(header, engine.geometry, engine.file.len(), settings, &caches);
    let around = engine.around.clone();
    let (file, backing, data_file) = (engine.file.clone(), engine.backing.clone(), engine.data_file.clone());
    let view = Engine::new(file, backing, data_file, state, around);
    Ok(Arc::new(view.viewing(engine)))
}
