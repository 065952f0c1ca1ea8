//! What is told of requests that pass an edge.

use super::Child;
use crate::request::{Flags, Operation, Request};
use crate::trace::{TraceEvent, Word};

/// The field's number for a write of zeroes.
const ZERO_WRITE: u64 = 0x2;

/// A request's modifiers as the field numbers them.
fn numbered(request: &Request) -> u64 {
    let names = [
        (Flags::MAY_UNMAP, 0x4),
        (Flags::FUA, 0x10),
        (Flags::COMPRESSED, 0x20),
        (Flags::WRITE_UNCHANGED, 0x40),
        (Flags::SERIALISING, 0x80),
        (Flags::NO_FALLBACK, 0x100),
        (Flags::PREFETCH, 0x200),
    ];
    let set = names.iter().filter(|(flag, _)| request.flags.contains(*flag)).map(|(_, number)| number).sum();
    if matches!(request.op, Operation::WriteZeroes) { ZERO_WRITE | set } else { set }
}

impl Child {
    /// Tells of a request that a user of the graph sends, by the user's number.
    pub(super) fn tell_of_user(&self, user: u64, request: &Request) {
        let target = self.0.target.read();
        let Some(trace) = &target.trace else { return };
        let event = match request.op {
            Operation::Read => TraceEvent::BlkCoPreadv,
            Operation::Write | Operation::WriteZeroes => TraceEvent::BlkCoPwritev,
            _ => return,
        };
        let node = target.node.identity();
        trace.tell(event, &[user, node, request.offset, request.len, numbered(request)].map(Word::Number));
    }

    /// Tells of a write of zeroes that a driver, not a user, sends to its child.
    pub(super) fn tell_of_zeroes(&self, request: &Request) {
        if matches!(request.op, Operation::WriteZeroes) {
            let flags = numbered(request) & !ZERO_WRITE;
            let node = self.node().identity();
            let words = [node, request.offset, request.len, flags].map(Word::Number);
            self.tell(TraceEvent::BdrvCoPwriteZeroes, &words);
        }
    }

    /// Tells of a request on its way to the child's node.
    pub(super) fn tell_of_request(&self, request: &Request) {
        let target = self.0.target.read();
        let Some(trace) = &target.trace else { return };
        let (node, flags) = (target.node.identity(), numbered(request));
        let event = match &request.op {
            Operation::Read => TraceEvent::BdrvCoPreadvPart,
            Operation::Write | Operation::WriteZeroes => TraceEvent::BdrvCoPwritevPart,
            Operation::CopyFrom { source, source_offset } => {
                let ends = [source.identity(), *source_offset, node, request.offset];
                let [from, from_offset, to, to_offset] = ends;
                let words = [from, from_offset, to, to_offset, request.len, 0, flags].map(Word::Number);
                trace.tell(TraceEvent::BdrvCoCopyRangeFrom, &words);
                trace.tell(TraceEvent::BdrvCoCopyRangeTo, &words);
                return;
            }
            _ => return,
        };
        trace.tell(event, &[node, request.offset, request.len, flags].map(Word::Number));
    }
}
