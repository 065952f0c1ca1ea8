//! `-T`: which events are told, and where.
//!
//! `[enable=]PATTERN[,events=FILE][,file=FILE]`: patterns and the lines of files switch events on, or off with a `-`
//! before them, in the order in which they are given. Lines go to standard error unless a file is named. The names of
//! all events of the reference are known, so that a script's patterns mean the same; those that nothing here raises
//! stay silent.

use std::fs::File;
use std::io::Write;

use anyhow::{Result, anyhow, bail};
use cowbell_block::names;
use cowbell_block::naming::split_option_list;
use cowbell_block::trace::{Sink, Trace, TraceEvent, TraceSet};
use cowbell_host::path_of;

use crate::context::Context;
use crate::face::Face;
use crate::flags::{Args, img};
use crate::open::reason;
use crate::out::{Out, complain};

/// The events of the reference's tools, in its order, one per line.
const NAMES: &str = include_str!("trace/names.txt");

/// What several `-T` come to.
#[derive(Default)]
struct Wanted {
    on: TraceSet,
    file: Option<String>,
}

/// What a command that was given `-T` goes on with.
pub enum Traced {
    /// Help was asked for, and printed.
    Help,
    /// The log, if there is one.
    Log(Option<Trace>),
}

/// Understands all `-T` of a command line.
///
/// # Errors
/// An option that does not exist, or a file that cannot be used.
pub fn take(cx: &Context, args: &Args) -> Result<Traced> {
    let mut wanted = Wanted::default();
    for list in args.values(&img::TRACE) {
        if wanted.take_list(cx, list)? {
            return Ok(Traced::Help);
        }
    }
    let sink: Sink = match &wanted.file {
        Some(name) => log_file(name)?,
        None if wanted.on.is_empty() => return Ok(Traced::Log(None)),
        None => Box::new(|lines| {
            // Whoever closed it does not want to know.
            let _ = std::io::stderr().write_all(lines);
        }),
    };
    Ok(Traced::Log(Some(Trace::new(wanted.on, sink))))
}

fn log_file(name: &str) -> Result<Sink> {
    let file = File::create(path_of(name));
    let mut file = Some(file.map_err(|e| anyhow!("Error opening logfile {name}: {}", reason(&e)))?);
    let name = name.to_owned();
    Ok(Box::new(move |lines| {
        if let Some(open) = &mut file
            && let Err(e) = open.write_all(lines)
        {
            complain(format_args!("the log {name} ends here: {}", reason(&e)));
            file = None;
        }
    }))
}

impl Wanted {
    /// Takes one list; `true`: help was asked for, and printed.
    fn take_list(&mut self, cx: &Context, list: &str) -> Result<bool> {
        let (mut enable, mut events) = (None, None);
        for (index, (key, value)) in pairs(cx, list).into_iter().enumerate() {
            match key.as_str() {
                "enable" => enable = Some(value),
                "events" => events = Some(value),
                "file" => self.file = Some(value),
                "help" | "?" if index > 0 => {
                    Out::new().put("trace options:\n  enable=<str>\n  events=<str>\n  file=<str>\n");
                    return Err(crate::context::Reported.into());
                }
                other => bail!("Invalid parameter '{other}'"),
            }
        }
        if let Some(pattern) = enable {
            if ["help", "?"].contains(&pattern.as_str()) {
                Out::new().put(&list_of_names(cx.face));
                return Ok(true);
            }
            self.switch(cx, &pattern, "");
        }
        if let Some(name) = events {
            self.take_file(cx, &name)?;
        }
        Ok(false)
    }

    fn take_file(&mut self, cx: &Context, name: &str) -> Result<()> {
        let content = std::fs::read(path_of(name)).map_err(|e| {
            // The reference puts no space behind the tool's name here.
            complain(format_args!("{}:{name}: {}", cx.name, reason(&e)));
            crate::context::Reported
        })?;
        for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = names::from_bytes(line);
            if !line.is_empty() && !line.starts_with('#') {
                self.switch(cx, &line, &format!("{name}:{}", number + 1));
            }
        }
        Ok(())
    }

    /// Switches what `pattern` names on, or off; `place` is where it was found, if in a file.
    fn switch(&mut self, cx: &Context, pattern: &str, place: &str) {
        let (bare, off) = match pattern.strip_prefix('-') {
            Some(bare) => (bare, true),
            None => (pattern, false),
        };
        let warn = |what: &str| match place {
            "" => cx.report(format_args!("warning: {what}")),
            place => complain(format_args!("{}:{place}: warning: {what}", cx.name)),
        };
        let raised = TraceEvent::ALL.iter().filter(|event| matches(bare, event.name()));
        let mut found = false;
        for event in raised {
            found = true;
            if off { self.on.remove(*event) } else { self.on.insert(*event) }
        }
        let is_pattern = bare.contains(['*', '?']);
        if found || is_pattern {
            return;
        }
        if !NAMES.lines().any(|name| name == bare) {
            warn(&format!("trace event '{bare}' does not exist"));
        } else if cx.face == Face::Cowbell {
            warn(&format!("nothing here raises the trace event '{bare}'"));
        }
    }
}

/// The options of a list. The first may be a bare pattern; a later one without a value is a switch, as in every list
/// of the reference, which warns.
fn pairs(cx: &Context, list: &str) -> Vec<(String, String)> {
    let mut rest = list;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (item, after) = first_item(rest);
        rest = after;
        match item.split_once('=') {
            Some(_) => {
                let pair = split_option_list(&item).into_iter().next();
                found.extend(pair.map(|(key, value)| (key.to_owned(), value)));
            }
            None if found.is_empty() => found.push(("enable".to_owned(), item.replace(",,", ","))),
            None if ["help", "?"].contains(&item.as_str()) => found.push((item, String::new())),
            None => {
                let (key, value) = cx.short_form(&item);
                found.push((key, value.to_owned()));
            }
        }
    }
    found
}

/// Text up to the first comma that is not doubled, and what follows that comma.
fn first_item(list: &str) -> (String, &str) {
    let bytes = list.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b',', Some(b',')) => at += 2,
            (b',', _) => return (list[..at].to_owned(), &list[at + 1..]),
            _ => at += 1,
        }
    }
    (list.to_owned(), "")
}

/// What `-T help` prints: the drop-in names know what the reference knows, our own name what is raised.
fn list_of_names(face: Face) -> String {
    match face {
        Face::Cowbell => TraceEvent::ALL.iter().map(|event| format!("{}\n", event.name())).collect(),
        Face::QemuImg | Face::QemuIo => NAMES.to_owned(),
    }
}

/// Whether a name fits a pattern with `*` for anything and `?` for one character. Linear in both for all patterns that
/// have one `*`, and never more than their product.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` stands, and up to where it reaches for now.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(c), _) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            (_, Some((at, reach))) => {
                star = Some((at, reach + 1));
                p = at + 1;
                n = reach + 1;
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_shells_match() {
        for (pattern, name, expect) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("qcow2_*", "qcow2_cache_get", true),
            ("qcow2_*", "xqcow2_", false),
            ("blk_?oot_*h", "blk_root_attach", true),
            ("blk_?oot_*h", "blk_root_detachx", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*a", "aaa", true),
            ("BLK*", "blk_root_attach", false),
        ] {
            assert_eq!(matches(pattern, name), expect, "{pattern} {name}");
        }
    }

    #[test]
    fn the_names_are_the_references_and_all_of_ours_are_among_them() {
        assert_eq!(NAMES.lines().count(), 441);
        for event in TraceEvent::ALL {
            assert!(NAMES.lines().any(|name| name == event.name()), "{}", event.name());
        }
    }

    #[test]
    fn commas_are_doubled_in_values() {
        assert_eq!(first_item("a,b"), ("a".to_owned(), "b"));
        assert_eq!(first_item("a,,b,c"), ("a,,b".to_owned(), "c"));
        assert_eq!(first_item(","), (String::new(), ""));
    }
}
