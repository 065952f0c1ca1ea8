//! Runs a guest and says how fast: `mips [options] KERNEL-OR-ELF`.
//!
//! Options: `--bios FILE`, `--initrd FILE`, `--append TEXT`, `--disk FILE`, `--plain`, `--limit COUNT`, `--mib SIZE`,
//! `--harts COUNT`, `--net` (a card; what it sends is only told), `--input TEXT` (typed once the guest is idle), `--shake SEED` (cuts the run into random pieces
//! and drops all caches between them: the digest must not change). The console goes to standard output.

use cowbell_machine::port::{Console, ConsoleId, Disk, MemDisk, Network};
use cowbell_machine::{Boot, BootModule, Engine, Exit, Machine, MachineConfig, ModuleKind, Ports};
use std::io::Write;

struct Stdout;

/// Says what the guest sends.
struct Frames;

impl Network for Frames {
    fn transmit(&mut self, frame: Vec<u8>) {
        println!("[{} bytes sent to {:02x?}]", frame.len(), &frame[..frame.len().min(6)]);
    }
}

impl Console for Stdout {
    fn write(&mut self, _: ConsoleId, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _closed = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// Processor time of this process: the machine may be shared.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = MachineConfig::default();
    let mut boot = Boot::default();
    let mut modules = Vec::new();
    let mut append = String::new();
    let mut disks: Vec<Box<dyn Disk>> = Vec::new();
    let mut network: Option<Box<dyn Network>> = None;
    let mut limit = u64::MAX;
    let mut input = None;
    let mut shake = None;
    let mut arguments = std::env::args().skip(1);
    let module = |kind, data| BootModule { kind, data, bootargs: String::new() };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--bios" => boot.bios = Some(std::fs::read(value()?)?),
            "--initrd" => modules.push(module(Some(ModuleKind::Ramdisk), std::fs::read(value()?)?)),
            "--append" => append = value()?,
            "--disk" => disks.push(Box::new(MemDisk::new(std::fs::read(value()?)?))),
            "--plain" => config.engine = Engine::Plain,
            "--limit" => limit = value()?.parse()?,
            "--mib" => config.ram_bytes = value()?.parse::<u64>()? << 20,
            "--harts" => config.harts = value()?.parse()?,
            "--net" => network = Some(Box::new(Frames)),
            "--shake" => shake = Some(value()?.parse::<u64>()?),
            "--input" => input = Some(value()?),
            path => modules.insert(0, module(Some(ModuleKind::Kernel), std::fs::read(path)?)),
        }
    }
    if let Some(kernel) = modules.first_mut() {
        kernel.bootargs = append;
    }
    boot.modules = modules;
    let mut machine = Machine::new(&config, Ports { console: Box::new(Stdout), disks, network })?;
    machine.boot(&config, &boot)?;
    let start = cpu_seconds();
    let exit = loop {
        let piece = match &mut shake {
            Some(state) => {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                machine.drop_caches();
                machine.count() + (*state >> 45)
            }
            None => u64::MAX,
        };
        match machine.run(limit.min(piece)) {
            Exit::Limit if machine.count() < limit => {}
            Exit::Idle { for_ns: None } if input.is_some() => {
                let text = input.take().unwrap_or_default().replace("\\n", "\n");
                machine.input(ConsoleId::Uart, text.as_bytes());
            }
            Exit::DiskLate => {}
            exit => break exit,
        }
    };
    let seconds = cpu_seconds() - start;
    let count = machine.count();
    println!(
        "{exit:?} after {count} instructions, {seconds:.3} CPU s, {:.0} MIPS, digest {:032x}, pc {:#x}",
        count as f64 / seconds / 1e6,
        machine.digest(),
        machine.harts()[0].pc,
    );
    Ok(())
}
