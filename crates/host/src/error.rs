//! Where the host's error codes become errors of the block layer: once, and with the code kept.

use cowbell_block::{Error, ErrorKind};
use rustix::io::Errno;

/// The host's code as an error of the block layer.
pub(crate) fn os(errno: Errno) -> Error {
    Error::from_errno(errno.raw_os_error())
}

/// The code of an error that the standard library or a crate reports.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// What opening a file can break.
///
/// Texts that name the driver or the lock are the reference's, letter for letter: scripts match them.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host refused.
    #[error("Could not open '{filename}': {}", cowbell_block::error::errno_text(*.errno))]
    Refused {
        /// The name as given.
        filename: String,
        /// The host's code.
        errno: i32,
    },
    /// The host refused to make the file.
    #[error("Could not create '{filename}': {}", cowbell_block::error::errno_text(*.errno))]
    NotCreated {
        /// The name as given.
        filename: String,
        /// The host's code.
        errno: i32,
    },
    /// `file` was asked for something else.
    #[error("'file' driver requires '{filename}' to be a regular file")]
    NotRegular {
        /// The name as given.
        filename: String,
    },
    /// The empty name.
    #[error("The '{driver}' block driver requires a file name")]
    NoName {
        /// The driver that was asked.
        driver: &'static str,
    },
    /// `host_device` was asked for something else.
    #[error("'host_device' driver requires '{filename}' to be either a character or block device")]
    NotDevice {
        /// The name as given.
        filename: String,
    },
    /// Neither a file nor a block device.
    #[error("'{filename}' is {what}; an image is a regular file or a block device")]
    NotStorage {
        /// The name as given.
        filename: String,
        /// What it is instead.
        what: &'static str,
    },
    /// `O_DIRECT` was refused.
    #[error("Could not open '{filename}': filesystem does not support O_DIRECT")]
    NoDirect {
        /// The name as given.
        filename: String,
    },
    /// No alignment of direct I/O was found that the host accepts.
    #[error("Could not find working O_DIRECT alignment for '{filename}'")]
    NoAlignment {
        /// The name as given.
        filename: String,
    },
    /// `aio=io_uring` where the kernel forbids it.
    #[error("aio=io_uring was specified, but the kernel does not offer io_uring here")]
    NoRing,
    /// `aio=native` without direct I/O.
    #[error("aio=native was specified, but it requires cache.direct=on, which was not specified.")]
    NativeNeedsDirect,
    /// A link leads out of the directory that the policy confines a chain of images to.
    #[error("'{filename}' leads out of '{directory}' (policy trust allows it)")]
    LeadsOut {
        /// The name as given.
        filename: String,
        /// The directory.
        directory: String,
    },
    /// A name with a NUL byte, an empty one, or the like.
    #[error("'{filename}' is not a file name")]
    BadName {
        /// The name as given.
        filename: String,
    },
}

impl OpenError {
    /// The error of the block layer, with the class that fits.
    pub(crate) fn into_error(self) -> Error {
        match &self {
            Self::Refused { errno, .. } | Self::NotCreated { errno, .. } => Error::with_errno(*errno, self),
            Self::NoName { .. }
            | Self::NotRegular { .. }
            | Self::NotDevice { .. }
            | Self::NotStorage { .. }
            | Self::NoDirect { .. }
            | Self::NoAlignment { .. }
            | Self::BadName { .. }
            | Self::NativeNeedsDirect => Error::new(ErrorKind::InvalidInput, self),
            Self::LeadsOut { .. } => Error::new(ErrorKind::PermissionDenied, self),
            Self::NoRing => Error::new(ErrorKind::Unsupported, self),
        }
    }
}

/// What a request to an open file can break.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The node was closed.
    #[error("the file is closed")]
    Closed,
    /// An earlier flush failed: what became of the data before it is unknown until the file is opened again.
    #[error("an earlier flush failed ({}); the file must be opened again", cowbell_block::error::errno_text(*.errno))]
    FlushFailed {
        /// The code of the failed flush.
        errno: i32,
    },
    /// A device has the size it has.
    #[error("Cannot grow device files")]
    DeviceGrows,
    /// Preallocation is for growing.
    #[error("Preallocation can't be used for shrinking files")]
    PreallocationShrinks,
    /// The host does not give the file this length.
    #[error("Could not resize file: {}", cowbell_block::error::errno_text(*.errno))]
    Resize {
        /// The host's code.
        errno: i32,
    },
    /// A hint beyond what hosts take.
    #[error("Extent size hint is too large")]
    ExtentHint,
    /// A mode that needs an image format.
    #[error("Unsupported preallocation mode: {mode}")]
    Preallocation {
        /// The mode's name.
        mode: &'static str,
    },
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        let kind = match error {
            FileError::Resize { errno } => return Error::with_errno(errno, error),
            FileError::Closed
            | FileError::DeviceGrows
            | FileError::PreallocationShrinks
            | FileError::ExtentHint => ErrorKind::InvalidInput,
            FileError::FlushFailed { .. } => ErrorKind::Poisoned,
            FileError::Preallocation { .. } => ErrorKind::Unsupported,
        };
        Error::new(kind, error)
    }
}
