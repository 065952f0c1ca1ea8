//! The bare-metal guests of `guests/`, in every engine: right output, success, and the same digest.

use cowbell_machine::port::{Disk, MemDisk, NoConsole};
use cowbell_machine::{Boot, BootModule, Engine, Exit, Finish, Machine, MachineConfig, Ports};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

fn guests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../guests")
}

struct Outcome {
    text: String,
    exit: Exit,
    digest: u128,
    count: u64,
}

fn run(name: &str, engine: Engine, disk: Option<Vec<u8>>) -> Outcome {
    let config = MachineConfig { ram_bytes: 16 << 20, engine, ..MachineConfig::default() };
    let output = Arc::new(Mutex::new(Vec::new()));
    let disks = disk.into_iter().map(|bytes| Box::new(MemDisk::new(bytes)) as Box<dyn Disk>).collect();
    let mut machine = Machine::new(&config, Ports { disks, ..Ports::new(Box::new(Arc::clone(&output))) })
        .expect("a machine");
    let data = std::fs::read(guests().join(format!("built/{name}.elf"))).expect("a built guest");
    let module = BootModule { kind: None, data, bootargs: String::new() };
    let boot = Boot { bios: None, modules: vec![module] };
    machine.boot(&config, &boot).expect("boots");
    machine.set_restart(config, boot);
    let exit = loop {
        match machine.run(400_000_000) {
            Exit::Restarted => {}
            exit => break exit,
        }
    };
    let text = String::from_utf8(output.lock().expect("not poisoned").clone()).expect("text");
    Outcome { text, exit, digest: machine.digest(), count: machine.count() }
}

/// Runs a guest in the block engine and, when it is short, in the others; `expect` sees its output.
#[track_caller]
fn check(name: &str, disk: Option<Vec<u8>>, expect: impl Fn(&str)) {
    let first = run(name, Engine::Blocks, disk.clone());
    expect(&first.text);
    assert_eq!(first.exit, Exit::Finished(Finish::PowerOff(0)), "{name}: {}", first.text);
    if first.count > 30_000_000 {
        return;
    }
    for engine in [Engine::Plain, Engine::ShortBlocks(2)] {
        let other = run(name, engine, disk.clone());
        assert_eq!(other.text, first.text, "{name} {engine:?}");
        assert_eq!((other.count, other.digest), (first.count, first.digest), "{name} {engine:?}");
    }
}

fn expected(name: &str) -> String {
    std::fs::read_to_string(guests().join(format!("{name}.expected"))).expect("an expected output")
}

#[test]
fn hello() {
    check("hello", None, |text| assert_eq!(text, "hello from hart 0000000000000000\n"));
}

/// Every line but that of `ctzw`, which the reference of that version gets wrong.
#[test]
fn every_instruction_computes_what_the_reference_does() {
    let expected = expected("isa");
    check("isa", None, |text| {
        let ours: Vec<&str> = text.lines().filter(|line| !line.starts_with("ctzw ")).collect();
        assert_eq!(ours, expected.lines().collect::<Vec<_>>());
    });
}

/// A second opinion on decoding, too: what is illegal, and what a trap tells, is part of the checksums.
#[test]
fn random_streams_end_as_in_the_reference() {
    let expected = expected("streams");
    check("streams", None, |text| assert_eq!(text, expected));
}

#[test]
fn benchmarks_have_the_reference_checksums() {
    let expected = expected("bench");
    check("bench", None, |text| {
        let ours: Vec<&str> = text.lines().filter(|line| !line.starts_with("instructions")).collect();
        assert_eq!(ours, expected.lines().collect::<Vec<_>>());
    });
}

#[test]
fn interrupts_strike_at_their_instant() {
    check("interrupts", None, |text| assert_eq!(text, "interrupts 0000000000000008\n"));
}

#[test]
fn page_tables_of_all_depths() {
    check("pages", None, |text| assert_eq!(text.lines().count(), 3, "{text}"));
}

#[test]
fn modes_traps_protection_and_reserved_bits() {
    check("privileged", None, |text| {
        assert!(text.ends_with("tables 0000000000000001\nlocked 0000000000000001\n"), "{text}");
    });
}

#[test]
fn a_disk_gives_back_what_was_written() {
    check("disk", Some(vec![0; 100_000]), |text| {
        assert!(text.starts_with("sectors 00000000000000c3\n"), "{text}")
    });
}

/// A host that answers late must not make a difference, and nor must the place where the reset cuts.
#[test]
fn a_reset_cuts_through_disk_requests() {
    let boots: String = (0..4).map(|boot| format!("boot {boot:016x}\n")).collect();
    check("reboot", Some(vec![0; 100_000]), |text| assert_eq!(text, boots));
}

/// The program itself looks at what a reset leaves; here it matters that all engines agree, and that the count goes on.
#[test]
fn a_reset_boots_the_machine_again() {
    let boots: String = (0..3).map(|boot| format!("boot {boot:016x}\n")).collect();
    check("reset", None, |text| assert_eq!(text, boots));
    let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
    let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
    let data = std::fs::read(guests().join("built/reset.elf")).expect("a built guest");
    let module = BootModule { kind: None, data, bootargs: String::new() };
    let boot = Boot { bios: None, modules: vec![module] };
    machine.boot(&config, &boot).expect("boots");
    assert_eq!(machine.run(u64::MAX), Exit::Finished(Finish::Reset), "nobody said what to boot again");
    machine.set_restart(config, boot);
    let count = machine.count();
    assert_eq!(machine.run(u64::MAX), Exit::Restarted);
    assert_eq!((machine.resets(), machine.count()), (1, count));
    assert_eq!(machine.run(u64::MAX), Exit::Restarted);
    assert!(machine.count() > count);
    assert_eq!(machine.run(u64::MAX), Exit::Finished(Finish::PowerOff(0)));
    assert_eq!(machine.resets(), 2);
}
