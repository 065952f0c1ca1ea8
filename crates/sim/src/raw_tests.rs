//! Raw images on hosts that take whole blocks of 4096 bytes: a smaller write reads its block, changes it and writes it
//! back, and must not take back what a neighbour wrote meanwhile, also when nobody waits for it any more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cowbell_block::node::{Access, Node};
use cowbell_block::{Buf, RawNode, Request};

use crate::disk::{Clock, HostConfig, SimDisk};
use crate::exec::{DepthFirst, Granularity, World};
use crate::pool::{Pool, SECTOR};
use crate::rng::Rng;

/// Polls so often, then lets go of the future.
struct Briefly(Pin<Box<dyn Future<Output = ()>>>, u32);

impl Future for Briefly {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.1 == 0 || self.0.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.1 -= 1;
        if self.1 == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Runs two requests under every schedule, the first given up after so many polls. Returns the number of schedules, and of
/// those after which sector 1 does not hold what the second one left there.
fn losses(polls: u32, second: impl Fn() -> Request, expect: &[u8; SECTOR]) -> (u32, u32) {
    let mut search = DepthFirst::default();
    let (mut runs, mut lost) = (0, 0);
    loop {
        let pool = Pool::shared();
        let old = pool.lock().intern(&[7; SECTOR]);
        let host = HostConfig { alignment: 4096, ..HostConfig::default() };
        let disk = SimDisk::new("disk", &pool, &Clock::default(), &[old; 16], 8192, host, Rng::new(0));
        let raw = Arc::new(RawNode::new(disk.node(), Access::ReadWrite).expect("no options"));
        let mut world = World::new(vec![disk.clone()], search.strategy(), Granularity::IoPoints);
        let (first, other, second) = (raw.clone(), raw.clone(), second());
        world.spawn(async move {
            let write = Request::write(0, Buf::copy_of(&[1; SECTOR]));
            let writing = async move { drop(first.submit(write).finish().await) };
            Briefly(Box::pin(writing), polls).await;
        });
        world.spawn(async move {
            let done = other.submit(second).finish().await;
            done.result.expect("no fault");
        });
        world.run().expect("nothing blocks");
        // What was given up is driven by whoever comes next.
        let after = raw.clone();
        let closing = async move {
            after.submit(Request::write(4096, Buf::copy_of(&[3; SECTOR]))).finish().await.result.is_ok()
        };
        assert!(world.block_on(closing).expect("nothing blocks"));
        runs += 1;
        lost += u32::from(pool.lock().bytes(disk.content_at(1)) != expect);
        if !search.advance(&world) {
            return (runs, lost);
        }
    }
}

#[test]
fn a_neighbour_is_not_lost() {
    for polls in 1..6 {
        let write = || Request::write(SECTOR as u64, Buf::copy_of(&[2; SECTOR]));
        let (runs, lost) = losses(polls, write, &[2; SECTOR]);
        assert_eq!(lost, 0, "of {runs} schedules, given up after {polls} polls");
    }
}

/// Zeroes that cover whole blocks need no read, and stay apart from those who do.
#[test]
fn zeroes_are_not_taken_back() {
    for polls in [2, 100] {
        let (runs, lost) = losses(polls, || Request::write_zeroes(0, 4096), &[0; SECTOR]);
        assert_eq!(lost, 0, "of {runs} schedules, given up after {polls} polls");
    }
}
