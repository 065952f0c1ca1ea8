//! Metadata read without its holes.
//!
//! A table with one entry is a page in a file that was written or copied sparsely, and a hole but for it. To read a
//! hole the host makes pages of zeroes, which costs more than to read data that it has; so it is asked first where
//! they are.
//!
//! Only for what is durable: there are hosts that call a page a hole until it has reached the disk. Every operation on
//! all tables begins with a flush and writes to other clusters; but a cluster smaller than a page shares it with them, so
//! only what fills its pages is asked for.

use cowbell_block::{Buf, Child, Extent, ExtentFlags, Result};

/// The largest page of any host.
const PAGE_MAX: u64 = 64 << 10;
/// One question for each so many bytes is worth its price; what is more scattered is read as a whole.
const BYTES_PER_QUESTION: usize = 16 << 10;
/// Questions for the shortest piece: a hole, data, and a hole.
const QUESTIONS_MIN: usize = 3;

/// Reads whole clusters of `cluster` bytes, `len` bytes at `offset`: of clusters that fill their pages only the data.
///
/// # Errors
/// The file's.
pub(super) async fn read(file: &Child, offset: u64, len: usize, cluster: u64) -> Result<Buf> {
    if cluster < PAGE_MAX {
        return file.read(offset, len).await;
    }
    let mut found = ask(file, offset, len).await;
    if found == (Found { hole: false, len }) {
        return file.read(offset, len).await;
    }
    let mut whole = Buf::scratch(len);
    let questions_max = QUESTIONS_MIN.max(len / BYTES_PER_QUESTION);
    let (mut at, mut questions) = (0, 1);
    loop {
        let place = &mut whole[at..at + found.len];
        if found.hole {
            place.fill(0);
        } else {
            let data = file.read(offset + at as u64, found.len).await?;
            place.copy_from_slice(&data);
            data.recycle();
        }
        at += found.len;
        if at == len {
            return Ok(whole);
        }
        found = match questions < questions_max {
            true => ask(file, offset + at as u64, len - at).await,
            false => Found { hole: false, len: len - at },
        };
        questions += 1;
    }
}

/// What begins at some place.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    hole: bool,
    len: usize,
}

/// What begins at `offset`, at most `len` bytes of it. All that is not known for a hole is data.
async fn ask(file: &Child, offset: u64, len: usize) -> Found {
    match file.status(offset, len as u64).await {
        Ok(Extent { len: known, flags, .. }) if known > 0 => {
            let hole = flags.contains(ExtentFlags::ZERO);
            Found { hole, len: known.min(len as u64) as usize }
        }
        // The end of the file, or an answer that is none.
        _ => Found { hole: false, len },
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Waker};

    use cowbell_block::mem::MemNode;
    use cowbell_block::node::ImageInfo;
    use cowbell_block::{BoxFuture, Completion, Node, Op, Operation, Request};

    use super::*;

    /// A file that counts what is read of it, and knows its holes by the page.
    struct Counted {
        file: MemNode,
        pages: Vec<usize>,
        bytes: AtomicU64,
    }

    impl Counted {
        /// The pages from `offset` on that are of one kind.
        fn extent(&self, offset: u64, len: u64) -> Extent {
            let is_data = |page: &u64| self.pages.contains(&(*page as usize));
            let kind = is_data(&(offset >> 12));
            let alike =
                (offset >> 12..).take(1 << 10).take_while(|page| is_data(page) == kind).count() as u64;
            let end = (((offset >> 12) + alike) << 12).min(offset + len);
            let flags = if kind { ExtentFlags::DATA } else { ExtentFlags::ZERO };
            Extent { len: end - offset, flags, map: None }
        }
    }

    impl Node for Counted {
        fn submit(&self, request: Request) -> Op {
            match request.op {
                Operation::Read => {
                    self.bytes.fetch_add(request.len, Ordering::Relaxed);
                }
                Operation::Status => {
                    return Op::Done(Completion::extent(self.extent(request.offset, request.len)));
                }
                _ => {}
            }
            self.file.submit(request)
        }
        fn driver(&self) -> &'static str {
            "counted"
        }
        fn len(&self) -> u64 {
            self.file.len()
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

    /// Nothing here waits.
    fn now<T>(work: impl Future<Output = T>) -> T {
        match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("memory made a request wait"),
        }
    }

    const LEN: usize = 1 << 20;

    /// A file with data in these pages only, how often it was read, and what is in it.
    fn file(pages: &[usize]) -> (Child, Arc<Counted>, Vec<u8>) {
        let (memory, bytes) = (MemNode::new(LEN as u64), AtomicU64::new(0));
        let node = Arc::new(Counted { file: memory, pages: pages.to_vec(), bytes });
        let file = Child::new(node.clone());
        let mut model = vec![0u8; LEN];
        for page in pages {
            let bytes = &mut model[page << 12..(page + 1) << 12];
            bytes.fill(*page as u8 + 1);
            now(file.write((page << 12) as u64, Buf::copy_of(bytes))).unwrap();
        }
        (file, node, model)
    }

    #[test]
    fn holes_and_data_read_as_they_are() {
        // Some of the pieces have more borders than there are questions.
        let (file, _, model) = file(&[0, 1, 3, 16, 17, 32, 34, 36, 38, 40, 42, 44, 60]);
        for len in [4096, 65536, 262_144] {
            for offset in (0..262_144).step_by(4096) {
                let found = now(read(&file, offset as u64, len, PAGE_MAX)).unwrap();
                assert_eq!(&found[..], &model[offset..offset + len], "{offset}+{len}");
            }
        }
        let beyond = now(read(&file, LEN as u64 - 4096, 65536, PAGE_MAX)).unwrap();
        assert!(beyond.iter().all(|byte| *byte == 0) && beyond.len() == 65536);
    }

    #[test]
    fn only_data_is_read() {
        let (file, node, _) = file(&[0, 20]);
        for (offset, cluster, bytes) in
            [(0, 65536, 4096), (65536, 65536, 4096), (131_072, 65536, 0), (0, 32768, 65536)]
        {
            node.bytes.store(0, Ordering::Relaxed);
            now(read(&file, offset, 65536, cluster)).unwrap();
            assert_eq!(node.bytes.load(Ordering::Relaxed), bytes, "at {offset}, clusters of {cluster}");
        }
    }
}
