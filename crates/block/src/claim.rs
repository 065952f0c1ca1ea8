//! From what a user needs of an image to the image locks on the files below.
//!
//! A file is opened before anybody knows what for: its format may still have to be recognised. So a file that is
//! probed is opened without any lock, and when the driver is known, [`claim`] computes by the graph's own rules
//! what every node asks of its children, and takes the locks *before* the driver reads its metadata. Nothing that
//! was read without them counts but the guess itself.

use std::sync::Arc;

use crate::child::EdgeKind;
use crate::error::Result;
use crate::graph::Needs;
use crate::node::Node;

/// Makes the image locks on all storage at or below `node` those that a user with these needs implies.
///
/// All of them or, on failure, none. Files that are opened without locking stay so.
///
/// # Errors
/// [`ErrorKind::Busy`](crate::ErrorKind::Busy), with the reference's text, when somebody else is in the way.
pub fn claim(node: &Arc<dyn Node>, needs: Needs) -> Result<()> {
    let mut claims = Vec::new();
    collect(node, needs, &mut claims);
    let held: Vec<_> = claims.iter().map(|claim| claim.held).collect();
    // First both at once, the old and the new: from there the way leads to either without asking anybody.
    let prepared = claims.iter().try_for_each(|claim| claim.node.set_needs(claim.held.and(claim.needs)));
    for (claim, held) in claims.iter().zip(held) {
        // Both ways give locks back only, which cannot fail.
        claim.node.set_needs(if prepared.is_ok() { claim.needs } else { held })?;
    }
    prepared
}

/// Storage with locks, what they stand for, and what is needed of it.
struct Claim {
    node: Arc<dyn Node>,
    held: Needs,
    needs: Needs,
}

/// Walks down, adding up what several parents need of one file.
fn collect(node: &Arc<dyn Node>, needs: Needs, claims: &mut Vec<Claim>) {
    if let Some(held) = node.held_needs() {
        match claims.iter_mut().find(|known| std::ptr::addr_eq(Arc::as_ptr(&known.node), Arc::as_ptr(node))) {
            Some(known) => known.needs = known.needs.and(needs),
            None => claims.push(Claim { node: node.clone(), held, needs }),
        }
        return;
    }
    let accepts_writes = !node.is_read_only();
    let edges = node.edges();
    for edge in &edges {
        collect(&edge.child.node(), node.needs_of(edge.role, needs.below(edge.kind, accepts_writes)), claims);
    }
    if edges.is_empty() {
        // A node that shows its children, but not what for: by the name, or else the strictest kind.
        for (role, child) in node.children() {
            let kind = if role == "backing" { EdgeKind::Backing } else { EdgeKind::Storage };
            collect(&child, needs.below(kind, accepts_writes), claims);
        }
    }
}
