//! The command line.

use std::fmt;
use std::path::PathBuf;

/// What `--help` prints.
pub const USAGE: &str = "\
usage: cowbell-difftest [--cowbell FILE] [--kind d1|d2|d3|d4|d5|parity]... [--sequences N] [--seed N]
                        [--seconds N] [--jobs N] [--failures N] [--out DIR] [--filter TEXT] [--keep]";

/// A way of comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours writes.
    Ours,
    /// Theirs writes.
    Theirs,
    /// Both write in turn.
    PingPong,
    /// Damaged images.
    Damage,
    /// The same commands on two sets of images.
    Twins,
    /// Command lines.
    Parity,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "d1",
            Self::Theirs => "d2",
            Self::PingPong => "d3",
            Self::Damage => "d4",
            Self::Twins => "d5",
            Self::Parity => "parity",
        })
    }
}

/// What stays on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Directories of failed seeds.
    Failures,
    /// All directories.
    All,
}

/// The command line, resolved.
#[derive(Debug)]
pub struct Options {
    /// Our program.
    pub cowbell: PathBuf,
    /// The kinds asked for; none means all.
    kinds: Vec<Kind>,
    /// Sequences over all kinds.
    sequences: u64,
    /// The first seed.
    pub seed: u64,
    /// Most seconds for one kind.
    pub seconds: u64,
    /// Sequences at the same time.
    pub jobs: usize,
    /// Failures of one kind after which it stops.
    pub failures_max: usize,
    /// Where the directories lie.
    pub out: PathBuf,
    /// Parity cases must contain it.
    pub filter: String,
    /// What stays on disk.
    pub keep: Keep,
}

impl Options {
    /// Reads the command line.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            cowbell: "target/release/cowbell".into(),
            kinds: Vec::new(),
            sequences: 300,
            seed: 1,
            seconds: 120,
            jobs: 2,
            failures_max: 10,
            out: "target/difftest".into(),
            filter: String::new(),
            keep: Keep::Failures,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--keep" {
                options.keep = Keep::All;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{arg} needs a value, or is not known"))?;
            let number = || value.parse::<u64>().map_err(|e| format!("{arg} {value}: {e}"));
            match arg.as_str() {
                "--cowbell" => options.cowbell = value.into(),
                "--kind" => options.kinds.push(kind(value)?),
                "--sequences" => options.sequences = number()?,
                "--seed" => options.seed = number()?,
                "--seconds" => options.seconds = number()?,
                "--jobs" => options.jobs = value.parse().map_err(|e| format!("{arg} {value}: {e}"))?,
                "--failures" => {
                    options.failures_max = value.parse().map_err(|e| format!("{arg} {value}: {e}"))?;
                }
                "--out" => options.out = value.into(),
                "--filter" => options.filter.clone_from(value),
                _ => return Err(format!("there is no option {arg}")),
            }
        }
        Ok(options)
    }

    /// The kinds to run, with their numbers of sequences.
    pub fn plan(&self) -> Vec<(Kind, u64)> {
        // Ping-pong is the sharpest, theirs the mildest. Damage is cheap, and counts extra.
        let theirs = self.sequences / 4;
        let ours = (self.sequences - theirs) / 2;
        let all = [
            (Kind::Parity, 0),
            (Kind::Ours, ours),
            (Kind::Theirs, theirs),
            (Kind::PingPong, self.sequences - theirs - ours),
            (Kind::Damage, self.sequences / 5),
            (Kind::Twins, self.sequences / 25),
        ];
        if self.kinds.is_empty() {
            return all.to_vec();
        }
        self.kinds.iter().map(|kind| (*kind, self.sequences)).collect()
    }
}

fn kind(name: &str) -> Result<Kind, String> {
    [Kind::Ours, Kind::Theirs, Kind::PingPong, Kind::Damage, Kind::Twins, Kind::Parity]
        .into_iter()
        .find(|kind| kind.to_string() == name)
        .ok_or_else(|| format!("there is no kind '{name}'"))
}
