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

use std::ops::{BitAnd, BitOr, Sub};
use std::os::fd::{AsFd, AsRawFd};

use cowbell_block::{Error, ErrorKind};
use rustix::io::Errno;

use crate::handle::last_errno;

/// First byte of the locks for needed permissions; QEMU's protocol.
const NEEDED_BASE: i64 = 100;
/// First byte of the locks for permissions not shared; QEMU's protocol.
const UNSHARED_BASE: i64 = 200;

/// A set of permissions on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reads see what a guest would have written last.
    pub const CONSISTENT_READ: Self = Self(1);
    /// Content may change.
    pub const WRITE: Self = Self(1 << 1);
    /// Storage may be written without a change of content.
    pub const WRITE_UNCHANGED: Self = Self(1 << 2);
    /// The length may change.
    pub const RESIZE: Self = Self(1 << 3);
    /// All of them.
    pub const ALL: Self = Self(0b1111);

    const NAMES: [&'static str; 4] = ["consistent read", "write", "write unchanged", "resize"];

    /// Whether all of `other` are in this set.
    pub fn contains(self, other: Self) -> bool {
        self & other == other
    }

    /// The members' positions.
    fn positions(self) -> impl Iterator<Item = usize> {
        (0..Self::NAMES.len()).filter(move |i| self.0 & (1 << i) != 0)
    }
}

impl BitOr for Permissions {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Permissions {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Permissions {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What a user of an image needs, and what it lets others do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockMode {
    /// Permissions that are used.
    pub needs: Permissions,
    /// Permissions that others may use.
    pub shares: Permissions,
}

impl LockMode {
    /// Takes no part in locking: `info -U`, or `info` of a raw image.
    pub const NONE: Self = Self { needs: Permissions::NONE, shares: Permissions::ALL };
    /// Reads raw content and minds nobody: `io -r` of a raw image, a backing file, `-U` of any image.
    pub const READ_SHARED: Self = Self { needs: Permissions::CONSISTENT_READ, shares: Permissions::ALL };
    /// Writes raw content beside other writers: `io` of a raw image.
    pub const WRITE_SHARED: Self = Self { needs: Permissions(0b0011), shares: Permissions::ALL };
    /// Reads while nobody may change anything: an image format opened read-only, the source of `convert`.
    pub const READ: Self = Self {
        needs: Permissions::CONSISTENT_READ,
        shares: Permissions(Permissions::CONSISTENT_READ.0 | Permissions::WRITE_UNCHANGED.0),
    };
    /// Looks at a format's metadata only: `info` of an image format.
    pub const INSPECT: Self = Self { needs: Permissions::NONE, shares: Self::READ.shares };
    /// Reads, writes and grows alone: an image format opened for writing.
    pub const WRITE: Self = Self { needs: Permissions(0b1011), shares: Self::READ.shares };
    /// Makes the file anew: `create`, the target of `convert`.
    pub const CREATE: Self = Self { needs: Permissions(0b1010), shares: Permissions(0b0111) };

    fn unshared(self) -> Permissions {
        Permissions::ALL - self.shares
    }

    /// What covers both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { needs: self.needs | other.needs, shares: self.shares & other.shares }
    }
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
pub(crate) fn prepare(
    file: impl AsFd,
    from: LockMode,
    to: LockMode,
    filename: &str,
) -> Result<(), LockError> {
    let result = take(&file, from, to).and_then(|()| check(&file, to, filename));
    if result.is_err() {
        release_surplus(&file, from.with(to), from);
    }
    result
}

/// Gives up what `from` has beyond `to`, after [`prepare`] of `to`.
pub(crate) fn commit(file: impl AsFd, from: LockMode, to: LockMode) {
    release_surplus(&file, from.with(to), to);
}

/// Takes the locks of `mode` on another description of a file whose locks `mode` we hold already: nobody to ask.
pub(crate) fn copy(file: impl AsFd, mode: LockMode) -> Result<(), LockError> {
    take(&file, LockMode::NONE, mode)
}

fn take(file: &impl AsFd, from: LockMode, to: LockMode) -> Result<(), LockError> {
    let needed = (to.needs - from.needs).positions().map(|i| NEEDED_BASE + i as i64);
    let unshared = (to.unshared() - from.unshared()).positions().map(|i| UNSHARED_BASE + i as i64);
    for byte in needed.chain(unshared) {
        set(file, libc::F_RDLCK, byte)
            .map_err(|errno| LockError::Host { byte, errno: errno.raw_os_error() })?;
    }
    Ok(())
}

fn check(file: &impl AsFd, mode: LockMode, filename: &str) -> Result<(), LockError> {
    let held = |byte| is_held(file, byte).map_err(|e| LockError::Host { byte, errno: e.raw_os_error() });
    for i in mode.needs.positions() {
        if held(UNSHARED_BASE + i as i64)? {
            return Err(LockError::Unshared {
                permission: Permissions::NAMES[i],
                filename: filename.to_owned(),
            });
        }
    }
    for i in mode.unshared().positions() {
        if held(NEEDED_BASE + i as i64)? {
            return Err(LockError::InUse {
                permission: Permissions::NAMES[i],
                filename: filename.to_owned(),
            });
        }
    }
    Ok(())
}

fn release_surplus(file: &impl AsFd, from: LockMode, to: LockMode) {
    let needed = (from.needs - to.needs).positions().map(|i| NEEDED_BASE + i as i64);
    let unshared = (from.unshared() - to.unshared()).positions().map(|i| UNSHARED_BASE + i as i64);
    for byte in needed.chain(unshared) {
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

    fn take_all(file: &File, mode: LockMode) -> Result<(), String> {
        prepare(file, LockMode::NONE, mode, "x").map_err(|e| e.to_string())
    }

    #[test]
    fn modes_conflict_as_they_should() {
        let modes = [LockMode::READ_SHARED, LockMode::WRITE_SHARED, LockMode::READ, LockMode::WRITE];
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
        take_all(&a, LockMode::WRITE).expect("nobody there");
        let reader = take_all(&b, LockMode::READ).expect_err("in use");
        assert_eq!(reader, "Failed to get shared \"write\" lock\nIs another process using the image [x]?");
        let writer = take_all(&b, LockMode::WRITE).expect_err("in use");
        assert_eq!(writer, "Failed to get \"write\" lock\nIs another process using the image [x]?");
    }

    #[test]
    fn a_refused_change_leaves_the_old_lock() {
        let (a, b, _path) = two();
        take_all(&a, LockMode::READ).expect("nobody there");
        take_all(&b, LockMode::READ).expect("shared");
        assert!(prepare(&b, LockMode::READ, LockMode::WRITE, "x").is_err());
        assert!(take_all(&two().0, LockMode::WRITE).is_ok(), "another file");
        commit(&a, LockMode::READ, LockMode::NONE);
        prepare(&b, LockMode::READ, LockMode::WRITE, "x").expect("alone now");
        assert!(take_all(&a, LockMode::READ).is_err());
    }
}
