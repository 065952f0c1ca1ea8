//! What is known of an image that grows: the table of blocks, their bitmaps, and what of both is not in the file yet.

use std::collections::{BTreeMap, BTreeSet};

use crate::SECTOR;
use crate::error::VpcError;
use crate::header::Header;

/// The entry of a block that is not there.
const ABSENT: u32 = u32::MAX;
/// Entries in a sector of the table, which is written at once.
const ENTRIES_IN_SECTOR: u32 = (SECTOR / 4) as u32;
/// Bytes of bitmaps that are kept in memory.
const BITMAPS_BYTES_MAX: u64 = 16 << 20;

/// Where blocks and tables lie, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) blocks: u32,
    pub(crate) block_bytes: u64,
    pub(crate) bitmap_bytes: u64,
    pub(crate) table_offset: u64,
    /// The first byte that no structure takes.
    pub(crate) tables_end: u64,
}

impl Layout {
    /// The layout that a header describes.
    ///
    /// # Errors
    /// [`VpcError::TableOutside`].
    pub(crate) fn of(header: &Header) -> Result<Self, VpcError> {
        let table_end = header.table_end().ok_or(VpcError::TableOutside)?;
        let locators = header.raw().locators.iter().filter(|locator| locator.platform != [0; 4]);
        let mut named = locators.map(|locator| {
            let end =
                locator.data_offset.get().checked_add(crate::locator::space(locator.data_len.get() as usize));
            end.ok_or(VpcError::TableOutside)
        });
        let tables_end = named.try_fold(table_end, |end, other| Ok::<u64, VpcError>(end.max(other?)))?;
        Ok(Self {
            blocks: header.blocks(),
            block_bytes: header.block_bytes(),
            bitmap_bytes: header.bitmap_bytes(),
            table_offset: header.table_offset(),
            tables_end: tables_end.checked_next_multiple_of(SECTOR).ok_or(VpcError::TableOutside)?,
        })
    }

    /// Bytes of a block with its bitmap.
    pub(crate) fn whole_block(&self) -> u64 {
        self.block_bytes + self.bitmap_bytes
    }
}

/// The tables in memory.
pub(crate) struct State {
    pub(crate) layout: Layout,
    table: Vec<u32>,
    /// Sectors of the table that are not in the file as they are here.
    dirty: BTreeSet<u32>,
    /// Where the next block goes.
    pub(crate) free: u64,
    bitmaps: BTreeMap<u32, Bitmap>,
    /// Blocks of a dynamic image whose bitmap has all bits, as we know.
    full: BTreeSet<u32>,
}

struct Bitmap {
    bits: Box<[u8]>,
    dirty: bool,
    /// On its way into the file: until it is there, it stays here.
    leaving: bool,
}

/// Changes that are on their way into the file.
pub(crate) struct Changes {
    /// Offset and content, bitmaps first.
    pub(crate) writes: Vec<(u64, Vec<u8>)>,
    blocks: Vec<u32>,
}

impl State {
    /// The state of an image whose table has this content, in a file of `file_len` bytes.
    ///
    /// # Errors
    /// [`VpcError::Truncated`].
    pub(crate) fn new(layout: Layout, table: &[u8], file_len: u64) -> Result<Self, VpcError> {
        let entry = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let table: Vec<u32> = table.chunks_exact(4).map(entry).collect();
        let end = |entry: &u32| u64::from(*entry) * SECTOR + layout.whole_block();
        let free = table.iter().filter(|entry| **entry != ABSENT).map(end).max();
        let free = free.unwrap_or(0).max(layout.tables_end);
        if free > file_len {
            return Err(VpcError::Truncated);
        }
        let (dirty, bitmaps, full) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        Ok(Self { layout, table, dirty, free, bitmaps, full })
    }

    /// Checks that blocks lie upon nothing else.
    ///
    /// # Errors
    /// [`VpcError::Overlap`].
    pub(crate) fn check_disjoint(&self) -> Result<(), VpcError> {
        let mut places: Vec<(u32, u32)> = (0..)
            .zip(&self.table)
            .filter(|(_, entry)| **entry != ABSENT)
            .map(|(block, entry)| (*entry, block))
            .collect();
        places.sort_unstable();
        let (mut end, mut other) = (self.layout.tables_end, "the image's tables");
        for (entry, block) in places {
            let offset = u64::from(entry) * SECTOR;
            if offset < end {
                return Err(VpcError::Overlap { block, offset, other });
            }
            (end, other) = (offset + self.layout.whole_block(), "another block");
        }
        Ok(())
    }

    /// Where a block's bitmap lies; its data follows.
    pub(crate) fn place(&self, block: u32) -> Option<u64> {
        let entry = *self.table.get(block as usize)?;
        (entry != ABSENT).then(|| u64::from(entry) * SECTOR)
    }

    /// Where a block's data lies.
    pub(crate) fn data(&self, block: u32) -> Option<u64> {
        Some(self.place(block)? + self.layout.bitmap_bytes)
    }

    /// How many blocks from `block` on are there, or are not, as `block`; at most `most`.
    pub(crate) fn absent_run(&self, block: u32, most: u32) -> u32 {
        let run =
            self.table[block as usize..].iter().take(most as usize).take_while(|entry| **entry == ABSENT);
        run.count() as u32
    }

    /// The table's entry for a new block at `offset`.
    ///
    /// # Errors
    /// [`VpcError::FileTooLong`].
    pub(crate) fn check_place(offset: u64) -> Result<(), VpcError> {
        match u32::try_from(offset / SECTOR) {
            Ok(entry) if entry != ABSENT && offset.is_multiple_of(SECTOR) => Ok(()),
            _ => Err(VpcError::FileTooLong(offset)),
        }
    }

    /// Gives a block its place, where its bitmap is already: `bits` all set, or none.
    pub(crate) fn link(&mut self, block: u32, offset: u64, bits: Bits) {
        assert!(self.place(block).is_none(), "a block gets one place");
        Self::check_place(offset).expect("checked before the place was prepared");
        self.table[block as usize] = (offset / SECTOR) as u32;
        self.dirty.insert(block / ENTRIES_IN_SECTOR);
        self.free = offset + self.layout.whole_block();
        match bits {
            Bits::All => drop(self.full.insert(block)),
            Bits::None => {
                let bits = vec![0; self.layout.bitmap_bytes as usize].into();
                self.bitmaps.insert(block, Bitmap { bits, dirty: false, leaving: false });
            }
        }
    }

    /// Whether a dynamic image's block is known to have all bits.
    pub(crate) fn is_full(&self, block: u32) -> bool {
        self.full.contains(&block)
    }

    /// Notes that it has.
    pub(crate) fn set_full(&mut self, block: u32) {
        self.full.insert(block);
    }

    /// Whether a block's bitmap is in memory.
    pub(crate) fn has_bitmap(&self, block: u32) -> bool {
        self.bitmaps.contains_key(&block)
    }

    /// Keeps a bitmap that was read, unless there is one. Others that are in the file make room.
    pub(crate) fn keep_bitmap(&mut self, block: u32, bytes: &[u8]) {
        let most = (BITMAPS_BYTES_MAX / self.layout.bitmap_bytes).max(2) as usize;
        if self.bitmaps.len() >= most {
            let clean = self
                .bitmaps
                .iter()
                .find(|(_, bitmap)| !bitmap.dirty && !bitmap.leaving)
                .map(|(block, _)| *block);
            if let Some(block) = clean {
                self.bitmaps.remove(&block);
            }
        }
        self.bitmaps.entry(block).or_insert_with(|| Bitmap {
            bits: bytes.into(),
            dirty: false,
            leaving: false,
        });
    }

    /// Forgets a bitmap that is in the file as it is in memory.
    pub(crate) fn drop_bitmap(&mut self, block: u32) {
        self.bitmaps.remove(&block);
    }

    /// Whether more is waiting for a flush than should be.
    pub(crate) fn is_crowded(&self) -> bool {
        let most = (BITMAPS_BYTES_MAX / self.layout.bitmap_bytes / 2).max(1) as usize;
        self.dirty.len() > 1024 || self.bitmaps.values().filter(|bitmap| bitmap.dirty).count() > most
    }

    /// Whether the sector at `at` of a block, in bytes, is its own, and for how many bytes from there up to `end` that
    /// stays so. `None`: the bitmap is not in memory.
    pub(crate) fn own_run(&self, block: u32, at: u64, end: u64) -> Option<(bool, u64)> {
        let bits = &self.bitmaps.get(&block)?.bits;
        let has = |sector: u64| bits[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0;
        let own = has(at / SECTOR);
        let mut sector = at / SECTOR + 1;
        while sector * SECTOR < end {
            // Whole bytes of one kind go at once.
            let byte = bits[(sector / 8) as usize];
            if sector.is_multiple_of(8) && byte == if own { 0xff } else { 0 } {
                sector += 8;
                continue;
            }
            if has(sector) != own {
                break;
            }
            sector += 1;
        }
        Some((own, (sector * SECTOR).min(end) - at))
    }

    /// Sets the bits of the sectors from `at` to `end`, in bytes. `false`: the bitmap is not in memory.
    pub(crate) fn set_bits(&mut self, block: u32, at: u64, end: u64) -> bool {
        let Some(bitmap) = self.bitmaps.get_mut(&block) else { return false };
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            let (byte, bit) = ((sector / 8) as usize, 0x80 >> (sector % 8));
            if bitmap.bits[byte] & bit == 0 {
                bitmap.bits[byte] |= bit;
                bitmap.dirty = true;
            }
        }
        true
    }

    /// Whether anything is not in the file.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.bitmaps.values().any(|bitmap| bitmap.dirty)
    }

    /// What is not in the file; it counts as written from now on.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes { writes: Vec::new(), blocks: Vec::new() };
        let (table, bitmap_bytes) = (&self.table, self.layout.bitmap_bytes);
        for (block, bitmap) in self.bitmaps.iter_mut().filter(|(_, bitmap)| bitmap.dirty) {
            let place = u64::from(table[*block as usize]) * SECTOR;
            changes.writes.push((place, bitmap.bits[..bitmap_bytes as usize].to_vec()));
            changes.blocks.push(*block);
            bitmap.dirty = false;
            bitmap.leaving = true;
        }
        for sector in std::mem::take(&mut self.dirty) {
            let first = sector * ENTRIES_IN_SECTOR;
            let last = (first + ENTRIES_IN_SECTOR).min(table.len() as u32);
            let entries = table[first as usize..last as usize].iter().flat_map(|entry| entry.to_be_bytes());
            changes.writes.push((self.layout.table_offset + u64::from(first) * 4, entries.collect()));
        }
        changes
    }

    /// Those changes are in the file, or will never be.
    pub(crate) fn settle(&mut self, changes: &Changes) {
        for block in &changes.blocks {
            if let Some(bitmap) = self.bitmaps.get_mut(block) {
                bitmap.leaving = false;
            }
        }
    }
}

/// What the bitmap of a new block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// Every sector is the image's own.
    All,
    /// None is yet.
    None,
}
