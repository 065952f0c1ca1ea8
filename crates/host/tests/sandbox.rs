//! What a confined process can still do. It runs as a process of its own: there is no way back.

use std::process::Command;
use std::time::Duration;

use cowbell_host::sandbox::{self, Limits, Part, Untrusted};

/// Says to the ignored test that it is the process to be confined.
const CONFINED: &str = "COWBELL_TEST_CONFINED";

#[test]
fn a_confined_process_reads_what_it_has_and_nothing_else() {
    let me = std::env::current_exe().expect("a program");
    let output = Command::new(me)
        .args(["--ignored", "--exact", "the_confined_process", "--nocapture", "--test-threads=1"])
        .env(CONFINED, "1")
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("CONFINED AND WELL"), "{output:?}");
}

#[test]
#[ignore = "confines the process it runs in; the other test starts it"]
fn the_confined_process() {
    assert!(std::env::var_os(CONFINED).is_some(), "only as a process of its own");
    let file = Untrusted::open("/proc/self/status", Duration::from_secs(60)).expect("a regular file");
    sandbox::limit(Limits { memory_bytes: 256 << 20, cpu_seconds: 60 }).expect("limited");
    let confinement = sandbox::confine();
    let mut buffer = [0; 5];
    assert_eq!(file.read_at(0, &mut buffer).expect("open already"), 5);
    assert_eq!(&buffer, b"Name:");
    let either =
        confinement.seccomp.holds() || matches!(confinement.landlock, Part::Holds(_) | Part::Partly(_));
    if either {
        assert!(std::fs::File::open("/etc/passwd").is_err(), "a file was opened: {confinement:?}");
        assert!(std::fs::write("/tmp/cowbell-sandbox", "x").is_err(), "a file was made: {confinement:?}");
    }
    if confinement.seccomp.holds() {
        assert!(std::net::TcpStream::connect("127.0.0.1:9").is_err_and(|e| e.raw_os_error() == Some(1)));
        assert!(Command::new("/bin/true").spawn().is_err(), "a program was started");
    }
    let huge = std::panic::catch_unwind(|| Vec::<u8>::new().try_reserve_exact(1 << 30));
    assert!(huge.is_ok_and(|reserved| reserved.is_err()), "memory is limited");
    // The filter holds the thread that asked for it; what the harness says is said by another one.
    println!("CONFINED AND WELL: {confinement:?}");
}
