//! Formats that are known by bytes at fixed places. What they say of themselves is not looked at.

use super::source::File;
use super::{Candidate, FOOTER_ONLY};

/// Where the bytes are.
#[derive(Clone, Copy)]
enum Place {
    At(u64),
    /// So many bytes before the end.
    BeforeEnd(u64),
}

struct Magic {
    format: &'static str,
    place: Place,
    bytes: &'static [u8],
    /// Less where few bytes decide.
    certainty: u8,
}

const fn at(format: &'static str, offset: u64, bytes: &'static [u8], certainty: u8) -> Magic {
    Magic { format, place: Place::At(offset), bytes, certainty }
}

/// Names are the drivers', where the reference has one; otherwise those of the tools that make such files.
const MAGICS: &[Magic] = &[
    at("qcow", 0, b"QFI\xfb\0\0\0\x01", 100),
    at("qed", 0, b"QED\0", 90),
    at("parallels", 0, b"WithoutFreeSpace", 100),
    at("parallels", 0, b"WithouFreSpacExt", 100),
    at("bochs", 0, b"Bochs Virtual HD Image", 100),
    at("cloop", 0, b"#!/bin/sh\n#V2.0 Format", 100),
    Magic { format: "dmg", place: Place::BeforeEnd(512), bytes: b"koly", certainty: 90 },
    at("iso9660", 0x8001, b"CD001", 90),
    at("gzip", 0, b"\x1f\x8b\x08", 80),
    at("xz", 0, b"\xfd7zXZ\0", 90),
    at("zstd", 0, b"\x28\xb5\x2f\xfd", 80),
    at("bzip2", 0, b"BZh", 60),
    at("lz4", 0, b"\x04\x22\x4d\x18", 80),
    at("zip", 0, b"PK\x03\x04", 80),
    at("7z", 0, b"7z\xbc\xaf\x27\x1c", 90),
    at("tar", 257, b"ustar", 90),
    at("android-sparse", 0, b"\x3a\xff\x26\xed", 80),
    at("wim", 0, b"MSWIM\0\0\0", 100),
    at("elf", 0, b"\x7fELF", 90),
    at("pe", 0, b"MZ", 30),
    at("script", 0, b"#!", 40),
    at("pdf", 0, b"%PDF-", 90),
];

/// The formats whose bytes are there.
pub(crate) fn look(file: &File<'_>) -> Vec<Candidate> {
    let found = MAGICS.iter().filter_map(|magic| {
        let (offset, named) = match magic.place {
            Place::At(0) => (0, "begins with".to_owned()),
            Place::At(offset) => (offset, format!("at {offset:#x} there is")),
            Place::BeforeEnd(back) => {
                (file.len().checked_sub(back)?, format!("{back} bytes before its end there is"))
            }
        };
        let is_there = file.has(offset, magic.bytes);
        let shown = magic.bytes.escape_ascii();
        is_there.then(|| {
            let mut found = Candidate::new(magic.format, magic.certainty, format!("{named} '{shown}'"));
            if matches!(magic.place, Place::BeforeEnd(_)) {
                found.fact(FOOTER_ONLY, true);
            }
            found
        })
    });
    found.collect()
}
