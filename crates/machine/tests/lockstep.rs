//! The law, tested: random programs end in the same digest whatever the engine, the block shape, the way a run is
//! cut into pieces, the breakpoints, and however often caches are dropped.
//!
//! Programs are random instructions over a megabyte that holds code, data and page tables together, so that stores
//! meet decoded instructions and live translations. A handler in machine mode skips what traps.

use cowbell_machine::csr::{self, Mstatus};
use cowbell_machine::isa::{Format, Op, decode};
use cowbell_machine::port::NoConsole;
use cowbell_machine::ram::RAM_BASE;
use cowbell_machine::{Engine, Exit, Machine, MachineConfig, Ports};
use proptest::prelude::*;

const RAM_BYTES: u64 = 1 << 20;
const HANDLER: u64 = RAM_BASE + 0xf_f000;
const START: u64 = RAM_BASE + 0x1_0000;
const CODE_WORDS: usize = 520;
const TABLES: u64 = RAM_BASE + 0x8_0000;
const COUNT: u64 = 4000;

/// Disables interrupts, moves `mepc` on by four, back into the program if it left it, and returns.
const HANDLER_CODE: [u32; 10] = [
    0x340f_9ff3, // csrrw t6, mscratch, t6
    0x3040_1073, // csrw mie, zero
    0x3410_2ff3, // csrr t6, mepc
    0x004f_8f93, // addi t6, t6, 4
    0x7fef_ff93, // andi t6, t6, 0x7fe
    0x341f_9073, // csrw mepc, t6
    0x1400_2ff3, // csrr t6, sscratch
    0x341f_a073, // csrs mepc, t6
    0x340f_9ff3, // csrrw t6, mscratch, t6
    0x3020_0073, // mret
];
const MRET: u64 = HANDLER + 4 * 9;

/// Registers that random instructions may touch without losing the handler.
const CSRS: [u16; 22] = [
    csr::FFLAGS,
    csr::FRM,
    csr::FCSR,
    csr::CYCLE,
    csr::TIME,
    csr::INSTRET,
    csr::SSTATUS,
    csr::SIE,
    csr::SEPC,
    csr::SCAUSE,
    csr::SIP,
    csr::STIMECMP,
    csr::SATP,
    csr::MSTATUS,
    csr::MISA,
    csr::MENVCFG,
    csr::MEPC,
    csr::MCAUSE,
    csr::MTVAL,
    csr::MIP,
    csr::MCYCLE,
    csr::MINSTRET,
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

const OPCODES: [u32; 22] = [
    0x03, 0x07, 0x0f, 0x13, 0x17, 0x1b, 0x23, 0x27, 0x2f, 0x33, 0x37, 0x3b, 0x43, 0x4b, 0x53, 0x63, 0x67,
    0x6f, 0x73, 0x03, 0x23, 0x33,
];
const FUNCT7: [u32; 16] =
    [0, 1, 4, 5, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x50, 0x51, 0x68, 0x69, 0x71, 0x78];

/// A legal instruction whose memory operands lie near one of four pointers, `s0` to `a1`.
fn instruction(random: &mut Random) -> u32 {
    for _ in 0..200 {
        let bits = random.next() as u32 & 0x01ff_ff80 | random.pick(&OPCODES) | random.pick(&FUNCT7) << 25;
        let mut bits = if random.below(2) == 0 { bits } else { bits ^ (random.next() as u32 & 0xfff0_0000) };
        let pointer = 8 + random.below(4) as u32;
        let insn = decode(bits);
        match insn.op {
            Op::Illegal | Op::Wfi | Op::Mret | Op::Sret => continue,
            Op::Jalr if random.below(20) != 0 => continue,
            Op::Jalr => bits = bits & !(0x1f << 15) | 9 << 15,
            // Jumps and branches stay near.
            Op::Jal => bits = bits & 0xfff | (random.below(64) as u32 & !1) << 21,
            _ => {}
        }
        match insn.op.format() {
            Format::Load
            | Format::Store
            | Format::FLoad
            | Format::FStore
            | Format::Amo
            | Format::Lr
            | Format::Cbo => bits = bits & !(0x1f << 15) | pointer << 15,
            Format::B => bits = bits & 0x01ff_ffff & !0x80 | (random.below(3) as u32) << 25,
            Format::Csr | Format::CsrI if random.below(3) != 0 => continue,
            Format::Csr | Format::CsrI => bits = bits & 0xf_ffff | u32::from(random.pick(&CSRS)) << 20,
            _ => {}
        }
        // Aligned more often than not.
        if matches!(insn.op.format(), Format::Amo | Format::Lr) || random.below(3) == 0 {
            if matches!(insn.op.format(), Format::Load | Format::FLoad) {
                bits &= !(7 << 20);
            } else if matches!(insn.op.format(), Format::Store | Format::FStore) {
                bits &= !(7 << 7);
            }
        }
        let rd = bits >> 7 & 31;
        let writes = !matches!(decode(bits).op.format(), Format::Store | Format::FStore | Format::B);
        if writes && (8..12).contains(&rd) {
            bits += 4 << 7;
        }
        return bits;
    }
    0x13
}

fn program(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut code = Vec::new();
    while code.len() < CODE_WORDS * 4 {
        if random.below(4) == 0 {
            let half = random.next() as u16;
            let op = decode(half.into()).op;
            if half & 3 != 3 && !matches!(op, Op::Illegal | Op::Jal | Op::Jalr) {
                code.extend(half.to_le_bytes());
            }
        } else {
            code.extend(instruction(&mut random).to_le_bytes());
        }
    }
    code
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum World {
    Machine,
    Supervisor,
}

fn machine(seed: u64, world: World, engine: Engine, harts: usize) -> Machine {
    let config = MachineConfig { ram_bytes: RAM_BYTES, engine, harts, ..MachineConfig::default() };
    let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
    let mut random = Random(!seed);
    let ram = &mut machine.bus_mut().ram;
    for (at, word) in HANDLER_CODE.iter().enumerate() {
        ram.write(HANDLER + 4 * at as u64, &word.to_le_bytes());
    }
    ram.write(START, &program(seed));
    // Sv39: one level-0 table maps the whole megabyte onto itself.
    let [root, middle, leaf] = [TABLES, TABLES + 0x1000, TABLES + 0x2000];
    ram.write(root + 8 * 2, &((middle >> 12 << 10) | 1).to_le_bytes());
    ram.write(middle, &((leaf >> 12 << 10) | 1).to_le_bytes());
    for page in 0..RAM_BYTES >> 12 {
        let flags = if random.below(16) == 0 { random.below(256) } else { 0xcf };
        ram.write(leaf + 8 * page, &(((RAM_BASE >> 12) + page) << 10 | flags).to_le_bytes());
    }
    // A second way to the first page of code, and to the table.
    ram.write(leaf + 8 * 0x20, &(START >> 12 << 10 | 0xcf).to_le_bytes());
    ram.write(leaf + 8 * 0x21, &(leaf >> 12 << 10 | 0xcf).to_le_bytes());
    for index in 0..harts {
        machine.bus_mut().aclint.mtimecmp[index] = random.below(COUNT / 100);
        let hart = &mut machine.harts_mut()[index];
        for number in 1..32 {
            hart.set_reg(number, if random.below(2) == 0 { random.next() } else { random.below(100) });
            hart.f[number as usize] = random.next();
        }
        // Mostly at entries for pages; sometimes at the only one for all of them.
        let table = if random.below(8) == 0 { middle } else { leaf + 0x800 };
        let pointers = [RAM_BASE + 0x4_0800, START + 0x400, table, RAM_BASE + 0x2_0ffc];
        for (number, pointer) in (8..).zip(pointers) {
            hart.set_reg(number, pointer);
        }
        hart.csr.mtvec = HANDLER;
        hart.csr.mie = 1 << 7;
        hart.csr.mepc = START;
        hart.csr.menvcfg = csr::ENVCFG_CBZE | csr::ENVCFG_CBCFE | csr::ENVCFG_CBIE;
        hart.csr.mcounteren = 7;
        hart.csr.pmp.set_address(0, u64::MAX);
        hart.csr.pmp.set_config(0, 0x1f);
        hart.csr.satp = 8 << 60 | root >> 12;
        let previous = if world == World::Supervisor { 1 << 11 } else { 3 << 11 };
        hart.csr.mstatus = Mstatus(previous | Mstatus::FS | Mstatus::MPIE | Mstatus::SUM);
        hart.csr.sscratch = START;
        hart.pc = MRET;
    }
    machine
}

/// Runs to the count, cut into pieces as `cuts` says.
fn run(mut machine: Machine, mut cuts: Option<Random>) -> (u128, u64) {
    loop {
        let limit = match &mut cuts {
            None => COUNT,
            Some(random) => {
                if random.below(4) == 0 {
                    machine.drop_caches();
                }
                if random.below(4) == 0 {
                    let breakpoints = [START + 4 * random.below(600), START + 2 * random.below(600)];
                    machine.set_breakpoints(&breakpoints);
                }
                let piece = if random.below(3) == 0 { 1 } else { random.below(200) };
                (machine.count() + piece).min(COUNT)
            }
        };
        match machine.run(limit) {
            Exit::Limit if machine.count() >= COUNT => break,
            Exit::Limit => {}
            Exit::Breakpoint { .. } => machine.leave_breakpoint(),
            _ => break,
        }
    }
    (machine.digest(), machine.count())
}

/// However a machine came to a count, its state there is the same: stopped by a breakpoint or by a limit, at the same
/// instant as an interrupt or not.
#[track_caller]
fn check_stops(seed: u64, world: World, harts: usize) {
    let mut stopped = machine(seed, world, Engine::Blocks, harts);
    let mut random = Random(seed ^ 2);
    // The interrupt's handler among them: a stop there is a stop at the instant of the interrupt.
    let places: Vec<u64> = (0..3).map(|_| START + 2 * random.below(900)).chain([HANDLER]).collect();
    stopped.set_breakpoints(&places);
    for _ in 0..4 {
        let exit = stopped.run(COUNT);
        let mut direct = machine(seed, world, Engine::Plain, harts);
        direct.run(stopped.count());
        assert_eq!(direct.digest(), stopped.digest(), "{exit:?} at {} of seed {seed:#x}", stopped.count());
        match exit {
            Exit::Breakpoint { .. } => stopped.leave_breakpoint(),
            _ => return,
        }
    }
}

#[track_caller]
fn check(seed: u64, world: World, harts: usize) {
    let expect = run(machine(seed, world, Engine::Plain, harts), None);
    for engine in [Engine::Blocks, Engine::ShortBlocks(3)] {
        let whole = run(machine(seed, world, engine, harts), None);
        assert_eq!(whole, expect, "{engine:?} {world:?} seed {seed:#x}");
        let cut = run(machine(seed, world, engine, harts), Some(Random(seed ^ 1)));
        assert_eq!(cut, expect, "{engine:?} cut {world:?} seed {seed:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_in_machine_mode(seed: u64) {
        check(seed, World::Machine, 1);
    }

    #[test]
    fn random_programs_under_page_tables(seed: u64) {
        check(seed, World::Supervisor, 1);
    }

    #[test]
    fn random_programs_on_two_harts(seed: u64) {
        check(seed, World::Supervisor, 2);
    }

    #[test]
    fn a_stop_has_one_state(seed: u64, machine_mode: bool, two: bool) {
        check_stops(seed, if machine_mode { World::Machine } else { World::Supervisor }, 1 + usize::from(two));
    }
}
