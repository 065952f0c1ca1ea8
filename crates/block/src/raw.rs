//! The raw format: the child's bytes, or a window of them.
//!
//! A raw disk is a whole number of 512-byte sectors, as its guests see it: a child that ends inside of a sector
//! reads as zeroes up to the sector's end, which is what protocol nodes give there. Without offset, window, modes or guard a request is handed on as it is.
//!
//! The guard: a node that is raw only because nothing else was recognised refuses writes that would make its
//! first sector look like another format. Otherwise a guest could write a header there that, the next time the
//! image is probed, names any file as its backing file.

use std::any::Any;
use std::future::ready;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Deserialize;
use serde_json::Value;

use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::create::{CreateArgs, CreateOption, OptionKind};
use crate::error::{Error, ErrorKind, Result};
use crate::event::DebugEvent;
use crate::modes::Modes;
use crate::naming::{NamingError, json_filename};
use crate::node::{Access, ImageInfo, Limits, Node};
use crate::options::{ChildRef, OptionTree, SizeOpt, parse};
use crate::registry::{Driver, MeasureSource, Measurement, PROBE_BYTES, Registry, Role};
use crate::request::{
    BoxFuture, Completion, Extent, ExtentFlags, Mapping, Op, Operation, Outcome, Preallocation, Request,
};

/// Bytes in the unit that disks are measured in.
const SECTOR: u64 = 512;

/// The driver of [`RawNode`].
pub struct RawDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawOptions {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    offset: SizeOpt,
    size: Option<SizeOpt>,
}

/// A window that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RawError {
    /// It starts behind the end.
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({len})")]
    OffsetBeyondEnd {
        /// Start of the window.
        offset: u64,
        /// Length of the child.
        len: u64,
    },
    /// It ends behind the end.
    #[error(
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the \
         containing file ({len})"
    )]
    WindowBeyondEnd {
        /// Start of the window.
        offset: u64,
        /// Length of the window.
        size: u64,
        /// Length of the child.
        len: u64,
    },
    /// Disks have whole sectors.
    #[error("Specified size is not multiple of {SECTOR}")]
    SizeUnaligned,
    /// The option `size` holds until the node is opened again.
    #[error("Cannot resize fixed-size raw disks")]
    FixedSize,
    /// Beyond what a file can be.
    #[error("Disk size too large for the chosen offset")]
    TooLarge,
}

impl From<RawError> for Error {
    fn from(e: RawError) -> Self {
        let kind = match e {
            RawError::FixedSize => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

impl Driver for RawDriver {
    fn name(&self) -> &'static str {
        crate::registry::RAW
    }

    fn role(&self) -> Role {
        Role::Format
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let given = given_window(&options);
            let options: RawOptions = parse(crate::registry::RAW, Role::Format, options)?;
            let window = Window { offset: options.offset.0, size: options.size.map(u64::from) };
            let edge = if window == Window::default() { EdgeKind::Filtered } else { EdgeKind::Window };
            let file = cx.open_child_as("file", edge, options.file, ChildKind::Storage).await?;
            let file = file.ok_or_else(|| NamingError::ChildMissing { role: "file".to_owned() })?;
            let guard = cx.was_probed().then(|| cx.registry.clone());
            let node = RawNode::open(file, window, given, cx.access, Modes::of(&cx), guard)?;
            Ok(Arc::new(node) as Arc<dyn Node>)
        })
    }

    fn create_options(&self) -> &'static [CreateOption] {
        const { &[CreateOption::new("size", OptionKind::Size, "Virtual disk size")] }
    }

    fn measure(
        &self,
        _: OptionTree,
        source: MeasureSource,
        _: OpenContext,
    ) -> BoxFuture<Result<Measurement>> {
        let len = match source {
            MeasureSource::Size(len) => len,
            MeasureSource::Image(node) => node.len(),
        };
        let bytes = len.next_multiple_of(512);
        Box::pin(ready(Ok(Measurement { required: bytes, fully_allocated: bytes, bitmaps: None })))
    }

    fn create(&self, args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            cx.create_storage(args).await?.keep();
            Ok(())
        })
    }
}

/// The options of a window as they were written.
fn given_window(options: &OptionTree) -> OptionTree {
    let given = options.iter().filter(|(key, _)| matches!(key.as_str(), "offset" | "size"));
    given.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Which part of the child is the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// First byte in the child.
    pub offset: u64,
    /// Length in bytes, a multiple of 512; `None`: up to the child's end, wherever that moves.
    pub size: Option<u64>,
}

impl Window {
    /// The options that give it.
    fn options(self) -> OptionTree {
        let mut tree = OptionTree::new();
        if self != Self::default() {
            tree.insert("offset".to_owned(), Value::from(self.offset));
        }
        if let Some(size) = self.size {
            tree.insert("size".to_owned(), Value::from(size));
        }
        tree
    }
}

/// A raw disk.
pub struct RawNode(Arc<Raw>);

struct Raw {
    file: Child,
    window: Window,
    /// The window as its user wrote it, for the name.
    given: OptionTree,
    /// Bytes of the window that the child really has, as last seen; refreshed whenever a request goes beyond.
    inner_len: AtomicU64,
    read_only: AtomicBool,
    modes: Modes,
    guard: Option<Arc<Registry>>,
    /// No window, modes or guard: requests inside of the child go on as they are.
    plain: bool,
}

impl RawNode {
    /// All of `file`.
    ///
    /// # Errors
    /// None at present.
    pub fn new(file: Arc<dyn Node>, access: Access) -> Result<Self> {
        Self::open(file, Window::default(), OptionTree::new(), access, Modes::default(), None)
    }

    /// A window of `file`, named by the options that were `given` for it, if any; with `guard` it refuses to become another format of that registry.
    ///
    /// # Errors
    /// The window does not fit into the file.
    pub fn open(
        file: Arc<dyn Node>,
        window: Window,
        given: OptionTree,
        access: Access,
        modes: Modes,
        guard: Option<Arc<Registry>>,
    ) -> Result<Self> {
        let len = file.len();
        let Window { offset, size } = window;
        if offset > len {
            return Err(RawError::OffsetBeyondEnd { offset, len }.into());
        }
        if let Some(size) = size {
            if size > len - offset {
                return Err(RawError::WindowBeyondEnd { offset, size, len }.into());
            }
            if size % SECTOR != 0 {
                return Err(RawError::SizeUnaligned.into());
            }
        }
        // Who gives a window without options has it named by its numbers.
        let given = if given.is_empty() { window.options() } else { given };
        let plain = window == Window::default() && modes.is_plain() && guard.is_none();
        Ok(Self(Arc::new(Raw {
            file: Child::new(file),
            window,
            given,
            inner_len: AtomicU64::new(size.unwrap_or(len - offset)),
            read_only: AtomicBool::new(access == Access::ReadOnly),
            modes,
            guard,
            plain,
        })))
    }
}

impl Raw {
    /// Looks again how much the child has.
    fn refresh(&self) -> u64 {
        let len = match self.window.size {
            Some(size) => size,
            None => self.file.len().saturating_sub(self.window.offset),
        };
        self.inner_len.store(len, Ordering::Release);
        len
    }

    fn len(&self) -> u64 {
        self.refresh().checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX)
    }

    /// Everything but plain requests inside of the child.
    fn submit_checked(self: &Arc<Self>, request: Request) -> Op {
        let request = match self.modes.shape(request) {
            ControlFlow::Continue(request) => request,
            ControlFlow::Break(op) => return op,
        };
        match request.op {
            Operation::Flush => return self.file.submit_after(DebugEvent::FlushToDisk, request),
            Operation::Status => return self.status(request),
            Operation::Truncate(preallocation) => return self.truncate(request, preallocation),
            Operation::VmStateRead | Operation::VmStateWrite => {
                return Op::failed(request.bufs, ErrorKind::Unsupported);
            }
            _ => {}
        }
        let inner = self.refresh();
        if request.end() > self.len() {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        if let Err(e) = self.check_guard(&request) {
            return Op::failed(request.bufs, e);
        }
        match request.op {
            Operation::Discard if request.end() > inner => {
                let mut request = request;
                request.len = inner.saturating_sub(request.offset);
                self.forward(request)
            }
            _ => self.forward(request),
        }
    }

    fn forward(&self, mut request: Request) -> Op {
        request.offset += self.window.offset;
        let event = match request.op {
            Operation::Read => DebugEvent::ReadAio,
            Operation::Write => DebugEvent::WriteAio,
            _ => return self.file.submit(request),
        };
        self.file.submit_after(event, request)
    }

    fn check_guard(&self, request: &Request) -> Result<()> {
        let Some(registry) = &self.guard else { return Ok(()) };
        if request.len == 0 || request.offset >= PROBE_BYTES as u64 {
            return Ok(());
        }
        match request.op {
            Operation::Write => {
                let mut head = [0; PROBE_BYTES];
                // A parent's edge widens requests to our grain, so that the sector is always whole.
                if request.offset != 0 || request.len < head.len() as u64 {
                    return Err(ErrorKind::InvalidInput.into());
                }
                request.bufs.read_at(0, &mut head);
                match registry.driver_of_content(&head) {
                    None => Ok(()),
                    Some(_) => Err(ErrorKind::PermissionDenied.into()),
                }
            }
            Operation::CopyFrom { .. } => Err(ErrorKind::Unsupported.into()),
            _ => Ok(()),
        }
    }

    fn status(self: &Arc<Self>, mut request: Request) -> Op {
        let (start, len) = (request.offset, self.len());
        let inner = self.refresh();
        if start >= len {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED;
            return Op::Done(Completion::extent(Extent { len: 0, flags, map: None }));
        }
        request.len = request.len.min(len - start);
        if start >= inner {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED | ExtentFlags::ZERO;
            // Where the rest of the last sector would lie: the reference names the place.
            let map = Some(Mapping { node: self.file.node(), offset: start + self.window.offset });
            return Op::Done(Completion::extent(Extent { len: request.len, flags, map }));
        }
        request.len = request.len.min(inner - start);
        request.offset += self.window.offset;
        let end = len;
        let raw = self.clone();
        let finish = move |completion: Completion| raw.own_extent(completion, start, end);
        match self.file.submit(request) {
            Op::Done(completion) => Op::Done(finish(completion)),
            Op::Wait(future) => Op::wait(async move { finish(future.await) }),
        }
    }

    /// The child's extent as one of this node: always allocated, and always somewhere in the child.
    fn own_extent(&self, mut completion: Completion, start: u64, end: u64) -> Completion {
        if let Ok(Outcome::Extent(extent)) = &mut completion.result {
            extent.flags |= ExtentFlags::ALLOCATED;
            extent.flags.set(ExtentFlags::EOF, start + extent.len == end);
            let offset = start + self.window.offset;
            extent.map.get_or_insert_with(|| Mapping { node: self.file.node(), offset });
        }
        completion
    }

    fn truncate(self: &Arc<Self>, request: Request, preallocation: Preallocation) -> Op {
        if self.window.size.is_some() {
            return Op::failed(request.bufs, RawError::FixedSize);
        }
        let Some(len) = request.offset.checked_add(self.window.offset).filter(|len| *len <= i64::MAX as u64)
        else {
            return Op::failed(request.bufs, RawError::TooLarge);
        };
        let below = Request::truncate(len, preallocation).with_flags(request.flags).caused_by(request.cause);
        let raw = self.clone();
        let finish = move |completion: Completion| {
            raw.refresh();
            completion
        };
        match self.file.submit(below) {
            Op::Done(completion) => Op::Done(finish(completion)),
            Op::Wait(future) => Op::wait(async move { finish(future.await) }),
        }
    }
}

impl Node for RawNode {
    fn submit(&self, request: Request) -> Op {
        let raw = &self.0;
        let mutates = request.op.is_mutation();
        if mutates && raw.read_only.load(Ordering::Relaxed) {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        let data = matches!(request.op, Operation::Read | Operation::Write | Operation::WriteZeroes);
        if raw.plain && data && request.end() <= raw.inner_len.load(Ordering::Acquire) {
            return raw.forward(request);
        }
        raw.submit_checked(request)
    }

    fn driver(&self) -> &'static str {
        crate::registry::RAW
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn limits(&self) -> Limits {
        let below = self.0.file.limits();
        Limits {
            request_alignment: if self.0.guard.is_some() { PROBE_BYTES as u32 } else { 1 },
            discard_alignment: below.discard_alignment,
            preferred_write: below.preferred_write,
            ..Limits::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    fn starts_as_zero(&self) -> bool {
        self.0.file.node().starts_as_zero()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let kind = if self.0.window == Window::default() { EdgeKind::Filtered } else { EdgeKind::Window };
        vec![NamedEdge { role: "file", kind, child: self.0.file.clone() }]
    }

    fn filename(&self) -> String {
        let file = self.0.file.node();
        let name = file.filename();
        match self.0.window == Window::default() && !name.starts_with("json:") {
            true => name,
            false => json_filename(self.driver(), self.0.given.clone(), &[("file", &*file)]),
        }
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: self.driver(), virtual_size: self.len(), ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let raw = self.0.clone();
        Box::pin(async move {
            raw.file.node().reopen(access).await?;
            raw.read_only.store(access == Access::ReadOnly, Ordering::Relaxed);
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.0.file.node().close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
