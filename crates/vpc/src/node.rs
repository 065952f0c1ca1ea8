//! The image as a block node.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::child::{EdgeKind, NamedEdge};
use cowbell_block::modes::Modes;
use cowbell_block::naming::{options_of, write_json};
use cowbell_block::node::NoResize;
use cowbell_block::{
    Access, BoxFuture, Child, Completion, ErrorKind, Extent, ExtentFlags, Flags, ImageInfo, Limits, Mapping,
    Node, Op, Operation, OptionTree, Outcome, Request, Result,
};

use crate::DRIVER;
use crate::engine::Engine;
use crate::error::VpcError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer, id_text};
use crate::header::{HEADER_BYTES, Header};
use crate::state::{Layout, State};

/// How an image is opened.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Whether mutations are accepted.
    pub access: Access,
    /// Discards that are ignored, zeroes that are detected.
    pub modes: Modes,
    /// How long the disk is.
    pub size_rule: SizeRule,
}

/// What says how long a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SizeRule {
    /// What the program that made the image goes by.
    #[default]
    Creator,
    /// The length in the footer.
    CurrentSize,
    /// The geometry.
    Chs,
}

impl SizeRule {
    /// The rule of this name.
    ///
    /// # Errors
    /// [`VpcError::SizeRule`].
    pub fn from_name(name: &str) -> std::result::Result<Self, VpcError> {
        match name {
            "current_size" => Ok(Self::CurrentSize),
            "chs" => Ok(Self::Chs),
            other => Err(VpcError::SizeRule(other.to_owned())),
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Creator => None,
            Self::CurrentSize => Some("current_size"),
            Self::Chs => Some("chs"),
        }
    }
}

/// What an image says about itself, read before its parent is opened.
pub struct Metadata {
    footer: Footer,
    header: Option<Header>,
    len: u64,
    parent_name: Option<String>,
}

impl Metadata {
    /// The metadata of the image in `file`.
    ///
    /// # Errors
    /// The rule that it breaks, or the file's error.
    pub async fn read(file: &Child, rule: SizeRule) -> Result<Self> {
        let footer = Footer::read(file).await?;
        let len = footer.disk_len(rule)?;
        if footer.disk_type() == DiskType::Fixed {
            let room = file.len().saturating_sub(FOOTER_BYTES as u64);
            if len > room {
                return Err(VpcError::FixedBeyondFile { disk: len, file: file.len() }.into());
            }
            return Ok(Self { footer, header: None, len, parent_name: None });
        }
        let offset = footer.raw().data_offset.get();
        let outside = offset.checked_add(HEADER_BYTES as u64).is_none_or(|end| end > i64::MAX as u64);
        if outside {
            return Err(VpcError::HeaderOutside.into());
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&file.read(offset, HEADER_BYTES).await?);
        let header = Header::parse(&bytes, len)?;
        let parent_name = match footer.disk_type() {
            DiskType::Differencing => Some(crate::locator::parent_name(file, header.raw()).await?),
            _ => None,
        };
        Ok(Self { footer, header: Some(header), len, parent_name })
    }

    /// The parent's name as stored, for a differencing image.
    pub fn parent_name(&self) -> Option<&str> {
        self.parent_name.as_deref()
    }
}

/// An open image.
pub struct Vpc(Arc<Shared>);

struct Shared {
    kind: Kind,
    footer: Footer,
    /// Of an image that grows: bytes in a block.
    block_bytes: Option<u64>,
    len: u64,
    parent_name: Option<String>,
    size_rule: SizeRule,
}

enum Kind {
    Fixed(Arc<Fixed>),
    Growing(Arc<Engine>),
}

struct Fixed {
    file: Child,
    len: u64,
    modes: Modes,
    writable: AtomicBool,
    /// Something was written: a close flushes.
    touched: AtomicBool,
}

impl Vpc {
    /// Opens the image in `file`, which says `metadata` of itself; `parent` has what it does not.
    ///
    /// # Errors
    /// The rule that it breaks, or the nodes' errors.
    pub async fn open(
        file: Arc<dyn Node>,
        metadata: Metadata,
        parent: Option<Arc<dyn Node>>,
        options: OpenOptions,
    ) -> Result<Self> {
        let file = Child::new(file);
        let Metadata { footer, header, len, parent_name } = metadata;
        let writable = options.access == Access::ReadWrite;
        let kind = match header {
            None => {
                let (writable, touched) = (AtomicBool::new(writable), AtomicBool::new(false));
                Kind::Fixed(Arc::new(Fixed { file, len, modes: options.modes, writable, touched }))
            }
            Some(header) => {
                if let (Some(parent), Some(name)) = (&parent, &parent_name) {
                    check_parent(&**parent, name, &header)?;
                }
                let state = read_state(&file, &header).await?;
                if writable {
                    state.check_disjoint()?;
                }
                let backing = parent.map(Child::new);
                Kind::Growing(Arc::new(Engine::new(
                    file,
                    backing,
                    footer,
                    len,
                    state,
                    options.modes,
                    writable,
                )))
            }
        };
        let block_bytes = header.map(|header| header.block_bytes());
        Ok(Self(Arc::new(Shared {
            kind,
            footer,
            block_bytes,
            len,
            parent_name,
            size_rule: options.size_rule,
        })))
    }

    /// The footer, by which children know their parent.
    pub fn footer(&self) -> &Footer {
        &self.0.footer
    }
}

async fn read_state(file: &Child, header: &Header) -> Result<State> {
    let layout = Layout::of(header)?;
    let bytes = u64::from(layout.blocks) * 4;
    let end = layout.table_offset.checked_add(bytes).filter(|end| *end <= i64::MAX as u64);
    if end.ok_or(VpcError::TableOutside)? > file.len() {
        return Err(VpcError::Truncated.into());
    }
    let table = match bytes {
        0 => Vec::new(),
        _ => file.read(layout.table_offset, bytes as usize).await?.to_vec(),
    };
    Ok(State::new(layout, &table, file.len())?)
}

/// A parent that is no longer what the child was made on would make another disk of it.
fn check_parent(parent: &dyn Node, name: &str, header: &Header) -> std::result::Result<(), VpcError> {
    // The user may give anything for a parent.
    let Some(parent) = parent.as_any().downcast_ref::<Vpc>() else { return Ok(()) };
    let raw = parent.footer().raw();
    let name = name.to_owned();
    if raw.unique_id != header.raw().parent_id {
        let (found, expected) = (id_text(raw.unique_id), id_text(header.raw().parent_id));
        return Err(VpcError::ParentId { name, found, expected });
    }
    let (found, stored) = (raw.timestamp.get(), header.raw().parent_timestamp.get());
    // What is stored is when the parent's file was changed last: never before it was made.
    if stored != 0 && stored < found {
        return Err(VpcError::ParentNewer { name, found, stored });
    }
    Ok(())
}

impl Fixed {
    fn submit(self: &Arc<Self>, request: Request) -> Op {
        if request.op.is_mutation() && !self.writable.load(Ordering::Relaxed) {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        let request = match self.modes.shape(request) {
            ControlFlow::Continue(request) => request,
            ControlFlow::Break(op) => return op,
        };
        match request.op {
            Operation::Read | Operation::Write | Operation::WriteZeroes if request.end() > self.len => {
                Op::failed(request.bufs, ErrorKind::Io)
            }
            Operation::Write if request.flags.contains(Flags::COMPRESSED) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::Write | Operation::WriteZeroes => {
                self.touched.store(true, Ordering::Relaxed);
                self.file.submit(request)
            }
            Operation::Read | Operation::Flush => self.file.submit(request),
            Operation::Status => self.status(request),
            Operation::Truncate(_) => Op::failed(request.bufs, NoResize),
            Operation::Discard
            | Operation::CopyFrom { .. }
            | Operation::VmStateRead
            | Operation::VmStateWrite => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    /// All of it is data; where the file has none, that reads as zeroes.
    fn status(self: &Arc<Self>, mut request: Request) -> Op {
        let start = request.offset;
        if start >= self.len {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED;
            return Op::Done(Completion::extent(Extent { len: 0, flags, map: None }));
        }
        request.len = request.len.min(self.len - start);
        let fixed = self.clone();
        let own = move |mut completion: Completion| {
            if let Ok(Outcome::Extent(extent)) = &mut completion.result {
                extent.flags |= ExtentFlags::ALLOCATED | ExtentFlags::DATA;
                extent.flags.set(ExtentFlags::EOF, start + extent.len >= fixed.len);
                extent.map = Some(Mapping { node: fixed.file.node(), offset: start });
            }
            completion
        };
        match self.file.submit(request) {
            Op::Done(completion) => Op::Done(own(completion)),
            Op::Wait(future) => Op::wait(async move { own(future.await) }),
        }
    }
}

impl Shared {
    fn file(&self) -> &Child {
        match &self.kind {
            Kind::Fixed(fixed) => &fixed.file,
            Kind::Growing(engine) => &engine.file,
        }
    }

    fn parent(&self) -> Option<&Child> {
        match &self.kind {
            Kind::Fixed(_) => None,
            Kind::Growing(engine) => engine.backing.as_ref(),
        }
    }

    fn writable(&self) -> &AtomicBool {
        match &self.kind {
            Kind::Fixed(fixed) => &fixed.writable,
            Kind::Growing(engine) => &engine.writable,
        }
    }

    async fn settle(&self) -> Result<()> {
        match &self.kind {
            Kind::Fixed(fixed) if fixed.touched.load(Ordering::Relaxed) => fixed.file.flush().await,
            Kind::Fixed(_) => Ok(()),
            Kind::Growing(engine) => engine.settle().await,
        }
    }

    async fn reopen(&self, access: Access) -> Result<()> {
        match (access, &self.kind) {
            (Access::ReadOnly, _) => self.settle().await?,
            (Access::ReadWrite, Kind::Growing(engine)) => engine.state.lock().check_disjoint()?,
            (Access::ReadWrite, Kind::Fixed(_)) => {}
        }
        self.file().node().reopen(access).await?;
        self.writable().store(access == Access::ReadWrite, Ordering::Relaxed);
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let settled = self.settle().await;
        self.writable().store(false, Ordering::Relaxed);
        let closed = settled.and(self.file().node().close().await);
        match self.parent() {
            Some(parent) => closed.and(parent.node().close().await),
            None => closed,
        }
    }
}

impl Node for Vpc {
    fn submit(&self, request: Request) -> Op {
        match &self.0.kind {
            Kind::Fixed(fixed) => fixed.submit(request),
            Kind::Growing(engine) => engine.submit(request),
        }
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn len(&self) -> u64 {
        self.0.len
    }

    fn limits(&self) -> Limits {
        match &self.0.kind {
            Kind::Fixed(_) => Limits::default(),
            Kind::Growing(_) => Limits { request_alignment: crate::SECTOR as u32, ..Limits::default() },
        }
    }

    fn is_read_only(&self) -> bool {
        !self.0.writable().load(Ordering::Relaxed)
    }

    fn starts_as_zero(&self) -> bool {
        match &self.0.kind {
            Kind::Fixed(fixed) => fixed.file.node().starts_as_zero(),
            Kind::Growing(engine) => engine.backing.is_none(),
        }
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let file = NamedEdge { role: "file", kind: EdgeKind::Storage, child: self.0.file().clone() };
        let parent = self.0.parent().map(|child| NamedEdge {
            role: "backing",
            kind: EdgeKind::Backing,
            child: child.clone(),
        });
        std::iter::once(file).chain(parent).collect()
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.0.parent().map(Child::node)
    }

    fn filename(&self) -> String {
        let file = self.0.file().node();
        let Some(rule) = self.0.size_rule.name() else { return file.filename() };
        // In the reference's order.
        let mut tree = OptionTree::new();
        tree.insert("force_size_calc".to_owned(), rule.into());
        tree.insert("driver".to_owned(), DRIVER.into());
        tree.insert("file".to_owned(), options_of(&*file));
        format!("json:{}", write_json(&tree.into()))
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo {
            format: DRIVER,
            virtual_size: self.0.len,
            cluster_size: self.0.block_bytes,
            backing_filename: self.0.parent_name.clone(),
            backing_format: self.0.parent_name.as_ref().map(|_| DRIVER.to_owned()),
            ..ImageInfo::default()
        };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.reopen(access).await })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let shared = self.0.clone();
        Box::pin(async move { shared.close().await })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
