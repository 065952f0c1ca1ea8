//! The split virtqueue. Everything in it is the guest's and is checked: lengths, indices, loops.

use crate::ram::Ram;

/// Largest queue offered.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Most bytes one chain may describe: a limit on what a guest can make us allocate.
const CHAIN_BYTES_MAX: u64 = 64 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// State of one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Entries, a power of two.
    pub size: u16,
    /// Set up by the driver.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    next_available: u16,
    next_used: u16,
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub writable: bool,
}

/// A request as the driver laid it out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Index of its first descriptor, which names it in the used ring.
    pub head: u16,
    /// Its buffers, each wholly in RAM.
    pub parts: Vec<Part>,
}

/// The driver broke a rule; the device stops until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed virtqueue")]
pub struct RingError;

impl Chain {
    /// Gathers what the driver wrote.
    pub fn gather(&self, ram: &Ram) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in self.parts.iter().filter(|part| !part.writable) {
            let start = bytes.len();
            bytes.resize(start + part.len as usize, 0);
            ram.read(part.address, &mut bytes[start..]);
        }
        bytes
    }

    /// Bytes the device may write.
    pub fn writable_len(&self) -> u64 {
        self.parts.iter().filter(|part| part.writable).map(|part| u64::from(part.len)).sum()
    }

    /// Scatters into the writable parts from `skip` on; returns how much fitted.
    pub fn scatter(&self, ram: &mut Ram, skip: u64, mut bytes: &[u8]) -> u64 {
        let (mut skip, mut written) = (skip, 0);
        for part in self.parts.iter().filter(|part| part.writable) {
            let len = u64::from(part.len);
            let start = skip.min(len);
            skip -= start;
            let (now, later) = bytes.split_at(((len - start) as usize).min(bytes.len()));
            ram.write(part.address + start, now);
            written += now.len() as u64;
            bytes = later;
        }
        written
    }
}

impl Queue {
    /// Takes the next chain the driver made available.
    ///
    /// # Errors
    /// When the ring or the chain is malformed.
    pub fn pop(&mut self, ram: &Ram) -> Result<Option<Chain>, RingError> {
        if !self.ready || self.size == 0 {
            return Ok(None);
        }
        let read_16 = |at: u64| ram.read_number(at, 2).map(|value| value as u16).ok_or(RingError);
        let index = read_16(self.available.wrapping_add(2))?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size {
            return Err(RingError);
        }
        let slot = u64::from(self.next_available % self.size);
        let head = read_16(self.available.wrapping_add(4 + 2 * slot))?;
        self.next_available = self.next_available.wrapping_add(1);
        let mut chain = Chain { head, parts: Vec::new() };
        self.follow(ram, self.descriptors, self.size, head, &mut chain)?;
        let bytes: u64 = chain.parts.iter().map(|part| u64::from(part.len)).sum();
        if bytes > CHAIN_BYTES_MAX { Err(RingError) } else { Ok(Some(chain)) }
    }

    /// Follows a chain through a table; an indirect descriptor leads into a table of its own, once.
    fn follow(
        &self,
        ram: &Ram,
        table: u64,
        count: u16,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), RingError> {
        let mut index = head;
        for _ in 0..count {
            if index >= count {
                return Err(RingError);
            }
            let mut raw = [0; 16];
            if !ram.read(table.wrapping_add(16 * u64::from(index)), &mut raw) {
                return Err(RingError);
            }
            let number = |from: usize, len: usize| {
                raw[from..from + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            };
            let (address, len) = (number(0, 8), number(8, 4) as u32);
            let (flags, next) = (number(12, 2) as u16, number(14, 2) as u16);
            if !ram.contains(address, len.into()) {
                return Err(RingError);
            }
            if flags & INDIRECT != 0 {
                // An indirect table lies in no other indirect table, and its length is whole descriptors.
                if table != self.descriptors || len % 16 != 0 || len / 16 > u32::from(QUEUE_SIZE_MAX) {
                    return Err(RingError);
                }
                return self.follow(ram, address, (len / 16) as u16, 0, chain);
            }
            let writable = flags & WRITE != 0;
            if !writable && chain.parts.last().is_some_and(|part| part.writable) {
                return Err(RingError);
            }
            chain.parts.push(Part { address, len, writable });
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(RingError)
    }

    /// Gives a chain back. True when the driver wants an interrupt.
    ///
    /// # Errors
    /// When the rings do not lie in RAM.
    pub fn push(&mut self, ram: &mut Ram, head: u16, len: u32) -> Result<bool, RingError> {
        let slot = u64::from(self.next_used % self.size.max(1));
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&head.to_le_bytes());
        entry[4..].copy_from_slice(&len.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        let written = ram.write(self.used.wrapping_add(4 + 8 * slot), &entry)
            && ram.write(self.used.wrapping_add(2), &self.next_used.to_le_bytes());
        let flags = ram.read_number(self.available, 2).ok_or(RingError)?;
        if written { Ok(flags & 1 == 0) } else { Err(RingError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{PAGE, RAM_BASE};

    const AVAILABLE: u64 = RAM_BASE + 0x1000;
    const USED: u64 = RAM_BASE + 0x2000;

    /// A queue of four, with these descriptors `(address, len, flags, next)` and heads made available.
    fn ring(descriptors: &[(u64, u32, u16, u16)], heads: &[u16]) -> (Ram, Queue) {
        let mut ram = Ram::new(4 * PAGE).expect("memory");
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            let at = RAM_BASE + 16 * index as u64;
            ram.write(at, &address.to_le_bytes());
            ram.write(at + 8, &len.to_le_bytes());
            ram.write(at + 12, &flags.to_le_bytes());
            ram.write(at + 14, &next.to_le_bytes());
        }
        for (slot, head) in heads.iter().enumerate() {
            ram.write(AVAILABLE + 4 + 2 * slot as u64, &head.to_le_bytes());
        }
        ram.write(AVAILABLE + 2, &(heads.len() as u16).to_le_bytes());
        let (available, used) = (AVAILABLE, USED);
        (ram, Queue { size: 4, ready: true, descriptors: RAM_BASE, available, used, ..Queue::default() })
    }

    #[track_caller]
    fn check(descriptors: &[(u64, u32, u16, u16)], expect: Result<&[(u64, u32, bool)], RingError>) {
        let (ram, mut queue) = ring(descriptors, &[0]);
        let got = queue.pop(&ram).map(|chain| {
            let parts = chain.expect("available").parts;
            parts.iter().map(|part| (part.address, part.len, part.writable)).collect::<Vec<_>>()
        });
        assert_eq!(got, expect.map(<[_]>::to_vec));
    }

    const DATA: u64 = RAM_BASE + 0x3000;

    #[test]
    fn chains_are_followed_and_checked() {
        check(
            &[(DATA, 16, NEXT, 2), (0, 0, 0, 0), (DATA + 64, 8, WRITE, 0)],
            Ok(&[(DATA, 16, false), (DATA + 64, 8, true)]),
        );
        check(&[(DATA, 1, NEXT, 0)], Err(RingError));
        check(&[(DATA, 1, NEXT, 4)], Err(RingError));
        check(&[(DATA, 0x1001, 0, 0)], Err(RingError));
        check(&[(u64::MAX, 2, 0, 0)], Err(RingError));
        check(&[(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)], Err(RingError));
        check(
            &[(RAM_BASE + 16, 32, INDIRECT, 0), (DATA, 3, NEXT, 1), (DATA, 4, WRITE, 0)],
            Ok(&[(DATA, 3, false), (DATA, 4, true)]),
        );
        check(&[(RAM_BASE + 16, 16, INDIRECT, 0), (RAM_BASE, 16, INDIRECT, 0)], Err(RingError));
        check(&[(RAM_BASE + 16, 15, INDIRECT, 0)], Err(RingError));
    }

    #[test]
    fn payload_is_scattered_over_the_parts() {
        let (mut ram, mut queue) = ring(&[(DATA, 3, WRITE | NEXT, 1), (DATA + 16, 4, WRITE, 0)], &[0]);
        let chain = queue.pop(&ram).expect("well formed").expect("available");
        assert_eq!(chain.writable_len(), 7);
        assert_eq!(chain.scatter(&mut ram, 1, b"abcdefgh"), 6);
        assert_eq!(ram.read_number(DATA, 4), Some(u64::from(u32::from_le_bytes(*b"\0ab\0"))));
        assert_eq!(ram.read_number(DATA + 16, 4), Some(u64::from(u32::from_le_bytes(*b"cdef"))));
        assert_eq!(queue.push(&mut ram, 0, 6), Ok(true));
        assert_eq!(ram.read_number(USED, 8), Some(1 << 16));
        assert_eq!(queue.pop(&ram), Ok(None));
    }
}
