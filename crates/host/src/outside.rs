//! Chance and working time, from the kernel.

use std::sync::Arc;
use std::time::Duration;

use cowbell_block::outside::Outside;
use cowbell_block::{Error, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

struct Kernel;

/// The kernel's random bytes and its clock of the calling thread.
pub fn outside() -> Arc<dyn Outside> {
    Arc::new(Kernel)
}

impl Outside for Kernel {
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match getrandom(&mut *left, GetRandomFlags::empty()) {
                Ok(n) => left = &mut left[n..],
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::from_errno(e.raw_os_error())),
            }
        }
        Ok(())
    }

    fn unix_sec(&self) -> u64 {
        u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
    }

    fn thread_time(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let sec = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::new(sec, u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_differ_and_work_takes_time() {
        let outside = outside();
        let (mut a, mut b) = ([0; 300], [0; 300]);
        outside.fill_random(&mut a).expect("the kernel has random bytes");
        outside.fill_random(&mut b).expect("the kernel has random bytes");
        assert_ne!(a, b);
        assert!(outside.thread_time() > Duration::ZERO);
    }
}
