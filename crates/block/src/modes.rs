//! Discards that are ignored, and writes of zeroes that are detected.
//!
//! These are modes of a node, given when it is opened. A driver that has them keeps a [`Modes`] and passes each
//! request through [`Modes::shape`] first.

use std::ops::ControlFlow;

use crate::context::OpenContext;
use crate::options::{DetectZeroes, DiscardMode};
use crate::request::{Flags, Op, Operation, Request};

/// The modes of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Whether discards reach the node.
    pub discard: DiscardMode,
    /// What becomes of writes of zeroes.
    pub detect_zeroes: DetectZeroes,
}

impl Modes {
    /// The modes that a node is opened with.
    pub fn of(cx: &OpenContext) -> Self {
        Self { discard: cx.discard, detect_zeroes: cx.detect_zeroes }
    }

    /// Whether every request stays as it is.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// Changes a request as the modes say, or answers it.
    ///
    /// A write that becomes a write of zeroes keeps its buffers, for the completion to hand back.
    pub fn shape(self, mut request: Request) -> ControlFlow<Op, Request> {
        match (&request.op, self.discard) {
            (Operation::Discard, DiscardMode::Ignore) => return ControlFlow::Break(Op::done(request.bufs)),
            (Operation::WriteZeroes, DiscardMode::Ignore) => request.flags.remove(Flags::MAY_UNMAP),
            (Operation::Write, _) if self.detect_zeroes != DetectZeroes::Off => {
                let compressed = request.flags.contains(Flags::COMPRESSED);
                if !compressed && request.len > 0 && request.bufs.is_zero() {
                    request.op = Operation::WriteZeroes;
                    request.flags.set(Flags::MAY_UNMAP, self.detect_zeroes == DetectZeroes::Unmap);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Buf;

    fn shape(modes: Modes, request: Request) -> Option<(&'static str, Flags, u64)> {
        match modes.shape(request) {
            ControlFlow::Break(_) => None,
            ControlFlow::Continue(r) => Some((r.op.name(), r.flags, r.bufs.len() as u64)),
        }
    }

    #[test]
    fn ignored_discards_are_done_at_once() {
        let modes = Modes { discard: DiscardMode::Ignore, ..Modes::default() };
        assert_eq!(shape(modes, Request::discard(0, 512)), None);
        let zeroes = Request::write_zeroes(0, 512).with_flags(Flags::MAY_UNMAP | Flags::FUA);
        assert_eq!(shape(modes, zeroes), Some(("write-zeroes", Flags::FUA, 0)));
    }

    #[test]
    fn zeroes_are_detected() {
        let modes = Modes { detect_zeroes: DetectZeroes::Unmap, ..Modes::default() };
        let write = Request::write(0, Buf::zeroed(512)).with_flags(Flags::FUA);
        assert_eq!(shape(modes, write), Some(("write-zeroes", Flags::FUA | Flags::MAY_UNMAP, 512)));
        let write = Request::write(0, Buf::copy_of(&[0, 1]));
        assert_eq!(shape(modes, write), Some(("write", Flags::empty(), 2)));
    }
}
