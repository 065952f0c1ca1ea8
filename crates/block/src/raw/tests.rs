use super::*;
use crate::buf::Buf;
use crate::mem::MemNode;
use crate::testing::now;

fn window(mem: &MemNode, offset: u64, size: Option<u64>) -> Result<RawNode> {
    let window = Window { offset, size };
    RawNode::open(Arc::new(mem.clone()), window, OptionTree::new(), Access::ReadWrite, Modes::default(), None)
}

fn extent(node: &RawNode, offset: u64) -> (u64, ExtentFlags, Option<u64>) {
    let completion = now(node.submit(Request::status(offset, u64::MAX / 2)).finish());
    let extent = completion.into_extent().expect("status");
    (extent.len, extent.flags, extent.map.map(|m| m.offset))
}

#[test]
fn requests_inside_are_handed_on_and_outside_fail() {
    let mem = MemNode::new(1024);
    let raw = RawNode::new(Arc::new(mem.clone()), Access::ReadWrite).expect("raw");
    assert!(matches!(raw.submit(Request::write(512, Buf::copy_of(&[5; 512]))), Op::Done(_)));
    assert_eq!(mem.content()[511..513], [0, 5]);
    for request in [
        Request::write(1000, Buf::zeroed(25)),
        Request::read(1024, Buf::zeroed(1)),
        Request::write_zeroes(u64::MAX, 5),
    ] {
        let error = now(raw.submit(request).finish()).result.expect_err("beyond the end");
        assert_eq!(error.kind(), ErrorKind::Io);
    }
    assert_eq!(mem.len(), 1024);
}

#[test]
fn the_last_sector_is_whole() {
    let mem = MemNode::with_content(&[9; 700]);
    let raw = RawNode::new(Arc::new(mem.clone()), Access::ReadWrite).expect("raw");
    assert_eq!(raw.len(), 1024);
    let mut buf = Buf::zeroed(400);
    buf.fill(1);
    let buf = now(raw.submit(Request::read(600, buf)).finish()).into_bufs().expect("read").to_contiguous();
    assert!(buf[..100].iter().all(|b| *b == 9) && buf[100..].iter().all(|b| *b == 0));
    let (data, zero) =
        (ExtentFlags::ALLOCATED | ExtentFlags::DATA, ExtentFlags::ALLOCATED | ExtentFlags::ZERO);
    assert_eq!(extent(&raw, 0), (700, data, Some(0)));
    assert_eq!(extent(&raw, 800), (224, zero | ExtentFlags::EOF, Some(800)));
    now(raw.submit(Request::discard(512, 512)).finish()).result.expect("discard");
    assert_eq!(mem.len(), 700);
    now(raw.submit(Request::write(800, Buf::copy_of(&[1]))).finish()).result.expect("write");
    assert_eq!((mem.len(), raw.len()), (801, 1024));
}

#[test]
fn a_window_is_all_there_is() {
    let mem = MemNode::with_content(&[3; 4096]);
    let raw = window(&mem, 512, Some(1024)).expect("fits");
    now(raw.submit(Request::write(1023, Buf::copy_of(&[1]))).finish()).result.expect("inside");
    assert!(now(raw.submit(Request::write(1024, Buf::zeroed(1))).finish()).result.is_err());
    assert_eq!(mem.content()[1534..1537], [3, 1, 3]);
    assert_eq!(extent(&raw, 8).2, Some(520));
    assert_eq!(
        raw.filename(),
        r#"json:{"offset": 512, "driver": "raw", "size": 1024, "file": {"driver": "mem", "size": 4096}}"#
    );
    let error = now(raw.submit(Request::truncate(0, Preallocation::Off)).finish()).result;
    assert_eq!(error.expect_err("fixed").to_string(), "Cannot resize fixed-size raw disks");
    for (offset, size) in [(5000, None), (0, Some(100)), (512, Some(4096)), (u64::MAX, Some(512))] {
        assert!(window(&mem, offset, size).is_err());
    }
    let rest = window(&mem, 1024, None).expect("fits");
    now(rest.submit(Request::truncate(8192, Preallocation::Off)).finish()).result.expect("grows");
    assert_eq!((mem.len(), rest.len()), (9216, 8192));
}

#[test]
fn read_only_refuses_mutations_until_reopened() {
    let raw = RawNode::new(Arc::new(MemNode::new(512)), Access::ReadOnly).expect("raw");
    let error = now(raw.submit(Request::discard(0, 1)).finish()).result.expect_err("read only");
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    now(raw.reopen(Access::ReadWrite)).expect("reopen");
    now(raw.submit(Request::discard(0, 1)).finish()).result.expect("writable");
}
