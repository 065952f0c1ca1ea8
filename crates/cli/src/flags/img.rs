//! The options of `img` and its commands.
//!
//! Long names are the union of those the plain release and the distributions' builds accept.

use super::bitmap::BITMAP;
use super::blocks::{BENCH, DD};
use super::layers::{COMMIT, REBASE};
use super::look::{DIFF, INSPECT};
use super::{Command, Flag, State, Value, cowbell, flag};

pub(super) const FORMATS: &[&str] = &["raw", "qcow2"];
pub(super) const CACHES: &[&str] = &["writeback", "none", "off", "directsync", "writethrough", "unsafe"];
const OUTPUTS: &[&str] = &["human", "json"];

/// `-h`.
pub static HELP: Flag = flag(b'h', &["help"], Value::None, "Print this help and exit.");
/// `-q`.
pub static QUIET: Flag = flag(b'q', &["quiet"], Value::None, "Print errors only.");
/// `-p`.
pub static PROGRESS: Flag =
    flag(b'p', &["progress"], Value::Form(FORMS), "Show how far the operation is; -q wins over it.");
/// `--progress`, where the reference has none.
pub static PROGRESS_MORE: Flag = cowbell(
    &["progress"],
    Value::Form(FORMS),
    "Show how far the operation is; with json, one object per line.",
);
/// How progress is shown: one figure over and over, or one object per line on standard error.
const FORMS: &[&str] = &["text", "json"];
/// `-f`, where one image is read or made.
pub static FORMAT: Flag = flag(
    b'f',
    &["format"],
    Value::OneOf("FMT", FORMATS),
    "The image's format. Without it the format is guessed from the content.",
);
/// `--image-opts`.
pub static IMAGE_OPTS: Flag = flag(
    0,
    &["image-opts"],
    Value::None,
    "The operand is a list of options (driver=qcow2,file.filename=a.qcow2) instead of a file name.",
);
/// `-U`.
pub static FORCE_SHARE: Flag = flag(
    b'U',
    &["force-share"],
    Value::None,
    "Open the image also while others write to it; what is read may be inconsistent.",
);
/// `--object`.
pub static OBJECT: Flag = flag(
    0,
    &["object"],
    Value::Required("OBJDEF"),
    "Define a secret: secret,id=ID with data=TEXT or file=FILE, format=raw|base64, and keyid=ID,iv=BASE64 if it is \
     encrypted with another one; secret_keyring,id=ID,serial=N; or a group of limits for nodes of driver throttle: \
     throttle-group,id=ID,limits.iops-total=N and the like. Also as JSON. May be given several times.",
);
/// `--output`, where the reference has it.
pub static OUTPUT: Flag =
    flag(0, &["output"], Value::OneOf("FORM", OUTPUTS), "Print for people (human) or for programs (json).");
/// `--output`, where the reference has none.
pub static OUTPUT_MORE: Flag =
    cowbell(&["output"], Value::OneOf("FORM", OUTPUTS), "Print for people (human) or for programs (json).");
/// `--policy`.
pub static POLICY: Flag = cowbell(
    &["policy"],
    Value::OneOf("POLICY", &["trust", "confine", "none"]),
    "What an image may make us open besides itself: anything (trust), files in its directory and below \
     (confine, the default), or nothing (none).",
);
/// `-t` of the destination.
pub static TARGET_CACHE: Flag = flag(
    b't',
    &["target-cache"],
    Value::OneOf("CACHE", CACHES),
    "Cache mode of the output image (default: unsafe).",
);
/// `-T` of the sources.
pub static SOURCE_CACHE: Flag = flag(
    b'T',
    &["source-cache"],
    Value::OneOf("CACHE", CACHES),
    "Cache mode of the input images (default: writeback).",
);
/// `-T` where there is one image.
pub static CACHE: Flag =
    flag(b'T', &["cache"], Value::OneOf("CACHE", CACHES), "Cache mode of the image (default: writeback).");
/// `-o` of create and convert.
pub static OPTIONS: Flag = flag(
    b'o',
    &["options", "target-options"],
    Value::Required("OPTS"),
    "Options of the new image, name=value separated by commas; 'help' lists them.",
);
/// `-b` of create.
pub static BACKING: Flag =
    flag(b'b', &["backing"], Value::File("FILE"), "The new image stores only what differs from FILE.");
/// `-F` of create and convert.
pub static BACKING_FORMAT: Flag =
    flag(b'F', &["backing-format"], Value::OneOf("FMT", FORMATS), "The backing file's format.");
/// `-u` of create.
pub static BACKING_UNSAFE: Flag =
    flag(b'u', &["backing-unsafe"], Value::None, "Do not open the backing file; a size must be given.");
/// `-r` of check.
pub static REPAIR: Flag = flag(
    b'r',
    &["repair"],
    Value::OneOf("WHAT", &["leaks", "all"]),
    "Repair leaked clusters, or everything.",
);
/// `--explain` of check.
pub static EXPLAIN: Flag = cowbell(
    &["explain"],
    Value::None,
    "Say of each finding where it is, what it means and what a repair does.",
);
/// `--data` of check.
pub static DATA: Flag = cowbell(
    &["data"],
    Value::None,
    "Read all that the image stores, decompressed and decrypted, also for its snapshots.",
);
/// `--live` of check.
pub static LIVE: Flag = cowbell(
    &["live"],
    Value::None,
    "Look at an image that is in use, several times, and tell only what stays; leaks are not told.",
);
/// `-b` of info.
pub static BACKING_CHAIN: Flag =
    flag(b'b', &["backing-chain"], Value::None, "Show the images below as well.");
/// `-s` of map.
pub static START_OFFSET: Flag =
    flag(b's', &["start-offset"], Value::Required("OFFSET"), "First byte to look at.");
/// `-l` of map.
pub static MAX_LENGTH: Flag =
    flag(b'l', &["max-length"], Value::Required("LENGTH"), "Number of bytes to look at.");
/// `-f` of compare.
pub static A_FORMAT: Flag =
    flag(b'f', &["a-format"], Value::OneOf("FMT", FORMATS), "Format of the first image.");
/// `-F` of compare.
pub static B_FORMAT: Flag =
    flag(b'F', &["b-format"], Value::OneOf("FMT", FORMATS), "Format of the second image.");
/// `-s` of compare.
pub static STRICT: Flag =
    flag(b's', &["strict"], Value::None, "Sizes and allocation must be equal, not only the content.");
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
/// `-V`.
pub static VERSION: Flag = flag(b'V', &["version"], Value::None, "Print the version and exit.");
/// `-T` before the command.
pub static TRACE: Flag = flag(
    b'T',
    &["trace"],
    Value::Required("TRACE"),
    "Log events: [enable=]PATTERN[,events=FILE][,file=FILE]; 'help' lists them.",
);

/// `img create`.
pub static CREATE: Command = Command {
    name: "create",
    summary: "Make a new image",
    operands: "FILE [SIZE]",
    about: "The file is overwritten if it exists. SIZE takes the suffixes k, M, G, T, P and E (powers of 1024) \
            and may be left out when there is a backing file.",
    flags: &[
        &HELP,
        &QUIET,
        &FORMAT,
        &OPTIONS,
        &BACKING,
        &BACKING_FORMAT,
        &BACKING_UNSAFE,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// `img info`.
pub static INFO: Command = Command {
    name: "info",
    summary: "Show what an image is",
    operands: "FILE",
    about: "Nothing is written, and no data is read.",
    flags: &[&HELP, &FORMAT, &IMAGE_OPTS, &BACKING_CHAIN, &FORCE_SHARE, &OUTPUT, &OBJECT, &POLICY],
    commands: &[],
    state: State::Ready,
};

/// `img check`.
pub static CHECK: Command = Command {
    name: "check",
    summary: "Look for inconsistencies, and repair them",
    operands: "FILE",
    about: "Ends with status 0 when the image is consistent (now), 1 when the check could not be finished, \
            2 when corruptions remain, 3 when only leaks remain, 63 when the format has no check.",
    flags: &[
        &HELP,
        &QUIET,
        &FORMAT,
        &IMAGE_OPTS,
        &CACHE,
        &REPAIR,
        &FORCE_SHARE,
        &OUTPUT,
        &OBJECT,
        &POLICY,
        &EXPLAIN,
        &DATA,
        &LIVE,
    ],
    commands: &[],
    state: State::Ready,
};

/// `img map`.
pub static MAP: Command = Command {
    name: "map",
    summary: "Show where an image's data lies",
    operands: "FILE",
    about: "",
    flags: &[
        &HELP,
        &FORMAT,
        &IMAGE_OPTS,
        &START_OFFSET,
        &MAX_LENGTH,
        &FORCE_SHARE,
        &OUTPUT,
        &OBJECT,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// `img compare`.
pub static COMPARE: Command = Command {
    name: "compare",
    summary: "Tell whether two images have the same content",
    operands: "FILE1 FILE2",
    about: "Ends with status 0 when they are identical, 1 when they differ, 2 when one cannot be opened, \
            3 when allocation cannot be asked for, 4 when data cannot be read.",
    flags: &[
        &HELP,
        &QUIET,
        &PROGRESS,
        &A_FORMAT,
        &B_FORMAT,
        &IMAGE_OPTS,
        &CACHE,
        &STRICT,
        &FORCE_SHARE,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

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
/// `-O` of measure.
pub static MEASURE_FORMAT: Flag = flag(
    b'O',
    &["target-format", "output-format"],
    Value::OneOf("FMT", FORMATS),
    "Format of the image to be measured (default: raw).",
);
/// `-s` of measure.
pub static MEASURE_SIZE: Flag =
    flag(b's', &["size"], Value::Required("SIZE"), "Length of an empty disk, instead of an image.");
/// `-l` of measure.
pub static MEASURE_SNAPSHOT: Flag = flag(
    b'l',
    &["snapshot"],
    Value::Required("SNAPSHOT"),
    "Measure an internal snapshot, given by its id, its name, or as snapshot.id=ID,snapshot.name=NAME.",
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

/// `img measure`.
pub static MEASURE: Command = Command {
    name: "measure",
    summary: "Tell how large a new image would be",
    operands: "[FILE]",
    about: "Either an image whose content the new one would hold, or --size.",
    flags: &[
        &HELP,
        &FORMAT,
        &IMAGE_OPTS,
        &MEASURE_FORMAT,
        &OPTIONS,
        &MEASURE_SIZE,
        &MEASURE_SNAPSHOT,
        &FORCE_SHARE,
        &OUTPUT,
        &OBJECT,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// `img`, also called `qemu-img`.
pub static IMG: Command = Command {
    name: "img",
    summary: "Make, look into, check, compare and convert disk images",
    operands: "COMMAND ...",
    about: "",
    flags: &[&HELP, &VERSION, &TRACE],
    commands: &[
        &AMEND, &BENCH, &BITMAP, &CHECK, &COMMIT, &COMPARE, &CONVERT, &CREATE, &DD, &DIFF, &INFO, &INSPECT,
        &MAP, &MEASURE, &REBASE, &RESIZE, &SNAPSHOT,
    ],
    state: State::Ready,
};
