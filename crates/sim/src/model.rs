//! The reference disk: for each guest sector, every value it was given, when, and whether that is durable.
//!
//! Values are content numbers and times are steps of the world's clock. From this follows what a read may
//! return while others are in flight (O1: rule G1) and what a sector may hold after a power cut at any time
//! (O2: rules G3 to G9). A write is *definite*; a discard and a failed write are *possible*: the sector keeps
//! its old value or takes the new one, and the first read that tells which settles it.

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
    /// Whether the sector must take the value.
    definite: bool,
    durable_at: u64,
    /// A later value is known to have replaced this one: its index, and since when readers must know.
    replaced: Option<(u32, u64)>,
}

/// Names one guest mutation in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

struct Open {
    sectors: Range<u64>,
    /// Index of the write in each sector's history.
    at: Vec<u32>,
}

/// A completed write that no flush has covered.
struct Ended {
    sector: u64,
    index: u32,
    completed: u64,
}

/// The reference disk.
pub struct Model {
    sectors: Vec<Vec<Write>>,
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
    /// A disk that durably holds `values`.
    pub fn new(values: &[Content]) -> Self {
        let base = |value: &Content| {
            vec![Write { value: *value, start: 0, end: 0, definite: true, durable_at: 0, replaced: None }]
        };
        Self { sectors: values.iter().map(base).collect(), open: Vec::new(), unflushed: Vec::new() }
    }

    /// Number of sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// A write (or write of zeroes) of `values` from sector `first` begins.
    pub fn begin_write(&mut self, now: u64, first: u64, values: impl Iterator<Item = Content>) -> Ticket {
        self.begin(now, first, values, true)
    }

    /// A discard begins.
    pub fn begin_discard(&mut self, now: u64, sectors: Range<u64>) -> Ticket {
        let count = (sectors.end - sectors.start) as usize;
        self.begin(now, sectors.start, std::iter::repeat_n(ZERO, count), false)
    }

    fn begin(
        &mut self,
        now: u64,
        first: u64,
        values: impl Iterator<Item = Content>,
        definite: bool,
    ) -> Ticket {
        let mut at = Vec::new();
        for (sector, value) in (first..).zip(values) {
            let history = &mut self.sectors[sector as usize];
            at.push(history.len() as u32);
            let write = Write { value, start: now, end: NEVER, definite, durable_at: NEVER, replaced: None };
            history.push(write);
        }
        self.open.push(Open { sectors: first..first + at.len() as u64, at });
        Ticket(self.open.len() - 1)
    }

    /// The mutation completed; with `fua` it is durable now.
    pub fn end(&mut self, now: u64, ticket: Ticket, fua: bool) {
        let Open { sectors, at } = &self.open[ticket.0];
        for (sector, index) in sectors.clone().zip(at) {
            let write = &mut self.sectors[sector as usize][*index as usize];
            write.end = write.end.min(now);
            if fua {
                write.durable_at = now;
            } else {
                self.unflushed.push(Ended { sector, index: *index, completed: now });
            }
        }
    }

    /// The mutation failed: each sector is old or new from now on.
    pub fn fail(&mut self, now: u64, ticket: Ticket) {
        let Open { sectors, at } = &self.open[ticket.0];
        for (sector, index) in sectors.clone().zip(at) {
            let write = &mut self.sectors[sector as usize][*index as usize];
            write.definite = false;
            write.end = write.end.min(now);
        }
    }

    /// The sectors of every mutation that began after `time`.
    pub fn touched_since(&self, time: u64) -> impl Iterator<Item = &Range<u64>> {
        let began = move |open: &&Open| {
            let first =
                open.at.first().map(|index| self.sectors[open.sectors.start as usize][*index as usize]);
            first.is_some_and(|write| write.start > time)
        };
        self.open.iter().filter(began).map(|open| &open.sectors)
    }

    /// Nobody waits for the mutation any more: it may still happen at any time.
    pub fn abandon(&mut self, ticket: Ticket) {
        let Open { sectors, at } = &self.open[ticket.0];
        for (sector, index) in sectors.clone().zip(at) {
            self.sectors[sector as usize][*index as usize].definite = false;
        }
    }

    /// A flush that began at `start` completed: everything that had ended by then is durable.
    pub fn flushed(&mut self, now: u64, start: u64) {
        let sectors = &mut self.sectors;
        self.unflushed.retain(|ended| {
            let write = &mut sectors[ended.sector as usize][ended.index as usize];
            let covered = ended.completed < start;
            if covered {
                write.durable_at = write.durable_at.min(now);
            }
            !covered
        });
    }

    /// The image was closed without success: what no flush covered may or may not be there from now on, and no
    /// later flush makes any promise about it.
    pub fn lost(&mut self) {
        for ended in self.unflushed.drain(..) {
            let history = &mut self.sectors[ended.sector as usize];
            history[ended.index as usize].definite = false;
            history.iter_mut().for_each(|w| w.replaced = None);
        }
    }

    /// Checks what a read of sector `sector` between `start` and `now` returned, and learns from it.
    ///
    /// # Errors
    /// When no order of the writes explains the value.
    pub fn read(&mut self, start: u64, now: u64, sector: u64, found: Content) -> Result<(), Mismatch> {
        let history = &mut self.sectors[sector as usize];
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

    /// The values that sector `sector` may hold after a power cut at `time`, appended to `out` without
    /// repetition; the first is the last durable one if there is a single such.
    pub fn allowed_after_cut(&self, time: u64, sector: u64, out: &mut Vec<Content>) {
        let history = &self.sectors[sector as usize];
        let from = out.len();
        if let [only] = history.as_slice() {
            out.push(only.value);
            return;
        }
        for write in history.iter().filter(|w| w.start <= time) {
            let replaced = write.replaced.is_some_and(|(by, _)| history[by as usize].durable_at <= time);
            let superseded = || {
                history
                    .iter()
                    .any(|later| later.definite && later.durable_at <= time && write.end < later.start)
            };
            if !replaced && !superseded() && !out[from..].contains(&write.value) {
                out.push(write.value);
            }
        }
    }
}

/// Whether a read from `start` to `now` may return `write`.
fn is_readable(history: &[Write], write: &Write, start: u64, now: u64) -> bool {
    write.start <= now
        && write.replaced.is_none_or(|(_, known)| known >= start)
        && !history.iter().any(|later| later.definite && write.end < later.start && later.end < start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: Content) -> std::iter::Once<Content> {
        std::iter::once(value)
    }

    fn cut(model: &Model, time: u64) -> Vec<Content> {
        let mut out = Vec::new();
        model.allowed_after_cut(time, 0, &mut out);
        out
    }

    #[test]
    fn a_completed_write_is_the_only_readable_value() {
        let mut model = Model::new(&[1]);
        let w = model.begin_write(2, 0, one(7));
        assert!(model.read(1, 3, 0, 1).is_ok() && model.read(3, 4, 0, 7).is_ok());
        assert!(model.read(5, 6, 0, 1).is_err(), "a later read must not go back");
        model.end(8, w, false);
        assert!(model.read(9, 10, 0, 7).is_ok());
        assert_eq!(model.read(9, 10, 0, 1).expect_err("stale").allowed, [7]);
    }

    #[test]
    fn concurrent_writes_settle_on_one() {
        let mut model = Model::new(&[1]);
        let (a, b) = (model.begin_write(2, 0, one(7)), model.begin_write(3, 0, one(8)));
        model.end(4, a, false);
        model.end(5, b, false);
        assert!(model.read(6, 7, 0, 7).is_ok());
        assert!(model.read(8, 9, 0, 8).is_err(), "settled on 7");
        assert!(model.read(8, 9, 0, 7).is_ok());
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_began() {
        let mut model = Model::new(&[1]);
        let a = model.begin_write(2, 0, one(7));
        model.end(4, a, false);
        let b = model.begin_write(5, 0, one(8));
        model.flushed(9, 6);
        assert_eq!(cut(&model, 8), [1, 7, 8]);
        assert_eq!(cut(&model, 9), [7, 8]);
        model.end(10, b, true);
        assert_eq!(cut(&model, 9), [7, 8]);
        assert_eq!(cut(&model, 10), [8]);
    }

    #[test]
    fn a_discard_is_old_or_zero_and_stays() {
        let mut model = Model::new(&[1]);
        let d = model.begin_discard(2, 0..1);
        model.end(3, d, false);
        model.flushed(6, 5);
        assert_eq!(cut(&model, 7), [1, ZERO]);
        assert!(model.read(8, 9, 0, ZERO).is_ok());
        assert!(model.read(10, 11, 0, 1).is_err(), "decided");
        assert_eq!(cut(&model, 12), [ZERO]);
    }

    #[test]
    fn a_failed_close_keeps_only_what_was_flushed() {
        let mut model = Model::new(&[1]);
        let w = model.begin_write(2, 0, one(7));
        model.end(3, w, false);
        model.lost();
        model.flushed(6, 5);
        assert_eq!(cut(&model, 7), [1, 7]);
        assert!(model.read(8, 9, 0, 1).is_ok());
    }

    #[test]
    fn a_failed_write_is_old_or_new() {
        let mut model = Model::new(&[1]);
        let w = model.begin_write(2, 0, one(7));
        model.fail(3, w);
        assert!(model.read(4, 5, 0, 1).is_ok());
        assert!(model.read(6, 7, 0, 7).is_err(), "it was old");
    }
}
