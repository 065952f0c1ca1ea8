//! Changes of what an image is: version, refcount width, features, names in the header.
//!
//! Everything that lies in the header changes by one switch of the whole header (see `rewrite`), after whatever it
//! relies on is durable: new refcount tables, and data in place of zero clusters that version 2 does not have. A
//! cut leaves the old image or the new one. Who changed the version or the width must open the image again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Error, ErrorKind, Preallocation, Result, names};

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::header::{BACKING_NAME_MAX, Header, Incompatible, LAZY_REFCOUNTS};
use crate::map::Kind;
use crate::snapshot::{self, SnapshotTable};
use crate::table::Cell;
use crate::{resize, write};

/// What is to change; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// 2 or 3.
    pub version: Option<u32>,
    /// Log2 of the refcount width in bits, 0 to 6.
    pub refcount_order: Option<u32>,
    /// Whether refcount updates are postponed.
    pub lazy_refcounts: Option<bool>,
    /// Length of the disk in bytes.
    pub size: Option<u64>,
    /// The external data file's name.
    pub data_file: Option<String>,
    /// Whether the external data file reads like the disk by itself: can be given up, not gained.
    pub raw_data_file: Option<bool>,
}

/// A change that cannot be made.
#[derive(Debug, thiserror::Error)]
enum AmendError {
    #[error("compat=0.10 requires refcount_bits=16")]
    RefcountsOfVersion2,
    #[error(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
    )]
    RefcountVersion,
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"
    )]
    LazyVersion,
    #[error("data-file can only be set for images that use an external data file")]
    NoDataFile,
    #[error("data-file-raw cannot be set on existing images")]
    RawDataFile,
    #[error("Cannot downgrade an image with a data file")]
    HasDataFile,
    #[error("Cannot downgrade an image with incompatible features {0:#x} set")]
    Incompatible(u64),
    #[error("Internal snapshots prevent downgrade of image")]
    Snapshots,
    #[error("Backing file name too long")]
    BackingName,
    #[error("a backing file and a raw external data file exclude each other")]
    RawWithBacking,
}

impl From<AmendError> for Error {
    fn from(e: AmendError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

impl Amendment {
    fn check(&self, header: &Header) -> std::result::Result<(), AmendError> {
        let version = self.version.unwrap_or(header.version);
        let order = self.refcount_order.unwrap_or(header.refcount_order);
        let has = |feature| header.incompatible.contains(feature);
        if version < 3 && order != 4 {
            return Err(match self.refcount_order {
                None => AmendError::RefcountsOfVersion2,
                Some(_) => AmendError::RefcountVersion,
            });
        }
        if self.lazy_refcounts == Some(true) && version < 3 {
            return Err(AmendError::LazyVersion);
        }
        if self.data_file.is_some() && !has(Incompatible::DATA_FILE) {
            return Err(AmendError::NoDataFile);
        }
        if self.raw_data_file == Some(true) && !header.has_raw_data_file() {
            return Err(AmendError::RawDataFile);
        }
        let stays = header.incompatible - Incompatible::DIRTY;
        match version < header.version {
            true if has(Incompatible::DATA_FILE) => Err(AmendError::HasDataFile),
            true if !stays.is_empty() => Err(AmendError::Incompatible(stays.bits())),
            _ => Ok(()),
        }
    }
}

/// Changes an image.
///
/// # Errors
/// A change that the image does not allow, found before anything is changed; or the file's.
pub(crate) async fn amend(engine: &Arc<Engine>, wanted: Amendment) -> Result<()> {
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    engine.check_writable()?;
    let header = engine.state.lock().header.clone();
    wanted.check(&header)?;
    let version = wanted.version.unwrap_or(header.version);
    let order = wanted.refcount_order.unwrap_or(header.refcount_order);
    let snapshots = SnapshotTable::read(&engine.file, &header).await?;
    // A new refcount structure is built from the file's; and a reopened image shall find them good.
    engine.store_bitmaps().await?;
    let size = wanted.size.unwrap_or(header.size);
    if version < header.version && !snapshot::fit_version_2(&snapshots, size) {
        return Err(AmendError::Snapshots.into());
    }
    if version > header.version && snapshots.entries.iter().any(|s| s.is_incomplete(version)) {
        // Older versions know what is added, and pass over it.
        snapshot::complete(engine).await?;
    }
    if let Some(size) = wanted.size {
        resize::resize(engine, size, Preallocation::Off).await?;
    }
    if version < header.version {
        // Version 2 has none, and the reference loses them as well.
        engine.drop_bitmaps().await?;
        // The disk first: what it shares with snapshots and keeps is never theirs alone afterwards without its flag.
        engine.expand_zero_clusters().await?;
        snapshot::expand_zero_clusters(engine).await?;
    }
    // The header tells nothing of refcounts or entries that are not in the file.
    let retires = version != header.version || order != header.refcount_order;
    match retires {
        true => engine.settle_for_good().await?,
        false => engine.settle_refcounts().await?,
    }
    let refcounts = match order == header.refcount_order {
        true => None,
        false => Some(engine.build_refcounts(order).await?),
    };
    let change = |header: &mut Header| {
        header.version = version;
        header.refcount_order = order;
        if let Some(table) = &refcounts {
            (header.reftable_offset, header.reftable_clusters) = (table.offset, table.clusters);
        }
        match wanted.lazy_refcounts.unwrap_or(version >= 3 && header.compatible & LAZY_REFCOUNTS != 0) {
            true => header.compatible |= LAZY_REFCOUNTS,
            false => header.compatible &= !LAZY_REFCOUNTS,
        }
        if let Some(name) = &wanted.data_file {
            header.set_data_file(name);
        }
        if wanted.raw_data_file == Some(false) {
            header.clear_raw_data_file();
        }
        if version < 3 {
            header.leave_version_3();
        }
    };
    engine.rewrite_header(change).await?;
    if retires {
        engine.retired.store(true, Ordering::SeqCst);
        return Ok(());
    }
    if let Some(lazy) = wanted.lazy_refcounts {
        engine.state.lock().lazy = lazy;
    }
    Ok(())
}

/// Stores another backing file's name. What the open image shows does not change before it is opened again.
///
/// # Errors
/// A name that does not fit, or the file's error.
pub(crate) async fn change_backing(
    engine: &Arc<Engine>,
    name: Option<String>,
    format: Option<String>,
) -> Result<()> {
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    engine.check_writable()?;
    let name = name.filter(|name| !name.is_empty());
    if name.as_ref().is_some_and(|name| names::to_bytes(name).len() > BACKING_NAME_MAX as usize) {
        return Err(AmendError::BackingName.into());
    }
    if name.is_some() && engine.state.lock().header.has_raw_data_file() {
        return Err(AmendError::RawWithBacking.into());
    }
    let format = format.filter(|format| !format.is_empty() && name.is_some());
    // Entries that are newer than the file belong to what the old backing file shows.
    engine.flush().await?;
    engine
        .rewrite_header(|header| {
            header.backing_file.clone_from(&name);
            header.backing_format.clone_from(&format);
        })
        .await
}

impl Engine {
    /// Replaces zero clusters, which version 2 does not have: by nothing where nothing lies below, otherwise by
    /// data.
    async fn expand_zero_clusters(self: &Arc<Self>) -> Result<()> {
        let geometry = self.geometry;
        let end = self.state.lock().header.size.next_multiple_of(geometry.cluster_size());
        let mut at = 0;
        while at < end {
            let run = self.next_run(at, end - at, NO_CAUSE).await?;
            let Kind::Zero(host) = run.kind else {
                at += run.len;
                continue;
            };
            if host.is_none() && self.backing.is_none() {
                let cluster = geometry.guest_cluster(at);
                self.decide(NO_CAUSE, |state| state.unlink(cluster, Cell::UNALLOCATED, Dropped::Replaced))
                    .await?;
            } else {
                let zeroes = Buf::zeroed(geometry.cluster_size() as usize);
                write::write(self, at, zeroes.into(), NO_CAUSE).await.into_bufs()?.recycle();
            }
            self.relieve().await?;
            at += geometry.cluster_size();
        }
        Ok(())
    }
}
