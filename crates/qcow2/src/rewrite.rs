//! Changes of the header that do not fit its fixed fields: extensions, names, the version.
//!
//! A header may be longer than a sector, and any mix of old and new sectors must be valid (rule R12). So the new
//! extensions are first written where the old header has nothing, and one write in the first sector switches to
//! them:
//!
//! ```text
//!   fields | old extensions ... | old name |                          old
//!   fields | old extensions ... | old name | new extensions, name     still old
//!   fields'| skip ------------------------>| new extensions, name     new, by one sector
//!   fields'| skip, written over with new   | new extensions, name     still new
//!   fields'| new extensions ... | new name |                          new, in the usual place
//! ```
//!
//! A header of one sector is simply written. One that was of one sector has nothing behind it: the rest of the new one
//! is written there, and then the first sector switches to it. Where the cluster has no room for both, the table of feature names is
//! left out: it only serves messages. What is longer even so, in clusters of 1 and 2 KiB, is written as it is.

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Result};

use crate::engine::Engine;
use crate::header::Header;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

impl Engine {
    /// Changes any part of the header, durably: a cut leaves the old header or the new one.
    ///
    /// # Errors
    /// The new header does not fit the first cluster: nothing changed. Or the file's error: later mutations fail,
    /// since nobody knows which header the file has.
    pub(crate) async fn rewrite_header(self: &Arc<Self>, change: impl Fn(&mut Header)) -> Result<()> {
        let _turn = self.loading.header.lock(0..1, LockMode::Exclusive).await;
        let mut new = self.state.lock().header.clone();
        change(&mut new);
        let mut bytes = new.encode()?;
        let size = self.geometry.cluster_size() as usize;
        let cluster = self.file.read(0, size).await?;
        let used = Header::used_bytes(&cluster);
        cluster.recycle();
        let mut way = Way::of(&new, bytes.len(), used, size);
        if way == Way::Plain {
            let mut shorter = new.clone();
            shorter.drop_feature_names();
            let short_bytes = shorter.encode()?;
            let short_way = Way::of(&shorter, short_bytes.len(), used, size);
            if short_way != Way::Plain {
                (new, bytes, way) = (shorter, short_bytes, short_way);
            }
        }
        self.replace_header(&new, bytes, used, way).await.map_err(|e| self.poison(e))?;
        let mut state = self.state.lock();
        change(&mut state.header);
        state.header.extensions = new.extensions;
        Ok(())
    }

    async fn replace_header(
        self: &Arc<Self>,
        new: &Header,
        mut bytes: Vec<u8>,
        used: usize,
        way: Way,
    ) -> Result<()> {
        // What the old header had behind the new one's end goes away with it.
        bytes.resize(bytes.len().max(used).next_multiple_of(SECTOR), 0);
        let (first, others) = bytes.split_at(SECTOR);
        match way {
            Way::OneSector => {
                self.write_durably(0, first).await?;
                if !others.is_empty() {
                    self.write_durably(SECTOR, others).await?;
                }
            }
            Way::Apart { at } => {
                let (fields, rest) = new.encode_apart(at);
                self.write_durably(at, &rest).await?;
                self.write_durably(0, &fields).await?;
                self.write_durably(SECTOR, others).await?;
                self.write_durably(0, first).await?;
                self.file.write(at as u64, Buf::zeroed(rest.len())).await?;
            }
            Way::Behind | Way::Plain => {
                self.write_durably(SECTOR, others).await?;
                self.write_durably(0, first).await?;
            }
        }
        Ok(())
    }

    async fn write_durably(self: &Arc<Self>, at: usize, bytes: &[u8]) -> Result<()> {
        self.file.write(at as u64, Buf::copy_of(bytes)).await?;
        self.barrier().await
    }
}

/// How a header replaces another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All that counts is in the first sector.
    OneSector,
    /// What does not fit the first sector lies where the old header has nothing, and is there before it counts.
    Behind,
    /// By way of a copy at this byte of the cluster.
    Apart { at: usize },
    /// There is no room.
    Plain,
}

impl Way {
    fn of(new: &Header, len: usize, used: usize, cluster: usize) -> Self {
        if len <= SECTOR {
            return Self::OneSector;
        }
        if used <= SECTOR {
            return Self::Behind;
        }
        let at = len.max(used).next_multiple_of(SECTOR);
        let (fields, rest) = new.encode_apart(at);
        match at + rest.len() <= cluster && fields.len() <= SECTOR {
            true => Self::Apart { at },
            false => Self::Plain,
        }
    }
}
