//! Which of several answers counts.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::buf::Bufs;
use crate::error::{Error, Result};
use crate::request::{BoxFuture, Completion, Op};

/// What one child answered.
pub(super) type Answer = Result<Bufs>;

/// The index of the content that most children gave, how many gave it, and the children that gave another.
///
/// Of contents with the same number of votes the one that came up last wins, as with the reference. `None`: nobody
/// answered.
pub(super) fn elect(answers: &[Answer]) -> Option<(usize, usize, Vec<usize>)> {
    let mut versions: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, bufs) in answers.iter().enumerate().filter_map(|(index, a)| Some((index, a.as_ref().ok()?))) {
        let same = |(first, _): &&mut (usize, Vec<usize>)| match &answers[*first] {
            Ok(other) => first_difference(other, bufs).is_none(),
            Err(_) => false,
        };
        match versions.iter_mut().find(same) {
            Some((_, voters)) => voters.push(index),
            None => versions.push((index, vec![index])),
        }
    }
    // `max_by_key` takes the last of equals.
    let winner = versions.iter().enumerate().max_by_key(|(_, (_, voters))| voters.len())?.0;
    let (first, voters) = versions.swap_remove(winner);
    let mut outvoted: Vec<usize> = versions.into_iter().flat_map(|(_, voters)| voters).collect();
    outvoted.sort_unstable();
    Some((first, voters.len(), outvoted))
}

/// The error that most children gave; of several the one that came up last. `None`: nobody failed.
pub(super) fn main_error(answers: &[Answer]) -> Option<Error> {
    let mut kinds: Vec<(&Error, usize)> = Vec::new();
    for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        match kinds.iter_mut().find(|(known, _)| known.errno() == error.errno()) {
            Some((_, count)) => *count += 1,
            None => kinds.push((error, 1)),
        }
    }
    kinds.into_iter().max_by_key(|(_, count)| *count).map(|(error, _)| error.duplicate())
}

/// Where two contents of one length differ first.
pub(super) fn first_difference(a: &Bufs, b: &Bufs) -> Option<u64> {
    let (a, b) = (bytes(a), bytes(b));
    if a == b {
        return None;
    }
    let at = a.iter().zip(b.iter()).position(|(x, y)| x != y);
    Some(at.unwrap_or(a.len().min(b.len())) as u64)
}

/// The bytes of an answer, which is in one piece unless a child replaced its buffers.
fn bytes(bufs: &Bufs) -> std::borrow::Cow<'_, [u8]> {
    match bufs.pieces() {
        [] => std::borrow::Cow::Borrowed(&[]),
        [piece] => std::borrow::Cow::Borrowed(&piece[..]),
        _ => std::borrow::Cow::Owned(bufs.to_contiguous().to_vec()),
    }
}

/// All of these, side by side.
pub(super) fn all_of(ops: Vec<Op>) -> All {
    let part = |op| match op {
        Op::Done(completion) => Part::Done(Some(completion)),
        Op::Wait(future) => Part::Waits(future),
    };
    All { parts: ops.into_iter().map(part).collect() }
}

/// The future of [`all_of`].
pub(super) struct All {
    parts: Vec<Part>,
}

enum Part {
    Waits(BoxFuture<Completion>),
    Done(Option<Completion>),
}

impl Future for All {
    type Output = Vec<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<Answer>> {
        let mut waits = false;
        for part in &mut self.parts {
            if let Part::Waits(future) = part {
                match future.as_mut().poll(cx) {
                    Poll::Ready(completion) => *part = Part::Done(Some(completion)),
                    Poll::Pending => waits = true,
                }
            }
        }
        if waits {
            return Poll::Pending;
        }
        let taken = self.parts.iter_mut().map(|part| match part {
            Part::Done(completion) => completion.take().expect("not polled after completion").into_bufs(),
            Part::Waits(_) => unreachable!("nothing waits"),
        });
        Poll::Ready(taken.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;

    fn answers(list: &[i32]) -> Vec<Answer> {
        let answer = |n: &i32| match n {
            0.. => Ok(Bufs::from(Buf::copy_of(&[*n as u8; 4]))),
            _ => Err(Error::from_errno(-n)),
        };
        list.iter().map(answer).collect()
    }

    #[test]
    fn the_most_given_content_wins_and_the_last_of_equals() {
        for (list, expect) in [
            (&[1, 1, 1][..], Some((0, 3, vec![]))),
            (&[1, 2, 1], Some((0, 2, vec![1]))),
            (&[0, 1, 2], Some((2, 1, vec![0, 1]))),
            (&[2, 1, 1, 2], Some((1, 2, vec![0, 3]))),
            (&[-5, 1, -5], Some((1, 1, vec![]))),
            (&[-5, -6], None),
        ] {
            assert_eq!(elect(&answers(list)), expect, "{list:?}");
        }
    }

    #[test]
    fn errors_vote_too() {
        for (list, errno) in [(&[-28, -28, -27, 1][..], 28), (&[1, -28, -27], 27), (&[-28], 28)] {
            assert_eq!(main_error(&answers(list)).map(|e| e.errno()), Some(errno), "{list:?}");
        }
        assert!(main_error(&answers(&[1, 2])).is_none());
    }
}
