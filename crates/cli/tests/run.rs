//! `cowbell run`: exit status, disks, repeatable runs, consoles, the terminal given back, a debugger.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Jumps to itself.
const SPIN: [u32; 1] = [0x0000_006f];
/// Sleeps without end: `wfi; j -4`.
const SLEEP: [u32; 2] = [0x1050_0073, 0xffdf_f06f];
/// Sends back what comes in at the UART: `lui t0, 0x10000; 1: lbu t1, 5(t0); andi t1, t1, 1; beqz t1, 1b;
/// lbu t3, 0(t0); sb t3, 0(t0); j 1b`.
const ECHO: [u32; 7] =
    [0x1000_02b7, 0x0052_c303, 0x0013_7313, 0xfe03_0ce3, 0x0002_ce03, 0x01c2_8023, 0xfedf_f06f];
/// Switches off with code 5: `lui t0, 0x100; lui t1, 0x53; addi t1, t1, 0x333; sw t1, 0(t0)`.
const CODE_5: [u32; 4] = [0x0010_02b7, 0x0005_3337, 0x3333_0313, 0x0062_a023];

fn guest(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../guests/built").join(name);
    path.to_str().expect("text").to_owned()
}

fn program(dir: &Path, words: &[u32]) -> String {
    let path = dir.join("program.bin");
    fs::write(&path, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>()).expect("written");
    path.to_str().expect("text").to_owned()
}

fn cowbell(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell"));
    command.args(args).current_dir(dir).env_remove("COWBELL_POLICY").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let args = [&["run"], args].concat();
    cowbell(dir, &args).output().expect("the program runs")
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[track_caller]
fn check(dir: &Path, args: &[&str], status: i32, stdout: &str) -> Value {
    let args = [args, &["--summary", "summary.json"]].concat();
    let output = run(dir, &args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{args:?}: {errors}");
    serde_json::from_slice(&fs::read(dir.join("summary.json")).expect("a summary")).expect("JSON")
}

#[test]
fn a_guest_prints_and_gives_its_status() {
    let dir = dir();
    let summary =
        check(dir.path(), &["-kernel", &guest("hello.elf")], 0, "hello from hart 0000000000000000\n");
    assert_eq!(summary["exit"], serde_json::json!({ "reason": "power-off", "code": 0 }));
    let summary = check(dir.path(), &["--bios", &program(dir.path(), &CODE_5)], 5, "");
    assert_eq!(summary["exit"]["code"], 5);
    assert_eq!(summary["icount"], 10, "six instructions of the boot ROM, four of the guest");
}

#[test]
fn a_reset_boots_again_unless_it_may_not() {
    let dir = dir();
    let kernel = guest("reset.elf");
    let args = ["-kernel", &kernel, "-m", "16"];
    let boots: Vec<String> = (0..3).map(|boot| format!("boot {boot:016x}\n")).collect();
    let summary = check(dir.path(), &args, 0, &boots.concat());
    assert_eq!((&summary["resets"], &summary["exit"]["reason"]), (&2.into(), &"power-off".into()));
    let again = check(dir.path(), &args, 0, &boots.concat());
    assert_eq!((&again["digest"], &again["icount"]), (&summary["digest"], &summary["icount"]));
    let summary = check(dir.path(), &[&args[..], &["-no-reboot"]].concat(), 0, &boots[0]);
    assert_eq!((&summary["resets"], &summary["exit"]["reason"]), (&0.into(), &"reset".into()));
}

#[test]
fn what_cannot_be_booted_is_named_with_the_cause() {
    let dir = dir();
    let check = |content: Option<&[u8]>, expect: &str| {
        let path = dir.path().join("kernel");
        match content {
            Some(content) => fs::write(&path, content).expect("written"),
            None => drop(fs::remove_file(&path)),
        }
        let output = run(dir.path(), &["--kernel", "kernel", "-m", "1"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*errors), (Some(1), &*format!("cowbell: {expect}\n")));
    };
    check(None, "cannot read the kernel 'kernel': No such file or directory (os error 2)");
    check(Some(b""), "the kernel is empty");
    check(Some(b"\x7fELF\x02\x01\0\0"), "the kernel is no ELF file for this machine: the file is cut off");
    let foreign = "the kernel is no ELF file for this machine: not a 64-bit little-endian RISC-V executable";
    check(Some(&[b"\x7fELF\x01\x01".as_slice(), &[0; 80]].concat()), foreign);
    let disk = "the kernel is a qcow2 disk: a 64-bit RISC-V ELF program, a RISC-V Linux Image or flat code is needed";
    check(Some(b"QFI\xfb\0\0\0\x03"), disk);
    check(Some(b"\x1f\x8b123"), "kernel is compressed with gzip: decompress it first");
    let large = "the kernel 'kernel' is larger than the machine's memory of 1048576 bytes";
    check(Some(&vec![1; 2 << 20]), large);
}

#[test]
fn a_limit_is_met_exactly_and_an_endless_sleep_is_told() {
    let dir = dir();
    let spin = program(dir.path(), &SPIN);
    let summary = check(dir.path(), &["--bios", &spin, "--limit", "123457"], 0, "");
    assert_eq!((&summary["icount"], &summary["exit"]["reason"]), (&123_457.into(), &"limit".into()));
    let summary = check(dir.path(), &["--bios", &program(dir.path(), &SLEEP)], 1, "");
    assert_eq!((&summary["icount"], &summary["exit"]["reason"]), (&7.into(), &"asleep".into()));
}

#[test]
fn two_runs_with_a_disk_are_one() {
    let dir = dir();
    let create = ["img", "create", "-q", "-f", "qcow2", "disk.qcow2", "100000"];
    let disk = ["--drive", "file=disk.qcow2,format=qcow2,discard=unmap"];
    let mut seen = Vec::new();
    for more in [&[][..], &["--drive", "file=disk.qcow2,format=qcow2,cache=none"], &["-idle", "real"]] {
        assert!(cowbell(dir.path(), &create).status().expect("the program runs").success());
        let drive = if more.first() == Some(&"--drive") { more } else { &[&disk[..], more].concat() };
        let kernel = guest("disk.elf");
        let args = [&["--kernel", &kernel], drive].concat();
        let output = run(dir.path(), &[&args[..], &["--summary", "s"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
        let summary: Value =
            serde_json::from_slice(&fs::read(dir.path().join("s")).expect("there")).expect("JSON");
        assert!(cowbell(dir.path(), &["img", "check", "-q", "disk.qcow2"]).status().expect("runs").success());
        seen.push((summary["icount"].clone(), summary["digest"].clone(), output.stdout));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    // What the guest wrote is there, and stays away with --snapshot.
    let before = fs::read(dir.path().join("disk.qcow2")).expect("there");
    let args = ["--kernel", &guest("disk.elf"), "--snapshot", "disk.qcow2"];
    assert_eq!(run(dir.path(), &args).status.code(), Some(0));
    assert!(fs::read(dir.path().join("disk.qcow2")).expect("there") == before);
}

#[test]
fn what_is_wrong_is_named() {
    let dir = dir();
    let spin = program(dir.path(), &SPIN);
    let check = |args: &[&str], expect: &str| {
        let output = run(dir.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expect), "{args:?}: {text}");
    };
    check(&[], "nothing to boot");
    check(&["--kernel", "absent"], "cannot read the kernel 'absent'");
    check(&["--bios", &spin, "absent.qcow2"], "Could not open 'absent.qcow2'");
    check(&["--bios", &spin, "--smp", "0"], "cannot have 0 harts");
    check(&["--bios", &spin, "-m", "2T"], "cannot have 2199023255552 bytes of memory");
    check(&["--bios", &spin, "--shift", "11"], "a shift of 11 is too large");
    check(&["--bios", &spin, "-M", "sifive_u"], "no board 'sifive_u'");
    check(&["--bios", &spin, "--idle", "never"], "--idle takes warp or real");
    check(&["--bios", &spin, "--serial", "pty"], "'pty' is no device");
    check(&["--bios", &spin, "--serial", "stdio", "--virtio-console", "stdio"], "only one console");
    check(&["--bios", &spin, "-S"], "-S without --gdb");
    check(&["--bios", &spin, "--gdb", "tcp:x"], "is no address");
    check(&["--bios", &spin, "--append", "x"], "--append without --kernel");
    check(&["--module", "kind=kernel"], "'file' is missing");
    check(&["--kernel", "/dev/zero", "-m", "1"], "larger than the machine's memory");
    check(&["-cpu", "max"], "invalid option");
    // The cause is named as well.
    check(&["--bios", &spin, "--serial", "file:/nope/x"], "cannot write to '/nope/x': No such file");
    check(&["--bios", &spin, "--serial", "unix:/nope/x,server=on"], "cannot listen at unix:/nope/x: No such");
    check(&["--bios", &spin, "--serial", "tcp:localhost:x"], "--serial: 'tcp:localhost:x' is no address");
    check(&["--kernel", &guest("hello.elf"), "--summary", "/nope/x"], "'/nope/x': No such file");
    check(&["--kernel", &guest("hello.elf"), "-m", "80K"], "the machine needs more memory");
}

/// A raw image knows no lock of its own that would keep another writer away.
#[test]
fn a_disk_has_one_writer() {
    let dir = dir();
    fs::write(dir.path().join("d.raw"), vec![0; 65_536]).expect("written");
    let both = |keys: &str| {
        let drive = format!("file=d.raw,format=raw{keys}");
        run(dir.path(), &["--kernel", &guest("hello.elf"), "--drive", &drive, "--drive", &drive])
    };
    let output = both("");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Failed to get \"write\" lock"));
    assert_eq!(both(",read-only=on").status.code(), Some(0));
}

/// Starts a run, kills it at the end, and waits for it with a limit.
struct Running(Child);

impl Running {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let args = [&["run"], args].concat();
        let mut command = cowbell(dir, &args);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs"))
    }

    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the run does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_socket_is_a_console() {
    let dir = dir();
    let echo = program(dir.path(), &ECHO);
    let mut running = Running::start(dir.path(), &["--bios", &echo, "--serial", "unix:console,server=on"]);
    for text in ["first", "second"] {
        // A second caller comes after the first one has gone.
        let mut stream = connect(&dir.path().join("console"));
        stream.write_all(text.as_bytes()).expect("connected");
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).expect("an echo");
        assert_eq!(answer, text.as_bytes());
    }
    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert_eq!(running.wait(), Some(1));
    assert!(!dir.path().join("console").exists());
}

/// Runs a shell's script in a terminal of its own, which `script` of util-linux makes; `None` without that program.
fn in_terminal(dir: &Path, shell: &str, typed: &str) -> Option<String> {
    let mut command = Command::new("script");
    command.args(["-qec", shell, "/dev/null"]).current_dir(dir).env("BELL", env!("CARGO_BIN_EXE_cowbell"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut input = child.stdin.take().expect("piped");
    for piece in typed.split('|') {
        // What is typed before the terminal is raw would be for the shell's line.
        std::thread::sleep(Duration::from_millis(400));
        input.write_all(piece.as_bytes()).expect("the terminal is there");
    }
    let output = child.wait_with_output().expect("a child");
    drop(input);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_terminal_is_given_back() {
    let dir = dir();
    program(dir.path(), &ECHO);
    let check = |run: &str, typed: &str, expect: &str| {
        let shell = format!("stty -g > before; {run}; echo status $?; stty -g > after");
        let Some(output) = in_terminal(dir.path(), &shell, typed) else {
            println!("LEFT OUT: the program 'script' is not installed");
            return;
        };
        assert!(output.contains(expect), "{run}: {output:?}");
        let modes = |name: &str| fs::read_to_string(dir.path().join(name)).expect("modes");
        assert_eq!(modes("before"), modes("after"), "{run}: {output:?}");
    };
    let echo = "\"$BELL\" run --bios program.bin";
    // C-c goes to the guest, C-a C-a as well; C-a x ends.
    check(echo, "one\u{3}|\u{1}\u{1}two|\u{1}x", "status 0");
    check(echo, "\u{1}h|\u{1}x", "end the run");
    check(&format!("timeout --foreground -s TERM 1 {echo}"), "", "status 124");
    check(&format!("timeout --foreground -s ABRT 1 {echo}"), "", "status 124");
    check(&format!("timeout --foreground -s SEGV 1 {echo}"), "", "status 124");
}

#[test]
fn a_debugger_starts_and_ends_the_machine() {
    let dir = dir();
    let spin = program(dir.path(), &SPIN);
    let mut running =
        Running::start(dir.path(), &["--bios", &spin, "-S", "--gdb", "unix:gdb", "--serial", "null"]);
    // One that goes away without a word starts nothing.
    drop(connect(&dir.path().join("gdb")));
    let mut gdb = Command::new("gdb-multiarch");
    gdb.args(["-nx", "-batch", "-ex", "set confirm off", "-ex", "set architecture riscv:rv64"]);
    gdb.args([
        "-ex",
        "target remote gdb",
        "-ex",
        "monitor icount",
        "-ex",
        "stepi",
        "-ex",
        "p/x $pc",
        "-ex",
        "kill",
    ]);
    let Ok(output) = gdb.current_dir(dir.path()).stdin(Stdio::null()).output() else {
        println!("LEFT OUT: gdb-multiarch is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("0x1004"), "{text}");
    assert_eq!(running.wait(), Some(0), "{text}");
}
