//! Where two images differ, piece by piece.
//!
//! Both chains are walked side by side. What both store in the same place, or get from the same image, is not read;
//! nor is what both know to be zeroes. The rest is read and compared by sectors, so the answer is about content and
//! does not depend on how it is stored. Memory is two buffers, whatever the images are.

use cowbell_block::buf::is_zero;
use cowbell_block::{Buf, Chain, ChainExtent, Request, Root};
use futures_util::future::join;

use crate::compare::{Failure, Side};
use crate::error::{Error, Result};
use crate::layers::is_same_place;
use crate::progress::Progress;

/// Bytes read from each image at once: both pieces stay in the cache until they are compared.
const STEP: u64 = 256 << 10;
/// The grain of differences.
pub const SECTOR: u64 = 512;

/// How a range of the two disks differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both have data, and not the same.
    Data,
    /// Zeroes in the first, data in the second.
    ZeroInA,
    /// Data in the first, zeroes in the second.
    ZeroInB,
    /// Beyond the end of the second.
    OnlyInA,
    /// Beyond the end of the first.
    OnlyInB,
}

/// A range that differs, as it was found: neighbours may be of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// First byte.
    pub start: u64,
    /// Bytes: sectors, but at the end of a disk.
    pub len: u64,
    /// How.
    pub kind: Kind,
    /// The second image is known to read as zeroes here.
    pub reads_zero: bool,
}

/// Two layers, one of each chain, counted from 0 at the top, that are the same image with the same content.
pub type SameLayer = (usize, usize);

/// A walk over two images; nothing writes to either meanwhile.
pub struct Diff<'a> {
    a: Reading<'a>,
    b: Reading<'a>,
    same: Vec<SameLayer>,
    progress: &'a dyn Progress,
    at: u64,
    /// Found and not told yet, the next one last.
    found: Vec<Difference>,
}

struct Reading<'a> {
    root: &'a Root,
    chain: Chain,
    side: Side,
}

impl<'a> Diff<'a> {
    /// The differences from `a` to `b`, which share the layers in `same`.
    pub fn new(a: &'a Root, b: &'a Root, same: Vec<SameLayer>, progress: &'a dyn Progress) -> Self {
        let reading = |root: &'a Root, side| Reading { root, chain: Chain::of(root.node()), side };
        let (a, b) = (reading(a, Side::A), reading(b, Side::B));
        Self { a, b, same, progress, at: 0, found: Vec::new() }
    }

    /// The next one, in the order of the disk.
    ///
    /// # Errors
    /// What could not be read or asked, and of which image; or the progress said stop.
    pub async fn next(&mut self) -> std::result::Result<Option<Difference>, Failure> {
        let (len_a, len_b) = (self.a.chain.len(), self.b.chain.len());
        let (common, total) = (len_a.min(len_b), len_a.max(len_b));
        while self.found.is_empty() && self.at < total {
            if self.progress.is_cancelled() {
                return Err(Failure { side: Side::A, error: Error::Cancelled });
            }
            let len = match self.at < common {
                true => self.compare(common).await?,
                false => self.tail(total).await?,
            };
            self.at += len;
            self.progress.advanced(self.at, total);
        }
        Ok(self.found.pop())
    }

    /// Looks at the beginning of what both have; returns how far.
    async fn compare(&mut self, common: u64) -> std::result::Result<u64, Failure> {
        let at = self.at;
        let (in_a, in_b) = join(self.a.ask(at, common), self.b.ask(at, common)).await;
        let (in_a, in_b) = (in_a?, in_b?);
        let len = in_a.len.min(in_b.len);
        // Always whole sectors, wherever storage begins and ends.
        let aligned = |len: u64| if at + len == common { len } else { (at + len) / SECTOR * SECTOR - at };
        if (in_a.is_zero() && in_b.is_zero() || self.is_same(&in_a, &in_b)) && aligned(len) > 0 {
            return Ok(aligned(len));
        }
        let (end, whole) = match aligned(len.min(STEP)) {
            0 => ((at + SECTOR).min(common), false),
            some => (at + some, true),
        };
        let unread = |extent: &ChainExtent| extent.is_zero() && whole;
        let (data_a, data_b) = join(
            self.a.read_unless(unread(&in_a), at, end - at),
            self.b.read_unless(unread(&in_b), at, end - at),
        )
        .await;
        let (data_a, data_b) = (data_a?, data_b?);
        compare_sectors(at, end - at, data_a.as_deref(), data_b.as_deref(), &mut self.found);
        self.found.reverse();
        [data_a, data_b].into_iter().flatten().for_each(Buf::recycle);
        Ok(end - at)
    }

    /// Looks at the beginning of what only one has; returns how far.
    async fn tail(&mut self, total: u64) -> std::result::Result<u64, Failure> {
        let (longer, kind) = match self.a.chain.len() == total {
            true => (&self.a, Kind::OnlyInA),
            false => (&self.b, Kind::OnlyInB),
        };
        let extent = longer.ask(self.at, total).await?;
        let reads_zero = kind == Kind::OnlyInB && extent.is_zero();
        // What is read of it afterwards is read piece by piece.
        let len = if reads_zero { extent.len } else { extent.len.min(STEP) };
        self.found.push(Difference { start: self.at, len, kind, reads_zero });
        Ok(len)
    }

    fn is_same(&self, a: &ChainExtent, b: &ChainExtent) -> bool {
        let stored = a.is_data() && b.is_data();
        stored && self.same.contains(&(a.depth as usize, b.depth as usize))
            || a.map.as_ref().zip(b.map.as_ref()).is_some_and(|(a, b)| is_same_place(a, b))
    }
}

impl Reading<'_> {
    fn fail<T>(&self, result: Result<T>) -> std::result::Result<T, Failure> {
        result.map_err(|error| Failure { side: self.side, error })
    }

    async fn ask(&self, at: u64, end: u64) -> std::result::Result<ChainExtent, Failure> {
        let status = self.chain.status(at, end - at).await;
        let extent = self.fail(status.map_err(|source| Error::Status { offset: at, source }))?;
        assert!(extent.len > 0, "the question lies before the end");
        Ok(extent)
    }

    /// Data, or `None` for zeroes that are known.
    async fn read_unless(&self, zero: bool, at: u64, len: u64) -> std::result::Result<Option<Buf>, Failure> {
        if zero {
            return Ok(None);
        }
        // Always the same memory, whatever the length.
        let mut buf = Buf::scratch(STEP as usize);
        buf.truncate(len as usize);
        let read = self.root.submit(Request::read(at, buf)).finish().await.into_bufs();
        let bufs = self.fail(read.map_err(|source| Error::Read { offset: at, source }))?;
        Ok(Some(bufs.to_contiguous_or_self()))
    }
}

/// Adds the sectors that differ, those of one kind together. `None` is zeroes.
fn compare_sectors(start: u64, len: u64, a: Option<&[u8]>, b: Option<&[u8]>, found: &mut Vec<Difference>) {
    if a.is_some() && a == b {
        return;
    }
    let mut at = start;
    while at < start + len {
        let end = ((at / SECTOR + 1) * SECTOR).min(start + len);
        let range = (at - start) as usize..(end - start) as usize;
        let (a, b) = (a.map(|data| &data[range.clone()]), b.map(|data| &data[range]));
        let zero = |sector: Option<&[u8]>| sector.is_none_or(is_zero);
        let kind = match (zero(a), zero(b)) {
            (true, true) => None,
            (true, false) => Some(Kind::ZeroInA),
            (false, true) => Some(Kind::ZeroInB),
            (false, false) => (a != b).then_some(Kind::Data),
        };
        if let Some(kind) = kind {
            match found.last_mut() {
                Some(last) if last.kind == kind && last.start + last.len == at => last.len = end - last.start,
                _ => {
                    let reads_zero = kind == Kind::ZeroInB;
                    found.push(Difference { start: at, len: end - at, kind, reads_zero });
                }
            }
        }
        at = end;
    }
}

/// Writes what differs into an overlay on the first image, so that it reads as the second.
///
/// Clusters of the overlay are stored as a whole, each once. Ranges come in the order of the disk.
pub struct Overlay<'a> {
    source: &'a Root,
    target: &'a Root,
    grain: u64,
    done_until: u64,
    /// Bytes written, as data and as zeroes.
    pub written: Written,
}

/// What was written to an overlay, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// As data.
    pub data: u64,
    /// As zeroes.
    pub zeroes: u64,
}

impl<'a> Overlay<'a> {
    /// `target` is as long as `source`, and has nothing of its own yet.
    pub fn new(source: &'a Root, target: &'a Root) -> Self {
        let grain = target.node().limits().preferred_write.max(SECTOR);
        Self { source, target, grain, done_until: 0, written: Written::default() }
    }

    /// Stores the clusters of a range.
    ///
    /// # Errors
    /// The source cannot be read, or the target not written.
    pub async fn put(&mut self, start: u64, len: u64) -> Result<()> {
        let total = self.source.node().len();
        let first = (start / self.grain * self.grain).max(self.done_until);
        let end = (start + len).next_multiple_of(self.grain).min(total);
        let mut at = first;
        while at < end {
            let next = (at + STEP.max(self.grain)).min(end);
            self.copy(at, next - at).await?;
            at = next;
        }
        self.done_until = self.done_until.max(end);
        Ok(())
    }

    async fn copy(&mut self, at: u64, len: u64) -> Result<()> {
        let read = self.source.submit(Request::read(at, Buf::scratch(len as usize))).finish().await;
        let read = read.into_bufs().map_err(|source| Error::Read { offset: at, source })?;
        let mut data = read.to_contiguous_or_self();
        let mut at = at;
        while !data.is_empty() {
            // Clusters of one kind are written together.
            let is_zero_at = |from: usize| is_zero(&data[from..(from + self.grain as usize).min(data.len())]);
            let zero = is_zero_at(0);
            let mut n = 0;
            while n < data.len() && is_zero_at(n) == zero {
                n = (n + self.grain as usize).min(data.len());
            }
            let part = data.split_to(n);
            self.write(at, part, zero).await?;
            at += n as u64;
        }
        Ok(())
    }

    async fn write(&mut self, offset: u64, data: Buf, zero: bool) -> Result<()> {
        let len = data.len() as u64;
        let request = match zero {
            true => Request::write_zeroes(offset, len),
            false => Request::write(offset, data),
        };
        let done = self.target.submit(request).finish().await;
        done.result.map_err(|source| Error::Write { offset, source })?;
        let sum = if zero { &mut self.written.zeroes } else { &mut self.written.data };
        *sum += len;
        Ok(())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The target cannot be flushed.
    pub async fn finish(self) -> Result<Written> {
        let flushed = self.target.submit(Request::flush()).finish().await.result;
        flushed.map_err(|source| Error::Flush { source })?;
        Ok(self.written)
    }
}
