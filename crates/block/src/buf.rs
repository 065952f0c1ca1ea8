//! Buffers that travel with requests.
//!
//! A request owns its buffers and the completion hands them back, so no lifetime ties a request to the stack
//! of whoever submitted it. There are two kinds behind one type: memory allocated here, aligned for direct
//! I/O, and a slice of a registered [`Region`] (guest RAM, a ring's fixed buffers) kept alive by an `Arc`.
//!
//! Invariant: the byte ranges of all live [`Buf`]s over one memory are disjoint. [`Buf::split_to`] keeps it,
//! [`Buf::unsplit`] restores the wider range, and only [`Buf::from_region`], which is `unsafe`, could break it.
//!
//! This is the one module of the crate that may say `unsafe`.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

/// Alignment in bytes of every buffer allocated here: the page size, which satisfies direct I/O on any device.
pub const BUF_ALIGN: usize = 4096;

/// Memory owned by somebody else that requests may read from and write to.
///
/// # Safety
/// `base()..base() + len()` must stay mapped, readable and writable at the same address while the region lives.
pub unsafe trait Region: Send + Sync {
    /// First byte of the region.
    fn base(&self) -> NonNull<u8>;
    /// Length of the region in bytes.
    fn len(&self) -> usize;
    /// Whether the region has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `cap` zeroed bytes at a multiple of [`BUF_ALIGN`], inside an allocation that is longer by as much.
///
/// An allocator that is asked for zeroed memory *and* an alignment clears it by hand; asked for zeroed memory
/// alone, it knows which pages are fresh from the system, and those cost nothing until they are used.
struct Owned {
    base: NonNull<u8>,
    ptr: NonNull<u8>,
    cap: usize,
}

// SAFETY: `Owned` is a plain allocation; access goes through `Buf`, whose ranges are disjoint.
unsafe impl Send for Owned {}
// SAFETY: as above; `Owned` itself offers no access to its bytes.
unsafe impl Sync for Owned {}

impl Owned {
    fn layout(cap: usize) -> Layout {
        let whole = cap.checked_add(BUF_ALIGN).and_then(|bytes| Layout::array::<u64>(bytes / 8).ok());
        whole.expect("buffer sizes are below isize::MAX")
    }

    /// `cap` is a multiple of [`BUF_ALIGN`].
    fn new(cap: usize) -> Self {
        let layout = Self::layout(cap);
        // SAFETY: the layout is longer than `BUF_ALIGN`, so its size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
        let skipped = base.align_offset(BUF_ALIGN);
        assert!(skipped < BUF_ALIGN, "bytes can be aligned to any power of two");
        // SAFETY: less than `BUF_ALIGN` bytes are skipped, and the allocation is longer than `cap` by as many.
        let ptr = unsafe { base.add(skipped) };
        Self { base, ptr, cap }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Self { base, ptr, cap } = *self;
        // A thread that ends has no pages to keep any more.
        if cap == BUF_ALIGN && PAGES.try_with(|pages| pages.borrow_mut().put(base, ptr)).unwrap_or(false) {
            return;
        }
        // SAFETY: allocated in `new` with the same layout and freed once: nobody kept it.
        unsafe { dealloc(base.as_ptr(), Self::layout(cap)) }
    }
}

/// Most single pages that one thread keeps.
const PAGES_MAX: usize = 16;

/// Memory of buffers of one page that were dropped: pieces of tables, which nobody gives back by hand.
struct Pages(Vec<(NonNull<u8>, NonNull<u8>)>);

impl Pages {
    /// Keeps the allocation of an [`Owned`] of one page, if there is room.
    fn put(&mut self, base: NonNull<u8>, ptr: NonNull<u8>) -> bool {
        let room = self.0.len() < PAGES_MAX;
        if room {
            self.0.push((base, ptr));
        }
        room
    }

    fn take(&mut self) -> Option<Owned> {
        let (base, ptr) = self.0.pop()?;
        Some(Owned { base, ptr, cap: BUF_ALIGN })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for (base, _) in self.0.drain(..) {
            // SAFETY: an `Owned` of one page allocated it with this layout and left it here.
            unsafe { dealloc(base.as_ptr(), Owned::layout(BUF_ALIGN)) }
        }
    }
}

thread_local! {
    static PAGES: RefCell<Pages> = const { RefCell::new(Pages(Vec::new())) };
}

#[derive(Clone)]
enum Memory {
    Owned(Arc<Owned>),
    Region(Arc<dyn Region>),
}

/// One contiguous piece of memory with exclusive access to its bytes.
pub struct Buf {
    memory: Memory,
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Buf` is the only access to its bytes (module invariant), and its memory is kept alive by an Arc.
unsafe impl Send for Buf {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for Buf {}

impl Buf {
    /// Zeroed memory of `len` bytes, aligned to [`BUF_ALIGN`].
    pub fn zeroed(len: usize) -> Self {
        if let Some(mut page) = Self::page(len) {
            page.fill(0);
            return page;
        }
        Self::over(Owned::new(len.max(1).next_multiple_of(BUF_ALIGN)), len)
    }

    /// A page with unspecified content that this thread has kept, if it is long enough.
    fn page(len: usize) -> Option<Self> {
        let fits = len <= BUF_ALIGN;
        let owned = fits.then(|| PAGES.with_borrow_mut(Pages::take)).flatten()?;
        Some(Self::over(owned, len))
    }

    /// The first `len` bytes of fresh memory.
    fn over(owned: Owned, len: usize) -> Self {
        assert!(len <= owned.cap, "the memory is long enough");
        let ptr = owned.ptr;
        Self { memory: Memory::Owned(Arc::new(owned)), ptr, len }
    }

    /// Memory of `len` bytes whose content is unspecified, from this thread's pool when it has some that fits.
    ///
    /// For buffers that are about to be overwritten: nothing is cleared.
    pub fn scratch(len: usize) -> Self {
        let pooled = POOL.with_borrow_mut(|pool| pool.take(len));
        pooled.or_else(|| Self::page(len)).unwrap_or_else(|| Self::zeroed(len))
    }

    /// Gives the memory back to this thread's pool, if this is the only piece of it and the pool has room.
    pub fn recycle(self) {
        POOL.with_borrow_mut(|pool| pool.put(self));
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::scratch(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// The slice `offset..offset + len` of a registered region.
    ///
    /// # Panics
    /// If the range does not lie inside the region.
    ///
    /// # Safety
    /// While the returned buffer (or any piece split from it) lives, nobody else reads or writes these bytes,
    /// and no other `Buf` covers any of them.
    pub unsafe fn from_region(region: Arc<dyn Region>, offset: usize, len: usize) -> Self {
        let end = offset.checked_add(len).expect("range fits the address space");
        assert!(
            end <= region.len(),
            "buffer range {offset}+{len} outside a region of {} bytes",
            region.len()
        );
        // SAFETY: the offset is inside the region, which is one mapping.
        let ptr = unsafe { region.base().add(offset) };
        Self { memory: Memory::Region(region), ptr, len }
    }

    /// Splits off and returns the first `n` bytes; `self` keeps the rest.
    ///
    /// # Panics
    /// If `n` is more than the buffer holds.
    pub fn split_to(&mut self, n: usize) -> Buf {
        assert!(n <= self.len, "cannot split {n} bytes from a buffer of {}", self.len);
        let head = Buf { memory: self.memory.clone(), ptr: self.ptr, len: n };
        // SAFETY: n <= len, so the pointer stays inside (or one past) the memory.
        self.ptr = unsafe { self.ptr.add(n) };
        self.len -= n;
        head
    }

    /// Joins two neighbours that were split from one memory.
    ///
    /// # Errors
    /// Gives both back when `next` does not start where `self` ends in the same memory.
    pub fn unsplit(mut self, next: Buf) -> Result<Buf, (Buf, Buf)> {
        let same = match (&self.memory, &next.memory) {
            (Memory::Owned(a), Memory::Owned(b)) => Arc::ptr_eq(a, b),
            (Memory::Region(a), Memory::Region(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let end = self.ptr.as_ptr().wrapping_add(self.len);
        if !same || !std::ptr::eq(end, next.ptr.as_ptr()) {
            return Err((self, next));
        }
        self.len += next.len;
        Ok(self)
    }

    /// Whether the first byte lies at a multiple of `align`, which is a power of two.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.ptr.as_ptr().addr() & (align - 1) == 0
    }

    /// Shortens the buffer to its first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside live, initialised memory, and this `Buf` is its only access.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// Most bytes that one thread's pool keeps: enough for a deep queue of 64 KiB requests.
const POOL_BYTES_MAX: usize = 8 << 20;
/// Most buffers that one thread's pool keeps.
const POOL_BUFS_MAX: usize = 32;

struct Pool {
    bufs: Vec<Arc<Owned>>,
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { bufs: Vec::new(), bytes: 0 }) };
}

impl Pool {
    fn take(&mut self, len: usize) -> Option<Buf> {
        let fits = |cap: usize| cap >= len && cap / 4 <= len.max(BUF_ALIGN);
        let index = self.bufs.iter().rposition(|owned| fits(owned.cap))?;
        let owned = self.bufs.swap_remove(index);
        self.bytes -= owned.cap;
        let ptr = owned.ptr;
        Some(Buf { memory: Memory::Owned(owned), ptr, len })
    }

    fn put(&mut self, buf: Buf) {
        let Memory::Owned(mut owned) = buf.memory else { return };
        let room = self.bufs.len() < POOL_BUFS_MAX && self.bytes + owned.cap <= POOL_BYTES_MAX;
        if room && Arc::get_mut(&mut owned).is_some() {
            self.bytes += owned.cap;
            self.bufs.push(owned);
        }
    }
}

/// The scattered buffers of one request, in order; usually just one.
#[derive(Debug, Default)]
pub struct Bufs(SmallVec<[Buf; 1]>);

impl Bufs {
    /// No memory at all, for operations that carry no data.
    pub fn none() -> Self {
        Self(SmallVec::new())
    }

    /// Total length in bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(|b| b.len()).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Buf] {
        &self.0
    }

    /// The pieces in order, writable.
    pub fn pieces_mut(&mut self) -> &mut [Buf] {
        &mut self.0
    }

    /// Appends one piece, joined to the last one when they are neighbours in memory.
    pub fn push(&mut self, buf: Buf) {
        match self.0.pop() {
            None => self.0.push(buf),
            Some(last) => match last.unsplit(buf) {
                Ok(joined) => self.0.push(joined),
                Err((last, buf)) => self.0.extend([last, buf]),
            },
        }
    }

    /// Appends all pieces of `other`.
    pub fn append(&mut self, other: Bufs) {
        for buf in other.0 {
            self.push(buf);
        }
    }

    /// Splits off and returns the first `n` bytes.
    ///
    /// # Panics
    /// If `n` is more than there is.
    pub fn split_to(&mut self, mut n: usize) -> Bufs {
        let mut head = SmallVec::new();
        let mut whole = 0;
        while n > 0 {
            let piece = self.0.get_mut(whole).expect("split within the length");
            if piece.len() <= n {
                n -= piece.len();
                whole += 1;
            } else {
                let part = piece.split_to(n);
                head.extend(self.0.drain(..whole));
                head.push(part);
                return Bufs(head);
            }
        }
        head.extend(self.0.drain(..whole));
        Bufs(head)
    }

    /// Copies `src` to position `at`.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write_at(&mut self, at: usize, src: &[u8]) {
        let mut src = src;
        self.for_each_mut(at, src.len(), |part| {
            let (now, rest) = src.split_at(part.len());
            part.copy_from_slice(now);
            src = rest;
        });
    }

    /// Copies from position `at` into `dst`.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn read_at(&self, at: usize, dst: &mut [u8]) {
        let (mut skip, mut done) = (at, 0);
        for piece in &self.0 {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let n = (piece.len() - skip).min(dst.len() - done);
            dst[done..done + n].copy_from_slice(&piece[skip..skip + n]);
            done += n;
            skip = 0;
            if done == dst.len() {
                break;
            }
        }
        assert_eq!(done, dst.len(), "read within the length");
    }

    /// Sets `len` bytes from position `at` to `byte`.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn fill(&mut self, at: usize, len: usize, byte: u8) {
        self.for_each_mut(at, len, |part| part.fill(byte));
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|b| is_zero(b))
    }

    /// One buffer with a copy of everything.
    pub fn to_contiguous(&self) -> Buf {
        let mut out = Buf::scratch(self.len());
        self.read_at(0, &mut out);
        out
    }

    /// The only piece, or a copy of all pieces.
    pub fn to_contiguous_or_self(self) -> Buf {
        match self.0.len() {
            1 => self.0.into_iter().next().expect("there is one"),
            _ => self.to_contiguous(),
        }
    }

    /// Gives all memory back to this thread's pool.
    pub fn recycle(self) {
        self.0.into_iter().for_each(Buf::recycle);
    }

    fn for_each_mut(&mut self, at: usize, len: usize, mut f: impl FnMut(&mut [u8])) {
        let (mut skip, mut left) = (at, len);
        for piece in &mut self.0 {
            if left == 0 {
                return;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let n = (piece.len() - skip).min(left);
            f(&mut piece[skip..skip + n]);
            left -= n;
            skip = 0;
        }
        assert_eq!(left, 0, "range within the length");
    }
}

impl From<Buf> for Bufs {
    fn from(buf: Buf) -> Self {
        let mut bufs = SmallVec::new();
        bufs.push(buf);
        Self(bufs)
    }
}

impl FromIterator<Buf> for Bufs {
    fn from_iter<I: IntoIterator<Item = Buf>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// Whether all of `bytes` are zero; looks at the ends first, where data usually shows.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return true };
    if *first != 0 || *last != 0 {
        return false;
    }
    let mut chunks = bytes.chunks_exact(256);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |acc, b| acc | b) == 0)
        && chunks.remainder().iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_and_unsplit_keep_content() {
        let mut buf = Buf::zeroed(100);
        for (i, b) in buf.iter_mut().enumerate() {
            *b = i as u8;
        }
        let head = buf.split_to(40);
        assert_eq!((head.len(), buf.len(), head[39], buf[0]), (40, 60, 39, 40));
        let joined = head.unsplit(buf).expect("neighbours");
        assert!(joined.iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn unsplit_refuses_strangers() {
        let (a, b) = (Buf::zeroed(8), Buf::zeroed(8));
        assert!(a.unsplit(b).is_err());
    }

    #[test]
    fn scattered_access_crosses_pieces() {
        let mut bufs: Bufs = [Buf::zeroed(3), Buf::zeroed(0), Buf::zeroed(5)].into_iter().collect();
        bufs.write_at(2, &[1, 2, 3]);
        let mut got = [0; 4];
        bufs.read_at(1, &mut got);
        assert_eq!(got, [0, 1, 2, 3]);
        let head = bufs.split_to(4);
        assert_eq!((head.len(), bufs.len()), (4, 4));
        assert_eq!(&bufs.pieces()[0][..], &[3, 0, 0, 0]);
        bufs.fill(0, 4, 0);
        assert!(bufs.is_zero() && !head.is_zero());
    }

    #[test]
    fn pool_reuses_only_sole_pieces() {
        let mut buf = Buf::zeroed(BUF_ALIGN * 2);
        let address = buf.as_ptr();
        let part = buf.split_to(10);
        part.recycle();
        buf.recycle();
        let fresh = Buf::scratch(BUF_ALIGN * 2);
        assert_eq!(fresh.as_ptr(), address, "the last piece returned the memory");
    }

    #[test]
    fn zero_detection_looks_everywhere() {
        for position in [0, 1, 255, 256, 511, 700] {
            let mut bytes = [0u8; 701];
            assert!(is_zero(&bytes));
            bytes[position] = 1;
            assert!(!is_zero(&bytes), "{position}");
        }
    }
}
