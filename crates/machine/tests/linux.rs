//! Boots Debian's kernel when `COWBELL_GUEST_CACHE` names a directory with `Image` (the kernel) and `busybox` (static,
//! riscv64): types commands into its console and has it power off. Otherwise it says what it left out.

use cowbell_machine::port::ConsoleId;
use cowbell_machine::{Boot, BootModule, Exit, Finish, Machine, MachineConfig, ModuleKind, Ports};
use std::path::Path;
use std::sync::{Arc, Mutex};

const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec /bin/busybox sh </dev/ttyS0 >/dev/ttyS0 2>&1
";

/// A `newc` archive of these files, all executable.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut member = |name: &str, mode: u32, data: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        out.extend(b"070701");
        for field in fields {
            out.extend(format!("{field:08x}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    member("bin", 0o040_755, &[]);
    member("dev", 0o040_755, &[]);
    for (name, data) in files {
        member(name, 0o100_755, data);
    }
    member("TRAILER!!!", 0, &[]);
    out
}

struct Session {
    machine: Machine,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Session {
    /// Runs until the console has shown `text`; panics with what it showed when that takes too long.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let end = self.machine.count() + 2_000_000_000;
        loop {
            let shown = String::from_utf8_lossy(&self.output.lock().expect("not poisoned")).into_owned();
            if shown.contains(text) {
                return shown;
            }
            let exit = self.machine.run(self.machine.count() + 2_000_000);
            assert!(matches!(exit, Exit::Limit) && self.machine.count() < end, "{exit:?}:\n{shown}");
        }
    }

    fn type_line(&mut self, line: &str) {
        self.machine.input(ConsoleId::Uart, format!("{line}\n").as_bytes());
    }
}

fn boot(directory: &Path) -> Session {
    let read = |name: &str| std::fs::read(directory.join(name)).expect("a file of the guest cache");
    let initrd = archive(&[("init", INIT.as_bytes()), ("bin/busybox", &read("busybox"))]);
    let config = MachineConfig { ram_bytes: 128 << 20, ..MachineConfig::default() };
    let output = Arc::new(Mutex::new(Vec::new()));
    let mut machine = Machine::new(&config, Ports::new(Box::new(Arc::clone(&output)))).expect("a machine");
    let module =
        |kind, data, bootargs: &str| BootModule { kind: Some(kind), data, bootargs: bootargs.into() };
    let modules = vec![
        module(ModuleKind::Kernel, read("Image"), "console=ttyS0 cryptomgr.notests"),
        module(ModuleKind::Ramdisk, initrd, ""),
    ];
    machine.boot(&config, &Boot { bios: None, modules }).expect("boots");
    Session { machine, output }
}

#[test]
fn linux_boots_takes_commands_and_powers_off() {
    let Some(directory) = std::env::var_os("COWBELL_GUEST_CACHE") else {
        println!("LEFT OUT: COWBELL_GUEST_CACHE is not set, Linux was not booted");
        return;
    };
    let directory = Path::new(&directory);
    if !directory.join("Image").exists() || !directory.join("busybox").exists() {
        println!("LEFT OUT: no Image and busybox in {}, Linux was not booted", directory.display());
        return;
    }
    let mut session = boot(directory);
    session.wait_for("~ #");
    session.type_line("busybox echo $((6*7)) and busybox uname -m | busybox tr a-z A-Z");
    session.wait_for("42 AND BUSYBOX UNAME -M");
    session.type_line("busybox uname -m; busybox poweroff -f");
    session.wait_for("riscv64\r\n");
    assert_eq!(session.machine.run(u64::MAX), Exit::Finished(Finish::PowerOff(0)));
}
