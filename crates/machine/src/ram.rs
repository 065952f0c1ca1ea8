//! Guest RAM as pages, and the one store filter.
//!
//! Every store ends here. A page that somebody watches is kept out of the store TLBs, so that the fast path needs
//! no other test; the slow path calls `Ram::store`, which writes and notes what the watchers must be told in
//! [`Attention`]. Whoever runs instructions acts on it before the next one: that keeps decoded code and
//! translations coherent with memory at every instruction, which is why `fence.i` and `sfence.vma` have nothing
//! left to do, and why neither block shape nor TLB contents can be seen by the guest.
//!
//! Safe code throughout: a page number is bounds-checked with one compare, and offsets inside a page are masked.

use zerocopy::FromZeros;

/// Where RAM begins in the physical address space.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// One page.
pub type Page = [u8; PAGE as usize];

/// Who watches a page: bits of the per-page byte.
pub mod watch {
    /// Instructions were decoded from it.
    pub const CODE: u8 = 1;
    /// A page walk read it.
    pub const TABLE: u8 = 2;
    /// It may be in a store TLB; no watcher, but told here to spare searches.
    pub const CACHED: u8 = 0x80;
}

/// A page lies at several places of the store TLBs.
const SEVERAL: u16 = u16::MAX;

/// What must be done before the next instruction.
#[derive(Debug, Default)]
pub struct Attention {
    /// Pages some of whose decoded code was overwritten.
    pub code: Vec<u32>,
    /// Translations that no longer hold.
    pub translations: Vec<Stale>,
    /// Pages that must leave the store TLBs of all harts.
    pub watched: Vec<u32>,
}

impl Attention {
    /// Nothing to do.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.code.is_empty() && self.translations.is_empty() && self.watched.is_empty()
    }
}

/// A translation that went stale because its page table entry was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Those of the virtual addresses that differ from `va` in their lowest `bits` only: 12 for one page.
    Region {
        /// The first of them.
        va: u64,
        /// How many bits differ.
        bits: u32,
    },
    /// Perhaps any.
    All,
}

/// How a page was used by walks: as a table of this level (0 is the last) for the addresses from this one on. `None`
/// when it was one at several places.
type TableUse = Option<(u32, u64)>;

/// Bits of the addresses that one entry of a table maps.
const fn entry_bits(level: u32) -> u32 {
    12 + 9 * level
}

const fn table_use(level: u32, va: u64) -> TableUse {
    let bits = entry_bits(level + 1);
    Some((level, va >> bits << bits))
}

/// Guest memory.
pub struct Ram {
    pages: Box<[Page]>,
    watch: Box<[u8]>,
    /// For each page, which of its 64-byte pieces hold decoded instructions.
    code: Box<[u64]>,
    /// For each page, how walks used it.
    table_uses: Box<[TableUse]>,
    /// The pages that walks used.
    tables: Vec<u32>,
    /// For each page that may be in store TLBs, its place there, or [`SEVERAL`].
    cached_at: Box<[u16]>,
    /// See [`Attention`].
    pub attention: Attention,
    /// There are several harts: what one drops from its store TLB, all must drop.
    pub(crate) broadcast: bool,
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Ram").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

impl Ram {
    /// Zeroed memory of `bytes`, rounded up to whole pages; touched only when the guest does. `None` when the host has
    /// not that much.
    pub fn new(bytes: u64) -> Option<Ram> {
        let count = bytes.div_ceil(PAGE) as usize;
        let pages = <[Page]>::new_box_zeroed_with_elems(count).ok()?;
        Some(Ram {
            pages,
            watch: vec![0; count].into(),
            code: vec![0; count].into(),
            table_uses: vec![None; count].into(),
            tables: Vec::new(),
            cached_at: vec![0; count].into(),
            attention: Attention::default(),
            broadcast: false,
        })
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The page that holds a physical address.
    #[inline]
    pub fn page_of(&self, address: u64) -> Option<u32> {
        let page = address.wrapping_sub(RAM_BASE) / PAGE;
        (page < self.pages.len() as u64).then_some(page as u32)
    }

    /// Physical address of a page.
    pub const fn address_of(page: u32) -> u64 {
        RAM_BASE + page as u64 * PAGE
    }

    /// The bytes of a page, if it exists.
    #[inline(always)]
    pub fn page(&self, page: u32) -> Option<&Page> {
        self.pages.get(page as usize)
    }

    /// Loads `SIZE` bytes (1, 2, 4, 8) at an aligned offset of a page, zero-extended.
    #[inline(always)]
    pub fn load<const SIZE: usize>(&self, page: u32, offset: u64) -> u64 {
        let Some(page) = self.pages.get(page as usize) else { return 0 };
        let at = offset as usize & (PAGE as usize - SIZE);
        let mut bytes = [0; 8];
        bytes[..SIZE].copy_from_slice(&page[at..at + SIZE]);
        u64::from_le_bytes(bytes)
    }

    /// Stores `SIZE` bytes at an aligned offset of a page *that nobody watches*.
    #[inline(always)]
    pub fn store_unwatched<const SIZE: usize>(&mut self, page: u32, offset: u64, value: u64) {
        let Some(page) = self.pages.get_mut(page as usize) else { return };
        let at = offset as usize & (PAGE as usize - SIZE);
        page[at..at + SIZE].copy_from_slice(&value.to_le_bytes()[..SIZE]);
    }

    /// Loads `SIZE` bytes at any offset, zero-extended, unless they cross the end of the page.
    #[inline]
    pub(crate) fn load_inside<const SIZE: usize>(&self, page: u32, offset: u64) -> Option<u64> {
        let from = self.pages.get(page as usize)?.get(offset as usize % PAGE as usize..)?;
        let mut bytes = [0; 8];
        bytes[..SIZE].copy_from_slice(from.get(..SIZE)?);
        Some(u64::from_le_bytes(bytes))
    }

    /// Stores `SIZE` bytes at any offset of a page *that nobody watches*. False, and nothing done, when they cross its end.
    #[inline]
    pub(crate) fn store_inside<const SIZE: usize>(&mut self, page: u32, offset: u64, value: u64) -> bool {
        let page = self.pages.get_mut(page as usize);
        let to = page.and_then(|page| page.get_mut(offset as usize % PAGE as usize..)?.get_mut(..SIZE));
        let Some(to) = to else { return false };
        to.copy_from_slice(&value.to_le_bytes()[..SIZE]);
        true
    }

    /// Reads bytes that may span pages; `false`, and nothing read, when not all of them are RAM.
    pub fn read(&self, address: u64, into: &mut [u8]) -> bool {
        if !self.contains(address, into.len() as u64) {
            return false;
        }
        let start = (address - RAM_BASE) as usize;
        let flat = self.pages.as_flattened();
        into.copy_from_slice(&flat[start..start + into.len()]);
        true
    }

    /// Writes bytes that may span pages; `false`, and nothing written, when not all of them are RAM.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        if !self.contains(address, bytes.len() as u64) {
            return false;
        }
        let (mut address, mut bytes) = (address, bytes);
        while !bytes.is_empty() {
            let room = (PAGE - address % PAGE) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.store(address, now);
            address += now.len() as u64;
            bytes = later;
        }
        true
    }

    /// Zeroes what is not zero yet of a range that lies in RAM.
    pub(crate) fn clear(&mut self, address: u64, len: u64) {
        let zeroes = [0; PAGE as usize];
        let (mut address, end) = (address, address.saturating_add(len));
        while address < end {
            let next = ((address | (PAGE - 1)) + 1).min(end);
            let piece = (next - address) as usize;
            let mut now = [0; PAGE as usize];
            if self.read(address, &mut now[..piece]) && now[..piece] != zeroes[..piece] {
                self.write(address, &zeroes[..piece]);
            }
            address = next;
        }
    }

    /// A little-endian number of `size` bytes, if it lies in RAM.
    pub fn read_number(&self, address: u64, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, bytes.get_mut(..size)?).then(|| u64::from_le_bytes(bytes))
    }

    /// Whether the whole range is RAM.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        address >= RAM_BASE && (address - RAM_BASE).checked_add(len).is_some_and(|end| end <= self.len())
    }

    /// Writes inside one page, watched or not, and notes what the watchers need to know.
    fn store(&mut self, address: u64, bytes: &[u8]) {
        let page = ((address - RAM_BASE) / PAGE) as usize;
        let offset = (address % PAGE) as usize;
        let watchers = self.watch[page];
        if watchers & watch::TABLE != 0 {
            self.note_table_store(page as u32, offset, bytes);
        }
        if watchers & watch::CODE != 0 {
            let (first, last) = (offset / 64, (offset + bytes.len().max(1) - 1) / 64);
            let pieces = u64::MAX >> (63 - (last - first)) << first;
            if self.code[page] & pieces != 0 {
                self.attention.code.push(page as u32);
            }
        }
        self.pages[page][offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// An entry that was invalid is in no TLB; one that was valid and changes makes its translation stale.
    fn note_table_store(&mut self, page: u32, offset: usize, bytes: &[u8]) {
        let content = &self.pages[page as usize];
        let table_use = self.table_uses[page as usize];
        for entry in offset / 8..(offset + bytes.len()).div_ceil(8) {
            let start = entry * 8;
            let valid = content[start] & 1 != 0;
            let changes = (start..start + 8).any(|at| {
                at.checked_sub(offset).and_then(|i| bytes.get(i)).is_some_and(|new| *new != content[at])
            });
            if valid && changes {
                self.attention.translations.push(match table_use {
                    Some((level, base)) => {
                        let bits = entry_bits(level);
                        Stale::Region { va: base.wrapping_add((entry as u64) << bits), bits }
                    }
                    None => Stale::All,
                });
            }
        }
    }

    /// The watchers of a page.
    #[inline]
    pub fn watchers(&self, page: u32) -> u8 {
        self.watch[page as usize] & !watch::CACHED
    }

    /// Notes that a page entered a store TLB at a place.
    pub(crate) fn set_cached(&mut self, page: u32, index: u16) {
        let (flags, at) = (&mut self.watch[page as usize], &mut self.cached_at[page as usize]);
        if *flags & watch::CACHED == 0 {
            *at = index;
        } else if *at != index {
            *at = SEVERAL;
        }
        *flags |= watch::CACHED;
    }

    /// The place in the store TLBs that a page had when it was last watched, if it was one.
    pub(crate) fn cached_at(&self, page: u32) -> Option<u16> {
        Some(self.cached_at[page as usize]).filter(|at| *at != SEVERAL)
    }

    /// Adds a watcher. True when the page may be in store TLBs and must leave them at once.
    #[must_use]
    pub fn add_watcher(&mut self, page: u32, who: u8) -> bool {
        let flags = &mut self.watch[page as usize];
        let cached = *flags & watch::CACHED != 0;
        *flags = (*flags | who) & !watch::CACHED;
        if cached {
            self.attention.watched.push(page);
        }
        cached
    }

    /// Notes that a walk for `va` read a table of `level` (0 is the last). As [`add_watcher`](Self::add_watcher).
    #[must_use]
    pub fn watch_table(&mut self, page: u32, level: u32, va: u64) -> bool {
        let now = table_use(level, va);
        let known = &mut self.table_uses[page as usize];
        if self.watch[page as usize] & watch::TABLE != 0 {
            if *known != now {
                // Seen at two places: any change of it may concern any translation.
                *known = None;
            }
            return false;
        }
        *known = now;
        self.tables.push(page);
        self.add_watcher(page, watch::TABLE)
    }

    /// Forgets every table: only when no hart holds any translation.
    pub fn forget_tables(&mut self) {
        for page in self.tables.drain(..) {
            self.watch[page as usize] &= !watch::TABLE;
        }
    }

    /// Notes decoded instructions in `offset .. offset + len` of a page. As [`add_watcher`](Self::add_watcher).
    #[must_use]
    pub fn watch_code(&mut self, page: u32, offset: u64, len: u64) -> bool {
        let (first, last) = (offset / 64, (offset + len - 1).min(PAGE - 1) / 64);
        self.code[page as usize] |= u64::MAX >> (63 - (last - first)) << first;
        if self.watch[page as usize] & watch::CODE != 0 { false } else { self.add_watcher(page, watch::CODE) }
    }

    /// Forgets the decoded instructions of a page.
    pub fn forget_code(&mut self, page: u32) {
        self.code[page as usize] = 0;
        self.watch[page as usize] &= !watch::CODE;
    }

    /// All bytes, for hashing and for debuggers.
    pub fn bytes(&self) -> &[u8] {
        self.pages.as_flattened()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prepare: impl FnOnce(&mut Ram), store: (u64, &[u8]), expect: (Vec<u32>, Vec<Stale>)) {
        let mut ram = Ram::new(4 * PAGE).expect("memory");
        prepare(&mut ram);
        assert!(ram.write(RAM_BASE + store.0, store.1));
        assert_eq!((ram.attention.code, ram.attention.translations), expect);
    }

    #[test]
    fn unwatched_stores_concern_nobody() {
        check(|_| {}, (0, &[1; 5000]), (vec![], vec![]));
    }

    #[test]
    fn code_is_watched_by_pieces_of_64_bytes() {
        let prepare = |ram: &mut Ram| assert!(!ram.watch_code(1, 0x100, 4));
        check(prepare, (0x1140, &[0]), (vec![], vec![]));
        check(prepare, (0x113f, &[0]), (vec![1], vec![]));
        check(prepare, (0xfff, &[0; 0x102]), (vec![1], vec![]));
    }

    #[test]
    fn only_changes_of_valid_entries_make_translations_stale() {
        let prepare = |level| {
            move |ram: &mut Ram| {
                ram.write(RAM_BASE + 8, &[1]);
                assert!(!ram.watch_table(0, level, 0x4020_1000));
            }
        };
        let page = Stale::Region { va: 0x4020_1000, bits: 12 };
        check(prepare(0), (0, &[1]), (vec![], vec![]));
        check(prepare(0), (8, &[1]), (vec![], vec![]));
        check(prepare(0), (8, &[0]), (vec![], vec![page]));
        let superpage = Stale::Region { va: 0x4020_0000, bits: 21 };
        check(prepare(1), (9, &[7]), (vec![], vec![superpage]));
        let twice = |ram: &mut Ram| {
            prepare(0)(ram);
            assert!(!ram.watch_table(0, 0, 0x4040_1000));
        };
        check(twice, (9, &[7]), (vec![], vec![Stale::All]));
    }

    #[test]
    fn ranges_outside_are_refused_whole() {
        let mut ram = Ram::new(PAGE).expect("memory");
        assert!(!ram.write(RAM_BASE + PAGE - 1, &[1, 2]));
        assert!(!ram.read(RAM_BASE - 1, &mut [0; 2]));
        assert_eq!(ram.read_number(RAM_BASE + PAGE - 1, 1), Some(0));
        assert_eq!(ram.read_number(u64::MAX, 8), None);
    }
}
