//! Help texts from the tables.

use std::fmt::Write;

use super::{Command, Flag, State};
use crate::face::Face;

/// Column at which explanations end: a terminal of 80.
const WIDTH: usize = 78;

/// What `COMMAND --help` prints. `path` is how the user calls the command.
pub fn text(command: &Command, path: &str, face: Face) -> String {
    let mut out = format!("{}.\n\nUsage: {path}", command.summary);
    if !command.flags.is_empty() {
        out.push_str(" [OPTIONS]");
    }
    if !command.operands.is_empty() {
        let _ = write!(out, " {}", command.operands);
    }
    out.push('\n');
    if !command.about.is_empty() {
        out.push('\n');
        wrap(&mut out, command.about, "");
    }
    if !command.commands.is_empty() {
        out.push_str("\nCommands:\n");
        for sub in command.commands.iter().filter(|sub| sub.is_offered(face)) {
            let note = if sub.state == State::Refused { " (not available yet)" } else { "" };
            let _ = writeln!(out, "  {:<14} {}{note}", sub.name, sub.summary);
        }
    }
    out.push_str("\nOptions:\n");
    for flag in command.flags.iter().filter(|flag| flag.state != State::CowbellOnly || face == Face::Cowbell)
    {
        let _ = writeln!(out, "  {}", signature(flag));
        wrap(&mut out, &explanation(flag), "      ");
    }
    if !command.commands.is_empty() {
        let _ = write!(out, "\n'{path} COMMAND --help' tells more about one command.\n");
    }
    out
}

/// `-f, --format FMT`.
pub fn signature(flag: &Flag) -> String {
    let mut names: Vec<String> = Vec::new();
    if flag.short != 0 {
        names.push(format!("-{}", char::from(flag.short)));
    }
    names.extend(flag.long.iter().map(|long| format!("--{long}")));
    let mut out = names.join(", ");
    if let Some(value) = flag.value.name() {
        let _ = write!(out, " {value}");
    }
    if let super::Value::Form(words) = flag.value {
        let _ = write!(out, "[={}]", words.join("|"));
    }
    out
}

/// The help text, with the values that are allowed and what is not there yet.
pub fn explanation(flag: &Flag) -> String {
    let mut out = flag.help.to_owned();
    if let super::Value::OneOf(_, words) = flag.value {
        let _ = write!(out, " One of: {}.", words.join(", "));
    }
    if let super::Value::Form(_) = flag.value {
        out.push_str(" A form can be given under the name cowbell.");
    }
    if flag.state == State::Refused {
        out.push_str(" Not available in this version.");
    }
    out
}

fn wrap(out: &mut String, text: &str, indent: &str) {
    for paragraph in text.split("\n\n") {
        let mut column = 0;
        for word in paragraph.split_whitespace() {
            let len = word.chars().count();
            if column == 0 {
                out.push_str(indent);
                column = indent.len();
            } else if column + 1 + len > WIDTH {
                let _ = write!(out, "\n{indent}");
                column = indent.len();
            } else {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += len;
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::img;

    #[test]
    fn options_of_cowbell_alone_are_hidden_under_the_drop_in_names() {
        let ours = text(&img::INFO, "cowbell img info", Face::Cowbell);
        let theirs = text(&img::INFO, "qemu-img info", Face::QemuImg);
        assert!(ours.contains("--policy") && !theirs.contains("--policy"));
        assert!(ours.lines().all(|line| line.len() <= 80), "{ours}");
    }
}
