//! What was done so far, in figures.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Config;
use crate::disk::SimDisk;

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Runs of the engine.
    pub runs: u64,
    /// Guest operations.
    pub operations: u64,
    /// Recoveries after a cut.
    pub recoveries: u64,
    /// Repairs, each checked, repeated and cut.
    pub repairs: u64,
    /// Faults that struck.
    pub faults: u64,
    /// How often each debug event was announced.
    pub events: Vec<u64>,
    /// For each debug event, how many faults struck the first I/O after it.
    pub events_struck: Vec<u64>,
    /// Different configurations, counted again when they come back after many others.
    pub configs: u64,
    /// Runs per value of each setting.
    pub settings: BTreeMap<(&'static str, String), u64>,
    /// Runs of the last configurations that were met, not booked yet.
    last_configs: Vec<(Config, u64)>,
    /// Steps of the worlds' clocks.
    pub steps: u64,
    /// CPU time spent in making and judging the states of cuts.
    pub judging: Duration,
    /// CPU time spent in recoveries from cuts, what was judged there left out.
    pub recovering: Duration,
}

/// Configurations that are booked together: booking takes longer than many a run.
const UNBOOKED_MAX: usize = 32;

impl Figures {
    /// Counts a run per setting.
    pub fn note_config(&mut self, config: &Config) {
        if let Some((_, runs)) = self.last_configs.iter_mut().find(|(known, _)| known == config) {
            *runs += 1;
            return;
        }
        if self.last_configs.len() == UNBOOKED_MAX {
            self.book();
        }
        self.configs += 1;
        self.last_configs.push((config.clone(), 1));
    }

    /// Counts the events that a disk was told of.
    pub fn note_events(&mut self, disk: &SimDisk) {
        let add = |sums: &mut Vec<u64>, counts: Vec<u32>| {
            sums.resize(counts.len(), 0);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
        };
        add(&mut self.events, disk.event_counts());
        add(&mut self.events_struck, disk.events_struck());
    }

    /// Brings [`Figures::settings`] up to date.
    pub fn book(&mut self) {
        for (config, runs) in self.last_configs.drain(..) {
            for key in SETTINGS {
                *self.settings.entry((key, config.value_of(key))).or_insert(0) += runs;
            }
        }
    }
}

/// The settings whose values are counted.
pub const SETTINGS: [&str; 18] = [
    "format",
    "version",
    "cluster_bits",
    "refcount_order",
    "lazy",
    "backing",
    "prestate",
    "zstd",
    "extended",
    "bitmaps",
    "data",
    "preallocation",
    "crypt",
    "vm_state",
    "discard",
    "alignment",
    "atom",
    "discards",
];

/// CPU time of this thread so far: what other programs do on the machine does not count. For figures, never for a
/// decision about what happens.
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}
