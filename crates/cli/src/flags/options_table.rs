//! `docs/options.md`: every option and what this version does with it, kept true by a test.
//!
//! `UPDATE_GOLDEN=1 cargo test -p cowbell-cli options_table` writes the page anew.

use std::fmt::Write;
use std::path::Path;

use super::io::IO_COMMANDS;
use super::parse::ParseError;
use super::{Command, Flag, State, help, top};

const HEAD: &str = "\
# Options

Every command and option of the program, from the definitions that the parser reads. *Works* also under the drop-in names;
*cowbell* works under the name `cowbell` alone, and is unknown under the others; what is refused ends with the words shown and
status 1.
";

fn page() -> String {
    let mut out = HEAD.to_owned();
    section(&mut out, top::COWBELL.name, &top::COWBELL);
    out.push_str("\n## Commands of `io`\n\n| command | option | state |\n|---|---|---|\n");
    for command in &IO_COMMANDS {
        let Command { name, state, flags, .. } = &command.command;
        let _ = writeln!(out, "| `{name}` | | {} |", command_state(*state, name));
        for flag in *flags {
            let _ = writeln!(out, "| | {} | {} |", signature(flag), flag_state(flag));
        }
    }
    out
}

fn section(out: &mut String, path: &str, command: &'static Command) {
    let _ = writeln!(out, "\n## `{path}`\n");
    if command.state == State::Refused {
        let _ = writeln!(out, "{}.", command_state(command.state, command.name));
        return;
    }
    let only = if command.state == State::CowbellOnly { " Under the name `cowbell` alone." } else { "" };
    let _ = writeln!(out, "{}.{only}", command.summary);
    if !command.flags.is_empty() {
        out.push_str("\n| option | state |\n|---|---|\n");
    }
    for flag in command.flags {
        let _ = writeln!(out, "| {} | {} |", signature(flag), flag_state(flag));
    }
    for sub in command.commands {
        section(out, &format!("{path} {}", sub.name), sub);
    }
}

fn signature(flag: &Flag) -> String {
    format!("`{}`", help::signature(flag).replace('|', "\\|"))
}

fn flag_state(flag: &Flag) -> String {
    match flag.state {
        State::Ready => "works".to_owned(),
        State::CowbellOnly => "cowbell".to_owned(),
        State::Refused => format!("refused: `{}`", ParseError::NotAvailable(flag.display()).text()),
    }
}

fn command_state(state: State, name: &str) -> String {
    match state {
        State::Ready => "works".to_owned(),
        State::CowbellOnly => "cowbell".to_owned(),
        State::Refused => format!("refused: `{}`", crate::context::refusal(name)),
    }
}

#[test]
fn the_page_is_what_the_definitions_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/options.md");
    let now = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).expect("written");
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let first = now.lines().zip(recorded.lines()).find(|(a, b)| a != b);
    assert!(now == recorded, "docs/options.md is out of date; first difference (now, recorded): {first:?}");
}
