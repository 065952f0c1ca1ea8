//! Hostile input: images, LUKS headers, configurations and options, and what must hold whatever they are.
//!
//! | module | duty |
//! |---|---|
//! | [`target`] | what is done to an input, and what must hold |
//! | [`execute`] | one execution, within limits of heap, I/Os and time |
//! | [`input`] | inputs: from the corpus, made by the engine, damaged; a few hostile ones by construction |
//! | [`scene`] | an image and what is done with it as a short string of bytes |
//! | [`mutate`] | damage to a scene that knows where an image's structures lie |
//! | [`choices`] | decisions, from a seed or from bytes |
//! | [mod@file] | the file below, in memory: counts I/Os |
//! | [`heap`] | counts memory (the only `unsafe` here) |
//!
//! Two programs run the targets: `cowbell-fuzz`, a seeded loop that needs nothing, and `cowbell-fuzz-guided`, which
//! libFuzzer drives by the coverage it sees. The limits of `reliability.md`, 4.9, hold for each execution.
#![deny(unsafe_code)]

pub mod choices;
pub mod execute;
pub mod file;
pub mod heap;
pub mod input;
pub mod mutate;
pub mod scene;
pub mod target;
