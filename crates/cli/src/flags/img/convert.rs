//! The options of `convert`.

use super::super::{Command, Flag, State, Value, flag};
use super::{
    BACKING_FORMAT, FORCE_SHARE, FORMATS, HELP, OBJECT, OPTIONS, OUTPUT_MORE, POLICY, PROGRESS, QUIET,
    SOURCE_CACHE, TARGET_CACHE,
};

/// `-f` of convert.
pub static SOURCE_FORMAT: Flag = flag(
    b'f',
    &["source-format"],
    Value::OneOf("FMT", FORMATS),
    "Format of the input images. Without it the format is guessed from the content.",
);
/// `-O` of convert.
pub static TARGET_FORMAT: Flag = flag(
    b'O',
    &["target-format", "output-format"],
    Value::OneOf("FMT", FORMATS),
    "Format of the output image (default: raw).",
);
/// `--source-image-opts` and its old name.
pub static SOURCE_IMAGE_OPTS: Flag = flag(
    0,
    &["source-image-opts", "image-opts"],
    Value::None,
    "The inputs are lists of options instead of file names.",
);
/// `--target-image-opts`.
pub static TARGET_IMAGE_OPTS: Flag =
    flag(0, &["target-image-opts"], Value::None, "The output is a list of options; needs -n.");
/// `-B` of convert.
pub static CONVERT_BACKING: Flag = flag(
    b'B',
    &["backing"],
    Value::File("FILE"),
    "The output stores only what differs from FILE; needs its format in -F.",
);
/// `-c` of convert.
pub static CONVERT_COMPRESS: Flag =
    flag(b'c', &["compress"], Value::None, "Store the data compressed, if the format can.");
/// `-l` of convert.
pub static SOURCE_SNAPSHOT: Flag = flag(
    b'l',
    &["source-snapshot"],
    Value::Required("SNAPSHOT"),
    "Convert an internal snapshot, given by its id, its name, or as snapshot.id=ID,snapshot.name=NAME.",
);
/// `-S` of convert.
pub static SPARSE_SIZE: Flag = flag(
    b'S',
    &["sparse-size"],
    Value::Required("SIZE"),
    "Runs of zeroes of at least SIZE bytes become holes (default: 4k); 0 writes everything.",
);
/// `-n` of convert.
pub static NO_CREATE: Flag = flag(b'n', &["no-create"], Value::None, "The output exists: do not create it.");
/// `-m` of convert.
pub static PARALLEL: Flag =
    flag(b'm', &["parallel"], Value::Required("N"), "Requests in flight, 1 to 16 (default: 8).");
/// `-W` of convert.
pub static OUT_OF_ORDER: Flag =
    flag(b'W', &["oob-writes"], Value::None, "Write in any order; faster, may fragment the output.");
/// `-C` of convert.
pub static COPY_RANGE: Flag = flag(
    b'C',
    &["copy-range-offloading"],
    Value::None,
    "Let the host copy the data where it can, without it passing through this program.",
);
/// `-r` of convert.
pub static RATE: Flag =
    flag(b'r', &["rate", "rate-limit"], Value::Required("RATE"), "At most RATE bytes per second.");
/// `--salvage`.
pub static SALVAGE: Flag =
    flag(0, &["salvage"], Value::None, "Go on after read errors; what cannot be read becomes zeroes.");
/// `--target-is-zero`.
pub static TARGET_IS_ZERO: Flag =
    flag(0, &["target-is-zero"], Value::None, "The output reads as zeroes already; needs -n.");
/// `--bitmaps`.
pub static BITMAPS: Flag =
    flag(0, &["bitmaps"], Value::None, "Copy the dirty bitmaps of the one input as well.");
/// `--skip-broken-bitmaps`.
pub static SKIP_BROKEN_BITMAPS: Flag =
    flag(0, &["skip-broken-bitmaps"], Value::None, "Leave out bitmaps that are inconsistent.");
/// `img convert`.
pub static CONVERT: Command = Command {
    name: "convert",
    summary: "Copy an image into another, of the same or another format",
    operands: "FILE... OUTPUT",
    about: "Several inputs are put one after the other. When the operation fails or is interrupted, an output \
            that this run created is removed, and any other is said to be incomplete.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &SOURCE_FORMAT,
        &SOURCE_IMAGE_OPTS,
        &SOURCE_CACHE,
        &SOURCE_SNAPSHOT,
        &TARGET_FORMAT,
        &TARGET_IMAGE_OPTS,
        &OPTIONS,
        &CONVERT_COMPRESS,
        &TARGET_CACHE,
        &CONVERT_BACKING,
        &BACKING_FORMAT,
        &NO_CREATE,
        &TARGET_IS_ZERO,
        &SPARSE_SIZE,
        &BITMAPS,
        &SKIP_BROKEN_BITMAPS,
        &FORCE_SHARE,
        &RATE,
        &PARALLEL,
        &COPY_RANGE,
        &SALVAGE,
        &OUT_OF_ORDER,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
