//! alloc, map, length, info, truncate.

use std::sync::Arc;

use cowbell_block::claim::claim;
use cowbell_block::node::Node;
use cowbell_block::{ExtentFlags, Needs, Permissions, Preallocation, Request};

use super::session::Session;
use super::shell::{Done, Failed};
use super::words::number;
use crate::face::Face;
use crate::flags::Args;
use crate::flags::io::{self as flags, IoCommand};
use crate::img::facts;
use crate::size::io_form;

/// Whether the top layer holds the range that starts at `offset`, and how long that stays so.
async fn allocated(node: &Arc<dyn Node>, offset: u64, len: u64) -> cowbell_block::Result<(bool, u64)> {
    let extent = node.submit(Request::status(offset, len)).finish().await.into_extent()?;
    Ok((extent.flags.contains(ExtentFlags::ALLOCATED), extent.len.min(len)))
}

/// The same, over neighbouring extents.
async fn run(node: &Arc<dyn Node>, offset: u64, len: u64) -> cowbell_block::Result<(bool, u64)> {
    let (kind, mut total) = allocated(node, offset, len).await?;
    while total > 0 && total < len {
        let (next, more) = allocated(node, offset + total, len - total).await?;
        if next != kind || more == 0 {
            break;
        }
        total += more;
    }
    Ok((kind, total))
}

pub(super) async fn alloc(session: &mut Session<'_>, args: &Args) -> Done {
    let Some(node) = session.image().map(crate::open::Image::node) else { return Err(Failed) };
    let parsed = match args.operands.as_slice() {
        [offset] => number(offset).map(|offset| (offset, 512)),
        [offset, count] => number(offset).and_then(|offset| Ok((offset, number(count)?))),
        _ => return Err(Failed),
    };
    let (offset, mut count) = match parsed {
        Ok(parsed) => parsed,
        Err(text) => return session.fail(&text),
    };
    let (mut at, mut left, mut sum) = (offset, count, 0);
    while left > 0 {
        match allocated(&node, at, left).await {
            Ok((_, 0)) => {
                // The end of the image.
                count -= left;
                left = 0;
            }
            Ok((held, len)) => {
                sum += if held { len } else { 0 };
                at += len;
                left -= len;
            }
            Err(e) => return session.fail(&format!("is_allocated failed: {e}\n")),
        }
    }
    session.put(&format!("{sum}/{count} bytes allocated at offset {}\n", io_form(offset as f64)));
    Ok(())
}

pub(super) async fn map(session: &mut Session<'_>) -> Done {
    let Some(node) = session.image().map(crate::open::Image::node) else { return Err(Failed) };
    let len = node.len();
    let mut at = 0;
    while at < len {
        let (held, run) = match run(&node, at, len - at).await {
            Ok((_, 0)) => {
                session.cx.report("Unexpected end of image");
                return Err(Failed);
            }
            Ok(found) => found,
            Err(e) => {
                session.cx.report(format_args!("Failed to get allocation status: {e}"));
                return Err(Failed);
            }
        };
        let word = if held { "    allocated" } else { "not allocated" };
        session.put(&format!(
            "{} ({run:#x}) bytes {word} at offset {} ({at:#x})\n",
            io_form(run as f64),
            io_form(at as f64)
        ));
        at += run;
    }
    Ok(())
}

pub(super) fn length(session: &mut Session<'_>) -> Done {
    let Some(image) = session.image() else { return Err(Failed) };
    session.put(&format!("{}\n", io_form(image.node().len() as f64)));
    Ok(())
}

pub(super) async fn info(session: &mut Session<'_>) -> Done {
    let Some(node) = session.named_node() else { return Err(Failed) };
    let info = match node.info().await {
        Ok(info) => info,
        Err(e) => {
            session.cx.report(e);
            return Err(Failed);
        }
    };
    if info.is_bare {
        session.put(&format!("format name: {}\n", info.format));
        return Err(Failed);
    }
    let size = |bytes: Option<u64>| io_form(bytes.unwrap_or(0) as f64);
    let mut text = format!(
        "format name: {}\ncluster size: {}\nvm state offset: {}\n",
        info.format,
        size(info.cluster_size),
        size(info.vm_state_offset)
    );
    if let Some((_, data)) = &info.format_specific
        && !data.is_empty()
    {
        text.push_str("Format specific information:\n");
        facts::object(&mut text, data, "    ");
    }
    session.put(&text);
    Ok(())
}

pub(super) async fn truncate(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let word = args.value(&flags::PREALLOCATION).unwrap_or("off");
    let Some(preallocation) = Preallocation::from_name(word) else {
        session.cx.report(format_args!("Invalid preallocation mode '{word}'"));
        return Err(Failed);
    };
    // The reference looks at the first word, and at no other.
    let word = match args.operands.as_slice() {
        [word] => word,
        [word, ..] if session.cx.face != Face::Cowbell => word,
        _ => return session.bad_usage(command, "truncate"),
    };
    let len = match number(word) {
        Ok(len) => len,
        Err(text) => return session.fail(&text),
    };
    let Some(node) = session.image().map(crate::open::Image::node) else { return Err(Failed) };
    // The only command that resizes: for its time others may not mind that.
    let result = match claim(&node, resizing(WRITER)) {
        Ok(()) => {
            let result = session.request(Request::truncate(len, preallocation)).await.result;
            claim(&node, WRITER).and(result.map(drop))
        }
        Err(e) => Err(e),
    };
    result.map_err(|e| {
        session.cx.report(e);
        Failed
    })
}

/// What this tool needs of an image that it writes to.
const WRITER: Needs =
    Needs { required: Permissions::CONSISTENT_READ.union(Permissions::WRITE), shared: Permissions::all() };

/// The same while the image is resized.
fn resizing(needs: Needs) -> Needs {
    Needs { required: needs.required | Permissions::RESIZE, ..needs }
}
