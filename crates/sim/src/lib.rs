//! The simulated world from one seed.
//!
//! ```text
//!   ground    rng  pool (sectors by content)  stamp  exec (every choice explicit)  disk  faults  timeline
//!   world     config  image (built from the specification)  workload  scenario (a run as text)
//!   truth     model (reference disk)  judge (metadata and data of one image)  bitmaps (what they must say)  recorded (what they say)  keys (who opens what)  reference  subject (what is under test)  vhd (another one)
//!   runs      guest  session  lab (run, cut, recover, cut again)  crash (what a cut may leave)  bounds  repair
//!   told      figures  events  told
//!   searches  explore  pairs  reuse  layers (commit, rebase)  mutants  shrink  commands (the program)
//! ```
//!
//! A run is a [`scenario::Scenario`]; [`lab::Lab::judge`] runs it and holds it against every oracle. The
//! oracles are proven on a toy format with planted bugs (in the tests) and on the engine's own mutants.
//! Nothing here reads a clock for a decision: the same seed gives the same trace.
#![forbid(unsafe_code)]

pub mod bitmaps;
pub(crate) mod bounds;
pub mod commands;
pub mod config;
pub mod crash;
pub(crate) mod cuts;
pub mod damaged;
pub mod disk;
pub mod engine;
#[cfg(test)]
mod engine_tests;
pub mod events;
pub mod exec;
pub mod explore;
pub mod faults;
pub mod figures;
pub mod guest;
pub mod image;
pub mod judge;
pub mod keys;
pub mod lab;
pub mod layers;
pub mod model;
pub mod mutants;
pub mod pairs;
pub mod pool;
#[cfg(test)]
mod raw_tests;
pub mod recorded;
pub mod reference;
pub mod repair;
pub mod reuse;
pub mod rng;
pub mod scenario;
pub mod session;
pub mod shrink;
pub mod stamp;
pub mod subject;
pub mod timeline;
pub mod told;
#[cfg(test)]
mod toy;
pub mod vhd;
pub mod workload;
