//! A file that is being filled says so until it is complete.
//!
//! Whoever fills an image that was there before cannot give it its name only at the end. Here the beginning of
//! the file, where every format and every disk has what it is recognised by, is withheld: in its place the file
//! holds a text that says what happened, from the first change on. Reads through the node see the real bytes.
//! They are written when the node is closed, if by then the filling was declared complete; whatever ends the
//! program before leaves a file that nobody takes for a finished image.
//!
//! ```text
//!   untouched ── first change: text durable ──> withheld ── complete, then close: real bytes ──> finished
//!                                                   └────── close without: the text stays
//! ```

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::Value;

use crate::buf::{Buf, Bufs, is_zero};
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::create::CreateArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Access, CheckReport, Fix, ImageInfo, Limits, Node};
use crate::range_lock::{LockMode, RangeLock};
use crate::registry::Driver;
use crate::request::{BoxFuture, Completion, Flags, Op, Operation, Preallocation, Request};

/// What an unfinished file begins with, again and again.
pub const TEXT: &[u8] =
    b"cowbell: this image is incomplete. The command that was filling it did not come to its end.\n";
/// Withheld of a disk without a format: partition tables and the first superblocks lie here.
pub const DISK_BYTES: u64 = 64 << 10;
/// Withheld of a new image of some format: its whole first sector.
pub const SECTOR_BYTES: u64 = 512;
/// Withheld of an image that has a header already: the magic alone. Put back by hand, the image is what it was.
pub const MAGIC_BYTES: u64 = 4;
/// Zeroes withheld are written as a hole where they cover this grain.
const GRAIN: usize = 4096;

/// The mark of one file, shared by all nodes through which it is filled. Cloning gives another handle.
#[derive(Clone)]
pub struct Mark(Arc<Shared>);

struct Shared {
    len: AtomicU64,
    complete: AtomicBool,
    /// The real bytes, once the text is in their place.
    held: Mutex<Option<Vec<u8>>>,
    /// Taken by whoever puts the text in.
    marking: RangeLock,
}

impl Mark {
    /// A mark of `len` bytes, not in the file yet.
    pub fn new(len: u64) -> Self {
        Self(Arc::new(Shared {
            len: AtomicU64::new(len),
            complete: AtomicBool::new(false),
            held: Mutex::default(),
            marking: RangeLock::new(),
        }))
    }

    /// Changes its length; without effect once it is in the file.
    pub fn set_len(&self, len: u64) {
        self.0.len.store(len, Ordering::Relaxed);
    }

    /// The content is complete: the next close writes what was withheld.
    pub fn complete(&self) {
        self.0.complete.store(true, Ordering::SeqCst);
    }

    /// Whether the text is in the file.
    pub fn is_set(&self) -> bool {
        self.0.held.lock().is_some()
    }

    /// Puts the text in, if it is not there yet.
    ///
    /// # Errors
    /// The file's.
    pub async fn set(&self, file: &Child) -> Result<()> {
        let _turn = self.0.marking.lock(0..1, LockMode::Exclusive).await;
        if self.is_set() {
            return Ok(());
        }
        let len = self.0.len.load(Ordering::Relaxed) as usize;
        let mut real = vec![0; len];
        let there = (file.len() as usize).min(len);
        if there > 0 {
            let read = file.read(0, there).await?;
            real[..there].copy_from_slice(&read);
            read.recycle();
        }
        let text: Vec<u8> = TEXT.iter().copied().cycle().take(len).collect();
        if len > 0 {
            file.write(0, Buf::copy_of(&text)).await?;
            file.flush().await?;
        }
        *self.0.held.lock() = Some(real);
        Ok(())
    }

    /// Replaces the text by what was withheld.
    async fn lift(&self, file: &Child) -> Result<()> {
        let Some(held) = self.0.held.lock().take() else { return Ok(()) };
        file.flush().await?;
        let mut at = 0;
        for piece in held.chunks(GRAIN) {
            let len = piece.len() as u64;
            // The first block keeps its storage, as in a new file: who opens it without the page cache measures there.
            if at > 0 && piece.len() == GRAIN && is_zero(piece) {
                let zeroes = Request::write_zeroes(at, len).with_flags(Flags::MAY_UNMAP);
                file.submit(zeroes).finish().await.into_bufs()?;
            } else {
                file.write(at, Buf::copy_of(piece)).await?;
            }
            at += len;
        }
        file.flush().await
    }
}

/// Makes the storage of an image under its mark, which comes before anything that could be taken for an image: a
/// disk of zeroes, for one.
pub(crate) async fn create_marked(
    driver: &dyn Driver,
    mut args: CreateArgs,
    cx: &OpenContext,
    mark: &Mark,
) -> Result<()> {
    let filename = args.filename.clone();
    let len = args.options.get("size").and_then(Value::as_u64);
    let mut preallocation = Preallocation::Off;
    // What has its length already, like a device, is looked at as a whole before it is touched.
    let grows = driver.create_options().iter().any(|option| option.name == "preallocation");
    if grows {
        if let Some(word) = args.options.shift_remove("preallocation") {
            let word = word.as_str().unwrap_or_default().to_owned();
            preallocation = Preallocation::from_name(&word).ok_or(BadPreallocation(word))?;
        }
        args.options.insert("size".to_owned(), 0.into());
    }
    driver.create(args, cx.for_child(ChildKind::Storage, EdgeKind::Storage)).await?;
    let file = Child::new(cx.open_unmarked_storage(&filename).await?);
    let made = async {
        mark.set_len(len.map_or(SECTOR_BYTES, |len| len.min(DISK_BYTES)));
        mark.set(&file).await?;
        match len {
            Some(len) if grows => {
                file.submit(Request::truncate(len, preallocation)).finish().await.result.map(drop)
            }
            _ => Ok(()),
        }
    };
    let made = made.await;
    made.and(file.node().close().await)
}

/// A preallocation mode that is none.
#[derive(Debug, thiserror::Error)]
#[error("invalid parameter value: {0}")]
pub struct BadPreallocation(pub String);

impl From<BadPreallocation> for Error {
    fn from(e: BadPreallocation) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// A node in front of a file that is being filled; see the module.
pub struct UnfinishedNode {
    file: Child,
    mark: Mark,
}

impl UnfinishedNode {
    /// Fills `file` under `mark`.
    pub fn new(file: Arc<dyn Node>, mark: Mark) -> Self {
        Self { file: Child::new(file), mark }
    }

    fn withheld(&self) -> u64 {
        self.mark.0.held.lock().as_ref().map_or(0, |held| held.len() as u64)
    }
}

impl Node for UnfinishedNode {
    fn submit(&self, request: Request) -> Op {
        let (file, mark) = (self.file.clone(), self.mark.clone());
        match request.op {
            Operation::Read if request.offset < self.withheld() => {
                Op::wait(async move { read(&file, &mark, request).await })
            }
            Operation::Truncate(preallocation) if mark.is_set() && request.offset < self.withheld() => {
                Op::wait(async move { truncate(&file, &mark, request.offset, preallocation).await })
            }
            Operation::Write
            | Operation::WriteZeroes
            | Operation::Discard
            | Operation::CopyFrom { .. }
            | Operation::Truncate(_)
                if !mark.is_set() || request.offset < self.withheld() =>
            {
                Op::wait(async move {
                    match mark.set(&file).await {
                        Ok(()) => change(&file, &mark, request).await,
                        Err(e) => Completion::failed(request.bufs, e),
                    }
                })
            }
            _ => file.submit(request),
        }
    }

    fn driver(&self) -> &'static str {
        self.file.node().driver()
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn is_read_only(&self) -> bool {
        self.file.node().is_read_only()
    }

    fn starts_as_zero(&self) -> bool {
        self.file.node().starts_as_zero()
    }

    fn compresses(&self) -> bool {
        self.file.node().compresses()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        vec![NamedEdge { role: "file", kind: EdgeKind::Filtered, child: self.file.clone() }]
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.file.node().backing()
    }

    fn filename(&self) -> String {
        self.file.node().filename()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.file.node().info()
    }

    fn check(&self, fix: Fix) -> BoxFuture<Result<CheckReport>> {
        self.file.node().check(fix)
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.file.node().reopen(access)
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let (file, mark) = (self.file.clone(), self.mark.clone());
        Box::pin(async move {
            let lifted = match mark.0.complete.load(Ordering::SeqCst) {
                true => mark.lift(&file).await,
                false => Ok(()),
            };
            lifted.and(file.node().close().await)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A read that begins in what is withheld.
async fn read(file: &Child, mark: &Mark, request: Request) -> Completion {
    let offset = request.offset as usize;
    let mut completion = file.submit(request).finish().await;
    if completion.result.is_ok()
        && let Some(held) = &*mark.0.held.lock()
        && let Some(real) = held.get(offset..)
    {
        let n = real.len().min(completion.bufs.len());
        completion.bufs.write_at(0, &real[..n]);
    }
    completion
}

/// Shortening keeps the text: what would be cut off is zero in what is withheld.
async fn truncate(file: &Child, mark: &Mark, len: u64, preallocation: Preallocation) -> Completion {
    let kept = match &mut *mark.0.held.lock() {
        Some(held) => {
            held[len as usize..].fill(0);
            held.len() as u64
        }
        None => len,
    };
    file.submit(Request::truncate(kept, preallocation)).finish().await
}

/// A change that may begin in what is withheld: that part is kept here, the rest goes to the file.
async fn change(file: &Child, mark: &Mark, mut request: Request) -> Completion {
    let withheld = mark.0.held.lock().as_ref().map_or(0, |held| held.len() as u64);
    let part = request.end().min(withheld).saturating_sub(request.offset);
    if part == 0 || matches!(request.op, Operation::Truncate(_)) {
        return file.submit(request).finish().await;
    }
    let mut kept = Bufs::none();
    let real = match &mut request.op {
        Operation::Write => {
            kept = request.bufs.split_to(part as usize);
            kept.to_contiguous()
        }
        Operation::CopyFrom { source, source_offset } => {
            let read = Child::new(source.clone()).read(*source_offset, part as usize).await;
            *source_offset += part;
            match read {
                Ok(read) => read,
                Err(e) => return Completion::failed(request.bufs, e),
            }
        }
        _ => Buf::zeroed(part as usize),
    };
    let at = request.offset as usize;
    if let Some(held) = &mut *mark.0.held.lock() {
        held[at..at + part as usize].copy_from_slice(&real);
    }
    real.recycle();
    request.offset += part;
    request.len -= part;
    if request.len == 0 {
        return Completion::done(kept);
    }
    let mut completion = file.submit(request).finish().await;
    kept.append(std::mem::take(&mut completion.bufs));
    completion.bufs = kept;
    completion
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemNode;
    use crate::testing::now;

    fn node(mem: &MemNode, mark: &Mark) -> Child {
        Child::new(Arc::new(UnfinishedNode::new(Arc::new(mem.clone()), mark.clone())))
    }

    #[test]
    fn the_text_stands_until_completion() {
        let mem = MemNode::with_content(&[9; 4096]);
        let mark = Mark::new(SECTOR_BYTES);
        let file = node(&mem, &mark);
        assert_eq!(now(file.read(0, 4)).unwrap()[..], [9; 4]);
        assert!(!mark.is_set(), "reading changes nothing");
        now(file.write(500, Buf::copy_of(&[1; 24]))).unwrap();
        assert_eq!(mem.content()[..TEXT.len()], *TEXT);
        assert_eq!(mem.content()[508..524], [&TEXT[508 % TEXT.len()..][..4], &[1; 12]].concat());
        let seen = now(file.read(498, 30)).unwrap();
        assert_eq!(seen[..], [&[9u8; 2][..], &[1; 24], &[9; 4]].concat());
        now(file.node().close()).unwrap();
        assert_eq!(mem.content()[..TEXT.len()], *TEXT, "not declared complete");
        mark.complete();
        now(file.node().close()).unwrap();
        let content = mem.content();
        assert_eq!((&content[..500], &content[500..524]), (&[9; 500][..], &[1; 24][..]));
    }

    #[test]
    fn zeroes_and_shortening_reach_what_is_withheld() {
        let mem = MemNode::with_content(&[9; 4096]);
        let mark = Mark::new(SECTOR_BYTES);
        let file = node(&mem, &mark);
        now(file.submit(Request::write_zeroes(0, 600)).finish()).result.unwrap();
        assert_eq!(mem.content()[512..602], [&[0; 88][..], &[9; 2]].concat());
        now(file.submit(Request::truncate(100, Preallocation::Off)).finish()).result.unwrap();
        assert_eq!((mem.content().len(), mem.content()[..TEXT.len()].to_vec()), (512, TEXT.to_vec()));
        now(file.write(512, Buf::copy_of(&[3; 10]))).unwrap();
        mark.complete();
        now(file.node().close()).unwrap();
        assert_eq!(mem.content(), [&[0; 512][..], &[3; 10]].concat());
    }

    #[test]
    fn a_header_loses_its_magic_only() {
        let mem = MemNode::with_content(b"QFI\xfb\0\0\0\x03");
        let mark = Mark::new(MAGIC_BYTES);
        let file = node(&mem, &mark);
        now(file.write(7, Buf::copy_of(&[2]))).unwrap();
        assert_eq!(mem.content(), b"cowb\0\0\0\x02");
        assert_eq!(now(file.read(0, 8)).unwrap()[..], *b"QFI\xfb\0\0\0\x02");
        mark.complete();
        now(file.node().close()).unwrap();
        assert_eq!(mem.content(), b"QFI\xfb\0\0\0\x02");
    }
}
