//! The durable state of a disk as its history goes by.
//!
//! A [`Timeline`] replays the history of a disk and knows, at any step, what is durable and what is not.

use crate::config::DataPlace;
use crate::disk::{History, Io, IoKind};
use crate::faults::{FaultKind, Member};
use crate::pool::{Content, ZERO};
use crate::rng::mix;

/// Sector from which on an [`Image`] keeps its data file: beyond the end of any image file that has one, so that both
/// are cut at once.
pub const DATA_AT: usize = 1 << 13;

/// An image: a content per sector, and a length in bytes beyond which everything is zero. From [`DATA_AT`] on it is the
/// data file's content, if there is one, which has a length of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Contents; may be longer than the length says.
    pub sectors: Vec<Content>,
    /// Length in bytes.
    pub len: u64,
    /// Length of the data file in bytes, if there is one.
    pub data_len: u64,
}

/// A hash of the length of one of the files.
pub(crate) fn len_hash(file: Member, len: u64) -> u64 {
    mix(len ^ (file as u64) << 60)
}

impl Image {
    /// The length of one of the files.
    pub fn len_of(&self, file: Member) -> u64 {
        if file == Member::Data { self.data_len } else { self.len }
    }

    /// Gives one of the files another length.
    pub fn set_len_of(&mut self, file: Member, len: u64) {
        match file {
            Member::Data => self.data_len = len,
            Member::Image | Member::Backing => self.len = len,
        }
    }

    /// A hash of the lengths.
    pub fn lens_hash(&self) -> u64 {
        len_hash(Member::Image, self.len) ^ len_hash(Member::Data, self.data_len)
    }

    /// The content of one sector.
    pub fn get(&self, sector: u64) -> Content {
        if sector * 512 >= self.len {
            return ZERO;
        }
        self.sectors.get(sector as usize).copied().unwrap_or(ZERO)
    }

    /// The content of one sector of the data file.
    pub fn data(&self, sector: u32) -> Content {
        if u64::from(sector) * 512 >= self.data_len {
            return ZERO;
        }
        self.sectors.get(DATA_AT + sector as usize).copied().unwrap_or(ZERO)
    }

    /// The contents of the image file, and of the data file if the guest's data is there.
    pub fn parts(&self, data: DataPlace) -> (&[Content], &[Content]) {
        match data {
            DataPlace::Inside => (&self.sectors, &[]),
            DataPlace::Outside | DataPlace::Raw => self.sectors.split_at(self.sectors.len().min(DATA_AT)),
        }
    }

    /// The same with this data file, of `len` bytes.
    #[must_use]
    pub fn with_data(mut self, data: &[Content], len: u64) -> Self {
        self.data_len = len;
        assert!(self.sectors.len() <= DATA_AT, "the image is short beside a data file");
        self.sectors.resize(DATA_AT, ZERO);
        self.sectors.extend(data);
        self
    }
}

/// One sector write that may or may not survive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loose {
    pub sector: u32,
    pub content: Content,
    /// Position in the order of application, from 1.
    pub order: u32,
}

/// The writes of one I/O that are not durable.
#[derive(Clone, Debug)]
pub(crate) struct VolatileIo {
    pub io: u32,
    /// Whose length it changes, if it changes one.
    pub file: Member,
    pub loose: Vec<Loose>,
    pub new_len: Option<u64>,
    pub len_order: u32,
    /// The file must be this long to hold what was written.
    pub end: u64,
}

/// The durable state of a disk as its history goes by.
pub struct Timeline<'a> {
    history: &'a History,
    events: Vec<(u64, Event)>,
    next: usize,
    durable: Image,
    durable_order: Vec<u32>,
    /// Of the image file and the data file.
    durable_len_order: [u32; 2],
    volatile: Vec<VolatileIo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Applied(u32),
    /// A flush took effect, or dropped what it should have saved.
    Flushed(u32),
    /// A write with FUA was reported.
    Fua(u32),
}

impl<'a> Timeline<'a> {
    /// At the beginning of `history`.
    pub fn new(history: &'a History) -> Self {
        let mut events = Vec::new();
        for (number, io) in (0..).zip(&history.ios) {
            let Some(applied) = io.applied else { continue };
            match io.kind {
                IoKind::Flush if io.fault.is_none_or(|f| f == FaultKind::FlushDrops) => {
                    events.push((applied, Event::Flushed(number)));
                }
                _ if io.writes.0 != io.writes.1 || io.new_len.is_some() => {
                    events.push((applied, Event::Applied(number)));
                    if let Some(completed) = io.completed.filter(|_| io.fua && io.fault.is_none()) {
                        events.push((completed, Event::Fua(number)));
                    }
                }
                _ => {}
            }
        }
        events.sort_by_key(|(time, _)| *time);
        let (sectors, len, data_len) = (history.base.clone(), history.base_len, history.base_data_len);
        let durable = Image { sectors, len, data_len };
        Self {
            history,
            events,
            next: 0,
            durable,
            durable_order: Vec::new(),
            durable_len_order: [0; 2],
            volatile: Vec::new(),
        }
    }

    /// Replays everything up to and including step `time`.
    pub fn advance(&mut self, time: u64) {
        while let Some((at, event)) = self.events.get(self.next).copied()
            && at <= time
        {
            self.next += 1;
            match event {
                Event::Applied(io) => self.applied(io),
                Event::Fua(io) => self.make_durable(|v| v.io == io, true),
                Event::Flushed(io) => {
                    let flush: &Io = &self.history.ios[io as usize];
                    let (submitted, kept) = (flush.submitted, flush.fault.is_none());
                    let ios = &self.history.ios;
                    let covered = |v: &VolatileIo| {
                        let io = &ios[v.io as usize];
                        io.file == flush.file && io.completed.is_some_and(|c| c < submitted)
                    };
                    self.make_durable(covered, kept);
                }
            }
        }
    }

    /// The step of the next event that makes something durable.
    pub fn next_barrier(&self) -> Option<u64> {
        let barrier = |(time, event): &(u64, Event)| (!matches!(event, Event::Applied(_))).then_some(*time);
        self.events[self.next..].iter().find_map(barrier)
    }

    /// Whether anything is not durable.
    pub fn has_volatile(&self) -> bool {
        !self.volatile.is_empty()
    }

    /// The I/Os that are applied and not durable, in order of application.
    pub fn volatile_ios(&self) -> Vec<u32> {
        self.volatile.iter().map(|v| v.io).collect()
    }

    /// What is durable.
    pub fn durable(&self) -> &Image {
        &self.durable
    }

    /// What is not.
    pub(crate) fn volatile(&self) -> &[VolatileIo] {
        &self.volatile
    }

    fn applied(&mut self, number: u32) {
        let io = &self.history.ios[number as usize];
        let range = io.writes.0 as usize..io.writes.1 as usize;
        let loose = self.history.writes[range]
            .iter()
            .zip(io.writes.0 + 1..)
            .map(|((sector, content), order)| Loose { sector: *sector, content: *content, order })
            .collect();
        let new_len = io.new_len;
        let len_order = io.applied.map_or(0, |applied| applied as u32);
        let extends = matches!(io.kind, IoKind::Write | IoKind::WriteZeroes);
        let end = if extends { io.offset + io.len } else { 0 };
        let file = io.file;
        self.volatile.push(VolatileIo { io: number, file, loose, new_len, len_order, end });
    }

    fn make_durable(&mut self, covered: impl Fn(&VolatileIo) -> bool, kept: bool) {
        let durable = &mut self.durable;
        let orders = &mut self.durable_order;
        let len_orders = &mut self.durable_len_order;
        self.volatile.retain(|volatile| {
            let covered = covered(volatile);
            if covered && kept {
                for Loose { sector, content, order } in &volatile.loose {
                    let at = *sector as usize;
                    if durable.sectors.len() <= at {
                        durable.sectors.resize(at + 1, ZERO);
                    }
                    if orders.len() <= at {
                        orders.resize(at + 1, 0);
                    }
                    if *order > orders[at] {
                        orders[at] = *order;
                        durable.sectors[at] = *content;
                    }
                }
                let len_order = &mut len_orders[usize::from(volatile.file == Member::Data)];
                if let Some(len) = volatile.new_len
                    && volatile.len_order > *len_order
                {
                    *len_order = volatile.len_order;
                    durable.set_len_of(volatile.file, len);
                }
                // Another I/O may have made the file longer first; durable data is durably inside the file.
                if volatile.len_order >= *len_order {
                    let len = durable.len_of(volatile.file).max(volatile.end);
                    durable.set_len_of(volatile.file, len);
                }
            }
            !covered
        });
        if !kept {
            return;
        }
        // The cache has moved on: what was applied before a durable version of its sector cannot come back.
        for volatile in &mut self.volatile {
            volatile.loose.retain(|l| orders.get(l.sector as usize).is_none_or(|o| l.order > *o));
            if volatile.len_order <= len_orders[usize::from(volatile.file == Member::Data)] {
                volatile.new_len = None;
            }
        }
        self.volatile.retain(|v| !v.loose.is_empty() || v.new_len.is_some());
    }
}
