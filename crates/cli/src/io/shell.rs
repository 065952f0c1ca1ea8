//! Lines into words, words to commands, and help.

use std::time::Duration;

use super::session::{After, Session};
use super::words::c_number;
use super::{breaks, inspect, opening, reopen, requests, zones};
use crate::face::Face;
use crate::flags::help::signature;
use crate::flags::io::{IO_COMMANDS, IoCommand, Needs};
use crate::flags::parse::{Order, offered, parse};
use crate::flags::{Args, State, Value};
use crate::out::complain;

/// From here on no number is a signal: the kernel's last is 64, and the reference takes one more.
const SIGNAL_MAX: u64 = 66;

/// What a command came to: fine, or failed after its message was printed.
pub(super) type Done = Result<(), Failed>;

/// A command failed; the message was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed;

impl Session<'_> {
    /// Runs one line.
    pub(super) async fn run_line(&mut self, line: &str) -> After {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let Some((name, rest)) = words.split_first() else { return After::default() };
        let Some(command) = self.find(name) else {
            complain(format_args!("command \"{name}\" not found"));
            return After { failed: true, quit: false };
        };
        let done = self.run_command(command, name, rest).await;
        if self.is_crowded() {
            self.give_turns().await;
        }
        self.flush_if_live();
        self.cx.flush_trace();
        After { failed: done.is_err(), quit: command.command.name == "quit" }
    }

    async fn run_command(&mut self, command: &'static IoCommand, name: &str, words: &[&str]) -> Done {
        if command.needs != Needs::Nothing && self.image().is_none() {
            complain("no file open, try 'help open'");
            return Err(Failed);
        }
        check_count(command, self.cx.face, name, words.len())?;
        if command.needs == Needs::Writable && self.image().is_some_and(|image| image.node().is_read_only()) {
            self.cx.report("Block node is read-only");
            return Err(Failed);
        }
        let words = words.iter().map(|word| (*word).to_owned());
        let face = self.cx.face;
        if !command.command.flags.iter().any(|flag| offered(flag, face)) {
            return self.dispatch(command, &Args::of_operands(words.collect())).await;
        }
        let args = match parse(&command.command, face, Order::Permute, words) {
            Ok(args) => args,
            Err(e) => {
                complain(format_args!("{name}: {}", e.text()));
                return self.bad_usage(command, name);
            }
        };
        self.dispatch(command, &args).await
    }

    async fn dispatch(&mut self, command: &'static IoCommand, args: &Args) -> Done {
        match command.command.name {
            "abort" => {
                self.cx.flush_trace();
                std::process::abort()
            }
            "aio_flush" => requests::aio_flush(self).await,
            "aio_read" => requests::aio_read(self, command, args),
            "aio_write" => requests::aio_write(self, command, args),
            "alloc" => inspect::alloc(self, args).await,
            "blkdebug_state" => breaks::state(self),
            "break" => breaks::set(self, args),
            "close" => opening::close(self).await,
            "discard" => requests::discard(self, command, args).await,
            "flush" => requests::flush(self).await,
            "help" => self.help(args),
            "info" => inspect::info(self).await,
            "length" => inspect::length(self),
            "map" => inspect::map(self).await,
            "open" => opening::open_command(self, command, args).await,
            "quit" => Ok(()),
            "read" => requests::read(self, command, args).await,
            "readv" => requests::readv(self, command, args).await,
            "remove_break" => breaks::remove(self, args),
            "resume" => breaks::resume(self, args).await,
            "reopen" => reopen::reopen(self, command, args).await,
            "sigraise" => self.sigraise(args),
            "sleep" => self.sleep(args).await,
            "truncate" => inspect::truncate(self, command, args).await,
            "wait_break" => breaks::wait(self, command, args).await,
            zone if zone.starts_with("zone_") => zones::refuse(self, zone, args),
            "write" => requests::write(self, command, args).await,
            "writev" => requests::writev(self, command, args).await,
            other => unreachable!("the table has no command {other}"),
        }
    }

    fn find(&self, name: &str) -> Option<&'static IoCommand> {
        let called = |command: &&IoCommand| command.command.name == name || command.alias == name;
        IO_COMMANDS.iter().filter(|command| command.is_offered(self.cx.face)).find(called)
    }

    /// The usage line, after a mistake.
    pub(super) fn bad_usage(&self, command: &IoCommand, name: &str) -> Done {
        self.put(&usage_line(command, name));
        Err(Failed)
    }

    /// Prints a message and fails.
    pub(super) fn fail(&self, text: &str) -> Done {
        self.put(text);
        Err(Failed)
    }

    fn help(&self, args: &Args) -> Done {
        let Some(name) = args.operands.first() else {
            let offered = IO_COMMANDS.iter().filter(|command| command.is_offered(self.cx.face));
            offered.for_each(|command| self.put(&usage_line(command, command.command.name)));
            self.put("\nUse 'help commandname' for extended help.\n");
            return Ok(());
        };
        let Some(command) = self.find(name) else {
            return self.fail(&format!("command {name} not found\n"));
        };
        self.put(&usage_line(command, name));
        let more = &command.command;
        if !more.about.is_empty() {
            self.put(&format!("\n {}\n", more.about));
        }
        let flags: Vec<_> = more.flags.iter().filter(|flag| offered(flag, self.cx.face)).collect();
        if !flags.is_empty() {
            self.put("\n");
        }
        for flag in flags {
            self.put(&format!(" {}, -- {}\n", signature(flag), flag.help.trim_end_matches('.')));
        }
        Ok(())
    }

    async fn sleep(&self, args: &Args) -> Done {
        let Some(ms) = args.operands.first().and_then(|word| c_number(word)) else {
            let word = args.operands.first().map_or("", String::as_str);
            return self.fail(&format!("{word} is not a valid number\n"));
        };
        cowbell_host::sleep(Duration::from_millis(ms)).await;
        Ok(())
    }

    fn sigraise(&self, args: &Args) -> Done {
        let word = args.operands.first().map_or("", String::as_str);
        let number = match super::words::number(word) {
            Ok(number) => number,
            Err(text) => return self.fail(&text),
        };
        if number == 0 {
            // Signal 0 asks whether it could be raised, and raises nothing.
            return Ok(());
        }
        let signal = i32::try_from(number).ok().and_then(rustix::process::Signal::from_named_raw);
        let Some(signal) = signal else {
            let text = match number {
                SIGNAL_MAX.. => "is too large to be a valid signal",
                _ => "is not a signal that can be raised",
            };
            return self.fail(&format!("signal argument '{word}' {text}\n"));
        };
        // What was printed belongs to what happened before the signal.
        self.flush();
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, signal).map_err(|_| Failed)
    }
}

fn usage_line(command: &IoCommand, name: &str) -> String {
    let space = if command.usage.is_empty() { "" } else { " " };
    format!("{name}{space}{} -- {}\n", command.usage, command.command.summary)
}

fn check_count(command: &IoCommand, face: Face, name: &str, count: usize) -> Done {
    // What only `cowbell` offers comes on top.
    let own =
        command.command.flags.iter().filter(|flag| flag.state == State::CowbellOnly && offered(flag, face));
    let own: usize = own.map(|flag| if flag.value == Value::None { 1 } else { 2 }).sum();
    let (min, max) = (command.words_min, command.words_max.saturating_add(own));
    if count >= min && count <= max {
        return Ok(());
    }
    let expected = match (min, max) {
        (min, usize::MAX) => format!("at least {min}"),
        (min, max) if min == max => format!("{min}"),
        (min, max) => format!("between {min} and {max}"),
    };
    complain(format_args!("bad argument count {count} to {name}, expected {expected} arguments"));
    Err(Failed)
}
