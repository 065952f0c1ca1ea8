use super::*;
use crate::buf::Bufs;
use crate::error::ErrorKind;
use crate::filter::FilterNode;
use crate::mem::MemNode;
use crate::node::{Access, Node};
use crate::testing::{Chance, SlowNode, now, race};

const LEN: u64 = 60;
const GRAIN: u64 = 8;

fn pattern() -> Vec<u8> {
    (0..LEN).map(|at| at as u8 + 1).collect()
}

/// A disk, what keeps its earlier state, and the filter between.
struct World {
    disk: MemNode,
    target: MemNode,
    filter: Arc<FilterNode<CopyBeforeWrite>>,
}

fn world(options: CopyBeforeWriteOptions, chance: Option<&Chance>) -> World {
    let (disk, target) = (MemNode::with_content(&pattern()), MemNode::new(LEN));
    let slow = |node: &MemNode| -> Arc<dyn Node> {
        match chance {
            Some(chance) => {
                Arc::new(SlowNode { below: Arc::new(node.clone()), chance: chance.clone(), failing: 0 })
            }
            None => Arc::new(node.clone()),
        }
    };
    let (child, kept) = (Child::new(slow(&disk)), Child::new(slow(&target)));
    let filter = CopyBeforeWrite::with_grain(child, kept, options, GRAIN);
    World { disk, target, filter: Arc::new(FilterNode::new(filter)) }
}

impl World {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let op = self.filter.submit(Request::write(offset, Buf::copy_of(bytes)));
        now(op.finish()).into_bufs().map(Bufs::recycle)
    }

    fn earlier(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let op = self.filter.submit_earlier(Request::read(offset, Buf::zeroed(len as usize)));
        Ok(now(op.finish()).into_bufs()?.to_contiguous().to_vec())
    }
}

#[test]
fn what_is_replaced_is_kept_by_whole_clusters_and_once() {
    let world = world(CopyBeforeWriteOptions::default(), None);
    world.write(10, &[200; 3]).expect("written");
    world.write(10, &[201; 3]).expect("written again");
    assert_eq!(world.target.content()[8..16], pattern()[8..16]);
    assert!(world.target.content()[..8].iter().chain(&world.target.content()[16..]).all(|b| *b == 0));
    assert_eq!(world.disk.content()[10..13], [201; 3]);
    assert_eq!(world.earlier(0, LEN).expect("readable"), pattern());
    now(world.filter.submit(Request::discard(48, 12)).finish()).result.expect("discarded");
    now(world.filter.submit(Request::write_zeroes(0, 20)).finish()).result.expect("zeroed");
    assert_eq!(world.earlier(0, LEN).expect("readable"), pattern());
    assert_eq!(world.earlier(50, 11).expect_err("beyond").kind(), ErrorKind::Io);
}

#[test]
fn what_is_cut_off_is_kept_too() {
    let world = world(CopyBeforeWriteOptions::default(), None);
    let cut = Request::truncate(20, crate::request::Preallocation::Off);
    now(world.filter.submit(cut).finish()).result.expect("cut");
    assert_eq!((world.disk.len(), world.earlier(0, LEN).expect("readable")), (20, pattern()));
}

#[test]
fn only_what_a_bitmap_names_is_kept_and_shown() {
    let areas = Some(vec![9..10, 30..33]);
    let world = world(CopyBeforeWriteOptions { areas, ..CopyBeforeWriteOptions::default() }, None);
    world.write(0, &[200; LEN as usize]).expect("written");
    assert_eq!(world.earlier(8, 8).expect("dirty"), pattern()[8..16]);
    assert_eq!(world.earlier(24, 16).expect("dirty"), pattern()[24..40]);
    assert_eq!(world.earlier(0, 8).expect_err("clean").errno(), EACCES);
    assert_eq!(world.earlier(14, 4).expect_err("partly clean").errno(), EACCES);
    assert!(world.target.content()[..8].iter().all(|b| *b == 0));
}

#[test]
fn what_is_given_up_is_not_kept_any_more() {
    let world = world(CopyBeforeWriteOptions::default(), None);
    now(world.filter.submit_earlier(Request::discard(4, 14)).finish()).result.expect("given up");
    world.write(0, &[200; 32]).expect("written");
    assert_eq!(world.earlier(0, 8).expect("kept"), pattern()[..8]);
    assert_eq!(world.earlier(8, 8).expect_err("given up").errno(), EACCES);
    assert_eq!(world.earlier(16, 8).expect("kept: the discard covered a part"), pattern()[16..24]);
}

#[test]
fn a_copy_that_fails_breaks_what_was_asked_for() {
    for on_error in [OnError::BreakGuestWrite, OnError::BreakSnapshot] {
        let world = world(CopyBeforeWriteOptions { on_error, ..CopyBeforeWriteOptions::default() }, None);
        now(world.target.reopen(Access::ReadOnly)).expect("read only");
        let written = world.write(10, &[200]);
        match on_error {
            OnError::BreakGuestWrite => {
                assert_eq!(written.expect_err("refused").kind(), ErrorKind::ReadOnly);
                assert_eq!(world.disk.content(), pattern());
                assert_eq!(world.earlier(0, LEN).expect("readable"), pattern());
            }
            OnError::BreakSnapshot => {
                written.expect("the disk goes on");
                assert_eq!(world.earlier(0, 4).expect_err("broken").errno(), EACCES);
                world.write(30, &[1]).expect("nothing is copied any more");
            }
        }
    }
}

/// A clock that stands at its alarm at once.
struct Late;

impl Time for Late {
    fn now_ns(&self) -> u64 {
        0
    }
    fn sleep_until(&self, _: u64) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

#[test]
fn a_copy_that_takes_too_long_fails() {
    let chance = Chance::new(5);
    let timeout = Some((Duration::from_secs(1), Arc::new(Late) as Arc<dyn Time>));
    let world = world(CopyBeforeWriteOptions { timeout, ..CopyBeforeWriteOptions::default() }, Some(&chance));
    // It may be so quick that nobody looks at the clock.
    let results: Vec<_> = (0..7).map(|n| world.write(n * GRAIN, &[200])).collect();
    assert!(results.iter().any(|result| result.as_ref().is_err_and(|e| e.errno() == ETIMEDOUT)));
    assert!(results.iter().all(|result| result.as_ref().err().is_none_or(|e| e.errno() == ETIMEDOUT)));
    assert_eq!(world.earlier(0, LEN).expect("readable"), pattern());
}

#[test]
fn targets_that_cannot_keep_the_disk_are_refused() {
    let child = || Child::new(Arc::new(MemNode::new(LEN)));
    let small = Child::new(Arc::new(MemNode::new(LEN - 1)));
    let new = |target, options| CopyBeforeWrite::new(child(), target, options).map(drop);
    let options = CopyBeforeWriteOptions::default;
    let error = new(small, options()).expect_err("too small");
    assert_eq!(error, CopyBeforeWriteError::TargetTooSmall { room: LEN - 1, len: LEN });
    let bad = |grain_min| CopyBeforeWriteOptions { grain_min, ..options() };
    assert_eq!(new(child(), bad(100)), Err(CopyBeforeWriteError::GrainNoPowerOfTwo));
    assert_eq!(new(child(), bad(1 << 63)), Ok(()));
    assert_eq!(new(child(), options()), Ok(()));
}

/// Changes and looks at the earlier state in any order: it never changes, whatever overtakes what, and the disk is
/// what was written to it.
fn scramble(seed: u64) {
    let chance = Chance::new(seed);
    let world = world(CopyBeforeWriteOptions::default(), Some(&chance));
    let mut model = pattern();
    for round in 0..3u8 {
        let mut futures: Vec<BoxFuture<(u64, Completion)>> = Vec::new();
        for at in 0..chance.below(12) {
            let offset = at * 5;
            let byte = 100 + round * 40 + at as u8;
            let (op, mark) = match chance.below(4) {
                0 => {
                    model[offset as usize..offset as usize + 5].fill(byte);
                    (world.filter.submit(Request::write(offset, Buf::copy_of(&[byte; 5]))), u64::MAX)
                }
                1 => {
                    model[offset as usize..offset as usize + 5].fill(0);
                    (world.filter.submit(Request::write_zeroes(offset, 5)), u64::MAX)
                }
                _ => {
                    let len = 1 + chance.below(LEN - offset);
                    let read = Request::read(offset, Buf::zeroed(len as usize));
                    (world.filter.submit_earlier(read), offset)
                }
            };
            futures.push(Box::pin(async move { (mark, op.finish().await) }));
        }
        for (offset, completion) in race(&chance, futures) {
            let bufs = completion.into_bufs().expect("nothing fails");
            if offset != u64::MAX {
                let got = bufs.to_contiguous();
                let expect = &pattern()[offset as usize..][..got.len()];
                assert_eq!(&got[..], expect, "seed {seed} round {round} offset {offset}");
            }
        }
        assert_eq!(world.disk.content(), model, "seed {seed} round {round}");
    }
}

#[test]
fn the_earlier_state_stays_whatever_overtakes_what() {
    (0..2000).for_each(scramble);
}

#[test]
fn snapshot_access_shows_it_through_options() {
    let files = crate::testing::Files::default();
    files.put("disk", &[7; 512]);
    files.put("kept", &[0; 512]);
    let mut cx = files.context().writable();
    cx.graph = Some(crate::graph::Graph::new());
    let list = "driver=copy-before-write,file.driver=raw,file.file.driver=file,file.file.filename=disk,\
                target.driver=raw,target.file.driver=file,target.file.filename=kept";
    let open = |list: &str| {
        let name = crate::naming::ImageName::OptionList(list.to_owned());
        now(crate::open::open_image(&name, None, &cx)).map(|opened| opened.node)
    };
    let text = |list: &str| open(list).map(drop).expect_err("must not open").to_string();
    let over: String = list
        .split(',')
        .map(|item| {
            let item = item.trim();
            format!(",file.{item}")
        })
        .collect();
    let view = open(&format!("driver=snapshot-access{over}")).expect("opens");
    let below = view.primary().expect("the filter");
    now(Child::new(below).write(0, Buf::copy_of(&[1; 9]))).expect("written");
    assert_eq!(now(Child::new(view.clone()).read(0, 512)).expect("read")[..], [7; 512]);
    assert_eq!(files.get("disk").expect("there").content()[..10], [1, 1, 1, 1, 1, 1, 1, 1, 1, 7]);
    now(view.close()).expect("closed");
    assert_eq!(text(&format!("{list},bitmap.node=x,bitmap.name=y")), "Node 'x' not found");
    assert_eq!(text(&format!("{list},cbw-timeout=3")), "cbw-timeout: nobody tells the time here");
    assert_eq!(
        text(&format!("{list},on-cbw-error=foo")),
        "Parameter 'on-cbw-error' does not accept value 'foo'"
    );
    assert!(text(list.split(",target").next().expect("some")).contains("\"target\""));
}
