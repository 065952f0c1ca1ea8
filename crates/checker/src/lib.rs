//! An independent checker of qcow2 images, written from the specification alone.
//!
//! It is the oracle that the project's engine is tested against and shares no code with it. It never
//! writes. It answers two questions:
//!
//! - **Is the metadata sound?** [`check`], or a [`Checker`] that keeps its memory from one image to the
//!   next, counts the references to every host cluster and compares them with the refcounts. What it finds
//!   are [`Finding`]s, sorted into [`Class`]es; [`Report::verdict`] sums them up.
//! - **What does the guest see?** [`GuestView`] says for every part of the guest's disk, active or of a
//!   snapshot, where its content comes from.
//!
//! Invariants: no input makes it panic or loop; work is linear in the bytes of the file, memory in the
//! referenced clusters, both bounded by [`Limits`]; each table in the file is read a fixed number of times
//! however often it is named.
//!
//! ```
//! use cowbell_checker::{CheckError, Limits, check};
//!
//! let image = vec![0u8; 65536];
//! assert!(matches!(check(&image, Limits::default()), Err(CheckError::Header(_))));
//! ```
//!
//! # Where it differs from the reference's check
//!
//! Intended, because the format or promise M1 is stricter or looser than `qemu-img check` 10.0.2.
//! [`Class::severity_in_reference`] translates; with it the verdicts agree on damaged images.
//!
//! - COPIED clear with a refcount of one ([`Class::CopiedClear`]) is a note here, an error there.
//! - Owners that may not share a cluster ([`Class::Overlap`]) are a corruption here even when the refcount
//!   agrees; the reference only counts.
//! - A zero flag where there is none ([`Class::ZeroFlag`]), COPIED without a cluster in an L2 table
//!   ([`Class::CopiedUnallocated`]), a snapshot's L1 table shorter than its disk ([`Class::L1TooShort`])
//!   and contradictions in the header ([`Class::Header`]) are corruptions here; the check of the reference
//!   does not look, though it may refuse to open or to read such an image.
//! - Refcounts of clusters beyond the end of the file ([`Class::LeakBeyondEof`]) are leaks here; the
//!   reference does not look there.
//! - A table or a part of it that starts exactly at the end of the file ([`Class::TableBeyondEof`]) is a
//!   finding here; the reference lets it pass when it is shorter than a cluster.
//! - An unaligned entry is not followed, so what it may have meant is reported as leaked as well.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bitmaps;
mod cells;
mod checker;
mod entry;
mod error;
mod finding;
#[cfg(test)]
mod findings_tests;
mod guest;
#[cfg(test)]
mod guest_tests;
mod header;
mod image;
mod mapping;
mod owner;
mod refcounts;
mod report;
mod snapshots;
mod sweep;
#[cfg(test)]
mod testimage;

pub use checker::{Checker, check};
pub use entry::EntryFault;
pub use error::{CheckError, HeaderError, Limits};
pub use finding::{BitmapFault, Class, Finding, HeaderFault, Severity, SnapshotFault};
pub use guest::{Extent, GuestView, Source, read_guest};
pub use header::{BitmapsExtension, Header, LuksExtension};
pub use image::{Peek, ReadAt};
pub use owner::{Owner, Owners, Place, Structure};
pub use report::{Report, Summary, Verdict};
