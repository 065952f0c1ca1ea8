//! A terminal that passes every key on, and is put back whatever ends the program.
//!
//! Dropping the guard puts it back, also when a panic unwinds. Signals that end or stop the program do so in their
//! handler: the first SIGINT, SIGTERM or SIGHUP only sets the flag of [`crate::signal`], all else puts the terminal
//! back and goes on to what the signal meant before. Only SIGKILL leaves it as it is.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::io::Errno;

use crate::handle::last_errno;

/// The modes to go back to, and those of the guest's console; null when no terminal is raw.
struct Modes {
    cooked: libc::termios,
    raw: libc::termios,
}

static MODES: AtomicPtr<Modes> = AtomicPtr::new(ptr::null_mut());

/// Signals that end the program by default, but for those that only set a flag the first time.
const DEADLY: [libc::c_int; 6] =
    [libc::SIGQUIT, libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];
const POLITE: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Standard input as a raw terminal; what is printed is still given its carriage returns.
#[must_use = "the terminal is put back as soon as this is dropped"]
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal on standard input raw; `None` when there is no terminal.
    ///
    /// # Errors
    /// If the terminal refuses.
    ///
    /// # Panics
    /// If it is raw already by this.
    pub fn enter() -> cowbell_block::Result<Option<Self>> {
        if !crate::terminal::stdin_is_terminal() {
            return Ok(None);
        }
        assert!(MODES.load(Ordering::SeqCst).is_null(), "one guard at a time");
        let mut cooked = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY: the pointer is valid for the length of the call.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, cooked.as_mut_ptr()) } != 0 {
            return Err(crate::error::os(last_errno()));
        }
        // SAFETY: all zeroes is a valid `termios`, and the call has filled it.
        let cooked = unsafe { cooked.assume_init() };
        // Never freed: a handler may be reading it at any time.
        let modes = Box::leak(Box::new(Modes { cooked, raw: raw_modes(cooked) }));
        MODES.store(modes, Ordering::SeqCst);
        let guard = Self(());
        catch_all().map_err(crate::error::os)?;
        if apply(&modes.raw) { Ok(Some(guard)) } else { Err(crate::error::os(last_errno())) }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        put_back();
        MODES.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

fn raw_modes(cooked: libc::termios) -> libc::termios {
    let mut raw = cooked;
    raw.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::IEXTEN | libc::ISIG);
    raw.c_cflag = raw.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
    (raw.c_cc[libc::VMIN], raw.c_cc[libc::VTIME]) = (1, 0);
    raw
}

fn apply(modes: &libc::termios) -> bool {
    // SAFETY: the pointer is valid for the length of the call, which is allowed in signal handlers.
    unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, modes) == 0 }
}

fn modes() -> Option<&'static Modes> {
    // SAFETY: the pointer is null or leaked.
    unsafe { MODES.load(Ordering::SeqCst).as_ref() }
}

fn put_back() {
    if let Some(modes) = modes() {
        // A terminal that went away needs no putting back.
        let _gone = apply(&modes.cooked);
    }
}

fn catch_all() -> Result<(), Errno> {
    for signal in POLITE {
        if !crate::signal::is_ignored(signal)? {
            install(signal, on_polite)?;
        }
    }
    for signal in DEADLY {
        install(signal, on_deadly)?;
    }
    install(libc::SIGTSTP, on_stop)
}

extern "C" fn on_polite(signal: libc::c_int) {
    crate::signal::set_interrupted();
    // The second one is deadly. It cannot fail for a signal that has a handler.
    let _installed = install(signal, on_deadly);
}

extern "C" fn on_deadly(signal: libc::c_int) {
    put_back();
    // SAFETY: both calls are allowed in signal handlers; the signal is blocked until this returns, and then has its
    // usual effect. A fault happens again, with the same effect.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_stop(_: libc::c_int) {
    put_back();
    // SAFETY: allowed in signal handlers. The program stands still inside this call.
    unsafe { libc::raise(libc::SIGSTOP) };
    if let Some(modes) = modes() {
        let _gone = apply(&modes.raw);
    }
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> Result<(), Errno> {
    // On the other stack, where there is one: the fault may be the stack's overflow.
    crate::signal::install(signal, handler, libc::SA_ONSTACK)
}
