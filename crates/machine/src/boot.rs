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

/// A kernel or program in place.
struct Loaded {
    entry: u64,
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
        let mut top = (RAM_BASE + config.ram_bytes) & !(TOP_ALIGN - 1);
        // The device tree comes last, but its place is the highest.
        top = top.saturating_sub(TOP_ALIGN).max(RAM_BASE);
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
                let loaded = self.load_kernel(&module.data)?;
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
        let low_end = [&bios, &kernel].into_iter().flatten().map(|loaded| loaded.end).max();
        if let Some(end) = low_end.filter(|end| *end > top) {
            return Err(BootError::NoRoom { what: "kernel", address: RAM_BASE, len: end - RAM_BASE });
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

    fn load_kernel(&mut self, data: &[u8]) -> Result<Loaded, BootError> {
        match linux_header(data) {
            Some((offset, size)) => {
                let start = RAM_BASE + if offset == 0 { KERNEL_OFFSET } else { offset.min(1 << 40) };
                self.place("kernel", start, data)?;
                Ok(Loaded {
                    entry: start,
                    end: start.saturating_add(size.max(data.len() as u64)),
                    is_linux: true,
                })
            }
            None => self.load_program("kernel", data, RAM_BASE),
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
        if !data.starts_with(b"\x7fELF") {
            self.place(what, flat_at, data)?;
            return Ok(Loaded { entry: flat_at, end: flat_at + data.len() as u64, is_linux: false });
        }
        let program = elf::parse(data).map_err(|source| BootError::Elf { what, source })?;
        let mut end = 0;
        for segment in &program.segments {
            let size = segment.size;
            let no_room = BootError::NoRoom { what, address: segment.address, len: size };
            if !self.bus_mut().ram.contains(segment.address, size) {
                return Err(no_room);
            }
            self.place(what, segment.address, segment.bytes)?;
            let filled = segment.bytes.len() as u64;
            self.bus_mut().ram.clear(segment.address + filled, size - filled);
            end = end.max(segment.address + size);
        }
        Ok(Loaded { entry: program.entry, end, is_linux: false })
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
    }
}
