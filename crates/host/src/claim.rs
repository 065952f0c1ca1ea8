//! From what a user needs of an image to the locks on the files below.
//!
//! A file is opened before anybody knows what for: its format may still have to be recognised. The registry's
//! drivers lock it as an image format would, which is always safe. When the chain is open, [`claim`] computes by
//! the graph's own rules what every node asks of its children, and makes the locks what the reference's would be:
//! several writers of a raw image side by side, for one thing, or nothing at all for `info` of a raw image.

use std::sync::Arc;

use cowbell_block::child::EdgeKind;
use cowbell_block::{Node, Result};

use crate::file::FileNode;
use crate::lock::Needs;

/// Makes the image locks on all files at or below `node` those that a user with these needs implies.
///
/// All of them or, on failure, none. Files that are opened without locking stay so.
///
/// # Errors
/// [`ErrorKind::Busy`](cowbell_block::ErrorKind::Busy), with the reference's text, when somebody else is in the
/// way.
pub fn claim(node: &Arc<dyn Node>, needs: Needs) -> Result<()> {
    let mut claims = Vec::new();
    collect(node, needs, &mut claims);
    let held: Vec<_> = files(&claims).map(|(file, _)| file.needs()).collect();
    let prepared = files(&claims).try_for_each(|(file, needs)| file.prepare_needs(needs));
    for ((file, needs), held) in files(&claims).zip(held) {
        // Both ways give locks back only, which cannot fail.
        let goal = if prepared.is_ok() { Some(needs) } else { held };
        goal.map_or(Ok(()), |goal| file.set_needs(goal))?;
    }
    prepared
}

/// A file and what is needed of it.
type Claim = (Arc<dyn Node>, Needs);

fn files(claims: &[Claim]) -> impl Iterator<Item = (&FileNode, Needs)> {
    claims.iter().filter_map(|(node, needs)| Some((node.as_any().downcast_ref()?, *needs)))
}

/// Walks down, adding up what several parents need of one file.
fn collect(node: &Arc<dyn Node>, needs: Needs, claims: &mut Vec<Claim>) {
    if node.as_any().is::<FileNode>() {
        match claims.iter_mut().find(|(known, _)| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(node))) {
            Some((_, sum)) => *sum = sum.and(needs),
            None => claims.push((node.clone(), needs)),
        }
        return;
    }
    let accepts_writes = !node.is_read_only();
    let edges = node.edges();
    for edge in &edges {
        collect(&edge.child.node(), needs.below(edge.kind, accepts_writes), claims);
    }
    if edges.is_empty() {
        // A node that shows its children, but not what for: by the name, or else the strictest kind.
        for (role, child) in node.children() {
            let kind = if role == "backing" { EdgeKind::Backing } else { EdgeKind::Storage };
            collect(&child, needs.below(kind, accepts_writes), claims);
        }
    }
}
