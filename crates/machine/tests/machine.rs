//! The machine's promises to its owner: exact counts, events at their instant, hosts that are late, idle time.

use cowbell_machine::port::{ConsoleId, Disk, DiskReply, DiskRequest, MemDisk, NoConsole};
use cowbell_machine::ram::RAM_BASE;
use cowbell_machine::{Boot, BootModule, Engine, Exit, Finish, Idle, Machine, MachineConfig, Ports};

const ENGINES: [Engine; 3] = [Engine::Blocks, Engine::ShortBlocks(2), Engine::Plain];

fn machine(config: &MachineConfig, program: &[u32], disks: Vec<Box<dyn Disk>>) -> Machine {
    let mut machine =
        Machine::new(config, Ports { disks, ..Ports::new(Box::new(NoConsole)) }).expect("a machine");
    for (at, word) in (0..).zip(program) {
        machine.bus_mut().ram.write(RAM_BASE + 4 * at, &word.to_le_bytes());
    }
    machine.harts_mut()[0].pc = RAM_BASE;
    machine
}

fn small(engine: Engine) -> MachineConfig {
    MachineConfig { ram_bytes: 1 << 20, engine, ..MachineConfig::default() }
}

/// `1: addi t1, t1, 1; addi t2, t2, 3; j 1b`.
const LOOP: [u32; 3] = [0x0013_0313, 0x0033_8393, 0xff9f_f06f];

#[test]
fn a_run_stops_at_exactly_its_count() {
    for engine in ENGINES {
        let mut machine = machine(&small(engine), &LOOP, Vec::new());
        for limit in [1, 2, 3, 4, 100, 101, 1000, 12_345] {
            assert_eq!(machine.run(limit), Exit::Limit);
            assert_eq!(machine.count(), limit);
            let hart = &machine.harts()[0];
            assert_eq!(hart.reg(6), limit.div_ceil(3), "{engine:?}");
            assert_eq!(hart.pc, RAM_BASE + 4 * (limit % 3));
        }
        assert_eq!(machine.run(5), Exit::Limit, "a limit in the past");
        assert_eq!(machine.count(), 12_345);
    }
}

/// Waits for input on the UART, then notes the cycle and loops: `lui t0, 0x10000; 1: lbu t1, 5(t0);
/// andi t1, t1, 1; beqz t1, 1b; rdcycle t2; lbu t3, 0(t0); 2: j 2b`.
const POLL: [u32; 7] =
    [0x1000_02b7, 0x0052_c303, 0x0013_7313, 0xfe03_0ce3, 0xc000_23f3, 0x0002_ce03, 0x0000_006f];

#[test]
fn input_arrives_at_its_count() {
    for engine in ENGINES {
        for pieces in [1, 7, 10_000] {
            let mut machine = machine(&small(engine), &POLL, Vec::new());
            machine.input_at(5000, ConsoleId::Uart, b"x");
            while machine.count() < 6000 {
                assert_eq!(machine.run((machine.count() + pieces).min(6000)), Exit::Limit);
            }
            let hart = &machine.harts()[0];
            // The loop of three polls at count 5002 for the first time after 5000, and reads the cycle at 5005.
            assert_eq!((hart.reg(7), hart.reg(28)), (5005, u64::from(b'x')), "{engine:?}");
        }
    }
}

/// Input that comes while the machine stands is the same as input known from the start: whatever was due at that count,
/// whatever the machine was stopped by, and whether it slept.
#[test]
fn live_input_can_be_repeated() {
    for program in [&POLL[..], &SLEEP] {
        for pieces in [1, 3, 997] {
            let start = || {
                let config = MachineConfig { idle: Idle::Warp, ..small(Engine::Blocks) };
                let mut machine = machine(&config, program, Vec::new());
                machine.bus_mut().aclint.mtimecmp[0] = 20;
                machine
            };
            let mut live = start();
            let mut typed = Vec::new();
            for step in 1..40 {
                live.run(pieces * step);
                if step % 7 == 0 {
                    typed.push(live.input(ConsoleId::Uart, b"xy"));
                }
            }
            let mut repeated = start();
            for at in typed {
                repeated.input_at(at, ConsoleId::Uart, b"xy");
            }
            repeated.run(live.count());
            assert_eq!(repeated.count(), live.count());
            assert_eq!(repeated.digest(), live.digest(), "pieces of {pieces}");
        }
    }
}

/// Answers a request only when it was asked several times.
struct Late {
    disk: MemDisk,
    refusals: u32,
    left: u32,
}

impl Disk for Late {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&mut self, token: u64, request: DiskRequest) {
        self.left = self.refusals;
        self.disk.submit(token, request);
    }

    fn poll(&mut self, token: u64) -> Option<DiskReply> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                None
            }
            None => self.disk.poll(token),
        }
    }
}

#[test]
fn a_late_host_changes_nothing() {
    let run = |guest, refusals| {
        let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
        let disk = Late { disk: MemDisk::new(vec![0; 65_536]), refusals, left: 0 };
        let mut machine = machine(&config, &[], vec![Box::new(disk)]);
        let path = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../guests/built/{}.elf"), guest);
        let data = std::fs::read(path).expect("a built guest");
        let module = BootModule { kind: None, data, bootargs: String::new() };
        let boot = Boot { bios: None, modules: vec![module] };
        machine.boot(&config, &boot).expect("boots");
        machine.set_restart(config, boot);
        let mut late = 0;
        let exit = loop {
            match machine.run(u64::MAX) {
                Exit::DiskLate => late += 1,
                Exit::Restarted => {}
                exit => break exit,
            }
        };
        assert_eq!(exit, Exit::Finished(Finish::PowerOff(0)));
        assert_eq!(late > 0, refusals > 0);
        (machine.digest(), machine.count())
    };
    assert_eq!(run("disk", 0), run("disk", 3));
    assert_eq!(run("reboot", 0), run("reboot", 3), "resets while requests are in flight");
}

/// A kernel's image that asks the built-in SBI for a reset of an unknown kind, which must be refused with -3, and then for a
/// cold one, a warm one, and to be switched off because of a failure: boots are counted in memory that none of them clears.
const SYSTEM_RESETS: [u32; 42] = [
    0x0400_006f,
    0,
    0x0020_0000,
    0,
    0x1000,
    0,
    0,
    0,
    2,
    0,
    0,
    0,
    0x4353_4952,
    0x56,
    0x0543_5352,
    0,
    0x0000_12b7, // li t0, 0x80700000
    0x8072_829b,
    0x0142_9293,
    0x0002_b403, // ld s0, 0(t0)
    0x0014_0313, // addi t1, s0, 1
    0x0062_b023, // sd t1, 0(t0)
    0x0090_0513, // li a0, 9
    0x0000_0593, // li a1, 0
    0x0000_0813, // li a6, 0
    0x5352_58b7, // li a7, SRST
    0x3548_889b,
    0x0000_0073, // ecall
    0xffd0_0393, // li t2, -3
    0x0275_1863, // bne a0, t2, bad
    0x0010_0513, // li a0, 1
    0x0004_0c63, // beqz s0, go
    0x0020_0513, // li a0, 2
    0x0010_0e13, // li t3, 1
    0x01c4_0663, // beq s0, t3, go
    0x0000_0513, // li a0, 0
    0x0010_0593, // li a1, 1
    0x0000_0813, // go: li a6, 0
    0x5352_58b7, // li a7, SRST
    0x3548_889b,
    0x0000_0073, // ecall
    0x0000_006f, // bad: j bad
];

#[test]
fn the_sbi_resets_cold_and_warm_and_switches_off() {
    let data: Vec<u8> = SYSTEM_RESETS.iter().flat_map(|word| word.to_le_bytes()).collect();
    let module = BootModule { kind: None, data, bootargs: String::new() };
    let boot = Boot { bios: None, modules: vec![module] };
    for engine in ENGINES {
        let config = MachineConfig { ram_bytes: 16 << 20, ..small(engine) };
        let mut machine = machine(&config, &[], Vec::new());
        machine.boot(&config, &boot).expect("boots");
        machine.set_restart(config, boot.clone());
        assert_eq!(machine.run(10_000), Exit::Restarted, "cold");
        assert_eq!(machine.run(10_000), Exit::Restarted, "warm");
        assert_eq!(machine.run(10_000), Exit::Finished(Finish::PowerOff(1)));
        assert_eq!(machine.resets(), 2);
    }
}

/// Sleeps until the timer, for ever: `csrwi mie, 0; li t0, 0x80; csrs mie, t0; 1: wfi; addi t1, t1, 1; j 1b`.
const SLEEP: [u32; 6] = [0x3040_5073, 0x0800_0293, 0x3042_a073, 0x1050_0073, 0x0013_0313, 0xff9f_f06f];

#[test]
fn idle_time_lived_is_idle_time_warped() {
    let run = |idle| {
        let config = MachineConfig { idle, ..small(Engine::Blocks) };
        let mut machine = machine(&config, &SLEEP, Vec::new());
        machine.bus_mut().aclint.mtimecmp[0] = 1000;
        loop {
            match machine.run(10) {
                Exit::Idle { for_ns: Some(ns) } => machine.pass_idle(ns.div_ceil(3)),
                exit => break assert_eq!(exit, Exit::Limit),
            }
        }
        assert!(machine.bus().clock.ticks() >= 1000);
        machine.digest()
    };
    assert_eq!(run(Idle::Warp), run(Idle::Real));
}

#[test]
fn a_sleep_without_end_is_told() {
    let mut machine = machine(&small(Engine::Blocks), &SLEEP, Vec::new());
    assert_eq!(machine.run(100), Exit::Idle { for_ns: None });
    assert_eq!(machine.count(), 4);
}
