//! The rules that an image can break, in the reference's words where it has them.

use cowbell_block::{Error, ErrorKind};

/// A broken rule.
#[derive(Debug, thiserror::Error)]
pub enum VpcError {
    /// There is no room for a footer.
    #[error("File too small for a VHD header")]
    TooSmall,
    /// No footer at either end.
    #[error("invalid VPC image")]
    NoFooter,
    /// The footer is damaged.
    #[error("Incorrect header checksum")]
    Checksum,
    /// A kind of image that the format does not have.
    #[error("disk type {0} is none of fixed (2), dynamic (3) and differencing (4)")]
    DiskType(u32),
    /// A disk beyond 2040 GiB.
    #[error("the disk has {sectors} sectors, and at most {max} are possible")]
    TooLong {
        /// What the footer says.
        sectors: u64,
        /// 2040 GiB.
        max: u64,
    },
    /// A fixed disk that is longer than its file.
    #[error("the disk has {disk} bytes, and its file only {file} with the footer")]
    FixedBeyondFile {
        /// Length of the disk.
        disk: u64,
        /// Length of the file.
        file: u64,
    },
    /// The header lies outside of the file.
    #[error("Error reading dynamic VHD header")]
    HeaderOutside,
    /// There is something else.
    #[error("Invalid header magic")]
    HeaderMagic,
    /// No power of two, or less than a sector.
    #[error("Invalid block size {0}")]
    BlockSize(u32),
    /// A table of more entries than can be counted.
    #[error("Max Table Entries too large ({})", *.0 as i32)]
    EntriesTooMany(u32),
    /// Fewer entries than the disk has blocks.
    #[error("Page table too small")]
    TableTooSmall,
    /// Blocks so small that their table is out of bounds.
    #[error("the disk has {blocks} blocks, and a table of more than {max} is not opened")]
    TableTooLarge {
        /// What the disk needs.
        blocks: u64,
        /// The limit.
        max: u64,
    },
    /// The table lies outside of the file.
    #[error("Error reading pagetable")]
    TableOutside,
    /// A block, or the table, ends behind the file's end.
    #[error("block-vpc: free_data_block_offset points after the end of file. The image has been truncated.")]
    Truncated,
    /// Two things at one place: writing to one would change the other.
    #[error("block {block} at offset {offset} lies upon {other}: the image can only be read")]
    Overlap {
        /// The block's number.
        block: u32,
        /// Its place in the file.
        offset: u64,
        /// What else is there.
        other: &'static str,
    },
    /// The table cannot name a place so far away.
    #[error("a new block would lie at offset {0}, beyond what the table can name")]
    FileTooLong(u64),
    /// A differencing image that does not say of what.
    #[error("the differencing image does not name its parent")]
    NoParentName,
    /// A name that is no text.
    #[error("the name of the parent in locator {0} is no UTF-16 or UTF-8 text")]
    ParentName(&'static str),
    /// Another image than the one that it was made on.
    #[error(
        "parent '{name}' is not the image that this one was made on: its id is {found}, and {expected} is stored"
    )]
    ParentId {
        /// The parent's name.
        name: String,
        /// Its id.
        found: String,
        /// The one stored.
        expected: String,
    },
    /// The parent came after its child.
    #[error(
        "parent '{name}' was made after this image was made on it: {found} seconds after 2000, and {stored} are stored"
    )]
    ParentNewer {
        /// The parent's name.
        name: String,
        /// When it was made.
        found: u32,
        /// What the child knows.
        stored: u32,
    },
    /// A disk of another length than its parent's.
    #[error("a differencing image is as long as its parent: {parent} bytes, not {size}")]
    ParentLength {
        /// The parent's length.
        parent: u64,
        /// What was asked for.
        size: u64,
    },
    /// A parent of another format.
    #[error("the parent of a differencing image is of format vpc, not {0}")]
    ParentFormat(String),
    /// A name that no locator holds.
    #[error("the parent's name has {0} bytes, and a locator holds at most {max}", max = crate::locator::NAME_BYTES_MAX)]
    ParentNameTooLong(usize),
    /// More than the format can hold.
    #[error("The image size is too large for file format 'vpc'")]
    SizeTooLarge,
    /// No kind of image that can be made.
    #[error("Parameter 'subformat' does not accept value '{0}'")]
    Subformat(String),
    /// No rule for the length of the disk.
    #[error("Invalid size calculation mode: '{0}'")]
    SizeRule(String),
    /// A fixed image has no parent.
    #[error("an image on a parent is a differencing one: 'subformat' cannot be given")]
    SubformatWithParent,
}

impl From<VpcError> for Error {
    fn from(e: VpcError) -> Self {
        let kind = match e {
            VpcError::TooLong { .. } | VpcError::SizeTooLarge | VpcError::FileTooLong(_) => {
                ErrorKind::TooLarge
            }
            VpcError::TableTooLarge { .. } => ErrorKind::Unsupported,
            VpcError::Overlap { .. } => ErrorKind::Corrupt,
            VpcError::ParentLength { .. }
            | VpcError::ParentFormat(_)
            | VpcError::ParentNameTooLong(_)
            | VpcError::Subformat(_)
            | VpcError::SizeRule(_)
            | VpcError::SubformatWithParent => ErrorKind::InvalidInput,
            _ => ErrorKind::Corrupt,
        };
        Error::new(kind, e)
    }
}
