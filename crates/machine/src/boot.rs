//! Loading what the machine shall run: firmware, kernel, RAM disk, modules, or a bare ELF program.

use crate::bus::board;
use crate::config::MachineConfig;
use crate::elf::{self, ElfError};
use crate::fdt::{self, Chosen, ChosenModule};
use crate::hart::RunState;
use crate::machine::Machine;
use crate::ram::{PAGE, RAM_BASE};
use crate::sbi;

/// Where a kernel goes when its header does not say otherwise: past the firmware.
const KERNEL_OFFSET: u64 = 2 << 20;
/// Alignment of what is loaded from the top of memory down.
const TOP_ALIGN: u64 = 2 << 20;
/// Memory below which that alignment would waste a good part of it.
const SMALL_BYTES: u64 = 16 << 20;
/// Room for a device tree in such a machine, and its alignment: most are a tenth of it.
const FDT_ROOM: u64 = 64 << 10;

/// What a boot module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// The kernel: `multiboot,kernel`.
    Kernel,
    /// An initial RAM disk: `multiboot,ramdisk`.
    Ramdisk,
    /// Anything else: `multiboot,module`.
    Module,
}

impl ModuleKind {
    /// What the content looks like.
    pub fn detect(data: &[u8]) -> ModuleKind {
        let starts = |magic: &[u8]| data.starts_with(magic);
        if starts(b"\x7fELF") || linux_header(data).is_some() {
            ModuleKind::Kernel
        } else if starts(b"070701")
            || starts(b"\x1f\x8b")
            || starts(b"\x28\xb5\x2f\xfd")
            || starts(b"\xfd7zXZ")
        {
            ModuleKind::Ramdisk
        } else {
            ModuleKind::Module
        }
    }

    const fn compatible(self) -> &'static str {
        match self {
            ModuleKind::Kernel => "multiboot,kernel",
            ModuleKind::Ramdisk => "multiboot,ramdisk",
            ModuleKind::Module => "multiboot,module",
        }
    }
}

/// Something to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootModule {
    /// What it is; found from the content when not named.
    pub kind: Option<ModuleKind>,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its arguments; the kernel's are the command line.
    pub bootargs: String,
}

/// What to boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Firmware for machine mode, flat or ELF. Without it the built-in SBI serves the kernel.
    pub bios: Option<Vec<u8>>,
    /// Modules; their order is kept.
    pub modules: Vec<BootModule>,
}

/// Why something could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// There is neither firmware nor a kernel.
    #[error("nothing to boot: neither firmware nor a kernel is given")]
    Nothing,
    /// More than one kernel.
    #[error("more than one kernel is given")]
    TwoKernels,
    /// It does not fit.
    #[error("{what} of {len} bytes does not fit into memory at {address:#x}")]
    NoRoom {
        /// What.
        what: &'static str,
        /// Where it had to go.
        address: u64,
        /// How large it is.
        len: u64,
    },
    /// A kernel that has to be decompressed first.
    #[error("{what} is compressed with {method}: decompress it first")]
    Compressed {
        /// What.
        what: &'static str,
        /// How.
        method: &'static str,
    },
    /// Firmware and kernel want the same place.
    #[error(
        "the kernel at {kernel:#x} lies over the firmware, which ends at {firmware_end:#x}: \
         link it to run behind the firmware"
    )]
    Overlap {
        /// Where the kernel begins.
        kernel: u64,
        /// Behind the last byte of the firmware.
        firmware_end: u64,
    },
    /// What lies at the bottom of memory reaches into what lies at its top.
    #[error(
        "{what} up to {end:#x} leaves no room for the device tree and the boot modules, which begin at {top:#x}: \
         the machine needs more memory"
    )]
    Crowded {
        /// What lies at the bottom.
        what: &'static str,
        /// Behind its last byte.
        end: u64,
        /// Where the rest begins.
        top: u64,
    },
    /// Something that runs elsewhere.
    #[error("the {what} is {kind}: a 64-bit RISC-V ELF program, a RISC-V Linux Image or flat code is needed")]
    Foreign {
        /// What.
        what: &'static str,
        /// What it is instead.
        kind: &'static str,
    },
    /// There is nothing in it.
    #[error("the {what} is empty")]
    Empty {
        /// What.
        what: &'static str,
    },
    /// A bad ELF file.
    #[error("the {what} is no ELF file for this machine")]
    Elf {
        /// What.
        what: &'static str,
        /// Why.
        source: ElfError,
    },
    /// The device tree cannot be written.
    #[error("cannot write the device tree")]
    DeviceTree(#[from] vm_fdt::Error),
}

/// The fields of a Linux `Image` header that matter: text offset and size in memory.
fn linux_header(data: &[u8]) -> Option<(u64, u64)> {
    let number =
        |at: usize| data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    (data.get(0x38..0x3c)? == b"RSC\x05").then_some((number(8)?, number(16)?))
}

/// How data that must run as it is turns out to be compressed.
fn compression(data: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")];
    MAGICS.into_iter().find(|(magic, _)| data.starts_with(magic)).map(|(_, name)| name)
}

/// What a file for another machine or another loader is, by its mark.
fn foreign(data: &[u8]) -> Option<&'static str> {
    const MARKS: [(usize, &[u8], &str); 7] = [
        (0x202, b"HdrS", "a Linux kernel for x86"),
        (0x38, b"ARM\x64", "a Linux Image for arm64"),
        (0x24, b"\x18\x28\x6f\x01", "a Linux kernel for arm"),
        (0, b"\x27\x05\x19\x56", "an image for U-Boot"),
        (0, b"\xd0\x0d\xfe\xed", "a device tree or an image for U-Boot"),
        (0, b"QFI\xfb", "a qcow2 disk"),
        (0, b"070701", "an initial RAM disk"),
    ];
    MARKS
        .into_iter()
        .find(|(at, mark, _)| data.get(*at..).is_some_and(|rest| rest.starts_with(mark)))
        .map(|mark| mark.2)
}

/// A kernel or program in place.
struct Loaded {
    entry: u64,
    start: u64,
    end: u64,
    is_linux: bool,
}

impl Machine {
    /// Loads everything and points the harts at it.
    ///
    /// # Errors
    /// When there is nothing to boot, or something is malformed or does not fit.
    pub fn boot(&mut self, config: &MachineConfig, boot: &Boot) -> Result<(), BootError> {
        let mut kernel = None;
        // Where memory is short, the device tree gets as much of it as it may need, and no more.
        let align = if config.ram_bytes < SMALL_BYTES { FDT_ROOM } else { TOP_ALIGN };
        let mut top = (RAM_BASE + config.ram_bytes) & !(align - 1);
        // The device tree comes last, but its place is the highest.
        top = top.saturating_sub(align).max(RAM_BASE);
        let fdt_at = top;
        let mut chosen = Chosen::default();
        let named = |module: &BootModule| module.kind.unwrap_or_else(|| ModuleKind::detect(&module.data));
        let bios =
            boot.bios.as_ref().map(|data| self.load_program("firmware", data, RAM_BASE)).transpose()?;
        for module in &boot.modules {
            let kind = named(module);
            let (address, len) = if kind == ModuleKind::Kernel {
                if kernel.is_some() {
                    return Err(BootError::TwoKernels);
                }
                let loaded = self.load_kernel(&module.data, bios.as_ref())?;
                chosen.bootargs.clone_from(&module.bootargs);
                let start = loaded.entry;
                let len = loaded.end.saturating_sub(start);
                kernel = Some(loaded);
                (start, len)
            } else {
                top = top.saturating_sub(module.data.len() as u64) & !(PAGE - 1);
                self.place("boot module", top, &module.data)?;
                if kind == ModuleKind::Ramdisk && chosen.initrd.is_none() {
                    chosen.initrd = Some((top, top + module.data.len() as u64));
                }
                (top, module.data.len() as u64)
            };
            let bootargs = module.bootargs.clone();
            chosen.modules.push(ChosenModule { kind: kind.compatible(), address, len, bootargs });
        }
        for (what, loaded) in [("firmware", &bios), ("kernel", &kernel)] {
            if let Some(end) = loaded.as_ref().map(|loaded| loaded.end).filter(|end| *end > top) {
                return Err(BootError::Crowded { what, end, top });
            }
        }
        let blob = fdt::build(config, &chosen)?;
        self.place("device tree", fdt_at, &blob)?;
        self.write_reset_vector(bios.as_ref(), kernel.as_ref(), fdt_at);
        self.start_harts(bios.as_ref(), kernel.as_ref(), fdt_at)
    }

    fn place(&mut self, what: &'static str, address: u64, data: &[u8]) -> Result<(), BootError> {
        if self.bus_mut().ram.write(address, data) {
            Ok(())
        } else {
            Err(BootError::NoRoom { what, address, len: data.len() as u64 })
        }
    }

    /// A Linux Image goes where its header says, an ELF program where it says; flat code to the start of memory, or behind
    /// the firmware.
    fn load_kernel(&mut self, data: &[u8], bios: Option<&Loaded>) -> Result<Loaded, BootError> {
        let loaded = match linux_header(data) {
            Some((offset, size)) => {
                let start = RAM_BASE + if offset == 0 { KERNEL_OFFSET } else { offset.min(1 << 40) };
                self.place("kernel", start, data)?;
                let end = start.saturating_add(size.max(data.len() as u64));
                Loaded { entry: start, start, end, is_linux: true }
            }
            None => {
                let behind =
                    |bios: &Loaded| bios.end.next_multiple_of(TOP_ALIGN).max(RAM_BASE + KERNEL_OFFSET);
                self.load_program("kernel", data, bios.map_or(RAM_BASE, behind))?
            }
        };
        match bios.filter(|bios| loaded.start < bios.end && bios.start < loaded.end) {
            Some(bios) => Err(BootError::Overlap { kernel: loaded.start, firmware_end: bios.end }),
            None => Ok(loaded),
        }
    }

    /// An ELF program goes where it says, anything else to `flat_at`.
    fn load_program(&mut self, what: &'static str, data: &[u8], flat_at: u64) -> Result<Loaded, BootError> {
        if data.is_empty() {
            return Err(BootError::Empty { what });
        }
        if let Some(method) = compression(data) {
            return Err(BootError::Compressed { what, method });
        }
        if let Some(kind) = foreign(data) {
            return Err(BootError::Foreign { what, kind });
        }
        if !data.starts_with(b"\x7fELF") {
            self.place(what, flat_at, data)?;
            let end = flat_at + data.len() as u64;
            return Ok(Loaded { entry: flat_at, start: flat_at, end, is_linux: false });
        }
        let program = elf::parse(data).map_err(|source| BootError::Elf { what, source })?;
        let (mut start, mut end) = (u64::MAX, 0);
        for segment in &program.segments {
            let size = segment.size;
            let no_room = BootError::NoRoom { what, address: segment.address, len: size };
            if !self.bus_mut().ram.contains(segment.address, size) {
                return Err(no_room);
            }
            self.place(what, segment.address, segment.bytes)?;
            let filled = segment.bytes.len() as u64;
            self.bus_mut().ram.clear(segment.address + filled, size - filled);
            (start, end) = (start.min(segment.address), end.max(segment.address + size));
        }
        Ok(Loaded { entry: program.entry, start, end, is_linux: false })
    }

    /// The boot ROM does what the `virt` board's does: hart id, device tree and the description of the next
    /// stage in `a0` to `a2`, then on to the firmware.
    fn write_reset_vector(&mut self, bios: Option<&Loaded>, kernel: Option<&Loaded>, fdt_at: u64) {
        const CODE: [u32; 6] = [
            0x0000_0297, // auipc t0, 0
            0x0282_8613, // addi a2, t0, 40
            0xf140_2573, // csrr a0, mhartid
            0x0202_b583, // ld a1, 32(t0)
            0x0182_b283, // ld t0, 24(t0)
            0x0002_8067, // jr t0
        ];
        const MAGIC: u64 = 0x4942_534f;
        const NEXT_SUPERVISOR: u64 = 1;
        let first = bios.or(kernel).map_or(RAM_BASE, |loaded| loaded.entry);
        let next = kernel.map_or(0, |loaded| loaded.entry);
        let data = [first, fdt_at, MAGIC, 2, next, NEXT_SUPERVISOR, 0, 0];
        let rom = &mut self.bus_mut().rom;
        let bytes = CODE.iter().flat_map(|word| word.to_le_bytes());
        let bytes = bytes.chain(data.iter().flat_map(|word| word.to_le_bytes()));
        for (at, byte) in rom.iter_mut().zip(bytes) {
            *at = byte;
        }
    }

    fn start_harts(
        &mut self,
        bios: Option<&Loaded>,
        kernel: Option<&Loaded>,
        fdt_at: u64,
    ) -> Result<(), BootError> {
        if bios.is_some() {
            for hart in self.harts_mut() {
                hart.pc = board::ROM;
            }
            return Ok(());
        }
        let kernel = kernel.ok_or(BootError::Nothing)?;
        let linux = kernel.is_linux;
        self.bus_mut().builtin_sbi = linux;
        for hart in self.harts_mut() {
            hart.pc = kernel.entry;
            hart.set_reg(10, hart.id);
            hart.set_reg(11, fdt_at);
            if linux {
                sbi::prepare_supervisor(hart);
                if hart.id != 0 {
                    hart.run_state = RunState::Stopped;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Ports;
    use crate::port::NoConsole;

    #[track_caller]
    fn check(content: &[u8], expect: ModuleKind) {
        assert_eq!(ModuleKind::detect(content), expect);
    }

    fn image() -> Vec<u8> {
        let mut image = vec![0; 0x40];
        image[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[16..24].copy_from_slice(&0x1000u64.to_le_bytes());
        image[0x38..0x3c].copy_from_slice(b"RSC\x05");
        image
    }

    #[test]
    fn kinds_are_found_from_the_content() {
        check(b"\x7fELF...", ModuleKind::Kernel);
        check(&image(), ModuleKind::Kernel);
        check(b"070701...", ModuleKind::Ramdisk);
        check(b"\x1f\x8b...", ModuleKind::Ramdisk);
        check(b"", ModuleKind::Module);
    }

    fn module(data: Vec<u8>, bootargs: &str) -> BootModule {
        BootModule { kind: None, data, bootargs: bootargs.into() }
    }

    fn boot(modules: Vec<BootModule>) -> Result<Machine, BootError> {
        let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
        let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
        machine.boot(&config, &Boot { bios: None, modules })?;
        Ok(machine)
    }

    #[test]
    fn a_kernel_starts_in_supervisor_mode_with_a_device_tree() {
        let machine = boot(vec![module(image(), "quiet"), module(b"070701".to_vec(), "")]).expect("boots");
        let hart = &machine.harts()[0];
        assert_eq!((hart.pc, hart.reg(10)), (0x8020_0000, 0));
        let fdt = hart.reg(11);
        assert_eq!(machine.bus().ram.read_number(fdt, 4), Some(0xedfe_0dd0));
        assert_eq!(machine.bus().ram.read_number(fdt - PAGE, 6), Some(u64::from_le_bytes(*b"070701\0\0")));
    }

    #[test]
    fn what_cannot_boot_is_an_error() {
        assert!(matches!(boot(vec![]), Err(BootError::Nothing)));
        assert!(matches!(boot(vec![module(image(), ""), module(image(), "")]), Err(BootError::TwoKernels)));
        let huge = module(vec![0; 17 << 20], "");
        assert!(matches!(boot(vec![module(image(), ""), huge]), Err(BootError::NoRoom { .. })));
        assert!(matches!(
            boot(vec![module(b"\x7fELF".to_vec(), "")]),
            Err(BootError::Elf { what: "kernel", .. })
        ));
        let compressed =
            BootModule { kind: Some(ModuleKind::Kernel), ..module(b"\x1f\x8b\x08".to_vec(), "") };
        assert!(matches!(boot(vec![compressed]), Err(BootError::Compressed { method: "gzip", .. })));
        let kernel =
            |data: Vec<u8>| boot(vec![BootModule { kind: Some(ModuleKind::Kernel), ..module(data, "") }]);
        let mut arm = image();
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert!(matches!(kernel(arm), Err(BootError::Foreign { kind: "a Linux Image for arm64", .. })));
        assert!(matches!(kernel(b"070701".to_vec()), Err(BootError::Foreign { .. })));
    }

    /// With firmware and a kernel of these bytes in a machine of this much memory: where the kernel begins.
    fn behind_firmware(ram_bytes: u64, firmware: usize, kernel: Vec<u8>) -> Result<u64, BootError> {
        let config = MachineConfig { ram_bytes, ..MachineConfig::default() };
        let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
        let modules = vec![BootModule { kind: Some(ModuleKind::Kernel), ..module(kernel, "") }];
        machine.boot(&config, &Boot { bios: Some(vec![0x13; firmware]), modules })?;
        let rom = &machine.bus().rom;
        // The fifth of the words behind the code of the boot ROM is the next stage's address.
        Ok(u64::from_le_bytes(rom[24 + 32..24 + 40].try_into().expect("eight bytes")))
    }

    #[test]
    fn a_flat_kernel_lies_behind_the_firmware() {
        let flat = || vec![0x13, 0, 0, 0];
        assert_eq!(behind_firmware(64 << 20, 100, flat()).expect("boots"), RAM_BASE + KERNEL_OFFSET);
        assert_eq!(behind_firmware(64 << 20, 5 << 20, flat()).expect("boots"), RAM_BASE + (6 << 20));
        assert_eq!(behind_firmware(64 << 20, 100, image()).expect("boots"), RAM_BASE + KERNEL_OFFSET);
        let over = behind_firmware(64 << 20, 3 << 20, image());
        assert!(matches!(over, Err(BootError::Overlap { .. })), "{over:?}");
        let crowded = behind_firmware(4 << 20, (4 << 20) - 100, image());
        assert!(matches!(crowded, Err(BootError::Overlap { .. } | BootError::Crowded { .. })), "{crowded:?}");
    }

    #[test]
    fn a_small_machine_has_room_for_a_small_program() {
        let config = MachineConfig { ram_bytes: 256 << 10, ..MachineConfig::default() };
        let boot = |len| {
            let mut machine = Machine::new(&config, Ports::new(Box::new(NoConsole))).expect("a machine");
            let kernel = BootModule { kind: Some(ModuleKind::Kernel), ..module(vec![0x13; len], "") };
            machine.boot(&config, &Boot { bios: None, modules: vec![kernel] })
        };
        assert!(boot(100 << 10).is_ok());
        assert!(matches!(boot(200 << 10), Err(BootError::Crowded { what: "kernel", .. })));
    }
}
