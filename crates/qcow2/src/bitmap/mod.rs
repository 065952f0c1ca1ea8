//! Persistent dirty bitmaps: which parts of the disk changed since some moment, kept in the image.
//!
//! ## The format, byte by byte
//!
//! All numbers are big endian. The header extension `0x23852875` (24 bytes) names the directory:
//!
//! ```text
//!    0  4  number of bitmaps, 1 to 65535
//!    4  4  reserved, 0
//!    8  8  bytes of the directory, at most 65535 * 1024
//!   16  8  its place, a cluster's beginning
//! ```
//!
//! It means something only while autoclear bit 0 is set: a writer that does not know bitmaps clears the bit, and
//! then all of them are gone. The directory is a row of entries, each padded to 8 bytes:
//!
//! ```text
//!    0  8  place of the bitmap table, a cluster's beginning
//!    8  4  its entries; the table and what it names take at most 512 MiB
//!   12  4  flags: 0 in use (content means nothing), 1 auto (records changes); others are refused
//!   16  1  type: 1
//!   17  1  log2 of the bytes of a bit, 9 to 31
//!   18  2  bytes of the name, 1 to 1023
//!   20  4  bytes of extra data before the name: 0, others are refused
//!   24  …  the name
//! ```
//!
//! A table has 8-byte entries, one for each cluster of bits: bits 9 to 55 are the cluster's place; without a place
//! bit 0 says whether all its bits are set or clear; all else is reserved. Bit `n` of a bitmap is bit `n % 8` of
//! byte `n / 8`, the least significant first. Bits beyond the disk's end mean nothing (the reference leaves some
//! of them set).
//!
//! ## How they are kept
//!
//! ```text
//!   Off ── add, enable ──> Armed ── first change of the disk: `in use` set, barrier ──> Live
//!    ^                     ^   │                                                          │ changes are
//!    └── disable, remove ──┘   └<──── stored: bits, barrier, `in use` cleared, barrier ───┘ noted in memory
//! ```
//!
//! * While the image is open the file's bitmaps stay where they are; memory holds only what changed since they were
//!   last stored (`dirty`), once for all of them, at the finest granularity. So opening costs nothing, memory
//!   follows the work done, and what did not change is not written again.
//! * A change is noted while its guest range is held, and storing holds the whole disk: none is lost between.
//! * Only a bitmap that records changes is marked in use, and only when the disk changes. A cut leaves it marked; it
//!   can be removed then, and nothing else. Bitmaps that do not record stay good.
//! * What changes a bitmap otherwise (module `edit`) writes a new table and a new directory to new clusters, makes
//!   them durable, and switches with the header (`rewrite_header`): before or after.

mod bits;
pub(crate) mod directory;
mod dirty;
mod edit;
mod reader;
mod resize;
mod shape;
mod store;
mod table;
mod tracker;

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Error, ErrorKind, Result, names};
use serde_json::{Value, json};

use crate::Qcow2;
use crate::engine::Engine;
use crate::header::Header;
use directory::{Entry, Flags};

pub use reader::BitmapReader;
pub(crate) use shape::TableEntry;
pub(crate) use tracker::{Mode, Tracker};

/// Most bitmaps in an image.
pub const BITMAPS_MAX: u32 = 65535;
/// Most bytes of a directory.
pub const DIRECTORY_BYTES_MAX: u64 = 65535 * 1024;
/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 1023;
/// Finest granularity: a sector.
const GRANULARITY_BITS_MIN: u32 = 9;
/// Coarsest granularity: 2 GiB.
const GRANULARITY_BITS_MAX: u32 = 31;
/// Most bytes that the clusters of one bitmap take.
const PHYSICAL_BYTES_MAX: u64 = 512 << 20;
/// Granularities that are chosen when none is given: the cluster size within these, in bytes.
const GRANULARITY_CHOSEN: (u64, u64) = (4096, 65536);

/// A bitmap as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name; what is not UTF-8 in it is replaced.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Whether it records changes.
    pub recording: bool,
    /// It was not stored after it changed: it can only be removed.
    pub inconsistent: bool,
}

/// Whether a bitmap records changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Each change of the disk sets bits.
    On,
    /// The bitmap stays as it is.
    Off,
}

/// What cannot be done with a bitmap, or a rule that stored bitmaps break. The texts are the reference's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// No such bitmap.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// The name is taken.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// Nothing to call it by.
    #[error("Bitmap name cannot be empty")]
    EmptyName,
    /// A name with a NUL.
    #[error("Bitmap name cannot contain NUL")]
    NulInName,
    /// Not a power of two from 512 to 2 GiB.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// Marked in use.
    #[error(
        "Bitmap '{0}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap \
         from disk"
    )]
    Inconsistent(String),
    /// Disks of different lengths.
    #[error(
        "Bitmaps are of different sizes (destination size is {destination}, source size is {from}) and can't be \
         merged"
    )]
    Sizes {
        /// Bytes of the disk whose bitmap is changed.
        destination: u64,
        /// Bytes of the other disk.
        from: u64,
    },
    /// The image cannot hold it.
    #[error("Can't make bitmap '{name}' persistent in '{NODE_NAME}': {reason}")]
    CannotStore {
        /// The bitmap.
        name: String,
        /// What stands against it.
        reason: CannotStore,
    },
    /// A longer disk would need larger bitmaps than the format has.
    #[error("bitmap '{0}' cannot cover a disk of that size")]
    DiskTooLarge(String),
    /// A bitmap of nothing cannot be stored.
    #[error("the image has bitmaps, which cannot cover an empty disk")]
    DiskEmpty,
    /// An entry that breaks a rule.
    #[error("Bitmap '{0}' doesn't satisfy the constraints")]
    Constraints(String),
    /// The table is not as long as the disk needs.
    #[error("Could not read bitmap '{0}' from image: Invalid argument")]
    Unreadable(String),
    /// An entry of a bitmap table that breaks a rule.
    #[error("bitmap table entry {0:#x} is invalid")]
    TableEntry(u64),
    /// Its clusters belong to something else as well.
    #[error("the bitmap table at {0:#x} is not the bitmap's alone")]
    TableShared(u64),
    /// The extension names no bytes.
    #[error("Requested bitmap directory size is zero")]
    DirectoryEmpty,
    /// Entries that do not fit.
    #[error("Broken bitmap directory")]
    Directory,
    /// Data whose meaning is unknown.
    #[error("Bitmap extra data is not supported")]
    ExtraData,
    /// The directory goes on.
    #[error("More bitmaps found than specified in header extension")]
    MoreThanCounted,
    /// The directory ends early.
    #[error("Less bitmaps found than specified in header extension")]
    FewerThanCounted,
}

/// How a message calls the image's node. The reference makes up a name with a random number in it.
const NODE_NAME: &str = "#block100";

/// Why an image cannot hold a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotStore {
    /// Version 2.
    #[error("Cannot store dirty bitmaps in qcow2 v2 files")]
    Version,
    /// More than 1023 bytes.
    #[error("Name length exceeds maximum (1023 characters)")]
    NameLength,
    /// More than 512 MiB.
    #[error("Too much space will be occupied by the bitmap. Use larger granularity")]
    Space,
    /// More than 65535.
    #[error("Maximum number of persistent bitmaps is already reached")]
    Count,
    /// The directory is full.
    #[error("Not enough space in the bitmap directory")]
    Directory,
    /// Nothing to cover.
    #[error("Cannot store dirty bitmaps of an empty disk")]
    Empty,
}

impl From<BitmapError> for Error {
    fn from(e: BitmapError) -> Self {
        let kind = match e {
            BitmapError::NotFound(_) => ErrorKind::NotFound,
            BitmapError::Exists(_) => ErrorKind::AlreadyExists,
            BitmapError::CannotStore { .. } | BitmapError::ExtraData => ErrorKind::Unsupported,
            BitmapError::Inconsistent(_) => ErrorKind::Busy,
            BitmapError::TableEntry(_) | BitmapError::TableShared(_) => ErrorKind::Corrupt,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

impl Qcow2 {
    /// The bitmaps in the order of the directory.
    ///
    /// # Errors
    /// The file's, or the rule that the directory breaks.
    pub async fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        let engine = &self.engine;
        let header = engine.state.lock().header.clone();
        let mut list = Vec::new();
        directory::scan(&engine.file, &header, &engine.geometry, |entry| {
            list.push(BitmapInfo {
                name: entry.text(),
                granularity: 1 << entry.granularity_bits,
                recording: entry.flags.contains(Flags::AUTO),
                // Marked by this engine, it will be stored.
                inconsistent: entry.flags.contains(Flags::IN_USE) && !engine.bitmaps.is_ours(&entry),
            });
        })
        .await?;
        Ok(list)
    }

    /// Whether the image has a place for bitmaps: version 3.
    pub fn offers_bitmaps(&self) -> bool {
        self.engine.state.lock().header.version >= 3
    }

    /// The granularity of a bitmap for which none is given: the cluster size, from 4 KiB to 64 KiB.
    pub fn default_granularity(&self) -> u64 {
        self.engine.geometry.cluster_size().clamp(GRANULARITY_CHOSEN.0, GRANULARITY_CHOSEN.1)
    }

    /// Adds a bitmap with all bits clear, which records changes from now on.
    ///
    /// Like all that changes bitmaps it is before or after in the file, and must be driven to its end: dropped half
    /// way, it may leave clusters that nothing refers to.
    ///
    /// # Errors
    /// The name is taken or not allowed, the image cannot hold the bitmap, or the file's.
    pub async fn add_bitmap(&self, name: &str, granularity: u64) -> Result<()> {
        self.engine.orphans.beside(edit::add(&self.engine, name, granularity)).await
    }

    /// Removes a bitmap, also an inconsistent one.
    ///
    /// # Errors
    /// There is none of this name, or the file's.
    pub async fn remove_bitmap(&self, name: &str) -> Result<()> {
        self.engine.orphans.beside(edit::remove(&self.engine, name)).await
    }

    /// Clears all bits of a bitmap.
    ///
    /// # Errors
    /// There is none of this name, it is inconsistent, or the file's.
    pub async fn clear_bitmap(&self, name: &str) -> Result<()> {
        self.engine.orphans.beside(edit::clear(&self.engine, name)).await
    }

    /// Lets a bitmap record changes, or not.
    ///
    /// # Errors
    /// As [`Qcow2::clear_bitmap`].
    pub async fn set_recording(&self, name: &str, recording: Recording) -> Result<()> {
        self.engine.orphans.beside(edit::set_recording(&self.engine, name, recording)).await
    }

    /// Sets the bits of a bitmap that are set in another one, of this or another image; both of one disk size.
    ///
    /// # Errors
    /// As [`Qcow2::clear_bitmap`]; different disk sizes; or the source's file.
    pub async fn merge_bitmap(&self, name: &str, source: &mut BitmapReader) -> Result<()> {
        self.engine.orphans.beside(edit::merge(&self.engine, name, source)).await
    }

    /// Opens a bitmap for reading. Changes made to it later may be seen or not; storage that it gives up meanwhile is
    /// not reused before the reader is dropped.
    ///
    /// # Errors
    /// As [`Qcow2::clear_bitmap`].
    pub async fn read_bitmap(&self, name: &str) -> Result<BitmapReader> {
        let engine = &self.engine;
        let whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
        let _whole = engine.orphans.beside(whole).await;
        engine.check_usable()?;
        engine.store_bitmaps().await?;
        let (header, pin) = {
            let state = engine.state.lock();
            (state.header.clone(), state.epochs.pin())
        };
        let entries = directory::read(&engine.file, &header, &engine.geometry).await?;
        let entry = find(&entries, name)?;
        Ok(BitmapReader::new(engine.clone(), &entries[entry], header.size, pin))
    }
}

/// The index of a bitmap that may be used.
fn find(entries: &[Entry], name: &str) -> std::result::Result<usize, BitmapError> {
    let found = entries.iter().position(|entry| entry.name == *names::to_bytes(name));
    let found = found.ok_or_else(|| BitmapError::NotFound(name.to_owned()))?;
    match entries[found].flags.contains(Flags::IN_USE) {
        true => Err(BitmapError::Inconsistent(name.to_owned())),
        false => Ok(found),
    }
}

/// Looks whether the bitmaps of an image that is being opened obey the format.
pub(crate) async fn check_stored(engine: &Arc<Engine>) -> Result<()> {
    let header = engine.state.lock().header.clone();
    directory::scan(&engine.file, &header, &engine.geometry, drop).await
}

/// Says so when another program wrote an image with bitmaps, which are lost by that.
pub(crate) fn tell_stale(engine: &Arc<Engine>) {
    let header = engine.state.lock().header.clone();
    if !header.has_stale_bitmaps() {
        return;
    }
    let what = match header.version {
        2 => {
            "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent \
             bitmap support; so now they must all be considered inconsistent"
        }
        _ => {
            "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
        }
    };
    engine.tell(&format!(
        "warning: {what}\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
    ));
}

/// The list for `info`; `None` when there are no bitmaps.
pub(crate) async fn describe(engine: &Arc<Engine>, header: &Header) -> Result<Option<Value>> {
    let mut list = Vec::new();
    directory::scan(&engine.file, header, &engine.geometry, |entry| {
        let names = [(Flags::IN_USE, "in-use"), (Flags::AUTO, "auto")];
        let flags: Vec<&str> =
            names.iter().filter(|(flag, _)| entry.flags.contains(*flag)).map(|(_, name)| *name).collect();
        list.push(
            json!({ "flags": flags, "name": entry.text(), "granularity": 1u64 << entry.granularity_bits }),
        );
    })
    .await?;
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}
