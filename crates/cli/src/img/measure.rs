//! `img measure`.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::ErrorKind;
use cowbell_block::options::OptionTree;
use cowbell_block::registry::{Driver, MeasureSource, Measurement};
use cowbell_host::block_on;
use serde_json::json;

use super::lists::check_lists;
use super::target::Format;
use super::{Form, form, format_or_options, snapshot};
use crate::absent;
use crate::context::{Context, Reported};
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, open};
use crate::out::Out;
use crate::size::{SIZE_MAX, parse_named};

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT)?;
    let size = args.value(&flags::MEASURE_SIZE);
    let size = size.map(|text| parse_named("image size", text, 0, SIZE_MAX)).transpose()?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let name = match (args.operands.as_slice(), size) {
        ([_, _, ..], _) => bail!("At most one filename argument is allowed."),
        ([_], Some(_)) => bail!("--size N cannot be used together with a filename."),
        ([], None) => bail!("Either --size N or one filename must be specified."),
        ([name], None) => Some(name),
        ([], Some(_)) => None,
    };
    if name.is_none() && (image_opts || format.is_some() || args.has(&flags::MEASURE_SNAPSHOT)) {
        bail!("--image-opts, -f, and -l require a filename argument.");
    }
    check_lists(args.values(&flags::OPTIONS))?;
    let target = args.value(&flags::MEASURE_FORMAT).unwrap_or("raw");
    if cx.registry().driver(target).is_some_and(|driver| driver.create_options().is_empty()) {
        // As in the reference: what makes no images by itself has no options to measure by.
        match absent::is_absent(target) {
            true => bail!("Block driver '{target}' does not support size measurement"),
            false => bail!("Format driver '{target}' does not support image creation"),
        }
    }
    let target = Format::find(cx, target, None)?;
    let options = target.options(args.values(&flags::OPTIONS)).inspect_err(|e| {
        cx.report(e);
    });
    let Ok(options) = options else {
        cx.report(format_args!("Invalid options for file format '{}'", target.driver.name()));
        return Err(Reported.into());
    };
    let how = name.map(|name| How {
        image_opts,
        force_share: args.has(&flags::FORCE_SHARE),
        ..How::reading(name, format)
    });
    let measured = block_on(async {
        match how {
            Some(how) => measure_image(cx, args, &how, &*target.driver, options).await,
            None => {
                let source = MeasureSource::Size(size.unwrap_or_default());
                ask(cx, &*target.driver, options, source).await
            }
        }
    })?;
    show(form, &measured);
    Ok(0)
}

async fn measure_image(
    cx: &Context,
    args: &Args,
    how: &How<'_>,
    target: &dyn Driver,
    options: OptionTree,
) -> Result<Measurement> {
    let mut image = open(cx, how).await?;
    let disk = match args.value(&flags::MEASURE_SNAPSHOT) {
        Some(text) => {
            let which = snapshot::parse_name(cx, text)?;
            match snapshot::enter(&mut image, which).await {
                Ok(disk) => Some(disk),
                Err(e) => {
                    image.close().await?;
                    return Err(e);
                }
            }
        }
        None => None,
    };
    let measured = ask(cx, target, options, MeasureSource::Image(Arc::clone(&image.node()))).await;
    image.close().await?;
    if let Some(disk) = disk {
        disk.close().await?;
    }
    measured
}

async fn ask(
    cx: &Context,
    target: &dyn Driver,
    options: OptionTree,
    source: MeasureSource,
) -> Result<Measurement> {
    target.measure(options, source, cx.open_context()).await.map_err(|e| match e.kind() {
        ErrorKind::Unsupported => {
            anyhow!("Block driver '{}' does not support size measurement", target.name())
        }
        _ => anyhow!(e),
    })
}

fn show(form: Form, measured: &Measurement) {
    let Measurement { required, fully_allocated, bitmaps } = *measured;
    let mut out = Out::new();
    match form {
        Form::Human => {
            out.put(&format!("required size: {required}\nfully allocated size: {fully_allocated}\n"));
            if let Some(bytes) = bitmaps {
                out.put(&format!("bitmaps size: {bytes}\n"));
            }
        }
        Form::Json => {
            let mut value = json!({});
            // The reference's order.
            if let Some(bytes) = bitmaps {
                value["bitmaps"] = bytes.into();
            }
            value["required"] = required.into();
            value["fully-allocated"] = fully_allocated.into();
            out.put(&json::text(&value));
        }
    }
}
