//! Signals as flags that long work looks at.
//!
//! The handlers do nothing but set a flag: a tool ends where it can end cleanly. A second SIGINT or SIGTERM
//! kills, for the user whose patience ends first.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::handle::last_errno;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static PROGRESS: AtomicBool = AtomicBool::new(false);

/// Turns SIGINT, SIGTERM and SIGHUP into a flag that [`is_interrupted`] shows. Blocking calls are interrupted.
///
/// # Errors
/// If the host refuses, which it has no reason to.
pub fn catch_interrupts() -> cowbell_block::Result<()> {
    // SA_RESETHAND: the second one has its usual, deadly effect.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // `nohup` and shells that start something in the background ask for just that.
        if is_ignored(signal).map_err(crate::error::os)? {
            continue;
        }
        install(signal, on_interrupt, libc::SA_RESETHAND).map_err(crate::error::os)?;
    }
    Ok(())
}

/// Turns SIGUSR1 (SIGINFO on systems that have it) into a flag that [`take_progress_request`] shows.
///
/// # Errors
/// If the host refuses, which it has no reason to.
pub fn catch_progress_requests() -> cowbell_block::Result<()> {
    install(libc::SIGUSR1, on_progress, libc::SA_RESTART).map_err(crate::error::os)
}

/// Makes a write beyond the limit on the size of files fail, rather than kill the program in the middle of it.
///
/// # Errors
/// If the host refuses, which it has no reason to.
pub fn ignore_file_size_limit() -> cowbell_block::Result<()> {
    // SAFETY: ignoring a signal runs no code of ours.
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(crate::error::os(last_errno())),
        _ => Ok(()),
    }
}

/// Whether the user asked to stop. Stays true.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether the user asked for progress since the last call.
pub fn take_progress_request() -> bool {
    PROGRESS.load(Ordering::Relaxed) && PROGRESS.swap(false, Ordering::Relaxed)
}

extern "C" fn on_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

extern "C" fn on_progress(_: libc::c_int) {
    PROGRESS.store(true, Ordering::Relaxed);
}

/// Sets the flag that [`is_interrupted`] shows; for handlers of other modules.
pub(crate) fn set_interrupted() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(crate) fn is_ignored(signal: libc::c_int) -> Result<bool, Errno> {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given; `now` may be overwritten.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) } {
        0 => Ok(now.sa_sigaction == libc::SIG_IGN),
        _ => Err(last_errno()),
    }
}

pub(crate) fn install(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int),
    flags: libc::c_int,
) -> Result<(), Errno> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = flags;
    // SAFETY: `action` is a complete `sigaction`; the handlers make only calls that are allowed in signal
    // context; the old action is not asked for.
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_sets_its_flag_once() {
        catch_progress_requests().expect("installed");
        assert!(!take_progress_request());
        // SAFETY: the signal has a handler now.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert!(take_progress_request());
        assert!(!take_progress_request());
    }
}
