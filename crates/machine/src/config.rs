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
