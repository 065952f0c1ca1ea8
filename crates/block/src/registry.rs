//! The drivers that a program knows: a value that the program fills and passes down.
//!
//! Formats do not know each other, and this crate knows no format but raw. Whoever opens a node finds its driver
//! here by name, by the prefix of a file name, by the kind of path, or by the first bytes of the content.

use std::sync::Arc;

use crate::child::EdgeKind;
use crate::context::OpenContext;
use crate::create::{CreateArgs, CreateOption};
use crate::error::{Error, Result};
use crate::naming::strip_prefix;
use crate::node::{Node, NotOffered};
use crate::options::OptionTree;
use crate::request::BoxFuture;

/// How many of the first bytes of an image decide about its format.
pub const PROBE_BYTES: usize = 512;

/// The name of the format that everything else is.
pub const RAW: &str = "raw";

/// What a driver is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It stores bytes somewhere: files, devices, the network, memory.
    Protocol,
    /// It is an image format, inside of a protocol node.
    Format,
    /// It passes requests on to its child, and does something with them.
    Filter,
}

/// How certain a driver is that content or a path is its own: 0 not at all, 100 as certain as it gets.
pub type Score = u8;

/// Makes nodes of one kind.
pub trait Driver: Send + Sync + 'static {
    /// The name, as in options and messages.
    fn name(&self) -> &'static str;

    /// What it is for.
    fn role(&self) -> Role;

    /// How much content that starts with `head` looks like this format.
    ///
    /// `head` has [`PROBE_BYTES`] bytes, or fewer if the content has fewer.
    fn probe(&self, head: &[u8]) -> Score {
        let _ = head;
        0
    }

    /// How much a path without prefix belongs to this protocol (a device node, say). `file` gets all others.
    fn probe_path(&self, path: &str) -> Score {
        let _ = path;
        0
    }

    /// The prefixes of file names that this driver handles, without colon. Its own name by default, if it is
    /// a protocol.
    fn prefixes(&self) -> Vec<&'static str> {
        match self.role() {
            Role::Protocol => vec![self.name()],
            Role::Format | Role::Filter => Vec::new(),
        }
    }

    /// Turns a file name, with its prefix if it has one, into the driver's own options.
    ///
    /// # Errors
    /// The name is not of the form that the driver wants.
    fn parse_filename(&self, name: &str) -> Result<OptionTree> {
        let mut tree = OptionTree::new();
        tree.insert("filename".to_owned(), strip_prefix(name, self.name()).into());
        Ok(tree)
    }

    /// What the child in this role is for a node of this driver: it decides what the node needs of it.
    fn edge_kind(&self, role: &str) -> EdgeKind {
        match (self.role(), role) {
            (_, "backing") => EdgeKind::Backing,
            (Role::Format, "data-file") => EdgeKind::Data,
            (Role::Format, _) => EdgeKind::Storage,
            (Role::Filter | Role::Protocol, _) => EdgeKind::Filtered,
        }
    }

    /// Whether images of this format can have a backing file.
    fn supports_backing(&self) -> bool {
        false
    }

    /// Whether its nodes can store data compressed.
    fn supports_compression(&self) -> bool {
        false
    }

    /// Opens a node. The common options are gone from `options` and are in `cx`.
    ///
    /// Children are opened through `cx`.
    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>>;

    /// What [`Driver::create`] can be told, in the order that help and messages show. Empty: cannot create.
    fn create_options(&self) -> &'static [CreateOption] {
        &[]
    }

    /// How large a new image with these options of creation would be. `cx` has the secrets that they may name.
    fn measure(
        &self,
        options: OptionTree,
        source: MeasureSource,
        cx: OpenContext,
    ) -> BoxFuture<Result<Measurement>> {
        let _ = (options, source, cx);
        let error = NotOffered { driver: self.name(), what: "size measurement" };
        Box::pin(std::future::ready(Err(Error::from(error))))
    }

    /// What [`Node::amend`] can be told, in the order that help shows. Empty: images cannot be amended.
    fn amend_options(&self) -> &'static [CreateOption] {
        &[]
    }

    /// Removes what [`Driver::create`] made under this name, because what was to be put inside cannot be. Nothing
    /// happens where there is nothing to remove, as with a device.
    fn remove(&self, filename: &str) {
        let _ = filename;
    }

    /// Makes a new image. A format makes the file first ([`OpenContext::create_storage`]), then opens it and
    /// writes its own structures.
    fn create(&self, args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        let _ = (args, cx);
        let error = NotOffered { driver: self.name(), what: "image creation" };
        Box::pin(std::future::ready(Err(Error::from(error))))
    }
}

/// What an image is measured for.
#[derive(Clone)]
pub enum MeasureSource {
    /// An empty disk of this many bytes.
    Size(u64),
    /// The content of this image and what lies below it.
    Image(Arc<dyn Node>),
}

/// How large a new image would be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Filled with the source's content.
    pub required: u64,
    /// With every byte of the disk allocated.
    pub fully_allocated: u64,
    /// What the source's bitmaps would take besides; `None` where there can be none.
    pub bitmaps: Option<u64>,
}

/// The drivers in the order they were added.
#[derive(Clone, Default)]
pub struct Registry {
    drivers: Vec<Arc<dyn Driver>>,
}

impl Registry {
    /// No drivers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a driver, in place of one with the same name.
    pub fn add(&mut self, driver: impl Driver) -> &mut Self {
        let driver: Arc<dyn Driver> = Arc::new(driver);
        match self.drivers.iter_mut().find(|known| known.name() == driver.name()) {
            Some(known) => *known = driver,
            None => self.drivers.push(driver),
        }
        self
    }

    /// Adds the drivers of this crate that tools know and that need nothing of them: `raw`, `null-co`, `null-aio`,
    /// and filters.
    ///
    /// `mem` is left out: it is for embedding and tests, and no tool knows the name.
    pub fn add_builtin(&mut self) -> &mut Self {
        self.add(crate::raw::RawDriver)
            .add(crate::null::NullDriver::CO)
            .add(crate::null::NullDriver::AIO)
            .add(crate::logwrites::LogWritesDriver)
            .add(crate::compress::CompressDriver)
            .add(crate::copy_before_write::CopyBeforeWriteDriver)
            .add(crate::copy_on_read::CopyOnReadDriver)
            .add(crate::preallocate::PreallocateDriver)
            .add(crate::snapshot_access::SnapshotAccessDriver)
            .add(crate::throttle::ThrottleDriver)
    }

    /// The driver of this name.
    pub fn driver(&self, name: &str) -> Option<&Arc<dyn Driver>> {
        self.drivers.iter().find(|driver| driver.name() == name)
    }

    /// All drivers, in the order they were added.
    pub fn drivers(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        self.drivers.iter()
    }

    /// The names of all drivers, sorted, for `help`.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.drivers.iter().map(|driver| driver.name()).collect();
        names.sort_unstable();
        names
    }

    /// The driver that handles file names which start with `prefix:`.
    pub fn driver_of_prefix(&self, prefix: &str) -> Option<&Arc<dyn Driver>> {
        self.drivers.iter().find(|driver| driver.prefixes().contains(&prefix))
    }

    /// The driver that claims a path as it is, before any prefix is looked at.
    pub fn driver_of_path(&self, path: &str) -> Option<&Arc<dyn Driver>> {
        best(self.drivers.iter().map(|driver| (driver.probe_path(path), driver)))
    }

    /// The format that content with this head is most likely of. `None`: raw, by default.
    pub fn driver_of_content(&self, head: &[u8]) -> Option<&Arc<dyn Driver>> {
        let head = &head[..head.len().min(PROBE_BYTES)];
        let formats = self.drivers.iter().filter(|driver| driver.role() == Role::Format);
        best(formats.map(|driver| (driver.probe(head), driver)))
    }
}

/// The highest score above zero; the first of equals.
fn best<'a>(candidates: impl Iterator<Item = (Score, &'a Arc<dyn Driver>)>) -> Option<&'a Arc<dyn Driver>> {
    let mut best = None;
    let mut best_score = 0;
    for (score, driver) in candidates {
        if score > best_score {
            (best, best_score) = (Some(driver), score);
        }
    }
    best
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// A driver that only has a name.
    pub(crate) struct Named(pub &'static str, pub Role);

    impl Driver for Named {
        fn name(&self) -> &'static str {
            self.0
        }
        fn role(&self) -> Role {
            self.1
        }
        fn probe_path(&self, path: &str) -> Score {
            if self.0 == "host_device" && path.starts_with("/dev/") { 100 } else { 0 }
        }
        fn open(&self, _: OptionTree, _: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
            Box::pin(std::future::ready(Err(ErrorKind::NotFound.into())))
        }
    }

    pub(crate) fn sample() -> Registry {
        let mut registry = Registry::new();
        registry.add_builtin();
        registry.add(Named("file", Role::Protocol)).add(Named("host_device", Role::Protocol));
        registry
    }

    #[test]
    fn drivers_are_found_by_name_and_prefix() {
        let registry = sample();
        assert_eq!(registry.driver("raw").map(|d| d.role()), Some(Role::Format));
        assert_eq!(registry.driver_of_prefix("file").map(|d| d.name()), Some("file"));
        assert!(registry.driver_of_prefix("raw").is_none());
        for name in ["blklogwrites", "file", "host_device", "null-aio", "null-co", "raw", "throttle"] {
            assert!(registry.names().contains(&name), "{name}");
        }
    }

    #[test]
    fn a_second_driver_of_a_name_replaces_the_first() {
        let mut registry = sample();
        let before = registry.names().len();
        registry.add(Named("file", Role::Filter));
        assert_eq!(registry.names().len(), before);
        assert_eq!(registry.driver("file").map(|d| d.role()), Some(Role::Filter));
    }
}
