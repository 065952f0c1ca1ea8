//! The file as a raw disk: partition tables, file systems by their marks, and formats that begin in partitions.

use serde_json::{Value, json};

use super::source::{Fields, File};
use super::{Candidate, Severity, text};

const SECTOR: u64 = 512;
/// Most entries of a GPT that are looked at: what every tool makes.
const GPT_ENTRIES_MAX: u32 = 128;

/// Everything can be a raw disk; how certain it is depends on what is found.
pub(crate) fn look(file: &File<'_>) -> Candidate {
    let mut raw = Candidate::new("raw", 1, "any file can be a raw disk");
    let mut starts = Vec::new();
    if let Some(partitions) = mbr(file, &mut raw) {
        starts.extend(partitions);
    }
    if let Some(partitions) = gpt(file, &mut raw) {
        starts.extend(partitions);
    }
    if let Some(name) = file_system(file, 0) {
        raw.certainty = raw.certainty.max(70);
        raw.evidence.push(format!("it begins with a file system: {name}"));
        raw.fact("file-system", name);
    }
    starts.sort_unstable();
    starts.dedup();
    let mut inside = Vec::new();
    for start in starts.into_iter().filter(|start| *start > 0 && *start < file.len()) {
        if let Some(name) = file_system(file, start) {
            inside.push(json!({ "offset": start, "content": name }));
        }
        if file.has(start, b"QFI\xfb") {
            raw.remark(
                Severity::Note,
                format!("a qcow2 header lies at the beginning of the partition at {start}"),
            );
        }
    }
    if !inside.is_empty() {
        raw.fact("partition-contents", inside);
    }
    if !file.len().is_multiple_of(SECTOR) {
        raw.remark(
            Severity::Note,
            "its length is no multiple of 512: as a disk it ends with zeroes that are not stored",
        );
    }
    raw
}

/// A partition table in the first sector: where the partitions begin.
fn mbr(file: &File<'_>, raw: &mut Candidate) -> Option<Vec<u64>> {
    let sector = file.bytes(0, SECTOR as usize);
    if sector.part(510, 2) != [0x55, 0xaa] {
        return None;
    }
    let entry = |i: usize| sector.part(446 + i * 16, 16);
    let used: Vec<&[u8]> = (0..4).map(entry).filter(|e| e.get(4).is_some_and(|kind| *kind != 0)).collect();
    let sound = used.iter().all(|e| matches!(e[0], 0 | 0x80) && e.le32(8) > 0 && e.le32(12) > 0);
    if used.is_empty() || !sound {
        raw.certainty = raw.certainty.max(30);
        raw.evidence.push("its first sector ends with 55 aa, as boot sectors do".into());
        return None;
    }
    raw.certainty = raw.certainty.max(60);
    raw.evidence.push(format!("its first sector is a partition table (MBR) with {} entries", used.len()));
    let partitions: Vec<Value> = used
        .iter()
        .map(|e| {
            let (start, len) = (u64::from(e.le32(8)) * SECTOR, u64::from(e.le32(12)) * SECTOR);
            json!({ "type": format!("{:#04x}", e[4]), "start": start, "length": len })
        })
        .collect();
    raw.fact("partition-table", "mbr");
    raw.fact("partitions", partitions);
    Some(used.iter().map(|e| u64::from(e.le32(8)) * SECTOR).collect())
}

fn gpt(file: &File<'_>, raw: &mut Candidate) -> Option<Vec<u64>> {
    let block = [512u64, 4096].into_iter().find(|block| file.has(*block, b"EFI PART"))?;
    let header = file.bytes(block, 512);
    let (first, count, size) = (header.le64(72), header.le32(80), header.le32(84));
    raw.certainty = raw.certainty.max(75);
    raw.evidence.push(format!("a GUID partition table lies at {block}"));
    raw.fact("partition-table", "gpt");
    raw.fact("block-size", block);
    let backup = header.le64(32).saturating_mul(block);
    if !file.has(backup, b"EFI PART") {
        raw.remark(Severity::Note, format!("the second GUID partition table, at {backup}, is missing"));
    }
    if !(128..=4096).contains(&size) {
        raw.remark(
            Severity::Broken,
            format!("the entries of the GUID partition table have {size} bytes each"),
        );
        return None;
    }
    if count > GPT_ENTRIES_MAX {
        raw.remark(Severity::Limit, format!("the GUID partition table claims {count} entries"));
    }
    let table = file.bytes(first.saturating_mul(block), (count.min(GPT_ENTRIES_MAX) * size) as usize);
    let used: Vec<&[u8]> = table.chunks_exact(size as usize).filter(|e| e.part(0, 16) != [0; 16]).collect();
    let partitions: Vec<Value> = used
        .iter()
        .map(|e| {
            let (start, last) = (e.le64(32), e.le64(40));
            let units: Vec<u16> = e.part(56, 72).chunks_exact(2).map(|unit| unit.le16(0)).collect();
            let name = String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default());
            json!({
                "name": text(name.as_bytes()),
                "start": start.saturating_mul(block),
                "length": last.saturating_sub(start).saturating_add(1).saturating_mul(block),
            })
        })
        .collect();
    raw.fact("partitions", partitions);
    Some(used.iter().map(|e| e.le64(32).saturating_mul(block)).collect())
}

/// The file system that begins at an offset, by its marks.
fn file_system(file: &File<'_>, start: u64) -> Option<&'static str> {
    const MARKS: &[(&str, u64, &[u8])] = &[
        ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
        ("XFS", 0, b"XFSB"),
        ("Btrfs", 0x10040, b"_BHRfS_M"),
        ("NTFS", 3, b"NTFS    "),
        ("exFAT", 3, b"EXFAT   "),
        ("FAT", 0x36, b"FAT"),
        ("FAT32", 0x52, b"FAT32"),
        ("LVM physical volume", 512, b"LABELONE"),
        ("swap space", 4086, b"SWAPSPACE2"),
        ("SquashFS", 0, b"hsqs"),
        ("LUKS", 0, b"LUKS\xba\xbe"),
        ("ZFS", 0x1_f000, b"\x0c\xb1\xba\0\0\0\0\0"),
        ("APFS", 32, b"NXSB"),
        ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
        ("ISO 9660", 0x8001, b"CD001"),
    ];
    MARKS
        .iter()
        .find(|(_, offset, mark)| start.checked_add(*offset).is_some_and(|at| file.has(at, mark)))
        .map(|(name, ..)| *name)
}
