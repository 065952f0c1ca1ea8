//! Questions about long ranges between changes: what was read of the tables for one is never the answer to the next.

mod support;

use cowbell_block::{ExtentFlags, Flags, Node, Request};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::{Rng, assert_clean, create, open, run, write, zero};

const CLUSTER: u64 = 16 << 10;
/// One table of 2,048 entries, 4 slices.
const CLUSTERS: u64 = 2048;

/// Kinds of all clusters, asked with questions that reach to the end of the disk.
fn kinds(node: &Qcow2) -> Vec<ExtentFlags> {
    let (mut kinds, mut at) = (Vec::new(), 0);
    while at < CLUSTERS * CLUSTER {
        let question = Request::status(at, CLUSTERS * CLUSTER - at);
        let extent = run(node.submit(question).finish()).into_extent().expect("answered");
        assert!(extent.len > 0 && extent.len.is_multiple_of(CLUSTER));
        let flags = extent.flags - ExtentFlags::EOF;
        kinds.extend((0..extent.len / CLUSTER).map(|_| flags));
        at += extent.len;
    }
    kinds
}

#[test]
fn an_answer_is_never_older_than_its_question() {
    let options = CreateOptions { size: CLUSTERS * CLUSTER, cluster_bits: 14, ..Default::default() };
    let file = create(&options);
    let node = open(&file, None, OpenOptions::default());
    let data = ExtentFlags::DATA | ExtentFlags::ALLOCATED;
    let zeroes = ExtentFlags::ZERO | ExtentFlags::ALLOCATED;
    let mut expected = vec![ExtentFlags::ZERO; CLUSTERS as usize];
    let mut rng = Rng(5);
    for step in 0..300 {
        let (first, len) = (rng.below(CLUSTERS - 8), 1 + rng.below(8));
        let kind = if rng.below(3) == 0 { zeroes } else { data };
        match kind == data {
            true => write(&*node, first * CLUSTER, &vec![7; (len * CLUSTER) as usize]),
            false => zero(&*node, first * CLUSTER, len * CLUSTER, Flags::empty()),
        }
        expected[first as usize..(first + len) as usize].fill(kind);
        // Written back, the tables are read past the cache; not written back, from it.
        if step % 3 > 0 {
            run(node.submit(Request::flush()).finish()).result.expect("flushed");
        }
        assert_eq!(kinds(&node), expected, "step {step}");
        assert_eq!(kinds(&node), expected, "step {step}, asked again");
    }
    run(node.close()).expect("closed");
    assert_clean(&file);
}
