//! Nodes by name.

use std::sync::Arc;

use crate::error::Result;
use crate::node::Node;

/// The nodes of a program and the edges between them. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Graph(Arc<()>);

impl Graph {
    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<Arc<dyn Node>> {
        let _ = name;
        None
    }

    pub(crate) fn remember_name(&self, name: String, node: &Arc<dyn Node>) -> Result<()> {
        let _ = (name, node);
        Ok(())
    }
}
