//! What engines need of the world and do not have: chance, and the time that work takes.
//!
//! Whoever opens or makes an encrypted image hands in an [`Outside`]; the simulation has one that repeats.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::request::BoxFuture;

/// Time that passes, for those who have to wait.
pub trait Time: Send + Sync {
    /// Nanoseconds since some beginning; never less than before.
    fn now_ns(&self) -> u64;

    /// Resolves when [`Time::now_ns`] has come to `at_ns`, or a little later.
    fn sleep_until(&self, at_ns: u64) -> BoxFuture<()>;
}

/// Chance and the clock.
pub trait Outside: Send + Sync {
    /// Fills `bytes` with what nobody can foresee: keys are made of it.
    ///
    /// # Errors
    /// The host has none.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()>;

    /// Seconds since 1970, for stamps in images; 0 where nobody knows.
    fn unix_sec(&self) -> u64 {
        0
    }

    /// How long the calling thread has worked, for measuring how long something takes.
    fn thread_time(&self) -> Duration;
}

/// Making keys without an [`Outside`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no source of random bytes for keys")]
pub struct NoOutside;

impl From<NoOutside> for Error {
    fn from(e: NoOutside) -> Self {
        Error::new(ErrorKind::Unsupported, e)
    }
}

/// An [`Outside`] that may be there.
pub type MaybeOutside = Option<Arc<dyn Outside>>;

/// The world, if it was handed in.
///
/// # Errors
/// [`NoOutside`].
pub fn required(outside: &MaybeOutside) -> Result<Arc<dyn Outside>> {
    Ok(outside.clone().ok_or(NoOutside)?)
}
