//! `io`: single requests to an image, from `-c`, a script, or a person.
//!
//! | module | duty |
//! |---|---|
//! | [`session`] | the open image, requests in flight, what is printed where |
//! | [`prompt`] | lines from a script or a person |
//! | [`shell`] | lines into words, words to commands, help |
//! | [`requests`] | read, write, discard, and their asynchronous kin |
//! | [`inspect`] | alloc, map, length, info, truncate |
//! | [`reopen`] | changing how the image is open |
//! | [`opening`] | open, close, and the options of both |
//! | [`breaks`] | breakpoints of `blkdebug` |
//! | [`zones`] | commands about zones, refused |
//! | [`figures`] | the lines about sizes and times |

mod breaks;
mod figures;
mod inspect;
mod opening;
mod prompt;
mod reopen;
mod requests;
mod session;
mod shell;
mod words;
mod zones;

use std::io::Write;

use anyhow::Result;
use cowbell_host::block_on;

use crate::context::Context;
use crate::face::{Face, version_text};
use crate::flags::parse::{Order, ParseError, parse};
use crate::flags::{Args, img, io as flags};
use crate::out::{Out, complain};
pub use opening::overlay;
use prompt::Lines;
use session::Session;

/// Runs the tool.
///
/// # Errors
/// Reported by the caller, with status 1.
pub fn run(cx: &mut Context, args: Vec<String>) -> Result<u8> {
    let args = match parse(&flags::IO, cx.face, Order::Permute, args) {
        Ok(args) => args,
        Err(e) => return Ok(bad_usage(cx, &e)),
    };
    if args.has(&img::HELP) {
        Out::new().put(&cx.help(&flags::IO));
        return Ok(0);
    }
    if args.has(&img::VERSION) {
        Out::new().put(&version_text(cx.face, &cx.name));
        return Ok(0);
    }
    if args.operands.len() > 1 {
        print!("{}", cx.help(&flags::IO));
        return Ok(1);
    }
    if cx.take_trace(&args)? {
        return Ok(0);
    }
    cx.take_policy(&args)?;
    if cx.take_objects(&args)? {
        return Ok(0);
    }
    let settings = opening::Settings::of_program(&args)?;
    block_on(drive(cx, &args, settings))
}

/// The reference prints its usage after the C library's message.
fn bad_usage(cx: &Context, error: &ParseError) -> u8 {
    cx.report(error.text());
    let known = matches!(error, ParseError::NotAvailable(_));
    match cx.face {
        Face::Cowbell => complain(cx.hint()),
        _ if known => {}
        _ => print!("{}", cx.help(&flags::IO)),
    }
    1
}

async fn drive(cx: &Context, args: &Args, settings: opening::Settings) -> Result<u8> {
    let mut session = Session::new(cx, args.has(&flags::MISALIGN));
    if let Some(name) = args.operands.first() {
        session.open(name, &settings).await?;
    }
    let commands: Vec<&str> = args.values(&flags::CMD).collect();
    let mut failed = false;
    if commands.is_empty() {
        failed = read_lines(&mut session).await?;
    } else {
        for line in commands {
            let after = session.run_line(line).await;
            failed |= after.failed;
            if after.quit {
                break;
            }
        }
    }
    let closed = session.close().await;
    // Told before what was printed is written out, as by the reference, whose output is collected in the same way.
    failed |= opening::tell_closed(cx, closed).is_err();
    session.flush();
    Ok(u8::from(failed))
}

/// Reads commands from standard input; whether one failed.
async fn read_lines(session: &mut Session<'_>) -> Result<bool> {
    let mut failed = false;
    let mut lines = Lines::new(session.cx.face)?;
    while let Some(line) = lines.next(session)? {
        let after = session.run_line(&line).await;
        // As in the reference, what is done by now is told before the next prompt.
        session.give_turns().await;
        failed |= after.failed;
        if after.quit {
            return Ok(failed);
        }
        std::io::stderr().flush()?;
    }
    Ok(failed)
}
