//! How a job fails.

/// What a job could not do, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Data could not be read.
    #[error("error while reading at byte {offset}")]
    Read {
        /// First byte of the failed request.
        offset: u64,
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// Data of the new backing file could not be read.
    #[error("error while reading the new backing file at byte {offset}")]
    ReadNew {
        /// First byte of the failed request.
        offset: u64,
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// Data could not be written.
    #[error("error while writing at byte {offset}")]
    Write {
        /// First byte of the failed request.
        offset: u64,
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// It could not be asked what is allocated.
    #[error("error while reading block status at offset {offset}")]
    Status {
        /// First byte of the question.
        offset: u64,
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// The target could not be made durable.
    #[error("error while flushing the target")]
    Flush {
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// The target cannot be made as long as it has to be.
    #[error("error while growing the target to {len} bytes")]
    Grow {
        /// The length asked for.
        len: u64,
        /// The node's error.
        source: cowbell_block::Error,
    },
    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled) said so.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The node's error behind this one.
    pub fn node_error(&self) -> Option<&cowbell_block::Error> {
        match self {
            Self::Read { source, .. }
            | Self::ReadNew { source, .. }
            | Self::Write { source, .. }
            | Self::Status { source, .. }
            | Self::Grow { source, .. }
            | Self::Flush { source } => Some(source),
            Self::Cancelled => None,
        }
    }
}

/// The result of a job.
pub type Result<T> = std::result::Result<T, Error>;
