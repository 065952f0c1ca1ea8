//! Walking a backing chain: where the bytes of a range come from.
//!
//! A layer that has not allocated a range defers to the one below it. What no layer has reads as zeroes, and so does
//! what lies beyond the end of a layer that was deferred to, whatever the layers below *it* hold.

use std::sync::Arc;

use crate::error::Result;
use crate::node::Node;
use crate::request::{Extent, ExtentFlags, Flags, Mapping, Request};

/// Most layers that are walked: beyond any chain that opening accepts.
const LAYERS_MAX: usize = 1024;

/// Layers of a backing chain, top first.
#[derive(Clone)]
pub struct Chain {
    layers: Vec<Arc<dyn Node>>,
    /// Nothing follows the last layer. Otherwise the base does, which is not looked at.
    complete: bool,
    flags: Flags,
}

/// A range of a chain that is of one kind.
#[derive(Clone, Debug)]
pub struct ChainExtent {
    /// Length in bytes; zero only at or beyond the end.
    pub len: u64,
    /// Its kind. Without `ALLOCATED` no layer has it: it reads as zeroes (`ZERO` is set), or from the base.
    pub flags: ExtentFlags,
    /// The layer that decides, counted from 0 at the top.
    pub depth: u32,
    /// Where the bytes lie, when they lie somewhere as they are.
    pub map: Option<Mapping>,
}

impl ChainExtent {
    /// Whether one of the layers has the content.
    pub fn is_allocated(&self) -> bool {
        self.flags.contains(ExtentFlags::ALLOCATED)
    }

    /// Whether the content is stored, so that only reading tells what it is.
    pub fn is_data(&self) -> bool {
        self.flags.contains(ExtentFlags::DATA)
    }

    /// Whether it reads as zeroes.
    pub fn is_zero(&self) -> bool {
        self.flags.contains(ExtentFlags::ZERO)
    }

    /// Whether `next`, which starts where this ends, is of the same kind and goes on where this ends below.
    pub fn continues_in(&self, next: &ChainExtent) -> bool {
        let flags = |extent: &ChainExtent| extent.flags - ExtentFlags::EOF;
        let place = |map: &Mapping| Arc::as_ptr(&map.node).cast::<()>();
        let mapped = match (&self.map, &next.map) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.offset.checked_add(self.len) == Some(b.offset)
                    && (place(a) == place(b) || a.node.filename() == b.node.filename())
            }
            _ => false,
        };
        mapped && flags(self) == flags(next) && self.depth == next.depth
    }
}

impl Chain {
    /// The whole chain below `top`.
    pub fn of(top: Arc<dyn Node>) -> Self {
        let mut layers = vec![top];
        while let Some(next) = layers.last().and_then(|layer| layer.backing())
            && layers.len() < LAYERS_MAX
        {
            layers.push(next);
        }
        Self { layers, complete: true, flags: Flags::empty() }
    }

    /// Only `node`: what it has not allocated is left open.
    pub fn only(node: Arc<dyn Node>) -> Self {
        let complete = node.backing().is_none();
        Self { layers: vec![node], complete, flags: Flags::empty() }
    }

    /// The layers from `top` down to, and without, `base`. `None` if `base` is not below `top`.
    pub fn above(top: Arc<dyn Node>, base: &Arc<dyn Node>) -> Option<Self> {
        let mut chain = Self::of(top);
        let at = chain.depth_of(base).filter(|at| *at > 0)?;
        chain.layers.truncate(at);
        chain.complete = false;
        Some(chain)
    }

    /// Questions carry these flags ([`Flags::PRECISE`] to have holes below looked for).
    #[must_use]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Arc<dyn Node>] {
        &self.layers
    }

    /// Where `node` stands, counted from 0 at the top.
    pub fn depth_of(&self, node: &Arc<dyn Node>) -> Option<usize> {
        self.layers.iter().position(|layer| Arc::ptr_eq(layer, node))
    }

    /// Length of the top layer in bytes.
    pub fn len(&self) -> u64 {
        self.layers[0].len()
    }

    /// Whether the top layer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the beginning of `offset..offset + len` is.
    ///
    /// # Errors
    /// A layer cannot say.
    pub async fn status(&self, offset: u64, len: u64) -> Result<ChainExtent> {
        let end = self.len();
        let mut len = len.min(end.saturating_sub(offset));
        if len == 0 {
            return Ok(ChainExtent { len, flags: ExtentFlags::EOF, depth: 0, map: None });
        }
        let mut depth = 0;
        let mut found = loop {
            let layer = &self.layers[depth];
            let extent = self.ask(layer, offset, len).await?;
            if extent.len == 0 {
                // The layer is shorter than it said: beyond its end it has zeroes.
                break ChainExtent { len, flags: zeroes_at(depth), depth: depth as u32, map: None };
            }
            len = len.min(extent.len);
            let found = |flags, map| ChainExtent { len, flags, depth: depth as u32, map };
            let known = ExtentFlags::ALLOCATED | ExtentFlags::DATA | ExtentFlags::ZERO;
            let open = ExtentFlags::DATA | ExtentFlags::ZERO | ExtentFlags::ALLOCATED;
            match self.layers.get(depth + 1) {
                _ if extent.flags.contains(ExtentFlags::ALLOCATED) => break found(extent.flags, extent.map),
                // A layer that knows it reads as zeroes need not have allocated anything for that; above a base
                // that does not help, since the question is then who has it.
                _ if self.complete && extent.flags.intersects(known) => {
                    break found(extent.flags, extent.map);
                }
                None if self.complete => break found(ExtentFlags::ZERO, None),
                None => break found(extent.flags - open, None),
                Some(next) if offset >= next.len() => match self.complete {
                    true => break found(ExtentFlags::ZERO, None),
                    false => {
                        break ChainExtent {
                            depth: depth as u32 + 1,
                            ..found(ExtentFlags::ZERO | ExtentFlags::ALLOCATED, None)
                        };
                    }
                },
                Some(next) => len = len.min(next.len() - offset),
            }
            depth += 1;
        };
        found.flags.set(ExtentFlags::EOF, offset + found.len == end);
        Ok(found)
    }

    /// Whether one of the layers has the beginning of `offset..offset + len`, and for how many bytes that holds.
    ///
    /// # Errors
    /// A layer cannot say.
    pub async fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let extent = self.status(offset, len).await?;
        Ok((extent.is_allocated(), extent.len))
    }

    async fn ask(&self, layer: &Arc<dyn Node>, offset: u64, len: u64) -> Result<Extent> {
        let request = Request::status(offset, len).with_flags(self.flags);
        let mut extent = layer.submit(request).finish().await.into_extent()?;
        // A node without children stores its data itself, whether or not it can name itself.
        if extent.map.is_none() && extent.flags.contains(ExtentFlags::DATA) && layer.primary().is_none() {
            extent.map = Some(Mapping { node: layer.clone(), offset });
        }
        Ok(extent)
    }
}

/// Zeroes beyond the end of a layer that was deferred to count as that layer's own.
fn zeroes_at(depth: usize) -> ExtentFlags {
    if depth == 0 { ExtentFlags::ZERO } else { ExtentFlags::ZERO | ExtentFlags::ALLOCATED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemNode;
    use crate::testing::{ToyNode, now};

    const HERE: ExtentFlags = ExtentFlags::DATA.union(ExtentFlags::ALLOCATED);
    const ZERO: ExtentFlags = ExtentFlags::ZERO.union(ExtentFlags::ALLOCATED);
    const NONE: ExtentFlags = ExtentFlags::empty();

    fn layer(backing: Option<&Arc<dyn Node>>, extents: &[(u64, ExtentFlags)]) -> Arc<dyn Node> {
        Arc::new(ToyNode::new(Arc::new(MemNode::new(0)), backing.cloned(), extents.to_vec()))
    }

    /// Extents of the chain as (length, depth, flags without EOF).
    fn walk(chain: &Chain) -> Vec<(u64, u32, ExtentFlags)> {
        let (mut at, mut list) = (0, Vec::new());
        while at < chain.len() {
            let extent = now(chain.status(at, u64::MAX)).expect("status");
            at += extent.len;
            assert_eq!(extent.flags.contains(ExtentFlags::EOF), at == chain.len());
            list.push((extent.len, extent.depth, extent.flags - ExtentFlags::EOF));
        }
        list
    }

    #[test]
    fn each_range_has_its_layer() {
        let base = layer(None, &[(10, HERE), (20, NONE), (10, HERE)]);
        let mid = layer(Some(&base), &[(15, NONE), (5, ZERO), (80, NONE)]);
        let top = layer(Some(&mid), &[(5, HERE), (195, NONE)]);
        let chain = Chain::of(top.clone());
        let expect = [
            (5, 0, HERE),
            (5, 2, HERE),
            (5, 2, ExtentFlags::ZERO),
            (5, 1, ZERO),
            (10, 2, ExtentFlags::ZERO),
            (10, 2, HERE),
            (60, 1, ExtentFlags::ZERO),
            (100, 0, ExtentFlags::ZERO),
        ];
        assert_eq!(walk(&chain), expect);
        assert_eq!((chain.depth_of(&base), chain.layers().len()), (Some(2), 3));
        // Above the base: beyond the end of the layer between, its zeroes hide the base.
        let above = Chain::above(top.clone(), &base).expect("below");
        assert_eq!(walk(&above), [(5, 0, HERE), (10, 1, NONE), (5, 1, ZERO), (80, 1, NONE), (100, 1, ZERO)]);
        assert!(Chain::above(top.clone(), &top).is_none());
        assert_eq!(walk(&Chain::only(top)), [(5, 0, HERE), (195, 0, NONE)]);
    }

    #[test]
    fn allocation_is_of_the_layers_asked() {
        let base = layer(None, &[(100, HERE)]);
        let top = layer(Some(&base), &[(50, NONE), (50, HERE)]);
        let above = Chain::above(top.clone(), &base).expect("below");
        assert_eq!(now(above.is_allocated(0, 20)).expect("status"), (false, 20));
        assert_eq!(now(above.is_allocated(40, 60)).expect("status"), (false, 10));
        assert_eq!(now(above.is_allocated(50, 60)).expect("status"), (true, 50));
        assert_eq!(now(Chain::of(top).is_allocated(0, 20)).expect("status"), (true, 20));
    }

    #[test]
    fn beyond_the_end_there_is_nothing() {
        let chain = Chain::of(layer(None, &[(10, HERE)]));
        let extent = now(chain.status(10, 5)).expect("status");
        assert_eq!((extent.len, extent.flags), (0, ExtentFlags::EOF));
    }

    #[test]
    fn memory_maps_to_itself() {
        let node = MemNode::with_content(&[1; 100]);
        let chain = Chain::of(Arc::new(node));
        let first = now(chain.status(0, 40)).expect("status");
        let second = now(chain.status(40, 60)).expect("status");
        assert_eq!(first.map.as_ref().map(|m| m.offset), Some(0));
        assert!(first.continues_in(&second) && !second.continues_in(&first));
    }
}
