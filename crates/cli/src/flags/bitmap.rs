//! The options of `img bitmap`.

use super::img::{FORMAT, HELP, IMAGE_OPTS, OBJECT, OUTPUT_MORE, POLICY};
use super::{Command, Flag, State, Value, cowbell, flag};

/// `--add`.
pub static ADD: Flag =
    flag(0, &["add"], Value::None, "Add BITMAP; it records changes from now on, unless --disable follows.");
/// `--remove`.
pub static REMOVE: Flag = flag(0, &["remove"], Value::None, "Remove BITMAP, also an inconsistent one.");
/// `--clear`.
pub static CLEAR: Flag = flag(0, &["clear"], Value::None, "Clear all bits of BITMAP.");
/// `--enable`.
pub static ENABLE: Flag = flag(0, &["enable"], Value::None, "Let BITMAP record changes.");
/// `--disable`.
pub static DISABLE: Flag = flag(0, &["disable"], Value::None, "Let BITMAP stay as it is.");
/// `--merge`.
pub static MERGE: Flag = flag(
    0,
    &["merge"],
    Value::Required("SOURCE"),
    "Set the bits in BITMAP that are set in the bitmap SOURCE, of the same image or of that in -b.",
);
/// `-g`.
pub static GRANULARITY: Flag = flag(
    b'g',
    &["granularity"],
    Value::Required("SIZE"),
    "Bytes that a bit of the bitmap to add stands for (default: the cluster size, from 4k to 64k).",
);
/// `-b`.
pub static SOURCE_FILE: Flag =
    flag(b'b', &["source-file"], Value::File("FILE"), "The image that has the bitmaps to merge.");
/// `-F`.
pub static SOURCE_FORMAT: Flag =
    flag(b'F', &["source-format"], Value::Required("FMT"), "The format of the image in -b.");
/// `--list`.
pub static LIST: Flag = cowbell(&["list"], Value::None, "Show the image's bitmaps; no BITMAP is given.");
/// `--dump`.
pub static DUMP: Flag = cowbell(&["dump"], Value::None, "Show which parts of the disk BITMAP says changed.");

/// `img bitmap`.
pub static BITMAP: Command = Command {
    name: "bitmap",
    summary: "Add, change and remove the dirty bitmaps of an image",
    operands: "FILE BITMAP",
    about: "Several actions are taken in the order given. One that fails ends the command; those before it stay.",
    flags: &[
        &HELP,
        &ADD,
        &REMOVE,
        &CLEAR,
        &ENABLE,
        &DISABLE,
        &MERGE,
        &GRANULARITY,
        &SOURCE_FILE,
        &SOURCE_FORMAT,
        &FORMAT,
        &IMAGE_OPTS,
        &OBJECT,
        &LIST,
        &DUMP,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
