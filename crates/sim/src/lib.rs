//! The simulated world from one seed.
#![forbid(unsafe_code)]

pub mod config;
pub mod crash;
pub mod disk;
pub mod exec;
pub mod faults;
pub mod guest;
pub mod image;
pub mod judge;
pub mod lab;
pub mod model;
pub mod pool;
pub mod rng;
pub mod scenario;
pub mod shrink;
pub mod stamp;
pub mod subject;
#[cfg(test)]
mod toy;
