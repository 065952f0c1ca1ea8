//! Translation caches: direct-mapped, one part per [`Mode`], loads, stores and fetches apart.
//!
//! An entry answers with a page of RAM and nothing else; devices, misaligned accesses, faults and watched stores
//! never match. The caches are always coherent (see [`crate::ram`]), so what they hold cannot be seen by the guest.

use crate::hart::Privilege;
use crate::ram::Stale;

/// Entries per mode: 16 MiB. What is not used costs nothing, since flushes and searches look only at modes that were
/// filled.
const ENTRIES: usize = 4096;
const FETCH_ENTRIES: usize = 256;
const MODES: usize = 8;
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
    fetch: Box<[Entry; FETCH_ENTRIES * MODES]>,
    /// Where the last-level table of a 2 MiB region lies: the region's number, and the table's address.
    walks: [(u64, u64); WALKS],
    /// Changes whenever a fetch translation may have gone; caches of block lookups compare it.
    pub(crate) fetch_generation: u64,
    /// Modes into whose parts something was filled since the last full flush.
    filled: [bool; MODES],
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

#[inline(always)]
fn fetch_slot(mode: Mode, va: u64) -> usize {
    (((va >> 12) as usize & (FETCH_ENTRIES - 1)) | (mode as usize * FETCH_ENTRIES))
        & (FETCH_ENTRIES * MODES - 1)
}

/// The part of `entries` that belongs to a mode.
fn part<const N: usize>(entries: &mut [Entry; N], mode: usize) -> &mut [Entry] {
    let len = N / MODES;
    &mut entries[mode * len..(mode + 1) * len]
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
            filled: [false; MODES],
        }
    }

    /// The page to load `SIZE` bytes from, if known and the address is aligned.
    #[inline(always)]
    pub(crate) fn load<const SIZE: u64>(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.load[slot(mode, va)];
        (entry.tag == va & (!0xfff | (SIZE - 1))).then_some(entry.page)
    }

    /// The page to store `SIZE` bytes to, if known, watched by nobody, and the address is aligned.
    #[inline(always)]
    pub(crate) fn store<const SIZE: u64>(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.store[slot(mode, va)];
        (entry.tag == va & (!0xfff | (SIZE - 1))).then_some(entry.page)
    }

    #[inline]
    pub(crate) fn fetch(&self, mode: Mode, va: u64) -> Option<u32> {
        let entry = &self.fetch[fetch_slot(mode, va)];
        (entry.tag == va & !0xfff).then_some(entry.page)
    }

    pub(crate) fn fill_load(&mut self, mode: Mode, va: u64, page: u32) {
        if mode != Mode::Uncached {
            self.load[slot(mode, va)] = Entry { tag: va & !0xfff, page };
            self.filled[mode as usize] = true;
        }
    }

    /// The page must be noted with [`store_index`] in [`Ram::set_cached`](crate::ram::Ram::set_cached).
    pub(crate) fn fill_store(&mut self, mode: Mode, va: u64, page: u32) {
        if mode != Mode::Uncached {
            self.store[slot(mode, va)] = Entry { tag: va & !0xfff, page };
            self.filled[mode as usize] = true;
        }
    }

    pub(crate) fn fill_fetch(&mut self, mode: Mode, va: u64, page: u32) {
        self.fetch[fetch_slot(mode, va)] = Entry { tag: va & !0xfff, page };
        self.filled[mode as usize] = true;
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
        self.walks.fill((NO_TAG, 0));
        for mode in 0..MODES {
            if std::mem::take(&mut self.filled[mode]) {
                part(&mut self.load, mode).fill(EMPTY);
                part(&mut self.store, mode).fill(EMPTY);
                part(&mut self.fetch, mode).fill(EMPTY);
            }
        }
    }

    /// Forgets what went stale.
    pub(crate) fn drop_stale(&mut self, stale: Stale) {
        let Stale::Page(va) = stale else { return self.flush() };
        for mode in [Mode::User, Mode::Supervisor, Mode::SupervisorSum] {
            self.load[slot(mode, va)] = EMPTY;
            self.store[slot(mode, va)] = EMPTY;
            self.fetch[fetch_slot(mode, va)] = EMPTY;
        }
        self.fetch_generation += 1;
    }

    /// Forgets every way to store to a page: somebody watches it now. `index` is where its entries are in every part,
    /// when that is one place.
    pub(crate) fn drop_store(&mut self, page: u32, index: Option<u16>) {
        for mode in (0..MODES).filter(|mode| self.filled[*mode]) {
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

/// Where the entry for an address lies in every part of the store cache.
pub(crate) fn store_index(va: u64) -> u16 {
    ((va >> 12) as usize & (ENTRIES - 1)) as u16
}
