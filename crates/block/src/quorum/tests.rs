use super::*;
use crate::mem::MemNode;
use crate::testing::{Chance, Files, SlowNode, dawdle, now, race};
use parking_lot::Mutex;
use serde_json::json;

const LEN: usize = 4096;

fn rule(threshold: usize, pattern: Pattern) -> Rule {
    Rule { threshold, pattern }
}

fn node(children: Vec<Arc<dyn Node>>, rule: Rule) -> (Arc<dyn Node>, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let list = said.clone();
    let notice: Notice = Arc::new(move |line: &str| list.lock().push(line.to_owned()));
    let outcome = Outcome { notice, abort: Arc::new(|| {}) };
    let quorum = QuorumNode::new(children, rule, outcome, OptionTree::new()).expect("a good quorum");
    (Arc::new(quorum), said)
}

fn disks(bytes: &[u8]) -> (Vec<MemNode>, Vec<Arc<dyn Node>>) {
    let disks: Vec<MemNode> = bytes.iter().map(|byte| MemNode::with_content(&[*byte; LEN])).collect();
    let nodes = disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Node>).collect();
    (disks, nodes)
}

fn read(node: &Arc<dyn Node>) -> std::result::Result<u8, i32> {
    now(Child::new(node.clone()).read(512, 512)).map(|buf| buf[0]).map_err(|e| e.errno())
}

/// A disk that answers nothing but this error.
fn broken(errno: i32) -> Arc<dyn Node> {
    struct Broken(i32);
    impl Node for Broken {
        fn submit(&self, request: Request) -> Op {
            Op::failed(request.bufs, Error::from_errno(self.0))
        }
        fn driver(&self) -> &'static str {
            "broken"
        }
        fn len(&self) -> u64 {
            LEN as u64
        }
        fn filename(&self) -> String {
            String::new()
        }
        fn info(&self) -> BoxFuture<Result<ImageInfo>> {
            Box::pin(std::future::ready(Ok(ImageInfo::default())))
        }
        fn close(&self) -> BoxFuture<Result<()>> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }
    Arc::new(Broken(errno))
}

#[test]
fn the_majority_answers() {
    for (bytes, threshold, expect) in [
        (&[1, 1, 2][..], 2, Ok(1)),
        (&[1, 1, 2], 3, Err(5)),
        (&[1, 2, 3], 2, Err(5)),
        (&[1, 2, 3], 1, Ok(3)),
        (&[4], 1, Ok(4)),
    ] {
        let (_, nodes) = disks(bytes);
        assert_eq!(read(&node(nodes, rule(threshold, Pattern::Vote)).0), expect, "{bytes:?} {threshold}");
    }
}

#[test]
fn failures_count_as_the_reference_counts_them() {
    let (_, good) = disks(&[1, 1]);
    let with = |errnos: &[i32], good: usize, threshold| {
        let (_, mut nodes) = disks(&[1, 1][..good]);
        nodes.extend(errnos.iter().map(|errno| broken(*errno)));
        node(nodes, rule(threshold, Pattern::Vote)).0
    };
    drop(good);
    assert_eq!(read(&with(&[28], 2, 2)), Ok(1));
    assert_eq!(read(&with(&[28, 27], 1, 2)), Err(27));
    assert_eq!(read(&with(&[28, 28, 27], 1, 2)), Err(28));
    let write = |node: Arc<dyn Node>| {
        let write = Request::write(0, Buf::zeroed(512));
        now(node.submit(write).finish()).result.map(drop).map_err(|e| e.errno())
    };
    assert_eq!(write(with(&[28], 2, 2)), Ok(()));
    assert_eq!(write(with(&[28], 2, 3)), Err(28));
    assert_eq!(now(Child::new(with(&[28], 2, 3)).flush()).map_err(|e| e.errno()), Err(28));
    let (_, mut nodes) = disks(&[9]);
    nodes.insert(0, broken(28));
    assert_eq!(read(&node(nodes, rule(2, Pattern::Fifo)).0), Ok(9));
    assert_eq!(read(&node(vec![broken(28), broken(27)], rule(1, Pattern::Fifo)).0), Err(27));
}

#[test]
fn who_is_outvoted_is_written_anew() {
    let (disks, nodes) = disks(&[1, 2, 1]);
    let (quorum, _) = node(nodes, rule(2, Pattern::Repair));
    assert_eq!(read(&quorum), Ok(1));
    let content = disks[1].content();
    assert_eq!((content[511], content[512], content[1023], content[1024]), (2, 1, 1, 2));
}

#[test]
fn two_that_differ_are_told() {
    let (disks, nodes) = disks(&[1, 1]);
    let (quorum, said) = node(nodes, rule(2, Pattern::Verify));
    assert_eq!(read(&quorum), Ok(1));
    now(Child::new(Arc::new(disks[1].clone())).write(700, Buf::copy_of(&[2]))).expect("written");
    assert_eq!(read(&quorum), Err(5));
    assert_eq!(said.lock()[..], ["quorum: offset=512 bytes=512 contents mismatch at offset 700"]);
}

#[test]
fn status_is_what_all_agree_on() {
    let (mut nodes, empty): (Vec<Arc<dyn Node>>, _) = (Vec::new(), MemNode::new(1 << 20));
    nodes.push(Arc::new(empty));
    let part = MemNode::new(1 << 20);
    now(Child::new(Arc::new(part.clone())).write(131_072, Buf::copy_of(&[1]))).expect("written");
    nodes.push(Arc::new(part));
    let (quorum, _) = node(nodes, rule(1, Pattern::Vote));
    let status = |at| {
        let extent = now(Child::new(quorum.clone()).status(at, 1 << 20)).expect("status");
        (extent.len, extent.flags - ExtentFlags::ALLOCATED)
    };
    assert_eq!(status(0), (131_072, ExtentFlags::ZERO));
    assert_eq!(status(131_072), (65_536, ExtentFlags::DATA));
    assert_eq!(status(196_608), ((1 << 20) - 196_608, ExtentFlags::ZERO | ExtentFlags::EOF));
}

#[test]
fn options_are_judged_in_the_references_words() {
    let files = Files::default();
    for name in ["a", "b"] {
        files.put(name, &[1; 512]);
    }
    files.put("c", &[1; 1024]);
    let mut cx = files.context();
    let mut registry = (*cx.registry).clone();
    registry.add(QuorumDriver::new(Arc::new(|_| {}), Arc::new(|| {})));
    cx.registry = Arc::new(registry);
    let open = |mut tree: Value, names: &[&str]| {
        let child = |name: &&str| json!({"driver": "raw", "file": {"filename": name}});
        tree["driver"] = NAME.into();
        if !names.is_empty() {
            tree["children"] = names.iter().map(child).collect();
        }
        let Value::Object(tree) = tree else { unreachable!("an object") };
        now(crate::open::open_image(&tree.into(), None, &cx))
            .map(|o| o.node.filename())
            .map_err(|e| e.to_string())
    };
    let blkverify = "blkverify=on can only be set if there are exactly two files and vote-threshold is 2";
    for (tree, names, text) in [
        (json!({}), &["a"][..], "Parameter 'vote-threshold' expects a value >= 1"),
        (json!({"vote-threshold": "-1"}), &["a"], "Parameter 'vote-threshold' expects a value >= 1"),
        (json!({"vote-threshold": "x"}), &["a"], "Parameter 'vote-threshold' expects a number"),
        (json!({"vote-threshold": 2}), &["a"], "threshold may not exceed children count"),
        (json!({"vote-threshold": 2}), &[], "Number of provided children must be 1 or more"),
        (json!({"vote-threshold": 1, "children": 5}), &[], "Option children is not a valid array"),
        (
            json!({"vote-threshold": 1, "read-pattern": "x"}),
            &["a"],
            "Please set read-pattern as fifo or quorum",
        ),
        (json!({"vote-threshold": 1, "blkverify": true}), &["a", "b"], blkverify),
        (
            json!({"vote-threshold": 2, "blkverify": "on", "rewrite-corrupted": "on"}),
            &["a", "b"],
            "rewrite-corrupted=on cannot be used with blkverify=on",
        ),
        (json!({"vote-threshold": 1, "rewrite-corrupted": "on"}), &["a", "b"], "Block node is read-only"),
        (
            json!({"vote-threshold": 1, "x": 1}),
            &["a"],
            "Block format 'quorum' does not support the option 'x'",
        ),
        (
            json!({"vote-threshold": 1}),
            &["a", "c"],
            "Could not refresh total sector count: Input/output error",
        ),
        (json!({"vote-threshold": 1}), &["a"; 17], "Number of provided children must be 16 or less"),
    ] {
        assert_eq!(open(tree, names).expect_err(text), text);
    }
    let name = r#"json:{"read-pattern": "fifo", "children": [{"driver": "raw", "file": {"driver": "file", "filename": "a"}}], "driver": "quorum", "vote-threshold": "1"}"#;
    assert_eq!(open(json!({"vote-threshold": "1", "read-pattern": "fifo"}), &["a"]), Ok(name.to_owned()));
}

/// Overlapping writes, reads and futures that are dropped: in the end all children are the same.
fn scramble(seed: u64) {
    let chance = Chance::new(seed);
    let (disks, nodes) = disks(&[0, 0, 0]);
    let slow = |below| Arc::new(SlowNode { below, chance: chance.clone(), failing: 0 }) as Arc<dyn Node>;
    let pattern = if seed.is_multiple_of(2) { Pattern::Vote } else { Pattern::Repair };
    let (quorum, _) = node(nodes.into_iter().map(slow).collect(), rule(3, pattern));
    let mut futures: Vec<BoxFuture<Option<i32>>> = Vec::new();
    for byte in 1..12 {
        let (offset, len) = (chance.below(30) * 64, 64 + chance.below(1000));
        let op = match chance.below(3) {
            0 => quorum.submit(Request::read(offset, Buf::zeroed(len as usize))),
            1 => quorum.submit(Request::write_zeroes(offset, len)),
            _ => quorum.submit(Request::write(offset, Buf::copy_of(&vec![byte; len as usize]))),
        };
        let impatient = chance.below(4) == 0;
        let own = chance.clone();
        futures.push(Box::pin(async move {
            let mut request = Box::pin(op.finish());
            let mut patience = Box::pin(dawdle(&own, 20));
            std::future::poll_fn(|cx| match request.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done.result.map_or_else(|e| e.errno(), |_| 0))),
                Poll::Pending if impatient => patience.as_mut().poll(cx).map(|()| None),
                Poll::Pending => Poll::Pending,
            })
            .await
        }));
    }
    let results = race(&chance, futures);
    assert!(results.iter().flatten().all(|errno| *errno == 0), "seed {seed}: {results:?}");
    now(quorum.close()).expect("closed");
    let contents: Vec<Vec<u8>> = disks.iter().map(MemNode::content).collect();
    assert!(contents.iter().all(|content| *content == contents[0]), "seed {seed}");
}

use std::task::Poll;

#[test]
fn children_never_differ_by_the_order_of_requests() {
    (0..1000).for_each(scramble);
}
