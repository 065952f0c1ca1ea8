//! virtio devices behind the memory-mapped transport (version 2): block, console, entropy, network.
//!
//! Guest memory is touched at two instants only: descriptors and the payload of writes at the store that notifies,
//! the payload of reads and the used ring at completion.

mod block;
mod mmio;
mod net;
mod queue;
mod stream;

pub(crate) use block::Accepted;
pub use block::{Block, DiskLatency};
pub use mmio::{Notify, Transport};
pub use net::Net;
pub use queue::{Chain, Part, Queue, RingError};
pub use stream::{Entropy, VirtioConsole};

/// What a device is, with its own state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A slot with nothing in it.
    Empty,
    /// A disk; the number says which of the machine's ports.
    Block(Block),
    /// The console.
    Console(VirtioConsole),
    /// A source of (seeded) random numbers.
    Entropy(Entropy),
    /// A network card.
    Net(Net),
}

impl Kind {
    /// Device id of the virtio specification.
    pub const fn device_id(&self) -> u32 {
        match self {
            Kind::Empty => 0,
            Kind::Net(_) => 1,
            Kind::Block(_) => 2,
            Kind::Console(_) => 3,
            Kind::Entropy(_) => 4,
        }
    }

    /// Device-specific feature bits.
    pub const fn features(&self) -> u64 {
        match self {
            Kind::Block(block) => block.features(),
            Kind::Net(net) => net.features(),
            _ => 0,
        }
    }

    /// Number of queues.
    pub const fn queues(&self) -> usize {
        match self {
            Kind::Empty => 0,
            Kind::Console(_) | Kind::Net(_) => 2,
            Kind::Block(_) | Kind::Entropy(_) => 1,
        }
    }

    /// A byte of the configuration space.
    pub fn config_byte(&self, offset: usize) -> u8 {
        match self {
            Kind::Block(block) => block.config().get(offset).copied().unwrap_or(0),
            Kind::Net(net) => net.mac.get(offset).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Bytes of input that fit.
    pub(crate) fn input_room(&self) -> usize {
        match self {
            Kind::Console(console) => console.room(),
            _ => 0,
        }
    }

    fn reset(&mut self) {
        match self {
            Kind::Block(block) => block.reset(),
            Kind::Console(_) | Kind::Entropy(_) | Kind::Net(_) | Kind::Empty => {}
        }
    }
}
