//! Keys that the kernel keeps.

use std::io;

use cowbell_block::{Error, Secret};
use zeroize::Zeroizing;

/// The command of `keyctl` that reads a payload (`linux/keyctl.h`).
const KEYCTL_READ: libc::c_long = 11;

/// Reads the payload of the key with this serial number.
///
/// # Errors
/// There is none, it may not be read, or the kernel has no keys at all.
pub fn keyring_key(serial: i32) -> Result<Secret, Error> {
    let mut payload = Zeroizing::new(Vec::new());
    loop {
        let needed =
            read(serial, &mut payload).map_err(|e| Error::from_errno(e.raw_os_error().unwrap_or(0)))?;
        if needed <= payload.len() {
            payload.truncate(needed);
            return Ok(Secret::new(payload));
        }
        // Longer than thought, or grown since; all at once, so that no half is left behind in memory.
        payload = Zeroizing::new(vec![0; needed]);
    }
}

/// Reads as much of the payload as fits; returns its length.
fn read(serial: i32, into: &mut [u8]) -> io::Result<usize> {
    let ptr = if into.is_empty() { std::ptr::null_mut() } else { into.as_mut_ptr() };
    // SAFETY: the kernel writes at most `into.len()` bytes to `ptr`, which is valid for them, or null with length 0.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_READ, libc::c_long::from(serial), ptr, into.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keyring of this process (`linux/keyctl.h`).
    const PROCESS_KEYRING: libc::c_long = -2;

    /// Adds a key to this process's keyring. `None` where the kernel does not allow it.
    fn add(payload: &[u8]) -> Option<i32> {
        // SAFETY: the strings end with NULs and the payload is valid for its length.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"cowbell-test".as_ptr(),
                payload.as_ptr(),
                payload.len(),
                PROCESS_KEYRING,
            )
        };
        i32::try_from(serial).ok().filter(|serial| *serial > 0)
    }

    #[test]
    fn a_key_is_read_by_its_number() {
        let Some(serial) = add(b"from the kernel") else {
            eprintln!("skipped: this kernel gives no keys");
            return;
        };
        assert_eq!(keyring_key(serial).expect("just added").bytes(), b"from the kernel");
        assert!(keyring_key(i32::MAX).is_err());
    }
}
