//! `img compare`.

use anyhow::Result;
use cowbell_host::block_on;
use cowbell_jobs::Error;
use cowbell_jobs::compare::{Failure, Mode, Side, Verdict, compare};
use serde_json::json;

use super::{Form, form};
use crate::context::{Context, usage};
use crate::flags::{Args, img as flags};
use crate::json;
use crate::meter::{Audience, Meter};
use crate::open::{How, Image, cache_mode, open};
use crate::out::Out;

/// The images differ.
const STATUS_DIFFERENT: u8 = 1;
/// An image cannot be opened.
const STATUS_OPEN: u8 = 2;
/// Allocation cannot be asked for.
const STATUS_STATUS: u8 = 3;
/// Data cannot be read.
const STATUS_READ: u8 = 4;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let [a, b] = args.operands.as_slice() else {
        return Err(usage("Expecting two image file names"));
    };
    let fail = |error: anyhow::Error| {
        cx.report_error(&error);
        Ok(STATUS_OPEN)
    };
    let image_opts = args.has(&flags::IMAGE_OPTS);
    let formats = [args.value(&flags::A_FORMAT), args.value(&flags::B_FORMAT)];
    if image_opts && formats.iter().any(Option::is_some) {
        return fail(anyhow::anyhow!("--image-opts and --format are mutually exclusive"));
    }
    let cache = match cache_mode("source cache", args.value(&flags::CACHE).unwrap_or("writeback")) {
        Ok(cache) => cache,
        Err(e) => return fail(e),
    };
    let how = |name, format| How {
        image_opts,
        cache,
        side_by_side: 2,
        force_share: args.has(&flags::FORCE_SHARE),
        ..How::reading(name, format)
    };
    let hows = [how(a.as_str(), formats[0]), how(b.as_str(), formats[1])];
    block_on(async {
        let images = async { Ok((open(cx, &hows[0]).await?, open(cx, &hows[1]).await?)) };
        match images.await {
            Ok((a, b)) => judge(cx, args, form, a, b).await,
            Err(e) => {
                // The end of a line of progress that never came, as in the reference.
                if Audience::of(args, &flags::PROGRESS)? == Audience::People {
                    Out::new().put("\n");
                }
                fail(e)
            }
        }
    })
}

async fn judge(cx: &Context, args: &Args, form: Form, a: Image, b: Image) -> Result<u8> {
    let quiet = args.has(&flags::QUIET);
    let mode = if args.has(&flags::STRICT) { Mode::Strict } else { Mode::Content };
    let meter = Meter::new(cx, Audience::of(args, &flags::PROGRESS)?.unless(quiet || form == Form::Json));
    let say = |text: &str| {
        if !quiet && form == Form::Human {
            Out::new().line(text);
        }
    };
    let found = compare(&a.root, &b.root, mode, &meter, || say("Warning: Image size mismatch!")).await;
    let status = match &found {
        Ok(verdict) => {
            let (text, status) = words(*verdict);
            say(&text);
            if form == Form::Json && !quiet {
                Out::new().put(&json::text(&json_value(*verdict, &a, &b)));
            }
            status
        }
        Err(failure) => report(cx, failure, &a, &b),
    };
    meter.end();
    a.close().await?;
    b.close().await?;
    Ok(status)
}

fn words(verdict: Verdict) -> (String, u8) {
    match verdict {
        Verdict::Identical => ("Images are identical.".to_owned(), 0),
        Verdict::ContentDiffers { offset } => {
            (format!("Content mismatch at offset {offset}!"), STATUS_DIFFERENT)
        }
        Verdict::StatusDiffers { offset } => {
            (format!("Strict mode: Offset {offset} block status mismatch!"), STATUS_DIFFERENT)
        }
        Verdict::SizeDiffers => ("Strict mode: Image size mismatch!".to_owned(), STATUS_DIFFERENT),
    }
}

fn json_value(verdict: Verdict, a: &Image, b: &Image) -> serde_json::Value {
    let (result, offset) = match verdict {
        Verdict::Identical => ("identical", None),
        Verdict::ContentDiffers { offset } => ("content-mismatch", Some(offset)),
        Verdict::StatusDiffers { offset } => ("status-mismatch", Some(offset)),
        Verdict::SizeDiffers => ("size-mismatch", None),
    };
    let mut value = json!({
        "result": result,
        "a": { "filename": a.name, "virtual-size": a.node().len() },
        "b": { "filename": b.name, "virtual-size": b.node().len() },
    });
    if let Some(offset) = offset {
        value["offset"] = offset.into();
    }
    value
}

fn report(cx: &Context, failure: &Failure, a: &Image, b: &Image) -> u8 {
    let name = match failure.side {
        Side::A => &a.name,
        Side::B => &b.name,
    };
    match &failure.error {
        Error::Status { .. } => {
            cx.report(format_args!("Sector allocation test failed for {name}"));
            STATUS_STATUS
        }
        Error::Read { offset, source } => {
            cx.report(format_args!("Error while reading offset {offset} of {name}: {source}"));
            STATUS_READ
        }
        other => {
            cx.report(other);
            STATUS_READ
        }
    }
}
