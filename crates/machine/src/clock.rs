//! The only clock: instructions executed, plus the idle time that was skipped or waited for.

/// Nanoseconds in one tick of `time`: 10 MHz, as the board's device tree says.
pub const TICK_NS: u64 = 100;
/// Ticks a second.
pub const TIMEBASE_HZ: u64 = 1_000_000_000 / TICK_NS;

/// The clock of a machine. Deadlines, latencies and [`now`](Self::now) are in instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Clock {
    /// Instructions executed by all harts; one that traps counts as well. This is *the* position in a run.
    pub count: u64,
    /// Instructions that fitted into the time when every hart was idle.
    pub idle: u64,
    /// One instruction takes `1 << shift` nanoseconds.
    pub shift: u32,
}

impl Clock {
    /// A clock at zero.
    pub fn new(shift: u32) -> Clock {
        Clock { count: 0, idle: 0, shift }
    }

    /// Time in instructions.
    #[inline]
    pub fn now(&self) -> u64 {
        self.count + self.idle
    }

    /// Time in nanoseconds.
    pub fn ns(&self) -> u64 {
        self.now() << self.shift
    }

    /// Time in ticks of the `time` register.
    pub fn ticks(&self) -> u64 {
        self.ns() / TICK_NS
    }

    /// The first instant at which `time` has reached `ticks`; `u64::MAX` when that never happens.
    pub fn when_ticks(&self, ticks: u64) -> u64 {
        match ticks.checked_mul(TICK_NS) {
            Some(ns) => ns.div_ceil(1 << self.shift),
            None => u64::MAX,
        }
    }

    /// A duration in instructions, rounded up.
    pub fn instructions_in(&self, ns: u64) -> u64 {
        ns.div_ceil(1 << self.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shift: u32, ticks: u64, expect: u64) {
        let mut clock = Clock::new(shift);
        assert_eq!(clock.when_ticks(ticks), expect);
        if expect > 0 && expect < u64::MAX {
            clock.count = expect - 1;
            assert!(clock.ticks() < ticks);
        }
        clock.count = expect.min(1 << 40);
        assert!(clock.ticks() >= ticks || expect > 1 << 40);
    }

    #[test]
    fn a_deadline_is_the_first_instant_that_reaches_it() {
        check(0, 0, 0);
        check(0, 1, 100);
        check(3, 1, 13);
        check(10, 1, 1);
        check(0, u64::MAX, u64::MAX);
    }
}
