//! The one error type that crosses node boundaries.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, in the few classes that callers branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device or file failed, or data could not be read back.
    Io,
    /// The host has no room left.
    NoSpace,
    /// The operation does not exist here; the caller may fall back to another.
    Unsupported,
    /// A value given by the caller is out of range or malformed.
    InvalidInput,
    /// The node was opened without the right to write.
    ReadOnly,
    /// The host refused access, or a policy did.
    PermissionDenied,
    /// The thing named does not exist.
    NotFound,
    /// The thing to be made exists already.
    AlreadyExists,
    /// Somebody else holds a lock or uses the node.
    Busy,
    /// The image contradicts its format.
    Corrupt,
    /// A size is beyond what the format or the host can hold.
    TooLarge,
    /// An earlier failure made the node unusable until it is opened again.
    Poisoned,
    /// The caller asked to stop.
    Cancelled,
    /// Memory or another bounded resource ran out.
    Exhausted,
}

impl ErrorKind {
    /// The errno of Linux that stands for this kind where a protocol or a message needs one.
    pub fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Corrupt | Self::Poisoned => 5,
            Self::NoSpace => 28,
            Self::Unsupported => 95,
            Self::InvalidInput => 22,
            Self::ReadOnly => 30,
            Self::PermissionDenied => 1,
            Self::NotFound => 2,
            Self::AlreadyExists => 17,
            Self::Busy => 11,
            Self::TooLarge => 27,
            Self::Cancelled => 125,
            Self::Exhausted => 12,
        }
    }

    /// The kind that an errno of the host belongs to.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            28 | 122 => Self::NoSpace,
            95 | 25 | 38 => Self::Unsupported,
            22 => Self::InvalidInput,
            30 => Self::ReadOnly,
            1 | 13 => Self::PermissionDenied,
            2 => Self::NotFound,
            17 => Self::AlreadyExists,
            11 | 16 => Self::Busy,
            27 => Self::TooLarge,
            125 => Self::Cancelled,
            12 | 24 | 23 => Self::Exhausted,
            _ => Self::Io,
        }
    }
}

/// An error with its kind, the host's code where there was one, and its cause.
///
/// The text is the cause's own: each crate names its broken rules in `thiserror` enums and wraps them here.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    errno: Option<i32>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Wraps a typed cause.
    pub fn new(kind: ErrorKind, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self(Box::new(Repr { kind, errno: None, cause: Some(Box::new(cause)) }))
    }

    /// Wraps the host's error code; `cause` says what was attempted, if more is known.
    pub fn from_errno(errno: i32) -> Self {
        Self(Box::new(Repr { kind: ErrorKind::from_errno(errno), errno: Some(errno), cause: None }))
    }

    /// Like [`Error::new`], keeping the host's error code.
    pub fn with_errno(errno: i32, cause: impl StdError + Send + Sync + 'static) -> Self {
        let kind = ErrorKind::from_errno(errno);
        Self(Box::new(Repr { kind, errno: Some(errno), cause: Some(Box::new(cause)) }))
    }

    /// The class to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The host's error code, or the one that stands for the kind.
    pub fn errno(&self) -> i32 {
        self.0.errno.unwrap_or_else(|| self.0.kind.errno())
    }

    /// The typed cause, if there is one: what `Display` prints.
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.cause.as_deref()
    }

    /// The same failure for a second waiter: kind and code are kept, the cause becomes its text.
    pub fn duplicate(&self) -> Self {
        let cause = self.0.cause.as_ref().map(|c| Box::new(Text(c.to_string())) as Box<_>);
        Self(Box::new(Repr { kind: self.0.kind, errno: self.0.errno, cause }))
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(Repr { kind, errno: None, cause: None }))
    }
}

/// The text of an error that was reported to somebody else already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Text(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.cause {
            Some(cause) => cause.fmt(f),
            None => f.write_str(&errno_text(self.errno())),
        }
    }
}

/// The host's text for an error code, as `strerror` gives it.
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, errno {}, {self})", self.0.kind, self.errno())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().and_then(StdError::source)
    }
}

/// The result of everything that can fail in the block layer.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_codes_agree() {
        for kind in [ErrorKind::NoSpace, ErrorKind::Unsupported, ErrorKind::ReadOnly, ErrorKind::TooLarge] {
            assert_eq!(ErrorKind::from_errno(kind.errno()), kind);
        }
        assert_eq!(Error::from_errno(5).to_string(), "Input/output error");
        assert_eq!(Error::from(ErrorKind::NoSpace).to_string(), "No space left on device");
    }
}
