//! An image written in one go is a sound image with the content that was written, whatever its clusters are, and its
//! bytes come in order.

mod support;

use std::any::Any;
use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{BoxFuture, Buf, Child, ImageInfo, Node, Op, Operation, Preallocation, Request, Result};
use cowbell_qcow2::stream::{Announced, StreamNode, StreamPlan};
use cowbell_qcow2::{CompressionType, CreateOptions, L2Format, OpenOptions};
use parking_lot::Mutex;
use support::{Rng, assert_clean, open, read, run};

/// Takes bytes in order only.
struct Pipe {
    below: MemNode,
    at: Mutex<u64>,
}

impl Node for Pipe {
    fn submit(&self, request: Request) -> Op {
        let mut at = self.at.lock();
        match request.op {
            Operation::Write => {
                assert!(request.offset >= *at, "{} comes after {}", request.offset, *at);
                *at = request.end();
            }
            Operation::Truncate(_) => assert!(request.offset >= *at),
            _ => panic!("{} in a pipe", request.op.name()),
        }
        self.below.submit(request)
    }
    fn driver(&self) -> &'static str {
        "pipe"
    }
    fn len(&self) -> u64 {
        self.below.len()
    }
    fn filename(&self) -> String {
        "-".to_owned()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.below.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn check(options: &CreateOptions, seed: u64) {
    let mut rng = Rng(seed);
    let mut content = vec![0u8; options.size as usize];
    let mut announced = Announced::new(options.cluster_bits);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < options.size {
        at += rng.below(options.size / 6 + 1) & !511;
        let len = (512 + rng.below(40 << 10)).min(options.size.saturating_sub(at)) & !511;
        if len > 0 {
            announced.add(at..at + len);
            // Now and then a promise is not kept, as by data that turns out to be zeroes.
            if rng.below(4) > 0 {
                content[at as usize..(at + len) as usize].fill(rng.below(255) as u8 + 1);
                pieces.push(at..at + len);
            }
        }
        at += len.max(512);
    }
    let below = MemNode::new(0);
    let pipe = Arc::new(Pipe { below: below.clone(), at: Mutex::new(0) });
    run(async {
        let plan = StreamPlan::new(options.clone(), announced).expect("allowed");
        let len = plan.file_len();
        let node: Arc<dyn Node> =
            Arc::new(StreamNode::begin(plan, Child::new(pipe.clone())).await.expect("begun"));
        let child = Child::new(node.clone());
        for piece in pieces {
            let bytes = &content[piece.start as usize..piece.end as usize];
            child.write(piece.start, Buf::copy_of(bytes)).await.expect("written");
        }
        node.close().await.expect("ended");
        assert_eq!(below.len(), len);
    });
    assert_clean(&below);
    let image = open(&Arc::new(below), None, OpenOptions::default());
    assert!(read(&*image, 0, content.len()) == content, "{options:?} seed {seed}");
}

#[test]
fn images_of_every_form_are_sound() {
    let standard = CreateOptions { size: 3 << 20, ..CreateOptions::default() };
    for seed in 1..6 {
        check(&standard, seed);
        check(&CreateOptions { cluster_bits: 9, ..standard.clone() }, seed);
        check(&CreateOptions { cluster_bits: 9, refcount_order: 6, ..standard.clone() }, seed);
        check(&CreateOptions { cluster_bits: 10, refcount_order: 0, ..standard.clone() }, seed);
        check(&CreateOptions { cluster_bits: 21, ..standard.clone() }, seed);
        check(&CreateOptions { version: 2, cluster_bits: 12, ..standard.clone() }, seed);
        check(&CreateOptions { compression: CompressionType::Zstd, ..standard.clone() }, seed);
        check(&CreateOptions { size: 512 * 77, cluster_bits: 12, ..standard.clone() }, seed);
    }
    check(&CreateOptions { size: 0, ..standard }, 1);
}

#[test]
fn what_needs_more_than_tables_and_data_is_refused() {
    let plan = |options| StreamPlan::new(options, Announced::new(16)).map(drop);
    let standard = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    for options in [
        CreateOptions { l2_format: L2Format::Extended, ..standard.clone() },
        CreateOptions { preallocation: Preallocation::Full, ..standard.clone() },
        CreateOptions { backing_file: Some("b".into()), ..standard.clone() },
    ] {
        let error = plan(options).expect_err("refused").to_string();
        assert_eq!(error, "an image with these options cannot be written in one go");
    }
    assert!(plan(standard).is_ok());
}

#[test]
fn data_that_was_not_announced_is_refused() {
    let mut announced = Announced::new(16);
    announced.add(0..65536);
    let plan = StreamPlan::new(CreateOptions { size: 1 << 20, ..CreateOptions::default() }, announced);
    run(async {
        let sink = Child::new(Arc::new(MemNode::new(0)));
        let node = StreamNode::begin(plan.expect("allowed"), sink).await.expect("begun");
        let child = Child::new(Arc::new(node));
        child.write(512, Buf::copy_of(&[1; 512])).await.expect("announced");
        let error = child.write(65536, Buf::copy_of(&[1; 512])).await.expect_err("not announced");
        assert_eq!(error.to_string(), "data at 65536 was not announced");
    });
}
