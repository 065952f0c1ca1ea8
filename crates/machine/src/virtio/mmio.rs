//! The register window of a virtio device.

use super::Kind;
use super::queue::{QUEUE_SIZE_MAX, Queue};

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
/// The device gave up on a malformed queue.
const NEEDS_RESET: u32 = 0x40;

/// One slot: registers, queues, and the device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transport {
    /// The device.
    pub kind: Kind,
    /// Its queues.
    pub queues: Vec<Queue>,
    status: u32,
    device_features_select: u32,
    driver_features: u64,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
}

/// The driver notified a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify(pub usize);

impl Transport {
    /// A slot with this device.
    pub fn new(kind: Kind) -> Transport {
        let queues = vec![Queue::default(); kind.queues()];
        Transport {
            kind,
            queues,
            status: 0,
            device_features_select: 0,
            driver_features: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
        }
    }

    /// Whether the interrupt line is up.
    pub fn interrupt(&self) -> bool {
        self.interrupt_status != 0
    }

    /// A buffer was used and the driver wants to hear of it.
    pub fn raise_used(&mut self) {
        self.interrupt_status |= 1;
    }

    /// The driver broke the queues; nothing more is done until it resets.
    pub fn fail(&mut self) {
        self.status |= NEEDS_RESET;
        self.interrupt_status |= 2;
        for queue in &mut self.queues {
            queue.ready = false;
        }
    }

    fn features(&self) -> u64 {
        self.kind.features() | VERSION_1 | INDIRECT_DESC
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_select as usize)
    }

    /// Reads a register, or `size` bytes of the configuration space.
    pub fn read(&mut self, offset: u64, size: usize) -> u64 {
        if offset >= 0x100 {
            let at = (offset - 0x100) as usize;
            return (0..size).rev().fold(0, |value, i| value << 8 | u64::from(self.kind.config_byte(at + i)));
        }
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        u64::from(match offset {
            0x000 => u32::from_le_bytes(*b"virt"),
            0x004 => 2,
            0x008 => self.kind.device_id(),
            0x00c => u32::from_le_bytes(*b"BELL"),
            0x010 => half(self.features(), self.device_features_select),
            0x034 => self.queue().map_or(0, |_| QUEUE_SIZE_MAX.into()),
            0x044 => self.queue().is_some_and(|queue| queue.ready).into(),
            0x060 => self.interrupt_status,
            0x070 => self.status,
            // No shared memory regions: their length reads as all ones.
            0x0b0..=0x0bc => u32::MAX,
            _ => 0,
        })
    }

    /// Writes a 32-bit register.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Notify> {
        let set_low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(value);
        let set_high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            0x014 => self.device_features_select = value,
            0x020 => match self.driver_features_select {
                0 => set_low(&mut self.driver_features),
                1 => set_high(&mut self.driver_features),
                _ => {}
            },
            0x024 => self.driver_features_select = value,
            0x030 => self.queue_select = value,
            0x050 => {
                let known = (value as usize) < self.queues.len() && self.status & NEEDS_RESET == 0;
                return known.then_some(Notify(value as usize));
            }
            0x064 => self.interrupt_status &= !value,
            0x070 => self.set_status(value),
            _ => {
                let queue = self.queue()?;
                match offset {
                    0x038 => {
                        let size = value.min(QUEUE_SIZE_MAX.into()) as u16;
                        queue.size = if size.is_power_of_two() { size } else { 0 };
                    }
                    0x044 => queue.ready = value & 1 != 0,
                    0x080 => set_low(&mut queue.descriptors),
                    0x084 => set_high(&mut queue.descriptors),
                    0x090 => set_low(&mut queue.available),
                    0x094 => set_high(&mut queue.available),
                    0x0a0 => set_low(&mut queue.used),
                    0x0a4 => set_high(&mut queue.used),
                    _ => {}
                }
            }
        }
        None
    }

    /// Registers and queues are as at first; what the device has on its way is nobody's any more.
    pub(crate) fn reset(&mut self) {
        self.kind.reset();
        let kind = std::mem::replace(&mut self.kind, Kind::Empty);
        *self = Transport::new(kind);
    }

    fn set_status(&mut self, value: u32) {
        const FEATURES_OK: u32 = 8;
        if value == 0 {
            return self.reset();
        }
        let acceptable =
            self.driver_features & !self.features() == 0 && self.driver_features & VERSION_1 != 0;
        self.status = if acceptable { value } else { value & !FEATURES_OK } | self.status & NEEDS_RESET;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Entropy;
    use super::*;

    #[track_caller]
    fn check(transport: &mut Transport, offset: u64, expect: u64) {
        assert_eq!(transport.read(offset, 4), expect, "register {offset:#x}");
    }

    #[test]
    fn features_must_be_ones_we_offer() {
        let mut transport = Transport::new(Kind::Entropy(Entropy::new(1)));
        check(&mut transport, 0x008, 4);
        transport.write(0x070, 0xb);
        check(&mut transport, 0x070, 3);
        transport.write(0x024, 1);
        transport.write(0x020, 1);
        transport.write(0x070, 0xb);
        check(&mut transport, 0x070, 0xb);
        transport.write(0x024, 0);
        transport.write(0x020, 1 << 5);
        transport.write(0x070, 0xb);
        check(&mut transport, 0x070, 3);
        transport.write(0x070, 0);
        check(&mut transport, 0x070, 0);
    }

    #[test]
    fn notifications_of_unknown_queues_are_ignored() {
        let mut transport = Transport::new(Kind::Entropy(Entropy::new(1)));
        assert_eq!(transport.write(0x050, 0), Some(Notify(0)));
        assert_eq!(transport.write(0x050, 1), None);
        transport.fail();
        assert_eq!(transport.write(0x050, 0), None);
        assert!(transport.interrupt());
    }
}
