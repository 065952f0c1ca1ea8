//! Encrypted images: LUKS1 volumes as a driver of their own, and what formats need that embed them.
//!
//! | module | duty |
//! |---|---|
//! | `algorithm`, `hash` | names and sizes; PBKDF2 |
//! | `iv`, `mode`, [`sector`] | the cipher of a volume over runs of sectors |
//! | [`header`] | the LUKS1 header, byte by byte |
//! | `split`, [`keys`] | the anti-forensic splitter; keys from passphrases and slots |
//! | [`create`](mod@create), [`amend`] | new volumes; slots added and removed, in an order that a cut cannot hurt |
//! | `node`, `driver` | the volume as a block node, and how the registry makes it |
//! | [`secret`] | the forms in which secrets are given |
//!
//! Invariants: keys and passphrases are wiped when they are dropped, and never printed; whatever a header says, the
//! memory taken is bounded by the length of the longest key's material (256 KiB) and the time by
//! [`header::ITERATIONS_MAX`] for each slot.
#![forbid(unsafe_code)]

mod algorithm;
pub mod amend;
pub mod create;
mod driver;
mod hash;
pub mod header;
mod iv;
pub mod keys;
mod mode;
mod node;
pub mod secret;
pub mod sector;
mod split;

pub use algorithm::{CipherAlg, CipherMode, CipherSpec, EssivError, Hash, IvAlg, Unknown};
pub use create::{Algorithms, CreateOptions, NewVolume, create};
pub use driver::LuksDriver;
pub use header::{Header, HeaderError, Placement};
pub use keys::{Area, MasterKey, WrongPassphrase};
pub use node::{Luks, OpenOptions};
pub use sector::{SECTOR, SectorCipher, SpecError};

/// The driver's name.
pub const DRIVER: &str = "luks";

/// An encrypted image that was given no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Parameter '{0}' is required for cipher")]
pub struct KeyMissing(pub &'static str);

impl From<KeyMissing> for cowbell_block::Error {
    fn from(e: KeyMissing) -> Self {
        Self::new(cowbell_block::ErrorKind::InvalidInput, e)
    }
}
