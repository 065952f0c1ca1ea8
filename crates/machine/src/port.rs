//! The machine's only doors to the outside: console output, disks, and a network.
//!
//! What comes in goes through the event queue ([`crate::event`]) with its count; what goes out goes through these
//! traits. None of them may decide anything about the guest's state but the contents of a disk.

use std::collections::BTreeMap;

/// Which console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConsoleId {
    /// The UART.
    Uart,
    /// The virtio console.
    Virtio,
}

/// Where console output goes.
pub trait Console: Send {
    /// Takes bytes the guest sent.
    fn write(&mut self, console: ConsoleId, bytes: &[u8]);
}

/// Collects output, for tests and tools; both consoles into one.
impl Console for std::sync::Arc<std::sync::Mutex<Vec<u8>>> {
    fn write(&mut self, _: ConsoleId, bytes: &[u8]) {
        self.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
    }
}

/// Throws output away.
#[derive(Debug, Default)]
pub struct NoConsole;

impl Console for NoConsole {
    fn write(&mut self, _: ConsoleId, _: &[u8]) {}
}

/// Where frames of the network card go.
pub trait Network: Send {
    /// Takes a frame the guest sent.
    fn transmit(&mut self, frame: Vec<u8>);
}

/// What a disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskOp {
    /// Read `len` bytes.
    Read,
    /// Write `data`.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The range may be forgotten.
    Discard,
    /// The range becomes zero.
    WriteZeroes,
}

/// A request; its buffer is owned and comes back with the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// What.
    pub op: DiskOp,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; zero for a flush.
    pub len: u64,
    /// The payload of a write; for a read, a buffer of `len` bytes to fill.
    pub data: Vec<u8>,
    /// Instruction count of the store that notified the device.
    pub origin: u64,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReply {
    /// The request's buffer; filled by a read that succeeded.
    pub data: Vec<u8>,
    /// Whether it succeeded. The guest sees an I/O error otherwise.
    pub ok: bool,
}

/// A disk. Requests that overlap take effect in the order of submission.
///
/// The machine polls when the request's time has come, and waits (its run returns) while the answer is `None`.
pub trait Disk: Send {
    /// Size in bytes; a last partial sector is not seen by the guest.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Starts a request.
    fn submit(&mut self, token: u64, request: DiskRequest);
    /// Takes the reply if it is there.
    fn poll(&mut self, token: u64) -> Option<DiskReply>;
}

/// A disk in memory, for tests and examples.
#[derive(Debug, Default)]
pub struct MemDisk {
    /// The contents.
    pub bytes: Vec<u8>,
    replies: BTreeMap<u64, DiskReply>,
}

impl MemDisk {
    /// A disk with these contents.
    pub fn new(bytes: Vec<u8>) -> MemDisk {
        MemDisk { bytes, replies: BTreeMap::new() }
    }
}

impl Disk for MemDisk {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&mut self, token: u64, request: DiskRequest) {
        let DiskRequest { op, offset, len, mut data, .. } = request;
        let end = offset.saturating_add(len).min(usize::MAX as u64) as usize;
        let range = self.bytes.get_mut(offset.min(end as u64) as usize..end);
        let ok = range.is_some();
        if let Some(range) = range {
            match op {
                DiskOp::Read => data.copy_from_slice(range),
                DiskOp::Write => range.copy_from_slice(&data),
                DiskOp::WriteZeroes => range.fill(0),
                DiskOp::Flush | DiskOp::Discard => {}
            }
        }
        self.replies.insert(token, DiskReply { data, ok });
    }

    fn poll(&mut self, token: u64) -> Option<DiskReply> {
        self.replies.remove(&token)
    }
}
