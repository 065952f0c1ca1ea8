//! The manual page from the tables, in roff.

use std::fmt::Write;

use super::{Command, State, help, top};

/// The page, to be read with `man -l`.
pub fn page() -> String {
    let mut out = format!(
        ".TH COWBELL 1 \"\" \"cowbell {}\" \"User Commands\"\n.SH NAME\ncowbell \\- {}\n.SH SYNOPSIS\n",
        env!("CARGO_PKG_VERSION"),
        escape("disk images you can trust")
    );
    for name in ["cowbell", "qemu-img", "qemu-io"] {
        let _ = writeln!(out, ".B {}\n[OPTIONS] ...\n.br", escape(name));
    }
    let _ = writeln!(out, ".SH DESCRIPTION\n{}", escape(top::COWBELL.about));
    section(&mut out, "cowbell", &top::COWBELL);
    out.push_str(".SH ENVIRONMENT\n.TP\n.B COWBELL_POLICY\n");
    let text = "trust, confine or none: what an image may make the program open besides itself, where no \
                --policy is given. Under the drop-in names the default is trust, otherwise confine.";
    let _ = writeln!(out, "{}", escape(text));
    out
}

fn section(out: &mut String, path: &str, command: &'static Command) {
    let _ = writeln!(out, ".SH {}", escape(&path.to_uppercase()));
    let _ = writeln!(out, ".B {}\n[OPTIONS] {}\n.PP", escape(path), escape(command.operands));
    let _ = writeln!(out, "{}.", escape(command.summary));
    if !command.about.is_empty() && command.name != top::COWBELL.name {
        let _ = writeln!(out, ".PP\n{}", escape(command.about));
    }
    for flag in command.flags {
        let _ =
            writeln!(out, ".TP\n.B {}\n{}", escape(&help::signature(flag)), escape(&help::explanation(flag)));
    }
    let refused: Vec<_> =
        command.commands.iter().filter(|sub| sub.state == State::Refused).map(|sub| sub.name).collect();
    if !refused.is_empty() {
        let _ = writeln!(out, ".PP\nNot available in this version: {}.", escape(&refused.join(", ")));
    }
    for sub in command.commands.iter().filter(|sub| sub.state != State::Refused) {
        section(out, &format!("{path} {}", sub.name), sub);
    }
}

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_text_is_taken_for_a_request() {
        const REQUESTS: [&str; 6] = [".TH ", ".SH ", ".B ", ".TP", ".PP", ".br"];
        for line in page().lines().filter(|line| line.starts_with(['.', '\''])) {
            assert!(REQUESTS.iter().any(|request| line.starts_with(request)), "{line}");
        }
    }
}
