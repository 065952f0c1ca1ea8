//! The options of the program itself.

use super::{Command, Flag, State, Value, flag};
use crate::flags::img::{HELP, IMG, VERSION};
use crate::flags::io::IO;
use crate::flags::run::RUN;

/// `--from` of demo.
pub static FROM: Flag =
    flag(0, &["from"], Value::File("PATH"), "Make the base image from the files below PATH.");
/// `--keep` of demo.
pub static KEEP: Flag = flag(0, &["keep"], Value::None, "Leave the images where they are at the end.");

/// `demo`.
pub static DEMO: Command = Command {
    name: "demo",
    summary: "Show in under a minute what the program can do, with real files",
    operands: "",
    about: "Everything is made in a temporary directory, which is removed at the end.",
    flags: &[&HELP, &FROM, &KEEP],
    commands: &[],
    state: State::Ready,
};

/// `install-links`.
pub static INSTALL_LINKS: Command = Command {
    name: "install-links",
    summary: "Make the drop-in names qemu-img and qemu-io",
    operands: "DIR",
    about: "Makes symbolic links to this program in DIR. A name that exists there and is no link to this \
            program is left alone, and reported.",
    flags: &[&HELP],
    commands: &[],
    state: State::Ready,
};

/// `completions`.
pub static COMPLETIONS: Command = Command {
    name: "completions",
    summary: "Print the completions for a shell: bash, zsh or fish",
    operands: "SHELL",
    about: "",
    flags: &[&HELP],
    commands: &[],
    state: State::Ready,
};

/// `manual`.
pub static MANUAL: Command = Command {
    name: "manual",
    summary: "Print the manual page, for man -l -",
    operands: "",
    about: "",
    flags: &[&HELP],
    commands: &[],
    state: State::Ready,
};

/// The program.
pub static COWBELL: Command = Command {
    name: "cowbell",
    summary: "Disk images you can trust, machines you can rewind",
    operands: "COMMAND ...",
    about: "Called as qemu-img or qemu-io, the program is that tool.",
    flags: &[&HELP, &VERSION],
    commands: &[&IMG, &IO, &RUN, &DEMO, &INSTALL_LINKS, &COMPLETIONS, &MANUAL],
    state: State::Ready,
};
