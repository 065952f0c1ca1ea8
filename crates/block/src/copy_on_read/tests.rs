use super::*;
use crate::mem::MemNode;
use crate::testing::{Chance, OverlayNode, SlowNode, now, race};

const LEN: u64 = 64;
const GRAIN: u64 = 8;

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|at| at as u8 + 1).collect()
}

struct World {
    overlay: Arc<OverlayNode>,
    filter: Arc<dyn Node>,
}

fn world(backing: Arc<dyn Node>, chance: Option<&Chance>, bottom: Option<Bottom>) -> World {
    let overlay = Arc::new(OverlayNode::new(backing, GRAIN, LEN));
    let below: Arc<dyn Node> = match chance {
        Some(chance) => Arc::new(SlowNode { below: overlay.clone(), chance: chance.clone(), failing: 0 }),
        None => overlay.clone(),
    };
    let filter = CopyOnRead::new(Child::new(below), bottom).expect("writable");
    World { overlay, filter: Arc::new(FilterNode::new(filter)) }
}

fn read(node: &Arc<dyn Node>, offset: u64, len: usize) -> Vec<u8> {
    now(Child::new(node.clone()).read(offset, len)).expect("read").to_vec()
}

#[test]
fn what_is_read_is_copied_by_whole_clusters() {
    let World { overlay, filter } = world(Arc::new(MemNode::with_content(&pattern(LEN))), None, None);
    assert_eq!(read(&filter, 10, 9), pattern(LEN)[10..19]);
    assert_eq!(overlay.allocated(), [1, 2]);
    now(Child::new(filter.clone()).write(41, Buf::copy_of(&[0; 2]))).expect("written");
    assert_eq!(read(&filter, 0, 64)[40..44], [41, 0, 0, 44]);
    assert_eq!(overlay.allocated(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_is_brought_in_needs_no_buffers() {
    let World { overlay, filter } = world(Arc::new(MemNode::with_content(&pattern(LEN))), None, None);
    let request = Request { len: 20, offset: 3, flags: Flags::PREFETCH, ..Request::default() };
    now(filter.submit(request).finish()).result.expect("prefetched");
    assert_eq!(overlay.allocated(), [0, 1, 2]);
}

#[test]
fn below_the_bottom_nothing_is_copied() {
    let base: Arc<dyn Node> = Arc::new(MemNode::with_content(&pattern(LEN)));
    let mid = Arc::new(OverlayNode::new(base, GRAIN, LEN));
    now(Child::new(mid.clone()).write(16, Buf::copy_of(&[200; 8]))).expect("written");
    let bottom = Bottom { node: mid.clone(), name: "m".into() };
    let World { overlay, filter } = world(mid, None, Some(bottom));
    let mut expect = pattern(LEN);
    expect[16..24].fill(200);
    assert_eq!(read(&filter, 0, 64), expect);
    assert_eq!(overlay.allocated(), [2]);
    let bottom = Bottom { node: overlay.clone(), name: "top".into() };
    let child = Child::new(overlay.clone() as Arc<dyn Node>);
    let filter: Arc<dyn Node> =
        Arc::new(FilterNode::new(CopyOnRead::new(child, Some(bottom)).expect("fine")));
    assert_eq!(read(&filter, 0, 64), expect);
    assert_eq!(overlay.allocated(), [0, 1, 2, 3, 4, 5, 6, 7], "the image itself limits nothing");
}

#[test]
fn an_image_that_is_not_written_is_refused_or_left_alone() {
    let mem = MemNode::with_content(&[1; 8]);
    now(mem.reopen(crate::node::Access::ReadOnly)).expect("read only");
    let error = CopyOnRead::new(Child::new(Arc::new(mem)), None).map(drop).expect_err("refused");
    assert_eq!(error.to_string(), "Block node is read-only");
}

/// Batches of writes that do not overlap, but share clusters, run among reads of everything.
fn scramble(seed: u64) {
    let chance = Chance::new(seed);
    let World { overlay, filter } =
        world(Arc::new(MemNode::with_content(&pattern(LEN - chance.below(20)))), Some(&chance), None);
    let mut model = pattern(LEN);
    model[overlay.backing().expect("backed").len() as usize..].fill(0);
    for round in 0..4 {
        let mut futures: Vec<BoxFuture<Completion>> = Vec::new();
        let before = model.clone();
        let mut reads = Vec::new();
        for at in 0..chance.below(12) {
            let offset = at * 5;
            let byte = 100 + round * 20 + at as u8;
            let (request, value) = match chance.below(3) {
                0 => (Request::write(offset, Buf::copy_of(&[byte; 5])), Some(byte)),
                1 => (Request::write_zeroes(offset, 5), Some(0)),
                _ => {
                    reads.push((futures.len(), offset));
                    (Request::read(offset, Buf::zeroed(16.min(LEN - offset) as usize)), None)
                }
            };
            if let Some(value) = value {
                model[offset as usize..offset as usize + 5].fill(value);
            }
            futures.push(Box::pin(filter.submit(request).finish()));
        }
        let done = race(&chance, futures);
        for (index, offset) in reads {
            let got = done[index].bufs.to_contiguous();
            for (at, byte) in got.iter().enumerate() {
                let at = offset as usize + at;
                assert!([before[at], model[at]].contains(byte), "seed {seed}: byte {at} is {byte}");
            }
        }
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        let whole: Arc<dyn Node> = overlay.clone();
        assert_eq!(read(&whole, 0, LEN as usize), model, "seed {seed} round {round}");
    }
}

#[test]
fn no_write_is_lost_whatever_overtakes_what() {
    (0..2000).for_each(scramble);
}
