//! Which range comes next, what has to be read of it, and what of it has to be written.

use std::sync::Arc;

use cowbell_block::buf::is_zero;
use cowbell_block::{Chain, ChainExtent, ExtentFlags, Node};

use super::NewBacking;
use crate::crew::{CACHED_BYTES_MAX, DATA_BYTES_MAX, ZERO_BYTES_MAX};
use crate::error::{Error, Result};
use crate::joined::{Joined, Way};
use crate::layers::is_same_place;

/// What a backing file has somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Zero,
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is to be done.
    Settled,
    /// It may read otherwise with the new backing file.
    Differs { old: Content, new: Content },
}

pub(super) type Piece = Joined<Kind>;

/// A chain of backing files, or none, as long as the overlay: behind its end there are zeroes.
struct Below {
    chain: Option<Chain>,
    /// What it means that it cannot be asked.
    failure: fn(u64, cowbell_block::Error) -> Error,
}

impl Below {
    /// What the beginning of `at..end` is.
    async fn ask(&self, at: u64, end: u64) -> Result<ChainExtent> {
        let zeroes =
            |len| ChainExtent { len, flags: ExtentFlags::ZERO | ExtentFlags::ALLOCATED, depth: 0, map: None };
        let Some(chain) = self.chain.as_ref().filter(|chain| at < chain.len()) else {
            return Ok(zeroes(end - at));
        };
        let most = end.min(chain.len()) - at;
        chain.status(at, most).await.map_err(|source| (self.failure)(at, source))
    }
}

/// The overlay, over its backing files: of what it has nothing of its own, they are compared.
pub(super) struct Layers {
    top: Chain,
    old: Below,
    /// Layers of `old` stop above the new backing file, which is among them: what none of them has stays.
    stops_above_new: bool,
    new: Below,
    grain: u64,
    /// From where one is to here the overlay has nothing of its own, as far as known.
    open_until: u64,
}

impl Layers {
    pub fn new(top: Arc<dyn Node>, new: NewBacking<'_>, grain: u64) -> Self {
        let old = top.backing();
        let above = old.clone().zip(new.below.as_ref()).and_then(|(old, new)| Chain::above(old, new));
        let stops_above_new = above.is_some();
        Self {
            old: Below {
                chain: above.or_else(|| old.map(Chain::of)),
                failure: |offset, source| Error::Read { offset, source },
            },
            stops_above_new,
            new: Below {
                chain: new.root.map(|root| Chain::of(root.node())),
                failure: |offset, source| Error::ReadNew { offset, source },
            },
            top: Chain::only(top),
            grain,
            open_until: 0,
        }
    }

    /// Most bytes of a range that is dealt with at once.
    pub fn most(grain: u64) -> impl Fn(Kind) -> u64 {
        move |kind| match kind {
            Kind::Settled => ZERO_BYTES_MAX,
            Kind::Differs { old, new } => {
                // The second is compared while the first is in the cache still.
                let both = old == Content::Data && new == Content::Data;
                let most = if both { CACHED_BYTES_MAX } else { DATA_BYTES_MAX };
                most.max(grain).min(DATA_BYTES_MAX)
            }
        }
    }

    /// To where `at..limit`, which reads from below, is of one kind.
    async fn compare(&self, at: u64, limit: u64) -> Result<(u64, Kind)> {
        let old = self.old.ask(at, limit).await?;
        if self.stops_above_new && !old.is_allocated() {
            return Ok((at + old.len, Kind::Settled));
        }
        let new = self.new.ask(at, at + old.len).await?;
        let content = |extent: &ChainExtent| if extent.is_zero() { Content::Zero } else { Content::Data };
        let kind = match (content(&old), content(&new)) {
            (Content::Zero, Content::Zero) => Kind::Settled,
            _ if old.map.as_ref().zip(new.map.as_ref()).is_some_and(|(a, b)| is_same_place(a, b)) => {
                Kind::Settled
            }
            (old, new) => Kind::Differs { old, new },
        };
        Ok((at + old.len.min(new.len), kind))
    }
}

impl Way for Layers {
    type Kind = Kind;

    async fn ask(&mut self, at: u64) -> Result<(u64, Kind)> {
        if self.open_until <= at {
            let extent = self.top.status(at, self.top.len() - at).await;
            let extent = extent.map_err(|source| Error::Status { offset: at, source })?;
            if extent.is_allocated() {
                return Ok((at + extent.len, Kind::Settled));
            }
            self.open_until = at + extent.len;
        }
        let limit = self.open_until;
        let (end, kind) = self.compare(at, limit).await?;
        // A cluster of the overlay is dealt with as a whole, also where the backing files have smaller ones.
        let whole = end - end % self.grain;
        if end == limit || whole == end {
            Ok((end, kind))
        } else if whole > at {
            Ok((whole, kind))
        } else {
            let end = (whole + self.grain).min(limit);
            Ok((end, Kind::Differs { old: Content::Data, new: Content::Data }))
        }
    }
}

/// What is to be done with a run of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Both read the same.
    Same,
    /// The old data is to be written.
    Data,
    /// Zeroes are to be written.
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub len: u64,
    pub kind: RunKind,
}

/// Compares what the backing files have at `offset`, grain by grain. `None` is zeroes.
pub(super) fn runs(old: Option<&[u8]>, new: Option<&[u8]>, offset: u64, len: u64, grain: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < len {
        let n = (grain - (offset + at) % grain).min(len - at);
        let part = at as usize..(at + n) as usize;
        let (old, new) = (old.map(|data| &data[part.clone()]), new.map(|data| &data[part]));
        let kind = match (old, new) {
            (None, None) => RunKind::Same,
            (None, Some(new)) if is_zero(new) => RunKind::Same,
            (None, Some(_)) => RunKind::Zero,
            (Some(old), None) if is_zero(old) => RunKind::Same,
            (Some(_), None) => RunKind::Data,
            (Some(old), Some(new)) if old == new => RunKind::Same,
            (Some(old), Some(_)) if is_zero(old) => RunKind::Zero,
            (Some(_), Some(_)) => RunKind::Data,
        };
        match runs.last_mut().filter(|last| last.kind == kind) {
            Some(last) => last.len += n,
            None => runs.push(Run { len: n, kind }),
        }
        at += n;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_what_is_to_be_written() {
        let mut old = [0u8; 64];
        let mut new = [0u8; 64];
        old[20..24].fill(1);
        new[20..24].fill(1);
        new[40] = 2;
        old[63] = 3;
        let run = |len, kind| Run { len, kind };
        let all = runs(Some(&old), Some(&new), 0, 64, 16);
        assert_eq!(all, [run(32, RunKind::Same), run(16, RunKind::Zero), run(16, RunKind::Data)]);
        // Inside a grain, the first one is shorter.
        let part = runs(Some(&old), Some(&new), 8, 64, 16);
        assert_eq!(part[..2], [run(40, RunKind::Same), run(16, RunKind::Zero)]);
        assert_eq!(
            runs(None, Some(&new), 0, 64, 16),
            [run(16, RunKind::Same), run(32, RunKind::Zero), run(16, RunKind::Same)]
        );
        assert_eq!(runs(Some(&old), None, 0, 64, 64), [run(64, RunKind::Data)]);
    }
}
