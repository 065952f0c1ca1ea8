//! A qcow2 image over one's own file I/O, without a runtime: made, written, kept as a snapshot, read.
//!
//! `cargo run -p cowbell-qcow2 --example embed [FILE]`. The file here is the standard library's and answers at once; one
//! that has to wait returns [`Op::wait`] with a future that owns the request, and any executor drives it.

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::{
    Access, BoxFuture, Buf, Child, Error, ErrorKind, ImageInfo, NewSnapshot, Node, Op, Operation, Request,
    Result, SnapshotChange, SnapshotName,
};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};

/// A file of ours. It grows by writes, and reads as zeroes behind its end, as the files of images do.
struct MyFile(File);

impl MyFile {
    fn read(&self, request: &mut Request) -> std::io::Result<()> {
        let mut at = request.offset;
        for piece in request.bufs.pieces_mut() {
            let mut done = 0;
            while done < piece.len() {
                match self.0.read_at(&mut piece[done..], at + done as u64)? {
                    0 => break,
                    n => done += n,
                }
            }
            piece[done..].fill(0);
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&self, request: &Request) -> std::io::Result<()> {
        let mut at = request.offset;
        for piece in request.bufs.pieces() {
            self.0.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl Node for MyFile {
    fn submit(&self, mut request: Request) -> Op {
        let done = match request.op {
            Operation::Read => self.read(&mut request),
            Operation::Write => self.write(&request),
            Operation::Flush => self.0.sync_data(),
            Operation::Truncate(_) => self.0.set_len(request.offset),
            // Advice, and need not have an effect. What reads as zeroes is then written, where it has to be.
            Operation::Discard => Ok(()),
            _ => return Op::failed(request.bufs, ErrorKind::Unsupported),
        };
        match done {
            Ok(()) => Op::done(request.bufs),
            Err(e) => Op::failed(request.bufs, Error::new(ErrorKind::Io, e)),
        }
    }

    fn driver(&self) -> &'static str {
        "my-file"
    }

    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }

    fn filename(&self) -> String {
        "my file".to_owned()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: "my-file", virtual_size: self.len(), ..ImageInfo::default() };
        Box::pin(async move { Ok(info) })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Drives a future that never waits for anybody else: our file answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

async fn work(path: &Path) -> Result<Vec<u8>> {
    let open = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file: Arc<dyn Node> = Arc::new(MyFile(open.map_err(|e| Error::new(ErrorKind::Io, e))?));

    let size = 1 << 30;
    cowbell_qcow2::create(&Child::new(file.clone()), None, &CreateOptions { size, ..Default::default() })
        .await?;
    let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let disk = Qcow2::open(file, None, options).await?;

    disk.submit(Request::write(4096, Buf::copy_of(b"before"))).finish().await.into_bufs()?;
    let snapshot = NewSnapshot { name: "first".into(), ..Default::default() };
    disk.change_snapshots(SnapshotChange::Create(snapshot)).await?;
    disk.submit(Request::write(4096, Buf::copy_of(b"after!"))).finish().await.into_bufs()?;
    disk.submit(Request::flush()).finish().await.result?;

    let past = disk.at_snapshot(SnapshotName::Name("first".into())).await?;
    let mut read = Vec::new();
    for node in [&*past, &*disk] {
        let bufs = node.submit(Request::read(4096, Buf::zeroed(6))).finish().await.into_bufs()?;
        read.extend_from_slice(&bufs.to_contiguous());
    }
    past.close().await?;
    disk.close().await?;
    Ok(read)
}

fn main() {
    let given = std::env::args().nth(1);
    let path = given.unwrap_or_else(|| std::env::temp_dir().join("embed.qcow2").display().to_string());
    match now(work(path.as_ref())) {
        Ok(read) => println!("{path}: {}", String::from_utf8_lossy(&read)),
        Err(e) => eprintln!("{path}: {e}"),
    }
}

#[test]
fn it_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let read = now(work(&dir.path().join("disk.qcow2"))).expect("possible");
    assert_eq!(read, b"beforeafter!");
}
