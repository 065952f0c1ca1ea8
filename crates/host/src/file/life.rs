//! Opening an open file again with other rights, and closing it.

use std::sync::atomic::Ordering;

use cowbell_block::{Access, Result};
use rustix::fs::OFlags;

use crate::error::{FileError, os};
use crate::file::{Shared, open};
use crate::handle::Handle;
use crate::lock::{self, Needs, Permissions};
use crate::pool;

impl Shared {
    /// Opens the file again, also to get rid of a sticky failure.
    pub(super) async fn reopen(&self, access: Access) -> Result<()> {
        let state = self.handle.state();
        if state & Handle::CLOSED != 0 {
            return Err(FileError::Closed.into());
        }
        if state & (Handle::READ_ONLY | Handle::POISONED) == 0 && access == Access::ReadOnly {
            // What was promised to be written back must not depend on the descriptor that goes away.
            self.flush().await?;
        }
        let flags = if self.cache.direct { OFlags::DIRECT } else { OFlags::empty() };
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
