//! The options of `run`.

use super::{Command, Flag, State, Value, flag};
use crate::flags::img::{HELP, POLICY};

/// `--kernel`.
pub static KERNEL: Flag = flag(
    0,
    &["kernel"],
    Value::File("FILE"),
    "The kernel: a Linux Image or an ELF program. Without --bios a built-in SBI serves it.",
);
/// `--initrd`.
pub static INITRD: Flag = flag(0, &["initrd"], Value::File("FILE"), "The kernel's initial RAM disk.");
/// `--append`.
pub static APPEND: Flag = flag(0, &["append"], Value::Required("TEXT"), "The kernel's command line.");
/// `--bios`.
pub static BIOS: Flag = flag(
    0,
    &["bios"],
    Value::File("FILE"),
    "Firmware for machine mode, such as OpenSBI's fw_dynamic.bin or fw_jump.elf.",
);
/// `--module`.
pub static MODULE: Flag = flag(
    0,
    &["module"],
    Value::Required("file=FILE[,kind=KIND][,bootargs=TEXT]"),
    "A boot module, which the device tree names under /chosen. KIND is kernel, ramdisk or module; without it the \
     content tells. May be given several times; the order is kept, after --kernel and --initrd.",
);
/// `-m`.
pub static MEMORY: Flag = flag(
    b'm',
    &["memory"],
    Value::Required("SIZE"),
    "Size of the memory: a number of MiB, or with a suffix K, M or G (default: 256).",
);
/// `--smp`.
pub static SMP: Flag =
    flag(0, &["smp"], Value::Required("N"), "Number of harts; they run in turns (default: 1).");
/// `--machine`.
pub static MACHINE: Flag =
    flag(b'M', &["machine"], Value::OneOf("BOARD", &["virt"]), "The board; there is one.");
/// `--nographic`.
pub static NOGRAPHIC: Flag =
    flag(0, &["nographic"], Value::None, "The serial port is the only console, which it is in any case.");
/// `--drive`.
pub static DRIVE: Flag = flag(
    0,
    &["drive"],
    Value::Required("file=IMAGE[,KEY=VALUE]..."),
    "A disk, with the keys format, read-only, snapshot, cache, discard (ignore or unmap) and aio, or with the \
     options of an image driver (driver=qcow2,file.filename=IMAGE). A comma in a value is doubled.",
);
/// `--no-reboot`.
pub static NO_REBOOT: Flag =
    flag(0, &["no-reboot"], Value::None, "A reset ends the run, instead of booting the machine again.");
/// `--snapshot`.
pub static SNAPSHOT: Flag = flag(
    0,
    &["snapshot"],
    Value::None,
    "What the guest writes goes to temporary overlays, which are gone after the run.",
);
/// `--serial`.
pub static SERIAL: Flag = flag(
    0,
    &["serial"],
    Value::Required("DEVICE"),
    "Where the serial port leads: stdio (the default), null, file:PATH, unix:PATH or tcp:HOST:PORT, the last two \
     with ,server=on[,wait=off] to listen.",
);
/// `--virtio-console`.
pub static VIRTIO_CONSOLE: Flag = flag(
    0,
    &["virtio-console"],
    Value::Required("DEVICE"),
    "Where the virtio console (hvc0) leads, as --serial (default: null).",
);
/// `--idle`.
pub static IDLE: Flag = flag(
    0,
    &["idle"],
    Value::OneOf("MODE", &["warp", "real"]),
    "What happens to time when the guest waits: warp skips it, real lives it. The default is real when a person \
     or a socket can type, else warp. The guest cannot tell which it was.",
);
/// `--shift`.
pub static SHIFT: Flag = flag(
    0,
    &["shift"],
    Value::Required("N"),
    "An instruction takes 2^N nanoseconds of the guest's time (0 to 10, default: 0).",
);
/// `--limit`.
pub static LIMIT: Flag =
    flag(0, &["limit"], Value::Required("COUNT"), "End the run at this count of instructions.");
/// `--seed`.
pub static SEED: Flag = flag(
    0,
    &["seed"],
    Value::Required("NUMBER"),
    "Seed of all random numbers that the guest gets from the machine; there is a fixed default.",
);
/// `--rtc`.
pub static RTC: Flag = flag(
    0,
    &["rtc"],
    Value::Required("base=DATETIME"),
    "What the clock shows at the start, in UTC: 2026-01-01T00:00:00 (the default) or a date alone.",
);
/// `--gdb`.
pub static GDB: Flag = flag(
    0,
    &["gdb"],
    Value::Required("ADDRESS"),
    "Where a debugger may connect: tcp:HOST:PORT (no HOST: this machine only) or unix:PATH.",
);
/// `-s`.
pub static GDB_DEFAULT: Flag = flag(b's', &[], Value::None, "The same as --gdb tcp::1234.");
/// `-S`.
pub static STOPPED: Flag =
    flag(b'S', &[], Value::None, "Do not start until a debugger lets the machine run.");
/// `--summary`.
pub static SUMMARY: Flag = flag(
    0,
    &["summary"],
    Value::File("FILE"),
    "At the end write to FILE, as JSON, how the run ended, its count of instructions and the digest of the machine's \
     state.",
);

/// `run`.
pub static RUN: Command = Command {
    name: "run",
    summary: "Run a RISC-V guest whose only clock is the count of its instructions",
    operands: "[IMAGE]...",
    about: "The machine is the virt board that OpenSBI, U-Boot and Linux know, with an RV64GC hart. Each IMAGE is a \
            disk, as with --drive file=IMAGE. Two runs with the same files, options and input are the same, \
            instruction by instruction.\n\n\
            On a terminal every key goes to the guest. C-a x ends the run, C-a h shows the other escapes.\n\n\
            When the guest resets the machine, it boots again: memory keeps what is not loaded anew, and the count of \
            instructions goes on.\n\n\
            The exit status is the one the guest gave when it switched off. It is 0 when the run ended at --limit, \
            with C-a x, by the debugger or with a reset that --no-reboot does not allow, and 1 when it was interrupted or failed, or when the guest \
            waits for something that cannot come.\n\n\
            Long options may be given with one dash, as people do who know them from elsewhere: -kernel.",
    flags: &[
        &HELP,
        &KERNEL,
        &INITRD,
        &APPEND,
        &BIOS,
        &MODULE,
        &MEMORY,
        &SMP,
        &MACHINE,
        &NOGRAPHIC,
        &DRIVE,
        &SNAPSHOT,
        &SERIAL,
        &VIRTIO_CONSOLE,
        &IDLE,
        &SHIFT,
        &LIMIT,
        &NO_REBOOT,
        &SEED,
        &RTC,
        &GDB,
        &GDB_DEFAULT,
        &STOPPED,
        &SUMMARY,
        &POLICY,
    ],
    commands: &[],
    state: State::Ready,
};

/// Gives long names that stand behind one dash their second one. What follows an option as its value is left alone,
/// and so is all behind two dashes.
pub fn with_two_dashes(args: Vec<String>) -> Vec<String> {
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            out.extend(args);
            break;
        }
        let name = arg.trim_start_matches('-');
        let (name, joined) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
        let long = arg.starts_with('-').then(|| RUN.flags.iter().find(|flag| flag.long.contains(&name)));
        let single = arg.len() == 2 && arg.starts_with('-');
        let short = single.then(|| RUN.flags.iter().find(|flag| flag.short == arg.as_bytes()[1]));
        let found = long.flatten().or(short.flatten());
        let takes_next = found.is_some_and(|flag| flag.value != Value::None) && !joined;
        let needs_dash = long.flatten().is_some() && !arg.starts_with("--") && !single;
        out.push(if needs_dash { format!("-{arg}") } else { arg });
        if takes_next {
            out.extend(args.next());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(args: &[&str], expect: &[&str]) {
        assert_eq!(with_two_dashes(args.iter().map(|arg| (*arg).to_owned()).collect()), expect);
    }

    #[test]
    fn one_dash_is_enough_for_long_names() {
        check(&["-kernel", "a", "-m", "64"], &["--kernel", "a", "-m", "64"]);
        check(&["-append", "-kernel", "b"], &["--append", "-kernel", "b"]);
        check(&["-idle=warp", "-S", "-s"], &["--idle=warp", "-S", "-s"]);
        check(&["--drive", "-snapshot", "--", "-kernel"], &["--drive", "-snapshot", "--", "-kernel"]);
        check(&["-nonsense", "x"], &["-nonsense", "x"]);
    }
}
