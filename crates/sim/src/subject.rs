//! What is under test: how it is opened, and how an independent eye looks at the file it leaves behind.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::Arc;

use cowbell_block::node::Node;
use cowbell_block::{BoxFuture, Result};

use crate::bitmaps::BitmapChange;
use crate::config::Config;
use crate::image::Built;
use crate::judge::Failure;
use crate::keys::{Keys, Opener};
use crate::pool::{Content, Pool, SECTOR, ZERO};
use crate::recorded::Recorded;
use crate::scenario::KeyOp;
use crate::timeline::{DATA_AT, Image};

/// A future that stays on its thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The files of a world, as the subject gets them.
#[derive(Clone)]
pub struct Files {
    /// The image.
    pub image: Arc<dyn Node>,
    /// What lies behind.
    pub backing: Option<Arc<dyn Node>>,
    /// Where the guest's data is, if not in the image.
    pub data: Option<Arc<dyn Node>>,
}

/// A format and its engine.
pub trait Subject {
    /// The image a world begins with.
    fn build(&self, config: &Config, pool: &mut Pool) -> Built;

    /// Opens the files for reading and writing.
    fn open(&self, files: Files, config: &Config) -> BoxFuture<Result<Arc<dyn Node>>>;

    /// Looks at an image that a power cut may have left, or a clean close did.
    fn inspect(&self, image: &ImageBytes<'_>, config: &Config) -> Inspection;

    /// Whether the node's `check` can be asked.
    fn can_check(&self) -> bool {
        false
    }

    /// Changes the persistent bitmaps.
    fn change_bitmaps<'a>(&self, node: &'a dyn Node, change: BitmapChange) -> LocalFuture<'a, Result<()>> {
        let _ = (node, change);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Changes the key slots.
    fn change_keys<'a>(&self, node: &'a dyn Node, change: KeyOp) -> LocalFuture<'a, Result<()>> {
        let _ = (node, change);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether the engine admits of itself that nothing is in progress: locks, quarantine, in-flight lists (O7).
    fn is_quiet(&self, node: &dyn Node) -> std::result::Result<(), String> {
        let _ = node;
        Ok(())
    }
}

/// What an independent eye found in an image.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Why the metadata is not sound, if it is not.
    pub corrupt: Option<Failure>,
    /// Refcounts are to be rebuilt before use: clusters may be lost until then.
    pub dirty: bool,
    /// Clusters that nobody uses and nobody may.
    pub leaks: u64,
    /// Exit status that the reference's check must have; `None` if it cannot be asked.
    pub in_reference: Option<i32>,
    /// Where the content of each guest sector is.
    pub guest: Vec<Source>,
    /// The same for each snapshot.
    pub snapshots: Vec<Vec<Source>>,
    /// Which passphrases open the image, if it has key slots.
    pub keys: Keys,
    /// How its data is encrypted, if it is.
    pub opener: Option<Opener>,
    /// The bitmaps, if the image says that they count.
    pub recorded: Option<Vec<Recorded>>,
    /// The VM state area, if it was looked at.
    pub state: Area,
    /// The same for each snapshot.
    pub snapshot_states: Vec<Area>,
    /// Contents that are not in the file as they are.
    pub contents: Vec<[u8; SECTOR]>,
}

impl Inspection {
    /// Gives the contents that were made up their numbers.
    pub fn settle(&mut self, pool: &mut Pool) {
        if self.contents.is_empty() {
            return;
        }
        let numbers: Vec<Content> = self.contents.drain(..).map(|bytes| pool.intern(&bytes)).collect();
        let areas = std::iter::once(&mut self.state).chain(&mut self.snapshot_states);
        let areas = areas.flat_map(|area| &mut area.sources);
        for source in self.guest.iter_mut().chain(self.snapshots.iter_mut().flatten()).chain(areas) {
            if let Source::New(index) = *source {
                *source = Source::Fixed(numbers[index as usize]);
            }
        }
    }
}

/// A part of what an image maps.
#[derive(Clone, Debug, Default)]
pub struct Area {
    /// Its first sector.
    pub first: u64,
    /// Where the content of each of its sectors is.
    pub sources: Vec<Source>,
}

impl Inspection {
    /// What the VM state area holds, and that of each snapshot.
    pub fn states(&self, image: &Image, pool: &Pool) -> (Vec<Content>, Vec<Vec<Content>>) {
        let of = |area: &Area| {
            let numbered = area.sources.iter().zip(area.first as usize..);
            numbered.map(|(source, sector)| self.content(*source, image, None, sector, pool)).collect()
        };
        (of(&self.state), self.snapshot_states.iter().map(of).collect())
    }

    /// What guest sector `sector` holds, if its content comes from `source`.
    pub fn content(
        &self,
        source: Source,
        image: &Image,
        backing: Option<&[Content]>,
        sector: usize,
        pool: &Pool,
    ) -> Content {
        let stored = source.content(image, backing, sector);
        match (source, &self.opener) {
            (Source::File(at) | Source::Data(at), Some(opener)) => {
                pool.opened(stored, opener, sector as u64, u64::from(at))
            }
            _ => stored,
        }
    }
}

/// Where the content of a guest sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this sector of the file.
    File(u32),
    /// In this sector of the data file.
    Data(u32),
    /// This content, wherever it came from.
    Fixed(Content),
    /// In the backing file, at the same place.
    Behind,
    /// In [`Inspection::contents`], until they are settled.
    New(u32),
}

impl Source {
    /// The content of guest sector `sector`.
    pub fn content(self, image: &Image, backing: Option<&[Content]>, sector: usize) -> Content {
        match self {
            Self::File(at) => image.get(u64::from(at)),
            Self::Data(at) => image.data(at),
            Self::Fixed(content) => content,
            Self::Behind => backing.and_then(|b| b.get(sector)).copied().unwrap_or(ZERO),
            Self::New(_) => unreachable!("settled before use"),
        }
    }
}

/// The bytes of an image, remembering which sectors were looked at.
pub struct ImageBytes<'a> {
    image: &'a Image,
    pool: &'a Pool,
    looked_at: RefCell<&'a mut SectorSet>,
    /// Where the file that is looked at begins, and its length.
    file: Cell<(u64, u64)>,
}

/// A set of sectors.
#[derive(Clone, Debug, Default)]
pub struct SectorSet {
    members: Vec<bool>,
    list: Vec<u32>,
}

impl SectorSet {
    /// Whether `sector` is in the set.
    pub fn contains(&self, sector: u32) -> bool {
        self.members.get(sector as usize).copied().unwrap_or(false)
    }

    /// Number of members.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The members, in no order that means anything.
    pub fn members(&self) -> &[u32] {
        &self.list
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.members.clear();
        self.list.clear();
    }

    /// Adds a sector.
    pub fn insert(&mut self, sector: u32) {
        let at = sector as usize;
        if self.members.len() <= at {
            self.members.resize(at + 1, false);
        }
        if !self.members[at] {
            self.members[at] = true;
            self.list.push(sector);
        }
    }
}

impl<'a> ImageBytes<'a> {
    /// The bytes of `image`; sectors looked at are added to `looked_at`.
    pub fn new(image: &'a Image, pool: &'a Pool, looked_at: &'a mut SectorSet) -> Self {
        Self { image, pool, looked_at: RefCell::new(looked_at), file: Cell::new((0, image.len)) }
    }

    /// Looks at the data file in place of the image file.
    pub fn in_data_file<T>(&self, look: impl FnOnce(&Self) -> T) -> T {
        let before = self.file.replace((DATA_AT as u64, self.image.data_len));
        let found = look(self);
        self.file.set(before);
        found
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.file.get().1
    }

    /// The content of a sector of the file, which is looked at if it is inside.
    fn content(&self, sector: u64) -> Content {
        let (first, len) = self.file.get();
        if sector * SECTOR as u64 >= len {
            return ZERO;
        }
        self.looked_at.borrow_mut().insert((first + sector) as u32);
        self.image.sectors.get((first + sector) as usize).copied().unwrap_or(ZERO)
    }

    /// Fills `buf` from `offset`, with zeroes beyond the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % SECTOR as u64) as usize;
            let n = (SECTOR - within).min(buf.len() - done);
            let bytes = self.pool.bytes(self.content(at / SECTOR as u64));
            buf[done..done + n].copy_from_slice(&bytes[within..within + n]);
            done += n;
        }
    }

    /// The bytes of the sector that `offset` lies in, from there to its end.
    pub fn sector_at(&self, offset: u64) -> &'a [u8] {
        let bytes = self.pool.bytes(self.content(offset / SECTOR as u64));
        &bytes[(offset % SECTOR as u64) as usize..]
    }

    /// How many bytes from `offset` are known to be zero, at most `len`, and at most to the end of the file.
    pub fn zeroes(&self, offset: u64, len: u64) -> u64 {
        let (mut at, end) = (offset, (offset + len).min(self.bytes()));
        while at < end && self.content(at / SECTOR as u64) == ZERO {
            at = (at / SECTOR as u64 + 1) * SECTOR as u64;
        }
        at.min(end).max(offset) - offset
    }
}
