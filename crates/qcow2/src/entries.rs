//! Consecutive entries of one L2 table: what each says, and how far they go on alike.
//!
//! A slice in the cache and a piece of a table read for itself are looked at alike.

use crate::geometry::{DataPlace, Geometry, GuestCluster, HostOffset, L2Format};
use crate::map::{Kind, Run};
use crate::state::{Corruption, Decision, EntryPlace};
use crate::table::{Cell, Storage};

/// Host offsets stay below (qcow2 specification, *Cluster mapping*).
const HOST_OFFSET_END: u64 = 1 << 56;

/// Entries that are compared before the result is looked at.
const BLOCK: usize = 16;

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a> {
    /// As stored.
    pub bytes: &'a [u8],
    /// The guest cluster of the first.
    pub first: GuestCluster,
    /// Where the first lies in the file.
    pub host: HostOffset,
    pub geometry: &'a Geometry,
    /// The image's version.
    pub version: u32,
}

impl Entries<'_> {
    /// One past the last guest cluster.
    pub fn end(&self) -> u64 {
        self.first.0 + self.bytes.len() as u64 / self.geometry.l2_entry_bytes()
    }

    /// The longest run at guest `offset`, which these entries map, at most `len` bytes, and not beyond them.
    pub fn run(&self, offset: u64, len: u64) -> Decision<Run> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(offset);
        let mut run = self.run_in_cluster(cluster, geometry.in_cluster(offset))?;
        let (mut next, last) = (cluster.0 + 1, self.end());
        while run.len < len && next < last && geometry.in_cluster(offset + run.len) == 0 {
            let end = last.min(next + (len - run.len).div_ceil(geometry.cluster_size()));
            let alike = self.alike_after(GuestCluster(next - 1), end);
            if alike > 0 {
                run.len += alike << geometry.cluster_bits;
                next += alike;
                continue;
            }
            // What is wrong further on is told to who asks there.
            let Ok(more) = self.run_in_cluster(GuestCluster(next), 0) else { break };
            if !run.is_continued_by(&more) {
                break;
            }
            run.len += more.len;
            next += 1;
        }
        run.len = run.len.min(len);
        Ok(run)
    }

    /// How many entries after that of `cluster`, up to the guest cluster `end`, continue it bit for bit: they are the
    /// same, but for the next place on the host. If it is valid, so are they.
    pub fn alike_after(&self, cluster: GuestCluster, end: u64) -> u64 {
        let geometry = self.geometry;
        if geometry.l2_format == L2Format::Extended || end <= cluster.0 + 1 {
            return 0;
        }
        let at = (cluster.0 - self.first.0) as usize;
        let raw = self.word(at);
        let size = geometry.cluster_size();
        let (step, room) = match Cell::decode(raw, 0, geometry).map(|cell| cell.storage) {
            Some(Storage::None) => (0, u64::MAX),
            Some(Storage::Cluster(host, _)) => (size, (HOST_OFFSET_END - host.0) / size - 1),
            _ => return 0,
        };
        let most = (end - cluster.0 - 1).min(room) as usize;
        let (rest, _) = self.bytes[(at + 1) * 8..].as_chunks::<8>();
        count_alike(&rest[..most.min(rest.len())], raw, step)
    }

    /// The mapping of a guest cluster.
    #[inline]
    pub fn cell(&self, cluster: GuestCluster) -> Decision<Cell> {
        let geometry = self.geometry;
        let at = (cluster.0 - self.first.0) as usize;
        let (raw, bitmap) = match geometry.l2_format {
            L2Format::Standard => (self.word(at), 0),
            L2Format::Extended => (self.word(2 * at), self.word(2 * at + 1)),
        };
        let cell = Cell::decode(raw, bitmap, geometry);
        let cell = cell.ok_or_else(|| Corruption::EntryInvalid(self.place_of(cluster)))?;
        match cell.storage {
            Storage::Compressed(_) if geometry.data_place == DataPlace::External => {
                Err(Corruption::EntryInvalid(self.place_of(cluster)).into())
            }
            Storage::Cluster(host, _)
                if geometry.data_place == DataPlace::External && host.0 != geometry.guest_offset(cluster) =>
            {
                let (offset, guest) = (host.0, geometry.guest_offset(cluster));
                Err(Corruption::ExternalMisplaced { offset, guest, at: self.place_of(cluster) }.into())
            }
            Storage::Cluster(host, _) if !geometry.is_aligned(host) => {
                let (offset, at) = (host.0, self.place_of(cluster));
                match cell.zero {
                    0 => Err(Corruption::ClusterUnaligned { offset, at }.into()),
                    _ => Err(Corruption::ZeroClusterUnaligned { offset, at }.into()),
                }
            }
            _ if cell.zero != 0 && self.version < 3 => {
                Err(Corruption::ZeroInVersion2(self.place_of(cluster)).into())
            }
            _ => Ok(cell),
        }
    }

    /// The run at a byte of a cluster, at most to the cluster's end.
    fn run_in_cluster(&self, cluster: GuestCluster, inside: u64) -> Decision<Run> {
        let geometry = self.geometry;
        let cell = self.cell(cluster)?;
        let host = match cell.storage {
            Storage::None => None,
            Storage::Cluster(host, _) => Some(HostOffset(host.0 + inside)),
            Storage::Compressed(compressed) => {
                let len = geometry.cluster_size() - inside;
                return Ok(Run { kind: Kind::Compressed(compressed), len });
            }
        };
        let size = geometry.subcluster_size();
        let first = (inside / size) as u32;
        let (alike, kind) = match host {
            Some(host) if cell.alloc >> first & 1 != 0 => (cell.alloc, Kind::Data(host)),
            host if cell.zero >> first & 1 != 0 => (cell.zero, Kind::Zero(host)),
            host => (geometry.all_subclusters() & !(cell.alloc | cell.zero), Kind::Unallocated(host)),
        };
        let count = (alike >> first).trailing_ones();
        Ok(Run { kind, len: u64::from(first + count) * size - inside })
    }

    /// The 8-byte word `index`.
    #[inline]
    fn word(&self, index: usize) -> u64 {
        let bytes = self.bytes[index * 8..index * 8 + 8].first_chunk().expect("eight bytes");
        u64::from_be_bytes(*bytes)
    }

    /// Where the entry of a guest cluster lies, for messages.
    fn place_of(&self, cluster: GuestCluster) -> EntryPlace {
        let table = self.host.0 >> self.geometry.cluster_bits << self.geometry.cluster_bits;
        EntryPlace { table, index: cluster.0 % self.geometry.l2_entries() }
    }
}

/// How many entries go on where `raw` is before the first, each `step` more than the one before.
fn count_alike(entries: &[[u8; 8]], raw: u64, step: u64) -> u64 {
    let mut expect = raw;
    let (blocks, _) = entries.as_chunks::<BLOCK>();
    let differs = |block: &[[u8; 8]; BLOCK]| {
        let mut different = 0;
        for entry in block {
            expect = expect.wrapping_add(step);
            different |= expect ^ u64::from_be_bytes(*entry);
        }
        different != 0
    };
    let alike = blocks.iter().position(differs).unwrap_or(blocks.len()) * BLOCK;
    let mut expect = raw.wrapping_add(step.wrapping_mul(alike as u64));
    let follows = |entry: &&[u8; 8]| {
        expect = expect.wrapping_add(step);
        u64::from_be_bytes(**entry) == expect
    };
    (alike + entries[alike..].iter().take_while(follows).count()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_alike_up_to_the_first_that_is_not() {
        for (step, len) in [(0u64, 100usize), (0x1_0000, 100), (0x1_0000, 16), (0, 0), (512, 31)] {
            let raw = 1 << 63 | 0x5_0000;
            let mut entries: Vec<[u8; 8]> =
                (1..=len as u64).map(|i| (raw + i * step).to_be_bytes()).collect();
            assert_eq!(count_alike(&entries, raw, step), len as u64);
            for at in 0..len {
                entries[at][7] ^= 1;
                assert_eq!(count_alike(&entries, raw, step), at as u64, "{step} {len}");
                entries[at][7] ^= 1;
            }
        }
    }
}
