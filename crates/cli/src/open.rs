//! Opening images as the options of the tools say.

use std::io::ErrorKind as IoKind;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::{ImageName, parse_option_list};
use cowbell_block::node::{Access, Node};
use cowbell_block::options::{AioMode, CacheMode, DiscardMode, OptionTree};
use cowbell_block::trace::Word;
use cowbell_block::unfinished::Mark;
use cowbell_block::{
    Completion, ErrorKind, Flags, Needs, Op, Operation, Outcome, Request, Root, TraceEvent, open_image_with,
};

use crate::context::Context;
use crate::out::complain;
use cowbell_host::name_of;

/// How one image is to be opened.
#[derive(Clone)]
pub struct How<'a> {
    /// The file name, or the list of options.
    pub name: &'a str,
    /// The format given by the user.
    pub format: Option<&'a str>,
    /// `name` is a list of options.
    pub image_opts: bool,
    /// Whether it is written to.
    pub access: Access,
    /// Whether locks of others are ignored.
    pub force_share: bool,
    /// The cache mode.
    pub cache: CacheMode,
    /// Whether discards have an effect.
    pub discard: DiscardMode,
    /// How the host is asked.
    pub aio: AioMode,
    /// What will be done with it.
    pub purpose: Purpose,
    /// It is being filled, and its storage says so.
    pub mark: Option<Mark>,
    /// Options of its node beside those in its name.
    pub more: OptionTree,
    /// How many images the command has open side by side: they divide the memory for tables.
    pub side_by_side: usize,
}

/// What an image is opened for, as far as it changes how it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reading or writing data.
    Data,
    /// Being copied: nobody else may change it meanwhile.
    Source,
    /// The disk of a machine, which believes in what it wrote: nobody else may write, whatever the format.
    Disk,
    /// Looking at metadata: the backing file and an external data file stay closed.
    Inspect,
    /// Changing metadata: the backing file stays closed.
    Change,
    /// Asking for its length: what its content is encrypted with need not be known.
    Length,
    /// Checking and repairing.
    Check,
}

impl<'a> How<'a> {
    /// Read-only with the default modes.
    pub fn reading(name: &'a str, format: Option<&'a str>) -> Self {
        Self {
            name,
            format,
            image_opts: false,
            access: Access::ReadOnly,
            force_share: false,
            cache: CacheMode::WRITEBACK,
            discard: DiscardMode::Ignore,
            aio: AioMode::Auto,
            purpose: Purpose::Data,
            mark: None,
            more: OptionTree::new(),
            side_by_side: 1,
        }
    }
}

/// Most bytes of tables that the images of one command keep in memory together: what one image takes alone.
const TABLE_CACHE_BYTES: u64 = 32 << 20;

/// An image in use by a tool.
pub struct Image {
    /// Where requests go in.
    pub root: Root,
    /// How the user named it.
    pub name: String,
    /// Whether each write is made durable at once.
    pub write_through: bool,
    /// The cache mode it was opened with.
    pub cache: CacheMode,
    /// No format was given, and the content looks like none.
    pub probed_raw: bool,
    /// How the user named its node, if at all.
    pub node_name: Option<String>,
}

impl Image {
    /// The node.
    pub fn node(&self) -> std::sync::Arc<dyn Node> {
        self.root.node()
    }

    /// What the cache mode asks of writes.
    fn added_flags(&self, op: &Operation) -> Flags {
        let is_write = matches!(op, Operation::Write | Operation::WriteZeroes);
        if self.write_through && is_write { Flags::FUA } else { Flags::empty() }
    }

    /// Tells that the image is in use, or is not any more.
    fn tell(&self, event: TraceEvent) {
        let child = self.root.child();
        if child.is_traced() {
            let words = [child.identity(), self.root.identity(), self.node().identity()];
            child.tell(event, &words.map(Word::Number));
        }
    }

    /// Sends a request, with what the cache mode asks for.
    ///
    /// A discard is advice: a format that cannot follow it has done all that was asked.
    pub fn submit(&self, request: Request) -> Op {
        let is_advice = matches!(request.op, Operation::Discard);
        let added = self.added_flags(&request.op);
        match self.root.submit_with(request, added) {
            op if !is_advice => op,
            Op::Done(completion) => Op::Done(advised(completion)),
            Op::Wait(future) => Op::wait(async move { advised(future.await) }),
        }
    }

    /// Closes the image: after this its caches are in the file, and its locks are free.
    ///
    /// # Errors
    /// What could not be written.
    pub async fn close(self) -> Result<(), CloseError> {
        self.tell(TraceEvent::BlkRootDetach);
        let node = self.root.node();
        node.close().await.map_err(|reason| CloseError { name: self.name, reason })
    }
}

/// An image could not be closed: some of what was written to it may be lost.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct CloseError {
    /// How the user named it.
    pub name: String,
    /// Why.
    pub reason: cowbell_block::Error,
}

/// The end of a request that need not have had an effect.
fn advised(completion: Completion) -> Completion {
    match completion.result {
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            Completion { result: Ok(Outcome::Done), ..completion }
        }
        _ => completion,
    }
}

/// Opens an image; the error says which one.
///
/// # Errors
/// `Could not open 'NAME': REASON`.
pub async fn open(cx: &Context, how: &How<'_>) -> Result<Image> {
    if how.image_opts {
        let tree = parse_option_list(how.name)?;
        if tree.get("backing").is_some_and(|word| word == "") {
            cx.report("warning: Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
        }
        if how.force_share && tree.get("force-share").is_some_and(|word| word != "on") {
            bail!("--force-share/-U conflicts with image options");
        }
    }
    let image = open_bare(cx, how)
        .await
        .map_err(|e| anyhow!("Could not open '{}': {e}{}", how.name, crate::size::hint(&e)))?;
    if how.access == Access::ReadWrite && image.node().is_read_only() {
        bail!("Could not open '{}': Block node is read-only", how.name);
    }
    Ok(image)
}

/// Opens an image; the error is the bare reason.
///
/// # Errors
/// Why it does not open.
pub async fn open_bare(cx: &Context, how: &How<'_>) -> cowbell_block::Result<Image> {
    let mut context = cx.open_context();
    context.access = how.access;
    context.cache = how.cache;
    context.discard = how.discard;
    context.aio = how.aio;
    context.force_share = how.force_share;
    let start = Instant::now();
    context.clock = Some(Arc::new(move || start.elapsed().as_secs()));
    context.no_backing = matches!(how.purpose, Purpose::Inspect | Purpose::Change);
    context.no_io = matches!(how.purpose, Purpose::Inspect | Purpose::Length);
    context.for_check = how.purpose == Purpose::Check;
    context.mark = how.mark.clone();
    context.table_cache_bytes = (how.side_by_side > 1).then(|| TABLE_CACHE_BYTES / how.side_by_side as u64);
    match (how.purpose, how.access) {
        (Purpose::Source, _) | (Purpose::Disk, Access::ReadOnly) => context = context.with_needs(Needs::READ),
        (Purpose::Disk, Access::ReadWrite) => context = context.with_needs(Needs::WRITE),
        _ => {}
    }
    let name = match how.image_opts {
        true => ImageName::OptionList(how.name.to_owned()),
        false => ImageName::Text(how.name.to_owned()),
    };
    let opened = open_image_with(&name, how.format, how.more.clone(), &context).await?;
    let image = Image {
        node_name: opened.node_name,
        root: Root::new(opened.node),
        name: how.name.to_owned(),
        write_through: how.cache.write_through,
        cache: how.cache,
        probed_raw: opened.probed_raw,
    };
    image.tell(TraceEvent::BlkRootAttach);
    Ok(image)
}

/// The cache mode of this name.
///
/// # Errors
/// `Invalid WHAT option: NAME`.
pub fn cache_mode(what: &str, name: &str) -> Result<CacheMode> {
    match CacheMode::from_name(name) {
        Some(mode) => Ok(mode),
        None => bail!("Invalid {what} option: {name}"),
    }
}

/// The three lines about a writable image whose format was guessed.
pub fn warn_probed_raw(name: &str) {
    complain(format_args!("WARNING: Image format was not specified for '{name}' and probing guessed raw."));
    complain(
        "         Automatically detecting the format is dangerous for raw images, \
         write operations on block 0 will be restricted.",
    );
    complain("         Specify the 'raw' format explicitly to remove the restrictions.");
}

/// The host's reason without its number.
pub fn reason(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), cowbell_block::error::errno_text)
}

/// A file that this run made and that is of no use unless the run succeeds.
///
/// Only regular files named plainly are ever removed: what stands behind a protocol or a device was there
/// before.
#[must_use = "the file is removed when this is dropped"]
pub struct Unfinished {
    path: Option<std::path::PathBuf>,
}

impl Unfinished {
    /// Guards `path`.
    pub fn new(path: impl Into<std::path::PathBuf>) -> Self {
        Self { path: Some(path.into()) }
    }

    /// The file is good now.
    pub fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let regular = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
        if !regular {
            return;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == IoKind::NotFound => {}
            Err(e) => {
                complain(format_args!(
                    "cowbell: the incomplete file {} cannot be removed: {e}",
                    name_of(&path)
                ));
            }
        }
    }
}
