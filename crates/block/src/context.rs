//! What an opening node is told, and how it opens its children.
//!
//! A driver gets its options and an [`OpenContext`]: the registry, the access and the modes in force for this
//! node, the policy, and where in a chain it stands. Children are opened through it and inherit from it:
//!
//! | child | access | cache mode | discard | detect-zeroes |
//! |---|---|---|---|---|
//! | storage (`file`, `data-file`) | the parent's | the parent's | unmap: the parent decides | off |
//! | backing file | read only | the parent's | the parent's | off |

use std::sync::Arc;

use serde_json::Value;

use crate::child::EdgeKind;
use crate::claim::claim;
use crate::create::CreateArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Graph, Needs, Permissions};
use crate::naming::{self, ImageName, NamingError};
use crate::node::{Access, Node};
use crate::open::{Opened, open_tree};
use crate::options::{AioMode, CacheMode, ChildRef, CommonOptions, DetectZeroes, DiscardMode, OptionTree};
use crate::outside::{MaybeOutside, Time};
use crate::policy::{Policy, Reference};
use crate::registry::{Driver, Registry};
use crate::secrets::Secrets;
use crate::spawn::Spawner;
use crate::throttle::ThrottleGroups;
use crate::trace::Trace;
use crate::unfinished::{self, Mark, UnfinishedNode};

/// How a child is found when its options name no driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildKind {
    /// A protocol node: a file name without driver is a file.
    Storage,
    /// An image: its format is probed.
    Image,
}

/// What an image says about its backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBacking<'a> {
    /// The name as stored.
    pub name: &'a str,
    /// The format as stored; `None` is probed.
    pub format: Option<&'a str>,
}

/// Seconds that passed since some beginning.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a node is opened with besides its own options. Cloning is cheap.
#[derive(Clone)]
pub struct OpenContext {
    /// The drivers.
    pub registry: Arc<Registry>,
    /// Whether the node is to accept writes.
    pub access: Access,
    /// Whether a node that cannot be written may be opened for reading instead.
    pub auto_read_only: bool,
    /// How writes and flushes reach the host's storage.
    pub cache: CacheMode,
    /// Whether discards have an effect on this node.
    pub discard: DiscardMode,
    /// What becomes of writes of zeroes to this node.
    pub detect_zeroes: DetectZeroes,
    /// Open in spite of image locks that others hold. Only for reading.
    pub force_share: bool,
    /// Open no backing files.
    pub no_backing: bool,
    /// Nothing but metadata will be read (`info`): external data files and secrets are not needed.
    pub no_io: bool,
    /// The image is opened to be checked: inconsistencies that can wait for the check are no reason to fail.
    pub for_check: bool,
    /// Which way requests reach the host's files.
    pub aio: AioMode,
    /// What images may make us open.
    pub policy: Policy,
    /// The way to all cores, for drivers that have much to compute.
    pub spawn: Option<Spawner>,
    /// Tells the time, for what is done now and then; `None` where time does not pass.
    pub clock: Option<Clock>,
    /// The image is being filled: its storage says that it is incomplete until this mark is lifted.
    pub mark: Option<Mark>,
    /// Most bytes of tables that a format keeps in memory unless its own options say otherwise: whoever opens
    /// several images divides what it has.
    pub table_cache_bytes: Option<u64>,
    /// Passphrases and keys, by the names that options call them.
    pub secrets: Secrets,
    /// Chance and time, for those who make keys.
    pub outside: MaybeOutside,
    /// The groups that throttled nodes belong to, by name.
    pub throttle_groups: ThrottleGroups,
    /// Where children named by a string are looked up.
    pub graph: Option<Graph>,
    /// Time that passes, for those who have to wait.
    pub time: Option<Arc<dyn Time>>,
    /// Where events are told.
    pub trace: Option<Trace>,
    /// The modes that the image on top was opened with, as events number them.
    pub(crate) told_modes: Option<u64>,
    needs: Option<Needs>,
    driver: Option<Arc<dyn Driver>>,
    chain: Chain,
    preopened: Option<Arc<dyn Node>>,
    probed: bool,
    kind: ChildKind,
}

/// Where in a backing chain a node is opened.
#[derive(Clone, Default)]
struct Chain {
    depth: u32,
    /// Names of the images above, outermost first.
    names: Arc<Vec<String>>,
    /// The directory that nothing in this chain may lead out of.
    beneath: Option<Arc<str>>,
}

/// A chain of images that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It comes back to itself.
    #[error("Backing file '{0}' creates an infinite loop.")]
    Loop(String),
    /// It has more members than the policy allows.
    #[error("Backing file '{name}' is more than {max} levels below the image")]
    TooDeep {
        /// The file one level too deep.
        name: String,
        /// The policy's limit.
        max: u32,
    },
    /// A backing file did not open.
    #[error("Could not open backing file: {0}")]
    Backing(#[source] Error),
}

fn is_about_the_chain(e: &Error) -> bool {
    let cause = e.cause().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(ChainError::Loop(_) | ChainError::TooDeep { .. }))
}

/// Modes that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// Sharing by force is for readers.
    #[error("force-share=on can only be used with read-only images")]
    ForceShareNeedsReadOnly,
    /// Zeroes cannot be unmapped where discards are ignored.
    #[error("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")]
    DetectZeroesNeedsDiscard,
}

impl From<ModeError> for Error {
    fn from(e: ModeError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

impl OpenContext {
    /// Read only, default modes, everything in an image trusted.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            access: Access::ReadOnly,
            auto_read_only: false,
            cache: CacheMode::WRITEBACK,
            discard: DiscardMode::Unmap,
            detect_zeroes: DetectZeroes::Off,
            force_share: false,
            no_backing: false,
            no_io: false,
            for_check: false,
            aio: AioMode::Auto,
            policy: Policy::trust(),
            spawn: None,
            clock: None,
            mark: None,
            table_cache_bytes: None,
            secrets: Secrets::default(),
            outside: None,
            throttle_groups: ThrottleGroups::default(),
            graph: None,
            time: None,
            trace: None,
            told_modes: None,
            needs: None,
            driver: None,
            chain: Chain::default(),
            preopened: None,
            probed: false,
            kind: ChildKind::Image,
        }
    }

    /// The same for writing.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.access = Access::ReadWrite;
        self
    }

    /// The same for a user that does, and lets others do, as `needs` say; without it, one that reads, or reads and
    /// writes, and minds nobody.
    #[must_use]
    pub fn with_needs(mut self, needs: Needs) -> Self {
        self.needs = Some(needs);
        self
    }

    /// What is asked of the node that is opened: the image locks on the host's storage follow from it.
    pub fn needs(&self) -> Needs {
        let mut needs = self.needs.unwrap_or(match self.access {
            Access::ReadOnly => Needs { required: Permissions::CONSISTENT_READ, ..Needs::NOTHING },
            Access::ReadWrite => {
                let required = Permissions::CONSISTENT_READ | Permissions::WRITE;
                Needs { required, ..Needs::NOTHING }
            }
        });
        if self.no_io {
            needs.required -= Permissions::CONSISTENT_READ;
        }
        if self.force_share {
            needs.shared = Permissions::all();
        }
        needs
    }

    /// The directory that the file named by an image must not lead out of, also not by symbolic links.
    /// `None` for names that the user gave or the policy trusts.
    pub fn beneath(&self) -> Option<&str> {
        self.chain.beneath.as_deref()
    }

    /// Levels of backing files above this node.
    pub fn depth(&self) -> u32 {
        self.chain.depth
    }

    /// Whether the driver was found by looking at the content.
    pub fn was_probed(&self) -> bool {
        self.probed
    }

    /// How this node was asked for; a filter opens its child in the same way.
    pub fn kind(&self) -> ChildKind {
        self.kind
    }

    /// Opens the child that `options` give for `role`, or `None` if they give none.
    ///
    /// # Errors
    /// The child does not open, or no node has the name given.
    pub async fn open_child(
        &self,
        role: &str,
        options: ChildRef,
        kind: ChildKind,
    ) -> Result<Option<Arc<dyn Node>>> {
        let edge = self.driver.as_ref().map_or(EdgeKind::Storage, |driver| driver.edge_kind(role));
        self.open_child_as(role, edge, options, kind).await
    }

    /// Like [`OpenContext::open_child`], for a child that is something else for its parent than the driver's
    /// [`edge_kind`](crate::registry::Driver::edge_kind) says.
    ///
    /// # Errors
    /// As there.
    pub async fn open_child_as(
        &self,
        role: &str,
        edge: EdgeKind,
        options: ChildRef,
        kind: ChildKind,
    ) -> Result<Option<Arc<dyn Node>>> {
        let cx = self.for_child(kind, edge);
        if role == "file"
            && let Some(node) = &self.preopened
        {
            claim(node, cx.needs())?;
            return Ok(Some(node.clone()));
        }
        match options {
            ChildRef::Absent | ChildRef::Null => Ok(None),
            ChildRef::Node(name) => self.named_node(&name).map(Some),
            ChildRef::Inline(tree) => {
                let node = open_tree(tree, cx).await?.node;
                Ok(Some(if role == "file" { self.marked(node) } else { node }))
            }
        }
    }

    /// Storage of an image that is being filled, behind its mark.
    fn marked(&self, storage: Arc<dyn Node>) -> Arc<dyn Node> {
        match &self.mark {
            Some(mark) => Arc::new(UnfinishedNode::new(storage, mark.clone())),
            None => storage,
        }
    }

    /// Like [`OpenContext::open_child`], for a child that must be there.
    ///
    /// # Errors
    /// As there; or `A block device must be specified for "ROLE"`.
    pub async fn require_child(
        &self,
        role: &str,
        options: ChildRef,
        kind: ChildKind,
    ) -> Result<Arc<dyn Node>> {
        let child = self.open_child(role, options, kind).await?;
        child.ok_or_else(|| NamingError::ChildMissing { role: role.to_owned() }.into())
    }

    /// Opens the backing file of an image: the one that the options `given` say, or else the one `stored` in
    /// the image whose own storage is `file`. `None` if there is none or none is wanted.
    ///
    /// # Errors
    /// The policy refuses a stored name, the chain loops or is too deep, or the file does not open.
    pub async fn open_backing(
        &self,
        file: &dyn Node,
        stored: Option<StoredBacking<'_>>,
        given: ChildRef,
    ) -> Result<Option<Arc<dyn Node>>> {
        let stored = stored.filter(|stored| !stored.name.is_empty());
        let mut own = match given {
            _ if self.no_backing => return Ok(None),
            ChildRef::Null => return Ok(None),
            // The old way to say so.
            ChildRef::Node(name) if name.is_empty() => return Ok(None),
            ChildRef::Node(name) => {
                let node = self.named_node(&name);
                return node.map(Some).map_err(|e| Error::new(e.kind(), ChainError::Backing(e)));
            }
            ChildRef::Absent => OptionTree::new(),
            ChildRef::Inline(tree) => naming::nest(tree).map_err(NamingError::List)?,
        };
        let location = naming::location_of(file);
        let mut cx = self.below(location.clone());
        let names_itself = own.contains_key("file") || own.contains_key("filename");
        let mut tree = OptionTree::new();
        let shown = match stored {
            Some(stored) if !names_itself => {
                let allowed = cx.follow(Reference::BackingFile, &location, stored.name)?;
                let name = ImageName::Text(allowed.clone());
                tree = naming::image_tree(&self.registry, &name, stored.format)
                    .map_err(|e| Error::new(e.kind(), ChainError::Backing(e)))?;
                allowed
            }
            _ if own.is_empty() => return Ok(None),
            _ => String::new(),
        };
        tree.append(&mut own);
        if cx.chain.names.contains(&shown) {
            return Err(Error::new(ErrorKind::InvalidInput, ChainError::Loop(shown)));
        }
        if cx.chain.depth > self.policy.depth_max {
            let error = ChainError::TooDeep { name: shown, max: self.policy.depth_max };
            return Err(Error::new(ErrorKind::InvalidInput, error));
        }
        // As the reference does: what the image above needs is asked for when the backing file is open, and a
        // refusal concerns the image, not the opening of the backing file.
        let needs = cx.needs();
        match open_tree(tree, cx.with_needs(Needs::NOTHING)).await {
            Ok(opened) => {
                claim(&opened.node, needs)?;
                Ok(Some(opened.node))
            }
            // A loop concerns the whole chain: the links above add nothing.
            Err(e) if is_about_the_chain(&e) => Err(e),
            Err(e) => {
                let (kind, errno) = (e.kind(), e.errno());
                let cause = ChainError::Backing(e);
                Err(if ErrorKind::from_errno(errno) == kind {
                    Error::with_errno(errno, cause)
                } else {
                    Error::new(kind, cause)
                })
            }
        }
    }

    /// Opens the external data file of an image: the one that the options `given` say, or else the one `stored`
    /// in the image whose own storage is `file`.
    ///
    /// # Errors
    /// The policy refuses a stored name, or the file does not open.
    pub async fn open_data_file(
        &self,
        file: &dyn Node,
        stored: Option<&str>,
        given: ChildRef,
    ) -> Result<Option<Arc<dyn Node>>> {
        match (given, stored.filter(|name| !name.is_empty())) {
            (ChildRef::Absent, Some(name)) => {
                let mut cx = self.for_child(ChildKind::Storage, EdgeKind::Data);
                let allowed = cx.follow(Reference::DataFile, &naming::location_of(file), name)?;
                let tree = naming::storage_tree(&self.registry, &allowed)?;
                Ok(Some(open_tree(tree, cx).await?.node))
            }
            (given, _) => self.open_child("data-file", given, ChildKind::Storage).await,
        }
    }

    /// Makes the protocol node that a new image will live in; `args` hold what its driver may be told.
    ///
    /// # Errors
    /// No driver has the prefix, or the driver cannot create.
    pub async fn create_storage(&self, args: CreateArgs) -> Result<NewStorage> {
        let tree = naming::storage_tree(&self.registry, &args.filename)?;
        let name = tree.get("driver").and_then(Value::as_str).unwrap_or_default();
        let driver = self.registry.driver(name);
        let driver = driver.ok_or_else(|| NamingError::UnknownDriver(name.to_owned()))?;
        let filename = args.filename.clone();
        match &self.mark {
            None => driver.create(args, self.for_child(ChildKind::Storage, EdgeKind::Storage)).await?,
            Some(mark) => unfinished::create_marked(&**driver, args, self, mark).await?,
        }
        // What is marked is unfinished for everybody until its mark is lifted, and is its owner's to remove.
        let made_by = self.mark.is_none().then(|| driver.clone());
        Ok(NewStorage { made_by, filename })
    }

    /// Opens a protocol node by its name for reading and writing, to make an image inside.
    ///
    /// # Errors
    /// No driver has the prefix, or the node does not open.
    pub async fn open_storage(&self, filename: &str) -> Result<Arc<dyn Node>> {
        Ok(self.marked(self.open_unmarked_storage(filename).await?))
    }

    pub(crate) async fn open_unmarked_storage(&self, filename: &str) -> Result<Arc<dyn Node>> {
        let tree = naming::storage_tree(&self.registry, filename)?;
        Ok(open_tree(tree, self.clone().writable().for_child(ChildKind::Storage, EdgeKind::Storage))
            .await?
            .node)
    }

    /// Opens an image by its name with this context, as a tool does.
    ///
    /// # Errors
    /// As [`open_image`](crate::open::open_image).
    pub async fn open_image(&self, name: &ImageName, format: Option<&str>) -> Result<Opened> {
        crate::open::open_image(name, format, self).await
    }

    pub(crate) fn named_node(&self, name: &str) -> Result<Arc<dyn Node>> {
        let node = self.graph.as_ref().and_then(|graph| graph.node(name));
        node.ok_or_else(|| NamingError::UnknownNode(name.to_owned()).into())
    }

    /// The context of a child that is not a backing file.
    pub(crate) fn for_child(&self, kind: ChildKind, edge: EdgeKind) -> Self {
        Self {
            needs: Some(self.needs().below(edge, self.access == Access::ReadWrite)),
            driver: None,
            discard: DiscardMode::Unmap,
            detect_zeroes: DetectZeroes::Off,
            mark: None,
            preopened: None,
            probed: false,
            kind,
            ..self.clone()
        }
    }

    /// The context of the backing file of the image at `location`.
    fn below(&self, location: String) -> Self {
        let mut names = Vec::clone(&self.chain.names);
        names.push(location);
        let chain = Chain {
            depth: self.chain.depth + 1,
            names: Arc::new(names),
            beneath: self.chain.beneath.clone(),
        };
        let needs = self.needs().below(EdgeKind::Backing, self.access == Access::ReadWrite);
        Self {
            needs: Some(needs),
            driver: None,
            access: Access::ReadOnly,
            auto_read_only: false,
            detect_zeroes: DetectZeroes::Off,
            mark: None,
            preopened: None,
            probed: false,
            kind: ChildKind::Image,
            chain,
            ..self.clone()
        }
    }

    /// Asks the policy about a name stored in `image`, and confines this context to what it says.
    fn follow(&mut self, reference: Reference, image: &str, name: &str) -> Result<String> {
        let allowed = self.policy.decide(reference, image, name, self.beneath())?;
        self.chain.beneath = allowed.beneath.map(Arc::from);
        Ok(allowed.name)
    }

    /// Applies a node's own common options to what it inherited.
    pub(crate) fn apply(&mut self, common: &CommonOptions) -> Result<()> {
        if let Some(discard) = common.discard {
            self.discard = discard;
        }
        if let Some(detect_zeroes) = common.detect_zeroes {
            self.detect_zeroes = detect_zeroes;
        }
        if let Some(direct) = common.cache.direct {
            self.cache.direct = direct.0;
        }
        if let Some(no_flush) = common.cache.no_flush {
            self.cache.no_flush = no_flush.0;
        }
        if let Some(auto_read_only) = common.auto_read_only {
            self.auto_read_only = auto_read_only.0;
        }
        if let Some(force_share) = common.force_share {
            self.force_share = force_share.0;
        }
        if common.read_only.is_some_and(|read_only| read_only.0) {
            self.access = Access::ReadOnly;
        }
        if self.force_share && self.access == Access::ReadWrite {
            return Err(ModeError::ForceShareNeedsReadOnly.into());
        }
        if self.detect_zeroes == DetectZeroes::Unmap && self.discard != DiscardMode::Unmap {
            return Err(ModeError::DetectZeroesNeedsDiscard.into());
        }
        Ok(())
    }

    /// The context of storage whose content decides about the driver above: nobody is asked, and nothing held.
    pub(crate) fn for_probing(&self) -> Self {
        self.clone().with_needs(Needs::NOTHING)
    }

    /// Notes whose children are opened with this context.
    pub(crate) fn with_driver(mut self, driver: &Arc<dyn Driver>) -> Self {
        self.driver = Some(driver.clone());
        self
    }

    pub(crate) fn with_preopened(mut self, file: Arc<dyn Node>) -> Self {
        self.preopened = Some(file);
        self.probed = true;
        self
    }
}
/// Storage made for an image that does not exist yet. Whoever has filled it keeps it; dropped, it is removed again, so that
/// nothing is left of an image that could not be made.
#[must_use = "what is not kept is removed"]
pub struct NewStorage {
    made_by: Option<Arc<dyn Driver>>,
    filename: String,
}

impl NewStorage {
    /// The image is complete.
    pub fn keep(mut self) {
        self.made_by = None;
    }
}

impl Drop for NewStorage {
    fn drop(&mut self) {
        if let Some(driver) = self.made_by.take() {
            driver.remove(&self.filename);
        }
    }
}
