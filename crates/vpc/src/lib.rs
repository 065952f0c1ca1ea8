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
//! 1. A block's place is in the file's table only after its bitmap and data are durable; a bit is set in the file only
//!    after its sector is. A cut leaves the disk as the last flush had it, or as a write after that.
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
