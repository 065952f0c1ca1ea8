//! A limit on bytes per second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use cowbell_block::BoxFuture;
use cowbell_jobs::Pace;

/// Lets a job write at most so many bytes per second, counted from its start.
pub struct Limited {
    bytes_per_sec: u64,
    state: Mutex<Option<(Instant, u64)>>,
}

impl Limited {
    /// A limit above zero.
    pub fn new(bytes_per_sec: u64) -> Self {
        Self { bytes_per_sec, state: Mutex::new(None) }
    }
}

impl Pace for Limited {
    fn take(&self, bytes: u64) -> Option<BoxFuture<()>> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (start, taken) = state.get_or_insert_with(|| (Instant::now(), 0));
        // What was taken before has to have had its time; the first request goes at once.
        let due = *start + Duration::from_secs_f64(*taken as f64 / self.bytes_per_sec as f64);
        *taken += bytes;
        let wait = due.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then(|| Box::pin(cowbell_host::sleep(wait)) as BoxFuture<()>)
    }
}
