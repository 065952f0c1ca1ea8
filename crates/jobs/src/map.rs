//! The extents of an image, in order.

use std::sync::Arc;

use cowbell_block::{ExtentFlags, Node};

use crate::error::{Error, Result};
use crate::layers::{self, Reach};

/// One extent as `map` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Layers above the one that determines the content.
    pub depth: u32,
    /// Whether some layer determines the content, rather than none.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether it is stored.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// Where it lies: offset and file name.
    pub place: Option<(u64, Arc<str>)>,
}

impl MapEntry {
    /// Joins `next` to this entry if it continues it.
    fn join(&mut self, next: &MapEntry) -> bool {
        let same = self.start + self.len == next.start
            && (self.depth, self.present, self.zero, self.data, self.compressed)
                == (next.depth, next.present, next.zero, next.data, next.compressed);
        let continues = match (&self.place, &next.place) {
            (None, None) => true,
            (Some((a, file)), Some((b, other))) => a + self.len == *b && file == other,
            _ => false,
        };
        if same && continues {
            self.len += next.len;
        }
        same && continues
    }
}

/// Calls `each` for every extent of `start..end` of the image, neighbours joined.
///
/// An empty range yields one empty entry, as the reference prints it.
///
/// # Errors
/// [`Error::Status`].
pub async fn map(top: &Arc<dyn Node>, start: u64, end: u64, mut each: impl FnMut(&MapEntry)) -> Result<()> {
    let mut names = Names::default();
    let mut open: Option<MapEntry> = None;
    let mut at = start;
    while at < end {
        let extent = layers::status(top, Reach::Chain, at, end - at)
            .await
            .map_err(|source| Error::Status { offset: at, source })?;
        let entry = MapEntry {
            start: at,
            len: extent.len,
            depth: extent.depth,
            present: extent.flags.contains(ExtentFlags::ALLOCATED),
            zero: extent.flags.contains(ExtentFlags::ZERO),
            data: extent.flags.contains(ExtentFlags::DATA),
            compressed: extent.flags.contains(ExtentFlags::COMPRESSED),
            place: extent.map.map(|map| (map.offset, names.of(&map.node))),
        };
        at += entry.len;
        if !open.as_mut().is_some_and(|last| last.join(&entry))
            && let Some(done) = open.replace(entry)
        {
            each(&done);
        }
    }
    if let Some(last) = open {
        each(&last);
    }
    Ok(())
}

/// File names by node: one allocation per node, not per extent.
#[derive(Default)]
struct Names(Vec<(usize, Arc<str>)>);

impl Names {
    fn of(&mut self, node: &Arc<dyn Node>) -> Arc<str> {
        let key = Arc::as_ptr(node).cast::<()>().addr();
        if let Some((_, name)) = self.0.iter().find(|(known, _)| *known == key) {
            return name.clone();
        }
        let name: Arc<str> = node.filename().into();
        self.0.push((key, name.clone()));
        name
    }
}
