//! A node over standard output: it takes bytes in order.

use std::any::Any;
use std::io::Write;
use std::sync::Mutex;

use cowbell_block::{
    BoxFuture, Bufs, Completion, Error, ErrorKind, ImageInfo, Node, Op, Operation, Request, Result,
};

/// Zeroes are written in pieces of this many bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Something is written where the pipe has been already.
#[derive(Debug, thiserror::Error)]
#[error("{offset} lies before {at}, and what was written to a pipe is gone")]
struct OutOfOrder {
    offset: u64,
    at: u64,
}

/// Bytes in order, and zeroes where none are written.
pub(in crate::img) struct PipeNode {
    out: Mutex<Out>,
    len: u64,
}

struct Out {
    to: Box<dyn Write + Send>,
    at: u64,
}

impl PipeNode {
    /// Standard output, which gets at least `len` bytes.
    pub(in crate::img) fn stdout(len: u64) -> Self {
        // Not collected: pieces are large already.
        Self::new(Box::new(std::io::stdout()), len)
    }

    fn new(to: Box<dyn Write + Send>, len: u64) -> Self {
        Self { out: Mutex::new(Out { to, at: 0 }), len }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Out) -> Result<T>) -> Result<T> {
        // What panicked half way has written something: the order is checked all the same.
        work(&mut self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(|e| match e.raw_os_error() {
            Some(errno) => Error::from_errno(errno),
            None => ErrorKind::Io.into(),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Zeroes up to `offset`.
    fn fill(&mut self, offset: u64) -> Result<()> {
        if offset < self.at {
            return Err(Error::new(ErrorKind::InvalidInput, OutOfOrder { offset, at: self.at }));
        }
        while self.at < offset {
            let n = (offset - self.at).min(ZEROES.len() as u64) as usize;
            self.write(&ZEROES[..n])?;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bufs: &Bufs) -> Result<()> {
        self.fill(offset)?;
        bufs.pieces().iter().try_for_each(|piece| self.write(piece))
    }
}

impl Node for PipeNode {
    fn submit(&self, request: Request) -> Op {
        let done = match request.op {
            Operation::Write => self.with(|out| out.write_at(request.offset, &request.bufs)),
            // They are written when something follows them.
            Operation::WriteZeroes | Operation::Flush => Ok(()),
            Operation::Truncate(_) => self.with(|out| out.fill(request.offset)),
            _ => Err(ErrorKind::Unsupported.into()),
        };
        match done {
            Ok(()) => Op::done(request.bufs),
            Err(e) => Op::Done(Completion::failed(request.bufs, e)),
        }
    }

    fn driver(&self) -> &'static str {
        "pipe"
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn starts_as_zero(&self) -> bool {
        true
    }

    fn filename(&self) -> String {
        "-".to_owned()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: "pipe", virtual_size: self.len, ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let len = self.len;
        let ended = self.with(|out| {
            let end = out.at.max(len);
            out.fill(end)?;
            out.to.flush().map_err(|e| Error::from_errno(e.raw_os_error().unwrap_or(5)))
        });
        Box::pin(std::future::ready(ended))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use cowbell_block::{Buf, Child};
    use cowbell_host::block_on;

    use super::*;

    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<u8>>>);

    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn gaps_are_zeroes_and_nothing_goes_back() {
        let taken = Taken::default();
        let child = Child::new(Arc::new(PipeNode::new(Box::new(taken.clone()), 10)));
        block_on(async {
            child.write(2, Buf::copy_of(&[1, 2])).await.expect("ahead");
            let zeroes = child.submit(Request::write_zeroes(4, 2)).finish().await.result;
            zeroes.map(drop).expect("later");
            child.write(6, Buf::copy_of(&[3])).await.expect("ahead");
            let error = child.write(3, Buf::copy_of(&[9])).await.expect_err("back");
            assert_eq!(error.to_string(), "3 lies before 7, and what was written to a pipe is gone");
            child.node().close().await.expect("ended");
        });
        assert_eq!(*taken.0.lock().expect("unpoisoned"), [0, 0, 1, 2, 0, 0, 3, 0, 0, 0]);
    }
}
