//! The reference disk: for each guest sector, every value it was given, when, and whether that is durable.
//!
//! Values are content numbers and times are steps of the world's clock. From this follows what a read may
//! return while others are in flight (O1: rule G1) and what a sector may hold after a power cut at any time
//! (O2: rules G3 to G9). A write is *definite*; a discard and a failed write are *possible*: the sector keeps
//! its old value or takes the new one, and the first read that tells which settles it. The length of the disk is
//! a value of the same kind, so that a change of it is before or after, never in between (M3).

use std::ops::Range;

use crate::pool::{Content, ZERO};

/// A time that never comes.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    value: Content,
    start: u64,
    /// When it had taken effect at the latest: its completion, or a read that returned it.
    end: u64,
    /// Whether the place must take the value.
    definite: bool,
    durable_at: u64,
    /// A later value is known to have replaced this one: its index, and since when readers must know.
    replaced: Option<(u32, u64)>,
    /// The change of length that made it, by its index: a sector that fell off the disk is zero if it comes back.
    by_size: Option<u32>,
}

impl Write {
    fn new(value: Content, now: u64, definite: bool) -> Self {
        Self { value, start: now, end: NEVER, definite, durable_at: NEVER, replaced: None, by_size: None }
    }

    fn base(value: Content) -> Self {
        Self { end: 0, durable_at: 0, ..Self::new(value, 0, true) }
    }
}

/// What gave a sector its value.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The value.
    pub value: Content,
    /// When it began.
    pub start: u64,
    /// When it had taken effect at the latest.
    pub end: u64,
    /// Whether it was a change of the disk's length.
    pub by_size: bool,
}

impl Origin {
    fn of(write: &Write) -> Self {
        let Write { value, start, end, by_size, .. } = *write;
        Self { value, start, end, by_size: by_size.is_some() }
    }
}

/// Names one guest mutation in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

/// A sector, or [`SIZE`].
type Place = u64;

/// Where the length of the disk is kept, in sectors: it is a value like others.
const SIZE: Place = u64::MAX;
/// Where the list of snapshots is kept, by its number in [`Model::lists`].
const LIST: Place = u64::MAX - 1;

/// What a snapshot holds: for each sector the values that it may have had when it was taken. Mostly one; more where
/// writes were under way.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    starts: Vec<u32>,
    values: Vec<Content>,
}

impl Kept {
    /// A snapshot with known content.
    pub fn exactly(values: &[Content]) -> Self {
        Self { starts: (0..=values.len() as u32).collect(), values: values.to_vec() }
    }

    /// Length of its disk.
    pub fn sectors(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// What a sector may hold.
    pub fn of(&self, sector: usize) -> &[Content] {
        &self.values[self.starts[sector] as usize..self.starts[sector + 1] as usize]
    }

    /// Whether nothing was under way when it was taken.
    pub fn is_exact(&self) -> bool {
        self.values.len() == self.sectors()
    }
}

struct Open {
    start: u64,
    sectors: Range<u64>,
    /// Every place it changes, and its index in the place's history.
    at: Vec<(Place, u32)>,
}

/// A completed write that no flush has covered.
struct Ended {
    place: Place,
    index: u32,
    completed: u64,
}

/// The reference disk.
pub struct Model {
    sectors: Vec<Vec<Write>>,
    size: Vec<Write>,
    list: Vec<Write>,
    /// Every list of snapshots that ever was, as numbers in [`Model::kept`].
    lists: Vec<Vec<usize>>,
    kept: Vec<Kept>,
    open: Vec<Open>,
    /// Writes that ended and are not durable yet.
    unflushed: Vec<Ended>,
}

/// Why a value is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The guest sector.
    pub sector: u64,
    /// What it holds.
    pub found: Content,
    /// What it may hold.
    pub allowed: Vec<Content>,
}

impl Model {
    /// A disk that durably holds `values`, with these snapshots.
    pub fn new(values: &[Content], snapshots: &[Vec<Content>]) -> Self {
        Self {
            sectors: values.iter().map(|value| vec![Write::base(*value)]).collect(),
            size: vec![Write::base(values.len() as u32)],
            list: vec![Write::base(0)],
            lists: vec![(0..snapshots.len()).collect()],
            kept: snapshots.iter().map(|values| Kept::exactly(values)).collect(),
            open: Vec::new(),
            unflushed: Vec::new(),
        }
    }

    /// Number of sectors that the disk ever had.
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// The value that a sector was given last, whether or not anybody may see it already.
    pub fn newest(&self, sector: u64) -> Content {
        self.sectors.get(sector as usize).and_then(|history| history.last()).map_or(ZERO, |write| write.value)
    }

    /// The shortest that the disk may be at `now`.
    pub fn shortest(&self, now: u64) -> u64 {
        let readable = self.size.iter().filter(|size| is_readable(&self.size, size, now, now));
        readable.map(|size| u64::from(size.value)).min().unwrap_or(0)
    }

    /// Begin of every change of length, and the part of the disk that was there before or after it only.
    pub fn resizes(&self) -> impl Iterator<Item = (u64, Range<u64>)> + '_ {
        self.size.windows(2).map(|pair| {
            let (from, to) = (u64::from(pair[0].value), u64::from(pair[1].value));
            (pair[1].start, from.min(to)..from.max(to))
        })
    }

    fn history(&mut self, place: Place) -> &mut Vec<Write> {
        match place {
            SIZE => &mut self.size,
            LIST => &mut self.list,
            sector => &mut self.sectors[sector as usize],
        }
    }

    /// A write (or write of zeroes) of `values` from sector `first` begins.
    pub fn begin_write(&mut self, now: u64, first: u64, values: impl Iterator<Item = Content>) -> Ticket {
        self.begin(now, (first..).zip(values).map(|(sector, value)| (sector, Write::new(value, now, true))))
    }

    /// A discard begins.
    pub fn begin_discard(&mut self, now: u64, sectors: Range<u64>) -> Ticket {
        self.begin(now, sectors.map(|sector| (sector, Write::new(ZERO, now, false))))
    }

    /// The disk gets another length. What is new reads as zeroes, what falls off is gone.
    pub fn begin_resize(&mut self, now: u64, to: u64) -> Ticket {
        let known = self.sectors() as usize;
        self.sectors.resize(known.max(to as usize), vec![Write::base(ZERO)]);
        let by_size = Some(self.size.len() as u32);
        let lost =
            (to..known as u64).map(|sector| (sector, Write { by_size, ..Write::new(ZERO, now, true) }));
        self.begin(now, lost.chain([(SIZE, Write::new(to as u32, now, true))]))
    }

    /// The snapshots that are there, when none is being changed: numbers for [`Model::kept`].
    pub fn snapshots(&self) -> &[usize] {
        self.list.last().map_or(&[], |list| &self.lists[list.value as usize])
    }

    /// What a snapshot holds.
    pub fn kept(&self, snapshot: usize) -> &Kept {
        &self.kept[snapshot]
    }

    /// A snapshot is being made. Until it is made, it may be of any moment from now on.
    pub fn begin_snapshot(&mut self, now: u64) -> Ticket {
        self.kept.push(Kept::default());
        let mut list = self.snapshots().to_vec();
        list.push(self.kept.len() - 1);
        let ticket = self.begin_list(now, list);
        self.keep(now, now);
        ticket
    }

    /// The snapshot that was begun last is of some moment between `start` and `now`.
    pub fn keep(&mut self, start: u64, now: u64) {
        let mut kept = Kept::default();
        for history in &self.sectors[..self.shortest(now) as usize] {
            kept.starts.push(kept.values.len() as u32);
            let from = kept.values.len();
            for write in history.iter().filter(|write| is_readable(history, write, start, now)) {
                if !kept.values[from..].contains(&write.value) {
                    kept.values.push(write.value);
                }
            }
        }
        kept.starts.push(kept.values.len() as u32);
        if let Some(last) = self.kept.last_mut() {
            *last = kept;
        }
    }

    /// The snapshot at this place of the list is being deleted.
    pub fn begin_delete(&mut self, now: u64, index: usize) -> Ticket {
        let mut list = self.snapshots().to_vec();
        list.remove(index);
        self.begin_list(now, list)
    }

    fn begin_list(&mut self, now: u64, list: Vec<usize>) -> Ticket {
        self.lists.push(list);
        self.begin(now, std::iter::once((LIST, Write::new(self.lists.len() as u32 - 1, now, true))))
    }

    /// The disk becomes what the snapshot at this place of the list holds, as a whole: its length changes with all of
    /// it. The snapshot is exact.
    pub fn begin_apply(&mut self, now: u64, index: usize) -> Ticket {
        let kept = self.kept[self.snapshots()[index]].clone();
        let (known, to) = (self.sectors() as usize, kept.sectors());
        self.sectors.resize(known.max(to), vec![Write::base(ZERO)]);
        let by_size = Some(self.size.len() as u32);
        let value = |sector: usize| if sector < to { kept.of(sector)[0] } else { ZERO };
        let new = |sector: usize| (sector as u64, Write { by_size, ..Write::new(value(sector), now, true) });
        let size = (SIZE, Write::new(to as u32, now, true));
        self.begin(now, (0..known.max(to)).map(new).chain([size]))
    }

    /// The lists of snapshots that may be there after a power cut at `time`.
    pub fn lists_after_cut(&self, time: u64) -> impl Iterator<Item = &[usize]> {
        survivors(&self.list, time).map(|index| self.lists[self.list[index].value as usize].as_slice())
    }

    fn begin(&mut self, now: u64, writes: impl Iterator<Item = (Place, Write)>) -> Ticket {
        let mut at = Vec::new();
        for (place, write) in writes {
            let history = self.history(place);
            at.push((place, history.len() as u32));
            history.push(write);
        }
        let is_sector = |(place, _): &&(Place, u32)| *place < LIST;
        let first = at.iter().find(is_sector).map_or(0, |(place, _)| *place);
        let count = at.iter().filter(is_sector).count() as u64;
        self.open.push(Open { start: now, sectors: first..first + count, at });
        Ticket(self.open.len() - 1)
    }

    /// The mutation completed; with `fua` it is durable now.
    pub fn end(&mut self, now: u64, ticket: Ticket, fua: bool) {
        for (place, index) in self.open[ticket.0].at.clone() {
            let write = &mut self.history(place)[index as usize];
            write.end = write.end.min(now);
            if fua {
                write.durable_at = now;
            } else {
                self.unflushed.push(Ended { place, index, completed: now });
            }
        }
    }

    /// The mutation failed: each sector is old or new from now on.
    pub fn fail(&mut self, now: u64, ticket: Ticket) {
        for (place, index) in self.open[ticket.0].at.clone() {
            let write = &mut self.history(place)[index as usize];
            write.definite = false;
            write.end = write.end.min(now);
        }
    }

    /// The sectors of every mutation that began after `time`.
    pub fn touched_since(&self, time: u64) -> impl Iterator<Item = &Range<u64>> {
        self.open.iter().filter(move |open| open.start > time).map(|open| &open.sectors)
    }

    /// Begin and sectors of every mutation.
    pub fn mutations(&self) -> impl Iterator<Item = (u64, &Range<u64>)> {
        self.open.iter().map(|open| (open.start, &open.sectors))
    }

    /// Nobody waits for the mutation any more: it may still happen at any time.
    pub fn abandon(&mut self, ticket: Ticket) {
        for (place, index) in self.open[ticket.0].at.clone() {
            self.history(place)[index as usize].definite = false;
        }
    }

    /// A flush that began at `start` completed: everything that had ended by then is durable.
    pub fn flushed(&mut self, now: u64, start: u64) {
        let (covered, open) =
            std::mem::take(&mut self.unflushed).into_iter().partition(|ended| ended.completed < start);
        self.unflushed = open;
        let covered: Vec<Ended> = covered;
        for ended in covered {
            let write = &mut self.history(ended.place)[ended.index as usize];
            write.durable_at = write.durable_at.min(now);
        }
    }

    /// The image was closed without success: what no flush covered may or may not be there from now on, and no
    /// later flush makes any promise about it.
    pub fn lost(&mut self) {
        for ended in std::mem::take(&mut self.unflushed) {
            let history = self.history(ended.place);
            history[ended.index as usize].definite = false;
            history.iter_mut().for_each(|w| w.replaced = None);
        }
    }

    /// Checks the length in sectors that the disk was said to have between `start` and `now`.
    ///
    /// # Errors
    /// When no order of the changes explains it.
    pub fn read_size(&mut self, start: u64, now: u64, found: u64) -> Result<(), Mismatch> {
        self.read(start, now, SIZE, found as u32)
    }

    /// Checks what a read of sector `sector` between `start` and `now` returned, and learns from it.
    ///
    /// # Errors
    /// When no order of the writes explains the value.
    pub fn read(&mut self, start: u64, now: u64, sector: u64, found: Content) -> Result<(), Mismatch> {
        let history = self.history(sector);
        let mut matching = None;
        let mut matches = 0;
        for (index, write) in history.iter().enumerate() {
            if write.value == found && is_readable(history, write, start, now) {
                matches += 1;
                matching = Some(index);
            }
        }
        let Some(index) = matching else {
            let mut allowed: Vec<_> =
                history.iter().filter(|w| is_readable(history, w, start, now)).map(|w| w.value).collect();
            allowed.dedup();
            return Err(Mismatch { sector, found, allowed });
        };
        // Two writes of one value (zeroes) cannot be told apart, so nothing is learned.
        if matches == 1 && history.len() > 1 {
            history[index].end = history[index].end.min(now);
            for (other, write) in history.iter_mut().enumerate() {
                if other != index && write.end < start && write.replaced.is_none() {
                    write.replaced = Some((index as u32, now));
                }
            }
        }
        Ok(())
    }

    /// The lengths in sectors that the disk may have after a power cut at `time`, each with the index of the change
    /// that made it.
    pub fn sizes_after_cut(&self, time: u64) -> Vec<(u64, u32)> {
        let allowed = survivors(&self.size, time);
        allowed.map(|index| (u64::from(self.size[index].value), index as u32)).collect()
    }

    /// The values that sector `sector` may hold after a power cut at `time` that left the disk with its `size`-th
    /// length, appended to `out` without repetition; the first is the last durable one if there is a single such.
    pub fn allowed_after_cut(&self, time: u64, sector: u64, size: u32, out: &mut Vec<Content>) {
        let history = &self.sectors[sector as usize];
        let from = out.len();
        if let [only] = history.as_slice() {
            out.push(only.value);
            return;
        }
        // What fell off the disk by a change that is in effect is not coming back; one that is not did nothing.
        // Nobody knows whether a change that failed is in effect.
        let in_effect = |write: &Write| write.definite && write.by_size.is_some_and(|by| by <= size);
        let first = history.iter().rposition(in_effect).unwrap_or(0);
        for index in survivors(history, time) {
            let write = &history[index];
            let undone = write.by_size.is_some_and(|by| by > size);
            if index >= first && !undone && !out[from..].contains(&write.value) {
                out.push(write.value);
            }
        }
        let all_undone = out.len() == from;
        if all_undone {
            // Superseded only by a change of length that did not happen.
            let rest =
                history[first..].iter().filter(|w| w.start <= time && w.by_size.is_none_or(|by| by <= size));
            out.extend(rest.map(|w| w.value));
        }
    }

    /// Everything that gave sector `sector` a value, in order.
    pub fn origins(&self, sector: u64) -> impl Iterator<Item = Origin> + '_ {
        self.sectors[sector as usize].iter().map(Origin::of)
    }

    /// What gave sector `sector` a value that a read at `now` may return.
    pub fn readable(&self, sector: u64, now: u64) -> impl Iterator<Item = Origin> + '_ {
        let history = &self.sectors[sector as usize];
        history.iter().filter(move |write| is_readable(history, write, now, now)).map(Origin::of)
    }

    /// Every value that sector `sector` was ever given, in order.
    pub fn values(&self, sector: u64) -> impl Iterator<Item = Content> + '_ {
        self.sectors[sector as usize].iter().map(|write| write.value)
    }
}

/// The writes whose value a place may have after a power cut at `time`.
fn survivors(history: &[Write], time: u64) -> impl Iterator<Item = usize> + '_ {
    let survives = move |write: &Write| {
        let replaced = write.replaced.is_some_and(|(by, _)| history[by as usize].durable_at <= time);
        let superseded = || {
            history.iter().any(|later| later.definite && later.durable_at <= time && write.end < later.start)
        };
        write.start <= time && !replaced && !superseded()
    };
    (0..history.len()).filter(move |index| survives(&history[*index]))
}

/// Whether a read from `start` to `now` may return `write`.
fn is_readable(history: &[Write], write: &Write, start: u64, now: u64) -> bool {
    write.start <= now
        && write.replaced.is_none_or(|(_, known)| known >= start)
        && !history.iter().any(|later| later.definite && write.end < later.start && later.end < start)
}

#[cfg(test)]
mod tests;
