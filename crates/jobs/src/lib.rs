//! Long operations over block nodes: convert, commit, rebase, compare, diff, map.
//!
//! A job is an `async fn` over roots. It prints nothing, names no runtime and no clock, and holds nothing
//! global: how far it is and whether it should stop pass through [`Progress`], the pace through [`Pace`].
//! Dropping a job's future stops it between two requests; what was submitted is finished by the nodes.
#![forbid(unsafe_code)]

pub mod bench;
pub mod commit;
pub mod compare;
pub mod convert;
mod crew;
pub mod diff;
mod error;
mod joined;
pub mod layers;
pub mod map;
mod progress;
pub mod rebase;

pub use error::{Error, Result};
pub use progress::{Counters, Pace, Progress, Silent, Unpaced};
