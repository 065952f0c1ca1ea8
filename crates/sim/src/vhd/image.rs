//! Builds VHD images byte by byte, from the format's specification: footer, header, the parent's name, the table, blocks, and
//! the footer again. Shares no code with the driver.

use cowbell_block::Child;
use cowbell_vpc::CreateOptions;

use crate::config::{Backing, Config, Prestate};
use crate::engine::edit;
use crate::image::{Built, build_backing, initial};
use crate::keys::Repeating;
use crate::pool::{Content, Pool, SECTOR, ZERO};
use crate::stamp::PRESTATE;
use crate::timeline::Image;

use super::NOT_THERE;

/// Where the header begins.
const HEADER_AT: usize = SECTOR;
/// Where what follows the header begins: the parent's name, if there is one, and the table.
const NEXT_AT: usize = HEADER_AT + 1024;
/// The parent's name, as another system writes it.
const PARENT_NAME: &str = ".\\backing";

/// Sectors of a block's bitmap.
pub(super) fn bitmap_sectors(block_sectors: u64) -> u64 {
    block_sectors.div_ceil(8).div_ceil(SECTOR as u64)
}

/// Sectors of a block with its bitmap.
pub(super) fn block_sectors(config: &Config) -> u64 {
    config.cluster_sectors() + bitmap_sectors(config.cluster_sectors())
}

/// The first sector that no structure takes.
pub(super) fn tables_end(config: &Config) -> u64 {
    let name = u64::from(config.backing != Backing::None);
    (NEXT_AT / SECTOR) as u64 + name + (config.clusters() * 4).div_ceil(SECTOR as u64)
}

/// Bytes of the file when every block is there.
pub(crate) fn whole_len(config: &Config) -> u64 {
    (tables_end(config) + config.clusters() * block_sectors(config) + 1) * SECTOR as u64
}

/// What a block is at the beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Absent,
    Whole,
    /// Every third sector is the image's own.
    Sparse,
}

impl Kind {
    fn of(config: &Config, block: u64) -> Self {
        match config.prestate {
            Prestate::Half if block.is_multiple_of(2) => Self::Whole,
            Prestate::Mixed => [Self::Sparse, Self::Absent, Self::Whole][block as usize % 3],
            _ => Self::Absent,
        }
    }

    fn has(self, within: u64) -> bool {
        match self {
            Self::Absent => false,
            Self::Whole => true,
            Self::Sparse => within.is_multiple_of(3),
        }
    }
}

/// The image of a configuration, and what its guest reads.
pub(super) fn build(config: &Config, pool: &mut Pool) -> Built {
    let (backing, backing_file) = build_backing(config, pool);
    let behind = |sector: u64| backing.as_ref().and_then(|b| b.get(sector as usize)).copied().unwrap_or(ZERO);
    let block = config.cluster_sectors();
    let guest: Vec<Content> = (0..config.sectors)
        .map(|sector| match Kind::of(config, sector / block).has(sector % block) {
            true => pool.intern(&initial(PRESTATE, sector).bytes()),
            false => behind(sector),
        })
        .collect();
    let image = match config.prestate {
        Prestate::Created if backing.is_none() => created(config, pool),
        _ => {
            let bytes = file(config);
            Image { sectors: pool.intern_all(&bytes), len: bytes.len() as u64, data_len: 0 }
        }
    };
    Built { image, guest, backing, backing_file, ..Built::default() }
}

/// As the driver makes it.
fn created(config: &Config, pool: &mut Pool) -> Image {
    let size = config.sectors * SECTOR as u64;
    edit(&Image::default(), config, pool, |files| async move {
        let options = CreateOptions { size, exact: true, ..CreateOptions::default() };
        cowbell_vpc::create(&Child::new(files.image), &options, &Repeating::new(0)).await
    })
}

fn file(config: &Config) -> Vec<u8> {
    let footer = footer(config);
    let mut file = [&footer[..], &header(config)].concat();
    if config.backing != Backing::None {
        file.extend(PARENT_NAME.encode_utf16().flat_map(u16::to_le_bytes));
        file.resize(NEXT_AT + SECTOR, 0);
    }
    let (table, block) = (file.len(), config.cluster_sectors());
    file.resize(tables_end(config) as usize * SECTOR, 0xff);
    // Blocks lie in the order in which they were written: here the last one was the first.
    for index in (0..config.clusters()).rev() {
        let kind = Kind::of(config, index);
        let entry = if kind == Kind::Absent { NOT_THERE } else { (file.len() / SECTOR) as u32 };
        file[table + index as usize * 4..][..4].copy_from_slice(&entry.to_be_bytes());
        if kind == Kind::Absent {
            continue;
        }
        let mut bits = vec![0; bitmap_sectors(block) as usize * SECTOR];
        (0..block).filter(|within| kind.has(*within)).for_each(|within| {
            bits[within as usize / 8] |= 0x80 >> (within % 8);
        });
        file.extend(bits);
        for within in 0..block {
            let sector = index * block + within;
            let is_there = kind.has(within) && sector < config.sectors;
            file.extend(if is_there { initial(PRESTATE, sector).bytes() } else { [0; SECTOR] });
        }
    }
    file.extend(footer);
    file
}

/// One's complement of the sum of all bytes, where the checksum is zero.
fn sealed<const N: usize>(mut bytes: [u8; N], checksum_at: usize) -> [u8; N] {
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

/// Where the checksum of a footer is.
const FOOTER_CHECKSUM: usize = 64;

fn footer(config: &Config) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let len = config.sectors * SECTOR as u64;
    put(&mut bytes, 0, *b"conectix");
    put(&mut bytes, 8, 2u32.to_be_bytes());
    put(&mut bytes, 12, 0x10000u32.to_be_bytes());
    put(&mut bytes, 16, (HEADER_AT as u64).to_be_bytes());
    // A program that goes by the length, not by the geometry.
    put(&mut bytes, 28, *b"win ");
    put(&mut bytes, 40, len.to_be_bytes());
    put(&mut bytes, 48, len.to_be_bytes());
    put(&mut bytes, 60, if config.backing == Backing::None { 3u32 } else { 4 }.to_be_bytes());
    put(&mut bytes, 68, [7; 16]);
    sealed(bytes, FOOTER_CHECKSUM)
}

/// Whether these bytes are a footer, with the right checksum.
pub(super) fn is_footer(bytes: &[u8; SECTOR]) -> bool {
    let mut bare = *bytes;
    put(&mut bare, FOOTER_CHECKSUM, [0; 4]);
    bytes.starts_with(b"conectix") && sealed(bare, FOOTER_CHECKSUM) == *bytes
}

fn header(config: &Config) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    let is_child = config.backing != Backing::None;
    let table = NEXT_AT + if is_child { SECTOR } else { 0 };
    put(&mut bytes, 0, *b"cxsparse");
    put(&mut bytes, 8, [0xff; 8]);
    put(&mut bytes, 16, (table as u64).to_be_bytes());
    put(&mut bytes, 24, 0x10000u32.to_be_bytes());
    put(&mut bytes, 28, (config.clusters() as u32).to_be_bytes());
    put(&mut bytes, 32, (1u32 << config.cluster_bits).to_be_bytes());
    if is_child {
        put(&mut bytes, 40, [9; 16]);
        // The first locator: platform, room, length, place.
        put(&mut bytes, 576, *b"W2ru");
        put(&mut bytes, 580, (SECTOR as u32).to_be_bytes());
        put(&mut bytes, 584, (PARENT_NAME.len() as u32 * 2).to_be_bytes());
        put(&mut bytes, 592, (NEXT_AT as u64).to_be_bytes());
    }
    sealed(bytes, 36)
}
