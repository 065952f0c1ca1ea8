//! Other image formats, as far as their headers go.

use super::source::{Fields, File, until_nul};
use super::{Candidate, FOOTER_ONLY, Reference, Severity, text};

/// Most bytes of a VMDK descriptor that are looked at.
const DESCRIPTOR_BYTES_MAX: usize = 64 << 10;
/// Most extents of a VMDK descriptor that are named.
const EXTENTS_MAX: usize = 100;

/// The formats that the file could be.
pub(crate) fn look(file: &File<'_>) -> Vec<Candidate> {
    [luks(file), vpc(file), vhdx(file), vmdk(file), vdi(file)].into_iter().flatten().collect()
}

fn luks(file: &File<'_>) -> Option<Candidate> {
    let head = file.bytes(0, 1024);
    if head.part(0, 6) != b"LUKS\xba\xbe" {
        return None;
    }
    let version = head.be16(6);
    let mut found =
        Candidate::new("luks", 100, format!("begins with 'LUKS\\xba\\xbe' and version {version}"));
    found.fact("version", version);
    match version {
        1 => {
            let word = |at: usize| text(until_nul(head.part(at, 32)));
            found.fact("cipher", format!("{}-{}", word(8), word(40)));
            found.fact("hash", word(72));
            found.fact("key-bytes", head.be32(108));
            found.fact("payload-offset", u64::from(head.be32(104)) * 512);
            found.fact("uuid", text(until_nul(head.part(168, 40))));
            let active = (0..8).filter(|slot| head.be32(208 + slot * 48) == 0x00ac_71f3).count();
            found.fact("active-key-slots", active);
            if u64::from(head.be32(104)) * 512 > file.len() {
                found.remark(Severity::Broken, "its payload would begin behind the end of the file");
            }
        }
        2 => {
            found.fact("header-bytes", head.be64(8));
            found.fact("label", text(until_nul(head.part(24, 48))));
            found.fact("uuid", text(until_nul(head.part(168, 40))));
            found.remark(Severity::Limit, "LUKS2 is not opened by this program nor by the reference");
        }
        _ => found.remark(Severity::Limit, format!("nobody knows version {version} of LUKS")),
    }
    Some(found)
}

fn vpc(file: &File<'_>) -> Option<Candidate> {
    let at_end = file.len().saturating_sub(512);
    let (place, offset) = match (file.has(0, b"conectix"), file.has(at_end, b"conectix")) {
        (true, _) => ("begins with", 0),
        (false, true) if at_end > 0 => ("its last sector begins with", at_end),
        _ => return None,
    };
    let footer = file.bytes(offset, 512);
    let sum: u32 =
        footer.iter().enumerate().filter(|(i, _)| !(64..68).contains(i)).map(|(_, b)| u32::from(*b)).sum();
    let sound = !sum == footer.be32(64);
    // A footer at the end alone is what the reference does not probe for: it has to be named.
    let certainty = match (offset, sound) {
        (0, true) => 100,
        (0, false) => 90,
        (_, true) => 85,
        (_, false) => 50,
    };
    let mut found = Candidate::new("vpc", certainty, format!("{place} 'conectix'"));
    if offset > 0 {
        found.fact(FOOTER_ONLY, true);
        found.remark(
            Severity::Note,
            "its mark is at its end alone: programs that guess formats take it for raw",
        );
    }
    if !sound {
        found.remark(Severity::Broken, "the checksum of its footer is wrong");
    }
    let kind = footer.be32(60);
    found.fact(
        "type",
        match kind {
            2 => "fixed".into(),
            3 => "dynamic".into(),
            4 => "differencing".into(),
            other => format!("unknown ({other})"),
        },
    );
    found.fact("virtual-size", footer.be64(48));
    found.fact("creator", text(until_nul(footer.part(28, 4))));
    let header = footer.be64(16);
    if matches!(kind, 3 | 4) {
        let sparse = file.bytes(header, 1024);
        if sparse.part(0, 8) != b"cxsparse" {
            found.remark(Severity::Broken, format!("there is no header of a dynamic disk at {header:#x}"));
        }
        found.fact("block-size", sparse.be32(32));
        found.fact("blocks", sparse.be32(28));
        let units: Vec<u16> = sparse.part(64, 512).chunks_exact(2).map(|unit| unit.be16(0)).collect();
        let name = String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default());
        if kind == 4 && !name.is_empty() {
            found.references.push(Reference::new("parent", &name));
        }
    }
    Some(found)
}

fn vhdx(file: &File<'_>) -> Option<Candidate> {
    let head = file.bytes(0, 520);
    if head.part(0, 8) != b"vhdxfile" {
        return None;
    }
    let mut found = Candidate::new("vhdx", 100, "begins with 'vhdxfile'");
    let units: Vec<u16> = head.part(8, 512).chunks_exact(2).map(|unit| unit.le16(0)).collect();
    let creator = String::from_utf16_lossy(units.split(|unit| *unit == 0).next().unwrap_or_default());
    found.fact("creator", text(creator.as_bytes()));
    Some(found)
}

fn vdi(file: &File<'_>) -> Option<Candidate> {
    let head = file.bytes(0, 512);
    if head.part(64, 4) != b"\x7f\x10\xda\xbe" {
        return None;
    }
    let mut found = Candidate::new("vdi", 95, "at 0x40 there is '\\x7f\\x10\\xda\\xbe'");
    found.fact("text", text(until_nul(head.part(0, 64)).trim_ascii_end()));
    found.fact("version", format!("{}.{}", head.le16(70), head.le16(68)));
    let kind = match head.le32(76) {
        1 => "dynamic".to_owned(),
        2 => "static".to_owned(),
        other => format!("other ({other})"),
    };
    found.fact("type", kind);
    found.fact("virtual-size", head.le64(368));
    found.fact("block-size", head.le32(376));
    Some(found)
}

fn vmdk(file: &File<'_>) -> Option<Candidate> {
    let head = file.bytes(0, 512);
    let (mut found, descriptor) = match head.part(0, 4) {
        b"KDMV" => {
            let mut found = Candidate::new("vmdk", 100, "begins with 'KDMV'");
            found.fact("version", head.le32(4));
            found.fact("virtual-size", head.le64(12).saturating_mul(512));
            let (offset, len) = (head.le64(28).saturating_mul(512), head.le64(36).saturating_mul(512));
            (found, file.bytes(offset, len.min(DESCRIPTOR_BYTES_MAX as u64) as usize))
        }
        b"COWD" => return Some(Candidate::new("vmdk", 100, "begins with 'COWD'")),
        b"# Di" if head.starts_with(b"# Disk DescriptorFile") => {
            let found = Candidate::new("vmdk", 100, "begins with '# Disk DescriptorFile'");
            (found, file.bytes(0, DESCRIPTOR_BYTES_MAX))
        }
        _ => return None,
    };
    let descriptor = String::from_utf8_lossy(until_nul(&descriptor)).into_owned();
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    for line in descriptor.lines() {
        let reference = match line.split_once('=') {
            Some(("parentFileNameHint", _)) => quoted(line).map(|name| Reference::new("parent", &name)),
            Some(("createType", _)) => {
                found.fact("type", quoted(line).map(|kind| text(kind.as_bytes())));
                None
            }
            _ if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) => {
                quoted(line).map(|name| Reference::new("extent", &name))
            }
            _ => None,
        };
        if found.references.len() < EXTENTS_MAX {
            found.references.extend(reference);
        }
    }
    Some(found)
}
