//! What the differential tests share with fuzzing: random numbers from a seed, and where the structures of an
//! image lie, so that one can be damaged on purpose.
#![forbid(unsafe_code)]

pub mod layout;
pub mod rng;
