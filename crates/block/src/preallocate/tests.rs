use super::*;
use crate::buf::Buf;
use crate::mem::MemNode;
use crate::testing::{Chance, SlowNode, now, race};

fn filter(mem: &MemNode, align: u64, size: u64) -> Arc<dyn Node> {
    let child = Child::new(Arc::new(mem.clone()));
    Arc::new(FilterNode::new(Preallocate::new(child, Step { align, size }).expect("a good step")))
}

fn write(node: &Arc<dyn Node>, offset: u64, len: usize) {
    now(node.submit(Request::write(offset, Buf::copy_of(&vec![7; len]))).finish()).result.expect("written");
}

fn truncate(node: &Arc<dyn Node>, len: u64, preallocation: Preallocation) {
    now(node.submit(Request::truncate(len, preallocation)).finish()).result.expect("resized");
}

#[test]
fn storage_comes_in_steps_and_goes_at_the_end() {
    let mem = MemNode::new(0);
    let node = filter(&mem, 4096, 65536);
    write(&node, 100, 1000);
    assert_eq!((node.len(), mem.len()), (1100, 69632));
    write(&node, 60000, 1000);
    assert_eq!((node.len(), mem.len()), (61000, 69632));
    write(&node, 69632, 1);
    assert_eq!((node.len(), mem.len()), (69633, 139264));
    let beyond = now(Child::new(node.clone()).read(70000, 100)).expect("read");
    assert!(beyond.iter().all(|byte| *byte == 0));
    now(node.close()).expect("closed");
    assert_eq!(mem.len(), 69633);
}

#[test]
fn zeroes_beyond_the_data_are_there_already() {
    let mem = MemNode::new(0);
    let node = filter(&mem, 4096, 1 << 20);
    write(&node, 0, 4096);
    let before = mem.allocated();
    now(node.submit(Request::write_zeroes(8192, 100_000)).finish()).result.expect("zeroes");
    assert_eq!((node.len(), mem.allocated()), (108_192, before));
    // What was written among them is not forgotten.
    write(&node, 10_000, 10);
    now(node.submit(Request::write_zeroes(9000, 200_000)).finish()).result.expect("zeroes");
    assert!(now(Child::new(node.clone()).read(9000, 200_000)).expect("read").iter().all(|byte| *byte == 0));
}

#[test]
fn lengths_are_what_was_asked_for() {
    let mem = MemNode::new(512);
    let node = filter(&mem, 4096, 65536);
    write(&node, 512, 512);
    truncate(&node, 2000, Preallocation::Falloc);
    assert_eq!((node.len(), mem.len()), (2000, 69632), "storage there becomes storage asked for");
    truncate(&node, 3000, Preallocation::Off);
    assert_eq!((node.len(), mem.len()), (3000, 3000));
    write(&node, 3000, 10);
    truncate(&node, 1000, Preallocation::Off);
    assert_eq!((node.len(), mem.len()), (1000, 1000));
    now(node.close()).expect("closed");
    assert_eq!(mem.len(), 1000);
}

#[test]
fn a_node_that_turns_read_only_gives_back_what_it_does_not_use() {
    let mem = MemNode::new(0);
    let node = filter(&mem, 512, 65536);
    write(&node, 0, 10);
    now(node.reopen(Access::ReadOnly)).expect("reopened");
    assert_eq!((node.len(), mem.len()), (10, 10));
}

#[test]
fn steps_are_whole_sectors() {
    let new =
        |align| Preallocate::new(Child::new(Arc::new(MemNode::new(0))), Step { align, size: 0 }).map(drop);
    assert_eq!(new(1000), Err(PreallocateError::AlignUnaligned));
    assert!(new(0).is_ok() && new(512).is_ok());
    let mem = MemNode::new(0);
    write(&filter(&mem, 0, 0), 5, 5);
    assert_eq!(mem.len(), 10);
}

#[test]
fn nothing_overflows_at_the_end_of_what_files_can_be() {
    let mem = MemNode::new(0);
    let node = filter(&mem, 1 << 20, u64::MAX);
    write(&node, 1 << 40, 1);
    assert_eq!((node.len(), mem.len()), ((1 << 40) + 1, (1 << 40) + 1));
}

/// Disjoint writes and writes of zeroes at random, one upon the other: the same bytes as without the filter.
fn scramble(seed: u64) {
    let chance = Chance::new(seed);
    let mem = MemNode::new(0);
    let failing = if seed.is_multiple_of(3) { 100 } else { 0 };
    let slow = SlowNode { below: Arc::new(mem.clone()), chance: chance.clone(), failing };
    let align = 512 * chance.below(3);
    let step = Step { align, size: chance.below(3000) };
    let filter = Preallocate::new(Child::new(Arc::new(slow)), step).expect("a good step");
    let node: Arc<dyn Node> = Arc::new(FilterNode::new(filter));
    let (mut model, mut unknown) = (vec![0u8; 32768], vec![false; 32768]);
    let mut len = 0;
    for round in 1..6 {
        let mut futures: Vec<BoxFuture<Completion>> = Vec::new();
        let (mut ranges, mut at) = (Vec::new(), chance.below(2000));
        while at < 20000 && ranges.len() < 8 {
            let n = 1 + chance.below(1500);
            let zeroes = chance.below(2) == 0;
            let request = match zeroes {
                true => Request::write_zeroes(at, n),
                false => Request::write(at, Buf::copy_of(&vec![round; n as usize])),
            };
            futures.push(Box::pin(node.submit(request).finish()));
            ranges.push((at as usize, n as usize, if zeroes { 0 } else { round }));
            at += n + chance.below(3000);
        }
        for (done, (at, n, byte)) in race(&chance, futures).into_iter().zip(ranges) {
            if failing == 0 {
                done.result.as_ref().expect("nothing fails");
            }
            len = len.max(at + n);
            model[at..at + n].fill(byte);
            unknown[at..at + n].fill(done.result.is_err());
        }
    }
    let got = now(Child::new(Arc::new(mem.clone())).read(0, model.len())).expect("read");
    for at in 0..model.len() {
        assert!(unknown[at] || got[at] == model[at], "seed {seed}: byte {at} is {}", got[at]);
    }
    if failing == 0 {
        assert_eq!(node.len(), len as u64, "seed {seed}");
        now(node.close()).expect("closed");
        assert_eq!(mem.len(), len as u64, "seed {seed}");
    }
}

#[test]
fn storage_in_advance_changes_no_byte() {
    (0..1000).for_each(scramble);
}
