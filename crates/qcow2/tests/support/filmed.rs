//! A file under observation.

use std::any::Any;
use std::sync::{Arc, Mutex};

use cowbell_block::child::NamedEdge;
use cowbell_block::mem::MemNode;
use cowbell_block::node::{ImageInfo, Limits};
use cowbell_block::{BoxFuture, Node, Op, Request, Result};

/// A file that keeps a picture of itself after each change.
pub struct Filmed {
    file: Arc<MemNode>,
    frames: Mutex<Vec<Vec<u8>>>,
}

impl Filmed {
    pub fn new(file: &Arc<MemNode>) -> Self {
        Self { file: file.clone(), frames: Mutex::default() }
    }

    /// The pictures until now.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.lock().expect("one thread").clone()
    }
}

impl Node for Filmed {
    fn submit(&self, request: Request) -> Op {
        let changes = request.op.is_mutation();
        let op = self.file.submit(request);
        assert!(matches!(op, Op::Done(_)), "memory answers at once");
        if changes {
            self.frames.lock().expect("one thread").push(self.file.content());
        }
        op
    }
    fn driver(&self) -> &'static str {
        "filmed"
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn limits(&self) -> Limits {
        self.file.limits()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn edges(&self) -> Vec<NamedEdge> {
        Vec::new()
    }
    fn filename(&self) -> String {
        self.file.filename()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.file.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.file.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
