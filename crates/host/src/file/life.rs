//! Opening an open file again with other rights, and closing it.

use std::sync::atomic::Ordering;

use cowbell_block::{Access, CacheMode, Result};
use rustix::fs::OFlags;

use crate::error::{FileError, OpenError, os};
use crate::file::{Shared, open, probe};
use crate::handle::Handle;
use crate::lock::{self, Needs, Permissions};
use crate::pool;

impl Shared {
    /// Opens the file again, also to get rid of a sticky failure.
    pub(super) async fn reopen(&self, access: Access) -> Result<()> {
        self.renew(access, self.mode.is_direct()).await
    }

    /// Changes the cache mode; the file is opened again if it has to be.
    pub(super) async fn set_cache(&self, cache: CacheMode) -> Result<()> {
        let access = match self.handle.state() & Handle::READ_ONLY {
            0 => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        if self.mode.ignores_flush() && !cache.no_flush && access == Access::ReadWrite {
            // Nobody was waiting for what was written until now; from now on a flush covers all of it.
            self.dirty.store(true, Ordering::SeqCst);
        }
        if cache.direct != self.mode.is_direct() {
            self.renew(access, cache.direct).await?;
        }
        let alignment = match cache.direct {
            false => None,
            true => {
                let no_alignment = || OpenError::NoAlignment { filename: self.filename.clone() }.into_error();
                Some(probe::alignment(&self.handle, self.len()).ok_or_else(no_alignment)?)
            }
        };
        self.mode.set(cache, alignment);
        Ok(())
    }

    async fn renew(&self, access: Access, direct: bool) -> Result<()> {
        let state = self.handle.state();
        if state & Handle::CLOSED != 0 {
            return Err(FileError::Closed.into());
        }
        if state & (Handle::READ_ONLY | Handle::POISONED) == 0 && access == Access::ReadOnly {
            // What was promised to be written back must not depend on the descriptor that goes away.
            self.flush().await?;
        }
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let fd = open::again(&self.handle, access, flags).map_err(os)?;
        let mut lock = self.lock.lock();
        if let Some(held) = *lock {
            let needs = adapted(held, access);
            // Asked through the old description, which knows its own locks, and then held by both.
            lock::prepare(&*self.handle, held, needs, &self.filename)?;
            lock::copy(&fd, needs)?;
            *lock = Some(needs);
        }
        // The old description, and with it what is surplus of its locks, is gone with this call.
        self.handle.replace(fd).map_err(os)?;
        self.handle.set_reopened(access);
        let len = open::length(&*self.handle, self.is_device).map_err(os)?;
        self.len.store(len, Ordering::Release);
        self.data.forget();
        Ok(())
    }

    pub(super) async fn close(&self) -> Result<()> {
        let state = self.handle.state();
        if state & Handle::CLOSED != 0 {
            return Ok(());
        }
        let flushed = match state & (Handle::READ_ONLY | Handle::POISONED) {
            0 => self.flush().await,
            _ => self.check_health(),
        };
        self.handle.set_closed();
        if let Some(held) = self.lock.lock().take() {
            lock::commit(&*self.handle, held, lock::NONE);
        }
        let handle = self.handle.clone();
        // The last close of a device writes its cache back, which waits.
        let waits = self.is_device && state & Handle::READ_ONLY == 0;
        let released = if waits { pool::run(move || handle.release()).await } else { handle.release() };
        flushed.and(released.map_err(os))
    }
}

/// The locks after a change of access, when `held` were chosen for the other one.
fn adapted(held: Needs, access: Access) -> Needs {
    let writes = lock::WRITE.required - lock::READ.required;
    match access {
        Access::ReadOnly => Needs { required: held.required - writes, ..held },
        // Whoever bears with others that resize, as raw does, has no need to do so itself.
        Access::ReadWrite if held.shared.contains(Permissions::RESIZE) => {
            Needs { required: held.required | lock::WRITE_SHARED.required, ..held }
        }
        Access::ReadWrite => Needs { required: held.required | writes, ..held },
    }
}
