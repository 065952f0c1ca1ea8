//! A picture of the graph, on which a change is tried before it is made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{EdgeInfo, GraphError, Needs, Permissions, State, User, address, check_name};
use crate::child::{Child, EdgeKind};
use crate::node::{Access, Node};

/// Nodes by address, users by number.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<usize, ModelNode>,
    pub(super) users: BTreeMap<u64, ModelUser>,
    /// Nodes in the order they came.
    pub(super) order: Vec<usize>,
    next_name: u64,
    pending: Vec<(String, usize)>,
}

#[derive(Clone)]
pub(super) struct ModelNode {
    pub(super) name: String,
    pub(super) node: Arc<dyn Node>,
    pub(super) kept: bool,
    pub(super) accepts_writes: bool,
    pub(super) edges: Vec<ModelEdge>,
}

#[derive(Clone)]
pub(super) struct ModelEdge {
    pub(super) role: &'static str,
    pub(super) kind: EdgeKind,
    pub(super) target: usize,
    /// Absent when the parent does not let go of the child.
    pub(super) handle: Option<Child>,
}

#[derive(Clone)]
pub(super) struct ModelUser {
    pub(super) user: User,
    pub(super) target: usize,
}

/// Something that refers to a node.
#[derive(Clone)]
struct Incoming {
    user: String,
    role: &'static str,
    needs: Needs,
}

fn edges_of(node: &Arc<dyn Node>) -> Vec<(ModelEdge, Arc<dyn Node>)> {
    let edges = node.edges();
    if !edges.is_empty() {
        let model = |edge: crate::child::NamedEdge| {
            let node = edge.child.node();
            let (role, kind) = (edge.role, edge.kind);
            (ModelEdge { role, kind, target: address(&node), handle: Some(edge.child) }, node)
        };
        return edges.into_iter().map(model).collect();
    }
    let fixed = |(role, node): (&'static str, Arc<dyn Node>)| {
        let kind = if role == "backing" { EdgeKind::Backing } else { EdgeKind::Storage };
        (ModelEdge { role, kind, target: address(&node), handle: None }, node)
    };
    node.children().into_iter().map(fixed).collect()
}

impl Model {
    /// The graph as it is.
    pub(super) fn of(state: &State) -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            users: BTreeMap::new(),
            order: Vec::new(),
            next_name: state.next_name,
            pending: Vec::new(),
        };
        for entry in state.nodes.values() {
            model.put(entry.name.clone(), entry.node.clone(), entry.kept);
        }
        for (name, node) in &state.pending {
            if let Some(node) = node.upgrade() {
                model.pending.push((name.clone(), address(&node)));
            }
        }
        for (id, user) in &state.roots {
            let target = model.include(&user.root.node());
            model.users.insert(*id, ModelUser { user: user.clone(), target });
        }
        for node in state.nodes.values() {
            model.include(&node.node);
        }
        model
    }

    fn put(&mut self, name: String, node: Arc<dyn Node>, kept: bool) {
        let (at, accepts_writes) = (address(&node), !node.is_read_only());
        self.order.push(at);
        self.nodes.insert(at, ModelNode { name, node, kept, accepts_writes, edges: Vec::new() });
    }

    /// Makes sure that a node and all below it are in the picture.
    pub(super) fn include(&mut self, node: &Arc<dyn Node>) -> usize {
        let at = address(node);
        if !self.nodes.contains_key(&at) {
            let name = self.name_for(at);
            self.put(name, node.clone(), false);
        }
        // A node is visited once: its edges are filled in by then, or it has none.
        if self.nodes[&at].edges.is_empty() {
            let (edges, children): (Vec<_>, Vec<_>) = edges_of(node).into_iter().unzip();
            self.nodes.get_mut(&at).expect("just put").edges = edges;
            for child in &children {
                self.include(child);
            }
        }
        at
    }

    fn name_for(&mut self, at: usize) -> String {
        if let Some((name, _)) = self.pending.iter().find(|(_, pending)| *pending == at) {
            return name.clone();
        }
        let name = format!("#block{:03}", self.next_name);
        self.next_name += 1;
        name
    }

    pub(super) fn next_name(&self) -> u64 {
        self.next_name
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, GraphError> {
        let found = self.nodes.iter().find(|(_, node)| node.name == name);
        found.map(|(at, _)| *at).ok_or_else(|| GraphError::Unknown(name.to_owned()))
    }

    pub(super) fn add(&mut self, name: Option<&str>, node: &Arc<dyn Node>) -> Result<(), GraphError> {
        let at = address(node);
        if let Some(name) = name {
            check_name(name)?;
            if self.find(name).is_ok_and(|other| other != at) {
                return Err(GraphError::Duplicate(name.to_owned()));
            }
        }
        if let Some(known) = self.nodes.get(&at).filter(|known| known.kept) {
            return Err(GraphError::AlreadyThere(known.name.clone()));
        }
        match (self.nodes.get_mut(&at), name) {
            (Some(known), Some(name)) => known.name = name.to_owned(),
            (None, Some(name)) => self.put(name.to_owned(), node.clone(), true),
            (_, None) => {}
        }
        self.include(node);
        self.nodes.get_mut(&at).expect("just included").kept = true;
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), GraphError> {
        let at = self.find(name)?;
        if let Some(Incoming { user, role, .. }) = self.incoming(at, &BTreeMap::new()).into_iter().next() {
            return Err(GraphError::InUse { node: name.to_owned(), role: role.to_owned(), user });
        }
        self.nodes.remove(&at);
        self.order.retain(|other| *other != at);
        Ok(())
    }

    /// Points everything above `from` to `to`, but what `to` itself stands on.
    pub(super) fn replace(&mut self, from: &str, to: &str) -> Result<(), GraphError> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        let spared = self.below(to);
        let parents: Vec<usize> = self.order.iter().copied().filter(|at| !spared.contains(at)).collect();
        for parent in parents {
            for i in 0..self.nodes[&parent].edges.len() {
                if self.nodes[&parent].edges[i].target == from {
                    self.point(parent, i, to)?;
                }
            }
        }
        for user in self.users.values_mut().filter(|user| user.target == from) {
            user.target = to;
        }
        Ok(())
    }

    pub(super) fn set_child(&mut self, parent: &str, role: &str, to: &str) -> Result<(), GraphError> {
        let (at, to) = (self.find(parent)?, self.find(to)?);
        let index = self.nodes[&at].edges.iter().position(|edge| edge.role == role);
        let no_child = || GraphError::NoChild { parent: parent.to_owned(), role: role.to_owned() };
        self.point(at, index.ok_or_else(no_child)?, to)
    }

    fn point(&mut self, parent: usize, index: usize, to: usize) -> Result<(), GraphError> {
        let names = (self.nodes[&parent].name.clone(), self.nodes[&to].name.clone());
        let role = self.nodes[&parent].edges[index].role.to_owned();
        if self.below(to).contains(&parent) {
            return Err(GraphError::Cycle { child: names.1, role, parent: names.0 });
        }
        let edge = &mut self.nodes.get_mut(&parent).expect("found above").edges[index];
        if edge.handle.is_none() {
            return Err(GraphError::FixedChild { parent: names.0, role });
        }
        edge.target = to;
        Ok(())
    }

    /// What a reopened node does to itself and to the storage it stands on.
    pub(super) fn reopen(&mut self, at: usize, access: Access) {
        let mut todo = vec![at];
        while let Some(at) = todo.pop() {
            let Some(node) = self.nodes.get_mut(&at) else { continue };
            node.accepts_writes = access == Access::ReadWrite;
            todo.extend(node.edges.iter().filter(|e| e.kind != EdgeKind::Backing).map(|e| e.target));
        }
    }

    pub(super) fn attach(&mut self, id: u64, user: User) -> Result<(), GraphError> {
        if self.users.values().any(|other| other.user.name == user.name) {
            return Err(GraphError::DuplicateUser(user.name));
        }
        let target = self.include(&user.root.node());
        self.users.insert(id, ModelUser { user, target });
        Ok(())
    }

    pub(super) fn detach(&mut self, name: &str) -> Result<(), GraphError> {
        let id = self.users.iter().find(|(_, user)| user.user.name == name).map(|(id, _)| *id);
        let id = id.ok_or_else(|| GraphError::Unknown(name.to_owned()))?;
        self.users.remove(&id);
        Ok(())
    }

    /// A node and everything below it.
    fn below(&self, at: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::from([at]);
        let mut todo = vec![at];
        while let Some(node) = todo.pop().and_then(|at| self.nodes.get(&at)) {
            todo.extend(node.edges.iter().map(|edge| edge.target).filter(|at| seen.insert(*at)));
        }
        seen
    }

    /// The users whose requests may reach one of `nodes`.
    pub(super) fn users_above(&self, nodes: &BTreeSet<usize>) -> Vec<u64> {
        let reaches = |user: &ModelUser| !self.below(user.target).is_disjoint(nodes);
        self.users.iter().filter(|(_, user)| reaches(user)).map(|(id, _)| *id).collect()
    }

    /// Forgets nodes that were there only because somebody referred to them, and nobody does.
    pub(super) fn sweep(&mut self) {
        let kept = self.nodes.iter().filter(|(_, node)| node.kept).map(|(at, _)| *at);
        let starts: Vec<usize> = kept.chain(self.users.values().map(|user| user.target)).collect();
        let alive: BTreeSet<usize> = starts.into_iter().flat_map(|at| self.below(at)).collect();
        self.nodes.retain(|at, _| alive.contains(at));
        self.order.retain(|at| alive.contains(at));
    }

    /// Everything that refers to a node; with what is asked of each parent, what each asks of the node.
    fn incoming(&self, at: usize, asked: &BTreeMap<usize, Needs>) -> Vec<Incoming> {
        let users = self.users.values().filter(|user| user.target == at).map(|user| Incoming {
            user: format!("block device '{}'", user.user.name),
            role: "root",
            needs: user.user.needs,
        });
        let parents = self.order.iter().filter_map(|parent| Some((parent, self.nodes.get(parent)?)));
        let edges = parents.flat_map(|(parent, node)| {
            let asked = asked.get(parent).copied().unwrap_or(Needs::NOTHING);
            node.edges.iter().filter(|edge| edge.target == at).map(move |edge| Incoming {
                user: format!("node '{}'", node.name),
                role: edge.role,
                needs: node.node.needs_of(edge.role, asked.below(edge.kind, node.accepts_writes)),
            })
        });
        users.chain(edges).collect()
    }

    /// Nodes so that every parent comes before its children.
    fn top_down(&self) -> Vec<usize> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        // Depth first, children before parents; the reverse is what is wanted. Deep chains need no stack.
        for start in &self.order {
            let mut path = vec![(*start, 0)];
            if !seen.insert(*start) {
                continue;
            }
            while let Some((at, edge)) = path.last_mut() {
                let target = self.nodes.get(at).and_then(|node| node.edges.get(*edge)).map(|e| e.target);
                *edge += 1;
                match target {
                    Some(target) if seen.insert(target) => path.push((target, 0)),
                    Some(_) => {}
                    None => order.push(path.pop().expect("the loop's condition").0),
                }
            }
        }
        order.reverse();
        order
    }

    /// What is asked of every node by all who refer to it.
    fn asked(
        &self,
        mut visit: impl FnMut(&ModelNode, &[Incoming]) -> Result<(), GraphError>,
    ) -> Result<(), GraphError> {
        let mut asked = BTreeMap::new();
        for at in self.top_down() {
            let incoming = self.incoming(at, &asked);
            if let Some(node) = self.nodes.get(&at) {
                visit(node, &incoming)?;
            }
            asked.insert(at, incoming.iter().fold(Needs::NOTHING, |sum, user| sum.and(user.needs)));
        }
        Ok(())
    }

    /// Whether everybody can have what they need.
    pub(super) fn check(&self) -> Result<(), GraphError> {
        self.asked(|node, incoming| {
            for (i, a) in incoming.iter().enumerate() {
                for (_, b) in incoming.iter().enumerate().filter(|(j, _)| *j != i) {
                    let permissions = a.needs.required - b.needs.shared;
                    if !permissions.is_empty() {
                        return Err(GraphError::Conflict {
                            node: node.name.clone(),
                            permissions,
                            requirer: a.user.clone(),
                            required_as: a.role.to_owned(),
                            denier: b.user.clone(),
                            denied_as: b.role.to_owned(),
                        });
                    }
                }
            }
            let writes = Permissions::WRITE | Permissions::WRITE_UNCHANGED | Permissions::RESIZE;
            let written = incoming.iter().any(|user| user.needs.required.intersects(writes));
            match written && !node.accepts_writes {
                true => Err(GraphError::ReadOnly(node.name.clone())),
                false => Ok(()),
            }
        })
    }

    pub(super) fn edge_infos(&self) -> Vec<EdgeInfo> {
        let mut infos = Vec::new();
        let listed = self.asked(|node, incoming| {
            infos.extend(incoming.iter().map(|user| EdgeInfo {
                parent: user.user.clone(),
                role: user.role.to_owned(),
                child: node.name.clone(),
                needs: user.needs,
            }));
            Ok(())
        });
        debug_assert!(listed.is_ok(), "listing refuses nothing");
        infos
    }
}
