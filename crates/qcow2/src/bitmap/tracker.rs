//! Which bitmaps record, and what changed since they were stored.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::{Buf, Result, mutant};
use parking_lot::Mutex;

use super::directory::{self, Entry, Flags};
use super::dirty::DirtySet;
use crate::engine::{Engine, NO_CAUSE};
use crate::geometry::HostOffset;
use crate::state::Need;

/// Most bytes of memory for what changed; beyond it the bitmaps are stored. At 64 KiB granularity that is 4 TiB of
/// writes in random places.
const DIRTY_BYTES_MAX: usize = 8 << 20;

/// What a change of the disk has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Nothing: no bitmap records.
    Off = 0,
    /// To wait until the bitmaps are marked in use.
    Armed = 1,
    /// To be noted.
    Live = 2,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Tracker {
    mode: AtomicU8,
    crowded: AtomicBool,
    /// One marks the bitmaps, the others find them marked.
    marking: RangeLock,
    noted: Mutex<Noted>,
}

/// What changed, and for whom it is kept.
#[derive(Default)]
pub(super) struct Noted {
    /// The bitmaps that record, without their names.
    pub recording: Vec<Entry>,
    /// Log2 of the bytes of a bit of `dirty`: the finest of them.
    pub granularity_bits: u32,
    pub dirty: DirtySet,
}

impl Tracker {
    /// What a change has to do. Asked for while its guest range is held: the mode changes only under the whole
    /// disk's lock, and from armed to live.
    #[inline]
    pub fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Off,
            1 => Mode::Armed,
            _ => Mode::Live,
        }
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Whether so much is noted that the bitmaps should be stored before more comes.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Notes a change of the disk. The bitmaps are live, and the guest range is held.
    pub fn note(&self, bytes: Range<u64>) {
        assert!(self.mode() == Mode::Live, "marked in use before the disk changes");
        let mut noted = self.noted.lock();
        let grain = noted.granularity_bits;
        noted.dirty.insert(bytes.start >> grain..bytes.end.div_ceil(1 << grain));
        if noted.dirty.bytes() > DIRTY_BYTES_MAX {
            self.crowded.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a bitmap that is marked in use was marked here.
    pub(super) fn is_ours(&self, entry: &Entry) -> bool {
        self.mode() == Mode::Live && self.noted.lock().recording.iter().any(|known| known.at == entry.at)
    }

    /// Takes what is noted; it is put back by [`Tracker::put_back`] or forgotten.
    pub(super) fn take(&self) -> Noted {
        std::mem::take(&mut *self.noted.lock())
    }

    pub(super) fn put_back(&self, noted: Noted) {
        *self.noted.lock() = noted;
    }

    /// Starts anew with these bitmaps.
    pub(super) fn restart(&self, recording: Vec<Entry>) {
        let granularity_bits = recording.iter().map(|entry| entry.granularity_bits).min().unwrap_or_default();
        self.set_mode(if recording.is_empty() { Mode::Off } else { Mode::Armed });
        self.crowded.store(false, Ordering::Relaxed);
        self.put_back(Noted { recording, granularity_bits, dirty: DirtySet::default() });
    }
}

impl Engine {
    /// Notes that a range is about to change, whose clusters the caller holds. The first time, bitmaps are marked in
    /// use, durably.
    ///
    /// # Errors
    /// The file's, or what made the image unusable while the change waited for its turn; then nothing may change.
    pub(crate) async fn note_change(self: &Arc<Self>, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        if self.bitmaps.mode() == Mode::Armed {
            self.mark_bitmaps().await?;
        }
        if self.bitmaps.mode() == Mode::Live {
            self.bitmaps.note(offset..offset + len);
        }
        Ok(())
    }

    async fn mark_bitmaps(self: &Arc<Self>) -> Result<()> {
        let _turn = self.bitmaps.marking.lock(0..1, LockMode::Exclusive).await;
        if self.bitmaps.mode() != Mode::Armed {
            return Ok(());
        }
        // Finds a directory that overlaps with other metadata before it is written to.
        self.satisfy(Need::Meta, NO_CAUSE).await?;
        if !mutant::is_active("bitmaps-not-marked") {
            let places: Vec<HostOffset> =
                self.bitmaps.noted.lock().recording.iter().map(Entry::flags_at).collect();
            for place in places {
                self.write_bitmap_flags(place, Flags::IN_USE | Flags::AUTO).await?;
            }
            self.barrier().await?;
        }
        self.bitmaps.set_mode(Mode::Live);
        Ok(())
    }

    /// Writes the flags of a directory entry: four bytes in one sector. Not durable before the next barrier.
    pub(super) async fn write_bitmap_flags(self: &Arc<Self>, place: HostOffset, flags: Flags) -> Result<()> {
        let written = self.file.write(place.0, Buf::copy_of(&flags.bits().to_be_bytes())).await;
        written.map_err(|e| self.write_failed(e))
    }

    /// Learns from the file which bitmaps record. At a writable open, and after each change of the directory; the
    /// caller holds the whole disk.
    pub(crate) async fn track_bitmaps(self: &Arc<Self>) -> Result<()> {
        let header = self.state.lock().header.clone();
        let mut recording = Vec::new();
        directory::scan(&self.file, &header, &self.geometry, |entry| {
            if entry.flags == Flags::AUTO {
                recording.push(Entry { name: Vec::new(), ..entry });
            }
        })
        .await?;
        self.bitmaps.restart(recording);
        Ok(())
    }
}
