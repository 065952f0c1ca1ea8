//! The walk over the sources: which piece comes next, and of what kind it is.

use std::sync::Arc;

use cowbell_block::{ExtentFlags, Mapping, Node, Root};

use super::{OnReadError, Options, Part, Store, TargetStart};
use crate::crew::{DATA_BYTES_MAX, ZERO_BYTES_MAX};
use crate::error::{Error, Result};
use crate::layers::{self, Layered, Reach};
use crate::progress::Progress;

/// Clusters compressed for one piece: enough for all cores, and little memory with many pieces in flight.
const PACKED_TOGETHER: u64 = 8;
/// Sources count in sectors.
const SECTOR: u64 = 512;

/// The length of an image as a whole number of sectors.
pub(super) fn rounded(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}

/// What a piece is.
#[derive(Debug)]
pub(super) enum Kind {
    /// To be read; with the place where the bytes lie, if they lie somewhere as they are.
    Data(Option<Mapping>),
    /// Zeroes.
    Zero,
    /// The target's backing file supplies it.
    Backing,
}

/// A range of one source and its place in the target.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) source: usize,
    pub(super) source_offset: u64,
    pub(super) target_offset: u64,
    pub(super) len: u64,
    pub(super) kind: Kind,
}

pub(super) struct Walk {
    nodes: Vec<Arc<dyn Node>>,
    start: TargetStart,
    on_error: OnReadError,
    /// Pieces are whole multiples of this in the target, but for the last one; 1 where that does not matter.
    unit: u64,
    /// Bytes that are copied, after so many that are not.
    total: u64,
    skipped: u64,
    source: usize,
    /// Position in the current source.
    at: u64,
    /// Where the current source begins among all of them.
    base: u64,
    /// What is known about the range from `at` on.
    known: Option<Known>,
    number: u64,
}

struct Known {
    end: u64,
    kind: KnownKind,
}

enum KnownKind {
    Data(Option<Mapping>),
    Zero,
    Backing,
}

impl Walk {
    pub(super) fn new(sources: &[Root], options: &Options) -> Self {
        let nodes = sources.iter().map(Root::node).collect();
        let unit = match options.store {
            Store::Plain => 1,
            Store::Compressed { cluster } => cluster,
        };
        let all = Part { offset: 0, len: super::total_len(sources) };
        let Part { offset: skipped, len: total } = options.part.unwrap_or(all);
        Self {
            nodes,
            start: options.start,
            on_error: options.on_read_error,
            unit,
            total,
            skipped,
            source: 0,
            at: skipped,
            base: 0,
            known: None,
            number: 0,
        }
    }

    /// The next piece with its number, counted from 0.
    pub(super) async fn next(&mut self, progress: &dyn Progress) -> Result<Option<(u64, Piece)>> {
        while self.source < self.nodes.len() {
            let len = rounded(self.nodes[self.source].len());
            if self.at < len {
                let ends = self.target_offset() >= self.total;
                return if ends { Ok(None) } else { self.piece(len, progress).await.map(Some) };
            }
            self.base += len;
            self.source += 1;
            // A cluster may have taken in the beginning of the next source.
            self.at -= len;
            self.known = None;
        }
        Ok(None)
    }

    /// Where the current position comes in the target.
    fn target_offset(&self) -> u64 {
        self.base + self.at - self.skipped
    }

    async fn piece(&mut self, len: u64, progress: &dyn Progress) -> Result<(u64, Piece)> {
        if self.known.as_ref().is_none_or(|known| known.end <= self.at) {
            self.known = Some(self.ask(len, progress).await?);
        }
        let known = self.known.as_ref().expect("asked just now");
        let target_offset = self.target_offset();
        let left = (known.end - self.at).min(self.total - target_offset);
        let (mut len, mut kind) = match &known.kind {
            KnownKind::Data(map) => {
                // Cut at multiples of the step, so that later pieces are aligned whatever the first one was.
                let most = match self.unit {
                    1 => DATA_BYTES_MAX,
                    unit => (unit * PACKED_TOGETHER).min(DATA_BYTES_MAX),
                };
                let step = most - target_offset % most;
                (left.min(step), Kind::Data(map.clone()))
            }
            KnownKind::Zero => (left.min(ZERO_BYTES_MAX), Kind::Zero),
            KnownKind::Backing => (left.min(ZERO_BYTES_MAX), Kind::Backing),
        };
        if len < self.unit {
            // Less than a cluster of one kind: the whole cluster is data, whichever sources it comes from.
            len = self.unit.min(self.total - target_offset);
            kind = Kind::Data(None);
        } else {
            len -= len % self.unit;
        }
        let piece = Piece { source: self.source, source_offset: self.at, target_offset, len, kind };
        self.at += len;
        if let Some(Known { kind: KnownKind::Data(Some(map)), .. }) = &mut self.known {
            map.offset += len;
        }
        self.number += 1;
        Ok((self.number - 1, piece))
    }

    async fn ask(&self, len: u64, progress: &dyn Progress) -> Result<Known> {
        let node = &self.nodes[self.source];
        let real = node.len();
        if self.at >= real {
            // The rest of the last sector.
            return Ok(Known { end: len, kind: KnownKind::Zero });
        }
        let backing = match self.start {
            TargetStart::Backing { len } => Some(len),
            _ => None,
        };
        let reach = if backing.is_some() { Reach::Top } else { Reach::Chain };
        let mut most = real - self.at;
        let target_offset = self.target_offset();
        if let Some(backing) = backing
            && target_offset < backing
        {
            // Zeroes mean one thing above the target's backing file and another behind its end.
            most = most.min(backing - target_offset);
        }
        let Some(extent) = self.status(reach, most, progress).await? else {
            // Whoever reads it says what is lost.
            return Ok(Known { end: self.at + SECTOR.min(most), kind: KnownKind::Data(None) });
        };
        let below_backing = backing.is_some_and(|backing| target_offset < backing);
        let decided = extent.flags.contains(ExtentFlags::ALLOCATED);
        let kind = if extent.flags.contains(ExtentFlags::ZERO) {
            KnownKind::Zero
        } else if decided {
            KnownKind::Data(extent.map)
        } else if below_backing {
            KnownKind::Backing
        } else {
            KnownKind::Data(None)
        };
        Ok(Known { end: self.at + extent.len, kind })
    }

    /// What lies at the current position, for at most `most` bytes; `None` if that cannot be known of its first sector,
    /// and is to be salvaged.
    async fn status(&self, reach: Reach, mut most: u64, progress: &dyn Progress) -> Result<Option<Layered>> {
        let node = &self.nodes[self.source];
        loop {
            match (layers::status(node, reach, self.at, most).await, self.on_error) {
                (Ok(extent), _) => return Ok(Some(extent)),
                (Err(source), OnReadError::Stop) => {
                    return Err(Error::Status { offset: self.target_offset(), source });
                }
                (Err(error), OnReadError::Salvage) if most <= SECTOR => {
                    progress.status_unknown(self.target_offset(), &error);
                    return Ok(None);
                }
                // What cannot be told may lie further on.
                (Err(_), OnReadError::Salvage) => most = rounded(most.div_ceil(4)).min(most - 1),
            }
        }
    }
}
