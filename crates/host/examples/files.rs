//! Files of this host: opened by name, written and read on whatever the kernel offers (inline, io_uring, threads).
//!
//! `cargo run -p cowbell-host --example files [FILE]`. Formats are added to the registry by those who want them:
//! `registry.add(cowbell_qcow2::Qcow2Driver::default())`, and the same lines open a qcow2 image with its backing chain.

use std::sync::Arc;

use cowbell_block::{
    Access, Buf, CreateArgs, ImageName, OpenContext, Registry, Request, Result, Root, open_image,
};

async fn work(name: &str) -> Result<Vec<u8>> {
    let mut registry = Registry::new();
    registry.add_builtin();
    cowbell_host::add_drivers(&mut registry);
    let mut context = OpenContext::new(Arc::new(registry));
    // What an image may make us open besides itself: nothing outside of its directory.
    context.policy = cowbell_block::Policy::confine();
    context.access = Access::ReadWrite;

    let raw = context.registry.driver("raw").expect("built in").clone();
    raw.create(CreateArgs::new(name).with("size", 1 << 20), context.clone()).await?;
    let opened = open_image(&ImageName::Text(name.to_owned()), Some("raw"), &context).await?;
    let root = Root::new(opened.node);
    root.submit(Request::write(1000, Buf::copy_of(b"content"))).finish().await.into_bufs()?;
    root.submit(Request::flush()).finish().await.result?;
    let bufs = root.submit(Request::read(998, Buf::zeroed(9))).finish().await.into_bufs()?;
    root.node().close().await?;
    Ok(bufs.to_contiguous().to_vec())
}

fn main() {
    let given = std::env::args().nth(1);
    let name = given.unwrap_or_else(|| cowbell_host::name_of(std::env::temp_dir().join("files.raw")));
    match cowbell_host::block_on(work(&name)) {
        Ok(read) => println!("{name}: {}", read.escape_ascii()),
        Err(e) => eprintln!("{name}: {e}"),
    }
}

#[test]
fn it_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = cowbell_host::name_of(dir.path().join("disk.raw"));
    let read = cowbell_host::block_on(work(&name)).expect("possible");
    assert_eq!(read, b"\0\0content");
}
