//! `host_device` on a loop device: zeroes, discards, direct I/O, sizes. Skipped where none can be made.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use cowbell_block::{
    Buf, CacheMode, Child, CreateArgs, ErrorKind, ExtentFlags, Flags, Node, OpenContext, Preallocation,
    Registry, Request,
};
use cowbell_host::{FileKind, FileNode, FileOptions, Lane, add_drivers, block_on};

const BYTES: usize = 4 << 20;

struct Loop {
    path: String,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new() -> Option<Self> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&vec![7; BYTES]).expect("written");
        let made = Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output().ok()?;
        if !made.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        Some(Self { path: String::from_utf8_lossy(&made.stdout).trim().to_owned(), _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.path]).status());
    }
}

#[test]
fn a_device_does_what_a_file_does() {
    let Some(device) = Loop::new() else { return };
    for cache in [CacheMode::WRITEBACK, CacheMode::NONE] {
        for lane in [Lane::Auto, Lane::Ring, Lane::Pool] {
            exercise(&device.path, FileOptions { cache, lane, ..FileOptions::read_write() });
        }
    }
}

fn exercise(path: &str, options: FileOptions<'_>) {
    let name = format!("{:?} {:?}", options.cache, options.lane);
    let node = FileNode::open(path, &options).expect(&name);
    assert_eq!((node.driver(), node.len()), ("host_device", BYTES as u64), "{name}");
    assert!(!node.starts_as_zero());
    let child = Child::new(node.clone());
    block_on(async {
        child.write(1000, Buf::copy_of(&vec![7; 1 << 20])).await.expect(&name);
        let zeroes = Request::write_zeroes(4096, 65536).with_flags(Flags::NO_FALLBACK);
        child.submit(zeroes).finish().await.result.expect(&name);
        let unmap = Request::write_zeroes(1 << 20, 65536).with_flags(Flags::MAY_UNMAP);
        child.submit(unmap).finish().await.result.expect(&name);
        let got = child.read(0, BYTES).await.expect(&name);
        for (i, byte) in got.iter().enumerate() {
            let zero = (4096..4096 + 65536).contains(&i) || ((1 << 20)..(1 << 20) + 65536).contains(&i);
            assert_eq!(*byte, if zero { 0 } else { 7 }, "{name} at {i}");
        }
        child.submit(Request::discard(2 << 20, 65536)).finish().await.result.expect(&name);
        let status = child.status(0, u64::MAX).await.expect(&name);
        assert_eq!(status.flags, ExtentFlags::DATA | ExtentFlags::ALLOCATED | ExtentFlags::EOF);
        child.flush().await.expect(&name);
        let resize = |len| node.submit(Request::truncate(len, Preallocation::Off)).finish();
        resize(BYTES as u64).await.result.expect(&name);
        let grown = resize(BYTES as u64 + 512).await.result.expect_err("a device has its size");
        assert_eq!(grown.to_string(), "Cannot grow device files");
        assert!(child.write(BYTES as u64, Buf::zeroed(4096)).await.is_err(), "{name}");
        assert_eq!(node.len(), BYTES as u64);
        child.write(0, Buf::copy_of(&vec![7; BYTES])).await.expect(&name);
        node.close().await.expect(&name);
    });
}

#[test]
fn creation_on_a_device_checks_the_size_and_clears_the_head() {
    let Some(device) = Loop::new() else { return };
    let mut registry = Registry::new();
    add_drivers(registry.add_builtin());
    let cx = OpenContext::new(Arc::new(registry));
    assert_eq!(cx.registry.driver_of_path(&device.path).map(|d| d.name()), Some("host_device"));
    let create = |size: u64| {
        let driver = cx.registry.driver("host_device").expect("registered").clone();
        block_on(driver.create(CreateArgs::new(&*device.path).with("size", size), cx.clone()))
    };
    assert_eq!(create(BYTES as u64 + 1).expect_err("too small").kind(), ErrorKind::InvalidInput);
    create(1 << 20).expect("fits");
    let node = FileNode::open(&device.path, &FileOptions::read_only()).expect("opened");
    let got = block_on(Child::new(node).read(0, 1024)).expect("read");
    assert!(got[..512].iter().all(|b| *b == 0) && got[512..].iter().all(|b| *b == 7));
    let file = FileOptions { kind: FileKind::File, ..FileOptions::default() };
    let refused = FileNode::open(&device.path, &file).err().expect("no regular file").to_string();
    assert_eq!(refused, format!("'file' driver requires '{}' to be a regular file", device.path));
}
