//! Control and status registers: their numbers, their names, and the file that holds them.
//!
//! A register that is not listed here does not exist: touching it is an illegal instruction, which is how firmware
//! finds out what a machine has.

mod access;

pub use access::{Access, CsrEffect, Refused, read, write};
pub(crate) use access::{exchange_quietly, is_quiet, modify_base};

use crate::pmp::Pmp;
use std::fmt;

macro_rules! csrs {
    ($($name:ident $number:literal $text:literal;)*) => {
        $(#[doc = concat!("`", $text, "`")] pub const $name: u16 = $number;)*
        /// Every register with a name of its own, by number; the numbered families are left out.
        pub const NAMES: &[(u16, &str)] = &[$(($number, $text),)*];
    };
}

csrs! {
    FFLAGS 0x001 "fflags"; FRM 0x002 "frm"; FCSR 0x003 "fcsr";
    CYCLE 0xc00 "cycle"; TIME 0xc01 "time"; INSTRET 0xc02 "instret";
    SSTATUS 0x100 "sstatus"; SIE 0x104 "sie"; STVEC 0x105 "stvec"; SCOUNTEREN 0x106 "scounteren";
    SENVCFG 0x10a "senvcfg"; SSCRATCH 0x140 "sscratch"; SEPC 0x141 "sepc"; SCAUSE 0x142 "scause";
    STVAL 0x143 "stval"; SIP 0x144 "sip"; STIMECMP 0x14d "stimecmp"; SATP 0x180 "satp";
    MVENDORID 0xf11 "mvendorid"; MARCHID 0xf12 "marchid"; MIMPID 0xf13 "mimpid"; MHARTID 0xf14 "mhartid";
    MCONFIGPTR 0xf15 "mconfigptr";
    MSTATUS 0x300 "mstatus"; MISA 0x301 "misa"; MEDELEG 0x302 "medeleg"; MIDELEG 0x303 "mideleg";
    MIE 0x304 "mie"; MTVEC 0x305 "mtvec"; MCOUNTEREN 0x306 "mcounteren"; MENVCFG 0x30a "menvcfg";
    MCOUNTINHIBIT 0x320 "mcountinhibit"; MSCRATCH 0x340 "mscratch"; MEPC 0x341 "mepc"; MCAUSE 0x342 "mcause";
    MTVAL 0x343 "mtval"; MIP 0x344 "mip"; MCYCLE 0xb00 "mcycle"; MINSTRET 0xb02 "minstret";
}

/// First of the sixteen address registers of the memory protection.
pub const PMPADDR0: u16 = 0x3b0;
/// First of its configuration registers; only even ones exist.
pub const PMPCFG0: u16 = 0x3a0;

/// A register number that prints as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub u16);

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        match number {
            _ if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == number) => {
                out.write_str(name)
            }
            PMPCFG0..=0x3af => write!(out, "pmpcfg{}", number - PMPCFG0),
            PMPADDR0..=0x3ef => write!(out, "pmpaddr{}", number - PMPADDR0),
            0xb03..=0xb1f => write!(out, "mhpmcounter{}", number - 0xb00),
            0xc03..=0xc1f => write!(out, "hpmcounter{}", number - 0xc00),
            0x323..=0x33f => write!(out, "mhpmevent{}", number - 0x320),
            _ => write!(out, "{number:#x}"),
        }
    }
}

/// Interrupt bits of `mip` and `mie`.
pub mod interrupt {
    /// Supervisor software.
    pub const SSI: u64 = 1 << 1;
    /// Machine software.
    pub const MSI: u64 = 1 << 3;
    /// Supervisor timer.
    pub const STI: u64 = 1 << 5;
    /// Machine timer.
    pub const MTI: u64 = 1 << 7;
    /// Supervisor external.
    pub const SEI: u64 = 1 << 9;
    /// Machine external.
    pub const MEI: u64 = 1 << 11;
    /// All that a supervisor can be given.
    pub const SUPERVISOR: u64 = SSI | STI | SEI;
}

/// `menvcfg.STCE`: `stimecmp` exists for the supervisor.
pub const ENVCFG_STCE: u64 = 1 << 63;
/// Cache block zero enabled, in both `envcfg` registers.
pub const ENVCFG_CBZE: u64 = 1 << 7;
/// Cache block clean and flush enabled.
pub const ENVCFG_CBCFE: u64 = 1 << 6;
/// Cache block invalidate: 0 illegal, 1 performs a flush, 3 performs an invalidate.
pub const ENVCFG_CBIE: u64 = 3 << 4;

/// `mstatus`, whose fields everybody asks for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mstatus(pub u64);

macro_rules! status_bits {
    ($($name:ident $constant:ident $bit:literal;)*) => {
        impl Mstatus {
            $(
                #[doc = concat!("The bit `", stringify!($constant), "`.")]
                pub const $constant: u64 = 1 << $bit;
                #[doc = concat!("Whether `", stringify!($constant), "` is set.")]
                #[inline]
                pub const fn $name(self) -> bool {
                    self.0 & Self::$constant != 0
                }
            )*
        }
    };
}

status_bits! {
    sie SIE 1; mie MIE 3; spie SPIE 5; mpie MPIE 7; spp SPP 8; mprv MPRV 17; sum SUM 18; mxr MXR 19;
    tvm TVM 20; tw TW 21; tsr TSR 22;
}

impl Mstatus {
    /// The previous privilege of machine mode.
    pub const MPP: u64 = 3 << 11;
    /// State of the floating-point unit.
    pub const FS: u64 = 3 << 13;
    /// Some state is dirty; read-only.
    pub const SD: u64 = 1 << 63;
    /// UXL and SXL, read-only: 64 bits.
    pub const XLEN: u64 = 2 << 32 | 2 << 34;
    /// What the supervisor sees as `sstatus`.
    pub const SUPERVISOR: u64 = Self::SIE | Self::SPIE | Self::SPP | Self::FS | Self::SUM | Self::MXR;
    /// What machine mode can write, `MPP` apart.
    pub const WRITABLE: u64 =
        Self::SUPERVISOR | Self::MIE | Self::MPIE | Self::MPRV | Self::TVM | Self::TW | Self::TSR;

    /// 0 off, 1 initial, 2 clean, 3 dirty.
    #[inline]
    pub const fn fs(self) -> u64 {
        self.0 >> 13 & 3
    }

    /// The previous privilege of machine mode.
    pub const fn mpp(self) -> crate::hart::Privilege {
        crate::hart::Privilege::from_bits(self.0 >> 11)
    }

    /// As software reads it.
    pub const fn read(self) -> u64 {
        self.0 | Self::XLEN | if self.fs() == 3 { Self::SD } else { 0 }
    }
}

/// The registers that hold state. Counters are kept as their distance from the clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CsrFile {
    /// Hart id, read-only.
    pub mhartid: u64,
    /// See [`Mstatus`]; without the read-only parts.
    pub mstatus: Mstatus,
    /// Exceptions delegated to the supervisor.
    pub medeleg: u64,
    /// Interrupts delegated to the supervisor.
    pub mideleg: u64,
    /// Interrupts enabled.
    pub mie: u64,
    /// Interrupts pending that software set.
    pub mip: u64,
    /// Interrupts pending that devices and timers hold up.
    pub lines: u64,
    /// Machine trap vector.
    pub mtvec: u64,
    /// Counters the supervisor may read.
    pub mcounteren: u64,
    /// What lower privileges may do.
    pub menvcfg: u64,
    /// Scratch.
    pub mscratch: u64,
    /// Machine exception pc.
    pub mepc: u64,
    /// Machine cause.
    pub mcause: u64,
    /// Machine trap value.
    pub mtval: u64,
    /// `mcycle` minus the clock.
    pub cycle_offset: u64,
    /// `minstret` minus the instructions begun.
    pub instret_offset: u64,
    /// Supervisor trap vector.
    pub stvec: u64,
    /// Counters user mode may read.
    pub scounteren: u64,
    /// What user mode may do.
    pub senvcfg: u64,
    /// Scratch.
    pub sscratch: u64,
    /// Supervisor exception pc.
    pub sepc: u64,
    /// Supervisor cause.
    pub scause: u64,
    /// Supervisor trap value.
    pub stval: u64,
    /// Supervisor timer, in ticks of `time`.
    pub stimecmp: u64,
    /// Root of the page tables.
    pub satp: u64,
    /// Accrued floating-point flags.
    pub fflags: u8,
    /// Dynamic rounding mode.
    pub frm: u8,
    /// Memory protection.
    pub pmp: Pmp,
}

impl CsrFile {
    /// As reset leaves them.
    pub fn new(mhartid: u64) -> CsrFile {
        CsrFile {
            mhartid,
            mstatus: Mstatus(0),
            medeleg: 0,
            mideleg: 0,
            mie: 0,
            mip: 0,
            lines: 0,
            mtvec: 0,
            mcounteren: 0,
            menvcfg: 0,
            mscratch: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            cycle_offset: 0,
            instret_offset: 0,
            stvec: 0,
            scounteren: 0,
            senvcfg: 0,
            sscratch: 0,
            sepc: 0,
            scause: 0,
            stval: 0,
            stimecmp: u64::MAX,
            satp: 0,
            fflags: 0,
            frm: 0,
            pmp: Pmp::default(),
        }
    }

    /// `mip` as software reads it.
    #[inline]
    pub fn pending(&self) -> u64 {
        self.mip | self.lines
    }

    /// Whether `stimecmp` drives the supervisor timer interrupt.
    pub fn has_stimecmp(&self) -> bool {
        self.menvcfg & ENVCFG_STCE != 0
    }
}
