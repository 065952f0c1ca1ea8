//! What is measured, against which goal of `performance.md`, section 2.
//!
//! | module | duty |
//! |---|---|
//! | `images` | whole images made, compared, merged |
//! | `metadata` | what goes through tables |
//! | `requests` | scripts of single requests |

mod images;
mod metadata;
mod requests;

use super::proof::{Proof, TARGET};

/// What a case runs.
#[derive(Clone, Copy, Debug)]
pub enum Runs {
    /// `qemu-img` with these arguments.
    Img(&'static [&'static str]),
    /// `qemu-io` with these arguments, and a file of commands as its standard input.
    Io {
        /// The arguments.
        args: &'static [&'static str],
        /// The file of commands.
        script: &'static str,
    },
}

/// Which time the goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// CPU seconds.
    Cpu,
    /// Seconds on the wall: for direct I/O, where the device decides.
    Wall,
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Least ratio of reference to us.
    pub goal: f64,
    /// Of what.
    pub metric: Metric,
    /// What runs.
    pub runs: Runs,
    /// The argument that names the file it makes or changes; each side has its own.
    pub target: Option<&'static str>,
    /// What the target is a copy of before each run; without it, it is not there.
    pub target_from: Option<&'static str>,
    /// Exit status of success.
    pub status: i32,
    /// What shows the work.
    pub proof: Proof,
    /// Pairs of runs, where not the usual number.
    pub pairs: Option<usize>,
}

impl Case {
    const fn by_wall(self) -> Self {
        Self { metric: Metric::Wall, ..self }
    }

    const fn with_pairs(self, pairs: usize) -> Self {
        Self { pairs: Some(pairs), ..self }
    }
}

const fn looks(name: &'static str, goal: f64, args: &'static [&'static str]) -> Case {
    Case {
        name,
        goal,
        metric: Metric::Cpu,
        runs: Runs::Img(args),
        target: None,
        target_from: None,
        status: 0,
        proof: Proof::Output,
        pairs: None,
    }
}

const fn makes(name: &'static str, goal: f64, args: &'static [&'static str], source: &'static str) -> Case {
    Case { target: Some(TARGET), proof: Proof::Content(source), ..looks(name, goal, args) }
}

const fn io(name: &'static str, goal: f64, args: &'static [&'static str], script: &'static str) -> Case {
    Case { runs: Runs::Io { args, script }, proof: Proof::Lines, ..looks(name, goal, &[]) }
}

const fn writes(name: &'static str, goal: f64, script: &'static str, from: &'static str) -> Case {
    Case {
        target: Some(TARGET),
        target_from: Some(from),
        proof: Proof::Targets,
        ..io(name, goal, &["-t", "writeback", "-f", "qcow2", "out"], script)
    }
}

/// A change of internal snapshots.
const fn snapshots(name: &'static str, goal: f64, args: &'static [&'static str], from: &'static str) -> Case {
    Case { target: Some(TARGET), target_from: Some(from), proof: Proof::Targets, ..looks(name, goal, args) }
}

/// An overlay that loses its changes to another layer, or takes over what it had from one.
const fn layers(name: &'static str, goal: f64, args: &'static [&'static str], from: &'static str) -> Case {
    Case { target: Some(TARGET), target_from: Some(from), proof: Proof::Targets, ..looks(name, goal, args) }
}

/// Changes an image, and leaves it sound.
const fn changes(name: &'static str, goal: f64, args: &'static [&'static str], from: &'static str) -> Case {
    Case { target: Some(TARGET), target_from: Some(from), proof: Proof::Sound, ..looks(name, goal, args) }
}

/// Makes an image without content.
const fn creates(name: &'static str, goal: f64, args: &'static [&'static str]) -> Case {
    Case { target: Some(TARGET), proof: Proof::Sound, ..looks(name, goal, args) }
}

/// All cases.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [metadata::CASES, images::CASES, requests::CASES].into_iter().flatten()
}
