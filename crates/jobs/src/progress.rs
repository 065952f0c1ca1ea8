//! What a job tells its user while it runs, and how the user stops it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowbell_block::BoxFuture;

/// Watches a job. Called between requests, on the thread that runs the job.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes are dealt with.
    fn advanced(&self, done: u64, total: u64);

    /// Whether the job shall stop at the next opportunity.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// A job that salvages what it can read replaced `len` bytes at `offset` by zeroes.
    fn unreadable(&self, offset: u64, len: u64, error: &cowbell_block::Error) {
        let _ = (offset, len, error);
    }

    /// A job that salvages what it can read was not told what the sector at `offset` holds, and tries to read it.
    fn status_unknown(&self, offset: u64, error: &cowbell_block::Error) {
        let _ = (offset, error);
    }
}

/// Watches nothing and never stops a job.
pub struct Silent;

impl Progress for Silent {
    fn advanced(&self, _done: u64, _total: u64) {}
}

/// Progress as numbers that another thread may look at.
#[derive(Debug, Default)]
pub struct Counters {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Counters {
    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes dealt with, and bytes in all (0 before the job knows).
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

impl Progress for Counters {
    fn advanced(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Slows a job down. Jobs know no clock, so whoever has one decides how long.
pub trait Pace: Send + Sync {
    /// Completes when `bytes` more may be written.
    fn take(&self, bytes: u64) -> Option<BoxFuture<()>>;
}

/// As fast as possible.
pub struct Unpaced;

impl Pace for Unpaced {
    fn take(&self, _bytes: u64) -> Option<BoxFuture<()>> {
        None
    }
}
