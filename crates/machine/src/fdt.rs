//! The device tree that the machine hands to firmware and kernel.

use crate::bus::board;
use crate::clock::TIMEBASE_HZ;
use crate::config::MachineConfig;
use crate::ram::RAM_BASE;
use crate::virtio::Entropy;
use vm_fdt::{FdtWriter, FdtWriterResult};

/// ISA extensions beyond the single letters, in the canonical order.
const EXTENSIONS: [&str; 12] = [
    "zicbom",
    "zicboz",
    "zicntr",
    "zicsr",
    "zifencei",
    "zihintpause",
    "zba",
    "zbb",
    "zbc",
    "zbs",
    "sstc",
    "svinval",
];

/// What goes into `/chosen`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Kernel command line.
    pub bootargs: String,
    /// Initial RAM disk: first byte and one past the last.
    pub initrd: Option<(u64, u64)>,
    /// Boot modules, in order.
    pub modules: Vec<ChosenModule>,
}

/// A boot module as `/chosen` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenModule {
    /// Its `compatible` besides `multiboot,module`.
    pub kind: &'static str,
    /// Where it lies.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Its own arguments.
    pub bootargs: String,
}

const PHANDLE_PLIC: u32 = 1;
const PHANDLE_TEST: u32 = 2;
/// Hart n has phandle 16 + 2n, its interrupt controller the next one.
const PHANDLE_HARTS: u32 = 16;

/// Builds the blob.
///
/// # Errors
/// When a string holds a zero byte.
pub fn build(config: &MachineConfig, chosen: &Chosen) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "riscv-virtio")?;
    fdt.property_string("model", "riscv-virtio,cowbell")?;
    write_chosen(&mut fdt, config, chosen)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, config.ram_bytes])?;
    fdt.end_node(memory)?;
    write_cpus(&mut fdt, config)?;
    write_power(&mut fdt)?;
    let soc = fdt.begin_node("soc")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_null("ranges")?;
    write_interrupt_controllers(&mut fdt, config)?;
    write_devices(&mut fdt)?;
    fdt.end_node(soc)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn write_chosen(fdt: &mut FdtWriter, config: &MachineConfig, chosen: &Chosen) -> FdtWriterResult<()> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &chosen.bootargs)?;
    fdt.property_string("stdout-path", &format!("/soc/serial@{:x}", board::UART))?;
    fdt.property("rng-seed", &Entropy::new(config.seed).take(32))?;
    if let Some((start, end)) = chosen.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    if !chosen.modules.is_empty() {
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
    }
    for module in &chosen.modules {
        let inner = fdt.begin_node(&format!("module@{:x}", module.address))?;
        fdt.property_string_list("compatible", vec![module.kind.into(), "multiboot,module".into()])?;
        fdt.property_array_u64("reg", &[module.address, module.len])?;
        if !module.bootargs.is_empty() {
            fdt.property_string("bootargs", &module.bootargs)?;
        }
        fdt.end_node(inner)?;
    }
    fdt.end_node(node)
}

fn write_cpus(fdt: &mut FdtWriter, config: &MachineConfig) -> FdtWriterResult<()> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    fdt.property_u32("timebase-frequency", TIMEBASE_HZ as u32)?;
    for hart in 0..config.harts as u32 {
        let cpu = fdt.begin_node(&format!("cpu@{hart:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", hart)?;
        fdt.property_string("status", "okay")?;
        fdt.property_string("compatible", "riscv")?;
        fdt.property_string("riscv,isa", &format!("rv64imafdc_{}", EXTENSIONS.join("_")))?;
        fdt.property_string("riscv,isa-base", "rv64i")?;
        let letters = ["i", "m", "a", "f", "d", "c"];
        let list = letters.iter().chain(&EXTENSIONS).map(|name| name.to_string()).collect();
        fdt.property_string_list("riscv,isa-extensions", list)?;
        fdt.property_string("mmu-type", "riscv,sv57")?;
        fdt.property_u32("riscv,cbom-block-size", 64)?;
        fdt.property_u32("riscv,cboz-block-size", 64)?;
        fdt.property_phandle(PHANDLE_HARTS + 2 * hart)?;
        let controller = fdt.begin_node("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 1)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_string("compatible", "riscv,cpu-intc")?;
        fdt.property_phandle(PHANDLE_HARTS + 2 * hart + 1)?;
        fdt.end_node(controller)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

/// Power off and reboot are writes to the test finisher.
fn write_power(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    for (name, value) in [("poweroff", 0x5555), ("reboot", 0x7777)] {
        let node = fdt.begin_node(name)?;
        fdt.property_string("compatible", &format!("syscon-{name}"))?;
        fdt.property_u32("value", value)?;
        fdt.property_u32("offset", 0)?;
        fdt.property_u32("regmap", PHANDLE_TEST)?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// For each hart, its interrupt controller with each of two interrupt numbers.
fn interrupts_extended(config: &MachineConfig, numbers: [u32; 2]) -> Vec<u32> {
    (0..config.harts as u32)
        .flat_map(|hart| numbers.map(|number| [PHANDLE_HARTS + 2 * hart + 1, number]))
        .flatten()
        .collect()
}

fn write_interrupt_controllers(fdt: &mut FdtWriter, config: &MachineConfig) -> FdtWriterResult<()> {
    let clint = fdt.begin_node(&format!("clint@{:x}", board::CLINT))?;
    fdt.property_string_list("compatible", vec!["sifive,clint0".into(), "riscv,clint0".into()])?;
    fdt.property_array_u64("reg", &[board::CLINT, board::CLINT_SIZE])?;
    fdt.property_array_u32("interrupts-extended", &interrupts_extended(config, [3, 7]))?;
    fdt.end_node(clint)?;
    let plic = fdt.begin_node(&format!("plic@{:x}", board::PLIC))?;
    fdt.property_string_list("compatible", vec!["sifive,plic-1.0.0".into(), "riscv,plic0".into()])?;
    fdt.property_array_u64("reg", &[board::PLIC, board::PLIC_SIZE])?;
    fdt.property_array_u32("interrupts-extended", &interrupts_extended(config, [11, 9]))?;
    fdt.property_u32("riscv,ndev", 95)?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_phandle(PHANDLE_PLIC)?;
    fdt.end_node(plic)
}

fn write_devices(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let wired = |fdt: &mut FdtWriter, source: u32| -> FdtWriterResult<()> {
        fdt.property_u32("interrupts", source)?;
        fdt.property_u32("interrupt-parent", PHANDLE_PLIC)
    };
    let test = fdt.begin_node(&format!("test@{:x}", board::FINISHER))?;
    let names = ["sifive,test1", "sifive,test0", "syscon"];
    fdt.property_string_list("compatible", names.map(String::from).to_vec())?;
    fdt.property_array_u64("reg", &[board::FINISHER, board::WINDOW])?;
    fdt.property_phandle(PHANDLE_TEST)?;
    fdt.end_node(test)?;
    let rtc = fdt.begin_node(&format!("rtc@{:x}", board::RTC))?;
    fdt.property_string("compatible", "google,goldfish-rtc")?;
    fdt.property_array_u64("reg", &[board::RTC, board::WINDOW])?;
    wired(fdt, board::RTC_IRQ)?;
    fdt.end_node(rtc)?;
    let uart = fdt.begin_node(&format!("serial@{:x}", board::UART))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[board::UART, 0x100])?;
    fdt.property_u32("clock-frequency", 3_686_400)?;
    wired(fdt, board::UART_IRQ)?;
    fdt.end_node(uart)?;
    for slot in 0..board::VIRTIO_SLOTS as u64 {
        let address = board::VIRTIO + slot * board::WINDOW;
        let node = fdt.begin_node(&format!("virtio_mmio@{address:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[address, board::WINDOW])?;
        wired(fdt, slot as u32 + 1)?;
        fdt.end_node(node)?;
    }
    Ok(())
}
