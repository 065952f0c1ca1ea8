//! Random operations in the words of the `io` tool, applied to the model as they are made.

use std::fmt::Write as _;

use crate::config::Config;
use crate::lab::Side;
use crate::model::{Model, SECTOR};
use cowbell_difftest::rng::Rng;

/// Commands for one run of the tool.
pub struct Batch<'a> {
    config: &'a Config,
    side: Side,
    model: &'a mut Model,
    rng: &'a mut Rng,
    /// Clusters that most operations meet on.
    hot: [u64; 3],
    /// Ranges of writes that nobody has waited for.
    in_flight: Vec<(u64, u64)>,
    text: String,
}

/// Random commands, for the tool of this side.
pub fn batch(config: &Config, side: Side, model: &mut Model, rng: &mut Rng) -> String {
    let clusters = model.size().div_ceil(config.cluster);
    let hot = [rng.below(clusters), rng.below(clusters), rng.below(clusters)];
    let mut batch = Batch { config, side, model, rng, hot, in_flight: Vec::new(), text: String::new() };
    for _ in 0..3 + batch.rng.below(25) {
        batch.step();
    }
    batch.text
}

impl Batch<'_> {
    fn step(&mut self) {
        match self.rng.below(100) {
            0..20 => self.write(Wait::Now),
            20..45 => self.write(Wait::Later),
            45..57 => self.zero(),
            57..67 => self.discard(),
            67..85 => self.read(),
            85..89 => self.put("flush"),
            89..95 => self.settle(),
            95..97 => self.grow(),
            _ => self.look(),
        }
    }

    fn put(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }

    /// Waits for all writes in flight.
    fn settle(&mut self) {
        self.put("aio_flush");
        self.in_flight.clear();
    }

    /// Waits for writes in flight if one of them touches the range: which came last would be nobody's guess.
    fn separate(&mut self, offset: u64, len: u64) {
        if self.in_flight.iter().any(|(start, end)| offset < *end && *start < offset + len) {
            self.settle();
        }
    }

    /// A range of the disk: mostly near the hot clusters, of any length up to a few clusters.
    fn range(&mut self) -> (u64, u64) {
        let cluster = self.config.cluster;
        let size = self.model.size();
        let index =
            if self.rng.percent(70) { self.rng.pick(&self.hot) } else { self.rng.below(size / cluster) };
        let within = match self.rng.below(4) {
            0 | 1 => 0,
            2 => self.rng.below(cluster / SECTOR) * SECTOR,
            _ => cluster - SECTOR,
        };
        let len = match self.rng.below(6) {
            0 | 1 => cluster,
            2 => SECTOR,
            3 => (1 + self.rng.below(cluster / SECTOR)) * SECTOR,
            4 => 2 * cluster,
            _ => (1 + self.rng.below(4 * cluster / SECTOR)) * SECTOR,
        };
        let offset = (index * cluster + within).min((size - 1) / SECTOR * SECTOR);
        (offset, len.min(size - offset))
    }

    /// A range that need not begin or end with a sector.
    fn byte_range(&mut self) -> (u64, u64) {
        let (offset, len) = self.range();
        if self.rng.percent(85) || self.model.pattern(offset, len).is_none() {
            return (offset, len);
        }
        let cut = self.rng.below(len.min(SECTOR));
        (offset + cut, len - cut - self.rng.below(len - cut))
    }

    fn value(&mut self) -> u8 {
        if self.rng.percent(8) { 0 } else { 1 + self.rng.below(255) as u8 }
    }

    fn write(&mut self, wait: Wait) {
        let (offset, len) = self.byte_range();
        self.separate(offset, len);
        let value = self.value();
        let fua = if self.rng.percent(10) { " -f" } else { "" };
        let lens = self.split(len);
        let command = match (wait, lens.len()) {
            (Wait::Later, _) => "aio_write",
            (Wait::Now, 1) if self.rng.percent(80) => "write",
            (Wait::Now, _) => "writev",
        };
        let lens = lens.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        self.put(&format!("{command}{fua} -P {value} {offset} {lens}"));
        self.model.fill(offset, len, value);
        if wait == Wait::Later {
            self.in_flight.push((offset, offset + len));
        }
    }

    /// Lengths of the buffers that a request is made of; whole sectors each but the last.
    fn split(&mut self, len: u64) -> Vec<u64> {
        let mut rest = len;
        let mut lens = Vec::new();
        while rest > SECTOR && lens.len() < 3 && self.rng.percent(25) {
            let piece = (1 + self.rng.below((rest - 1) / SECTOR)) * SECTOR;
            lens.push(piece);
            rest -= piece;
        }
        lens.push(rest);
        lens
    }

    fn zero(&mut self) {
        let (offset, len) = self.byte_range();
        let unmap = self.rng.percent(50);
        let wait = if self.rng.percent(40) { Wait::Later } else { Wait::Now };
        if unmap && self.side == Side::Theirs {
            // The reference loses data when an unmapping request meets a write in flight.
            self.settle();
        }
        self.separate(offset, len);
        let unmap_flag = if unmap { " -u" } else { "" };
        let command = if wait == Wait::Later { "aio_write" } else { "write" };
        self.put(&format!("{command} -z{unmap_flag} {offset} {len}"));
        self.model.fill(offset, len, 0);
        if wait == Wait::Later {
            self.in_flight.push((offset, offset + len));
            if unmap && self.side == Side::Theirs {
                self.settle();
            }
        }
    }

    fn discard(&mut self) {
        let (offset, len) = self.range();
        if self.side == Side::Theirs {
            self.settle();
        }
        self.separate(offset, len);
        self.put(&format!("discard {offset} {len}"));
        self.model.discard(offset, len);
    }

    fn read(&mut self) {
        let (offset, len) = self.range();
        // Shorter ranges have one pattern more often.
        let len = if self.rng.percent(60) { len.min(self.config.cluster) } else { len };
        self.separate(offset, len);
        let lens = self.split(len);
        let command = match lens.len() {
            1 => self.rng.pick(&["read", "aio_read", "readv"]),
            _ => self.rng.pick(&["aio_read", "readv"]),
        };
        let lens = lens.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        match self.model.pattern(offset, len) {
            Some(value) => self.put(&format!("{command} -P {value} {offset} {lens}")),
            None => self.put(&format!("{command} {offset} {lens}")),
        }
        if command == "aio_read" {
            // Nothing may change the range while it is read.
            self.in_flight.push((offset, offset + len));
        }
    }

    fn grow(&mut self) {
        let clusters = self.config.cluster / SECTOR;
        if self.config.may_grow() && self.model.size() < 2 * self.config.size {
            self.settle();
            let size = self.model.size() + (1 + self.rng.below(3 * clusters)) * SECTOR;
            self.put(&format!("truncate {size}"));
            self.model.resize(size);
        }
    }

    fn look(&mut self) {
        let (offset, len) = self.range();
        match self.rng.below(3) {
            0 => self.put(&format!("alloc {offset} {len}")),
            1 => self.put("map"),
            _ => self.put("length"),
        }
    }
}

/// Whether a command waits until its request is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Now,
    Later,
}
