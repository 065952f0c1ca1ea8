//! What is told when a node is opened.

use std::sync::Arc;

use crate::context::OpenContext;
use crate::node::{Access, Node};
use crate::options::{AioMode, DiscardMode};
use crate::registry::{Driver, Role};
use crate::trace::{Trace, TraceEvent, Word};

/// The field's numbers of modes.
mod mode {
    pub const READ_WRITE: u64 = 0x2;
    pub const NO_PAGE_CACHE: u64 = 0x20;
    pub const NATIVE_AIO: u64 = 0x80;
    pub const NO_BACKING: u64 = 0x100;
    pub const NO_FLUSH: u64 = 0x200;
    pub const CHECK: u64 = 0x1000;
    pub const MAY_WRITE: u64 = 0x2000;
    pub const UNMAP: u64 = 0x4000;
    pub const PROTOCOL: u64 = 0x8000;
    pub const NO_IO: u64 = 0x10000;
    pub const IO_URING: u64 = 0x40000;
}

/// The line about a node, once it is there.
pub(super) struct Told {
    trace: Trace,
    flags: u64,
}

impl Told {
    /// Tells of the node. The reference does so before it opens; then the node has no number yet.
    pub fn tell(&self, node: &dyn Node) {
        let words = [
            Word::Number(node.identity()),
            Word::Name(&node.filename()),
            Word::Number(self.flags),
            Word::Name(node.driver()),
            Word::Name(""),
        ];
        self.trace.tell(TraceEvent::BdrvOpenCommon, &words);
    }
}

/// What is to be told of a node that `driver` opens, if anything.
pub(super) fn told(cx: &OpenContext, driver: &Arc<dyn Driver>) -> Option<Told> {
    let trace = cx.trace.clone().filter(|trace| trace.is_on(TraceEvent::BdrvOpenCommon))?;
    let mut flags = cx.told_modes.unwrap_or_default();
    if cx.access == Access::ReadWrite {
        flags |= mode::READ_WRITE;
    }
    match driver.role() {
        Role::Protocol => flags |= mode::PROTOCOL,
        _ if cx.no_io => flags |= mode::NO_IO | mode::NO_BACKING,
        _ if cx.no_backing => flags |= mode::NO_BACKING,
        _ => {}
    }
    Some(Told { trace, flags })
}

/// The modes that an image and all below it share.
pub(super) fn shared_modes(cx: &OpenContext) -> u64 {
    let of = |is: bool, mode: u64| if is { mode } else { 0 };
    of(cx.access == Access::ReadWrite, mode::MAY_WRITE)
        | of(cx.discard == DiscardMode::Unmap, mode::UNMAP)
        | of(cx.cache.direct, mode::NO_PAGE_CACHE)
        | of(cx.cache.no_flush, mode::NO_FLUSH)
        | of(cx.aio == AioMode::Native, mode::NATIVE_AIO)
        | of(cx.aio == AioMode::IoUring, mode::IO_URING)
        | of(cx.for_check, mode::CHECK)
}
