//! Every option of the program, defined once.
//!
//! The tables are constant data: nothing is built when the program starts. The parser ([`parse`]), the help
//! texts ([`help`]), the shell completions ([`completions`]) and the manual page ([`manual`]) are all read off
//! them, so an option cannot be parsed without being documented, nor documented without being parsed.
//!
//! A flag is a `static`; commands list references to it, and the code asks for it by that same reference
//! (`args.value(&flags::img::FORMAT)`), so a misspelt option does not compile.

pub mod bitmap;
pub mod blocks;
pub mod completions;
pub mod help;
pub mod img;
pub mod io;
pub mod layers;
pub mod look;
pub mod manual;
#[cfg(test)]
mod options_table;
pub mod parse;
pub mod run;
pub mod top;

pub use parse::Args;

use crate::face::Face;

/// Whether a flag takes a value, and what the value is called in help texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// No value.
    None,
    /// One value, with its name.
    Required(&'static str),
    /// One value out of a few words; completions offer them.
    OneOf(&'static str, &'static [&'static str]),
    /// No value, or, under the name `cowbell` and only behind `=`, one out of a few words.
    Form(&'static [&'static str]),
    /// One value that names a file; completions offer files.
    File(&'static str),
}

impl Value {
    /// The value's name, if the flag takes one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Form(_) => None,
            Self::Required(name) | Self::OneOf(name, _) | Self::File(name) => Some(name),
        }
    }
}

/// What this version does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Ready,
    /// It is known, and refused by name: nothing is parsed and ignored.
    Refused,
    /// It works, and only under the name `cowbell`: the drop-in names keep to the reference's options.
    CowbellOnly,
}

/// One option.
#[derive(Debug)]
pub struct Flag {
    /// The short name, or 0.
    pub short: u8,
    /// Long names; the first is the one that help shows, the others are accepted.
    pub long: &'static [&'static str],
    /// Its value.
    pub value: Value,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// Whether it works yet.
    pub state: State,
}

impl Flag {
    /// How a message names the flag: its first long name, else its short one.
    pub fn display(&self) -> String {
        match self.long.first() {
            Some(long) => format!("--{long}"),
            None => format!("-{}", char::from(self.short)),
        }
    }
}

/// A command, or the program itself: its options and what may follow.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// One line for lists of commands.
    pub summary: &'static str,
    /// The operands as usage texts show them.
    pub operands: &'static str,
    /// More for the manual page, in paragraphs separated by empty lines.
    pub about: &'static str,
    /// Its options.
    pub flags: &'static [&'static Flag],
    /// Its subcommands.
    pub commands: &'static [&'static Command],
    /// Whether this version has it.
    pub state: State,
}

impl Command {
    /// The subcommand of this name.
    pub fn find(&self, name: &str) -> Option<&'static Command> {
        self.commands.iter().copied().find(|command| command.name == name)
    }

    /// Whether the command exists under this name of the program.
    pub fn is_offered(&self, face: Face) -> bool {
        self.state != State::CowbellOnly || face == Face::Cowbell
    }
}

/// A flag that works.
pub const fn flag(short: u8, long: &'static [&'static str], value: Value, help: &'static str) -> Flag {
    Flag { short, long, value, help, state: State::Ready }
}

/// A flag of `cowbell` alone.
pub const fn cowbell(long: &'static [&'static str], value: Value, help: &'static str) -> Flag {
    Flag { short: 0, long, value, help, state: State::CowbellOnly }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &'static Command, f: &mut impl FnMut(&'static Command)) {
        f(command);
        command.commands.iter().for_each(|c| each(c, f));
    }

    #[test]
    fn no_command_has_two_flags_of_one_name() {
        each(&top::COWBELL, &mut |command| {
            let mut shorts: Vec<u8> =
                command.flags.iter().map(|f| f.short).filter(|short| *short != 0).collect();
            let mut longs: Vec<&str> = command.flags.iter().flat_map(|f| f.long.iter().copied()).collect();
            let (n, m) = (shorts.len(), longs.len());
            shorts.sort_unstable();
            shorts.dedup();
            longs.sort_unstable();
            longs.dedup();
            assert_eq!((shorts.len(), longs.len()), (n, m), "{}", command.name);
        });
    }

    #[test]
    fn every_flag_has_a_name_and_a_help_text() {
        each(&top::COWBELL, &mut |command| {
            for flag in command.flags {
                assert!(flag.short != 0 || !flag.long.is_empty(), "{}", command.name);
                assert!(flag.help.ends_with('.'), "{}: {}", command.name, flag.help);
            }
        });
    }
}
