//! The snapshot table and the bitmap directory.

use serde_json::{Value, json};

use super::super::source::{Fields, PIECE_MAX, until_nul};
use super::super::{Severity, text};
use super::extensions::Extensions;
use super::{Image, L1_BYTES_MAX, SNAPSHOTS_MAX};

/// Most snapshots and bitmaps that are listed.
const LIST_MAX: u32 = 1000;
/// Most bytes of extra data of a snapshot.
const EXTRA_MAX: usize = 1024;
/// Most bitmaps of an image.
const BITMAPS_MAX: u32 = 65_535;

impl Image<'_> {
    /// Lists the snapshots.
    pub(super) fn snapshots(&mut self) {
        let (count, offset) = (self.head.be32(60), self.head.be64(64));
        if count == 0 {
            return;
        }
        self.found.fact("snapshot-count", count);
        if count > SNAPSHOTS_MAX {
            self.found.remark(Severity::Limit, format!("it claims {count} snapshots; 65536 are the most"));
        }
        self.place("snapshot table", offset, u64::from(count) * 40);
        let table = self.file.bytes(offset, PIECE_MAX);
        let (mut at, mut list) = (0, Vec::new());
        for number in 1..=count.min(LIST_MAX) {
            let row = table.get(at..).unwrap_or_default();
            let (id, name, extra) = (row.be16(12) as usize, row.be16(14) as usize, row.be32(36) as usize);
            let len = 40usize.saturating_add(extra).saturating_add(id).saturating_add(name);
            if row.len() < 40 || row.len() < len {
                self.found.remark(Severity::Broken, format!("the snapshot table ends inside entry {number}"));
                break;
            }
            if extra > EXTRA_MAX {
                self.found.remark(
                    Severity::Limit,
                    format!("snapshot {number} has {extra} bytes of extra data; 1024 are the most"),
                );
            }
            list.push(self.snapshot(number, row, 40 + extra, id, name));
            at = (at + len).next_multiple_of(8);
        }
        if count > LIST_MAX {
            self.found.remark(Severity::Note, format!("only the first {LIST_MAX} snapshots are listed"));
        }
        self.found.fact("snapshots", list);
    }

    fn snapshot(&mut self, number: u32, row: &[u8], names: usize, id: usize, name: usize) -> Value {
        let (l1, entries) = (row.be64(0), u64::from(row.be32(8)));
        if entries * 8 > L1_BYTES_MAX {
            self.found
                .remark(Severity::Limit, format!("the L1 table of snapshot {number} has {entries} entries"));
        }
        self.place(&format!("L1 table of snapshot {number}"), l1, entries * 8);
        let extra = row.be32(36);
        let vm_state = if extra >= 8 { row.be64(40) } else { u64::from(row.be32(32)) };
        let mut value = json!({
            "id": text(until_nul(row.part(names, id))),
            "name": text(until_nul(row.part(names + id, name))),
            "date-sec": row.be32(16),
            "vm-state-size": vm_state,
        });
        if extra >= 16 {
            value["disk-size"] = row.be64(48).into();
        }
        value
    }

    /// Lists the bitmaps.
    pub(super) fn bitmaps(&mut self, extensions: &Extensions) {
        let Some((count, bytes, offset)) = extensions.bitmaps else { return };
        if self.head.be64(88) & 1 == 0 {
            self.found.remark(Severity::Note, "its bitmaps are out of date: another program wrote to it");
        }
        if count > BITMAPS_MAX {
            self.found.remark(Severity::Limit, format!("it claims {count} bitmaps; 65535 are the most"));
        }
        self.place("bitmap directory", offset, bytes);
        let directory = self.file.bytes(offset, bytes.min(PIECE_MAX as u64) as usize);
        let (mut at, mut list) = (0, Vec::new());
        for number in 1..=count.min(LIST_MAX) {
            let row = directory.get(at..).unwrap_or_default();
            let (name, extra) = (row.be16(18) as usize, row.be32(20) as usize);
            let len = 24usize.saturating_add(extra).saturating_add(name);
            if row.len() < 24 || row.len() < len {
                self.found
                    .remark(Severity::Broken, format!("the bitmap directory ends inside entry {number}"));
                break;
            }
            let (flags, kind, granularity) = (row.be32(12), row.part(16, 1)[0], row.part(17, 1)[0]);
            if kind != 1 || flags & !7 != 0 || !(9..=31).contains(&granularity) {
                let line = format!(
                    "bitmap {number} has type {kind}, flags {flags:#x} and granularity 2^{granularity}"
                );
                self.found.remark(Severity::Limit, line);
            }
            self.place(&format!("table of bitmap {number}"), row.be64(0), u64::from(row.be32(8)) * 8);
            list.push(json!({
                "name": text(row.part(24 + extra, name)),
                "granularity": 1u64.checked_shl(u32::from(granularity)),
                "in-use": flags & 1 != 0,
                "recording": flags & 2 != 0,
            }));
            at = (at + len).next_multiple_of(8);
        }
        self.found.fact("bitmaps", list);
    }
}
