//! The options of the commands that change an image in its place: `snapshot`, `resize`, `amend`.

use super::super::{Command, Flag, State, Value, cowbell, flag};
use super::{CACHES, FORCE_SHARE, FORMAT, HELP, IMAGE_OPTS, OBJECT, OUTPUT_MORE, POLICY, PROGRESS, QUIET};

/// `-l` of snapshot.
pub static SNAPSHOT_LIST: Flag = flag(b'l', &["list"], Value::None, "List the snapshots (the default).");
/// `--tree` of snapshot.
pub static SNAPSHOT_TREE: Flag = cowbell(
    &["tree"],
    Value::None,
    "Show who came from whom, and what each holds alone (free without it) and together with others.",
);
/// `-c` of snapshot.
pub static SNAPSHOT_CREATE: Flag =
    flag(b'c', &["create"], Value::Required("NAME"), "Make a snapshot of the disk as it is.");
/// `-a` of snapshot.
pub static SNAPSHOT_APPLY: Flag = flag(
    b'a',
    &["apply"],
    Value::Required("SNAPSHOT"),
    "Make the disk what it was when the snapshot with this id or name was taken; what it is now is lost.",
);
/// `-d` of snapshot.
pub static SNAPSHOT_DELETE: Flag =
    flag(b'd', &["delete"], Value::Required("NAME"), "Delete the first snapshot with this name.");
/// `img snapshot`.
pub static SNAPSHOT: Command = Command {
    name: "snapshot",
    summary: "Make, apply and delete internal snapshots",
    operands: "FILE",
    about: "Each change happens as a whole or not at all, also when the power fails.",
    flags: &[
        &HELP,
        &QUIET,
        &FORMAT,
        &IMAGE_OPTS,
        &FORCE_SHARE,
        &OBJECT,
        &SNAPSHOT_LIST,
        &SNAPSHOT_TREE,
        &SNAPSHOT_CREATE,
        &SNAPSHOT_APPLY,
        &SNAPSHOT_DELETE,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// `--preallocation` of resize.
pub static PREALLOCATION: Flag = flag(
    0,
    &["preallocation"],
    Value::OneOf("MODE", &["off", "metadata", "falloc", "full"]),
    "Storage that the new part gets at once.",
);
/// `--shrink` of resize.
pub static SHRINK: Flag =
    flag(0, &["shrink"], Value::None, "Allow the new size to be smaller: what lies beyond it is lost.");
/// `-o` of amend.
pub static AMEND_OPTIONS: Flag = flag(
    b'o',
    &["options"],
    Value::Required("OPTS"),
    "What is to change, name=value separated by commas; 'help' lists the options.",
);
/// `-t` where one image is changed.
pub static IMAGE_CACHE: Flag =
    flag(b't', &["cache"], Value::OneOf("CACHE", CACHES), "Cache mode of the image (default: writeback).");
/// `--force` of amend.
pub static FORCE: Flag = flag(
    0,
    &["force"],
    Value::None,
    "Also changes after which the data may be out of reach, like erasing the last key.",
);
/// `img resize`.
pub static RESIZE: Command = Command {
    name: "resize",
    summary: "Change an image's size",
    operands: "FILE [+|-]SIZE",
    about: "With a sign the size changes by SIZE, otherwise it becomes SIZE. A cut on the way leaves the old size \
            or the new one.",
    flags: &[&HELP, &QUIET, &FORMAT, &IMAGE_OPTS, &PREALLOCATION, &SHRINK, &OBJECT, &OUTPUT_MORE, &POLICY],
    commands: &[],
    state: State::Ready,
};

/// `img amend`.
pub static AMEND: Command = Command {
    name: "amend",
    summary: "Change options of an existing image",
    operands: "FILE",
    about: "A cut on the way leaves the old image or the new one.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &FORMAT,
        &AMEND_OPTIONS,
        &IMAGE_CACHE,
        &FORCE,
        &IMAGE_OPTS,
        &OBJECT,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
