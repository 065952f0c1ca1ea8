//! Changes the length of the disk.
//!
//! Growing may need a larger L1 table. It is written to new clusters, made durable, and switched together with
//! the length by one write in the header's first sector (rules R10 and M3): a cut leaves the old disk or the
//! new one.

use std::sync::Arc;

use cowbell_block::node::NotOffered;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{
    Buf, Bufs, Completion, DebugEvent, Error, ErrorKind, Flags, Op, Preallocation, Request, Result,
};

use crate::engine::{Engine, NO_CAUSE};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::L1_BYTES_MAX;
use crate::meta;
use crate::zero;

/// A length that the image cannot get.
#[derive(Debug, thiserror::Error)]
enum ResizeError {
    #[error("The new size must be a multiple of 512")]
    Unaligned,
    #[error("Image size too big: the L1 table would need {0} entries")]
    TooLarge(u64),
}

/// Starts a change of length.
pub(crate) fn submit(engine: &Arc<Engine>, request: &Request, preallocation: Preallocation) -> Op {
    if let Err(e) = engine.check_writable() {
        return Op::failed(Bufs::none(), e);
    }
    let size = request.offset;
    let turn = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
    let worker = engine.clone();
    engine.keep(async move {
        let _whole = turn.await;
        match resize(&worker, size, preallocation).await {
            Ok(()) => Completion::done(Bufs::none()),
            Err(e) => Completion::failed(Bufs::none(), e),
        }
    })
}

async fn resize(engine: &Arc<Engine>, size: u64, preallocation: Preallocation) -> Result<()> {
    if !size.is_multiple_of(512) {
        return Err(Error::new(ErrorKind::InvalidInput, ResizeError::Unaligned));
    }
    if preallocation != Preallocation::Off {
        return Err(NotOffered { driver: "qcow2", what: "preallocation in this version" }.into());
    }
    let old = engine.state.lock().header.size;
    if size < old {
        return Err(NotOffered { driver: "qcow2", what: "shrinking in this version" }.into());
    }
    let needed = engine.geometry.l1_entries_for(size);
    if needed * 8 > L1_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, ResizeError::TooLarge(needed)));
    }
    if needed > u64::from(engine.state.lock().header.l1_entries) {
        engine.grow_l1(needed, None).await?;
    }
    // What a longer backing file holds beyond the old end must not appear.
    let hidden = engine.backing.as_ref().map_or(0, |b| b.len()).min(size);
    if hidden > old {
        zero::write_zeroes(engine, old, hidden - old, Flags::empty(), NO_CAUSE).await?;
    }
    engine.flush().await?;
    engine.update_header(|header| header.size = size).await?;
    engine.barrier().await
}

impl Engine {
    /// Replaces the L1 table by one of `entries`, and sets the disk's length with it if one is given.
    pub(crate) async fn grow_l1(self: &Arc<Self>, entries: u64, size: Option<u64>) -> Result<()> {
        let geometry = self.geometry;
        let clusters = geometry.clusters_for(entries * 8);
        self.file.announce(DebugEvent::L1GrowAllocTable, NO_CAUSE).await;
        // The old table's latest entries must be in the file before they are copied from there.
        self.flush().await?;
        let (old_offset, old_entries) = {
            let state = self.state.lock();
            (state.header.l1_offset, u64::from(state.header.l1_entries))
        };
        let taken = self.take_contiguous(clusters).await?;
        let first = taken.start;
        let offset = HostOffset(first << geometry.cluster_bits);
        let mut table = Buf::zeroed((entries * 8) as usize);
        if old_entries > 0 {
            let old = self.file.read(old_offset.0, (old_entries * 8) as usize).await?;
            table[..old.len()].copy_from_slice(&old);
        }
        self.file.announce(DebugEvent::L1GrowWriteTable, NO_CAUSE).await;
        if let Err(e) = self.file.write(offset.0, table).await {
            self.state.lock().give_back_all(taken);
            return Err(e);
        }
        self.write_refcounts().await?;
        self.barrier().await?;
        self.file.announce(DebugEvent::L1GrowActivateTable, NO_CAUSE).await;
        self.update_header(|header| {
            header.l1_offset = offset;
            header.l1_entries = entries as u32;
            header.size = size.unwrap_or(header.size);
        })
        .await?;
        self.barrier().await?;
        let mut state = self.state.lock();
        state.l1.forget(0..u64::MAX);
        if let Some(map) = state.meta.as_mut() {
            map.remove_fixed(meta::ACTIVE_L1);
            map.add_fixed(first..first + clusters, meta::ACTIVE_L1);
        }
        if old_entries > 0 {
            let old = geometry.host_cluster(old_offset).0;
            let end = old + geometry.clusters_for(old_entries * 8);
            state.free_later(HostCluster(old)..HostCluster(end), false);
        }
        Ok(())
    }
}
