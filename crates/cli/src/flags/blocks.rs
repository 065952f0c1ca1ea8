//! The options of the commands that deal with blocks at places: `dd` and `bench`.

use super::img::{
    FORCE_SHARE, FORMAT, FORMATS, HELP, IMAGE_CACHE, IMAGE_OPTS, OBJECT, OUTPUT_MORE, POLICY, PROGRESS_MORE,
    QUIET,
};
use super::{Command, Flag, State, Value, flag};

/// `-O` of dd.
pub static OUTPUT_FORMAT: Flag = flag(
    b'O',
    &["output-format"],
    Value::OneOf("FMT", FORMATS),
    "Format of the output image (default: raw).",
);

/// `img dd`.
pub static DD: Command = Command {
    name: "dd",
    summary: "Copy part of an image",
    operands: "if=INPUT of=OUTPUT [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]",
    about: "OUTPUT is made anew. It gets COUNT blocks of SIZE bytes (default: 512, and all there are) from the SKIPth \
            on. Under the drop-in names COUNT counts from the beginning of INPUT, as the reference counts.",
    flags: &[
        &HELP,
        &FORMAT,
        &IMAGE_OPTS,
        &OUTPUT_FORMAT,
        &FORCE_SHARE,
        &OBJECT,
        &PROGRESS_MORE,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// `-c` of bench.
pub static COUNT: Flag =
    flag(b'c', &["count"], Value::Required("COUNT"), "Requests in all (default: 75000).");
/// `-d` of bench.
pub static DEPTH: Flag =
    flag(b'd', &["depth"], Value::Required("DEPTH"), "Requests in flight (default: 64).");
/// `-s` of bench.
pub static BUFFER_SIZE: Flag =
    flag(b's', &["buffer-size"], Value::Required("SIZE"), "Bytes of a request (default: 4k).");
/// `-S` of bench.
pub static STEP_SIZE: Flag = flag(
    b'S',
    &["step-size"],
    Value::Required("SIZE"),
    "Bytes from one request to the next (default: what a request has).",
);
/// `-o` of bench.
pub static OFFSET: Flag =
    flag(b'o', &["offset"], Value::Required("OFFSET"), "Where the first request begins (default: 0).");
/// `-i` of bench.
pub static AIO: Flag = flag(
    b'i',
    &["aio"],
    Value::OneOf("AIO", &["threads", "native", "io_uring"]),
    "Which way requests reach the host's files.",
);
/// `-n` of bench.
pub static NATIVE: Flag = flag(b'n', &["native"], Value::None, "Short for -i native.");
/// `-w` of bench.
pub static WRITE: Flag =
    flag(b'w', &["write"], Value::None, "Write instead of reading: the content is lost.");
/// `--pattern` of bench.
pub static PATTERN: Flag =
    flag(0, &["pattern"], Value::Required("BYTE"), "What is written, 0 to 255 (default: 0).");
/// `--flush-interval` of bench.
pub static FLUSH_INTERVAL: Flag = flag(
    0,
    &["flush-interval"],
    Value::Required("COUNT"),
    "Flush after so many writes, which wait until all before it have ended.",
);
/// `--no-drain` of bench.
pub static NO_DRAIN: Flag =
    flag(0, &["no-drain"], Value::None, "Flush beside the requests in flight instead of between them.");
/// `img bench`.
pub static BENCH: Command = Command {
    name: "bench",
    summary: "Measure the speed of requests",
    operands: "FILE",
    about: "",
    flags: &[
        &HELP,
        &QUIET,
        &FORMAT,
        &IMAGE_OPTS,
        &IMAGE_CACHE,
        &COUNT,
        &DEPTH,
        &OFFSET,
        &BUFFER_SIZE,
        &STEP_SIZE,
        &AIO,
        &NATIVE,
        &WRITE,
        &PATTERN,
        &FLUSH_INTERVAL,
        &NO_DRAIN,
        &FORCE_SHARE,
        &OBJECT,
        &OUTPUT_MORE,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};
