//! The VM state area: what a machine stores beside its disk, mapped by the same tables behind the disk's end.
//!
//! It is read and written like the disk, has no backing file, and grows with what is written: so does the L1 table. A
//! change of the disk's length takes it away, since its place depends on that length.

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Completion, DebugEvent, Error, ErrorKind, Op, Request, Result};

use crate::crypto;
use crate::engine::Engine;
use crate::geometry::DataPlace;
use crate::header::L1_BYTES_MAX;

/// A place behind all that an L1 table can map.
#[derive(Debug, thiserror::Error)]
#[error("the VM state cannot have {0} bytes beside this disk")]
struct TooLarge(u64);

/// Starts a read. What was never written reads as zeroes.
pub(crate) fn submit_read(engine: &Arc<Engine>, request: Request) -> Op {
    if let Err(e) = engine.check_usable() {
        return Op::failed(request.bufs, e);
    }
    let guest = match engine.vm_state_place(&request) {
        Ok(guest) => guest,
        Err(e) => return Op::failed(request.bufs, e),
    };
    let worker = engine.clone();
    engine.wait(async move {
        worker.file.announce(DebugEvent::VmstateLoad, request.cause).await;
        crypto::read_any(&worker, guest, request.bufs, request.cause).await
    })
}

/// Starts a write.
pub(crate) fn submit_write(engine: &Arc<Engine>, request: Request) -> Op {
    if let Err(e) = engine.check_writable() {
        return Op::failed(request.bufs, e);
    }
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    let worker = engine.clone();
    engine.keep(async move {
        worker.file.announce(DebugEvent::VmstateSave, request.cause).await;
        loop {
            let guest = match worker.vm_state_place(&request) {
                Ok(guest) => guest,
                Err(e) => return Completion::failed(request.bufs, e),
            };
            let clusters = worker.clusters_of(guest, request.len);
            let needed = clusters.end.div_ceil(worker.geometry.l2_entries());
            let guard = worker.ranges.lock(clusters, LockMode::Exclusive).await;
            if let Err(e) = worker.check_writable() {
                return Completion::failed(request.bufs, e);
            }
            // The disk, and with it this area, may have changed its length while we waited.
            let stays = matches!(worker.vm_state_place(&request), Ok(now) if now == guest);
            if stays && needed <= u64::from(worker.state.lock().header.l1_entries) {
                let completion = crypto::write_any(&worker, guest, request.bufs, request.cause).await;
                drop(guard);
                return completion;
            }
            drop(guard);
            if let Err(e) = worker.map_up_to(needed).await {
                return Completion::failed(request.bufs, e);
            }
        }
    })
}

impl Engine {
    /// The guest offset of a request in the area.
    fn vm_state_place(&self, request: &Request) -> Result<u64> {
        if self.geometry.data_place == DataPlace::External {
            return Err(ErrorKind::Unsupported.into());
        }
        let start = self.state.lock().vm_state_start();
        let end = start.checked_add(request.offset).and_then(|at| at.checked_add(request.len));
        let mapped =
            (L1_BYTES_MAX / 8).saturating_mul(self.geometry.l2_entries() << self.geometry.cluster_bits);
        match end.filter(|end| *end <= mapped.min(i64::MAX as u64)) {
            Some(end) => Ok(end - request.len),
            None => Err(Error::new(ErrorKind::TooLarge, TooLarge(request.end()))),
        }
    }

    /// Makes the L1 table large enough for `needed` entries, and half as large again as it was: a long state comes
    /// in many requests.
    async fn map_up_to(self: &Arc<Self>, needed: u64) -> Result<()> {
        let _whole = self.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
        self.check_writable()?;
        let entries = u64::from(self.state.lock().header.l1_entries);
        if needed <= entries {
            return Ok(());
        }
        self.grow_l1(needed.max((entries * 3).div_ceil(2)).min(L1_BYTES_MAX / 8), None).await
    }
}
