use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use super::limits::Spelling;
use super::*;
use crate::buf::Buf;
use crate::mem::MemNode;
use crate::outside::Time;
use crate::request::Completion;
use crate::testing::{Chance, Files, now};

const SEC: u64 = 1_000_000_000;

/// Time that a test moves.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Time for Hands {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn sleep_until(&self, at_ns: u64) -> BoxFuture<()> {
        let hands = self.clone();
        Box::pin(std::future::poll_fn(move |_| match hands.now_ns() >= at_ns {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }))
    }
}

fn group(hands: &Hands, list: &[(&str, i64)]) -> ThrottleGroup {
    let mut builder = LimitsBuilder::default();
    for (key, value) in list {
        builder.set(Spelling::Plain, key, *value).expect("known");
    }
    ThrottleGroup::new("g", builder.finish().expect("consistent"), Arc::new(hands.clone()))
}

fn node(group: &ThrottleGroup) -> FilterNode<Throttle> {
    FilterNode::new(Throttle::new(Child::new(Arc::new(MemNode::new(1 << 20))), group))
}

/// Requests on their way, which a test polls.
#[derive(Default)]
struct Flying(Vec<(usize, BoxFuture<Completion>)>);

impl Flying {
    fn add(&mut self, who: usize, op: Op) -> bool {
        match op {
            Op::Done(_) => true,
            Op::Wait(future) => {
                self.0.push((who, future));
                false
            }
        }
    }

    /// Polls all until nobody gets on; who is done, in the order in which they were.
    fn poll(&mut self) -> Vec<usize> {
        let mut done = Vec::new();
        loop {
            let before = done.len();
            let cx = &mut Context::from_waker(Waker::noop());
            self.0.retain_mut(|(who, future)| match future.as_mut().poll(cx) {
                Poll::Ready(_) => {
                    done.push(*who);
                    false
                }
                Poll::Pending => true,
            });
            if done.len() == before {
                return done;
            }
        }
    }
}

fn read(len: usize) -> Request {
    Request::read(0, Buf::zeroed(len))
}

#[test]
fn what_is_within_the_limits_meets_no_wait() {
    let hands = Hands::default();
    let node = node(&group(&hands, &[("iops-total", 100)]));
    let mut flying = Flying::default();
    // A tenth of a second is let through at once, and the one that fills it.
    let passed = (0..50).filter(|_| flying.add(0, node.submit(read(512)))).count();
    assert_eq!(passed, 11);
    assert!(matches!(node.submit(Request::flush()), Op::Done(_)), "flushes are not held up");
    assert!(matches!(node.submit(Request::status(0, 512)), Op::Done(_)));
    let mut count = 0;
    for _ in 0..39 {
        assert!(flying.poll().is_empty());
        hands.0.fetch_add(SEC / 100, Ordering::Relaxed);
        count += flying.poll().len();
    }
    assert_eq!((count, flying.0.len()), (39, 0));
}

#[test]
fn no_limits_no_waits() {
    let node = node(&group(&Hands::default(), &[]));
    assert!((0..1000).all(|_| matches!(node.submit(read(65536)), Op::Done(_))));
}

#[test]
fn reads_and_writes_queue_apart() {
    let hands = Hands::default();
    let node = node(&group(&hands, &[("iops-read", 10), ("bps-write", 1 << 20)]));
    let mut flying = Flying::default();
    for _ in 0..20 {
        flying.add(0, node.submit(read(512)));
    }
    assert!(flying.add(1, node.submit(Request::write(0, Buf::zeroed(1 << 20)))));
    assert!(!flying.add(1, node.submit(Request::write_zeroes(0, 512))));
    assert!(!flying.add(1, node.submit(Request::discard(0, 512))));
    hands.0.store(SEC, Ordering::Relaxed);
    let done = flying.poll();
    assert_eq!(done.iter().filter(|who| **who == 1).count(), 2, "both fit after a second");
}

#[test]
fn members_take_turns() {
    let hands = Hands::default();
    let group = group(&hands, &[("iops-total", 10)]);
    let (busy, calm) = (node(&group), node(&group));
    let mut flying = Flying::default();
    for _ in 0..30 {
        flying.add(0, busy.submit(read(512)));
    }
    for _ in 0..3 {
        flying.add(1, calm.submit(read(512)));
    }
    let mut order = Vec::new();
    for _ in 0..9 {
        hands.0.fetch_add(SEC / 10, Ordering::Relaxed);
        order.extend(flying.poll());
    }
    assert_eq!(order[..8], [0, 1, 0, 1, 0, 1, 0, 0], "the busy node does not hold up the calm one");
}

#[test]
fn who_gives_up_holds_nobody_up() {
    for seed in 0..300 {
        let (chance, hands) = (Chance::new(seed), Hands::default());
        let group = group(&hands, &[("iops-total", 10)]);
        let nodes = [node(&group), node(&group), node(&group)];
        let mut flying = Flying::default();
        let mut left = 0u64;
        for _ in 0..40 {
            let who = chance.below(3) as usize;
            if !flying.add(who, nodes[who].submit(read(512))) {
                left += 1;
            }
            if chance.below(3) == 0 && !flying.0.is_empty() {
                let gone = chance.below(flying.0.len() as u64) as usize;
                drop(flying.0.swap_remove(gone));
                left -= 1;
            }
            if chance.below(4) == 0 {
                hands.0.fetch_add(SEC / 20, Ordering::Relaxed);
                left -= flying.poll().len() as u64;
            }
        }
        // Each gets its turn in its time.
        hands.0.fetch_add(SEC / 10 * (left + 1), Ordering::Relaxed);
        for _ in 0..left {
            flying.poll();
            hands.0.fetch_add(SEC / 10, Ordering::Relaxed);
        }
        flying.poll();
        assert!(flying.0.is_empty(), "seed {seed}: {} wait for ever", flying.0.len());
    }
}

#[test]
fn a_node_needs_a_group() {
    let files = Files::default();
    files.put("r", &[7; 512]);
    let mut cx = files.context();
    let open = |cx: &OpenContext, list: &str| {
        let name = crate::naming::ImageName::OptionList(list.to_owned());
        now(crate::open::open_image(&name, None, cx)).map(|opened| opened.node).map_err(|e| e.to_string())
    };
    for (list, text) in [
        ("driver=throttle,file.filename=r", "Please specify a throttle group"),
        ("driver=throttle,file.filename=r,throttle-group=g", "Throttle group 'g' does not exist"),
        ("driver=throttle,throttle-group=g", "A block device must be specified for \"file\""),
    ] {
        assert_eq!(open(&cx, list).map(drop), Err(text.to_owned()));
    }
    cx.throttle_groups.add(group(&Hands::default(), &[]));
    let node = open(&cx, "driver=throttle,file.filename=r,throttle-group=g").expect("it is there");
    let name =
        r#"json:{"throttle-group": "g", "driver": "throttle", "file": {"driver": "file", "filename": "r"}}"#;
    assert_eq!(node.filename(), name);
    assert_eq!(now(Child::new(node).read(0, 1)).expect("read")[..], [7]);
}
