//! `img`: the commands over whole images, one file each.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod convert_bitmaps;
mod create;
mod dd;
mod diff;
pub(crate) mod facts;
mod info;
mod inspect;
mod lists;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;
mod stdio;
pub(crate) mod target;

use anyhow::{Result, bail};
use cowbell_block::error::errno_text;

use crate::absent;
use crate::context::{BadOption, Context, refusal, usage};
use crate::face::{Face, version_text};
use crate::flags::parse::{Order, parse};
use crate::flags::{Args, Flag, img as flags};
use crate::out::Out;

/// Runs the command that `args` name.
///
/// # Errors
/// Reported by the caller, with status 1.
pub fn run(cx: &mut Context, args: Vec<String>) -> Result<u8> {
    if args.is_empty() {
        return Err(usage("Not enough arguments"));
    }
    let parsed = parse(&flags::IMG, cx.face, Order::StopAtOperand, args).map_err(BadOption)?;
    if parsed.has(&flags::HELP) {
        let mut out = Out::new();
        // Scripts look for the version and the formats here.
        if cx.face != Face::Cowbell {
            out.put(&version_text(cx.face, &cx.name));
        }
        out.put(&cx.help(&flags::IMG));
        out.put(&lists::formats(&absent::without_absent(&cx.registry().names())));
        return Ok(0);
    }
    if parsed.has(&flags::VERSION) {
        Out::new().put(&version_text(cx.face, &cx.name));
        return Ok(0);
    }
    if cx.take_trace(&parsed)? {
        return Ok(0);
    }
    let mut words = parsed.operands.into_iter();
    let Some(word) = words.next() else { return Ok(0) };
    let Some(command) = flags::IMG.find(&word).filter(|command| command.is_offered(cx.face)) else {
        return Err(usage(format!("Command not found: {word}")));
    };
    cx.require_ready(command)?;
    cx.path = format!("{} {word}", cx.path);
    let mut words: Vec<String> = words.collect();
    // A size with a sign looks like an option; it is the last word.
    let size = match command.name {
        "resize" => words.pop_if(|word| resize::is_size(word)),
        _ => None,
    };
    let mut args = parse(command, cx.face, Order::Permute, words).map_err(BadOption)?;
    args.operands.extend(size);
    if args.has(&flags::HELP) {
        Out::new().put(&cx.help(command));
        return Ok(0);
    }
    cx.take_policy(&args)?;
    if cx.take_objects(&args)? {
        return Ok(0);
    }
    let run = match command.name {
        "amend" => amend::run,
        "bench" => bench::run,
        "bitmap" => bitmap::run,
        "check" => check::run,
        "commit" => commit::run,
        "compare" => compare::run,
        "convert" => convert::run,
        "create" => create::run,
        "dd" => dd::run,
        "diff" => diff::run,
        "info" => info::run,
        "inspect" => inspect::run,
        "map" => map::run,
        "measure" => measure::run,
        "rebase" => rebase::run,
        "resize" => resize::run,
        "snapshot" => snapshot::run,
        other => bail!("{}", refusal(other)),
    };
    run(cx, &args)
}

/// How a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Human,
    Json,
}

/// The value of `--output`.
fn form(args: &Args, flag: &'static Flag) -> Result<Form> {
    match args.value(flag) {
        None | Some("human") => Ok(Form::Human),
        Some("json") => Ok(Form::Json),
        Some(other) => Err(usage(format!("--output expects 'human' or 'json' not '{other}'"))),
    }
}

/// The user ended it.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// How a job failed, with what the node says about it. The reference knows only the number of that.
fn job_failure(cx: &Context, error: &cowbell_jobs::Error) -> anyhow::Error {
    match error.node_error() {
        Some(source) if cx.face == Face::Cowbell => anyhow::anyhow!("{error}: {source}"),
        Some(source) => anyhow::anyhow!("{error}: {}", errno_text(source.errno())),
        None => anyhow::Error::new(Interrupted),
    }
}

/// The one operand of a command.
fn one_image(args: &Args) -> Result<&str> {
    match args.operands.as_slice() {
        [name] => Ok(name),
        _ => Err(usage("Expecting one image file name")),
    }
}

/// What `-f` and `--image-opts` may not do together.
fn format_or_options<'a>(args: &'a Args, format: &'static Flag) -> Result<(Option<&'a str>, bool)> {
    let (format, options) = (args.value(format), args.has(&flags::IMAGE_OPTS));
    if format.is_some() && options {
        bail!("--image-opts and --format are mutually exclusive");
    }
    Ok((format, options))
}
