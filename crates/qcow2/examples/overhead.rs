//! What the engine adds to a request whose mapping is cached: nanoseconds over the same request to its file.

use std::sync::Arc;
use std::time::Instant;

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, Buf, Bufs, Child, Node, Op, Request};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};

const ROUNDS: u64 = 2_000_000;

fn main() {
    let file = Arc::new(MemNode::new(0));
    let options = CreateOptions { size: 64 << 20, ..Default::default() };
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, &options)).expect("created");
    let open = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let image = run(Qcow2::open(file.clone(), None, open)).expect("opened");
    let fill = Request::write(0, Buf::zeroed(32 << 20));
    run(image.submit(fill).finish()).result.expect("written");
    for write in [false, true] {
        let below = measure(&*file, 1 << 20, write);
        let through = measure(&*image, 0, write);
        let what = if write { "overwrite" } else { "read" };
        println!("{what}: file {below:.0} ns, image {through:.0} ns, engine {:.0} ns", through - below);
    }
}

fn measure(node: &dyn Node, base: u64, write: bool) -> f64 {
    let mut bufs = Bufs::from(Buf::zeroed(512));
    let start = Instant::now();
    for i in 0..ROUNDS {
        let offset = base + i * 7919 % 8192 * 4096 / 4096 * 512;
        let request = if write { Request::write(offset, bufs) } else { Request::read(offset, bufs) };
        let Op::Done(completion) = node.submit(request) else { panic!("memory answers at once") };
        bufs = completion.into_bufs().expect("possible");
    }
    start.elapsed().as_nanos() as f64 / ROUNDS as f64
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
