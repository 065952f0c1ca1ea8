//! The simulated world from one seed.
#![forbid(unsafe_code)]

pub mod crash;
pub mod disk;
pub mod exec;
pub mod faults;
pub mod model;
pub mod pool;
pub mod rng;
pub mod stamp;
