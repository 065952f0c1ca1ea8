//! The node against real files, on every lane.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cowbell_block::{
    Access, Buf, Bufs, Child, Error, ErrorKind, ExtentFlags, Flags, Node, Op, Operation, Preallocation,
    Request,
};
use rustix::io::Errno;
use tempfile::TempDir;

use super::*;
use crate::exec::block_on;
use crate::task::spawn_local;

const LANES: [Lane; 3] = [Lane::Auto, Lane::Ring, Lane::Pool];

/// A directory on a disk: `/tmp` may be memory, which knows no direct I/O.
fn dir() -> TempDir {
    tempfile::tempdir_in("/var/tmp").or_else(|_| tempfile::tempdir()).expect("a directory for tests")
}

fn with_file(content: &[u8]) -> (TempDir, PathBuf) {
    let dir = dir();
    let path = dir.path().join("image");
    std::fs::write(&path, content).expect("written");
    (dir, path)
}

fn open_on(path: &Path, lane: Lane) -> Arc<FileNode> {
    FileNode::open(path, &FileOptions { lane, ..FileOptions::read_write() }).expect("opened")
}

async fn run(node: &FileNode, request: Request) -> Result<Bufs> {
    node.submit(request).finish().await.into_bufs()
}

async fn read(node: &FileNode, offset: u64, len: usize) -> Vec<u8> {
    run(node, Request::read(offset, Buf::zeroed(len))).await.expect("read").to_contiguous().to_vec()
}

async fn write(node: &FileNode, offset: u64, content: &[u8]) {
    run(node, Request::write(offset, Buf::copy_of(content))).await.expect("written");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8).collect()
}

#[test]
fn what_was_written_is_read_on_every_lane() {
    for lane in LANES {
        let (_dir, path) = with_file(b"");
        let node = open_on(&path, lane);
        let content = pattern(300_001);
        block_on(async {
            write(&node, 12_345, &content).await;
            assert_eq!(node.len(), 12_345 + 300_001, "{lane:?}");
            assert_eq!(read(&node, 12_345, content.len()).await, content, "{lane:?}");
            assert!(read(&node, 0, 12_345).await.iter().all(|b| *b == 0));
            run(&node, Request::flush()).await.expect("flushed");
            node.close().await.expect("closed");
        });
        assert_eq!(std::fs::read(&path).expect("read")[12_345..], content);
    }
}

#[test]
fn reads_beyond_the_end_are_zero() {
    for lane in LANES {
        let (_dir, path) = with_file(&[7; 1000]);
        let node = open_on(&path, lane);
        block_on(async {
            let mut dirty = Buf::zeroed(4096);
            dirty.fill(9);
            let got = run(&node, Request::read(512, dirty)).await.expect("read").to_contiguous();
            assert!(got[..488].iter().all(|b| *b == 7) && got[488..].iter().all(|b| *b == 0), "{lane:?}");
            assert!(read(&node, 1 << 40, 4096).await.iter().all(|b| *b == 0));
            assert_eq!(node.len(), 1000);
        });
    }
}

#[test]
fn many_pieces_are_one_request() {
    for lane in LANES {
        let (_dir, path) = with_file(b"");
        let node = open_on(&path, lane);
        let pieces = || (1..60).map(|i| Buf::copy_of(&vec![i as u8; i * 3])).collect::<Bufs>();
        let total = pieces().len();
        block_on(async {
            let back = run(&node, Request::write(5, pieces())).await.expect("written");
            assert_eq!(back.pieces().len(), 59);
            let empty = pieces().pieces().iter().map(|p| Buf::zeroed(p.len())).collect::<Bufs>();
            let got = run(&node, Request::read(5, empty)).await.expect("read");
            assert_eq!(got.to_contiguous()[..], pieces().to_contiguous()[..], "{lane:?}");
        });
        assert_eq!(node.len(), 5 + total as u64);
    }
}

#[test]
fn cached_requests_complete_in_submit() {
    let (_dir, path) = with_file(&[1; 65536]);
    let node = open_on(&path, Lane::Auto);
    assert!(matches!(node.submit(Request::read(4096, Buf::zeroed(4096))), Op::Done(_)));
    assert!(matches!(node.submit(Request::write(4096, Buf::zeroed(4096))), Op::Done(_)));
}

#[test]
fn hundreds_in_flight_all_complete() {
    for lane in [Lane::Ring, Lane::Pool] {
        let (_dir, path) = with_file(&pattern(1 << 20));
        let node = open_on(&path, lane);
        block_on(async {
            let tasks: Vec<_> = (0..600usize)
                .map(|i| {
                    let node = node.clone();
                    spawn_local(async move { (i, read(&node, i as u64 * 1000, 4000).await) })
                })
                .collect();
            let all = pattern(1 << 20);
            for task in tasks {
                let (i, got) = task.await;
                assert_eq!(got, all[i * 1000..i * 1000 + 4000], "{lane:?}");
            }
        });
    }
}

#[test]
fn an_abandoned_write_is_still_made() {
    for lane in [Lane::Ring, Lane::Pool] {
        let (_dir, path) = with_file(&[0; 4096]);
        let node = open_on(&path, lane);
        block_on(async {
            let op = node.submit(Request::write(0, Buf::copy_of(&[5; 4096])));
            drop(op);
        });
        block_on(crate::timer::sleep(Duration::from_millis(50)));
        assert_eq!(std::fs::read(&path).expect("read"), [5; 4096], "{lane:?}");
    }
}

#[test]
fn requests_can_be_awaited_on_another_thread() {
    let (_dir, path) = with_file(&pattern(8192));
    let node = open_on(&path, Lane::Ring);
    let Op::Wait(future) = node.submit(Request::read(0, Buf::zeroed(8192))) else {
        panic!("a lane was forced")
    };
    let got = std::thread::spawn(move || block_on(future)).join().expect("joined");
    assert_eq!(got.into_bufs().expect("read").to_contiguous()[..], pattern(8192));
}

fn direct(path: &Path, lane: Lane) -> Option<Arc<FileNode>> {
    let options = FileOptions { cache: CacheMode::NONE, lane, ..FileOptions::read_write() };
    match FileNode::open(path, &options) {
        Ok(node) => Some(node),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

#[test]
fn the_cache_mode_changes_while_the_file_stays_open() {
    let (_dir, path) = with_file(&pattern(100_000));
    if direct(&path, Lane::Auto).is_none() {
        return;
    }
    let node = open_on(&path, Lane::Auto);
    let child = Child::new(node.clone());
    block_on(async {
        for cache in [CacheMode::NONE, CacheMode::UNSAFE, CacheMode::DIRECTSYNC, CacheMode::WRITEBACK] {
            node.set_cache(cache).await.expect("offered");
            child.replace(node.clone());
            assert_eq!(node.is_direct(), cache.direct);
            assert_eq!(node.limits().request_alignment > 1, cache.direct);
            child.write(1, Buf::copy_of(&[7; 511])).await.expect("written");
            assert_eq!(child.read(0, 3).await.expect("read")[..], [0, 7, 7]);
        }
        // What was written while flushes were ignored is made durable by the next one that is not.
        node.set_cache(CacheMode::UNSAFE).await.expect("offered");
        write(&node, 0, &[9]).await;
        node.set_cache(CacheMode::WRITEBACK).await.expect("offered");
        assert!(!node.shared.is_clean());
        run(&node, Request::flush()).await.expect("flushed");
    });
}

#[test]
fn direct_io_through_an_edge_takes_any_request() {
    for lane in LANES {
        let (_dir, path) = with_file(&pattern(100_000));
        let Some(node) = direct(&path, lane) else { return };
        assert!(node.limits().request_alignment >= 512);
        let child = Child::new(node.clone());
        block_on(async {
            let mut expect = pattern(100_000);
            assert_eq!(child.read(0, 100_000).await.expect("read")[..], expect, "{lane:?}");
            assert_eq!(child.read(99_990, 100).await.expect("read")[..10], expect[99_990..]);
            for (offset, len) in [(1, 1), (511, 2), (4095, 4098), (50_000, 20_001)] {
                child.write(offset, Buf::copy_of(&vec![0xee; len])).await.expect("written");
                expect[offset as usize..offset as usize + len].fill(0xee);
            }
            assert_eq!(child.read(0, 100_000).await.expect("read")[..], expect, "{lane:?}");
            child.flush().await.expect("flushed");
            node.close().await.expect("closed");
        });
    }
}

#[test]
fn status_shows_holes_and_the_end() {
    let (_dir, path) = with_file(b"");
    let node = open_on(&path, Lane::Auto);
    block_on(async {
        write(&node, 1 << 20, &[1; 65536]).await;
        let status = |offset, len| {
            let node = node.clone();
            async move { node.submit(Request::status(offset, len)).finish().await.into_extent().expect("told") }
        };
        let hole = status(0, u64::MAX).await;
        if hole.flags.contains(ExtentFlags::DATA) {
            return eprintln!("skipped: the file system has no holes");
        }
        assert_eq!((hole.len, hole.flags), (1 << 20, ExtentFlags::ZERO | ExtentFlags::ALLOCATED));
        assert_eq!(hole.map.expect("mapped").offset, 0);
        for _ in 0..2 {
            let data = status(1 << 20, 4096).await;
            assert_eq!((data.len, data.flags), (4096, ExtentFlags::DATA | ExtentFlags::ALLOCATED));
        }
        let last = status((1 << 20) + 4096, u64::MAX).await;
        assert_eq!((last.len, last.flags.contains(ExtentFlags::EOF)), (61440, true));
        assert_eq!(status(2 << 20, 5).await.len, 0);
        run(&node, Request::discard(1 << 20, 65536)).await.expect("discarded");
        assert!(
            status(1 << 20, 4096).await.flags.contains(ExtentFlags::ZERO),
            "the kept answer was forgotten"
        );
        let map = status(0, 1).await.map.expect("mapped").node;
        assert!(std::ptr::addr_eq(Arc::as_ptr(&map), Arc::as_ptr(&node)));
    });
}

#[test]
fn zeroes_are_zero_whatever_the_way() {
    for lane in LANES {
        for flags in [Flags::empty(), Flags::MAY_UNMAP, Flags::FUA] {
            let (_dir, path) = with_file(&[3; 100_000]);
            let node = open_on(&path, lane);
            block_on(async {
                let request = Request::write_zeroes(1000, 150_000).with_flags(flags);
                run(&node, request).await.expect("zeroed");
                assert_eq!(node.len(), 151_000);
            });
            let content = std::fs::read(&path).expect("read");
            assert_eq!(content.len(), 151_000, "{lane:?} {flags:?}");
            assert!(content[..1000].iter().all(|b| *b == 3) && content[1000..].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn zeroes_are_written_out_where_the_host_has_nothing_better() {
    let (_dir, path) = with_file(&[3; 3 << 20]);
    let node = open_on(&path, Lane::Auto);
    node.shared.can.no_punch.store(true, Ordering::Relaxed);
    node.shared.can.no_zero_range.store(true, Ordering::Relaxed);
    block_on(async {
        let request = Request::write_zeroes(10, (3 << 20) - 20);
        let refused = run(&node, Request::write_zeroes(0, 512).with_flags(Flags::NO_FALLBACK)).await;
        assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Unsupported);
        run(&node, request).await.expect("zeroed");
    });
    let content = std::fs::read(&path).expect("read");
    assert!(content[10..content.len() - 10].iter().all(|b| *b == 0));
    assert!(content[..10].iter().chain(&content[content.len() - 10..]).all(|b| *b == 3));
}

#[test]
fn truncation_preallocates_and_undoes() {
    let (_dir, path) = with_file(&[1; 5000]);
    let node = open_on(&path, Lane::Auto);
    block_on(async {
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).expect("there"));
        run(&node, Request::truncate(1 << 20, Preallocation::Off)).await.expect("grown");
        assert_eq!((node.len(), blocks() < 100), (1 << 20, true));
        run(&node, Request::truncate(2 << 20, Preallocation::Falloc)).await.expect("grown");
        assert!(blocks() >= 2048);
        run(&node, Request::truncate(3 << 20, Preallocation::Full)).await.expect("grown");
        assert!(blocks() >= 4096);
        run(&node, Request::truncate(100, Preallocation::Off)).await.expect("shrunk");
        assert_eq!(read(&node, 0, 200).await[90..110], [[1; 10], [0; 10]].concat());
        let shrink = run(&node, Request::truncate(50, Preallocation::Full)).await.expect_err("refused");
        assert_eq!(shrink.to_string(), "Preallocation can't be used for shrinking files");
        assert!(run(&node, Request::truncate(500, Preallocation::Metadata)).await.is_err());
        assert_eq!(node.len(), 100);
    });
}

#[test]
fn the_host_copies_between_files() {
    let (_dir, from) = with_file(&pattern(200_000));
    let (_dir2, to) = with_file(b"");
    let source = FileNode::open(&from, &FileOptions::read_only()).expect("opened");
    let target = open_on(&to, Lane::Auto);
    let copy = |source_offset, offset, len| Request {
        op: Operation::CopyFrom { source: source.clone() as Arc<dyn Node>, source_offset },
        offset,
        len,
        ..Request::default()
    };
    block_on(async {
        run(&target, copy(1000, 5000, 150_000)).await.expect("copied");
        assert_eq!(target.len(), 155_000);
        assert_eq!(read(&target, 5000, 150_000).await, pattern(200_000)[1000..151_000]);
        let beyond = run(&target, copy(199_000, 0, 5000)).await.expect_err("the source ends");
        assert_eq!(beyond.kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn a_failed_flush_sticks_until_reopened() {
    let (_dir, path) = with_file(&[1; 4096]);
    let node = open_on(&path, Lane::Auto);
    node.shared.handle.poison(Errno::IO);
    block_on(async {
        for request in [Request::flush(), Request::write(0, Buf::zeroed(512)), Request::discard(0, 512)] {
            let error: Error = run(&node, request).await.expect_err("poisoned");
            assert_eq!((error.kind(), error.errno()), (ErrorKind::Poisoned, 5));
        }
        read(&node, 0, 512).await;
        node.reopen(Access::ReadWrite).await.expect("reopened");
        write(&node, 0, &[2; 512]).await;
        run(&node, Request::flush()).await.expect("healthy");
    });
}

#[test]
fn a_flush_that_fails_is_noticed_on_every_lane_even_if_nobody_waits() {
    for lane in LANES {
        for waits in [true, false] {
            let (_dir, path) = with_file(&[1; 4096]);
            let node = open_on(&path, lane);
            block_on(async {
                write(&node, 0, &[2; 512]).await;
                // A pipe in the place of the file: it cannot be flushed.
                let file = rustix::io::fcntl_dupfd_cloexec(&*node.shared.handle, 0).expect("copied");
                let (end, _other) = std::io::pipe().expect("made");
                node.shared.handle.replace(end.into()).expect("replaced");
                let flush = node.submit(Request::flush());
                if waits {
                    assert_eq!(flush.finish().await.result.expect_err("a pipe").errno(), 22, "{lane:?}");
                } else {
                    let Op::Wait(mut flush) = flush else { panic!("something is dirty") };
                    // Started, and abandoned: mostly before it ends.
                    let begin =
                        std::future::poll_fn(|cx| std::task::Poll::Ready(flush.as_mut().poll(cx).is_ready()));
                    begin.await;
                    drop(flush);
                    crate::timer::sleep(Duration::from_millis(20)).await;
                }
                node.shared.handle.replace(file).expect("replaced");
                let error = run(&node, Request::flush()).await.expect_err("sticky");
                assert_eq!(error.kind(), ErrorKind::Poisoned, "{lane:?}");
                node.reopen(Access::ReadWrite).await.expect("reopened");
                write(&node, 0, &[3; 512]).await;
                run(&node, Request::flush()).await.expect("healthy");
            });
        }
    }
}

#[test]
fn reopening_changes_access_and_locks() {
    let (_dir, path) = with_file(&[1; 4096]);
    let node = FileNode::open(&path, &FileOptions::read_only()).expect("opened");
    block_on(async {
        let refused = run(&node, Request::write(0, Buf::zeroed(1))).await.expect_err("read-only");
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        let other = FileNode::open(&path, &FileOptions::read_only()).expect("two readers");
        assert_eq!(node.reopen(Access::ReadWrite).await.expect_err("shared").kind(), ErrorKind::Busy);
        assert!(node.is_read_only());
        other.close().await.expect("closed");
        node.reopen(Access::ReadWrite).await.expect("alone");
        write(&node, 0, &[2]).await;
        let busy = FileNode::open(&path, &FileOptions::read_only()).err().expect("locked");
        let text = format!(
            "Failed to get shared \"write\" lock\nIs another process using the image [{}]?",
            path.display()
        );
        assert_eq!(busy.to_string(), text);
        node.reopen(Access::ReadOnly).await.expect("back");
        FileNode::open(&path, &FileOptions::read_only()).expect("readers again");
    });
}

#[test]
fn closing_releases_everything_at_once() {
    let (_dir, path) = with_file(&[1; 4096]);
    let node = open_on(&path, Lane::Auto);
    block_on(async {
        write(&node, 0, &[9]).await;
        node.close().await.expect("closed");
        node.close().await.expect("twice is fine");
        assert!(run(&node, Request::read(0, Buf::zeroed(1))).await.is_err());
        FileNode::open(&path, &FileOptions::read_write()).expect("not locked any more");
        assert_eq!(rustix::io::pread(&*node.shared.handle, &mut [0u8; 1], 0), Err(Errno::BADF));
    });
}

#[test]
fn only_storage_is_opened() {
    let dir = dir();
    let open = |path: &Path, kind| match FileNode::open(path, &FileOptions { kind, ..FileOptions::default() })
    {
        Ok(_) => "opened".to_owned(),
        Err(e) => e.to_string().replace(&dir.path().display().to_string(), "D"),
    };
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).expect("bound");
    let what = "an image is a regular file or a block device";
    assert_eq!(open(&fifo, FileKind::Either), format!("'D/fifo' is a FIFO; {what}"));
    assert_eq!(open(&dir.path().join("sock"), FileKind::Either), format!("'D/sock' is a socket; {what}"));
    assert_eq!(open(dir.path(), FileKind::File), "'file' driver requires 'D' to be a regular file");
    assert_eq!(open(Path::new("/dev/null"), FileKind::Either), "opened");
    assert_eq!(
        open(&dir.path().join("none"), FileKind::File),
        "Could not open 'D/none': No such file or directory"
    );
}

#[test]
fn confinement_stops_names_that_lead_out() {
    let (dir, path) = with_file(b"inside");
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).expect("linked");
    std::os::unix::fs::symlink("image", dir.path().join("in")).expect("linked");
    let open = |name: &str| {
        let options = FileOptions { beneath: Some(dir.path()), ..FileOptions::default() };
        FileNode::open(dir.path().join(name), &options).map(drop)
    };
    assert!(open("image").is_ok() && open("in").is_ok() && open("./image").is_ok());
    assert!(open("../x").is_err() && open("/etc/passwd").is_err());
    assert!(path.exists());
    let refused = open("out").expect_err("a link leads out");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(refused.to_string().contains("leads out of"), "{refused}");
}

#[test]
fn creation_keeps_truncates_or_refuses() {
    let (dir, path) = with_file(b"old");
    let create =
        |path: &Path, create| FileNode::open(path, &FileOptions { create, ..FileOptions::read_write() });
    assert_eq!(create(&path, Create::IfMissing).expect("kept").len(), 3);
    let refused = create(&path, Create::New).err().expect("exists");
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(create(&path, Create::Truncate).expect("emptied").len(), 0);
    assert_eq!(create(&dir.path().join("new"), Create::New).expect("made").len(), 0);
    std::fs::write(&path, b"held").expect("written");
    let _user = FileNode::open(&path, &FileOptions::read_write()).expect("opened");
    assert!(create(&path, Create::Truncate).is_err());
    assert_eq!(std::fs::read(&path).expect("read"), b"held", "a locked file is not emptied");
}

#[test]
fn info_tells_length_and_storage() {
    let (_dir, path) = with_file(b"");
    let node = open_on(&path, Lane::Auto);
    block_on(async {
        run(&node, Request::truncate(1 << 30, Preallocation::Off)).await.expect("grown");
        write(&node, 0, &[1; 4096]).await;
        let info = node.info().await.expect("told");
        assert_eq!((info.format, info.virtual_size), ("file", 1 << 30));
        assert!(info.actual_size.expect("known") < 1 << 20);
    });
}
