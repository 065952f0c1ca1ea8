//! Translation caches: direct-mapped, one part per [`Mode`], loads, stores and fetches apart.
//!
//! An entry answers with a page of RAM and nothing else; devices, misaligned accesses, faults and watched stores
//! never match. The caches are always coherent (see [`crate::ram`]), so what they hold cannot be seen by the guest.

use std::ops::Range;

use crate::hart::Privilege;
use crate::ram::Stale;

/// Entries per mode: 16 MiB. What is not used costs nothing, since flushes and searches look only at modes that were
/// filled.
const ENTRIES: usize = 4096;
const MODES: usize = 8;
/// Fills that a mode's part remembers, so that a flush touches no more than these; after more it clears the whole part.
const FILLS: usize = 1024;
/// Pages in [`Tlb::fetch_gone`] at most.
const GONE: usize = 64;
/// Regions whose last-level table is remembered, so that a miss reads one entry instead of up to five.
const WALKS: usize = 64;
/// Matches no address: a tag's low twelve bits are zero or an alignment error.
const NO_TAG: u64 = u64::MAX;

/// Which part of the caches a privilege uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    User = 0,
    Supervisor = 1,
    /// Supervisor with `mstatus.SUM`.
    SupervisorSum = 2,
    /// Machine mode: no translation.
    Bare = 3,
    /// Never filled: `mstatus.MXR` changes what loads may read.
    Uncached = 4,
}

impl Mode {
    pub(crate) fn of(privilege: Privilege, sum: bool) -> Mode {
        match privilege {
            Privilege::M => Mode::Bare,
            Privilege::S if sum => Mode::SupervisorSum,
            Privilege::S => Mode::Supervisor,
            Privilege::U => Mode::User,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u64,
    page: u32,
}

const EMPTY: Entry = Entry { tag: NO_TAG, page: 0 };

/// The caches of one hart.
pub(crate) struct Tlb {
    load: Box<[Entry; ENTRIES * MODES]>,
    store: Box<[Entry; ENTRIES * MODES]>,
    fetch: Box<[Entry; ENTRIES * MODES]>,
    /// Where the last-level table of a 2 MiB region lies: the region's number, and the table's address.
    walks: [(u64, u64); WALKS],
    /// Changes when many fetch translations may have gone.
    pub(crate) fetch_generation: u64,
    /// Pages whose fetch translations have gone otherwise. What caches of block lookups know must be in `fetch`; so they
    /// forget these pages, and take them from here.
    pub(crate) fetch_gone: Vec<u64>,
    /// For each mode, where something was filled since the last flush: all of it while there are fewer than [`FILLS`].
    filled: [Vec<u16>; MODES],
}

impl std::fmt::Debug for Tlb {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Tlb")
    }
}

#[inline(always)]
fn slot(mode: Mode, va: u64) -> usize {
    (((va >> 12) as usize & (ENTRIES - 1)) | (mode as usize * ENTRIES)) & (ENTRIES * MODES - 1)
}

/// Where the entries of a mode lie.
fn part_of(mode: usize) -> Range<usize> {
    mode * ENTRIES..(mode + 1) * ENTRIES
}

/// The part of `entries` that belongs to a mode.
fn part(entries: &mut [Entry; ENTRIES * MODES], mode: usize) -> &mut [Entry] {
    &mut entries[part_of(mode)]
}

fn boxed<const N: usize>() -> Box<[Entry; N]> {
    // By way of the heap: the array is too large for a small stack.
    vec![EMPTY; N].into_boxed_slice().try_into().expect("the length is N")
}

impl Tlb {
    pub(crate) fn new() -> Tlb {
        Tlb {
            load: boxed(),
            store: boxed(),
            fetch: boxed(),
            walks: [(NO_TAG, 0); WALKS],
            fetch_generation: 1,
            fetch_gone: Vec::new(),
            filled: Default::default(),
        }
    }

    /// The page to load `SIZE` bytes from, if known and the address is aligned.
    #[inline(always)]
    pub(crate) fn load<const SIZE: usize>(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.load[slot(mode, va)];
        (entry.tag == va & (!0xfff | (SIZE as u64 - 1))).then_some(entry.page)
    }

    /// The page to store `SIZE` bytes to, if known, watched by nobody, and the address is aligned.
    #[inline(always)]
    pub(crate) fn store<const SIZE: usize>(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.store[slot(mode, va)];
        (entry.tag == va & (!0xfff | (SIZE as u64 - 1))).then_some(entry.page)
    }

    #[inline]
    pub(crate) fn fetch(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.fetch[slot(mode, va)];
        (entry.tag == va & !0xfff).then_some(entry.page)
    }

    pub(crate) fn fill_load(&mut self, mode: Mode, va: u64, page: u32) {
        if mode != Mode::Uncached {
            self.load[slot(mode, va)] = Entry { tag: va & !0xfff, page };
            self.note_fill(mode, va);
        }
    }

    /// The page must be noted with [`store_index`] in [`Ram::set_cached`](crate::ram::Ram::set_cached).
    pub(crate) fn fill_store(&mut self, mode: Mode, va: u64, page: u32) {
        if mode != Mode::Uncached {
            self.store[slot(mode, va)] = Entry { tag: va & !0xfff, page };
            self.note_fill(mode, va);
        }
    }

    pub(crate) fn fill_fetch(&mut self, mode: Mode, va: u64, page: u32) {
        let before = std::mem::replace(&mut self.fetch[slot(mode, va)], Entry { tag: va & !0xfff, page });
        if before.tag != NO_TAG && before.tag != va & !0xfff {
            self.note_gone(before.tag);
        }
        self.note_fill(mode, va);
    }

    #[inline]
    fn note_fill(&mut self, mode: Mode, va: u64) {
        let filled = &mut self.filled[mode as usize];
        if filled.len() < FILLS {
            filled.push(store_index(va));
        }
    }

    fn note_gone(&mut self, va: u64) {
        if self.fetch_gone.len() < GONE {
            self.fetch_gone.push(va);
        } else {
            self.fetch_gone.clear();
            self.fetch_generation += 1;
        }
    }

    /// The last-level table for an address, if a walk found it since the last flush. No change of one entry of a
    /// last-level table concerns it, and any other change of a table flushes.
    pub(crate) fn leaf_table(&self, va: u64) -> Option<u64> {
        let (region, table) = self.walks[(va >> 21) as usize % WALKS];
        (region == va >> 21).then_some(table)
    }

    pub(crate) fn fill_leaf_table(&mut self, va: u64, table: u64) {
        self.walks[(va >> 21) as usize % WALKS] = (va >> 21, table);
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.fetch_generation += 1;
        self.fetch_gone.clear();
        self.walks.fill((NO_TAG, 0));
        for mode in 0..MODES {
            let filled = &mut self.filled[mode];
            let all = filled.len() == FILLS;
            for entries in [&mut self.load, &mut self.store, &mut self.fetch] {
                let entries = part(entries, mode);
                if all {
                    entries.fill(EMPTY);
                } else {
                    filled.iter().for_each(|at| entries[usize::from(*at) % ENTRIES] = EMPTY);
                }
            }
            filled.clear();
        }
    }

    /// Forgets what went stale.
    pub(crate) fn drop_stale(&mut self, stale: Stale) {
        let Stale::Region { va, bits } = stale else { return self.flush() };
        let same = |other: u64| (other ^ va) >> bits == 0;
        // A region is aligned to its size: its pages lie side by side.
        let first = usize::from(store_index(va));
        let count = 1 << (bits - 12).min(ENTRIES.ilog2());
        for mode in [Mode::User, Mode::Supervisor, Mode::SupervisorSum] {
            if self.filled[mode as usize].is_empty() {
                continue;
            }
            let first = mode as usize * ENTRIES + first;
            let places = if count == ENTRIES { part_of(mode as usize) } else { first..first + count };
            for entries in [&mut self.load, &mut self.store] {
                for entry in entries[places.clone()].iter_mut().filter(|entry| same(entry.tag)) {
                    *entry = EMPTY;
                }
            }
            for at in places {
                let tag = self.fetch[at].tag;
                if tag != NO_TAG && same(tag) {
                    self.fetch[at] = EMPTY;
                    self.note_gone(tag);
                }
            }
        }
        if bits > 12 {
            for walk in self.walks.iter_mut().filter(|(region, _)| same(region << 21)) {
                *walk = (NO_TAG, 0);
            }
        }
    }

    /// Forgets every way to store to a page: somebody watches it now. `index` is where its entries are in every part,
    /// when that is one place.
    pub(crate) fn drop_store(&mut self, page: u32, index: Option<u16>) {
        for mode in (0..MODES).filter(|mode| !self.filled[*mode].is_empty()) {
            let entries = part(&mut self.store, mode);
            let entries = match index {
                Some(index) => std::slice::from_mut(&mut entries[usize::from(index) % ENTRIES]),
                None => entries,
            };
            for entry in entries.iter_mut().filter(|entry| entry.page == page) {
                *entry = EMPTY;
            }
        }
    }
}

/// Where the entry for an address lies in every part of every cache.
pub(crate) fn store_index(va: u64) -> u16 {
    ((va >> 12) as usize & (ENTRIES - 1)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    /// Pages around the borders of the regions that tables of the last levels map, for two modes.
    fn filled() -> (Tlb, Vec<(Mode, u64)>) {
        let mut tlb = Tlb::new();
        let mut known = Vec::new();
        for mode in [Mode::User, Mode::SupervisorSum] {
            for va in [0x1000, 0x1f_f000, 0x20_0000, 0x3fff_f000, 0x4000_2000, KERNEL, KERNEL + 0x20_3000] {
                tlb.fill_load(mode, va, 1);
                tlb.fill_store(mode, va, 2);
                tlb.fill_fetch(mode, va, 3);
                known.push((mode, va));
            }
        }
        (tlb, known)
    }

    #[track_caller]
    fn check(stale: Stale, gone: &[u64]) {
        let (mut tlb, known) = filled();
        let generation = tlb.fetch_generation;
        tlb.drop_stale(stale);
        for (mode, va) in known {
            let expect = |page| if gone.contains(&va) { None } else { Some(page) };
            assert_eq!(tlb.load::<8>(mode, va), expect(1), "{mode:?} {va:#x}");
            assert_eq!(tlb.store::<8>(mode, va), expect(2), "{mode:?} {va:#x}");
            assert_eq!(tlb.fetch(mode, va), expect(3), "{mode:?} {va:#x}");
            let told = tlb.fetch_generation != generation || tlb.fetch_gone.contains(&va);
            assert_eq!(told, gone.contains(&va), "{mode:?} {va:#x}");
        }
    }

    #[test]
    fn what_went_stale_is_dropped_and_nothing_else() {
        check(Stale::Region { va: 0x20_0000, bits: 12 }, &[0x20_0000]);
        check(Stale::Region { va: 0x20_1000, bits: 12 }, &[]);
        check(Stale::Region { va: 0, bits: 21 }, &[0x1000, 0x1f_f000]);
        check(Stale::Region { va: KERNEL + 0x20_0000, bits: 21 }, &[KERNEL + 0x20_3000]);
        check(Stale::Region { va: 0, bits: 30 }, &[0x1000, 0x1f_f000, 0x20_0000, 0x3fff_f000]);
        check(Stale::Region { va: KERNEL, bits: 39 }, &[KERNEL, KERNEL + 0x20_3000]);
        check(Stale::All, &filled().1.iter().map(|(_, va)| *va).collect::<Vec<_>>());
    }

    #[test]
    fn tables_of_a_region_are_forgotten_with_it() {
        let mut tlb = Tlb::new();
        tlb.fill_leaf_table(0x20_0000, 4);
        tlb.fill_leaf_table(0x3fff_f000, 4);
        tlb.drop_stale(Stale::Region { va: 0x20_0000, bits: 12 });
        assert_eq!(tlb.leaf_table(0x20_0000), Some(4));
        tlb.drop_stale(Stale::Region { va: 0x20_0000, bits: 21 });
        assert_eq!(tlb.leaf_table(0x20_0000), None);
        assert_eq!(tlb.leaf_table(0x3fff_f000), Some(4));
    }

    #[test]
    fn caches_are_told_of_fetch_translations_that_others_replace() {
        let mut tlb = Tlb::new();
        let other = ENTRIES as u64 * 0x1000;
        tlb.fill_fetch(Mode::Supervisor, 0x1000, 1);
        tlb.fill_fetch(Mode::Supervisor, 0x1000, 1);
        assert!(tlb.fetch_gone.is_empty());
        tlb.fill_fetch(Mode::Supervisor, 0x1000 + other, 2);
        assert_eq!(tlb.fetch_gone, [0x1000]);
        let generation = tlb.fetch_generation;
        for page in 0..GONE as u64 {
            tlb.fill_fetch(Mode::Supervisor, 0x1000 + (page + 2) * other, 3);
        }
        assert_eq!(tlb.fetch_generation, generation + 1);
        assert!(tlb.fetch_gone.is_empty());
    }

    #[test]
    fn flushes_clear_parts_that_were_filled_beyond_counting() {
        let mut tlb = Tlb::new();
        for page in 0..ENTRIES as u64 {
            tlb.fill_load(Mode::User, page << 12, 1);
        }
        tlb.flush();
        assert!((0..ENTRIES as u64).all(|page| tlb.load::<1>(Mode::User, page << 12).is_none()));
    }
}
