//! `img info`: collecting the facts. How they look is in [`super::facts`].

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::{location_of, resolve_relative};
use cowbell_block::node::Node;
use cowbell_block::policy::Rule;
use cowbell_host::block_on;
use serde_json::Value;

use super::facts::{self, Facts};
use super::{Form, form, format_or_options, one_image};
use crate::context::Context;
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, Purpose, open};
use crate::out::Out;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT)?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let chain = args.has(&flags::BACKING_CHAIN);
    let how = How {
        image_opts,
        force_share: args.has(&flags::FORCE_SHARE),
        purpose: Purpose::Inspect,
        ..How::reading(name, format)
    };
    let members = block_on(async {
        match (chain, cx.policy.rule) {
            (false, _) => Ok(vec![one(cx, &how).await?]),
            (true, Rule::Trust) => each_alone(cx, how).await,
            // Names found in images are followed by the opener, which confines them.
            (true, _) => whole_chain(cx, How { purpose: Purpose::Data, ..how }).await,
        }
    })?;
    let mut out = Out::new();
    match form {
        Form::Human => {
            let texts: Vec<String> = members.iter().map(facts::human_text).collect();
            out.put(&texts.join("\n"));
        }
        Form::Json => {
            let mut values: Vec<Value> = members.iter().map(facts::json_value).collect();
            let value = if chain { Value::Array(values) } else { values.swap_remove(0) };
            out.put(&json::text(&value));
        }
    }
    Ok(0)
}

async fn one(cx: &Context, how: &How<'_>) -> Result<Facts> {
    let image = open(cx, how).await?;
    let facts = gather(&image.node()).await;
    image.close().await?;
    facts
}

/// Every member is opened by itself, so that the last one that can be opened is shown before what fails.
async fn each_alone(cx: &Context, how: How<'_>) -> Result<Vec<Facts>> {
    let mut members = vec![one(cx, &how).await?];
    loop {
        let info = &members[members.len() - 1].info;
        let Some(name) = info.full_backing_filename.clone() else { return Ok(members) };
        if members.iter().any(|member| member.filename == name) {
            bail!("Backing file '{name}' creates an infinite loop.");
        }
        let format = info.backing_format.clone();
        let below = How { name: &name, format: format.as_deref(), image_opts: false, ..how.clone() };
        members.push(one(cx, &below).await?);
    }
}

async fn whole_chain(cx: &Context, how: How<'_>) -> Result<Vec<Facts>> {
    let image = open(cx, &how).await?;
    let mut members = Vec::new();
    let mut next = Some(image.node());
    while let Some(node) = next {
        members.push(gather(&node).await?);
        next = node.backing();
    }
    image.close().await?;
    Ok(members)
}

/// The facts of a node and of the children it stores its data in.
async fn gather(node: &Arc<dyn Node>) -> Result<Facts> {
    let mut children = Vec::new();
    for (role, child) in node.children() {
        if role != "backing" {
            children.push((role.to_owned(), Box::pin(gather(&child)).await?));
        }
    }
    let mut info = node.info().await.map_err(|e| anyhow!("{}: {e}", node.filename()))?;
    if let (Some(name), None) = (&info.backing_filename, &info.full_backing_filename) {
        info.full_backing_filename = Some(resolve_relative(&location_of(&**node), name));
    }
    let is_protocol = children.is_empty();
    if is_protocol {
        // Lengths are shown in sectors; and the reference has a block of facts for files, if an empty one.
        info.virtual_size = info.virtual_size.next_multiple_of(512);
        if info.format == "file" && info.format_specific.is_none() {
            info.format_specific = Some(("file", serde_json::Map::new()));
        }
    }
    Ok(Facts { filename: node.filename(), info, children, is_protocol })
}
