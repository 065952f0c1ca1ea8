//! From a name to an open, locked, checked file.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cowbell_block::{Access, AioMode, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{OpenError, os};
use crate::file::options::{Create, FileKind, FileOptions, Locking, WriteRefused};
use crate::file::probe::{self, Alignment};
use crate::handle::{Handle, retry};
use crate::lock::{self, Needs};
use crate::path::name_of;
use crate::ring;

/// Permissions of a new file before the umask.
const NEW_FILE: Mode = Mode::from_raw_mode(0o644);

/// What opening found.
pub(crate) struct Opened {
    pub(crate) handle: Handle,
    pub(crate) is_device: bool,
    pub(crate) len: u64,
    /// The locks held, if any are.
    pub(crate) lock: Option<Needs>,
    /// Present with direct I/O.
    pub(crate) alignment: Option<Alignment>,
    pub(crate) in_memory: bool,
}

/// Opens `path` as `options` say.
pub(crate) fn open(path: &Path, options: &FileOptions<'_>) -> Result<Opened> {
    let filename = name_of(path);
    check_aio(options).map_err(OpenError::into_error)?;
    let (fd, access) = open_fd(path, &filename, options).map_err(OpenError::into_error)?;
    let stat = rustix::fs::fstat(&fd).map_err(os)?;
    let is_device = classify(FileType::from_raw_mode(stat.st_mode), &filename, options.kind)
        .map_err(OpenError::into_error)?;
    // Opened without waiting, for the sake of FIFOs; from here on waiting is fine.
    rustix::fs::fcntl_setfl(&fd, status_flags(options)).map_err(os)?;
    let handle = Handle::new(fd, access);
    let lock = take_locks(&handle, &filename, options, access)?;
    if options.create == Create::Truncate && !is_device {
        rustix::fs::ftruncate(&handle, 0).map_err(os)?;
    }
    let len = length(&handle, is_device).map_err(os)?;
    let alignment = if options.cache.direct {
        let found = probe::alignment(&handle, len);
        Some(found.ok_or_else(|| OpenError::NoAlignment { filename }.into_error())?)
    } else {
        None
    };
    let in_memory = probe::is_in_memory(&handle);
    Ok(Opened { handle, is_device, len, lock, alignment, in_memory })
}

/// Opens what `file` is once more, with another right to write, under new locks.
pub(crate) fn again(file: &Handle, access: Access, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, access_flags(access) | flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

/// Status flags that stay for the life of the file.
pub(crate) fn status_flags(options: &FileOptions<'_>) -> OFlags {
    if options.cache.direct { OFlags::DIRECT } else { OFlags::empty() }
}

/// The length now.
pub(crate) fn length(file: impl AsFd, is_device: bool) -> std::result::Result<u64, Errno> {
    if is_device {
        return rustix::fs::seek(file, rustix::fs::SeekFrom::End(0));
    }
    rustix::fs::fstat(file).map(|stat| stat.st_size.max(0) as u64)
}

fn check_aio(options: &FileOptions<'_>) -> std::result::Result<(), OpenError> {
    match options.aio {
        AioMode::Native if !options.cache.direct => Err(OpenError::NativeNeedsDirect),
        AioMode::IoUring if !ring::is_offered() => Err(OpenError::NoRing),
        _ => Ok(()),
    }
}

fn access_flags(access: Access) -> OFlags {
    match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    }
}

fn open_fd(
    path: &Path,
    filename: &str,
    options: &FileOptions<'_>,
) -> std::result::Result<(OwnedFd, Access), OpenError> {
    let create = match options.create {
        Create::Never => OFlags::empty(),
        Create::IfMissing | Create::Truncate => OFlags::CREATE,
        Create::New => OFlags::CREATE | OFlags::EXCL,
    };
    let common = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | status_flags(options) | create;
    let attempt = |access| open_beneath(path, access_flags(access) | common, options);
    let result = match attempt(options.access) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS)
            if options.access == Access::ReadWrite && options.write_refused == WriteRefused::ReadOnly =>
        {
            attempt(Access::ReadOnly).map(|fd| (fd, Access::ReadOnly))
        }
        result => result.map(|fd| (fd, options.access)),
    };
    result.map_err(|errno| refusal(path, errno, filename, options))
}

fn open_beneath(
    path: &Path,
    flags: OFlags,
    options: &FileOptions<'_>,
) -> std::result::Result<OwnedFd, Errno> {
    let mode = if flags.contains(OFlags::CREATE) { NEW_FILE } else { Mode::empty() };
    let Some(directory) = options.beneath else {
        return retry(|| rustix::fs::open(path, flags, mode));
    };
    let rest = path.strip_prefix(directory).unwrap_or(path);
    let handle = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = retry(|| rustix::fs::open(directory, handle, Mode::empty()))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: a rename raced with the walk, so that the kernel cannot tell whether it stayed inside.
    retry(|| match rustix::fs::openat2(&directory, rest, flags, mode, resolve) {
        Err(Errno::AGAIN) => Err(Errno::INTR),
        result => result,
    })
}

fn refusal(path: &Path, errno: Errno, filename: &str, options: &FileOptions<'_>) -> OpenError {
    let filename = filename.to_owned();
    if let (Errno::XDEV, Some(directory)) = (errno, options.beneath) {
        return OpenError::LeadsOut { filename, directory: name_of(directory) };
    }
    // A socket or a device without a driver cannot even be opened; say what it is.
    if errno == Errno::NXIO
        && let Ok(stat) = rustix::fs::stat(path)
        && let Err(e) = classify(FileType::from_raw_mode(stat.st_mode), &filename, options.kind)
    {
        return e;
    }
    if errno == Errno::INVAL {
        let has_nul = path.as_os_str().as_encoded_bytes().contains(&0);
        return match options.cache.direct && !has_nul {
            true => OpenError::NoDirect { filename },
            false => OpenError::BadName { filename },
        };
    }
    let errno = errno.raw_os_error();
    match options.create {
        Create::Never => OpenError::Refused { filename, errno },
        _ => OpenError::NotCreated { filename, errno },
    }
}

/// Whether the file is a device; fails for what is no image.
fn classify(file_type: FileType, filename: &str, kind: FileKind) -> std::result::Result<bool, OpenError> {
    let filename = || filename.to_owned();
    let what = match (file_type, kind) {
        (FileType::RegularFile, FileKind::Either | FileKind::File) => return Ok(false),
        // Of character devices those that have a length are of use: the raw disks of some systems, `/dev/null`.
        (FileType::BlockDevice | FileType::CharacterDevice, FileKind::Either | FileKind::Device) => {
            return Ok(true);
        }
        (_, FileKind::File) => return Err(OpenError::NotRegular { filename: filename() }),
        (_, FileKind::Device) => return Err(OpenError::NotDevice { filename: filename() }),
        (FileType::Directory, _) => "a directory",
        (FileType::Fifo, _) => "a FIFO",
        (FileType::Socket, _) => "a socket",
        _ => "something else",
    };
    Err(OpenError::NotStorage { filename: filename(), what })
}

fn take_locks(
    handle: &Handle,
    filename: &str,
    options: &FileOptions<'_>,
    access: Access,
) -> Result<Option<Needs>> {
    if options.locking == Locking::Off {
        return Ok(None);
    }
    let mode = options.resolved_needs(access);
    match lock::prepare(handle, lock::NONE, mode, filename) {
        Ok(()) => Ok(Some(mode)),
        Err(e) if options.locking == Locking::Auto && e.is_unsupported() => Ok(None),
        Err(e) => Err(e.into()),
    }
}
