//! A deterministic RV64GC machine whose only clock is the instruction count.
//!
//! **The law.** Architectural state is a function of (images, options, log, instruction count) and of nothing else:
//! not of block shape, breakpoints, TLB contents or host. See [`machine::Machine`] for the run loop, [`exec`] for
//! the executor that defines what instructions do, [`engine`] for the fast one, [`ram`] for the store filter that
//! keeps caches coherent, and [`event`] and [`port`] for the only ways in and out.

#![forbid(unsafe_code)]

pub mod boot;
pub mod bus;
pub mod clock;
pub mod config;
pub mod csr;
pub mod device;
mod digest;
pub mod elf;
pub mod engine;
pub mod event;
pub mod exec;
pub mod fdt;
pub mod float;
pub mod gdb;
pub mod hart;
pub mod isa;
pub mod machine;
pub mod mmu;
pub mod pmp;
pub mod port;
pub mod ram;
mod sbi;
mod tlb;
pub mod trap;
pub mod virtio;

pub use boot::{Boot, BootModule, ModuleKind};
pub use bus::Ports;
pub use config::{ConfigError, Engine, Idle, MachineConfig};
pub use device::Finish;
pub use machine::{Exit, Machine};
