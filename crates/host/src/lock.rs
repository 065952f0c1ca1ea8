//! Image locks that QEMU understands.
//!
//! A user of an image says which permissions it needs and which it grants to others. For each permission *i*
//! there are two bytes in the file: `100 + i` carries a shared lock of everyone who **needs** it, `200 + i` one
//! of everyone who does **not share** it. Open file description locks are taken first and checked second, so of
//! two that come at once at least one sees the other:
//!
//! - whoever needs *i* refuses to open when somebody else holds `200 + i` (`Failed to get "…" lock`);
//! - whoever does not share *i* refuses when somebody else holds `100 + i` (`Failed to get shared "…" lock`).
//!
//! The locks vanish when they are released or the file is closed; the bytes need not exist in the file.
//! The modes below are what `qemu-io`, `qemu-img` and QEMU 10.0 were seen to take, by `strace`.

use std::os::fd::{AsFd, AsRawFd};

pub use cowbell_block::graph::{Needs, Permissions};
use cowbell_block::{Error, ErrorKind};
use rustix::io::Errno;

use crate::handle::last_errno;

/// First byte of the locks for needed permissions; QEMU's protocol.
const NEEDED_BASE: i64 = 100;
/// First byte of the locks for permissions not shared; QEMU's protocol.
const UNSHARED_BASE: i64 = 200;

/// Permissions in the order of their bytes, with the reference's names.
const PERMISSIONS: [(Permissions, &str); 4] = [
    (Permissions::CONSISTENT_READ, "consistent read"),
    (Permissions::WRITE, "write"),
    (Permissions::WRITE_UNCHANGED, "write unchanged"),
    (Permissions::RESIZE, "resize"),
];

/// Takes no part in locking: `info -U`, or `info` of a raw image.
pub const NONE: Needs = Needs::NOTHING;
/// Reads raw content and minds nobody: `io -r` of a raw image, a raw backing file, `-U` of any image.
pub const READ_SHARED: Needs = Needs { required: Permissions::CONSISTENT_READ, shared: Permissions::all() };
/// Writes raw content beside other writers: `io` of a raw image.
pub const WRITE_SHARED: Needs =
    Needs { required: READ_SHARED.required.union(Permissions::WRITE), shared: Permissions::all() };
/// Reads while nobody may change anything: an image format opened read-only, the source of `convert`.
pub const READ: Needs = Needs::READ;
/// Looks at a format's metadata only: `info` of an image format.
pub const INSPECT: Needs = Needs { required: Permissions::empty(), shared: Needs::READ.shared };
/// Reads, writes and grows alone: an image format opened for writing.
pub const WRITE: Needs = Needs::WRITE;
/// Makes the file anew: `create`, the target of `convert`.
pub const CREATE: Needs = Needs {
    required: Permissions::WRITE.union(Permissions::RESIZE),
    shared: Permissions::all().difference(Permissions::RESIZE),
};

/// The locks of `needs`, as bytes of the file.
fn bytes(needs: Needs) -> impl Iterator<Item = i64> {
    let place = |base: i64, i: usize| base + i as i64;
    let needed = members(needs.required).map(move |(i, _)| place(NEEDED_BASE, i));
    needed.chain(members(needs.shared.complement()).map(move |(i, _)| place(UNSHARED_BASE, i)))
}

/// The members of a set, with their places.
fn members(set: Permissions) -> impl Iterator<Item = (usize, &'static str)> {
    let all = PERMISSIONS.iter().enumerate();
    all.filter(move |(_, (permission, _))| set.contains(*permission)).map(|(i, (_, name))| (i, *name))
}

/// Why a lock was not to be had. The texts are the reference's.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody does not share what we need.
    #[error("Failed to get \"{permission}\" lock\nIs another process using the image [{filename}]?")]
    Unshared {
        /// The permission's name.
        permission: &'static str,
        /// The image as it was named.
        filename: String,
    },
    /// Somebody uses what we do not share.
    #[error("Failed to get shared \"{permission}\" lock\nIs another process using the image [{filename}]?")]
    InUse {
        /// The permission's name.
        permission: &'static str,
        /// The image as it was named.
        filename: String,
    },
    /// The host refused the lock itself.
    #[error("Failed to lock byte {byte}")]
    Host {
        /// The byte that stands for the permission.
        byte: i64,
        /// The host's code.
        errno: i32,
    },
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Host { errno, .. } => Error::with_errno(errno, error),
            _ => Error::new(ErrorKind::Busy, error),
        }
    }
}

impl LockError {
    /// Whether this file system has no such locks at all.
    pub(crate) fn is_unsupported(&self) -> bool {
        let none = [libc::EINVAL, libc::ENOLCK, libc::EOPNOTSUPP, libc::ENOSYS];
        matches!(self, Self::Host { errno, .. } if none.contains(errno))
    }
}

/// Takes what `to` has beyond `from`, and checks `to` against all others. On failure `from` is held as before.
pub(crate) fn prepare(file: impl AsFd, from: Needs, to: Needs, filename: &str) -> Result<(), LockError> {
    let result = take(&file, from, to).and_then(|()| check(&file, to, filename));
    if result.is_err() {
        release_surplus(&file, from.and(to), from);
    }
    result
}

/// Gives up what `from` has beyond `to`, after [`prepare`] of `to`.
pub(crate) fn commit(file: impl AsFd, from: Needs, to: Needs) {
    release_surplus(&file, from.and(to), to);
}

/// Takes the locks of `needs` on another description of a file that we hold them on already: nobody to ask.
pub(crate) fn copy(file: impl AsFd, needs: Needs) -> Result<(), LockError> {
    take(&file, NONE, needs)
}

fn take(file: &impl AsFd, from: Needs, to: Needs) -> Result<(), LockError> {
    for byte in bytes(to).filter(|byte| bytes(from).all(|held| held != *byte)) {
        set(file, libc::F_RDLCK, byte)
            .map_err(|errno| LockError::Host { byte, errno: errno.raw_os_error() })?;
    }
    Ok(())
}

fn check(file: &impl AsFd, needs: Needs, filename: &str) -> Result<(), LockError> {
    let held = |byte| is_held(file, byte).map_err(|e| LockError::Host { byte, errno: e.raw_os_error() });
    for (i, permission) in members(needs.required) {
        if held(UNSHARED_BASE + i as i64)? {
            return Err(LockError::Unshared { permission, filename: filename.to_owned() });
        }
    }
    for (i, permission) in members(needs.shared.complement()) {
        if held(NEEDED_BASE + i as i64)? {
            return Err(LockError::InUse { permission, filename: filename.to_owned() });
        }
    }
    Ok(())
}

fn release_surplus(file: &impl AsFd, from: Needs, to: Needs) {
    for byte in bytes(from).filter(|byte| bytes(to).all(|kept| kept != *byte)) {
        // Giving a lock back cannot conflict; a file system that took it lets it go.
        let _gone = set(file, libc::F_UNLCK, byte);
    }
}

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: &impl AsFd, kind: libc::c_int, byte: i64) -> Result<(), Errno> {
    let lock = flock(kind, byte);
    // SAFETY: the descriptor is borrowed for the call; `lock` is a complete `flock` that is only read.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

/// Whether another open file description holds any lock on `byte`.
fn is_held(file: &impl AsFd, byte: i64) -> Result<bool, Errno> {
    let mut lock = flock(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is borrowed for the call; `lock` is a complete `flock` that may be overwritten.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        -1 => Err(last_errno()),
        _ => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn two() -> (File, File, tempfile::NamedTempFile) {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        let open = || File::options().read(true).write(true).open(path.path()).expect("opened");
        (open(), open(), path)
    }

    fn take_all(file: &File, needs: Needs) -> Result<(), String> {
        prepare(file, NONE, needs, "x").map_err(|e| e.to_string())
    }

    #[test]
    fn modes_conflict_as_they_should() {
        let modes = [READ_SHARED, WRITE_SHARED, READ, WRITE];
        let compatible = [
            [true, true, true, true],
            [true, true, false, false],
            [true, false, true, false],
            [true, false, false, false],
        ];
        for (i, first) in modes.into_iter().enumerate() {
            for (j, second) in modes.into_iter().enumerate() {
                let (a, b, _path) = two();
                take_all(&a, first).expect("nobody there");
                assert_eq!(take_all(&b, second).is_ok(), compatible[i][j], "{first:?} then {second:?}");
            }
        }
    }

    #[test]
    fn the_texts_name_the_permission() {
        let (a, b, _path) = two();
        take_all(&a, WRITE).expect("nobody there");
        let reader = take_all(&b, READ).expect_err("in use");
        assert_eq!(reader, "Failed to get shared \"write\" lock\nIs another process using the image [x]?");
        let writer = take_all(&b, WRITE).expect_err("in use");
        assert_eq!(writer, "Failed to get \"write\" lock\nIs another process using the image [x]?");
    }

    #[test]
    fn a_refused_change_leaves_the_old_lock() {
        let (a, b, _path) = two();
        take_all(&a, READ).expect("nobody there");
        take_all(&b, READ).expect("shared");
        assert!(prepare(&b, READ, WRITE, "x").is_err());
        assert!(take_all(&two().0, WRITE).is_ok(), "another file");
        commit(&a, READ, NONE);
        prepare(&b, READ, WRITE, "x").expect("alone now");
        assert!(take_all(&a, READ).is_err());
    }
}
