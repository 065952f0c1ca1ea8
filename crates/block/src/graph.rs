//! The graph: nodes by name, the edges between them, who uses them, and how it all changes.
//!
//! The nodes themselves know their edges ([`Node::edges`]); the graph knows their names and the roots above them.
//! Whatever happens to it is one [`Change`] of any number of steps:
//!
//! ```text
//!   change().add(..).replace(..).reopen(..)  ──prepare──▶  Prepared ──commit──▶ (cannot fail)
//!                                               │              └─────abort───▶ as it was
//!                                               └─▶ error: as it was
//! ```
//!
//! `prepare` takes the steps on a model of the graph, computes what every user needs of every node and what it
//! lets others do ([`Permissions`]), and fails with who blocks what. Then it drains the roots above everything
//! that will move, and reopens. One change is prepared at a time; others wait in line.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::node::Node;
use crate::range_lock::RangeLock;
use crate::root::{DrainGuard, Root};

mod change;
mod model;
mod permissions;

pub use change::{Change, Prepared};
pub use permissions::{Needs, Permissions};

use model::Model;

/// The nodes of a program and the edges between them. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Graph(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Held from the preparation of a change to its end.
    changing: RangeLock,
}

#[derive(Default)]
struct State {
    /// In the order they came, which is the order of lists.
    nodes: BTreeMap<u64, Entry>,
    roots: BTreeMap<u64, User>,
    /// Names given in options to nodes that are not in the graph yet.
    pending: Vec<(String, Weak<dyn Node>)>,
    next_id: u64,
    next_name: u64,
}

#[derive(Clone)]
struct Entry {
    name: String,
    node: Arc<dyn Node>,
    /// Added as itself, and stays until it is removed. Others are there because somebody above refers to them.
    kept: bool,
}

#[derive(Clone)]
struct User {
    name: String,
    root: Root,
    needs: Needs,
}

/// One edge, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeInfo {
    /// The node above, or the user.
    pub parent: String,
    /// What the child is for the parent.
    pub role: String,
    /// The node below.
    pub child: String,
    /// What the parent needs of it and lets others do.
    pub needs: Needs,
}

/// A change that the graph cannot make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// No node or user has the name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    Unknown(String),
    /// Two nodes of one name.
    #[error("Duplicate nodes with node-name='{0}'")]
    Duplicate(String),
    /// Two users of one name.
    #[error("Device with id '{0}' already exists")]
    DuplicateUser(String),
    /// A name of more than 31 bytes.
    #[error("Node name too long")]
    LongName,
    /// Names start with a letter and have at most 31 letters, digits, `-`, `.` and `_`.
    #[error("Invalid node-name: '{0}'")]
    BadName(String),
    /// The node is in the graph under another name.
    #[error("Node '{0}' is in the graph already")]
    AlreadyThere(String),
    /// Somebody refers to the node.
    #[error("Node '{node}' is busy: node is used as '{role}' of {user}")]
    InUse {
        /// The node.
        node: String,
        /// As what.
        role: String,
        /// By whom.
        user: String,
    },
    /// The parent has no such child.
    #[error("Node '{parent}' does not have child '{role}'")]
    NoChild {
        /// The parent.
        parent: String,
        /// The role asked for.
        role: String,
    },
    /// The parent's driver does not let go of its children.
    #[error("Cannot change '{role}' of node '{parent}': its driver does not allow it")]
    FixedChild {
        /// The parent.
        parent: String,
        /// The child's role.
        role: String,
    },
    /// A node cannot be below itself.
    #[error("Making '{child}' a {role} child of '{parent}' would create a cycle")]
    Cycle {
        /// The child.
        child: String,
        /// Its role.
        role: String,
        /// The parent.
        parent: String,
    },
    /// Two users contradict each other.
    #[error(
        "Permission conflict on node '{node}': permissions '{permissions}' are both required by {requirer} \
         (uses node '{node}' as '{required_as}' child) and unshared by {denier} (uses node '{node}' as \
         '{denied_as}' child)."
    )]
    Conflict {
        /// The node they share.
        node: String,
        /// What they contradict each other about.
        permissions: Permissions,
        /// Who needs it.
        requirer: String,
        /// As what.
        required_as: String,
        /// Who does not let others have it.
        denier: String,
        /// As what.
        denied_as: String,
    },
    /// Somebody writes to a node that refuses writes.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    ReadOnly(String),
}

impl From<GraphError> for Error {
    fn from(e: GraphError) -> Self {
        let kind = match e {
            GraphError::Unknown(_) | GraphError::NoChild { .. } => ErrorKind::NotFound,
            GraphError::Duplicate(_) | GraphError::DuplicateUser(_) | GraphError::AlreadyThere(_) => {
                ErrorKind::AlreadyExists
            }
            GraphError::InUse { .. } => ErrorKind::Busy,
            GraphError::Conflict { .. } | GraphError::ReadOnly(_) => ErrorKind::PermissionDenied,
            GraphError::FixedChild { .. } => ErrorKind::Unsupported,
            GraphError::BadName(_) | GraphError::LongName | GraphError::Cycle { .. } => {
                ErrorKind::InvalidInput
            }
        };
        Error::new(kind, e)
    }
}

/// Longest name of a node, the reference's limit.
const NAME_BYTES_MAX: usize = 31;

fn check_name(name: &str) -> std::result::Result<(), GraphError> {
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match valid {
        true if name.len() > NAME_BYTES_MAX => Err(GraphError::LongName),
        true => Ok(()),
        false => Err(GraphError::BadName(name.to_owned())),
    }
}

/// Handles on one node are told apart by where it lives.
fn address(node: &Arc<dyn Node>) -> usize {
    Arc::as_ptr(node).cast::<()>().addr()
}

impl Graph {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a change.
    pub fn change(&self) -> Change {
        Change::new(self.clone())
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<Arc<dyn Node>> {
        let state = self.0.state.lock();
        let known = state.nodes.values().find(|entry| entry.name == name);
        known.map(|entry| entry.node.clone()).or_else(|| state.pending_node(name))
    }

    /// The name of a node that is in the graph.
    pub fn name_of(&self, node: &Arc<dyn Node>) -> Option<String> {
        let state = self.0.state.lock();
        state.nodes.values().find(|entry| address(&entry.node) == address(node)).map(|e| e.name.clone())
    }

    /// All nodes, in the order they came.
    pub fn nodes(&self) -> Vec<(String, Arc<dyn Node>)> {
        let state = self.0.state.lock();
        state.nodes.values().map(|entry| (entry.name.clone(), entry.node.clone())).collect()
    }

    /// All edges with what they need, from the top down.
    pub fn edges(&self) -> Vec<EdgeInfo> {
        Model::of(&self.0.state.lock()).edge_infos()
    }

    /// The users whose requests may reach `node`.
    pub fn roots_above(&self, node: &Arc<dyn Node>) -> Vec<Root> {
        let state = self.0.state.lock();
        let users = Model::of(&state).users_above(&[address(node)].into());
        users.into_iter().filter_map(|id| state.roots.get(&id)).map(|user| user.root.clone()).collect()
    }

    /// Closes the gates of all roots above `node` and waits until nothing of theirs is in flight. The gates open
    /// again when the guards are dropped.
    pub async fn drain(&self, node: &Arc<dyn Node>) -> Vec<DrainGuard> {
        drain(&self.roots_above(node)).await
    }

    /// Keeps the name that the options of a node being opened give it, until the node is added.
    pub(crate) fn remember_name(&self, name: String, node: &Arc<dyn Node>) -> Result<()> {
        check_name(&name)?;
        if self.node(&name).is_some() {
            return Err(GraphError::Duplicate(name).into());
        }
        let mut state = self.0.state.lock();
        state.pending.retain(|(_, node)| node.strong_count() > 0);
        state.pending.push((name, Arc::downgrade(node)));
        Ok(())
    }
}

/// Closes all gates before waiting at any, so that nothing new comes while the last ones finish.
async fn drain(roots: &[Root]) -> Vec<DrainGuard> {
    let guards = roots.iter().map(Root::close_gate).collect();
    for root in roots {
        root.quiet().await;
    }
    guards
}

impl State {
    fn pending_node(&self, name: &str) -> Option<Arc<dyn Node>> {
        self.pending.iter().find(|(pending, _)| pending == name).and_then(|(_, node)| node.upgrade())
    }
}

#[cfg(test)]
mod tests;
