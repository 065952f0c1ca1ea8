//! Leaky buckets, as the reference documents them: what passes is poured in, and leaks at the average rate. Whoever
//! finds a bucket too full waits until enough has leaked.
//!
//! Where bursts are allowed the bucket holds what a burst of full length brings, and a second bucket, that leaks at the
//! burst rate, keeps the burst from being faster. Where they are not, a bucket holds a tenth of a second.
//!
//! Levels are counted in billionths of units, so that a rate times nanoseconds is a level, exactly.

use super::group::Direction;
use super::limits::{Limits, Rate};

const NANO: u128 = 1_000_000_000;

/// The buckets of all rates of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets {
    buckets: [Bucket; 6],
    /// When they last leaked.
    at_ns: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    level: u128,
    burst_level: u128,
}

/// Which rates a request of this direction counts for: total bytes, its bytes, total requests, its requests.
fn concerned(direction: Direction) -> [usize; 4] {
    match direction {
        Direction::Read => [0, 1, 3, 4],
        Direction::Write => [0, 2, 3, 5],
    }
}

impl Buckets {
    /// Lets leak what leaks until `now_ns`. Time that runs backwards stands still.
    pub(super) fn leak(&mut self, limits: &Limits, now_ns: u64) {
        let passed = u128::from(now_ns.saturating_sub(self.at_ns));
        self.at_ns = self.at_ns.max(now_ns);
        for (bucket, rate) in self.buckets.iter_mut().zip(&limits.rates) {
            bucket.level = bucket.level.saturating_sub(u128::from(rate.average) * passed);
            bucket.burst_level = bucket.burst_level.saturating_sub(u128::from(rate.burst) * passed);
        }
    }

    /// Nanoseconds until a request of this direction may pass.
    pub(super) fn wait_ns(&self, limits: &Limits, direction: Direction) -> u64 {
        let waits = concerned(direction).map(|at| self.buckets[at].wait_ns(&limits.rates[at]));
        waits.into_iter().max().unwrap_or(0)
    }

    /// Pours a request of `bytes` in.
    pub(super) fn pour(&mut self, limits: &Limits, direction: Direction, bytes: u64) {
        let requests = match limits.iops_size {
            size if size != 0 && bytes > size => (u128::from(bytes) * NANO).div_ceil(u128::from(size)),
            _ => NANO,
        };
        for at in concerned(direction) {
            let rate = &limits.rates[at];
            let amount = if at < 3 { u128::from(bytes) * NANO } else { requests };
            if rate.average == 0 {
                continue;
            }
            self.buckets[at].level += amount;
            if rate.burst_sec > 1 {
                self.buckets[at].burst_level += amount;
            }
        }
    }
}

impl Bucket {
    fn wait_ns(&self, rate: &Rate) -> u64 {
        if rate.average == 0 {
            return 0;
        }
        let tenth = |rate: u64| u128::from(rate) * (NANO / 10);
        let room = match rate.burst {
            0 => tenth(rate.average),
            burst => u128::from(burst) * u128::from(rate.burst_sec) * NANO,
        };
        if self.level > room {
            return leaked_in(self.level - room, rate.average);
        }
        let room = tenth(rate.burst);
        if rate.burst_sec > 1 && self.burst_level > room {
            return leaked_in(self.burst_level - room, rate.burst);
        }
        0
    }
}

/// Nanoseconds in which `amount` leaks.
fn leaked_in(amount: u128, rate: u64) -> u64 {
    u64::try_from(amount.div_ceil(u128::from(rate))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::limits::{LimitsBuilder, Spelling};
    use super::*;

    const SEC: u64 = 1_000_000_000;

    fn limits(list: &[(&str, i64)]) -> Limits {
        let mut builder = LimitsBuilder::default();
        for (key, value) in list {
            builder.set(Spelling::Plain, key, *value).expect("known");
        }
        builder.finish().expect("consistent")
    }

    /// How many requests pass in `sec` seconds if somebody always asks again as soon as he may.
    fn passed(limits: &Limits, bytes: u64, sec: u64) -> u64 {
        let (mut buckets, mut now, mut count) = (Buckets::default(), 0, 0);
        loop {
            buckets.leak(limits, now);
            match buckets.wait_ns(limits, Direction::Read) {
                0 => {
                    buckets.pour(limits, Direction::Read, bytes);
                    count += 1;
                }
                wait => now += wait,
            }
            if now >= sec * SEC {
                return count;
            }
        }
    }

    #[test]
    fn the_average_is_kept() {
        let close =
            |got: u64, expect: u64| assert!(got.abs_diff(expect) <= expect / 50 + 2, "{got} {expect}");
        close(passed(&limits(&[("iops-total", 100)]), 512, 60), 6000 + 10);
        close(passed(&limits(&[("iops-read", 100)]), 512, 60), 6000 + 10);
        close(passed(&limits(&[("bps-total", 1 << 20)]), 4096, 60), 256 * 60);
        // Requests of four times the size count four times.
        close(passed(&limits(&[("iops-total", 100), ("iops-size", 4096)]), 16384, 60), 1500);
    }

    #[test]
    fn bursts_are_as_long_and_as_fast_as_allowed() {
        // 2000 in a second's burst, then 100 each second.
        let burst = limits(&[("iops-total", 100), ("iops-total-max", 2000)]);
        let first = passed(&burst, 512, 1);
        assert!((2000..=2110).contains(&first), "{first}");
        // Ten seconds at 200 each, no faster.
        let long = [("iops-total", 100), ("iops-total-max", 200), ("iops-total-max-length", 10)];
        let long = limits(&long);
        let (one, ten, thirty) = (passed(&long, 512, 1), passed(&long, 512, 10), passed(&long, 512, 30));
        assert!((200..=225).contains(&one), "{one}");
        assert!((2000..=2030).contains(&ten), "{ten}");
        assert!(thirty <= 2000 + 30 * 100 + 30, "{thirty}");
    }

    #[test]
    fn what_is_not_limited_does_not_wait() {
        let reads = limits(&[("iops-read", 1)]);
        let mut buckets = Buckets::default();
        for _ in 0..10 {
            buckets.pour(&reads, Direction::Write, 1 << 30);
            buckets.pour(&reads, Direction::Read, 1);
        }
        assert_eq!(buckets.wait_ns(&reads, Direction::Write), 0);
        assert!(buckets.wait_ns(&reads, Direction::Read) > 9 * SEC);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let most = limits(&[("bps-total", 1_000_000_000_000_000), ("iops-total", 1), ("iops-size", 1)]);
        let mut buckets = Buckets::default();
        for _ in 0..1000 {
            buckets.pour(&most, Direction::Write, u64::MAX);
        }
        assert_eq!(buckets.wait_ns(&most, Direction::Write), u64::MAX);
        buckets.leak(&most, u64::MAX);
        buckets.leak(&most, 5);
        assert!(buckets.wait_ns(&most, Direction::Write) > 0);
    }
}
