//! The options of the commands that look at images and that the reference does not have: `diff` and `inspect`.

use super::img::{
    A_FORMAT, B_FORMAT, FORCE_SHARE, FORMATS, HELP, IMAGE_OPTS, OBJECT, OPTIONS, OUTPUT, POLICY, PROGRESS,
    QUIET,
};
use super::{Command, Flag, State, Value, flag};

/// `--snapshot-a` of diff.
pub static SNAPSHOT_A: Flag = flag(
    0,
    &["snapshot-a"],
    Value::Required("SNAPSHOT"),
    "Take an internal snapshot of the first image, given by its id, its name, or as snapshot.id=ID,snapshot.name=NAME.",
);
/// `--snapshot-b` of diff.
pub static SNAPSHOT_B: Flag =
    flag(0, &["snapshot-b"], Value::Required("SNAPSHOT"), "The same for the second image.");
/// `--bitmap` of diff.
pub static BITMAP: Flag = flag(
    0,
    &["bitmap"],
    Value::Required("NAME"),
    "Compare nothing: what this persistent bitmap of the last image marks is what differs.",
);
/// `--overlay` of diff.
pub static OVERLAY: Flag = flag(
    0,
    &["overlay"],
    Value::File("OUTPUT"),
    "Make OUTPUT, an image on top of FILE1 that reads as FILE2 and stores only what differs; it is read again and \
     compared before it gets its name.",
);
/// `-O` of diff.
pub static OVERLAY_FORMAT: Flag =
    flag(b'O', &["target-format"], Value::OneOf("FMT", FORMATS), "Format of the overlay (default: qcow2).");

/// `img diff`.
pub static DIFF: Command = Command {
    name: "diff",
    summary: "Show where two images, snapshots, or an image and its past differ",
    operands: "FILE1 [FILE2]",
    about: "With one FILE, its snapshots are compared with each other or with its disk, or a bitmap is asked. What both \
            store in the same place is not read.\n\n\
            Ends with status 0 when nothing differs, 1 when something does (a different length is a difference), \
            2 when an image cannot be opened or the overlay cannot be made, 3 when allocation cannot be asked for, \
            4 when data cannot be read.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &A_FORMAT,
        &B_FORMAT,
        &IMAGE_OPTS,
        &SNAPSHOT_A,
        &SNAPSHOT_B,
        &BITMAP,
        &OVERLAY,
        &OVERLAY_FORMAT,
        &OPTIONS,
        &FORCE_SHARE,
        &OBJECT,
        &OUTPUT,
        &POLICY,
    ],
    commands: &[],
    state: State::CowbellOnly,
};

/// `--sandbox` of inspect.
pub static SANDBOX: Flag = flag(
    0,
    &["sandbox"],
    Value::OneOf("MODE", &["require", "auto", "off"]),
    "Confine the process before it looks at the file: or fail (require), as far as the kernel can (auto, the default), \
     or not (off).",
);

/// `img inspect`.
pub static INSPECT: Command = Command {
    name: "inspect",
    summary: "Show what an untrusted file could be and what it would make us do",
    operands: "FILE",
    about: "Every format that the bytes fit, what the file names outside of itself, what it claims, and which limits \
            that exceeds. Nothing else is opened, and nothing of the file is believed: a damaged or hostile file gets a \
            report, not an error. The process first gives up files, connections, most system calls, and memory and \
            time beyond a limit.",
    flags: &[&HELP, &SANDBOX, &OUTPUT],
    commands: &[],
    state: State::CowbellOnly,
};
