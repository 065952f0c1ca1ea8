//! What the tests share: chance, an executor, and files that remember how they were written.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::any::Any;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cowbell_block::{
    Access, BoxFuture, Buf, Bufs, Child, Completion, ImageInfo, MemNode, Node, Op, Operation, Outside,
    Request, Result,
};
use cowbell_vpc::node::Metadata;
use cowbell_vpc::{CreateOptions, OpenOptions, Parent, SizeRule, Vpc, create};

/// Numbers that look random and come again with the same seed.
#[derive(Clone)]
pub struct Chance(Arc<Mutex<u64>>);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    pub fn below(&self, n: u64) -> u64 {
        let mut state = self.0.lock().expect("nobody panicked");
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % n
    }
}

impl Outside for Chance {
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        bytes.iter_mut().for_each(|byte| *byte = self.below(256) as u8);
        Ok(())
    }
    fn unix_sec(&self) -> u64 {
        1_800_000_000
    }
    fn thread_time(&self) -> Duration {
        Duration::ZERO
    }
}

pub fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    for _ in 0..100_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    panic!("the future waits for something that does not come");
}

/// Polls in an order that chance decides until all are ready or given up.
pub fn race<T>(chance: &Chance, futures: Vec<BoxFuture<T>>, patience: u64) -> Vec<Option<T>> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut running: Vec<(usize, BoxFuture<T>)> = futures.into_iter().enumerate().collect();
    let mut steps = 0;
    while !running.is_empty() {
        let pick = chance.below(running.len() as u64) as usize;
        if patience > 0 && chance.below(patience) == 0 {
            drop(running.swap_remove(pick));
            continue;
        }
        if let Poll::Ready(value) = running[pick].1.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            let (index, _) = running.swap_remove(pick);
            results[index] = Some(value);
        }
        steps += 1;
        assert!(steps < 1_000_000, "nobody gets on");
    }
    results
}

/// One change of a file.
#[derive(Clone)]
pub enum Change {
    Write(u64, Vec<u8>),
    Zeroes(u64, u64),
    Length(u64),
    Flush,
}

impl Change {
    pub fn apply(&self, file: &MemNode) {
        let request = match self {
            Self::Write(at, bytes) => Request::write(*at, Buf::copy_of(bytes)),
            Self::Zeroes(at, len) => Request::write_zeroes(*at, *len),
            Self::Length(len) => Request::truncate(*len, cowbell_block::Preallocation::Off),
            Self::Flush => return,
        };
        now(file.submit(request).finish()).result.expect("memory takes everything");
    }
}

/// A file that is slow, and is filmed.
pub struct Film {
    pub file: MemNode,
    pub chance: Chance,
    pub changes: Arc<Mutex<Vec<Change>>>,
}

impl Film {
    pub fn new(file: MemNode, chance: Chance) -> Arc<Self> {
        Arc::new(Self { file, chance, changes: Arc::default() })
    }
}

async fn dawdle(chance: &Chance) {
    let mut left = chance.below(4);
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Node for Film {
    fn submit(&self, request: Request) -> Op {
        let (file, chance, changes) = (self.file.clone(), self.chance.clone(), self.changes.clone());
        Op::wait(async move {
            dawdle(&chance).await;
            let change = match request.op {
                Operation::Write => {
                    Some(Change::Write(request.offset, request.bufs.to_contiguous().to_vec()))
                }
                Operation::WriteZeroes => Some(Change::Zeroes(request.offset, request.len)),
                Operation::Truncate(_) => Some(Change::Length(request.offset)),
                Operation::Flush => Some(Change::Flush),
                _ => None,
            };
            changes.lock().expect("nobody panicked").extend(change);
            let completion = file.submit(request).finish().await;
            dawdle(&chance).await;
            completion
        })
    }
    fn driver(&self) -> &'static str {
        "film"
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn filename(&self) -> String {
        "film".to_owned()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.file.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub fn image(options: &CreateOptions) -> MemNode {
    let file = MemNode::new(0);
    now(create(&Child::new(Arc::new(file.clone())), options, &Chance::new(7))).expect("created");
    file
}

/// Makes the blocks of an image smaller, so that tests reach many of them: the header is written anew.
pub fn with_blocks(file: &MemNode, block_bytes: u32) -> MemNode {
    let mut content = file.content();
    let at = u64::from_be_bytes(content[16..24].try_into().expect("eight")) as usize;
    let len = u64::from_be_bytes(content[48..56].try_into().expect("eight"));
    let table = u64::from_be_bytes(content[at + 16..at + 24].try_into().expect("eight")) as usize;
    let entries = len.div_ceil(u64::from(block_bytes)) as usize;
    let footer = content[..512].to_vec();
    content.truncate(table);
    content.extend(std::iter::repeat_n(0xff, (entries * 4).next_multiple_of(512)));
    content.extend(footer);
    content[at + 28..at + 32].copy_from_slice(&(entries as u32).to_be_bytes());
    content[at + 32..at + 36].copy_from_slice(&block_bytes.to_be_bytes());
    MemNode::with_content(&content)
}

pub fn open(file: Arc<dyn Node>, parent: Option<Arc<dyn Node>>, access: Access) -> Result<Arc<dyn Node>> {
    let options = OpenOptions { access, ..OpenOptions::default() };
    now(async {
        let metadata = Metadata::read(&Child::new(file.clone()), SizeRule::Creator).await?;
        Ok(Arc::new(Vpc::open(file, metadata, parent, options).await?) as Arc<dyn Node>)
    })
}

pub fn read(node: &Arc<dyn Node>, offset: u64, len: usize) -> Vec<u8> {
    now(Child::new(node.clone()).read(offset, len)).expect("read").to_vec()
}

pub fn parent_of(node: &Arc<dyn Node>, name: &str) -> Parent {
    let vpc = node.as_any().downcast_ref::<Vpc>().expect("a vpc node");
    Parent { name: name.to_owned(), footer: *vpc.footer(), len: node.len() }
}

pub fn outcome(completion: Completion) -> (Bufs, Result<()>) {
    (completion.bufs, completion.result.map(drop))
}
