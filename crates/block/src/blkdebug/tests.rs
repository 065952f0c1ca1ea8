use std::task::{Context, Waker};

use super::*;
use crate::buf::Buf;
use crate::graph::{Needs, Permissions};
use crate::request::{ExtentFlags, Flags};
use crate::testing::{Files, now};

type Said = Arc<Mutex<Vec<String>>>;

fn setup() -> (Files, OpenContext, Said) {
    let (files, said) = (Files::default(), Said::default());
    files.put("i", &[1; 8192]);
    let mut cx = files.context().writable();
    let mut registry = (*cx.registry).clone();
    let list = said.clone();
    registry.add(BlkdebugDriver::with_notice(Arc::new(move |line: &str| list.lock().push(line.to_owned()))));
    cx.registry = Arc::new(registry);
    (files, cx, said)
}

fn open_list(cx: &OpenContext, list: &str) -> Result<Arc<dyn Node>> {
    let name = ImageName::OptionList(format!("driver=blkdebug,image.driver=file,image.filename=i,{list}"));
    Ok(now(cx.open_image(&name, None))?.node)
}

fn text(result: Result<Arc<dyn Node>>) -> String {
    result.map(|_| ()).expect_err("must not open").to_string()
}

fn read(child: &Child) -> std::result::Result<(), i32> {
    now(child.read(0, 512)).map(drop).map_err(|e| e.errno())
}

#[test]
fn errors_are_injected_into_what_rules_name() {
    let (_files, cx, _) = setup();
    let node = open_list(&cx, "inject-error.0.event=read_aio,inject-error.0.errno=28,inject-error.0.once=on");
    let child = Child::new(node.expect("opened"));
    assert_eq!(read(&child), Ok(()));
    assert!(child.event(DebugEvent::ReadAio, Cause::default()).is_none());
    assert_eq!(read(&child), Err(28));
    assert_eq!(read(&child), Ok(()), "once");
}

#[test]
fn the_first_event_is_none() {
    let (_files, cx, _) = setup();
    let list = "inject-error.0.event=none,inject-error.0.iotype=block-status,inject-error.0.immediately=on";
    let child = Child::new(open_list(&cx, list).expect("opened"));
    assert_eq!(read(&child), Ok(()));
    assert_eq!(now(child.status(0, 512)).expect_err("injected").errno(), 5);
    let Op::Done(_) = child.submit(Request::status(0, 512)) else { panic!("fails at once") };
}

#[test]
fn events_reach_it_through_the_layers_above() {
    let (_files, cx, _) = setup();
    let list = "driver=raw,file.driver=blkdebug,file.image.filename=i,file.inject-error.0.event=write_aio,\
                file.inject-error.0.iotype=write";
    let node = now(cx.open_image(&ImageName::OptionList(list.to_owned()), None)).expect("opened").node;
    let child = Child::new(node);
    assert_eq!(read(&child), Ok(()));
    assert_eq!(now(child.write(0, Buf::copy_of(&[2; 512]))).expect_err("injected").errno(), 5);
    assert_eq!(read(&child), Ok(()));
}

#[test]
fn one_request_waits_and_others_do_not() {
    let (_files, cx, said) = setup();
    let raw = "driver=raw,file.driver=blkdebug,file.image.filename=i";
    let node = now(cx.open_image(&ImageName::OptionList(raw.to_owned()), None)).expect("opened").node;
    let found = find(&node).expect("below");
    let debug: &BlkdebugNode = found.as_any().downcast_ref().expect("it");
    let child = Child::new(node);
    debug.break_at("write_aio", "A").expect("an event");
    debug.break_at("write_aio", "B").expect("an event");
    let mut waiting = Box::pin(child.submit(Request::write(0, Buf::copy_of(&[9; 512]))).finish());
    let mut poll = || waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    assert!(!poll());
    now(debug.suspension("A"));
    assert_eq!(debug.state()["suspended"], serde_json::json!(["B", "A"]));
    now(child.write(512, Buf::copy_of(&[8; 512]))).expect("the breakpoints are used up");
    debug.resume("A").expect("suspended");
    assert!(!poll(), "as many resumes as breakpoints");
    assert_eq!(debug.resume("A").expect_err("once").kind(), ErrorKind::NotFound);
    debug.remove_break("B").expect("suspended");
    assert!(poll());
    assert_eq!(now(child.read(0, 1)).expect("read")[..], [9]);
    let expect =
        ["Suspended request 'B'", "Suspended request 'A'", "Resuming request 'A'", "Resuming request 'B'"];
    assert_eq!(*said.lock(), expect.map(|line| format!("blkdebug: {line}")));
}

#[test]
fn a_request_that_is_given_up_is_not_suspended() {
    let (_files, cx, _) = setup();
    let node = open_list(&cx, "align=512").expect("opened");
    let debug: &BlkdebugNode = node.as_any().downcast_ref().expect("it");
    debug.break_at("pwritev", "A").expect("an event");
    let child = Child::new(node.clone());
    let mut waiting = Box::pin(child.submit(Request::write(0, Buf::copy_of(&[9; 512]))).finish());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    now(debug.suspension("A"));
    drop(waiting);
    assert_eq!(debug.state()["suspended"], serde_json::json!([]));
    assert!(debug.resume("A").is_err());
}

#[test]
fn limits_are_kept_and_pretended() {
    let (_files, cx, _) = setup();
    for (list, expect) in [
        ("align=511", "align 511"),
        ("align=4G", "align 4294967296"),
        ("align=4096,max-transfer=512", "max-transfer 512"),
        ("opt-write-zero=100,align=512", "opt-write-zero 100"),
        ("opt-write-zero=64k,max-write-zero=32k", "max-write-zero 32768"),
        ("max-discard=777,opt-discard=512", "max-discard 777"),
    ] {
        assert_eq!(text(open_list(&cx, list)), format!("Cannot meet constraints with {expect}"));
    }
    let node = open_list(&cx, "align=512,max-transfer=1024,opt-write-zero=2048,max-write-zero=2048");
    let node = node.expect("opened");
    let small = now(node.submit(Request::write_zeroes(0, 512)).finish()).result;
    assert_eq!(small.expect_err("below its grain").kind(), ErrorKind::Unsupported);
    let child = Child::new(node);
    // The edge does what the node asks for, and falls back where it refuses.
    now(child.submit(Request::write_zeroes(100, 7000)).finish()).result.expect("zeroes");
    let bytes = now(child.read(0, 8192)).expect("read");
    assert!(bytes[100..7100].iter().all(|b| *b == 0) && bytes[99] == 1 && bytes[7100] == 1);
    let strict = Request::write_zeroes(0, 512).with_flags(Flags::NO_FALLBACK);
    assert_eq!(now(child.submit(strict).finish()).result.expect_err("no way").kind(), ErrorKind::Unsupported);
    assert!(now(child.status(0, 512)).expect("status").flags.contains(ExtentFlags::ALLOCATED));
}

#[test]
fn options_that_are_none() {
    let (files, cx, _) = setup();
    for (list, expect) in [
        ("foo=1", "Block protocol 'blkdebug' doesn't support the option 'foo'"),
        ("inject-error.0.foo=1", "[inject-error] section doesn't support the option 'foo'"),
        ("inject-error.0.errno=5", "Missing event name for rule"),
        ("inject-error=x", "Block protocol 'blkdebug' doesn't support the option 'inject-error'"),
        ("take-child-perms.0=foo", "Parameter 'null' does not accept value 'foo'"),
        ("config=nosuch", "Could not read blkdebug config file: No such file or directory"),
    ] {
        assert_eq!(text(open_list(&cx, list)), expect, "{list}");
    }
    files.put("c", b"[inject-error]\nevent = \"frob\"\n");
    assert_eq!(text(open_list(&cx, "config=c")), "invalid parameter value: frob");
    assert!(open_list(&cx, "inject-error.event=read_aio,take-child-perms.0=write").is_ok());
}

#[test]
fn the_short_form_names_file_and_image() {
    let (files, cx, _) = setup();
    files.put("c", b"[inject-error]\nevent = \"read_aio\"\n");
    let open = |name: &str| now(cx.open_image(&ImageName::from(name), Some("raw")));
    let node = open("blkdebug:c:i").expect("opened").node;
    assert_eq!(node.filename(), "blkdebug:c:i");
    assert_eq!(read(&Child::new(node)), Err(5));
    assert_eq!(open("blkdebug::i").expect("opened").node.filename(), "blkdebug::i");
    let error = open("blkdebug:i").map(|_| ()).expect_err("one colon").to_string();
    assert_eq!(error, "blkdebug requires both config file and image path");
    let node = open_list(&cx, "align=512").expect("opened");
    let expect =
        r#"json:{"image": {"driver": "file", "filename": "i"}, "driver": "blkdebug", "align": "512"}"#;
    assert_eq!(node.filename(), expect);
}

#[test]
fn it_takes_and_unshares_what_it_is_told_to() {
    let (_files, cx, _) = setup();
    let node = open_list(&cx, "take-child-perms.0=resize,unshare-child-perms.0=write").expect("opened");
    let needs = node.needs_of("image", Needs::NOTHING);
    assert_eq!(
        (needs.required, needs.shared),
        (Permissions::RESIZE, Permissions::all() - Permissions::WRITE)
    );
}
