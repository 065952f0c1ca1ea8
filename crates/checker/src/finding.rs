//! What the checker can find, sorted into classes with a severity each.

use std::fmt;

use crate::entry::EntryFault;
use crate::owner::{Owner, Owners, Place, Structure};

/// How bad a class of findings is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the image is sound.
    Note,
    /// Space is lost, nothing else.
    Leak,
    /// The image can lose data.
    Corruption,
}

/// Something found in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The refcount is larger than the number of references.
    Leak {
        /// Number of the host cluster.
        cluster: u64,
        /// Its host offset.
        offset: u64,
        /// What its refcount says.
        refcount: u64,
        /// How many references there are.
        references: u64,
    },
    /// As [`Finding::Leak`], for a cluster that starts at or beyond the end of the file.
    LeakBeyondEof {
        /// Number of the host cluster.
        cluster: u64,
        /// Its host offset.
        offset: u64,
        /// What its refcount says.
        refcount: u64,
        /// How many references there are.
        references: u64,
    },
    /// The refcount is smaller than the number of references.
    RefcountTooLow {
        /// Number of the host cluster.
        cluster: u64,
        /// Its host offset.
        offset: u64,
        /// What its refcount says.
        refcount: u64,
        /// How many references there are.
        references: u64,
        /// Who references it.
        owners: Owners,
    },
    /// COPIED is set in an active table, the refcount is not one.
    CopiedSet {
        /// The entry.
        place: Place,
        /// Host offset it points at.
        target: u64,
        /// What the refcount there says.
        refcount: u64,
    },
    /// COPIED is clear in an active table, the refcount is one: a needless copy on the next write.
    CopiedClear {
        /// The entry.
        place: Place,
        /// Host offset it points at.
        target: u64,
    },
    /// Owners share a cluster that the format does not allow to share one.
    Overlap {
        /// Number of the host cluster.
        cluster: u64,
        /// Its host offset.
        offset: u64,
        /// How many references there are.
        references: u64,
        /// Who references it.
        owners: Owners,
    },
    /// Two entries of the active tables name the same L2 table or data cluster. The format allows it,
    /// no known writer does it.
    SharedInActive {
        /// Number of the host cluster.
        cluster: u64,
        /// Its host offset.
        offset: u64,
        /// Who references it.
        owners: Owners,
    },
    /// An entry breaks a rule by itself.
    Entry {
        /// The entry.
        place: Place,
        /// Its value (the first word of an extended L2 entry).
        value: u64,
        /// The rule.
        fault: EntryFault,
    },
    /// A table, or a whole cluster of it, lies beyond the end of the file.
    TableBeyondEof {
        /// What the table is.
        owner: Owner,
        /// Where it is named; for a table named by the header or a directory, the table itself.
        place: Place,
        /// Host offset of the table.
        offset: u64,
    },
    /// A data cluster, or a host cluster of a compressed one, starts at or beyond the end of the file.
    DataBeyondEof {
        /// The L2 entry.
        place: Place,
        /// Host offset of the cluster.
        offset: u64,
    },
    /// An L1 table has fewer entries than its disk needs.
    L1TooShort {
        /// Which L1 table.
        structure: Structure,
        /// Its number of entries.
        entries: u64,
        /// How many the disk needs.
        needed: u64,
    },
    /// An entry of the snapshot table breaks a rule.
    Snapshot {
        /// Index of the snapshot.
        index: u32,
        /// Host offset of its entry in the snapshot table.
        offset: u64,
        /// The rule.
        fault: SnapshotFault,
    },
    /// An entry of the bitmap directory breaks a rule.
    Bitmap {
        /// Index of the bitmap.
        index: u32,
        /// Host offset of its entry in the directory.
        offset: u64,
        /// The rule.
        fault: BitmapFault,
    },
    /// Header fields contradict each other in a way that leaves the rest readable.
    Header {
        /// The rule.
        fault: HeaderFault,
    },
}

/// A rule for entries of the snapshot table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotFault {
    /// The entry reaches beyond the end of the file or the table beyond 64 MiB. Nothing after it is read.
    Truncated,
    /// Version 3 needs 16 bytes of extra data.
    ExtraTooShort,
    /// More extra data than the reference accepts (1024 bytes).
    ExtraTooLong,
    /// The L1 table is unaligned or too large. It is not followed.
    L1Table,
}

/// A rule for entries of the bitmap directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapFault {
    /// The entries take more or fewer bytes than the directory has.
    DirectorySize,
    /// Unknown type, reserved flag, granularity out of range or no name.
    Malformed,
    /// The table is unaligned or too large. It is not followed.
    Table,
    /// The table has too few entries for the disk, and the bitmap is not marked in use.
    TableTooShort,
}

/// Contradictions between header fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// Autoclear bit 0 without a bitmaps extension.
    BitmapsWithoutExtension,
    /// Autoclear bit 1 without an external data file.
    RawDataFileWithoutDataFile,
    /// A raw external data file and a backing file.
    RawDataFileWithBacking,
    /// Internal snapshots and an external data file.
    SnapshotsWithDataFile,
}

/// What kind of finding it is. Reports count by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// [`Finding::Leak`].
    Leak,
    /// [`Finding::LeakBeyondEof`].
    LeakBeyondEof,
    /// [`Finding::RefcountTooLow`].
    RefcountTooLow,
    /// [`Finding::CopiedSet`].
    CopiedSet,
    /// [`Finding::CopiedClear`]; not part of promise M1.
    CopiedClear,
    /// [`Finding::Overlap`].
    Overlap,
    /// [`Finding::SharedInActive`].
    SharedInActive,
    /// [`EntryFault::Unaligned`].
    Unaligned,
    /// [`EntryFault::ReservedBits`].
    ReservedBits,
    /// The zero flag where the format has none: [`EntryFault::ZeroInV2`], [`EntryFault::ZeroInExtended`].
    ZeroFlag,
    /// A subcluster bitmap that makes no sense.
    InvalidSubcluster,
    /// A compressed cluster where, or with flags that, there may be none.
    InvalidCompressed,
    /// [`EntryFault::CopiedUnallocated`].
    CopiedUnallocated,
    /// [`EntryFault::DataFileOffset`].
    DataFileOffset,
    /// [`EntryFault::RefblockTwice`].
    RefblockTwice,
    /// [`Finding::TableBeyondEof`].
    TableBeyondEof,
    /// [`Finding::DataBeyondEof`].
    DataBeyondEof,
    /// [`Finding::L1TooShort`].
    L1TooShort,
    /// [`Finding::Snapshot`].
    Snapshot,
    /// [`Finding::Bitmap`].
    Bitmap,
    /// [`Finding::Header`].
    Header,
}

/// Number of classes.
pub(crate) const CLASSES: usize = 21;

impl Class {
    /// Every class.
    pub const ALL: [Class; CLASSES] = [
        Class::Leak,
        Class::LeakBeyondEof,
        Class::RefcountTooLow,
        Class::CopiedSet,
        Class::CopiedClear,
        Class::Overlap,
        Class::SharedInActive,
        Class::Unaligned,
        Class::ReservedBits,
        Class::ZeroFlag,
        Class::InvalidSubcluster,
        Class::InvalidCompressed,
        Class::CopiedUnallocated,
        Class::DataFileOffset,
        Class::RefblockTwice,
        Class::TableBeyondEof,
        Class::DataBeyondEof,
        Class::L1TooShort,
        Class::Snapshot,
        Class::Bitmap,
        Class::Header,
    ];

    /// The severity by the format and promise M1.
    pub fn severity(self) -> Severity {
        match self {
            Class::Leak | Class::LeakBeyondEof => Severity::Leak,
            Class::CopiedClear | Class::SharedInActive => Severity::Note,
            _ => Severity::Corruption,
        }
    }

    /// As [`severity`](Self::severity), for an image whose dirty bit is set: refcounts and COPIED flags
    /// may be anything, for they are rebuilt before use.
    pub fn severity_when_dirty(self) -> Severity {
        match self {
            Class::Leak | Class::LeakBeyondEof | Class::RefcountTooLow | Class::CopiedSet => Severity::Note,
            _ => self.severity(),
        }
    }

    /// What `qemu-img check` 10.0.2 makes of the class, as observed: its exit status is 2 if there is a
    /// corruption, else 3 if there is a leak, else 0. Left out: images it refuses to open (status 1), and
    /// [`EntryFault::CopiedUnallocated`] in an L1 table, where it takes the header for an L2 table.
    pub fn severity_in_reference(self) -> Severity {
        match self {
            Class::CopiedClear => Severity::Corruption,
            Class::LeakBeyondEof
            | Class::Overlap
            | Class::ZeroFlag
            | Class::CopiedUnallocated
            | Class::L1TooShort
            | Class::Header => Severity::Note,
            _ => self.severity(),
        }
    }
}

impl Finding {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Finding::Leak { .. } => Class::Leak,
            Finding::LeakBeyondEof { .. } => Class::LeakBeyondEof,
            Finding::RefcountTooLow { .. } => Class::RefcountTooLow,
            Finding::CopiedSet { .. } => Class::CopiedSet,
            Finding::CopiedClear { .. } => Class::CopiedClear,
            Finding::Overlap { .. } => Class::Overlap,
            Finding::SharedInActive { .. } => Class::SharedInActive,
            Finding::Entry { fault, .. } => fault.class(),
            Finding::TableBeyondEof { .. } => Class::TableBeyondEof,
            Finding::DataBeyondEof { .. } => Class::DataBeyondEof,
            Finding::L1TooShort { .. } => Class::L1TooShort,
            Finding::Snapshot { .. } => Class::Snapshot,
            Finding::Bitmap { .. } => Class::Bitmap,
            Finding::Header { .. } => Class::Header,
        }
    }

    /// The severity of its class.
    pub fn severity(&self) -> Severity {
        self.class().severity()
    }
}

impl EntryFault {
    fn class(self) -> Class {
        match self {
            EntryFault::Unaligned => Class::Unaligned,
            EntryFault::ReservedBits => Class::ReservedBits,
            EntryFault::ZeroInV2 | EntryFault::ZeroInExtended => Class::ZeroFlag,
            EntryFault::SubclusterBoth | EntryFault::SubclusterWithoutHost => Class::InvalidSubcluster,
            EntryFault::CompressedWithSubclusters
            | EntryFault::CompressedCopied
            | EntryFault::CompressedInDataFile => Class::InvalidCompressed,
            EntryFault::CopiedUnallocated => Class::CopiedUnallocated,
            EntryFault::DataFileOffset => Class::DataFileOffset,
            EntryFault::RefblockTwice => Class::RefblockTwice,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Leak { cluster, offset, refcount, references } => {
                write!(
                    f,
                    "leaked cluster {cluster} at {offset:#x}: refcount {refcount}, {references} references"
                )
            }
            Finding::LeakBeyondEof { cluster, offset, refcount, references } => write!(
                f,
                "leaked cluster {cluster} at {offset:#x} beyond the end of the file: refcount {refcount}, \
                 {references} references"
            ),
            Finding::RefcountTooLow { cluster, offset, refcount, references, owners } => write!(
                f,
                "cluster {cluster} at {offset:#x}: refcount {refcount}, but {references} references ({owners})"
            ),
            Finding::CopiedSet { place, target, refcount } => {
                write!(f, "{place}: COPIED set for {target:#x}, whose refcount is {refcount}")
            }
            Finding::CopiedClear { place, target } => {
                write!(f, "{place}: COPIED clear for {target:#x}, whose refcount is 1")
            }
            Finding::Overlap { cluster, offset, references, owners } => {
                write!(
                    f,
                    "cluster {cluster} at {offset:#x} has {references} owners that may not share: {owners}"
                )
            }
            Finding::SharedInActive { cluster, offset, owners } => {
                write!(f, "cluster {cluster} at {offset:#x} is named twice by the active tables ({owners})")
            }
            Finding::Entry { place, value, fault } => write!(f, "{place}: {fault} (value {value:#018x})"),
            Finding::TableBeyondEof { owner, place, offset } => {
                write!(f, "{place}: {} at {offset:#x} lies beyond the end of the file", Owners::from(*owner))
            }
            Finding::DataBeyondEof { place, offset } => {
                write!(f, "{place}: data at {offset:#x} lies beyond the end of the file")
            }
            Finding::L1TooShort { structure, entries, needed } => {
                write!(f, "{structure} has {entries} entries, the disk needs {needed}")
            }
            Finding::Snapshot { index, offset, fault } => {
                write!(f, "snapshot table, entry {index} at {offset:#x}: {fault}")
            }
            Finding::Bitmap { index, offset, fault } => {
                write!(f, "bitmap directory, entry {index} at {offset:#x}: {fault}")
            }
            Finding::Header { fault } => write!(f, "header: {fault}"),
        }
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EntryFault::Unaligned => "offset not cluster aligned",
            EntryFault::ReservedBits => "reserved bits set",
            EntryFault::ZeroInV2 => "zero flag in a version 2 image",
            EntryFault::ZeroInExtended => "zero flag in an extended entry",
            EntryFault::SubclusterBoth => "subcluster both allocated and zero",
            EntryFault::SubclusterWithoutHost => "subcluster allocated without a host cluster",
            EntryFault::CompressedWithSubclusters => "subcluster bitmap of a compressed cluster not zero",
            EntryFault::CompressedCopied => "COPIED set for a compressed cluster",
            EntryFault::CompressedInDataFile => "compressed cluster with an external data file",
            EntryFault::CopiedUnallocated => "COPIED set without a cluster",
            EntryFault::DataFileOffset => "offset in the data file is not the guest offset",
            EntryFault::RefblockTwice => "refcount block named twice",
        })
    }
}

impl fmt::Display for SnapshotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotFault::Truncated => "entry not complete",
            SnapshotFault::ExtraTooShort => "fewer than 16 bytes of extra data in version 3",
            SnapshotFault::ExtraTooLong => "more than 1024 bytes of extra data",
            SnapshotFault::L1Table => "L1 table unaligned or too large",
        })
    }
}

impl fmt::Display for BitmapFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BitmapFault::DirectorySize => "entries do not fill the directory exactly",
            BitmapFault::Malformed => "type, flags, granularity or name not allowed",
            BitmapFault::Table => "table unaligned or too large",
            BitmapFault::TableTooShort => "table has too few entries for the disk",
        })
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeaderFault::BitmapsWithoutExtension => "bitmaps autoclear bit without bitmaps extension",
            HeaderFault::RawDataFileWithoutDataFile => "raw external data bit without external data file bit",
            HeaderFault::RawDataFileWithBacking => "raw external data bit with a backing file",
            HeaderFault::SnapshotsWithDataFile => "internal snapshots with an external data file",
        })
    }
}
