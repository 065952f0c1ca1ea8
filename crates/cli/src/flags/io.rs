//! The options of `io`, and the table of its commands.

use super::{Command, Flag, State, Value, cowbell, flag};
use crate::face::Face;
use crate::flags::img::{FORCE_SHARE, HELP, IMAGE_OPTS, OBJECT, POLICY, TRACE, VERSION};

/// `-c`.
pub static CMD: Flag =
    flag(b'c', &["cmd"], Value::Required("COMMAND"), "Run COMMAND and end; may be given several times.");
/// `-f`.
pub static FORMAT: Flag =
    flag(b'f', &["format"], Value::OneOf("FMT", &["raw", "qcow2"]), "The image's format.");
/// `-r`.
pub static READ_ONLY: Flag = flag(b'r', &["read-only"], Value::None, "Open read-only.");
/// `-s`.
pub static SNAPSHOT: Flag =
    flag(b's', &["snapshot"], Value::None, "Write to a temporary overlay; the image stays as it is.");
/// `-n`.
pub static NOCACHE: Flag = flag(b'n', &["nocache"], Value::None, "Short for -t none.");
/// `-C`.
pub static COPY_ON_READ: Flag =
    flag(b'C', &["copy-on-read"], Value::None, "Copy what is read from the backing file.");
/// `-m`.
pub static MISALIGN: Flag =
    flag(b'm', &["misalign"], Value::None, "Place buffers badly, to exercise bounce buffers.");
/// `-k`.
pub static NATIVE_AIO: Flag = flag(b'k', &["native-aio"], Value::None, "Short for -i native.");
/// `-i`.
pub static AIO: Flag = flag(
    b'i',
    &["aio"],
    Value::OneOf("AIO", &["threads", "native", "io_uring"]),
    "How the host is asked; the fastest way is found without it.",
);
/// `-t`.
pub static CACHE: Flag = flag(
    b't',
    &["cache"],
    Value::OneOf("CACHE", &["writeback", "none", "off", "directsync", "writethrough", "unsafe"]),
    "Cache mode of the image (default: writethrough).",
);
/// `-d`.
pub static DISCARD: Flag = flag(
    b'd',
    &["discard"],
    Value::OneOf("MODE", &["ignore", "off", "unmap", "on"]),
    "Whether discards release storage (default: unmap).",
);

/// `io`, also called `qemu-io`.
pub static IO: Command = Command {
    name: "io",
    summary: "Send single requests to an image",
    operands: "[FILE]",
    about: "Without -c, commands are read from standard input; 'help' lists them.",
    flags: &[
        &OBJECT,
        &IMAGE_OPTS,
        &CMD,
        &FORMAT,
        &READ_ONLY,
        &SNAPSHOT,
        &NOCACHE,
        &COPY_ON_READ,
        &MISALIGN,
        &NATIVE_AIO,
        &AIO,
        &CACHE,
        &DISCARD,
        &TRACE,
        &FORCE_SHARE,
        &HELP,
        &VERSION,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// One command of `io`: its options and operands, and how many words it takes.
#[derive(Debug)]
pub struct IoCommand {
    /// Name, options, help.
    pub command: Command,
    /// Another name for it, or "".
    pub alias: &'static str,
    /// Options and operands as the usage line shows them.
    pub usage: &'static str,
    /// Fewest words after the name, options counted.
    pub words_min: usize,
    /// Most words after the name, or `usize::MAX`.
    pub words_max: usize,
    /// What it needs.
    pub needs: Needs,
}

impl IoCommand {
    /// Whether it is there under this name of the program.
    pub fn is_offered(&self, face: Face) -> bool {
        self.command.state != State::CowbellOnly || face == Face::Cowbell
    }
}

/// What a command of `io` needs of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// An open image.
    Image,
    /// An open image that can be written to.
    Writable,
}

/// `-C`.
pub static MACHINE: Flag = flag(b'C', &[], Value::None, "Print figures for programs.");
/// `-q`.
pub static QUIET: Flag = flag(b'q', &[], Value::None, "Print no figures.");
/// `-v`.
pub static DUMP: Flag = flag(b'v', &[], Value::None, "Print what was read.");
/// `-P` of reads.
pub static VERIFY: Flag =
    flag(b'P', &[], Value::Required("pattern"), "Fail unless every byte read is this one.");
/// `-s` of read.
pub static VERIFY_AT: Flag = flag(b's', &[], Value::Required("off"), "With -P: where verification starts.");
/// `-l` of read.
pub static VERIFY_LEN: Flag = flag(b'l', &[], Value::Required("len"), "With -P: how much is verified.");
/// `-b`.
pub static VMSTATE: Flag = flag(b'b', &[], Value::None, "In the VM state area instead of the disk.");
/// `-p`.
pub static PREAD: Flag = flag(b'p', &[], Value::None, "Without effect, for old scripts.");
/// `-r` of requests.
pub static REGISTERED: Flag =
    flag(b'r', &[], Value::None, "With registered memory; all of ours is as good as registered.");
/// `-P` of writes.
pub static PATTERN: Flag = flag(b'P', &[], Value::Required("pattern"), "Write this byte instead of 0xcd.");
/// `-s` of write.
pub static PATTERN_FILE: Flag =
    flag(b's', &[], Value::File("source_file"), "Write this file's content, repeated.");
/// `-c` of write.
pub static COMPRESSED: Flag = flag(b'c', &[], Value::None, "Store compressed; without effect with -b or -z.");
/// `-f` of writes.
pub static FUA: Flag = flag(b'f', &[], Value::None, "Durable when it completes.");
/// `-n` of write.
pub static NO_FALLBACK: Flag =
    flag(b'n', &[], Value::None, "With -z: fail rather than write zeroes as data.");
/// `-u` of writes.
pub static UNMAP: Flag = flag(b'u', &[], Value::None, "With -z: storage may be released.");
/// `-z` of writes.
pub static ZEROES: Flag = flag(b'z', &[], Value::None, "Write zeroes, as zeroes.");
/// `-i` of aio requests.
pub static INVALID: Flag = flag(b'i', &[], Value::None, "Count an invalid request instead of sending one.");
/// `-m` of truncate.
pub static PREALLOCATION: Flag = flag(
    b'm',
    &[],
    Value::OneOf("prealloc_mode", &["off", "metadata", "falloc", "full"]),
    "How much of the new area gets its storage at once.",
);
/// `-o` of open.
pub static OPEN_OPTIONS: Flag = flag(b'o', &[], Value::Required("options"), "Options of the image's driver.");
/// `-w` of reopen.
pub static READ_WRITE: Flag = flag(b'w', &[], Value::None, "Allow writes.");
/// `-c` of reopen.
pub static REOPEN_CACHE: Flag =
    flag(b'c', &[], Value::Required("cache"), "Change the cache mode to the given value.");
/// `-o` of reopen.
pub static REOPEN_OPTIONS: Flag =
    flag(b'o', &[], Value::Required("options"), "Changes block driver options (cf. 'open' command).");

/// `-t` of wait_break.
pub static TIMEOUT: Flag =
    cowbell(&["timeout"], Value::Required("MS"), "Give up after so many milliseconds.");

const ANY: usize = usize::MAX;

const fn io(
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    flags: &'static [&'static Flag],
    about: &'static str,
) -> IoCommand {
    let state = State::Ready;
    let command = Command { name, summary, operands: "", about, flags, commands: &[], state };
    IoCommand { command, alias: "", usage, words_min: 0, words_max: 0, needs: Needs::Image }
}

impl IoCommand {
    const fn words(mut self, min: usize, max: usize) -> Self {
        self.words_min = min;
        self.words_max = max;
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = alias;
        self
    }

    const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    const fn own(mut self) -> Self {
        self.command.state = State::CowbellOnly;
        self
    }
}

/// All commands of `io`, by name.
pub static IO_COMMANDS: [IoCommand; 33] = [
    io("abort", "", "simulate a program crash using abort(3)", &[], "").needs(Needs::Nothing),
    io("aio_flush", "", "completes all outstanding aio requests", &[], ""),
    io(
        "aio_read",
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        &[&MACHINE, &INVALID, &VERIFY, &QUIET, &REGISTERED, &DUMP],
        "The result is printed when the request completes; failures do not make the command fail.",
    )
    .words(2, ANY),
    io(
        "aio_write",
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        &[&MACHINE, &FUA, &INVALID, &PATTERN, &QUIET, &REGISTERED, &UNMAP, &ZEROES],
        "The result is printed when the request completes; failures do not make the command fail.",
    )
    .words(2, ANY)
    .needs(Needs::Writable),
    io("alloc", "offset [count]", "checks if offset is allocated in the file", &[], "")
        .words(1, 2)
        .alias("a"),
    io(
        "blkdebug_state",
        "",
        "prints rules, state and suspended requests of the blkdebug node",
        &[],
        "As JSON: the engine's state, each rule with its hits and whether it is active, and the tags of requests \
         that are suspended.",
    )
    .own(),
    io("break", "event tag", "sets a breakpoint on event and tags the stopped request as tag", &[], "").words(2, 2),
    io("close", "", "close the current open file", &[], "").alias("c"),
    io(
        "discard",
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        &[&MACHINE, &QUIET],
        "",
    )
    .words(2, ANY)
    .alias("d")
    .needs(Needs::Writable),
    io("flush", "", "flush all in-core file state to disk", &[], "").alias("f"),
    io("help", "[command]", "help for one or all commands", &[], "")
        .words(0, 1)
        .alias("?")
        .needs(Needs::Nothing),
    io("info", "", "prints information about the current file", &[], "").alias("i"),
    io("length", "", "gets the length of the current file", &[], "").alias("l"),
    io("map", "", "prints the allocated areas of a file", &[], ""),
    io(
        "open",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        &[
            &READ_ONLY,
            &SNAPSHOT,
            &COPY_ON_READ,
            &NOCACHE,
            &NATIVE_AIO,
            &FORCE_SHARE,
            &AIO,
            &CACHE,
            &DISCARD,
            &OPEN_OPTIONS,
        ],
        "",
    )
    .words(0, ANY)
    .alias("o")
    .needs(Needs::Nothing),
    io("quit", "", "exit the program", &[], "").words(0, ANY).alias("q").needs(Needs::Nothing),
    io(
        "read",
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        &[&VMSTATE, &MACHINE, &VERIFY_LEN, &PREAD, &VERIFY, &QUIET, &REGISTERED, &VERIFY_AT, &DUMP],
        "",
    )
    .words(2, ANY)
    .alias("r"),
    io(
        "readv",
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        &[&MACHINE, &VERIFY, &QUIET, &REGISTERED, &DUMP],
        "",
    )
    .words(2, ANY),
    io("remove_break", "tag", "remove a breakpoint by tag", &[], "").words(1, 1),
    io(
        "reopen",
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        &[&READ_ONLY, &READ_WRITE, &REOPEN_CACHE, &REOPEN_OPTIONS],
        "",
    )
    .words(0, ANY),
    io("resume", "tag", "resumes the request tagged as tag", &[], "").words(1, 1),
    io("sigraise", "signal", "raises a signal", &[], "").words(1, 1).needs(Needs::Nothing),
    io("sleep", "", "waits for the given value in milliseconds", &[], "").words(1, 1).needs(Needs::Nothing),
    io(
        "truncate",
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        &[&PREALLOCATION],
        "",
    )
    .words(1, 3)
    .alias("t")
    .needs(Needs::Writable),
    io("wait_break", "tag", "waits for the suspension of a request", &[&TIMEOUT], "").words(1, 1),
    io(
        "write",
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        &[
            &VMSTATE,
            &COMPRESSED,
            &MACHINE,
            &FUA,
            &NO_FALLBACK,
            &PREAD,
            &PATTERN,
            &QUIET,
            &REGISTERED,
            &PATTERN_FILE,
            &UNMAP,
            &ZEROES,
        ],
        "",
    )
    .words(2, ANY)
    .alias("w")
    .needs(Needs::Writable),
    io(
        "writev",
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        &[&MACHINE, &FUA, &PATTERN, &QUIET, &REGISTERED],
        "",
    )
    .words(2, ANY)
    .needs(Needs::Writable),
    zone("zone_append", "zap", "offset len [len..]", "append write a number of bytes at a specified offset").words(3, 4),
    zone("zone_close", "zc", "offset len", "close a range of zones in zone block device"),
    zone("zone_finish", "zf", "offset len", "finish a range of zones in zone block device"),
    zone("zone_open", "zo", "offset len", "explicit open a range of zones in zone block device"),
    zone("zone_report", "zrp", "offset number", "report zone information"),
    zone("zone_reset", "zrs", "offset len", "reset a zone write pointer in zone block device"),
];

/// A command about the zones of a device, of which no device here has any.
const fn zone(
    name: &'static str,
    alias: &'static str,
    usage: &'static str,
    summary: &'static str,
) -> IoCommand {
    io(name, usage, summary, &[], "").words(2, 2).alias(alias)
}
