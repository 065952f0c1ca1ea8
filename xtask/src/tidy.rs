//! Rules on the tree that are worth a test: what a reviewer would otherwise say again and again.
//!
//! | module | rules |
//! |---|---|
//! | [`files`] | size, tabs, blanks, marks of unfinished work |
//! | [`rooms`] | which crate may name which; where unsafe code is forbidden |
//! | [`determinism`] | what an engine must not know: clock, threads, environment, random order |
//! | [`licence`] | the licences of everything we depend on |

mod determinism;
mod files;
mod licence;
mod rooms;
mod source;

use anyhow::Result;

use crate::cargo;
use crate::step::Outcome;

/// Checks all rules but the licences.
pub fn run() -> Result<Outcome> {
    let sources = source::all()?;
    let metadata = cargo::metadata()?;
    let mut offences = files::check(&sources);
    offences.extend(determinism::check(&sources));
    offences.extend(rooms::check(&metadata, &sources));
    report(&offences, &format!("{} files", sources.len()))
}

/// Checks the licences of the dependency tree.
pub fn licences() -> Result<Outcome> {
    let metadata = cargo::metadata()?;
    let (offences, count) = licence::check(&metadata);
    report(&offences, &format!("{count} packages"))
}

fn report(offences: &[String], what: &str) -> Result<Outcome> {
    for offence in offences {
        println!("{offence}");
    }
    println!("{what} looked at");
    Ok(match offences.len() {
        0 => Outcome::Passed,
        n => Outcome::Failed(format!("{n} offences, the first: {}", offences[0])),
    })
}
