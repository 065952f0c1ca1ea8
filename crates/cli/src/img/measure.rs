//! `img measure`.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::ErrorKind;
use cowbell_block::options::OptionTree;
use cowbell_block::registry::{Driver, MeasureSource, Measurement};
use cowbell_host::block_on;
use serde_json::json;

use super::target::{Format, check_lists};
use super::{Form, format_or_options, snapshot};
use crate::context::{Context, usage};
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, open};
use crate::out::Out;
use crate::size::SIZE_MAX;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = match args.value(&flags::OUTPUT) {
        None | Some("human") => Form::Human,
        Some("json") => Form::Json,
        Some(other) => {
            return Err(usage(format!("--output expects 'human' or 'json' not '{other}'")));
        }
    };
    let size = match args.value(&flags::MEASURE_SIZE) {
        Some(text) => Some(
            crate::size::parse_named("image size", text, 0, SIZE_MAX)
                .map_err(|_| anyhow!("Invalid image size specified: '{text}'."))?,
        ),
        None => None,
    };
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let name = match (args.operands.as_slice(), size) {
        ([_, _, ..], _) => bail!("At most one filename argument is allowed."),
        ([_], Some(_)) => bail!("--size N cannot be used together with a filename."),
        ([], None) => bail!("Either --size N or one filename must be specified."),
        ([name], None) => Some(name),
        ([], Some(_)) => None,
    };
    check_lists(args.values(&flags::OPTIONS))?;
    let target = args.value(&flags::MEASURE_FORMAT).unwrap_or("raw");
    if cx.registry().driver(target).is_some_and(|driver| driver.create_options().is_empty()) {
        bail!("Block driver '{target}' does not support size measurement");
    }
    let target = Format::find(cx, target, None)?;
    let options = target.options(args.values(&flags::OPTIONS))?;
    let how = name.map(|name| How {
        image_opts,
        force_share: args.has(&flags::FORCE_SHARE),
        ..How::reading(name, format)
    });
    let measured = block_on(async {
        match how {
            Some(how) => measure_image(cx, args, &how, &*target.driver, options).await,
            None => ask(&*target.driver, options, MeasureSource::Size(size.unwrap_or_default())).await,
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
    let measured = ask(target, options, MeasureSource::Image(Arc::clone(&image.node()))).await;
    image.close().await?;
    if let Some(disk) = disk {
        disk.close().await?;
    }
    measured
}

async fn ask(target: &dyn Driver, options: OptionTree, source: MeasureSource) -> Result<Measurement> {
    target.measure(options, source).await.map_err(|e| match e.kind() {
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
