//! What is parsed without an image below: LUKS headers, rules of `blkdebug`, names and options.

use std::sync::Arc;

use cowbell_block::blkdebug::rules::Engine;
use cowbell_block::blkdebug::{BlkdebugDriver, config};
use cowbell_block::create::parse_create_options;
use cowbell_block::mem::MemDriver;
use cowbell_block::names;
use cowbell_block::naming::{
    directory_of, image_tree, parse_json, parse_option_list, resolve_relative, strip_prefix, write_json,
};
use cowbell_block::node::Node;
use cowbell_block::{
    Buf, CreateArgs, DebugEvent, ImageName, MemNode, OpenContext, Registry, Request, parse_size,
};
use cowbell_luks::{Header, Luks, LuksDriver, OpenOptions, Placement};
use cowbell_qcow2::Qcow2Driver;
use serde_json::Value;

use super::{drive, wait};

/// A header that is accepted is written as it was read, and a volume that opens tells about itself.
pub fn luks(bytes: &[u8]) -> Result<(), String> {
    let len = bytes.len() as u64;
    for placement in [Placement::Attached(len), Placement::Detached(1 << 40), Placement::Embedded(2 << 20)] {
        let Ok(header) = Header::parse(bytes, placement) else { continue };
        if !Header::probe(bytes) {
            return Err("a header is accepted that is not recognised".into());
        }
        let again = Header::parse(&header.encode(), placement);
        if again.as_ref() != Ok(&header) {
            return Err(format!("a header is not written as it was read [{again:?}]"));
        }
    }
    let file = MemNode::with_content(bytes);
    if let Ok(volume) = wait("open", Luks::open(Arc::new(file), None, OpenOptions::default()))? {
        let _ = wait("info", volume.info())?;
        let _ = wait("close", volume.close())?;
    }
    Ok(())
}

/// Rules run whatever they say, and tell what they are.
pub fn blkdebug(bytes: &[u8]) -> Result<(), String> {
    if let Ok(rules) = config::parse(bytes) {
        let mut engine = Engine::new(rules);
        for event in DebugEvent::ALL {
            let _ = engine.event(*event);
        }
        let _ = engine.to_json();
    }
    // The same as options: every line is one.
    let Ok(text) = str::from_utf8(bytes) else { return Ok(()) };
    let list = text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(",");
    let list = format!("driver=blkdebug,image.driver=mem,image.size=64k,{list}");
    if let Ok(opened) = wait("open", context().open_image(&ImageName::OptionList(list), None))? {
        for event in DebugEvent::ALL.iter().take(3) {
            let _ = opened.node.debug_event(*event, Default::default());
        }
        let _ = drive(opened.node.submit(Request::write(512, Buf::zeroed(512))));
        let _ = drive(opened.node.submit(Request::read(0, Buf::zeroed(4096))));
    }
    Ok(())
}

/// Names and options, in each of their forms; what is a tree is one again after it was written.
pub fn options(bytes: &[u8]) -> Result<(), String> {
    let Some((form, rest)) = bytes.split_first() else { return Ok(()) };
    let text = String::from_utf8_lossy(rest).into_owned();
    let cx = context();
    match form % 6 {
        0 => drop(parse_size(&text)),
        1 => {
            if let Ok(tree) = parse_json(&text) {
                let written = write_json(&Value::Object(tree.clone()));
                let again = parse_json(&written);
                if again.as_ref() != Ok(&tree) {
                    return Err(format!("a tree is not what is written of it [{written}]"));
                }
            }
        }
        2 => drop(parse_option_list(&text)),
        3 => drop(image_tree(&cx.registry, &ImageName::Text(text), None)),
        4 => drop(wait("open", cx.open_image(&ImageName::OptionList(text), None))?),
        _ => creation(&text, &cx)?,
    }
    Ok(())
}

/// Names as they stand in images and on command lines: any bytes come back as they were, and what is relative lies below
/// the directory that it is relative to.
pub fn names(bytes: &[u8]) -> Result<(), String> {
    let name = names::from_bytes(bytes);
    if names::to_bytes(&name) != bytes {
        return Err(format!("a name does not come back [{name:?}]"));
    }
    let (base, name) = name.split_once('\n').unwrap_or(("", &name));
    let resolved = resolve_relative(base, name);
    if resolved != name && resolved != format!("{}{name}", directory_of(base)) {
        return Err(format!("a relative name leads elsewhere [{resolved:?}]"));
    }
    let cx = context();
    for driver in ["mem", "blkdebug", "qcow2", "none"] {
        let rest = strip_prefix(name, driver);
        if rest != name && cowbell_block::naming::has_protocol(&rest) {
            return Err(format!("the rest of a name became a protocol [{rest:?}]"));
        }
        let tree = image_tree(&cx.registry, &ImageName::Text(name.to_owned()), Some(driver));
        if let Ok(tree) = tree {
            let _ = wait("open", cx.open_image(&ImageName::Tree(tree), None))?;
        }
    }
    Ok(())
}

/// Options of a new image, for every driver that makes one. None is made: no driver here makes files.
fn creation(text: &str, cx: &OpenContext) -> Result<(), String> {
    for driver in cx.registry.drivers() {
        let mut args = CreateArgs::new("nowhere");
        if parse_create_options(text, driver.create_options(), &mut args.options).is_ok() {
            let _ = wait("create", driver.create(args, cx.clone()))?;
        }
    }
    Ok(())
}

/// Drivers that reach nothing outside of memory.
fn context() -> OpenContext {
    let mut registry = Registry::new();
    registry.add_builtin().add(MemDriver).add(Qcow2Driver::new()).add(LuksDriver);
    registry.add(BlkdebugDriver::with_notice(Arc::new(|_: &str| {})));
    OpenContext::new(Arc::new(registry)).writable()
}
