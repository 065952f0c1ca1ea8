//! `img resize`.

use anyhow::{Result, anyhow, bail};
use cowbell_block::node::Access;
use cowbell_block::options::SizeError;
use cowbell_block::parse_size;
use cowbell_block::{Preallocation, Request};
use cowbell_host::block_on;
use serde_json::json;

use super::target::SIZE_HINT;
use super::{Form, form, format_or_options};
use crate::context::{Context, Reported, usage};
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, open, warn_probed_raw};
use crate::out::{Out, complain};
use crate::size::SIZE_MAX;

/// Whether a word is a size rather than an option.
pub(super) fn is_size(word: &str) -> bool {
    let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
    digits.starts_with(|c: char| c.is_ascii_digit())
}

/// The size as the user wrote it.
enum Change {
    To(u64),
    By(i128),
}

impl Change {
    fn parse(cx: &Context, text: &str) -> Result<Self> {
        let (sign, digits) = match text.strip_prefix('+') {
            Some(rest) => (Some(1), rest),
            None => match text.strip_prefix('-') {
                Some(rest) => (Some(-1), rest),
                None => (None, text),
            },
        };
        let bytes = parse_size(digits).map_err(|e| match e {
            SizeError::OutOfRange => anyhow!("Value '{digits}' is out of range for parameter 'size'"),
            SizeError::Malformed => {
                cx.report("Parameter 'size' expects a non-negative number below 2^64");
                complain(SIZE_HINT);
                Reported.into()
            }
        })?;
        Ok(match sign {
            Some(sign) => Self::By(sign * i128::from(bytes)),
            None => Self::To(bytes),
        })
    }

    fn apply(&self, old: u64) -> Result<u64> {
        let new = match self {
            Self::To(size) => i128::from(*size),
            Self::By(bytes) => i128::from(old) + bytes,
        };
        // The reference counts in signed 64 bits.
        match u64::try_from(new) {
            Ok(new) if new > 0 && new <= SIZE_MAX => Ok(new),
            _ => bail!("New image size must be positive"),
        }
    }
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let word = args.value(&flags::PREALLOCATION).unwrap_or("off");
    let Some(preallocation) = Preallocation::from_name(word) else {
        bail!("Invalid preallocation mode '{word}'")
    };
    let (name, size) = match args.operands.as_slice() {
        [name, size] => (name, size),
        [] | [_] => return Err(usage("Expecting image file name and size")),
        _ => return Err(usage("Extra argument(s) in command line")),
    };
    let change = Change::parse(cx, size)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let how = How { image_opts, access: Access::ReadWrite, ..How::reading(name, format) };
    let quiet = args.has(&flags::QUIET);
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && !quiet {
            warn_probed_raw(name);
        }
        let old = image.node().len();
        let resized = match change.apply(old).and_then(|new| allowed(cx, args, old, new, preallocation)) {
            Ok(new) => {
                let request = Request::truncate(new, preallocation);
                image.submit(request).finish().await.result.map(|_| new).map_err(anyhow::Error::from)
            }
            Err(e) => Err(e),
        };
        let closed = image.close().await;
        let new = resized?;
        closed?;
        match form {
            _ if quiet => {}
            Form::Human => Out::new().put("Image resized.\n"),
            Form::Json => {
                let value = json!({ "filename": name, "old-size": old, "virtual-size": new });
                Out::new().put(&json::text(&value));
            }
        }
        Ok(0)
    })
}

/// Refuses what would lose data without being asked to.
fn allowed(cx: &Context, args: &Args, old: u64, new: u64, preallocation: Preallocation) -> Result<u64> {
    if new <= old && preallocation != Preallocation::Off {
        bail!("Preallocation can only be used for growing images");
    }
    if new < old && !args.has(&flags::SHRINK) {
        cx.report("Use the --shrink option to perform a shrink operation.");
        bail!(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing \
             such an operation, make sure there is no important data there."
        );
    }
    Ok(new)
}
