//! Which layer of a backing chain holds a range, and as what.

use std::sync::Arc;

use cowbell_block::{ExtentFlags, Flags, Mapping, Node, Request, Result};

/// A range whose content comes from one layer.
#[derive(Clone, Debug)]
pub struct Layered {
    /// Length in bytes; zero only when the question was.
    pub len: u64,
    /// Its kind. Without `ALLOCATED` no layer that was asked determines the content.
    pub flags: ExtentFlags,
    /// Layers above the one that answered.
    pub depth: u32,
    /// Where the bytes lie, when they lie somewhere as they are.
    pub map: Option<Mapping>,
}

/// How far down a question goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The top layer only.
    Top,
    /// All layers.
    Chain,
}

/// Asks about the range of `top` that starts at `offset`.
///
/// A layer that is shorter than the one above supplies zeroes from its end on. The answer is as long as the
/// layers agree, at most `len`.
///
/// # Errors
/// The error of the layer that could not be asked.
pub async fn status(top: &Arc<dyn Node>, reach: Reach, offset: u64, len: u64) -> Result<Layered> {
    let mut node = top.clone();
    let mut len = len;
    let mut depth = 0;
    loop {
        let extent = node
            .submit(Request::status(offset, len).with_flags(Flags::PRECISE))
            .finish()
            .await
            .into_extent()?;
        if extent.len == 0 || len == 0 {
            // Past this layer's end: as if zeroes were stored here.
            return Ok(zeroes(len, depth, ExtentFlags::ALLOCATED));
        }
        len = len.min(extent.len);
        let decided = extent.flags.intersects(ExtentFlags::ALLOCATED);
        if decided || extent.flags.contains(ExtentFlags::ZERO) {
            return Ok(Layered { len, flags: extent.flags, depth, map: extent.map });
        }
        let Some(backing) = node.backing() else {
            return Ok(zeroes(len, depth, ExtentFlags::empty()));
        };
        if offset >= backing.len() {
            return Ok(zeroes(len, depth, ExtentFlags::empty()));
        }
        if reach == Reach::Top {
            return Ok(Layered { len, flags: extent.flags, depth, map: None });
        }
        node = backing;
        depth += 1;
    }
}

/// Whether two chains, each open on its own, store a range in the same bytes of the same file.
pub(crate) fn is_same_place(a: &Mapping, b: &Mapping) -> bool {
    let is_file = |map: &Mapping| matches!(map.node.driver(), "file" | "host_device");
    a.offset == b.offset && is_file(a) && is_file(b) && a.node.filename() == b.node.filename()
}

fn zeroes(len: u64, depth: u32, more: ExtentFlags) -> Layered {
    Layered { len, flags: ExtentFlags::ZERO | more, depth, map: None }
}
