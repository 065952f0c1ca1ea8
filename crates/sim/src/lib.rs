//! The simulated world from one seed.
#![forbid(unsafe_code)]

pub mod commands;
pub mod config;
pub mod crash;
pub mod disk;
pub mod engine;
#[cfg(test)]
mod engine_tests;
pub mod exec;
pub mod explore;
pub mod faults;
pub mod guest;
pub mod image;
pub mod judge;
pub mod lab;
pub mod model;
pub mod mutants;
pub mod pairs;
pub mod pool;
pub mod repair;
pub mod reuse;
pub mod rng;
pub mod scenario;
pub mod shrink;
pub mod stamp;
pub mod subject;
#[cfg(test)]
mod toy;
pub mod workload;
