//! A machine with disks from a block graph.
//!
//! | module | duty |
//! |---|---|
//! | [`disk`] | a disk of the machine over a root of the graph, with overlapping requests in order |
//! | [`vm`] | the machine's life: running, idle time, late disks, input, a debugger |
//! | [`surroundings`] | the seam to the outside that whoever runs a machine implements |
//! | [`escape`] | what a person types to the program rather than to the guest |
//! | [`summary`] | how a run ended, for programs |
//!
//! Invariants: everything happens on the thread that calls [`Vm::run`]; what comes in from outside enters the machine
//! between two pieces of a run and gets its instant there; nothing else here can be seen by the guest but what its
//! disks hold.
#![forbid(unsafe_code)]

pub mod disk;
pub mod escape;
pub mod summary;
pub mod surroundings;
pub mod vm;

pub use disk::{BlockDisk, Discards, Drive};
pub use surroundings::{Input, Surroundings, Wish};
pub use vm::{End, Vm};
