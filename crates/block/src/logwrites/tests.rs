//! A log rebuilds the device, at its end and at every flush.

use super::*;
use crate::buf::Buf;
use crate::mem::MemNode;
use crate::naming::ImageName;
use crate::testing::{Files, now};

struct Rig {
    device: MemNode,
    log: MemNode,
    top: Child,
}

fn rig(len: u64, start: LogStart, interval: u64) -> Rig {
    let (device, log) = (MemNode::new(len), MemNode::new(0));
    let top = attach(&device, &log, start, interval);
    Rig { device, log, top }
}

fn attach(device: &MemNode, log: &MemNode, start: LogStart, interval: u64) -> Child {
    let (file, log) = (Arc::new(device.clone()), Arc::new(log.clone()));
    let node = now(LogWritesNode::open(file, log, start, interval, Access::ReadWrite)).expect("opens");
    Child::new(Arc::new(node))
}

fn run(child: &Child, request: Request) {
    now(child.submit(request).finish()).result.expect("succeeds");
}

fn filled(len: usize, byte: u8) -> Buf {
    let mut buf = Buf::zeroed(len);
    buf.fill(byte);
    buf
}

fn entries(log: &MemNode) -> Vec<LogEntry> {
    now(async {
        let mut reader = LogReader::open(Arc::new(log.clone())).await.expect("a log");
        let mut list = Vec::new();
        while let Some(entry) = reader.next().await.expect("good entries") {
            list.push(entry);
        }
        list
    })
}

fn rebuild(log: &MemNode, len: u64, count: u64) -> MemNode {
    let copy = MemNode::new(len);
    let device = Child::new(Arc::new(copy.clone()));
    now(async {
        let mut reader = LogReader::open(Arc::new(log.clone())).await.expect("a log");
        reader.play_until(&device, |entry| entry.index == count).await.expect("plays");
    });
    copy
}

#[test]
fn entries_have_the_kernels_layout() {
    let rig = rig(1 << 20, LogStart::default(), 4096);
    run(&rig.top, Request::write(1024, filled(1024, 7)).with_flags(Flags::FUA));
    run(&rig.top, Request::write_zeroes(4096, 512));
    run(&rig.top, Request::discard(100, 2000));
    run(&rig.top, Request::flush());
    let log = rig.log.content();
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().expect("eight"));
    assert_eq!([word(0), word(8), word(16), word(24)], [format::MAGIC, 1, 4, 512]);
    assert_eq!([word(512), word(520), word(528), word(536)], [2, 2, 2, 0]);
    assert!(log[1024..2048].iter().all(|b| *b == 7));
    assert_eq!([word(2048), word(2056), word(2064)], [8, 1, 0]);
    assert!(log[2560..3072].iter().all(|b| *b == 0));
    assert_eq!([word(3072), word(3080), word(3088)], [1, 3, 4], "the whole sectors of the discard");
    assert_eq!([word(3584), word(3592), word(3600)], [0, 0, 1]);
    assert_eq!(log.len(), 4096);
}

#[test]
fn a_log_rebuilds_the_device_at_every_entry() {
    let len = 256 << 10;
    let rig = rig(len, LogStart::New { sector_size: 4096 }, 7);
    let mut states = vec![rig.device.content()];
    let mut seed = 3u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for step in 0..60 {
        // Unaligned on purpose: the edge widens writes to the log's sectors.
        let offset = next(len - 20_000);
        match next(4) {
            0 => run(&rig.top, Request::flush()),
            1 => run(&rig.top, Request::write_zeroes(offset & !4095, 8192)),
            2 => run(&rig.top, Request::discard(offset & !4095, 8192)),
            _ => run(&rig.top, Request::write(offset, filled(next(16_000) as usize + 1, step + 1))),
        }
        states.push(rig.device.content());
    }
    now(rig.top.node().close()).expect("closes");
    let list = entries(&rig.log);
    assert_eq!(list.len(), 60);
    for (count, state) in states.iter().enumerate() {
        assert!(rebuild(&rig.log, len, count as u64).content() == *state, "after {count} entries");
    }
}

#[test]
fn a_flush_stands_where_it_arrived() {
    let rig = rig(1 << 20, LogStart::default(), 4096);
    let flush = rig.top.submit(Request::flush());
    run(&rig.top, Request::write(0, filled(512, 1)));
    now(flush.finish()).result.expect("flush");
    run(&rig.top, Request::flush());
    let flags: Vec<_> = entries(&rig.log).iter().map(|e| e.flags).collect();
    assert_eq!(flags, [LogFlags::FLUSH, LogFlags::empty(), LogFlags::FLUSH]);
}

#[test]
fn the_super_block_is_updated_in_intervals_and_appending_goes_on() {
    let rig = rig(1 << 20, LogStart::default(), 2);
    for i in 0..5 {
        run(&rig.top, Request::write(i * 512, filled(512, i as u8)));
        assert_eq!(entries(&rig.log).len() as u64, i.div_ceil(2) * 2);
    }
    now(rig.top.node().close()).expect("closes");
    assert_eq!(entries(&rig.log).len(), 5);
    let again = attach(&rig.device, &rig.log, LogStart::Append, 4096);
    run(&again, Request::write(8192, filled(512, 9)));
    run(&again, Request::flush());
    assert_eq!(entries(&rig.log).len(), 7);
    assert!(rebuild(&rig.log, 1 << 20, u64::MAX).content() == rig.device.content());
}

#[test]
fn an_abandoned_change_breaks_the_log_loudly() {
    let rig = rig(1 << 20, LogStart::default(), 4096);
    let read_only = MemNode::new(512);
    now(read_only.reopen(Access::ReadOnly)).expect("reopens");
    let file = Arc::new(read_only);
    let log = Arc::new(MemNode::new(0));
    let node = LogWritesNode::open(file, log, LogStart::default(), 1, Access::ReadWrite);
    let refused = Child::new(Arc::new(now(node).expect("opens")));
    let fails = |child: &Child| now(child.submit(Request::write(0, filled(512, 1))).finish()).result.is_err();
    assert!(fails(&refused) && fails(&refused), "the device refuses; the log is whole");
    assert!(now(refused.flush()).is_ok());
    // A log that cannot be written is broken for good.
    let log = rig.top.node().children()[1].1.clone();
    now(log.reopen(Access::ReadOnly)).expect("reopens");
    assert!(fails(&rig.top));
    now(log.reopen(Access::ReadWrite)).expect("reopens");
    let error = now(rig.top.flush()).expect_err("broken");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::Poisoned, "the write log has lost an entry".into())
    );
}

#[test]
fn options_open_it() {
    let files = Files::default();
    files.put("d", &[0; 1024]);
    files.put("l", &[]);
    let cx = files.context().writable();
    let open = |list: &str| {
        let name = ImageName::OptionList(format!("driver=blklogwrites,file.filename=d,log.filename=l{list}"));
        now(cx.open_image(&name, None)).map(|o| o.node).map_err(|e| e.to_string())
    };
    let node = open(",file.driver=raw,log-sector-size=1k").err();
    assert_eq!(node.as_deref(), Some("Block format 'raw' does not support the option 'filename'"));
    let node = open(",file.driver=file,log-sector-size=1k").expect("opens");
    assert_eq!((node.len(), node.limits().request_alignment), (1024, 1024));
    assert_eq!(
        open(",file.driver=file,log-sector-size=100").err().as_deref(),
        Some("Invalid log sector size 100")
    );
    assert!(open(",file.driver=file,log-append=on").is_ok());
    assert!(open(",file.driver=file,log-append=on,log-sector-size=512").is_err());
    assert!(open(",file.driver=file,log-super-update-interval=0").is_err());
}

#[test]
fn hostile_logs_are_refused() {
    let log = MemNode::new(1 << 16);
    let open = |log: &MemNode| now(LogReader::open(Arc::new(log.clone()))).map_err(|e| e.to_string());
    assert_eq!(open(&log).err().as_deref(), Some("Invalid log superblock magic"));
    let child = Child::new(Arc::new(log.clone()));
    now(child.write(0, Super { entries: u64::MAX, sector_size: 512 }.encode())).expect("write");
    let entry = |flags, sectors, data_len| {
        let header = Header { sector: 0, sectors, flags, data_len };
        now(child.write(512, header.encode(512))).expect("write");
        now(open(&log).expect("a log").next()).map(|e| e.is_some()).map_err(|e| e.to_string())
    };
    assert_eq!(entry(LogFlags::empty(), 4, 0), Ok(true));
    for (flags, sectors, data_len) in [
        (LogFlags::empty(), u64::MAX, 0),
        (LogFlags::empty(), 1 << 40, 0),
        (LogFlags::MARK, 0, 481),
        (LogFlags::MARK, 0, u64::MAX),
    ] {
        assert_eq!(entry(flags, sectors, data_len), Err("log entry 0 is cut off".into()));
    }
    assert_eq!(entry(LogFlags::MARK, 0, 480), Ok(true));
}
