//! Internal snapshots: the table, and what is done with them.
//!
//! | module | duty |
//! |---|---|
//! | `rows` | the entries of the table, byte for byte |
//! | `deltas` | how references change, in bounded memory |
//! | `tables` | L1 and L2 tables, read in large pieces in the order of the file |
//! | `sparse` | pieces of the file read without their holes |
//! | `shadow` | new refcounts and tables beside the old ones, switched by one write |
//! | `blocks` | the refcount blocks of a shadow |
//! | `create`, `apply`, `delete`, `rename` | one operation each |
//! | `expand` | what other versions of the format want |
//! | `flags` | COPIED flags after references were dropped |
//! | `view` | a snapshot opened read-only |
//!
//! Every operation is a [`shadow::Shadow`]: what it changes is written to new clusters, made durable and switched by
//! one write inside the header's first sector (rules R10, R12 and M3), refcounts and COPIED flags included. So a cut
//! leaves the image before the operation or after it, and at worst clusters that nobody uses: no state between has
//! a flag that contradicts its refcount. The operation holds the range lock of everything and the turn of the
//! flushes, so nothing is allocated, freed or written back beside it.
//!
//! qcow2 specification, *Snapshots*. Limits are the reference's, so that images stay exchangeable.

mod apply;
mod blocks;
mod create;
mod delete;
mod deltas;
mod expand;
mod flags;
mod rename;
mod rows;
mod shadow;
mod sparse;
mod tables;
mod view;

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::snapshots::{MatchBy, SnapshotChange, SnapshotName};
use cowbell_block::{Child, Error, ErrorKind, Result, SnapshotInfo};

use crate::engine::Engine;
use crate::geometry::{DataPlace, Geometry, HostOffset};
use crate::header::{Header, L1_BYTES_MAX};
use rows::{Input, Output};

/// Most bytes of a snapshot table.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Most snapshots of an image.
pub(crate) const SNAPSHOTS_MAX: u32 = 65_536;

/// One snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub info: SnapshotInfo,
    pub l1_offset: HostOffset,
    pub l1_entries: u32,
    /// Bytes of extra data; version 3 wants at least 16.
    pub extra_len: u32,
}

/// What is wrong with a snapshot, found when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    L1Unaligned,
    L1TooLarge,
}

impl Snapshot {
    /// Whether the snapshot's L1 table can be read at all.
    pub fn fault(&self, geometry: &Geometry) -> Option<Fault> {
        if u64::from(self.l1_entries) * 8 > L1_BYTES_MAX {
            Some(Fault::L1TooLarge)
        } else if self.l1_offset.0 >= 1 << 62 || !geometry.is_aligned(self.l1_offset) {
            Some(Fault::L1Unaligned)
        } else {
            None
        }
    }

    /// Whether fields are missing that version 3 demands.
    pub fn is_incomplete(&self, version: u32) -> bool {
        version >= 3 && self.extra_len < rows::EXTRA_V3
    }

    /// Fails unless the L1 table can be used.
    fn check(&self, geometry: &Geometry) -> Result<()> {
        match self.fault(geometry) {
            None => Ok(()),
            Some(Fault::L1TooLarge) => Err(SnapshotError::L1TooLarge.into()),
            Some(Fault::L1Unaligned) => Err(SnapshotError::L1Offset.into()),
        }
    }
}

/// What a repair leaves out of a snapshot table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// The end of an entry's extra data.
    Extra {
        /// The entry.
        index: u32,
        /// Bytes of its extra data.
        bytes: u32,
    },
    /// So many snapshots at the end, which would make the table too long.
    Snapshots(u32),
}

/// All snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotTable {
    pub entries: Vec<Snapshot>,
    /// Bytes of the table as stored.
    pub table_bytes: u64,
}

/// Whether an operation on a snapshot failed because of what the snapshot table says about its L1 table.
pub fn blames_snapshot_table(error: &Error) -> bool {
    let cause = error.cause().and_then(|cause| cause.downcast_ref::<SnapshotError>());
    matches!(cause, Some(SnapshotError::L1TooLarge | SnapshotError::L1Offset))
}

/// A snapshot table that breaks a rule, or an operation that would.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("Snapshot table too large")]
    TooLarge,
    #[error(
        "Snapshot table is too big\n\
         You can force-remove all {0} overhanging snapshots with qemu-img check -r all"
    )]
    TooBig(u32),
    #[error(
        "Too much extra metadata in snapshot table entry {0}\n\
         You can force-remove this extra metadata with qemu-img check -r all"
    )]
    Extra(u32),
    #[error("Snapshot L1 table too large")]
    L1TooLarge,
    #[error("Snapshot L1 table offset invalid")]
    L1Offset,
    #[error("Can't find snapshot")]
    NotFound,
    #[error("the image has {SNAPSHOTS_MAX} snapshots already, the most that there may be")]
    TooMany,
    #[error("a snapshot with id '{0}' exists already")]
    IdTaken(u64),
    #[error("the snapshot's name has {0} bytes; at most 65535 fit")]
    NameTooLong(usize),
    #[error(
        "a cluster would have {wanted} references, more than the {max} that the image's refcounts can count"
    )]
    RefcountTooLarge { wanted: u64, max: u64 },
    #[error("the snapshot's disk of {0} bytes is too large")]
    DiskTooLarge(u64),
    #[error("internal snapshots do not work while the data lies in an external file")]
    DataFile,
    #[error("a snapshot of the image is being read")]
    InUse,
    #[error("Device has active dirty bitmaps")]
    Bitmaps,
}

impl From<SnapshotError> for Error {
    fn from(e: SnapshotError) -> Self {
        let kind = match e {
            SnapshotError::TooLarge
            | SnapshotError::TooBig(_)
            | SnapshotError::Extra(_)
            | SnapshotError::L1TooLarge
            | SnapshotError::TooMany
            | SnapshotError::DiskTooLarge(_) => ErrorKind::TooLarge,
            SnapshotError::L1Offset | SnapshotError::NameTooLong(_) => ErrorKind::InvalidInput,
            SnapshotError::RefcountTooLarge { .. } => ErrorKind::InvalidInput,
            SnapshotError::NotFound => ErrorKind::NotFound,
            SnapshotError::IdTaken(_) => ErrorKind::AlreadyExists,
            SnapshotError::DataFile => ErrorKind::Unsupported,
            SnapshotError::InUse | SnapshotError::Bitmaps => ErrorKind::Busy,
        };
        Error::new(kind, e)
    }
}

impl SnapshotTable {
    /// Reads the table that the header names.
    ///
    /// # Errors
    /// The file's, or the limit that the table exceeds. What concerns one snapshot only is left to those who use it,
    /// so that the active disk of a damaged image can be read.
    pub async fn read(file: &Child, header: &Header) -> Result<Self> {
        let mut entries = Vec::new();
        let table_bytes = Self::scan(file, header, |entry| entries.push(entry)).await?;
        Ok(Self { entries, table_bytes })
    }

    /// Reads the table for a repair: `excess` is told what exceeds a limit, and a rewrite leaves it out. Returns the
    /// table with the bytes that its rewrite takes.
    ///
    /// # Errors
    /// The file's.
    pub async fn read_for_repair(
        file: &Child,
        header: &Header,
        mut excess: impl FnMut(Excess),
    ) -> Result<(Self, u64)> {
        let (mut entries, mut rewritten) = (Vec::new(), 0);
        let mut input = Input::for_repair(file, header);
        while let Some(row) = input.next().await? {
            entries.push(row.snapshot(header.size));
            rewritten += row.completed(header.size).stored_len();
            input.take_excess().into_iter().for_each(&mut excess);
        }
        input.take_excess().into_iter().for_each(&mut excess);
        Ok((Self { entries, table_bytes: input.table_bytes() }, rewritten))
    }

    /// Writes what [`SnapshotTable::read_for_repair`] keeps to another place, all entries complete.
    ///
    /// # Errors
    /// The file's.
    pub async fn rewrite(file: &Child, header: &Header, place: HostOffset) -> Result<()> {
        let (mut input, mut output) = (Input::for_repair(file, header), Output::new(file, place));
        while let Some(row) = input.next().await? {
            output.put(&row.completed(header.size)).await?;
        }
        output.finish().await
    }

    /// Goes through the table without keeping anything; returns its length in bytes.
    ///
    /// # Errors
    /// As [`SnapshotTable::read`].
    pub async fn scan(file: &Child, header: &Header, mut each: impl FnMut(Snapshot)) -> Result<u64> {
        let mut input = Input::new(file, header);
        while let Some(row) = input.next().await? {
            each(row.snapshot(header.size));
        }
        Ok(input.table_bytes())
    }

    /// The snapshot that is meant, with its index.
    async fn find(file: &Child, header: &Header, which: &SnapshotName) -> Result<(u32, Snapshot)> {
        for by in [MatchBy::Id, MatchBy::Name] {
            let mut input = Input::new(file, header);
            let mut index = 0;
            while let Some(row) = input.next().await? {
                if which.matches(by, &row.id, &row.name) {
                    return Ok((index, row.snapshot(header.size)));
                }
                index += 1;
            }
        }
        Err(SnapshotError::NotFound.into())
    }
}

/// Changes the snapshots of an image as a whole or not at all.
///
/// # Errors
/// What forbids it, or the file's error. Unless the switch itself failed, nothing has changed.
pub(crate) async fn change(engine: &Arc<Engine>, change: SnapshotChange) -> Result<()> {
    engine.check_writable()?;
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    let _flushes = engine.flushing.lock(0..1, LockMode::Exclusive).await;
    engine.check_writable()?;
    if engine.geometry.data_place == DataPlace::External {
        return Err(SnapshotError::DataFile.into());
    }
    engine.bring_up_to_date().await?;
    match change {
        SnapshotChange::Create(new) => create::create(engine, &new).await,
        SnapshotChange::Apply(which) => apply::apply(engine, &which).await,
        SnapshotChange::Delete(which) => delete::delete(engine, &which).await,
        SnapshotChange::Rename(which, name) => rename::rename(engine, &which, &name).await,
    }
}

pub(crate) use expand::{complete, expand_zero_clusters, fit_version_2};
pub(crate) use rows::EXTRA_BYTES_MAX;
pub(crate) use tables::Entries;
pub(crate) use view::open_view;
