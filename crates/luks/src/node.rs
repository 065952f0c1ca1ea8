//! The volume as a block node: sectors of the payload, encrypted on their way down and decrypted on their way up.
//!
//! The sector numbers that IVs are made of count from the payload's first sector. Nothing tells written sectors from
//! others: the whole volume is data.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::child::{EdgeKind, NamedEdge};
use cowbell_block::modes::Modes;
use cowbell_block::naming::{options_of, write_json};
use cowbell_block::options::from_tree;
use cowbell_block::outside::{self, MaybeOutside};
use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::spawn::Spawner;
use cowbell_block::{
    Access, Amend, BoxFuture, Buf, Bufs, Child, Completion, Error, ErrorKind, Extent, ExtentFlags, Flags,
    Force, ImageInfo, Limits, Node, Op, Operation, OptionTree, Preallocation, Request, Result, Secret,
};
use parking_lot::Mutex;
use serde_json::Value;

use crate::amend::{AmendOptions, Change, Slots};
use crate::header::{Header, Placement};
use crate::keys::{Area, MasterKey};
use crate::sector::{SECTOR, SectorCipher};
use crate::{DRIVER, KeyMissing};

/// Bytes encrypted at once, beside the caller's own. Longer writes go piece by piece.
const PIECE_BYTES: u64 = 1 << 20;

/// How a volume is opened.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Whether mutations are accepted.
    pub access: Access,
    /// Discards that are ignored, zeroes that are detected.
    pub modes: Modes,
    /// The passphrase. `None`: the volume is only looked at.
    pub passphrase: Option<Secret>,
    /// The passphrase's name, which is part of the node's.
    pub key_secret: Option<String>,
    /// The way to all cores.
    pub spawner: Option<Spawner>,
    /// Random bytes and time, for new passphrases.
    pub outside: MaybeOutside,
}

/// An open LUKS1 volume.
pub struct Luks(Arc<Volume>);

struct Volume {
    file: Child,
    /// The node that holds the header, if it is not `file`.
    header_file: Option<Child>,
    header: Mutex<Header>,
    payload_offset: u64,
    unlocked: Option<Unlocked>,
    options: OpenOptions,
    read_only: AtomicBool,
    /// One change of key slots at a time.
    amending: RangeLock,
}

struct Unlocked {
    cipher: SectorCipher,
    key: MasterKey,
}

/// A payload that starts behind the file's end.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    // The reference's words, and where it is.
    #[error("Could not refresh total sector count: Input/output error")]
    PayloadBeyondEnd,
}

impl Luks {
    /// Opens the volume in `file`, whose header lies in `header_file` if that is given.
    ///
    /// # Errors
    /// The rule that the header breaks, a wrong passphrase, or the nodes' errors.
    pub async fn open(
        file: Arc<dyn Node>,
        header_file: Option<Arc<dyn Node>>,
        options: OpenOptions,
    ) -> Result<Self> {
        let (file, header_file) = (Child::new(file), header_file.map(Child::new));
        let placement = match &header_file {
            Some(child) => Placement::Detached(child.len()),
            None => Placement::Attached(file.len()),
        };
        let area = Area { child: header_file.as_ref().unwrap_or(&file).clone(), offset: 0 };
        let header = area.read_header(placement).await?;
        let unlocked = match &options.passphrase {
            None => None,
            Some(passphrase) => {
                let key = area.unlock(&header, passphrase, options.spawner.as_ref()).await?;
                Some(Unlocked { cipher: key.cipher(&header)?, key })
            }
        };
        // With a header of its own, the payload starts where the header says too: 0, if it was made like that.
        let payload_offset = header.payload_offset();
        if payload_offset > file.len() {
            return Err(Error::new(ErrorKind::Io, OpenError::PayloadBeyondEnd));
        }
        Ok(Self(Arc::new(Volume {
            file,
            header_file,
            header: Mutex::new(header),
            payload_offset,
            unlocked,
            read_only: AtomicBool::new(options.access == Access::ReadOnly),
            options,
            amending: RangeLock::new(),
        })))
    }
}

impl Volume {
    async fn amend(self: Arc<Self>, change: Change, force: Force) -> Result<()> {
        if self.read_only.load(Ordering::Relaxed) {
            return Err(ErrorKind::ReadOnly.into());
        }
        let unlocked = self.unlocked.as_ref().ok_or(KeyMissing("key-secret"))?;
        let outside = outside::required(&self.options.outside)?;
        let _turn = self.amending.lock(0..1, LockMode::Exclusive).await;
        let mut header = self.header.lock().clone();
        let area = Area { child: self.header_file.as_ref().unwrap_or(&self.file).clone(), offset: 0 };
        let mut slots = Slots {
            area: &area,
            header: &mut header,
            key: &unlocked.key,
            outside: &*outside,
            spawner: self.options.spawner.as_ref(),
            barrier: &|| {
                let child = area.child.clone();
                Box::pin(async move { child.flush().await })
            },
        };
        let result = slots.amend(&change, force).await;
        *self.header.lock() = header;
        result
    }

    fn cipher(&self) -> Result<&SectorCipher> {
        Ok(self.unlocked.as_ref().map(|unlocked| &unlocked.cipher).ok_or(KeyMissing("key-secret"))?)
    }

    /// The payload in whole sectors: what is missing of the last one reads as zeroes below.
    fn len(&self) -> u64 {
        let len = self.file.len().saturating_sub(self.payload_offset);
        len.checked_next_multiple_of(SECTOR as u64).unwrap_or(u64::MAX)
    }

    fn decrypted(&self, offset: u64, mut completion: Completion) -> Completion {
        if completion.result.is_err() {
            return completion;
        }
        match self.cipher() {
            Ok(cipher) => {
                cipher.decrypt_bufs(offset / SECTOR as u64, &mut completion.bufs);
                completion
            }
            Err(e) => Completion::failed(completion.bufs, e),
        }
    }

    fn read(self: &Arc<Self>, mut request: Request) -> Op {
        let offset = request.offset;
        request.offset += self.payload_offset;
        match self.file.submit(request) {
            Op::Done(completion) => Op::Done(self.decrypted(offset, completion)),
            Op::Wait(future) => {
                let volume = self.clone();
                Op::wait(async move { volume.decrypted(offset, future.await) })
            }
        }
    }

    /// A write of `bufs[at..at + len]`, encrypted. `request` is the whole.
    fn encrypted(&self, request: &Request, at: u64, len: u64) -> Result<Request> {
        let sector = (request.offset + at) / SECTOR as u64;
        let buf = if request.bufs.is_empty() {
            let mut zeroes = Buf::zeroed(len as usize);
            self.cipher()?.encrypt(sector, &mut zeroes);
            zeroes
        } else {
            self.cipher()?.encrypt_part(sector, &request.bufs, at as usize, len as usize)
        };
        let write = Request::write(self.payload_offset + request.offset + at, buf);
        Ok(write.with_flags(request.flags & Flags::FUA).caused_by(request.cause))
    }

    /// Writes buffers, or zeroes if there are none.
    fn write(self: &Arc<Self>, mut request: Request) -> Op {
        if request.len > PIECE_BYTES {
            let volume = self.clone();
            return Op::wait(async move {
                let result = volume.write_pieces(&request).await;
                finished(std::mem::take(&mut request.bufs), result)
            });
        }
        let below = match self.encrypted(&request, 0, request.len) {
            Ok(below) => below,
            Err(e) => return Op::failed(request.bufs, e),
        };
        let bufs = std::mem::take(&mut request.bufs);
        let finish = |bufs, completion: Completion| {
            completion.bufs.recycle();
            finished(bufs, completion.result.map(drop))
        };
        match self.file.submit(below) {
            Op::Done(completion) => Op::Done(finish(bufs, completion)),
            Op::Wait(future) => Op::wait(async move { finish(bufs, future.await) }),
        }
    }

    async fn write_pieces(&self, request: &Request) -> Result<()> {
        let mut at = 0;
        while at < request.len {
            let len = PIECE_BYTES.min(request.len - at);
            let below = self.encrypted(request, at, len)?;
            self.file.submit(below).finish().await.into_bufs()?.recycle();
            at += len;
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Op {
        let end = self.len();
        let len = request.len.min(end.saturating_sub(request.offset));
        let mut flags = ExtentFlags::ALLOCATED;
        flags.set(ExtentFlags::DATA, len > 0);
        flags.set(ExtentFlags::EOF, request.offset.saturating_add(len) >= end);
        Op::Done(Completion::extent(Extent { len, flags, map: None }))
    }

    fn truncate(&self, request: Request, preallocation: Preallocation) -> Op {
        let len = request.offset.checked_add(self.payload_offset).filter(|len| *len <= i64::MAX as u64);
        let Some(len) = len else { return Op::failed(request.bufs, ErrorKind::TooLarge) };
        let below = Request::truncate(len, preallocation).with_flags(request.flags).caused_by(request.cause);
        self.file.submit(below)
    }
}

fn finished(bufs: Bufs, result: Result<()>) -> Completion {
    match result {
        Ok(()) => Completion::done(bufs),
        Err(e) => Completion::failed(bufs, e),
    }
}

impl Node for Luks {
    fn submit(&self, request: Request) -> Op {
        let volume = &self.0;
        if request.op.is_mutation() && self.is_read_only() {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        let request = match volume.options.modes.shape(request) {
            ControlFlow::Continue(request) => request,
            ControlFlow::Break(op) => return op,
        };
        let on_disk = matches!(request.op, Operation::Read | Operation::Write | Operation::WriteZeroes);
        if on_disk && request.end() > volume.len() {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        match request.op {
            Operation::Read => volume.read(request),
            Operation::Write if request.flags.contains(Flags::COMPRESSED) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::Write => volume.write(request),
            Operation::WriteZeroes if request.flags.contains(Flags::NO_FALLBACK) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::WriteZeroes => volume.write(request),
            Operation::Status => volume.status(&request),
            Operation::Truncate(preallocation) => volume.truncate(request, preallocation),
            Operation::Flush => volume.file.submit(request),
            // What lies below is of no use to whoever copies, and a discarded sector would read as noise.
            Operation::Discard
            | Operation::CopyFrom { .. }
            | Operation::VmStateRead
            | Operation::VmStateWrite => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: SECTOR as u32, ..Limits::default() }
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let edge = |role, kind, child: &Child| NamedEdge { role, kind, child: child.clone() };
        let kind = if self.0.header_file.is_some() { EdgeKind::Data } else { EdgeKind::Storage };
        let header = self.0.header_file.as_ref().map(|child| edge("header", EdgeKind::Storage, child));
        header.into_iter().chain([edge("file", kind, &self.0.file)]).collect()
    }

    fn primary(&self) -> Option<Arc<dyn Node>> {
        Some(self.0.file.node())
    }

    fn filename(&self) -> String {
        let file = self.0.file.node();
        let header = self.0.header_file.as_ref().map(Child::node);
        let key_secret = &self.0.options.key_secret;
        if header.is_none() && key_secret.is_none() {
            return file.filename();
        }
        // In the reference's order: the header, what the node is, what is its own.
        let mut tree = OptionTree::new();
        if let Some(header) = header {
            tree.insert("header".to_owned(), options_of(&*header));
        }
        tree.insert("driver".to_owned(), Value::from(DRIVER));
        tree.insert("file".to_owned(), options_of(&*file));
        if let Some(id) = key_secret {
            tree.insert("key-secret".to_owned(), Value::from(id.as_str()));
        }
        format!("json:{}", write_json(&Value::Object(tree)))
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let facts = self.0.header.lock().facts(crate::header::Facts::Volume);
        let info = ImageInfo {
            format: DRIVER,
            virtual_size: self.len(),
            encrypted: true,
            format_specific: Some((DRIVER, facts)),
            ..ImageInfo::default()
        };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn amend(&self, options: OptionTree, how: Amend) -> BoxFuture<Result<()>> {
        let volume = self.0.clone();
        Box::pin(async move {
            let options: AmendOptions = from_tree(options)?;
            volume.amend(options.resolve(&how.secrets)?, how.force).await
        })
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let volume = self.0.clone();
        Box::pin(async move {
            volume.file.node().reopen(access).await?;
            if let Some(header) = &volume.header_file {
                header.node().reopen(access).await?;
            }
            volume.read_only.store(access == Access::ReadOnly, Ordering::Relaxed);
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let volume = self.0.clone();
        Box::pin(async move {
            let closed = volume.file.node().close().await;
            match &volume.header_file {
                Some(header) => closed.and(header.node().close().await),
                None => closed,
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
