//! Neighbouring ranges of one kind, joined.

use crate::error::Result;

/// A way along a disk, on which ranges are of some kind.
pub(crate) trait Way {
    /// The kinds.
    type Kind: Copy + PartialEq;

    /// The end of the range that `at` lies in, and its kind.
    ///
    /// # Errors
    /// It cannot be known.
    async fn ask(&mut self, at: u64) -> Result<(u64, Self::Kind)>;
}

/// A range of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined<K> {
    pub offset: u64,
    pub len: u64,
    pub kind: K,
}

/// Where one is on a way.
pub(crate) struct Walk<W: Way> {
    way: W,
    /// Length of the way.
    total: u64,
    at: u64,
    /// What is known about the range from `at` on: its end and kind.
    known: Option<(u64, W::Kind)>,
}

impl<W: Way> Walk<W> {
    /// From the beginning of a way of this length.
    pub fn new(way: W, total: u64) -> Self {
        Self { way, total, at: 0, known: None }
    }

    /// The next range, of as many neighbours of one kind as there are; `None` at the end. It ends at a multiple of
    /// `most(kind)` bytes at the latest, so that what follows is aligned whatever was before.
    ///
    /// # Errors
    /// As [`Way::ask`].
    pub async fn next(&mut self, most: impl FnOnce(W::Kind) -> u64) -> Result<Option<Joined<W::Kind>>> {
        let offset = self.at;
        if offset >= self.total {
            return Ok(None);
        }
        let (mut end, kind) = self.known().await?;
        let most = most(kind);
        let limit = (offset - offset % most).saturating_add(most).min(self.total);
        loop {
            self.at = end.min(limit);
            if self.at == limit {
                break;
            }
            match self.known().await? {
                (further, same) if same == kind => end = further,
                _ => break,
            }
        }
        Ok(Some(Joined { offset, len: self.at - offset, kind }))
    }

    async fn known(&mut self) -> Result<(u64, W::Kind)> {
        if let Some(known) = self.known.filter(|(end, _)| *end > self.at) {
            return Ok(known);
        }
        let known = self.way.ask(self.at).await?;
        Ok(*self.known.insert(known))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Ranges by their ends.
    struct Listed(&'static [(u64, char)]);

    impl Way for Listed {
        type Kind = char;

        async fn ask(&mut self, at: u64) -> Result<(u64, char)> {
            Ok(*self.0.iter().find(|(end, _)| *end > at).expect("the way is long enough"))
        }
    }

    fn walked(list: &'static [(u64, char)], most: u64) -> Vec<(u64, u64, char)> {
        let mut walk = Walk::new(Listed(list), list[list.len() - 1].0);
        let mut all = Vec::new();
        while let Poll::Ready(Ok(Some(next))) =
            pin!(walk.next(|_| most)).poll(&mut Context::from_waker(Waker::noop()))
        {
            all.push((next.offset, next.len, next.kind));
        }
        all
    }

    #[test]
    fn neighbours_of_one_kind_are_joined_up_to_a_multiple() {
        let list = &[(3, 'a'), (5, 'a'), (6, 'b'), (7, 'a'), (30, 'a')];
        assert_eq!(walked(list, 100), [(0, 5, 'a'), (5, 1, 'b'), (6, 24, 'a')]);
        assert_eq!(
            walked(list, 8),
            [(0, 5, 'a'), (5, 1, 'b'), (6, 2, 'a'), (8, 8, 'a'), (16, 8, 'a'), (24, 6, 'a')]
        );
    }
}
