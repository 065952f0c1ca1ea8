//! The options of the commands that move data between the layers of a backing chain: `commit` and `rebase`.

use super::img::{FORMAT, HELP, IMAGE_CACHE, IMAGE_OPTS, OBJECT, OUTPUT_MORE, POLICY, PROGRESS, QUIET, RATE};
use super::{Command, Flag, State, Value, flag};

/// `-b` of commit.
pub static BASE: Flag = flag(
    b'b',
    &["base"],
    Value::File("BASE"),
    "Commit down to this image of the backing chain, instead of the next one; implies -d.",
);
/// `-d` of commit.
pub static DROP: Flag =
    flag(b'd', &["drop"], Value::None, "Leave FILE as it is: somebody is about to delete it.");

/// `img commit`.
pub static COMMIT: Command = Command {
    name: "commit",
    summary: "Move an image's changes into its backing file",
    operands: "FILE",
    about: "The backing file becomes as long as FILE if it was shorter. When its new content is durable, FILE is \
            emptied. An interrupted commit loses nothing: FILE still holds all its changes, and can be committed \
            again. Other images on the same backing file change what they read.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &FORMAT,
        &IMAGE_OPTS,
        &IMAGE_CACHE,
        &BASE,
        &DROP,
        &RATE,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
