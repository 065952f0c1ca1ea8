//! What a machine is made from. Together with images, log and count these options decide its whole state.

use crate::virtio::DiskLatency;

/// What happens to time when every hart waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// The clock jumps to the next deadline.
    #[default]
    Warp,
    /// The caller lets it pass.
    Real,
}

/// How instructions are executed. The guest cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Decoded blocks of micro-operations.
    #[default]
    Blocks,
    /// Blocks of at most so many instructions: for tests of the law.
    ShortBlocks(u32),
    /// Plain, one by one.
    Plain,
}

/// Options of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Number of harts; they run in turns.
    pub harts: usize,
    /// One instruction takes `1 << shift` nanoseconds.
    pub shift: u32,
    /// Idle time.
    pub idle: Idle,
    /// Seed of the entropy device and of the device tree's `rng-seed`.
    pub seed: u64,
    /// Nanoseconds since 1970 that the real-time clock shows at the start.
    pub rtc_start_ns: u64,
    /// Hardware address of the network card, if the ports have a network.
    pub mac: [u8; 6],
    /// How long disk requests take.
    pub disk_latency: DiskLatency,
    /// How instructions are executed.
    pub engine: Engine,
}

/// Largest RAM, in bytes: a TiB.
pub const RAM_BYTES_MAX: u64 = 1 << 40;
/// Most harts: what the interrupt controllers' windows have room for is more, what is tested less.
pub const HARTS_MAX: usize = 32;
/// Largest shift: a microsecond for each instruction.
pub const SHIFT_MAX: u32 = 10;
/// Most disks: slots of the board, without the console's, the entropy device's and the network card's.
pub const DISKS_MAX: usize = crate::bus::board::VIRTIO_SLOTS - 3;

/// Why there can be no such machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No memory, or more than [`RAM_BYTES_MAX`].
    #[error("a machine cannot have {bytes} bytes of memory: from 1 to {RAM_BYTES_MAX} are possible")]
    RamSize {
        /// What was asked for.
        bytes: u64,
    },
    /// The host does not have that much.
    #[error("the host has no {bytes} bytes of memory for the machine")]
    HostMemory {
        /// What was asked for.
        bytes: u64,
    },
    /// No hart, or more than [`HARTS_MAX`].
    #[error("a machine cannot have {count} harts: from 1 to {HARTS_MAX} are possible")]
    Harts {
        /// What was asked for.
        count: usize,
    },
    /// Larger than [`SHIFT_MAX`].
    #[error("a shift of {shift} is too large: from 0 to {SHIFT_MAX} are possible")]
    Shift {
        /// What was asked for.
        shift: u32,
    },
    /// More than [`DISKS_MAX`].
    #[error("a machine cannot have {count} disks: up to {DISKS_MAX} are possible")]
    Disks {
        /// What was asked for.
        count: usize,
    },
}

impl MachineConfig {
    /// Whether there can be a machine like this with so many disks.
    ///
    /// # Errors
    /// The first option that is out of its range.
    pub fn check(&self, disks: usize) -> Result<(), ConfigError> {
        let bytes = self.ram_bytes;
        if bytes == 0 || bytes > RAM_BYTES_MAX {
            return Err(ConfigError::RamSize { bytes });
        }
        if self.harts == 0 || self.harts > HARTS_MAX {
            return Err(ConfigError::Harts { count: self.harts });
        }
        if self.shift > SHIFT_MAX {
            return Err(ConfigError::Shift { shift: self.shift });
        }
        if disks > DISKS_MAX { Err(ConfigError::Disks { count: disks }) } else { Ok(()) }
    }
}

impl Default for MachineConfig {
    /// 256 MiB, one hart, one nanosecond an instruction, the first second of 2026.
    fn default() -> MachineConfig {
        MachineConfig {
            ram_bytes: 256 << 20,
            harts: 1,
            shift: 0,
            idle: Idle::Warp,
            seed: 0x636f_7762_656c_6c00,
            rtc_start_ns: 1_767_225_600_000_000_000,
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            disk_latency: DiskLatency::default(),
            engine: Engine::Blocks,
        }
    }
}
