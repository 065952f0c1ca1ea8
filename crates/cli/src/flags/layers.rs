//! The options of the commands that move data between the layers of a backing chain: `commit` and `rebase`.

use super::img::{
    BACKING_FORMAT, CACHES, FORCE_SHARE, FORMAT, HELP, IMAGE_CACHE, IMAGE_OPTS, OBJECT, OUTPUT_MORE, POLICY,
    PROGRESS, QUIET, RATE,
};
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

/// `-b` of rebase.
pub static NEW_BACKING: Flag = flag(
    b'b',
    &["backing"],
    Value::File("FILE"),
    "The new backing file, named as seen from the image's directory; an empty name for none.",
);
/// `-u` of rebase.
pub static NAME_ONLY: Flag = flag(
    b'u',
    &["backing-unsafe"],
    Value::None,
    "Change only the stored name: the new backing file has the same content, or is to be taken as it is.",
);
/// `-T` of rebase.
pub static BACKING_CACHE: Flag = flag(
    b'T',
    &["backing-cache"],
    Value::OneOf("CACHE", CACHES),
    "Cache mode of the new backing file (default: writeback).",
);
/// `-c` of rebase.
pub static REBASE_COMPRESS: Flag =
    flag(b'c', &["compress"], Value::None, "Store compressed what has to be copied, if the format can.");

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

/// `img rebase`.
pub static REBASE: Command = Command {
    name: "rebase",
    summary: "Change an image's backing file",
    operands: "FILE",
    about: "What FILE would read differently on the new backing file is copied into it first; then the name changes, \
            by one write. An interrupted rebase leaves FILE on its old backing file with its content.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &FORMAT,
        &IMAGE_OPTS,
        &IMAGE_CACHE,
        &NEW_BACKING,
        &BACKING_FORMAT,
        &BACKING_CACHE,
        &NAME_ONLY,
        &REBASE_COMPRESS,
        &FORCE_SHARE,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
