//! A qcow2 image, field by field, whatever is wrong with it.
//!
//! qcow2 specification. Limits are those that the reference and the engine keep to.

mod extensions;
mod tables;

use cowbell_qcow2::Header;

use super::source::{Fields, File, PIECE_MAX};
use super::{Candidate, Reference, Severity, text};
use extensions::Extensions;

/// Longest name of a backing file.
const BACKING_NAME_MAX: u32 = 1023;
/// Most bytes of an L1 table: 32 MiB.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Most bytes of a refcount table: 8 MiB.
const REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// Most internal snapshots.
const SNAPSHOTS_MAX: u32 = 65_536;

/// Incompatible, compatible and autoclear features, by bit.
const FEATURES: [(&str, usize, &[&str]); 3] = [
    ("incompatible", 72, &["dirty", "corrupt", "external-data-file", "compression-type", "extended-l2"]),
    ("compatible", 80, &["lazy-refcounts"]),
    ("autoclear", 88, &["bitmaps", "raw-external-data"]),
];

/// The image as it is looked at.
struct Image<'a> {
    file: &'a File<'a>,
    /// The first cluster, or what there is of it.
    head: Vec<u8>,
    found: Candidate,
    version: u32,
    cluster_bits: u32,
}

/// What there is to say, if the file begins like such an image.
pub(crate) fn look(file: &File<'_>) -> Option<Candidate> {
    let start = file.bytes(0, 8);
    let version = start.be32(4);
    if start.part(0, 4) != b"QFI\xfb" || version == 1 {
        return None;
    }
    let certainty = if matches!(version, 2 | 3) { 100 } else { 60 };
    let mut found =
        Candidate::new("qcow2", certainty, format!("begins with 'QFI\\xfb' and version {version}"));
    found.fact("version", version);
    if !matches!(version, 2 | 3) {
        found.remark(Severity::Limit, format!("nobody knows version {version} of the format"));
    }
    let cluster_bits = file.bytes(20, 4).be32(0);
    let known = (9..=21).contains(&cluster_bits);
    if !known {
        found.remark(
            Severity::Limit,
            format!("the cluster size would be 2^{cluster_bits}; 2^9 to 2^21 are allowed"),
        );
    }
    let head = file.bytes(0, if known { 1 << cluster_bits } else { PIECE_MAX });
    let mut image = Image { file, head, found, version, cluster_bits: if known { cluster_bits } else { 16 } };
    image.header(known);
    image.features();
    let extensions = image.extensions();
    image.backing(&extensions);
    image.places();
    image.snapshots();
    image.bitmaps(&extensions);
    image.encryption(&extensions);
    image.verdict();
    Some(image.found)
}

impl Image<'_> {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn header(&mut self, known: bool) {
        let size = self.head.be64(24);
        self.found.fact("virtual-size", size);
        if known {
            self.found.fact("cluster-size", self.cluster());
        }
        if (self.head.len() as u64) < 72 || self.version >= 3 && self.head.len() < 104 {
            self.found.remark(
                Severity::Broken,
                format!("the file ends inside its header, after {} bytes", self.head.len()),
            );
        }
        if self.version < 3 {
            return;
        }
        let (order, len) = (self.head.be32(96), self.head.be32(100));
        match order {
            0..=6 => self.found.fact("refcount-bits", 1u64 << order),
            _ => self
                .found
                .remark(Severity::Limit, format!("refcounts would have 2^{order} bits; 64 are the most")),
        }
        self.found.fact("header-length", len);
        if !(104..=self.cluster()).contains(&u64::from(len)) || !len.is_multiple_of(8) {
            self.found.remark(Severity::Broken, format!("the header claims a length of {len} bytes"));
        }
        if len > 112 {
            let more = u64::from(len).min(self.cluster()) - 112;
            self.found
                .remark(Severity::Note, format!("the header has {more} bytes of fields that nobody knows"));
        }
        match if len > 104 { self.head.part(104, 1).first().copied().unwrap_or(0) } else { 0 } {
            0 => self.found.fact("compression-type", "zlib"),
            1 => self.found.fact("compression-type", "zstd"),
            other => self.found.remark(Severity::Limit, format!("nobody knows compression type {other}")),
        }
    }

    fn features(&mut self) {
        if self.version < 3 {
            return;
        }
        for (group, at, names) in FEATURES {
            let bits = self.head.be64(at);
            let set = |bit: &usize| bits & 1 << bit != 0;
            let known: Vec<&str> = (0..names.len()).filter(set).map(|bit| names[bit]).collect();
            let unknown: Vec<u64> = (names.len()..64).filter(set).map(|bit| bit as u64).collect();
            self.found.fact(&format!("{group}-features"), known);
            if !unknown.is_empty() {
                self.found.fact(&format!("unknown-{group}-bits"), unknown.clone());
                let (severity, means) = match group {
                    "incompatible" => (Severity::Limit, "the image cannot be opened"),
                    "compatible" => (Severity::Note, "that does no harm"),
                    _ => (Severity::Note, "whoever writes to the image clears them"),
                };
                self.found.remark(severity, format!("unknown {group} feature bits {unknown:?}: {means}"));
            }
        }
        let incompatible = self.head.be64(72);
        if incompatible & 1 != 0 {
            self.found.remark(Severity::Note, "it was not shut down cleanly: its refcounts may be wrong");
        }
        if incompatible & 2 != 0 {
            self.found
                .remark(Severity::Note, "it is marked corrupt: it can only be read until it is repaired");
        }
    }

    fn backing(&mut self, extensions: &Extensions) {
        let (offset, len) = (self.head.be64(8), self.head.be32(16));
        if let Some(format) = &extensions.backing_format {
            self.found.fact("backing-format", format.clone());
        }
        if offset == 0 {
            return;
        }
        if len > BACKING_NAME_MAX {
            self.found.remark(
                Severity::Limit,
                format!("the name of the backing file has {len} bytes; 1023 are the most"),
            );
        }
        let end = offset.saturating_add(u64::from(len));
        if end > self.cluster() {
            self.found
                .remark(Severity::Broken, "the name of the backing file lies outside of the first cluster");
        }
        let name = self.file.bytes(offset, len.min(BACKING_NAME_MAX) as usize);
        let name = cowbell_block::names::from_bytes(super::source::until_nul(&name));
        if name.is_empty() {
            return;
        }
        self.found.references.push(Reference::new("backing file", &name));
        if extensions.backing_format.is_none() {
            self.found.remark(
                Severity::Danger,
                "the format of its backing file is not stored: it would be guessed, and a guest that wrote to it can \
                 decide what is guessed",
            );
        }
    }

    /// Whether tables lie where tables can lie.
    fn places(&mut self) {
        let (l1_entries, l1) = (u64::from(self.head.be32(36)), self.head.be64(40));
        self.found.fact("l1-entries", l1_entries);
        let entry_bytes = if self.version >= 3 && self.head.be64(72) & 16 != 0 { 16 } else { 8 };
        let per_table = self.cluster() / entry_bytes;
        let needed = self.head.be64(24).div_ceil(self.cluster()).div_ceil(per_table);
        if needed * 8 > L1_BYTES_MAX {
            self.found.remark(
                Severity::Limit,
                format!(
                    "a disk of {} bytes needs {needed} L1 entries; 4194304 are the most",
                    self.head.be64(24)
                ),
            );
        }
        if l1_entries * 8 > L1_BYTES_MAX {
            self.found.remark(
                Severity::Limit,
                format!("the L1 table has {l1_entries} entries; 4194304 are the most"),
            );
        } else if l1_entries < needed {
            self.found.remark(
                Severity::Broken,
                format!("the L1 table has {l1_entries} entries, the disk needs {needed}"),
            );
        }
        self.place("L1 table", l1, l1_entries * 8);
        let (reftable, clusters) = (self.head.be64(48), u64::from(self.head.be32(56)));
        self.found.fact("refcount-table-clusters", clusters);
        let bytes = clusters << self.cluster_bits;
        if bytes > REFTABLE_BYTES_MAX {
            self.found.remark(
                Severity::Limit,
                format!("the refcount table has {bytes} bytes; 8388608 are the most"),
            );
        }
        if clusters == 0 {
            self.found.remark(Severity::Broken, "there is no refcount table");
        }
        self.place("refcount table", reftable, bytes);
    }

    /// Says what is wrong with the place of a table.
    fn place(&mut self, what: &str, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if !offset.is_multiple_of(self.cluster()) || offset == 0 {
            self.found
                .remark(Severity::Broken, format!("the {what} at {offset:#x} does not begin at a cluster"));
        }
        if offset >= self.file.len() {
            self.found.remark(
                Severity::Broken,
                format!("the {what} at {offset:#x} lies behind the end of the file"),
            );
        } else if offset.saturating_add(bytes) > self.file.len().next_multiple_of(self.cluster()) {
            self.found.remark(
                Severity::Note,
                format!("the {what} at {offset:#x} goes on behind the end of the file"),
            );
        }
    }

    fn encryption(&mut self, extensions: &Extensions) {
        let method = self.head.be32(32);
        let name = match method {
            0 => return,
            1 => "aes",
            2 => "luks",
            _ => {
                self.found.remark(Severity::Limit, format!("nobody knows encryption method {method}"));
                return;
            }
        };
        self.found.fact("encryption", name);
        match (method, extensions.crypto) {
            (2, None) => {
                self.found.remark(Severity::Broken, "it is encrypted with LUKS and has no LUKS header")
            }
            (2, Some((offset, bytes))) => {
                self.place("LUKS header", offset, bytes);
                if !self.file.has(offset, b"LUKS\xba\xbe") {
                    self.found.remark(Severity::Broken, format!("there is no LUKS header at {offset:#x}"));
                }
            }
            _ => {}
        }
    }

    /// What the engine says of the header.
    fn verdict(&mut self) {
        match Header::parse(&self.head) {
            Ok(_) => self.found.fact("header-accepted", true),
            Err(e) => {
                self.found.fact("header-accepted", false);
                self.found.remark(
                    Severity::Limit,
                    format!("it would not be opened: {}", text(e.to_string().as_bytes())),
                );
            }
        }
    }
}
