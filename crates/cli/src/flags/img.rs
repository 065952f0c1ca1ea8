//! The options of `img`, and of the commands that make, look at and compare images; those of other commands are in files of
//! their own.
//!
//! Long names are the union of those the plain release and the distributions' builds accept.

mod change;
mod convert;

pub use change::*;
pub use convert::*;

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
