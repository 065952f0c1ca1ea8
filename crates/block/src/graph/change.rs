//! Changes: steps, their preparation, and what becomes of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::model::Model;
use super::{Entry, Graph, GraphError, Needs, User, drain};
use crate::child::Child;
use crate::error::Result;
use crate::node::{Access, Node};
use crate::range_lock::{LockMode, RangeGuard};
use crate::root::{DrainGuard, Root};

/// Steps that happen together or not at all.
#[must_use = "a change does nothing until it is prepared and committed"]
pub struct Change {
    graph: Graph,
    steps: Vec<Step>,
}

enum Step {
    Add { name: Option<String>, node: Arc<dyn Node> },
    Remove { name: String },
    Replace { from: String, to: String },
    SetChild { parent: String, role: String, to: String },
    Reopen { name: String, access: Access },
    Attach { name: String, root: Root, needs: Needs },
    Detach { name: String },
}

impl Change {
    pub(super) fn new(graph: Graph) -> Self {
        Self { graph, steps: Vec::new() }
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds a node with all below it. Without a name it keeps the one from its options, or gets a number.
    pub fn add(self, name: Option<&str>, node: Arc<dyn Node>) -> Self {
        self.step(Step::Add { name: name.map(str::to_owned), node })
    }

    /// Removes a node that nobody refers to. What was only below it goes too. Nothing is closed.
    pub fn remove(self, name: &str) -> Self {
        self.step(Step::Remove { name: name.to_owned() })
    }

    /// Points everybody above `from` to `to`, except `to` itself and what it stands on: this is how a filter is
    /// put in and taken out.
    pub fn replace(self, from: &str, to: &str) -> Self {
        self.step(Step::Replace { from: from.to_owned(), to: to.to_owned() })
    }

    /// Gives a node another child in one of its roles.
    pub fn set_child(self, parent: &str, role: &str, to: &str) -> Self {
        self.step(Step::SetChild { parent: parent.to_owned(), role: role.to_owned(), to: to.to_owned() })
    }

    /// Makes a node accept or refuse writes. A node takes the storage below it along.
    pub fn reopen(self, name: &str, access: Access) -> Self {
        self.step(Step::Reopen { name: name.to_owned(), access })
    }

    /// Makes a root a user of the graph.
    pub fn attach(self, name: &str, root: Root, needs: Needs) -> Self {
        self.step(Step::Attach { name: name.to_owned(), root, needs })
    }

    /// Makes a root a stranger again.
    pub fn detach(self, name: &str) -> Self {
        self.step(Step::Detach { name: name.to_owned() })
    }

    /// Tries all steps and holds everything ready. Waits for other changes, and for requests in flight above the
    /// nodes concerned.
    ///
    /// Dropping the future gives up; what was reopened by then stays so, as after dropping a [`Prepared`].
    ///
    /// # Errors
    /// A step is not possible, users contradict each other, or a node cannot be reopened. Nothing has changed.
    pub async fn prepare(self) -> Result<Prepared> {
        let Self { graph, steps } = self;
        let turn = graph.0.changing.lock(0..1, LockMode::Exclusive).await;
        let plan = Plan::new(&graph, steps)?;
        let gates = drain(&plan.roots).await;
        let reopened = reopen_all(&plan.reopens).await?;
        Ok(Prepared { graph, plan, reopened, _gates: gates, _turn: turn })
    }

    /// Prepares and commits.
    ///
    /// # Errors
    /// As [`Change::prepare`].
    pub async fn apply(self) -> Result<()> {
        self.prepare().await?.commit();
        Ok(())
    }
}

struct Plan {
    before: Model,
    after: Model,
    reopens: Vec<(Arc<dyn Node>, Access)>,
    roots: Vec<Root>,
    next_id: u64,
}

impl Plan {
    fn new(graph: &Graph, steps: Vec<Step>) -> std::result::Result<Self, GraphError> {
        let state = graph.0.state.lock();
        let before = Model::of(&state);
        let mut after = before.clone();
        let mut next_id = state.next_id;
        let mut reopens = Vec::new();
        for step in steps {
            match step {
                Step::Add { name, node } => after.add(name.as_deref(), &node)?,
                Step::Remove { name } => after.remove(&name)?,
                Step::Replace { from, to } => after.replace(&from, &to)?,
                Step::SetChild { parent, role, to } => after.set_child(&parent, &role, &to)?,
                Step::Reopen { name, access } => {
                    let at = after.find(&name)?;
                    after.reopen(at, access);
                    reopens.push((after.nodes[&at].node.clone(), access));
                }
                Step::Attach { name, root, needs } => {
                    after.attach(next_id, User { name, root, needs })?;
                    next_id += 1;
                }
                Step::Detach { name } => after.detach(&name)?,
            }
        }
        after.sweep();
        after.check()?;
        // Writers are let in before others are shut out: the second is what can be taken back.
        reopens.sort_by_key(|(_, access)| *access == Access::ReadOnly);
        let mut plan = Self { before, after, reopens, roots: Vec::new(), next_id };
        plan.roots = plan.roots_concerned();
        Ok(plan)
    }

    /// Roots above the parents whose edges move, and above what is reopened, before or after.
    fn roots_concerned(&self) -> Vec<Root> {
        let mut nodes: BTreeSet<usize> = self.moves().map(|(parent, ..)| parent).collect();
        nodes.extend(self.reopens.iter().map(|(node, _)| super::address(node)));
        let mut ids: BTreeSet<u64> = self.before.users_above(&nodes).into_iter().collect();
        ids.extend(self.after.users_above(&nodes));
        ids.extend(self.moved_users().map(|(id, ..)| id));
        let user = |id: &u64| self.before.users.get(id).or_else(|| self.after.users.get(id));
        ids.iter().filter_map(user).map(|user| user.user.root.clone()).collect()
    }

    /// Edges that point elsewhere afterwards: parent, edge, new child.
    fn moves(&self) -> impl Iterator<Item = (usize, &Child, Arc<dyn Node>)> {
        self.after.nodes.iter().flat_map(|(parent, node)| {
            let moved =
                node.edges.iter().filter(|e| e.handle.as_ref().is_some_and(|h| self.moved(h, e.target)));
            moved.filter_map(|e| {
                Some((*parent, e.handle.as_ref()?, self.after.nodes.get(&e.target)?.node.clone()))
            })
        })
    }

    fn moved(&self, handle: &Child, target: usize) -> bool {
        super::address(&handle.node()) != target
    }

    fn moved_users(&self) -> impl Iterator<Item = (u64, &Root, Arc<dyn Node>)> {
        self.after.users.iter().filter_map(|(id, user)| {
            let root = &user.user.root;
            let moved = self.moved(root.child(), user.target);
            moved.then(|| Some((*id, root, self.after.nodes.get(&user.target)?.node.clone()))).flatten()
        })
    }
}

/// Reopens in order; on failure those that succeeded are taken back.
async fn reopen_all(reopens: &[(Arc<dyn Node>, Access)]) -> Result<Vec<(Arc<dyn Node>, Access)>> {
    let mut done = Vec::new();
    for (node, access) in reopens {
        let before = if node.is_read_only() { Access::ReadOnly } else { Access::ReadWrite };
        if before == *access {
            continue;
        }
        if let Err(e) = node.reopen(*access).await {
            take_back(done).await;
            return Err(e);
        }
        done.push((node.clone(), before));
    }
    Ok(done)
}

/// A node that refuses keeps the access it has: never more than somebody asked for.
async fn take_back(reopened: Vec<(Arc<dyn Node>, Access)>) {
    for (node, before) in reopened.into_iter().rev() {
        let _ = node.reopen(before).await;
    }
}

/// A change that can no longer fail. Dropping it changes nothing either, but leaves reopened nodes as they are:
/// use [`Prepared::abort`].
#[must_use = "a prepared change is committed or aborted"]
pub struct Prepared {
    graph: Graph,
    plan: Plan,
    reopened: Vec<(Arc<dyn Node>, Access)>,
    _gates: Vec<DrainGuard>,
    _turn: RangeGuard,
}

impl Prepared {
    /// Makes the change. The gates open again.
    pub fn commit(self) {
        let moves: Vec<_> = self.plan.moves().map(|(_, edge, node)| (edge.clone(), node)).collect();
        for (edge, node) in moves {
            edge.replace(node);
        }
        let users: Vec<_> = self.plan.moved_users().map(|(_, root, node)| (root.clone(), node)).collect();
        for (root, node) in users {
            root.child().replace(node);
        }
        let after = &self.plan.after;
        let mut state = self.graph.0.state.lock();
        let (mut next_id, old) = (self.plan.next_id, std::mem::take(&mut state.nodes));
        for at in &after.order {
            let Some(node) = after.nodes.get(at) else { continue };
            let known = old.iter().find(|(_, entry)| super::address(&entry.node) == *at);
            let id = known.map_or_else(
                || {
                    next_id += 1;
                    next_id - 1
                },
                |(id, _)| *id,
            );
            let entry = Entry { name: node.name.clone(), node: node.node.clone(), kept: node.kept };
            state.nodes.insert(id, entry);
        }
        state.roots = after.users.iter().map(|(id, user)| (*id, user.user.clone())).collect();
        state.next_id = next_id;
        state.next_name = after.next_name();
        let named: Vec<String> = state.nodes.values().map(|entry| entry.name.clone()).collect();
        state.pending.retain(|(name, node)| node.strong_count() > 0 && !named.contains(name));
    }

    /// Gives everything back. The gates open again.
    pub async fn abort(self) {
        take_back(self.reopened).await;
    }
}
