//! The program `cowbell`, which is `qemu-img` or `qemu-io` when it is called by that name.
//!
//! | module | duty |
//! |---|---|
//! | [`face`] | the name it was called by, and what follows from it |
//! | [`flags`] | every option, defined once: parser, help, completions, manual |
//! | [`context`], [`out`] | reporting, policy; standard output |
//! | [`drivers`], [`open`] | the registry; opening images as options say |
//! | [`img`], [`io`] | the tools, one file per command |
//! | [`mod@run`] | the machine |
//! | [`size`], [`json`] | forms of output and input |
//! | [`mod@trace`] | which events are told, and where |
//! | [`demo`], [`links`] | the rest |
//!
//! The program parses, calls the libraries and prints. It starts no thread and no runtime, and builds no table:
//! a command that only looks at an image is over in about a millisecond.
#![forbid(unsafe_code)]

mod absent;
mod context;
mod demo;
mod drivers;
mod face;
mod flags;
mod img;
mod io;
mod json;
mod links;
mod meter;
mod object;
mod open;
mod out;
mod pace;
mod run;
mod size;
mod trace;
mod zone;

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use cowbell_host::name_of;

use context::{BadOption, Context, refusal, usage};
use face::Face;
use flags::parse::{Order, parse};
use flags::{completions, manual, top};
use out::{Out, complain};

fn main() -> ExitCode {
    let mut argv = std::env::args_os();
    let called = argv.next();
    let name = face::program_name(called.as_deref());
    let path = called.map_or_else(|| name.clone(), name_of);
    let face = Face::of(&name);
    let args: Vec<String> = argv.map(name_of).collect();
    let status = match face {
        Face::Cowbell => run_top(&name, args),
        Face::QemuImg => tool(face, &name, &path, args, img::run),
        Face::QemuIo => tool(face, &name, &path, args, io::run),
    };
    ExitCode::from(status)
}

/// Runs a command and reports how it failed.
fn tool(
    face: Face,
    name: &str,
    path: &str,
    args: Vec<String>,
    run: impl FnOnce(&mut Context, Vec<String>) -> Result<u8>,
) -> u8 {
    let mut cx = match Context::new(face, name.to_owned(), path.to_owned()) {
        Ok(cx) => cx,
        Err(e) => {
            complain(format_args!("{name}: {e}"));
            return 1;
        }
    };
    // A host that refuses this lets a file that becomes too large end the program, which is no worse than before.
    let _ = cowbell_host::signal::ignore_file_size_limit();
    let status = match run(&mut cx, args) {
        Ok(status) => status,
        Err(e) => {
            cx.report_error(&e);
            1
        }
    };
    cx.flush_trace();
    status
}

/// The program under its own name.
fn run_top(name: &str, args: Vec<String>) -> u8 {
    tool(Face::Cowbell, name, name, args, |cx, args| {
        let parsed = parse(&top::COWBELL, cx.face, Order::StopAtOperand, args).map_err(BadOption)?;
        if parsed.has(&flags::img::HELP) {
            Out::new().put(&cx.help(&top::COWBELL));
            return Ok(0);
        }
        if parsed.has(&flags::img::VERSION) {
            Out::new().put(&face::version_text(cx.face, &cx.name));
            return Ok(0);
        }
        let mut words = parsed.operands.into_iter();
        let Some(word) = words.next() else {
            return Err(usage("no command given"));
        };
        let Some(command) = top::COWBELL.find(&word) else {
            return Err(usage(format!("there is no command '{word}'")));
        };
        cx.path = format!("{} {word}", cx.path);
        let rest: Vec<String> = words.collect();
        match command.name {
            "img" => img::run(cx, rest),
            "io" => io::run(cx, rest),
            "run" => run::run(cx, rest),
            _ => run_small(cx, command, rest),
        }
    })
}

/// The commands that are neither of the tools.
fn run_small(cx: &mut Context, command: &'static flags::Command, args: Vec<String>) -> Result<u8> {
    let parsed = parse(command, cx.face, Order::Permute, args).map_err(BadOption)?;
    if parsed.has(&flags::img::HELP) {
        Out::new().put(&cx.help(command));
        return Ok(0);
    }
    let mut operands = parsed.operands.iter();
    let operand = if command.operands.is_empty() { None } else { operands.next() };
    if let Some(more) = operands.next() {
        return Err(usage(format!("unexpected argument '{more}'")));
    }
    let operand = || operand.ok_or_else(|| usage(format!("{} is missing", command.operands)));
    match command.name {
        "demo" => demo::run(cx, &parsed),
        "install-links" => links::install(operand()?.as_ref()),
        "manual" => {
            Out::new().put(&manual::page());
            Ok(0)
        }
        "completions" => {
            let shell = operand()?;
            let script = completions::script(shell).ok_or_else(|| {
                anyhow!("there are completions for {}, not for '{shell}'", completions::SHELLS.join(", "))
            })?;
            Out::new().put(&script);
            Ok(0)
        }
        other => bail!("{}", refusal(other)),
    }
}
