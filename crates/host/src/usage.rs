//! What the program has used.

use std::mem::MaybeUninit;
use std::time::Duration;

/// Processor time of all threads of this process so far, user and system.
pub fn cpu_time() -> Duration {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is valid for the length of the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, now.as_mut_ptr()) } != 0;
    // SAFETY: all zeroes is a valid `timespec`.
    let now = unsafe { now.assume_init() };
    if failed {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_takes_time() {
        let before = super::cpu_time();
        let sum = (0..3_000_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        assert!(super::cpu_time() > before, "{sum}");
    }
}
