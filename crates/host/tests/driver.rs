//! The drivers through the registry: names, options, creation, policies, and the locks of whole chains.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use cowbell_block::claim::claim;
use cowbell_block::policy::Policy;
use cowbell_block::{
    Buf, Child, CreateArgs, ErrorKind, ImageName, Node, OpenContext, Registry, Request, Result, open_image,
};
use cowbell_host::lock::{self, Needs};
use cowbell_host::{FileNode, FileOptions, add_drivers, block_on};

fn context() -> OpenContext {
    let mut registry = Registry::new();
    registry.add_builtin();
    add_drivers(&mut registry);
    OpenContext::new(Arc::new(registry))
}

fn open(cx: &OpenContext, name: &str) -> Result<Arc<dyn Node>> {
    let name = match name.contains('=') {
        true => ImageName::OptionList(name.to_owned()),
        false => ImageName::from(name),
    };
    block_on(open_image(&name, None, cx)).map(|opened| opened.node)
}

fn create(args: CreateArgs) -> Result<()> {
    let cx = context();
    let driver = cx.registry.driver("file").expect("registered").clone();
    block_on(driver.create(args, cx))
}

fn image(content: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.img");
    std::fs::write(&path, content).expect("written");
    (dir, path.to_str().expect("text").to_owned())
}

#[test]
fn names_and_options_open_files() {
    let (_dir, path) = image(&[1; 1024]);
    let cx = context();
    for name in [
        path.clone(),
        format!("file:{path}"),
        format!("driver=file,filename={path},aio=threads,locking=off,cache.direct=off"),
        format!("driver=raw,file.filename={path},file.aio-max-batch=4,file.drop-cache=on"),
    ] {
        let node = open(&cx, &name).expect(&name);
        assert_eq!((node.len(), node.filename()), (1024, path.clone()), "{name}");
    }
    for (name, text) in [
        ("driver=file,filename=X,foo=1", "Block protocol 'file' doesn't support the option 'foo'"),
        ("driver=file,filename=X,aio=fast", "invalid parameter value: fast"),
        ("driver=file,filename=X,locking=maybe", "invalid parameter value: maybe"),
        ("driver=file,aio=threads", "The 'file' block driver requires a file name"),
        ("driver=file,filename=X,pr-manager=p", "file does not support pr-manager"),
        (
            "driver=host_device,filename=X",
            "'host_device' driver requires 'X' to be either a character or block device",
        ),
        (
            "driver=file,filename=X,aio=native",
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        ("X.none", "Could not open 'X.none': No such file or directory"),
    ] {
        let error = open(&cx, &name.replace('X', &path)).err().expect(name);
        assert_eq!(error.to_string().replace(&path, "X"), text);
    }
    let nothing = open(&cx, "/dev/null").expect("a device without length");
    assert_eq!((nothing.driver(), nothing.len()), ("raw", 0));
}

#[test]
fn modes_of_the_node_are_honoured() {
    let (_dir, path) = image(&[1; 65536]);
    let cx = context().writable();
    let node =
        open(&cx, &format!("driver=file,filename={path},discard=ignore,detect-zeroes=on")).expect("opened");
    block_on(async {
        let child = Child::new(node);
        child.submit(Request::discard(0, 4096)).finish().await.result.expect("ignored");
        assert_eq!(child.read(0, 2).await.expect("read")[..], [1, 1]);
        child.write(4096, Buf::zeroed(4096)).await.expect("zeroed");
        assert_eq!(child.read(4095, 3).await.expect("read")[..], [1, 0, 0]);
    });
}

#[test]
fn creation_makes_what_was_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("new.img");
    let args = || CreateArgs::new(path.to_str().expect("text"));
    let stat = || std::fs::metadata(&path).expect("made");
    create(args().with("size", 1000)).expect("made");
    assert_eq!(stat().len(), 1024, "whole sectors");
    create(args().with("size", 1 << 20)).expect("made");
    assert_eq!((stat().len(), stat().blocks()), (1 << 20, 8), "nothing allocated but the first block");
    for mode in ["falloc", "full"] {
        create(args().with("size", 1 << 20).with("preallocation", mode)).expect(mode);
        assert!(stat().len() == 1 << 20 && stat().blocks() >= 2048, "{mode}");
    }
    create(args().with("nocow", true).with("extent_size_hint", 0)).expect("hints never fail");
    assert_eq!(stat().len(), 0, "an old file is emptied");
    let bad = create(args().with("preallocation", "metadata")).expect_err("needs a format");
    assert_eq!(bad.to_string(), "Unsupported preallocation mode: metadata");
    let bad = create(args().with("preallocation", "some")).expect_err("no mode");
    assert_eq!(bad.kind(), ErrorKind::InvalidInput);
    std::fs::write(&path, b"held").expect("written");
    let _user = FileNode::open(&path, &FileOptions::read_write()).expect("opened");
    assert_eq!(create(args()).expect_err("in use").kind(), ErrorKind::Busy);
    assert_eq!(std::fs::read(&path).expect("read"), b"held");
}

#[test]
fn a_file_that_cannot_be_written_may_fall_back() {
    if rustix::process::getuid().is_root() {
        return eprintln!("skipped: root may write everything");
    }
    let (_dir, path) = image(&[1; 512]);
    let mut permissions = std::fs::metadata(&path).expect("there").permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).expect("set");
    let mut cx = context().writable();
    assert_eq!(open(&cx, &path).err().expect("refused").kind(), ErrorKind::PermissionDenied);
    cx.auto_read_only = true;
    assert!(open(&cx, &format!("driver=file,filename={path}")).expect("opened").is_read_only());
}

/// What two users of one image are told: the second's text, or nothing.
fn conflict(path: &str, first: (Needs, bool), second: (Needs, bool)) -> Option<String> {
    let opened = |(needs, writes): (Needs, bool)| {
        let mut cx = context();
        if writes {
            cx = cx.writable();
        }
        let list = format!("driver=raw,file.driver=file,file.filename={path}");
        open(&cx.with_needs(needs), &list)
    };
    let _first = opened(first).expect("alone");
    opened(second).err().map(|e| e.to_string().replace(path, "X"))
}

#[test]
fn claims_decide_who_may_share() {
    let (_dir, path) = image(&[1; 512]);
    let reader = (lock::READ_SHARED, false);
    assert_eq!(conflict(&path, reader, reader), None);
    assert_eq!(conflict(&path, (lock::READ, false), reader), None);
    let text = conflict(&path, (lock::WRITE, true), (lock::READ, false)).expect("in use");
    assert_eq!(text, "Failed to get shared \"write\" lock\nIs another process using the image [X]?");
    let node = open(&context(), &path).expect("opened");
    let file = node.primary().expect("a file");
    let file: &FileNode = file.as_any().downcast_ref().expect("ours");
    assert_eq!(file.held_needs(), Some(lock::READ_SHARED), "raw minds nobody");
    claim(&node, lock::NONE).expect("nothing to refuse");
    assert_eq!(file.held_needs(), Some(lock::NONE));
    let _writer = FileNode::open(&path, &FileOptions::read_write()).expect("nobody minds");
    assert_eq!(claim(&node, lock::READ).expect_err("too late").kind(), ErrorKind::Busy);
    assert_eq!(file.held_needs(), Some(lock::NONE), "as before");
}

#[test]
fn confinement_holds_against_links() {
    let (dir, path) = image(&[1; 512]);
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("out")).expect("linked");
    let out = dir.path().join("out");
    let mut cx = context();
    cx.policy = Policy::confine();
    // The policy itself refuses names; what it lets through by name is opened beneath the directory.
    let beneath = FileOptions { beneath: Some(Path::new(dir.path())), ..FileOptions::default() };
    assert!(FileNode::open(&path, &beneath).is_ok());
    assert_eq!(FileNode::open(&out, &beneath).err().expect("outside").kind(), ErrorKind::PermissionDenied);
}
