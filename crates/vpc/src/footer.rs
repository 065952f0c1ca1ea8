//! The footer, 512 bytes: at the end of every image, and at the start of those that grow.

use cowbell_block::Child;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::VpcError;
use crate::geometry::{Chs, SECTORS_MAX};
use crate::node::SizeRule;

/// What a footer begins with.
pub const COOKIE: [u8; 8] = *b"conectix";
/// Length in bytes.
pub const FOOTER_BYTES: usize = 512;
/// Seconds from 1970 to 2000, where the format's time begins.
pub const EPOCH_SEC: u64 = 946_684_800;
/// `data_offset` of fixed images.
pub const NO_HEADER: u64 = u64::MAX;

/// A footer as it is stored.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RawFooter {
    /// [`COOKIE`].
    pub cookie: [u8; 8],
    /// 2 is always set; 1 marks a temporary disk.
    pub features: U32,
    /// 0x10000.
    pub version: U32,
    /// Where the header lies, or [`NO_HEADER`].
    pub data_offset: U64,
    /// When the image was made, in seconds after the year 2000 began.
    pub timestamp: U32,
    /// Who made it.
    pub creator_app: [u8; 4],
    /// Which version of that.
    pub creator_version: U32,
    /// Where it ran.
    pub creator_host: [u8; 4],
    /// Length of the disk when it was made, in bytes.
    pub original_size: U64,
    /// Length of the disk, in bytes.
    pub current_size: U64,
    /// Geometry.
    pub cylinders: U16,
    /// Geometry.
    pub heads: u8,
    /// Geometry.
    pub sectors: u8,
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// Identifies the image for its children.
    pub unique_id: [u8; 16],
    /// A machine was saved that uses it.
    pub saved_state: u8,
    /// Zeroes.
    pub reserved: [u8; 427],
}

const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES);

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// The whole disk, then the footer.
    Fixed,
    /// Blocks, in the order they were written.
    Dynamic,
    /// The same, of sectors that differ from a parent's.
    Differencing,
}

impl DiskType {
    /// The number that stands for it.
    pub fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::Fixed, Self::Dynamic, Self::Differencing].into_iter().find(|kind| kind.number() == number)
    }
}

/// The one's complement of the sum of all bytes, `checksum` taken as zero.
pub(crate) fn checksum(bytes: &[u8], stored: u32) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(bytes).wrapping_sub(sum(&stored.to_be_bytes()))
}

/// A footer that keeps the format's rules.
#[derive(Clone, Copy)]
pub struct Footer {
    raw: RawFooter,
    disk_type: DiskType,
}

impl Footer {
    /// What a footer says that has these bytes.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(bytes: &[u8; FOOTER_BYTES]) -> Result<Self, VpcError> {
        let raw: RawFooter = zerocopy::transmute!(*bytes);
        if raw.cookie != COOKIE {
            return Err(VpcError::NoFooter);
        }
        if checksum(bytes, raw.checksum.get()) != raw.checksum.get() {
            return Err(VpcError::Checksum);
        }
        let number = raw.disk_type.get();
        let disk_type = DiskType::from_number(number).ok_or(VpcError::DiskType(number))?;
        Ok(Self { raw, disk_type })
    }

    /// A new footer, with its checksum.
    pub fn new(mut raw: RawFooter, disk_type: DiskType) -> Self {
        raw.disk_type = disk_type.number().into();
        raw.checksum = 0.into();
        raw.checksum = checksum(raw.as_bytes(), 0).into();
        Self { raw, disk_type }
    }

    /// The footer of the image in `file`: the copy at its start, or else the one at its end.
    ///
    /// # Errors
    /// The rule that it breaks, or the file's error.
    pub async fn read(file: &Child) -> cowbell_block::Result<Self> {
        let at = async |offset: u64| -> cowbell_block::Result<[u8; FOOTER_BYTES]> {
            let buf = file.read(offset, FOOTER_BYTES).await?;
            let mut bytes = [0; FOOTER_BYTES];
            bytes.copy_from_slice(&buf);
            buf.recycle();
            Ok(bytes)
        };
        let len = file.len();
        let mut bytes = if len > 0 { at(0).await? } else { [0; FOOTER_BYTES] };
        if bytes[..8] != COOKIE {
            let end = len.checked_sub(FOOTER_BYTES as u64).ok_or(VpcError::TooSmall)?;
            bytes = at(end).await?;
        }
        Ok(Self::parse(&bytes)?)
    }

    /// The bytes to store.
    pub fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    /// As it is stored.
    pub fn raw(&self) -> &RawFooter {
        &self.raw
    }

    /// What kind of image it is.
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// The geometry.
    pub fn chs(&self) -> Chs {
        let RawFooter { cylinders, heads, sectors, .. } = self.raw;
        Chs { cylinders: cylinders.get(), heads, sectors }
    }

    /// Length of the disk in bytes: by its geometry for those creators that go by it, unless no geometry describes it.
    ///
    /// # Errors
    /// [`VpcError::TooLong`].
    pub fn disk_len(&self, rule: SizeRule) -> Result<u64, VpcError> {
        let by_geometry = match rule {
            SizeRule::Creator => matches!(&self.raw.creator_app, b"vpc " | b"qemu"),
            SizeRule::Chs => true,
            SizeRule::CurrentSize => false,
        };
        let sectors = match self.chs() {
            chs if by_geometry && chs != Chs::MAX => chs.total(),
            _ => self.raw.current_size.get() / crate::SECTOR,
        };
        match sectors <= SECTORS_MAX {
            true => Ok(sectors * crate::SECTOR),
            false => Err(VpcError::TooLong { sectors, max: SECTORS_MAX }),
        }
    }
}

/// An id as people write it.
pub(crate) fn id_text(id: [u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]].map(hex).join("-")
}
