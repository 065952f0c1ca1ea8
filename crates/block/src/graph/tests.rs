//! Changes over small graphs of nodes in memory.

use super::*;
use crate::child::Child;
use crate::mem::MemNode;
use crate::node::Access;
use crate::raw::RawNode;
use crate::request::{ExtentFlags, Request};
use crate::testing::{ToyNode, now};
use crate::{Buf, Op};

fn mem(len: u64) -> Arc<dyn Node> {
    Arc::new(MemNode::new(len))
}

fn raw(file: &Arc<dyn Node>) -> Arc<dyn Node> {
    Arc::new(RawNode::new(file.clone(), Access::ReadWrite).expect("raw"))
}

fn overlay(file: &Arc<dyn Node>, backing: &Arc<dyn Node>) -> Arc<dyn Node> {
    Arc::new(ToyNode::new(file.clone(), Some(backing.clone()), vec![(512, ExtentFlags::empty())]))
}

fn read_only(len: u64) -> Arc<dyn Node> {
    let node = mem(len);
    now(node.reopen(Access::ReadOnly)).expect("reopens");
    node
}

fn apply(change: Change) -> std::result::Result<(), String> {
    now(change.apply()).map_err(|e| e.to_string())
}

fn names(graph: &Graph) -> Vec<String> {
    graph.nodes().into_iter().map(|(name, _)| name).collect()
}

/// A graph with `disk` (raw) over an unnamed node in memory.
fn disk() -> (Graph, Arc<dyn Node>, Arc<dyn Node>) {
    let graph = Graph::new();
    let file = mem(512);
    let disk = raw(&file);
    apply(graph.change().add(Some("disk"), disk.clone())).expect("added");
    (graph, disk, file)
}

#[test]
fn nodes_bring_what_is_below_them() {
    let (graph, disk, file) = disk();
    assert_eq!(names(&graph), ["disk", "#block000"]);
    assert_eq!(graph.name_of(&file).as_deref(), Some("#block000"));
    assert!(graph.node("disk").is_some_and(|node| address(&node) == address(&disk)));
    let add = |name: &str, node: Arc<dyn Node>| apply(graph.change().add(Some(name), node));
    assert_eq!(add("disk", mem(1)).err().as_deref(), Some("Duplicate nodes with node-name='disk'"));
    assert_eq!(add("other", disk).err().as_deref(), Some("Node 'disk' is in the graph already"));
    assert_eq!(add(&"a".repeat(32), mem(1)).err().as_deref(), Some("Node name too long"));
    for name in ["", "1a", "a b"] {
        assert_eq!(add(name, mem(1)).err(), Some(format!("Invalid node-name: '{name}'")));
    }
    add("file", file).expect("an implicit node may get a name");
    apply(graph.change().remove("disk")).expect("nobody uses it");
    assert_eq!(names(&graph), ["file"]);
    apply(graph.change().remove("file")).expect("nobody uses it");
    assert!(names(&graph).is_empty());
}

#[test]
fn what_is_used_stays() {
    let (graph, disk, _) = disk();
    let in_use = "Node '#block000' is busy: node is used as 'file' of node 'disk'";
    assert_eq!(apply(graph.change().remove("#block000")).err().as_deref(), Some(in_use));
    apply(graph.change().attach("vda", Root::new(disk), Needs::READ)).expect("attached");
    assert!(apply(graph.change().remove("disk")).is_err());
    apply(graph.change().detach("vda").remove("disk")).expect("both at once");
    assert!(names(&graph).is_empty() && graph.edges().is_empty());
}

#[test]
fn two_writers_are_one_too_many() {
    let (graph, disk, file) = disk();
    apply(graph.change().attach("vda", Root::new(disk.clone()), Needs::WRITE)).expect("the first");
    let second = apply(graph.change().attach("vdb", Root::new(disk.clone()), Needs::WRITE));
    assert_eq!(
        second.err().as_deref(),
        Some(
            "Permission conflict on node 'disk': permissions 'write, resize' are both required by block device \
             'vda' (uses node 'disk' as 'root' child) and unshared by block device 'vdb' (uses node 'disk' as \
             'root' child)."
        )
    );
    // The same through another way down.
    let other = apply(graph.change().add(Some("other"), raw(&file)).attach(
        "vdb",
        Root::new(disk),
        Needs { shared: Permissions::all(), ..Needs::READ },
    ));
    other.expect("a tolerant reader may look on");
    assert!(graph.node("other").is_some());
    let root = Root::new(graph.node("other").expect("added"));
    let third = apply(graph.change().attach("vdc", root, Needs::WRITE)).expect_err("conflict below");
    assert!(
        third.starts_with("Permission conflict on node '#block000': permissions 'write, resize'"),
        "{third}"
    );
}

#[test]
fn formats_guard_their_files_and_spare_their_backing_files() {
    let graph = Graph::new();
    let (file, base_file) = (mem(512), read_only(512));
    let base = Arc::new(RawNode::new(base_file, Access::ReadOnly).expect("raw")) as Arc<dyn Node>;
    let top = overlay(&file, &base);
    apply(graph.change().add(Some("top"), top.clone()).add(Some("base"), base.clone())).expect("added");
    let needs = |role: &str| {
        let edge = graph.edges().into_iter().find(|e| e.parent == "node 'top'" && e.role == role);
        edge.expect("an edge").needs
    };
    let (read, unchanged) = (Permissions::CONSISTENT_READ, Permissions::WRITE_UNCHANGED);
    let changes = Permissions::WRITE | Permissions::RESIZE;
    assert_eq!(needs("file"), Needs { required: read | changes, shared: read | unchanged });
    assert_eq!(needs("backing"), Needs { required: Permissions::empty(), shared: Permissions::all() });
    apply(graph.change().attach("vda", Root::new(top), Needs::WRITE)).expect("attached");
    assert_eq!(needs("backing"), Needs { required: read, shared: read | unchanged });
    let other = apply(graph.change().attach("vdb", Root::new(file), Needs::WRITE));
    assert!(other.expect_err("the file is the format's").contains("unshared by node 'top'"));
    let writer = apply(graph.change().reopen("base", Access::ReadWrite).attach(
        "vdb",
        Root::new(base.clone()),
        Needs::WRITE,
    ));
    assert!(writer.expect_err("the chain reads it").contains("permissions 'write, resize'"));
    assert!(base.is_read_only(), "nothing happened");
}

#[test]
fn a_filter_goes_in_and_out_under_a_running_root() {
    let (graph, disk, file) = disk();
    let root = Root::new(disk.clone());
    apply(graph.change().attach("vda", root.clone(), Needs::WRITE)).expect("attached");
    let filter = raw(&disk);
    apply(graph.change().add(Some("filter"), filter.clone()).replace("disk", "filter")).expect("in");
    assert_eq!(address(&root.node()), address(&filter));
    assert_eq!(address(&filter.primary().expect("child")), address(&disk));
    now(root.submit(Request::write(0, Buf::copy_of(b"x"))).finish()).result.expect("still works");
    now(Child::new(file).read(0, 1)).expect("below");
    apply(graph.change().replace("filter", "disk").remove("filter")).expect("out");
    assert_eq!(address(&root.node()), address(&disk));
    assert_eq!(names(&graph), ["disk", "#block000"]);
}

#[test]
fn edges_move_but_never_in_circles() {
    let (graph, _, _) = disk();
    let base = mem(512);
    apply(graph.change().add(Some("spare"), base.clone())).expect("added");
    apply(graph.change().set_child("disk", "file", "spare")).expect("moved");
    assert_eq!(names(&graph), ["disk", "spare"], "the old file is nobody's");
    let filter = raw(&graph.node("disk").expect("there"));
    apply(graph.change().add(Some("filter"), filter)).expect("added");
    let circle = apply(graph.change().set_child("disk", "file", "filter"));
    let text = "Making 'filter' a file child of 'disk' would create a cycle";
    assert_eq!(circle.err().as_deref(), Some(text));
    let none = apply(graph.change().set_child("disk", "backing", "spare"));
    assert_eq!(none.err().as_deref(), Some("Node 'disk' does not have child 'backing'"));
    let unknown = apply(graph.change().replace("disk", "nix"));
    assert_eq!(unknown.err().as_deref(), Some("Cannot find device='nix' nor node-name='nix'"));
}

#[test]
fn access_follows_the_users() {
    let graph = Graph::new();
    let file = read_only(512);
    let disk: Arc<dyn Node> = Arc::new(RawNode::new(file.clone(), Access::ReadOnly).expect("raw"));
    let attach = |change: Change| change.attach("vda", Root::new(disk.clone()), Needs::WRITE);
    let text = "Read-only block node 'disk' cannot support read-write users";
    let refused = apply(attach(graph.change().add(Some("disk"), disk.clone())));
    assert_eq!(refused.err().as_deref(), Some(text));
    assert!(names(&graph).is_empty(), "all or nothing");
    let change = graph.change().add(Some("disk"), disk.clone()).reopen("disk", Access::ReadWrite);
    apply(attach(change)).expect("reopened first");
    assert!(!disk.is_read_only() && !file.is_read_only());
    assert_eq!(apply(graph.change().reopen("disk", Access::ReadOnly)).err().as_deref(), Some(text));
    apply(graph.change().detach("vda").reopen("disk", Access::ReadOnly)).expect("nobody writes");
    assert!(disk.is_read_only());
}

#[test]
fn an_aborted_change_leaves_no_trace() {
    let (graph, disk, _) = disk();
    let root = Root::new(disk.clone());
    apply(graph.change().attach("vda", root.clone(), Needs::READ)).expect("attached");
    let filter = raw(&disk);
    let change = graph.change().add(Some("filter"), filter).replace("disk", "filter");
    let prepared = now(change.reopen("disk", Access::ReadOnly).prepare()).expect("possible");
    assert!(disk.is_read_only());
    assert!(matches!(root.submit(Request::flush()), Op::Wait(_)), "the gate is closed");
    now(prepared.abort());
    assert!(!disk.is_read_only());
    assert_eq!(address(&root.node()), address(&disk));
    assert!(matches!(root.submit(Request::flush()), Op::Done(_)), "the gate is open");
    assert_eq!(names(&graph), ["disk", "#block000"]);
}

#[test]
fn one_change_waits_for_the_other() {
    let (graph, _, _) = disk();
    let first = now(graph.change().add(Some("a"), mem(1)).prepare()).expect("prepared");
    let mut second = Box::pin(graph.change().add(Some("a"), mem(1)).prepare());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    first.commit();
    let error = now(second).map(|_| ()).expect_err("the name is taken by now");
    assert_eq!(error.to_string(), "Duplicate nodes with node-name='a'");
}

#[test]
fn draining_waits_for_requests_above() {
    let (graph, disk, file) = disk();
    let root = Root::new(disk);
    apply(graph.change().attach("vda", root.clone(), Needs::WRITE)).expect("attached");
    assert_eq!(graph.roots_above(&file).len(), 1);
    assert!(graph.roots_above(&mem(1)).is_empty());
    let guards = now(graph.drain(&file));
    assert!(matches!(root.submit(Request::flush()), Op::Wait(_)));
    drop(guards);
    assert!(matches!(root.submit(Request::flush()), Op::Done(_)));
}
