//! Waiting until one of several descriptors can be read.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `descriptors` has something to read or is at its end, a signal comes, or the time is over (never
/// when it is `None`); says which have something. Descriptors that poll cannot watch, such as files, always have.
///
/// # Errors
/// When the host has no memory left.
pub fn readable(
    descriptors: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> cowbell_block::Result<Vec<bool>> {
    let mut set: Vec<PollFd<'_>> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(&mut set, timeout.as_ref()) {
        Ok(_) => Ok(set.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(Errno::INTR) => Ok(vec![false; descriptors.len()]),
        Err(error) => Err(crate::error::os(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_written_can_be_read() {
        let (quiet, _keep) = std::io::pipe().expect("a pipe");
        let (loud, mut writer) = std::io::pipe().expect("a pipe");
        let both = || [quiet.as_fd(), loud.as_fd()];
        assert_eq!(readable(&both(), Some(Duration::ZERO)).expect("polled"), [false, false]);
        writer.write_all(b"x").expect("room");
        assert_eq!(readable(&both(), None).expect("polled"), [false, true]);
        assert_eq!(readable(&[], Some(Duration::from_millis(1))).expect("polled"), [false; 0]);
    }
}
