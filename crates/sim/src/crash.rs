//! What a power cut may leave behind.
//!
//! A [`CrashSet`] makes the images that a cut at one step of a [`Timeline`] could leave: any subset of the sectors
//! that were applied and not yet durable, with the file's length persisting independently of them. States are
//! made and unmade in place, one swap per sector, and their hashes follow incrementally.

use std::ops::ControlFlow;

use crate::disk::Atom;
use crate::faults::Member;
use crate::pool::{Content, Pool, ZERO};
use crate::rng::{Rng, mix};
use crate::timeline::{Image, Timeline};

/// How thoroughly the states of one cut are enumerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Up to this many volatile I/Os every subset is made.
    pub exhaustive_ios: usize,
    /// Random subsets when there are more.
    pub random_subsets: u32,
    /// Random sector masks.
    pub random_masks: u32,
    /// Sector boundaries at which each I/O is torn, at most.
    pub tears_per_io: usize,
}

impl Depth {
    /// As the design asks: all subsets of 16 writes, 1,000 random ones above, 256 masks.
    pub const FULL: Self =
        Self { exhaustive_ios: 16, random_subsets: 1000, random_masks: 256, tears_per_io: 16 };
    /// For random workloads, where breadth pays more.
    pub const QUICK: Self = Self { exhaustive_ios: 6, random_subsets: 32, random_masks: 16, tears_per_io: 4 };
    /// For a second cut that is one of many.
    pub const GLANCE: Self = Self { exhaustive_ios: 3, random_subsets: 4, random_masks: 2, tears_per_io: 1 };
}

#[derive(Clone, Copy)]
struct Version {
    content: Content,
    hash: u64,
}

struct Slot {
    sector: u32,
    base: Version,
    versions: Vec<Version>,
    /// Bit i: version i persisted. The highest set bit is what the sector holds.
    on: u128,
    /// Whether the sector belongs to the part that the metadata check reads.
    metadata: bool,
}

impl Slot {
    fn current(&self) -> Version {
        match self.on {
            0 => self.base,
            on => self.versions[127 - on.leading_zeros() as usize],
        }
    }
}

/// All states of one cut, one at a time.
pub struct CrashSet {
    image: Image,
    slots: Vec<Slot>,
    /// For each volatile I/O: its slots and versions, in sector order.
    ios: Vec<Vec<(u32, u8)>>,
    /// For each volatile I/O: where its pieces end that a cut does not tear.
    atoms: Vec<Vec<usize>>,
    io_numbers: Vec<u32>,
    /// Of each file: the length that is durable, and the newest.
    lens: [[u64; 2]; 2],
    key: u64,
    metadata_key: u64,
}

/// What a visitor sees.
pub struct State<'a> {
    /// The image as the cut left it.
    pub image: &'a Image,
    /// A hash of its content.
    pub key: u64,
    /// A hash of the sectors named by [`CrashSet::mark_metadata`].
    pub metadata_key: u64,
}

fn version(pool: &Pool, sector: u32, content: Content) -> Version {
    Version { content, hash: mix(pool.hash(content) ^ u64::from(sector).wrapping_mul(0x9fb2_1c65_1e98_df25)) }
}

impl CrashSet {
    /// The states of a cut at the present step of `timeline`.
    pub fn new(timeline: &Timeline<'_>, pool: &Pool, atom: Atom) -> Self {
        let mut image = timeline.durable().clone();
        let mut slots: Vec<Slot> = Vec::new();
        let mut by_sector: Vec<u32> = Vec::new();
        let (mut ios, mut atoms) = (Vec::new(), Vec::new());
        let mut newest = [image.len, image.data_len];
        let mut newest_order = [0; 2];
        for volatile in timeline.volatile() {
            let mut places = Vec::with_capacity(volatile.loose.len());
            let mut ends = Vec::new();
            for (index, loose) in volatile.loose.iter().enumerate() {
                let at = loose.sector as usize;
                if by_sector.len() <= at {
                    by_sector.resize(at + 1, u32::MAX);
                }
                if by_sector[at] == u32::MAX {
                    by_sector[at] = slots.len() as u32;
                    let base = version(pool, loose.sector, image.sectors.get(at).copied().unwrap_or(ZERO));
                    let sector = loose.sector;
                    slots.push(Slot { sector, base, versions: Vec::new(), on: 0, metadata: false });
                }
                let slot = &mut slots[by_sector[at] as usize];
                if slot.versions.len() == 128 {
                    // The oldest versions of a sector that was written so often are left out.
                    continue;
                }
                places.push((by_sector[at], slot.versions.len() as u8));
                slot.versions.push(version(pool, loose.sector, loose.content));
                let last = volatile.loose.get(index + 1).is_none_or(|next| next.sector != loose.sector + 1);
                if atom.ends_at(loose.sector) || last && atom != Atom::Request {
                    ends.push(places.len());
                }
            }
            if ends.last() != Some(&places.len()) {
                ends.push(places.len());
            }
            atoms.push(ends);
            let file = usize::from(volatile.file == Member::Data);
            if let Some(len) = volatile.new_len
                && volatile.len_order > newest_order[file]
            {
                newest_order[file] = volatile.len_order;
                newest[file] = len;
            }
            ios.push(places);
        }
        if image.sectors.len() < by_sector.len() {
            image.sectors.resize(by_sector.len(), ZERO);
        }
        let lens = [[image.len, newest[0]], [image.data_len, newest[1]]];
        let io_numbers = timeline.volatile_ios();
        let mut set = Self { image, slots, ios, atoms, io_numbers, lens, key: 0, metadata_key: 0 };
        set.set_lens([1, 1]);
        set
    }

    /// The number of every I/O that may be lost.
    pub fn io_numbers(&self) -> &[u32] {
        &self.io_numbers
    }

    /// The image as it is now.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Says which sectors the metadata check depends on.
    pub fn mark_metadata(&mut self, is_metadata: impl Fn(u32) -> bool) {
        self.metadata_key = self.image.lens_hash();
        for slot in &mut self.slots {
            slot.metadata = is_metadata(slot.sector);
            if slot.metadata {
                self.metadata_key ^= slot.current().hash;
            }
        }
    }

    /// A hash of these sectors as they are now, in any order, and of the length.
    pub fn hash_of(&self, sectors: &[u32], pool: &Pool) -> u64 {
        let of = |sector: &u32| version(pool, *sector, self.image.get(u64::from(*sector))).hash;
        sectors.iter().fold(self.image.lens_hash(), |hash, sector| hash ^ of(sector))
    }

    /// Gives each file the length that is durable, or the newest.
    fn set_lens(&mut self, which: [usize; 2]) {
        let before = self.image.lens_hash();
        (self.image.len, self.image.data_len) = (self.lens[0][which[0]], self.lens[1][which[1]]);
        let change = before ^ self.image.lens_hash();
        self.key ^= change;
        self.metadata_key ^= change;
    }

    fn set(&mut self, slot: u32, version: u8, on: bool) {
        let slot = &mut self.slots[slot as usize];
        let before = slot.current();
        let bit = 1u128 << version;
        slot.on = if on { slot.on | bit } else { slot.on & !bit };
        let after = slot.current();
        self.image.sectors[slot.sector as usize] = after.content;
        let change = before.hash ^ after.hash;
        self.key ^= change;
        if slot.metadata {
            self.metadata_key ^= change;
        }
    }

    fn set_io(&mut self, io: usize, on: bool) {
        for index in 0..self.ios[io].len() {
            let (slot, version) = self.ios[io][index];
            self.set(slot, version, on);
        }
    }

    /// Makes exactly this state: for each volatile I/O a mask of its sectors, and whether the newest length
    /// persisted.
    pub fn make(&mut self, choice: &Survivors) {
        for io in 0..self.ios.len() {
            for index in 0..self.ios[io].len() {
                let (slot, version) = self.ios[io][index];
                let on = choice.keeps(self.io_numbers[io], index as u32);
                self.set(slot, version, on);
            }
        }
        self.set_lens([choice.len_persisted, choice.data_len_persisted].map(usize::from));
    }

    /// What persists now, in a form that can be written down.
    pub fn survivors(&self) -> Survivors {
        let mut ranges = Vec::new();
        for (places, number) in self.ios.iter().zip(&self.io_numbers) {
            let on = |index: usize| {
                let (slot, version) = places[index];
                self.slots[slot as usize].on >> version & 1 == 1
            };
            let mut index = 0;
            while index < places.len() {
                let from = index;
                while index < places.len() && on(index) {
                    index += 1;
                }
                if index > from {
                    ranges.push((*number, from as u32, index as u32));
                }
                index += 1;
            }
        }
        let len_persisted = self.image.len == self.lens[0][1];
        Survivors { ranges, len_persisted, data_len_persisted: self.image.data_len == self.lens[1][1] }
    }

    /// Visits the states in a fixed order that `depth` and `rng` determine, until the visitor breaks.
    pub fn enumerate(
        &mut self,
        depth: Depth,
        rng: &mut Rng,
        visit: &mut dyn FnMut(&mut Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visit(self)?;
        let count = self.ios.len();
        if count <= depth.exhaustive_ios {
            // Gray code: one I/O changes from state to state.
            for i in 1u64..1 << count {
                let io = i.trailing_zeros() as usize;
                let on = (i ^ (i >> 1)) >> io & 1 == 1;
                self.set_io(io, on);
                visit(self)?;
            }
        } else {
            self.sample_subsets(depth, rng, visit)?;
        }
        self.tear(depth, rng, visit)?;
        self.masks(depth, rng, visit)?;
        let changed = self.lens.map(|[durable, newest]| durable != newest);
        for which in [[0, 1], [1, 0], [0, 0]] {
            if (0..2).any(|file| which[file] == 0 && !changed[file]) {
                continue;
            }
            // A length did not persist: nothing beyond it exists, whatever else did.
            self.set_lens(which);
            self.set_all(false);
            for io in 0..count.min(64) {
                visit(self)?;
                self.set_io(io, true);
            }
            visit(self)?;
            self.set_lens([1, 1]);
        }
        ControlFlow::Continue(())
    }

    fn set_all(&mut self, on: bool) {
        (0..self.ios.len()).for_each(|io| self.set_io(io, on));
    }

    /// All prefixes, all single and double drops, and random subsets.
    fn sample_subsets(
        &mut self,
        depth: Depth,
        rng: &mut Rng,
        visit: &mut dyn FnMut(&mut Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let count = self.ios.len();
        for io in 0..count {
            self.set_io(io, true);
            visit(self)?;
        }
        for first in 0..count {
            self.set_io(first, false);
            visit(self)?;
            for second in first + 1..count.min(first + 64) {
                self.set_io(second, false);
                visit(self)?;
                self.set_io(second, true);
            }
            self.set_io(first, true);
        }
        for _ in 0..depth.random_subsets {
            for io in 0..count {
                self.set_io(io, rng.one_in(2));
            }
            visit(self)?;
        }
        ControlFlow::Continue(())
    }

    /// Each I/O torn at the boundaries where it may be, prefix and suffix, the others all there or all lost.
    fn tear(
        &mut self,
        depth: Depth,
        rng: &mut Rng,
        visit: &mut dyn FnMut(&mut Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for others in [false, true] {
            self.set_all(others);
            for io in 0..self.ios.len() {
                let inner = self.atoms[io].len() - 1;
                let all = inner <= depth.tears_per_io;
                for tear in 0..inner.min(depth.tears_per_io) {
                    let tear = if all { tear } else { rng.below(inner as u64) as usize };
                    let boundary = self.atoms[io][tear];
                    for prefix in [true, false] {
                        for index in 0..self.ios[io].len() {
                            let (slot, version) = self.ios[io][index];
                            self.set(slot, version, (index < boundary) == prefix);
                        }
                        visit(self)?;
                    }
                }
                self.set_io(io, others);
            }
        }
        ControlFlow::Continue(())
    }

    /// Any pieces of any I/Os.
    fn masks(
        &mut self,
        depth: Depth,
        rng: &mut Rng,
        visit: &mut dyn FnMut(&mut Self) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let pieces: usize = self.atoms.iter().map(Vec::len).sum();
        if pieces < 3 || self.ios.len() == pieces {
            // No I/O can be torn: the subsets were the masks.
            return ControlFlow::Continue(());
        }
        for _ in 0..depth.random_masks {
            for io in 0..self.ios.len() {
                let (mut bits, mut from) = (0, 0);
                for piece in 0..self.atoms[io].len() {
                    if piece % 64 == 0 {
                        bits = rng.next_u64();
                    }
                    let to = self.atoms[io][piece];
                    for index in from..to {
                        let (slot, version) = self.ios[io][index];
                        self.set(slot, version, bits & 1 == 1);
                    }
                    from = to;
                    bits >>= 1;
                }
            }
            visit(self)?;
        }
        ControlFlow::Continue(())
    }

    /// The present state.
    pub fn state(&self) -> State<'_> {
        State { image: &self.image, key: self.key, metadata_key: self.metadata_key }
    }
}

/// Which sector writes survived a cut, in terms of the history's I/O numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survivors {
    /// I/O number, and a range of its sectors (counted among those that were not durable).
    pub ranges: Vec<(u32, u32, u32)>,
    /// Whether the file's newest length survived.
    pub len_persisted: bool,
    /// Whether the data file's did.
    pub data_len_persisted: bool,
}

impl Survivors {
    fn keeps(&self, io: u32, index: u32) -> bool {
        self.ranges.iter().any(|(number, from, to)| *number == io && (*from..*to).contains(&index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{History, Io, IoKind};
    use crate::faults::FaultKind;

    /// A history of one-sector writes and flushes: `(sector, content)` or a flush; each step is atomic.
    fn history(steps: &[Option<(u32, Content)>]) -> History {
        let mut history = History { base: vec![ZERO; 4], base_len: 2048, ..History::default() };
        for (step, time) in steps.iter().zip(1..) {
            let from = history.writes.len() as u32;
            history.writes.extend(*step);
            history.ios.push(Io {
                file: Member::Image,
                kind: if step.is_some() { IoKind::Write } else { IoKind::Flush },
                offset: 0,
                len: 0,
                fua: false,
                tag: cowbell_block::DebugEvent::None,
                cause: 0,
                submitted: time * 10,
                applied: Some(time * 10 + 1),
                completed: Some(time * 10 + 2),
                fault: None,
                writes: (from, history.writes.len() as u32),
                new_len: None,
                eof: (0, 0),
            });
        }
        history
    }

    fn states(history: &History, pool: &Pool, time: u64) -> Vec<Vec<Content>> {
        states_of(history, pool, time, Atom::Sector)
    }

    fn states_of(history: &History, pool: &Pool, time: u64, atom: Atom) -> Vec<Vec<Content>> {
        let mut timeline = Timeline::new(history);
        timeline.advance(time);
        let mut set = CrashSet::new(&timeline, pool, atom);
        let mut seen = Vec::new();
        let mut keys = Vec::new();
        let _ = set.enumerate(Depth::FULL, &mut Rng::new(1), &mut |set| {
            if !keys.contains(&set.state().key) {
                keys.push(set.state().key);
                seen.push(set.image().sectors.clone());
            }
            let copy = set.survivors();
            let before = set.state().key;
            set.make(&copy);
            assert_eq!(set.state().key, before, "a state can be written down and made again");
            ControlFlow::Continue(())
        });
        seen.sort();
        seen
    }

    #[test]
    fn every_subset_of_unflushed_writes() {
        let mut pool = Pool::default();
        let (a, b, c) = (pool.intern(&[1; 512]), pool.intern(&[2; 512]), pool.intern(&[3; 512]));
        let history = history(&[Some((0, a)), None, Some((1, b)), Some((0, c))]);
        assert_eq!(states(&history, &pool, 15), [[0, 0, 0, 0], [a, 0, 0, 0]]);
        assert_eq!(states(&history, &pool, 99), [[a, 0, 0, 0], [a, b, 0, 0], [c, 0, 0, 0], [c, b, 0, 0]]);
    }

    /// One I/O over two blocks: torn anywhere, between the blocks, or nowhere.
    #[test]
    fn nothing_is_torn_inside_an_atom() {
        let mut pool = Pool::default();
        let contents: Vec<Content> = (1..5).map(|byte| pool.intern(&[byte; 512])).collect();
        let mut history = history(&[Some((6, contents[0]))]);
        (history.base, history.base_len) = (vec![ZERO; 16], 8192);
        history.writes = (6..10).zip(contents).collect();
        history.ios[0].writes = (0, 4);
        let count = |atom| states_of(&history, &pool, 99, atom).len();
        assert_eq!(count(Atom::Sector), 16, "every subset of four sectors, of 256 random masks");
        assert_eq!(count(Atom::Block), 4);
        assert_eq!(count(Atom::Request), 2);
    }

    /// The lengths of an image and of its data file persist each by itself.
    #[test]
    fn two_files_have_two_lengths() {
        let mut pool = Pool::default();
        let a = pool.intern(&[1; 512]);
        let grown = |content| {
            let mut history = history(&[Some((1, content))]);
            (history.base, history.base_len) = (vec![ZERO], 512);
            history.ios[0].new_len = Some(1024);
            history
        };
        let both = grown(a).beside(grown(a));
        let mut timeline = Timeline::new(&both);
        timeline.advance(99);
        let mut set = CrashSet::new(&timeline, &pool, Atom::Sector);
        let mut seen = std::collections::BTreeSet::new();
        let _ = set.enumerate(Depth::FULL, &mut Rng::new(1), &mut |set| {
            let image = set.image();
            seen.insert((image.len, image.data_len, image.get(1) == a, image.data(1) == a));
            let (copy, before) = (set.survivors(), set.state().key);
            set.make(&copy);
            assert_eq!(set.state().key, before);
            ControlFlow::Continue(())
        });
        for lens in [(512, 512), (512, 1024), (1024, 512), (1024, 1024)] {
            assert!(seen.iter().any(|state| (state.0, state.1) == lens), "{lens:?}");
        }
        assert!(
            !seen.iter().any(|(len, data, there, beside)| *there && *len < 1024 || *beside && *data < 1024)
        );
    }

    #[test]
    fn several_versions_of_one_sector() {
        let mut pool = Pool::default();
        let (a, b) = (pool.intern(&[1; 512]), pool.intern(&[2; 512]));
        let history = history(&[Some((0, a)), Some((0, b))]);
        assert_eq!(states(&history, &pool, 99), [[0, 0, 0, 0], [a, 0, 0, 0], [b, 0, 0, 0]]);
    }

    #[test]
    fn a_flush_covers_only_what_was_reported_before_it() {
        let mut pool = Pool::default();
        let (a, b) = (pool.intern(&[1; 512]), pool.intern(&[2; 512]));
        let mut history = history(&[Some((0, a)), Some((1, b)), None]);
        history.ios[1].completed = Some(31);
        let got = states(&history, &pool, 99);
        assert_eq!(got, [[a, 0, 0, 0], [a, b, 0, 0]], "the second write was still in flight");
        history.ios[2].fault = Some(FaultKind::FlushDrops);
        assert_eq!(states(&history, &pool, 99), [[0, 0, 0, 0], [0, b, 0, 0]], "dropped for good");
    }
}
