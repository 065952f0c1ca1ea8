//! Virtual hard disks (VHD, `vpc`): fixed, dynamic and differencing images, as the format's specification and the
//! reference have them.
//!
//! ```text
//!   fixed:                disk ──────────────────────────────────────────┤footer│
//!   dynamic, differencing: │footer│header│(parent's names)│BAT│ block │ block │ … │footer│
//!                                                              └ sector bitmap, then data
//! ```
//!
//! | module | duty |
//! |---|---|
//! | [`footer`], [`geometry`] | what every image ends with; how long the disk is |
//! | [`header`], [`locator`] | the header of those that grow; where a parent lies |
//! | `state` | the table of blocks, the bitmaps, and what of them is not in the file yet |
//! | `engine` | requests: where bytes lie, new blocks, the order on disk |
//! | [`node`], [`driver`], [`create`](mod@create) | the image as a node, for the registry; new images |
//!
//! Invariants:
//! 1. A block's place is in the file's table only after its bitmap and data are durable; a bit of a differencing image
//!    is set in the file only after its sector is there, and a dynamic image's blocks have all their bits first. A cut
//!    leaves the disk as the last flush had it, or as a write after that.
//! 2. Wherever the file is cut, a footer is found: the copy at its start is never written again, and the one at its end
//!    is written behind a new block before the block takes its place.
//! 3. Nobody writes to an image whose blocks lie upon each other or upon its tables.
//! 4. Whatever an image says, the table takes at most 16 MiB, and so do the bitmaps in memory.
#![forbid(unsafe_code)]

pub mod create;
pub mod driver;
mod engine;
mod error;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod locator;
pub mod node;
mod state;

pub use create::{CreateOptions, Parent, Subformat, create};
pub use driver::VpcDriver;
pub use error::VpcError;
pub use node::{OpenOptions, SizeRule, Vpc};

/// The driver's name.
pub const DRIVER: &str = "vpc";
/// Bytes in the unit that disks are measured in.
pub const SECTOR: u64 = 512;

/// Ordering steps that the `mutants` feature of `cowbell-block` can switch off, and what each is for.
pub const MUTANTS: &[(&str, &str)] = &[
    ("vpc-table-beside-data", "blocks and bitmaps durable before the table names them"),
    ("vpc-remains-shown", "a new block reads as zeroes, whatever lay in its place"),
    ("vpc-blocks-side-by-side", "one new block at a time"),
    ("vpc-bits-before-data", "a sector is marked as the image's own after its data is written"),
    ("vpc-bits-of-old", "all sectors of a dynamic image's block are marked when the block is written to"),
    ("vpc-poison-forgotten", "after a failed flush nothing is promised any more"),
    ("vpc-close-unflushed", "data written in place is durable when the image is closed"),
];
