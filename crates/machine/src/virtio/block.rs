//! The block device: requests out to a [`Disk`](crate::port::Disk) port, replies back at their due time.

use super::{Chain, RingError};
use crate::port::{DiskOp, DiskReply, DiskRequest};
use crate::ram::Ram;
use std::collections::BTreeMap;

const SECTOR: u64 = 512;
/// Sectors one discard or write-zeroes request may name.
const RANGE_SECTORS_MAX: u32 = 1 << 22;
const SEGMENTS_MAX: u32 = 254;

/// Bytes of payload in flight from which on no further request is taken from the queue, until one completes: with the
/// largest request that bounds what a guest can make us hold.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// How long disk requests take: the same on every host, a function of operation and length only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskLatency {
    /// Nanoseconds for any request.
    pub base_ns: u64,
    /// Nanoseconds for each KiB moved.
    pub kib_ns: u64,
}

impl Default for DiskLatency {
    /// About what a good local disk does: 20 µs, and 1 GiB/s.
    fn default() -> DiskLatency {
        DiskLatency { base_ns: 20_000, kib_ns: 1_000 }
    }
}

impl DiskLatency {
    /// Nanoseconds that a request takes.
    pub fn ns(&self, request: &DiskRequest) -> u64 {
        let moved = match request.op {
            DiskOp::Read | DiskOp::Write => request.len,
            DiskOp::Flush | DiskOp::Discard | DiskOp::WriteZeroes => 0,
        };
        self.base_ns + moved.div_ceil(1024) * self.kib_ns
    }
}

/// State of a disk's device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Which of the machine's disk ports.
    pub port: usize,
    /// Whole sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Latency.
    pub latency: DiskLatency,
    next_token: u64,
    in_flight: BTreeMap<u64, InFlight>,
    /// Requests were left in the queue for want of room: the next completion looks again.
    held_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    chain: Chain,
    reads: bool,
    bytes: u64,
}

/// What became of a chain that was just taken from the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// Hand this to the port.
    Submit(u64, DiskRequest),
    /// It is answered already; give it back with so many bytes written.
    Answered(u32),
}

impl Block {
    /// A device for a port.
    pub fn new(port: usize, bytes: u64, read_only: bool, latency: DiskLatency) -> Block {
        let sectors = bytes / SECTOR;
        Block {
            port,
            sectors,
            read_only,
            latency,
            next_token: 0,
            in_flight: BTreeMap::new(),
            held_back: false,
        }
    }

    pub(super) const fn features(&self) -> u64 {
        const SEG_MAX: u64 = 1 << 2;
        const RO: u64 = 1 << 5;
        const BLK_SIZE: u64 = 1 << 6;
        const FLUSH: u64 = 1 << 9;
        const DISCARD: u64 = 1 << 13;
        const WRITE_ZEROES: u64 = 1 << 14;
        SEG_MAX | BLK_SIZE | FLUSH | if self.read_only { RO } else { DISCARD | WRITE_ZEROES }
    }

    pub(super) fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        space
    }

    /// Forgets what is in flight; replies that still come are dropped.
    pub(super) fn reset(&mut self) {
        self.held_back = false;
        self.in_flight.clear();
    }

    /// Whether another request may be taken from the queue; if not, that is remembered.
    pub(crate) fn has_room(&mut self) -> bool {
        let bytes: u64 = self.in_flight.values().map(|request| request.bytes).sum();
        self.held_back = bytes >= IN_FLIGHT_BYTES_MAX;
        !self.held_back
    }

    /// Whether the queue must be looked at again now that a request is finished.
    pub(crate) fn was_held_back(&self) -> bool {
        self.held_back
    }

    /// Reads a request from the guest. Called at the notifying store, with its instruction count.
    pub(crate) fn accept(&mut self, ram: &mut Ram, chain: Chain, origin: u64) -> Result<Accepted, RingError> {
        let out = chain.gather(ram);
        let inward = chain.writable_len();
        let (Some(header), true) = (out.first_chunk::<16>(), inward > 0) else { return Err(RingError) };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = header[8..].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let payload = &out[16..];
        let request = match kind {
            0 => self.request(DiskOp::Read, sector, inward - 1, vec![0; (inward - 1) as usize]),
            1 => self.request(DiskOp::Write, sector, payload.len() as u64, payload.to_vec()),
            4 => self.request(DiskOp::Flush, 0, 0, Vec::new()),
            8 => {
                let mut id = [0; 20];
                let text = format!("cowbell-disk-{}", self.port);
                id[..text.len().min(20)].copy_from_slice(&text.as_bytes()[..text.len().min(20)]);
                let written = chain.scatter(ram, 0, &id[..20.min(inward as usize - 1)]) as u32;
                chain.scatter(ram, inward - 1, &[STATUS_OK]);
                return Ok(Accepted::Answered(written + 1));
            }
            11 => self.range_request(DiskOp::Discard, payload),
            13 => self.range_request(DiskOp::WriteZeroes, payload),
            _ => Err(STATUS_UNSUPPORTED),
        };
        match request {
            Ok(request) => {
                let token = self.next_token;
                self.next_token += 1;
                let (reads, bytes) = (request.op == DiskOp::Read, request.data.len() as u64);
                self.in_flight.insert(token, InFlight { chain, reads, bytes });
                Ok(Accepted::Submit(token, DiskRequest { origin, ..request }))
            }
            Err(status) => {
                chain.scatter(ram, inward - 1, &[status]);
                Ok(Accepted::Answered(1))
            }
        }
    }

    fn request(&self, op: DiskOp, sector: u64, len: u64, data: Vec<u8>) -> Result<DiskRequest, u8> {
        let writes = !matches!(op, DiskOp::Read | DiskOp::Flush);
        let inside = sector.checked_add(len / SECTOR).is_some_and(|end| end <= self.sectors);
        if !len.is_multiple_of(SECTOR) || !inside || (writes && self.read_only) {
            return Err(STATUS_IO_ERROR);
        }
        Ok(DiskRequest { op, offset: sector * SECTOR, len, data, origin: 0 })
    }

    fn range_request(&self, op: DiskOp, payload: &[u8]) -> Result<DiskRequest, u8> {
        let Ok(segment) = <[u8; 16]>::try_from(payload) else { return Err(STATUS_UNSUPPORTED) };
        let number = |from: usize, len: usize| {
            segment[from..from + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (sector, count, flags) = (number(0, 8), number(8, 4), number(12, 4));
        if flags > 1 || count > RANGE_SECTORS_MAX.into() {
            return Err(STATUS_UNSUPPORTED);
        }
        self.request(op, sector, count * SECTOR, Vec::new())
    }

    /// Writes a reply into the guest. Gives the head and the bytes written, or `None` after a reset.
    pub(crate) fn complete(&mut self, ram: &mut Ram, token: u64, reply: &DiskReply) -> Option<(u16, u32)> {
        let InFlight { chain, reads, .. } = self.in_flight.remove(&token)?;
        let inward = chain.writable_len();
        let mut written = 1;
        if reads && reply.ok {
            let room = (inward - 1).min(reply.data.len() as u64) as usize;
            written += chain.scatter(ram, 0, &reply.data[..room]) as u32;
        }
        let status = if reply.ok { STATUS_OK } else { STATUS_IO_ERROR };
        chain.scatter(ram, inward - 1, &[status]);
        Some((chain.head, written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{PAGE, RAM_BASE};
    use crate::virtio::Part;

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    /// Offers a request whose driver part is `out` and whose device part has `inward` bytes.
    #[track_caller]
    fn check(out: &[u8], inward: u32, expect: Result<(DiskOp, u64, u64), u8>) {
        let mut ram = Ram::new(4 * PAGE).expect("memory");
        ram.write(RAM_BASE, out);
        let reply_at = RAM_BASE + 2 * PAGE;
        let part = |address, len, writable| Part { address, len, writable };
        let chain = Chain {
            head: 3,
            parts: vec![part(RAM_BASE, out.len() as u32, false), part(reply_at, inward, true)],
        };
        let mut block = Block::new(0, 100 * SECTOR + 7, false, DiskLatency::default());
        match block.accept(&mut ram, chain, 5).expect("well formed") {
            Accepted::Submit(_, request) => {
                assert_eq!(Ok((request.op, request.offset, request.len)), expect);
                assert_eq!(request.origin, 5);
            }
            Accepted::Answered(len) => {
                assert_eq!(len, 1);
                let status = ram.read_number(reply_at + u64::from(inward) - 1, 1).expect("in RAM") as u8;
                assert_eq!(Err(status), expect);
            }
        }
    }

    #[test]
    fn requests_are_checked_against_the_disk() {
        check(&header(0, 98), 1025, Ok((DiskOp::Read, 98 * 512, 1024)));
        check(&header(0, 99), 1025, Err(STATUS_IO_ERROR));
        check(&header(0, u64::MAX), 513, Err(STATUS_IO_ERROR));
        check(&header(0, 0), 100, Err(STATUS_IO_ERROR));
        check(&[&header(1, 2)[..], &[7; 512]].concat(), 1, Ok((DiskOp::Write, 1024, 512)));
        check(&header(4, 0), 1, Ok((DiskOp::Flush, 0, 0)));
        check(&header(99, 0), 1, Err(STATUS_UNSUPPORTED));
        let range = [&header(13, 0)[..], &4u64.to_le_bytes(), &8u32.to_le_bytes(), &[0; 4]].concat();
        check(&range, 1, Ok((DiskOp::WriteZeroes, 2048, 4096)));
        check(&range[..30], 1, Err(STATUS_UNSUPPORTED));
    }

    #[test]
    fn a_guest_cannot_make_us_hold_more_than_the_limit() {
        let mut ram = Ram::new(64 * PAGE).expect("memory");
        ram.write(RAM_BASE, &header(0, 0));
        let part = |address, len, writable| Part { address, len, writable };
        // The same memory over and over, 8 MiB at a time.
        let reads = (0..32).map(|_| part(RAM_BASE + PAGE, 256 << 10, true));
        let mut block = Block::new(0, 1 << 30, false, DiskLatency::default());
        let mut taken = 0;
        while block.has_room() {
            let status = part(RAM_BASE + PAGE, 1, true);
            let parts =
                [part(RAM_BASE, 16, false)].into_iter().chain(reads.clone()).chain([status]).collect();
            let accepted = block.accept(&mut ram, Chain { head: 0, parts }, 0).expect("well formed");
            assert!(matches!(accepted, Accepted::Submit(..)), "{accepted:?}");
            taken += 1;
        }
        assert_eq!((taken, block.was_held_back()), (4, true));
        block.complete(&mut ram, 0, &DiskReply { data: Vec::new(), ok: true }).expect("in flight");
        assert!(block.has_room() && !block.was_held_back());
    }

    #[test]
    fn a_reply_after_a_reset_touches_nothing() {
        let mut ram = Ram::new(PAGE).expect("memory");
        let mut block = Block::new(0, SECTOR, false, DiskLatency::default());
        let reply = DiskReply { data: vec![1; 512], ok: true };
        assert_eq!(block.complete(&mut ram, 0, &reply), None);
    }
}
