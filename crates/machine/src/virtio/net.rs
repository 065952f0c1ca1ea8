//! The network device. Queue 0 receives, queue 1 transmits; no offloads, so that a frame is a frame.
//!
//! Frames go out through a [`Network`](crate::port::Network) port and come in through the event queue.

use super::{Chain, Queue, RingError};
use crate::ram::Ram;

/// The header before every frame; all its fields are about offloads, but for the count of buffers at its end.
const HEADER: usize = 12;
/// Bytes of a frame at most, in either direction.
const FRAME_MAX: usize = 64 << 10;

/// State of the device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Net {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Frames that found no buffer, or one too small.
    pub dropped: u64,
}

impl Net {
    /// A device with this address.
    pub const fn new(mac: [u8; 6]) -> Net {
        Net { mac, dropped: 0 }
    }

    pub(super) const fn features(&self) -> u64 {
        const MAC: u64 = 1 << 5;
        MAC
    }

    /// Takes the frame out of a chain that the driver transmits.
    pub(crate) fn transmitted(&self, ram: &Ram, chain: &Chain) -> Option<Vec<u8>> {
        let mut bytes = chain.gather(ram);
        let frame = HEADER < bytes.len() && bytes.len() <= HEADER + FRAME_MAX;
        frame.then(|| bytes.split_off(HEADER))
    }

    /// Puts a frame into the driver's next buffer. True when the driver wants an interrupt.
    ///
    /// # Errors
    /// When the queue is malformed.
    pub(crate) fn receive(
        &mut self,
        ram: &mut Ram,
        queue: &mut Queue,
        frame: &[u8],
    ) -> Result<bool, RingError> {
        if frame.len() > FRAME_MAX {
            self.dropped += 1;
            return Ok(false);
        }
        let Some(chain) = queue.pop(ram)? else {
            self.dropped += 1;
            return Ok(false);
        };
        let len = HEADER + frame.len();
        if chain.writable_len() < len as u64 {
            self.dropped += 1;
            return queue.push(ram, chain.head, 0);
        }
        let mut bytes = vec![0; HEADER];
        // One buffer holds it all.
        bytes[10] = 1;
        bytes.extend(frame);
        chain.scatter(ram, 0, &bytes);
        queue.push(ram, chain.head, len as u32)
    }
}
