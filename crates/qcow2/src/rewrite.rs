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
//! A cluster too small to hold both is written in one go; only clusters of 1 and 2 KiB with long names are.

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Error, Result};

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
        let bytes = new.encode()?;
        let cluster = self.file.read(0, self.geometry.cluster_size() as usize).await?;
        let used = Header::used_bytes(&cluster);
        cluster.recycle();
        self.replace_header(&new, bytes, used).await.map_err(|e| self.poison(e))?;
        change(&mut self.state.lock().header);
        Ok(())
    }

    async fn replace_header(self: &Arc<Self>, new: &Header, mut bytes: Vec<u8>, used: usize) -> Result<()> {
        // What the old header had behind the new one's end goes away with it.
        bytes.resize(bytes.len().max(used), 0);
        if bytes.len() > SECTOR {
            let at = bytes.len().next_multiple_of(SECTOR);
            let (fields, rest) = new.encode_apart(at);
            let apart = at + rest.len() <= self.geometry.cluster_size() as usize && fields.len() <= SECTOR;
            if apart {
                self.write_durably(at, &rest).await?;
                self.write_durably(0, &fields).await?;
            }
            self.write_durably(SECTOR, &bytes[SECTOR..]).await?;
            self.write_durably(0, &bytes[..SECTOR]).await?;
            if apart {
                self.file.write(at as u64, Buf::zeroed(rest.len())).await?;
            }
            return Ok(());
        }
        self.write_durably(0, &bytes).await
    }

    async fn write_durably(self: &Arc<Self>, at: usize, bytes: &[u8]) -> Result<()> {
        self.file.write(at as u64, Buf::copy_of(bytes)).await?;
        self.barrier().await
    }

    fn poison(&self, e: Error) -> Error {
        self.poisoned.store(true, std::sync::atomic::Ordering::SeqCst);
        e
    }
}
