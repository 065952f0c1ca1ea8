//! What shows that both sides did the work.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::reference::Reference;

/// The name of a target in the arguments of a case; each side's own stands in for it.
pub const TARGET: &str = "out";

/// What of both sides is the same when both did the work.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    /// Both print the same.
    Output,
    /// Both print as many lines.
    Lines,
    /// The target reads as this image.
    Content(&'static str),
    /// The reference's `compare` with these arguments finds no difference.
    Compare(&'static [&'static str]),
    /// The targets of both sides read the same.
    Targets,
    /// The reference's `check` finds both targets sound, and `info` tells the same of them.
    Sound,
}

/// What a side printed and made.
pub struct Seen {
    /// Its standard output.
    pub output: String,
    /// The name of its target, empty if it has none.
    pub target: String,
}

/// An argument with the side's own name for the target: by itself, or as the value of something like `of=`.
pub fn with_target(arg: &str, target: &str) -> String {
    match arg.strip_suffix(TARGET).filter(|prefix| prefix.is_empty() || prefix.ends_with('=')) {
        Some(prefix) if !target.is_empty() => format!("{prefix}{target}"),
        _ => arg.to_owned(),
    }
}

impl Proof {
    /// # Errors
    /// What was not done.
    pub fn check(&self, theirs: &Seen, ours: &Seen, reference: &Reference, directory: &Path) -> Result<()> {
        let img = |args: &[&str]| {
            let output = Command::new(&reference.img).args(args).current_dir(directory).output();
            let output = output.context("starting the reference")?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                bail!("{args:?}: {} {}", output.status, text.trim());
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let sides = [&theirs.target, &ours.target];
        match self {
            Self::Output if theirs.output != ours.output => bail!("the outputs differ"),
            Self::Lines if theirs.output.lines().count() != ours.output.lines().count() => {
                bail!("the outputs have different numbers of lines")
            }
            Self::Output | Self::Lines => {}
            Self::Content(source) => {
                for target in sides {
                    img(&["compare", "-q", source, target])?;
                }
            }
            Self::Compare(args) => {
                for target in sides {
                    let args: Vec<String> = args.iter().map(|arg| with_target(arg, target)).collect();
                    let args = args.iter().map(String::as_str);
                    img(&["compare", "-q"].into_iter().chain(args).collect::<Vec<_>>())?;
                }
            }
            Self::Targets => {
                img(&["compare", "-q", sides[0], sides[1]])?;
            }
            Self::Sound => {
                let told = |target: &str| -> Result<(Value, Value, Value)> {
                    img(&["check", "-q", "-f", "qcow2", target])?;
                    let text = img(&["check", "-f", "qcow2", "--output=json", target])?;
                    let check: Value = serde_json::from_str(&text).context("what check printed")?;
                    let text = img(&["info", "-f", "qcow2", "--output=json", target])?;
                    let mut info: Value = serde_json::from_str(&text).context("what info printed")?;
                    let (size, specific) = (info["virtual-size"].take(), info["format-specific"].take());
                    Ok((check["allocated-clusters"].clone(), size, specific))
                };
                let (theirs, ours) = (told(sides[0])?, told(sides[1])?);
                if theirs != ours {
                    bail!("the targets differ: {theirs:?} and {ours:?}");
                }
            }
        }
        Ok(())
    }
}
