//! `img create`.

use anyhow::{Result, anyhow, bail};
use cowbell_block::ErrorKind;
use cowbell_block::naming::resolve_relative;
use cowbell_block::options::OptionTree;
use cowbell_host::block_on;
use serde_json::{Value, json};

use super::lists::{asks_for_help, check_lists};
use super::target::Format;
use super::{Form, form};
use crate::context::{Context, usage};
use crate::face::Face;
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, Purpose, open_bare};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_named};

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let format = args.value(&flags::FORMAT).unwrap_or("raw");
    check_lists(args.values(&flags::OPTIONS))?;
    if args.values(&flags::OPTIONS).any(asks_for_help) {
        let format = Format::find(cx, format, args.operands.first().map(String::as_str))?;
        Out::new().put(&format.help());
        return Ok(0);
    }
    let Some(name) = args.operands.first() else {
        return Err(usage("Expecting image file name"));
    };
    let given = match args.operands.get(1) {
        Some(text) => Some(parse_named("image size", text, 0, SIZE_MAX)?),
        None => None,
    };
    if let Some(more) = args.operands.get(2) {
        return Err(usage(format!("Unexpected argument: {more}")));
    }
    let quiet = args.has(&flags::QUIET);
    let options = block_on(create(cx, args, format, name, given, quiet || form == Form::Json))
        .map_err(|e| anyhow!("{name}: {e}"))?;
    if form == Form::Json && !quiet {
        let value = json!({ "filename": name, "format": format, "options": Value::Object(options) });
        Out::new().put(&json::text(&value));
    }
    Ok(0)
}

async fn create(
    cx: &Context,
    args: &Args,
    format: &str,
    name: &str,
    given: Option<u64>,
    quiet: bool,
) -> Result<OptionTree> {
    let format = Format::find(cx, format, Some(name))?;
    let mut options = format.options(args.values(&flags::OPTIONS))?;
    if let Some(bytes) = given
        && options.insert("size".into(), bytes.into()).is_some()
    {
        bail!("The image size must be specified only once");
    }
    let fmt = format.driver.name();
    if let Some(backing) = args.value(&flags::BACKING) {
        if !format.knows("backing_file") {
            bail!("Backing file not supported for file format '{fmt}'");
        }
        options.insert("backing_file".into(), backing.into());
    }
    if let Some(backing_format) = args.value(&flags::BACKING_FORMAT) {
        if !format.knows("backing_fmt") {
            bail!("Backing file format not supported for file format '{fmt}'");
        }
        options.insert("backing_fmt".into(), backing_format.into());
    }
    backing_size(cx, args, name, &mut options).await?;
    if !options.contains_key("size") {
        bail!("Image creation needs a size parameter");
    }
    if !quiet {
        Out::new().put(&format.message(name, &options));
    }
    match format.create(cx, name, options.clone(), None).await {
        // Whoever found it knows only its own limit: the reference says it in one way for all.
        Err(e) if e.kind() == ErrorKind::TooLarge && cx.face != Face::Cowbell => {
            let hint = if format.knows("cluster_size") { " (try using a larger cluster size)" } else { "" };
            bail!("The image size is too large for file format '{fmt}'{hint}")
        }
        done => done.map(|()| options).map_err(Into::into),
    }
}

/// Checks the backing file, and takes the size from it if none was given.
async fn backing_size(cx: &Context, args: &Args, name: &str, options: &mut OptionTree) -> Result<()> {
    let text = |key: &str| options.get(key).and_then(Value::as_str).map(str::to_owned);
    let (backing, backing_format) = (text("backing_file"), text("backing_fmt"));
    if backing.as_deref() == Some(name) {
        bail!("Error: Trying to create an image with the same filename as the backing file");
    }
    if backing.as_deref() == Some("") {
        bail!("Expected backing file name, got empty string");
    }
    let Some(backing) = backing else { return Ok(()) };
    if args.has(&flags::BACKING_UNSAFE) {
        if backing_format.is_none() {
            bail!("Backing file specified without backing format");
        }
        return Ok(());
    }
    let full = resolve_relative(name, &backing);
    // Only its length is of interest: somebody may be writing to it, as when a snapshot is about to be taken.
    let how =
        How { force_share: true, purpose: Purpose::Length, ..How::reading(&full, backing_format.as_deref()) };
    let image = open_bare(cx, &how).await.map_err(|e| anyhow!("{e}\nCould not open backing image."))?;
    let (len, detected) = (image.node().len(), image.node().driver());
    image.close().await?;
    if backing_format.is_none() {
        bail!("Backing file specified without backing format\nDetected format of {detected}.");
    }
    options.entry("size").or_insert_with(|| len.into());
    Ok(())
}
