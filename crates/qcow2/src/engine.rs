//! The engine's shared parts: what is open, who waits for whom, and what happens to abandoned work.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bitflags::bitflags;
use cowbell_block::context::Clock;
use cowbell_block::orphans::{Abandoned, Orphans};
use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::{Buf, Cause, Child, Completion, Error, ErrorKind, Op, Result, Spawner, mutant};
use parking_lot::Mutex;

use crate::bitmap::Tracker;
use crate::crypto::Crypto;
use crate::geometry::{DataPlace, Geometry};
use crate::header::{Header, Incompatible};
use crate::pack::Packers;
use crate::state::{Corruption, State};
use crate::window::Window;

/// Called with a line for people when something noteworthy happens to an image.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// What the image's user gave the engine besides the image.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub notice: Option<Notice>,
    pub cleaning: Option<Cleaning>,
    /// The way to all cores.
    pub spawn: Option<Spawner>,
    /// Most bytes of counts that an operation on the whole image keeps.
    pub work_bytes: u64,
    /// How guest data is encrypted.
    pub crypto: Option<Arc<Crypto>>,
}

/// Usual bytes of counts that an operation on the whole image keeps: 512 GiB of clusters of the usual size are gone
/// through at once.
pub(crate) const WORK_BYTES: u64 = 16 << 20;

/// When slices of tables that nobody used for a while are forgotten.
#[derive(Clone)]
pub struct Cleaning {
    /// Tells the time.
    pub clock: Clock,
    /// How long a slice may lie unused, in seconds.
    pub every_secs: u64,
}

/// An open image.
pub(crate) struct Engine {
    pub file: Child,
    pub backing: Option<Child>,
    /// The guest's data, if it lies in a file of its own.
    pub data_file: Option<Child>,
    /// The image was opened for its metadata only: there is no such file here.
    pub lacks_data: bool,
    /// The image's form was changed: what is known of it here is out of date.
    pub retired: AtomicBool,
    pub geometry: Geometry,
    pub state: Mutex<State>,
    /// Guest clusters: shared by overwrites in place, exclusive for everything that changes a mapping.
    pub ranges: RangeLock,
    /// One flush at a time.
    pub flushing: RangeLock,
    /// One flush of the files at a time: one that fails may have dropped what the next would then call durable.
    pub barriers: RangeLock,
    /// One write-back of refcounts at a time.
    pub refcounting: RangeLock,
    pub loading: Loading,
    pub bitmaps: Tracker,
    pub packers: Packers,
    /// Bytes that the file had when it was opened.
    pub opened_len: u64,
    /// The piece of an L2 table that was read last for a long range.
    pub window: Mutex<Option<Window>>,
    /// Whether the file may have holes below data; found out when it is asked for, see `hollow`.
    pub preallocated: OnceLock<bool>,
    pub writable: AtomicBool,
    pub closed: AtomicBool,
    /// A flush failed: what is durable is unknown until the image is opened again.
    pub poisoned: AtomicBool,
    /// Metadata is broken; the corrupt bit is set.
    pub corrupt: AtomicBool,
    /// Somebody was told of corruption that does not end the use of the image: once is enough.
    pub corruption_told: AtomicBool,
    pub around: Surroundings,
    /// Shared with the views of snapshots.
    views: Arc<()>,
    /// This engine shows a snapshot; its children belong to the disk's engine.
    pub is_view: bool,
    /// Mutations that nobody waits for any more.
    pub orphans: Orphans,
}

/// Queues for things that are loaded or made once.
#[derive(Default)]
pub(crate) struct Loading {
    pub l1: RangeLock,
    pub l2: RangeLock,
    pub reftable: RangeLock,
    pub refblock: RangeLock,
    pub meta: RangeLock,
    pub tables: RangeLock,
    pub grow: RangeLock,
    pub header: RangeLock,
}

bitflags! {
    /// What happens to the storage of clusters that are no longer needed: free for reuse in the image in any
    /// case, and given back to the host where a bit says so.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Discards: u8 {
        /// Given back when the guest discards it (`pass-discard-request`).
        const REQUEST = 1;
        /// Given back when a snapshot that held it is deleted (`pass-discard-snapshot`).
        const SNAPSHOT = 1 << 1;
        /// Given back when it is replaced for any other reason (`pass-discard-other`).
        const OTHER = 1 << 2;
        /// Discarded clusters keep their storage and read as zeroes (`discard-no-unref`).
        const NO_UNREF = 1 << 3;
    }
}

impl Default for Discards {
    fn default() -> Self {
        Self::SNAPSHOT
    }
}

/// Why clusters lose a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The guest asked for it.
    Discarded,
    /// A snapshot was deleted.
    WithSnapshot,
    /// They were replaced, or a table moved.
    Replaced,
    /// They lie beyond the new end of the disk.
    CutOff,
}

impl Discards {
    /// Whether storage dropped for this reason goes back to the host.
    pub(crate) fn passes(self, why: Dropped) -> bool {
        match why {
            Dropped::Discarded => self.contains(Self::REQUEST),
            Dropped::WithSnapshot => self.contains(Self::SNAPSHOT),
            Dropped::Replaced => self.contains(Self::OTHER),
            Dropped::CutOff => true,
        }
    }
}

/// The image cannot be used any more.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("the image was closed")]
    Closed,
    #[error("an earlier flush failed; open the image again")]
    Poisoned,
    #[error("the image is marked corrupt")]
    Corrupt,
    #[error("the image was given another form; open it again")]
    Retired,
    #[error("the image was opened without its external data file")]
    MetadataOnly,
}

impl Engine {
    pub fn new(
        file: Child,
        backing: Option<Child>,
        data_file: Option<Child>,
        state: State,
        around: Surroundings,
    ) -> Self {
        Self {
            opened_len: file.len(),
            file,
            backing,
            lacks_data: state.geometry.data_place == DataPlace::External && data_file.is_none(),
            data_file,
            geometry: state.geometry,
            state: Mutex::new(state),
            ranges: RangeLock::new(),
            flushing: RangeLock::new(),
            barriers: RangeLock::new(),
            refcounting: RangeLock::new(),
            loading: Loading::default(),
            bitmaps: Tracker::default(),
            packers: Packers::default(),
            window: Mutex::new(None),
            preallocated: OnceLock::new(),
            writable: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            corrupt: AtomicBool::new(false),
            corruption_told: AtomicBool::new(false),
            around,
            views: Arc::new(()),
            is_view: false,
            orphans: Orphans::default(),
        }
    }

    /// The file that holds the guest's data.
    #[inline]
    pub fn data(&self) -> &Child {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// The same engine as a view of a snapshot beside `disk`.
    #[must_use]
    pub fn viewing(self, disk: &Engine) -> Self {
        Self { views: disk.views.clone(), is_view: true, lacks_data: disk.lacks_data, ..self }
    }

    /// Whether somebody reads a snapshot.
    pub fn has_views(&self) -> bool {
        Arc::strong_count(&self.views) > 1
    }

    /// Bytes of a table slice.
    pub fn slice_bytes(&self) -> u64 {
        u64::from(self.geometry.slice_bytes)
    }

    /// Whether requests are served at all.
    ///
    /// # Errors
    /// When the image was closed or found corrupt.
    #[inline]
    pub fn check_usable(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::InvalidInput, Unusable::Closed));
        }
        if self.corrupt.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, Unusable::Corrupt));
        }
        if self.retired.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::InvalidInput, Unusable::Retired));
        }
        if self.lacks_data {
            return Err(Error::new(ErrorKind::InvalidInput, Unusable::MetadataOnly));
        }
        Ok(())
    }

    /// Whether mutations are accepted.
    ///
    /// # Errors
    /// When the image is read-only, or unusable.
    #[inline]
    pub fn check_writable(&self) -> Result<()> {
        self.check_usable()?;
        if !self.writable.load(Ordering::Relaxed) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Poisoned, Unusable::Poisoned));
        }
        Ok(())
    }

    /// Changes the header, in the file first: one write inside its first sector, so that a cut leaves the old
    /// values or the new ones (rule R10). Not durable before the next barrier.
    pub async fn update_header(self: &Arc<Self>, change: impl Fn(&mut Header)) -> Result<()> {
        let _turn = self.loading.header.lock(0..1, LockMode::Exclusive).await;
        let mut header = self.state.lock().header.clone();
        change(&mut header);
        let (offset, fields) = header.fixed_fields();
        if let Err(e) = self.file.write(offset, Buf::copy_of(&fields)).await {
            // Old values or new ones: nobody knows which the file holds (rule R9).
            self.poisoned.store(true, Ordering::SeqCst);
            return Err(e);
        }
        change(&mut self.state.lock().header);
        Ok(())
    }

    /// Deals with metadata that contradicts the format: marks the image corrupt if it may be written, tells it,
    /// and gives the error for whoever met it.
    pub async fn report(self: &Arc<Self>, corruption: Corruption) -> Error {
        let text = corruption.to_string();
        let error = Error::new(ErrorKind::Corrupt, corruption);
        let first = !self.corrupt.swap(true, Ordering::SeqCst);
        let writable = self.writable.load(Ordering::Relaxed);
        if !writable {
            // Nothing can be damaged by going on: other parts of the image stay readable.
            self.corrupt.store(false, Ordering::SeqCst);
            if !self.corruption_told.swap(true, Ordering::SeqCst) {
                self.tell(&format!(
                    "qcow2: Image is corrupt: {text}; further non-fatal corruption events will be suppressed"
                ));
            }
        } else if first {
            self.tell(&format!(
                "qcow2: Marking image as corrupt: {text}; further corruption events will be suppressed"
            ));
            if self.state.lock().header.version >= 3 {
                // Best effort: the image is refused from now on in any case.
                let _ = self.update_header(|header| header.incompatible |= Incompatible::CORRUPT).await;
            }
        }
        error
    }

    pub fn tell(&self, line: &str) {
        if let Some(notice) = &self.around.notice {
            notice(line);
        }
    }

    /// Wraps a mutation so that dropping it stops the waiting, not the work.
    pub fn keep(self: &Arc<Self>, work: impl Future<Output = Completion> + Send + 'static) -> Op {
        self.orphans.attend(work, Abandoned::Kept)
    }

    /// Wraps a request that changes nothing: dropping it drops the work as well.
    pub fn wait(self: &Arc<Self>, work: impl Future<Output = Completion> + Send + 'static) -> Op {
        self.orphans.attend(work, Abandoned::Dropped)
    }

    /// Wraps a mutation whose I/O is on its way already: dropping it stops the waiting only. What it holds is held until the
    /// I/O has ended, which may wait for the I/O of abandoned work: files of larger blocks write them one after the other.
    pub fn keep_started(self: &Arc<Self>, work: impl Future<Output = Completion> + Send + 'static) -> Op {
        match mutant::is_active("abandoned-overwrite") {
            true => Op::wait(work),
            false => self.orphans.attend_started(Box::pin(work)),
        }
    }

    /// Nothing is half done: no ranges are held, nothing is abandoned.
    pub fn is_quiet(&self) -> bool {
        self.ranges.in_use() == 0 && self.orphans.is_empty()
    }
}

/// The cause of work that no request asked for.
pub(crate) const NO_CAUSE: Cause = Cause { request: 0, origin: 0 };
