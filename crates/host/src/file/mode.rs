//! The cache mode that an open file is in, and what that asks of requests. It changes while the file stays open.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use cowbell_block::{CacheMode, Limits};

use crate::file::probe::Alignment;

const DIRECT: u8 = 1;
const NO_FLUSH: u8 = 1 << 1;
const WRITE_THROUGH: u8 = 1 << 2;

/// What requests look at; changed only while there are none.
pub(crate) struct Mode {
    bits: AtomicU8,
    /// In bytes; 1 when any place will do.
    request_alignment: AtomicU32,
    /// In bytes; 1 when any place will do.
    memory_alignment: AtomicU32,
}

impl Mode {
    pub(crate) fn new(cache: CacheMode, alignment: Option<Alignment>) -> Self {
        let mode = Self {
            bits: AtomicU8::new(0),
            request_alignment: AtomicU32::new(1),
            memory_alignment: AtomicU32::new(1),
        };
        mode.set(cache, alignment);
        mode
    }

    /// Puts another mode in force.
    pub(crate) fn set(&self, cache: CacheMode, alignment: Option<Alignment>) {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let bits = bit(cache.direct, DIRECT)
            | bit(cache.no_flush, NO_FLUSH)
            | bit(cache.write_through, WRITE_THROUGH);
        let alignment = alignment.unwrap_or(Alignment { request: 1, memory: 1 });
        self.request_alignment.store(alignment.request, Ordering::Relaxed);
        self.memory_alignment.store(alignment.memory, Ordering::Relaxed);
        self.bits.store(bits, Ordering::Release);
    }

    fn has(&self, bit: u8) -> bool {
        self.bits.load(Ordering::Relaxed) & bit != 0
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.has(DIRECT)
    }

    pub(crate) fn ignores_flush(&self) -> bool {
        self.has(NO_FLUSH)
    }

    pub(crate) fn writes_through(&self) -> bool {
        self.has(WRITE_THROUGH)
    }

    /// Offsets and lengths are multiples of this.
    pub(crate) fn request_alignment(&self) -> u32 {
        self.request_alignment.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.request_alignment(),
            memory_alignment: self.memory_alignment.load(Ordering::Relaxed),
            ..Limits::default()
        }
    }
}
