//! What is measured, against which goal of `performance.md`, section 2.

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

/// What of both sides is the same when both did the work.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    /// Both print the same.
    Output,
    /// Both print as many lines.
    Lines,
    /// The target reads as this image.
    Content(&'static str),
    /// The targets of both sides read the same.
    Targets,
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
    Case { target: Some("out"), proof: Proof::Content(source), ..looks(name, goal, args) }
}

const fn io(name: &'static str, goal: f64, args: &'static [&'static str], script: &'static str) -> Case {
    Case { runs: Runs::Io { args, script }, proof: Proof::Lines, ..looks(name, goal, &[]) }
}

const fn writes(name: &'static str, goal: f64, script: &'static str, from: &'static str) -> Case {
    Case {
        target: Some("out"),
        target_from: Some(from),
        proof: Proof::Targets,
        ..io(name, goal, &["-t", "writeback", "-f", "qcow2", "out"], script)
    }
}

/// A change of internal snapshots.
const fn snapshots(name: &'static str, goal: f64, args: &'static [&'static str], from: &'static str) -> Case {
    Case { target: Some("out"), target_from: Some(from), proof: Proof::Targets, ..looks(name, goal, args) }
}

/// An overlay that loses its changes to another layer, or takes over what it had from one.
const fn layers(name: &'static str, goal: f64, args: &'static [&'static str], from: &'static str) -> Case {
    Case { target: Some("out"), target_from: Some(from), proof: Proof::Targets, ..looks(name, goal, args) }
}

/// The cases.
pub const CASES: &[Case] = &[
    Case { pairs: Some(25), ..looks("start-up: info", 3.0, &["info", "small.qcow2"]) },
    makes(
        "convert raw to qcow2",
        1.2,
        &["convert", "-f", "raw", "-O", "qcow2", "mixed.raw", "out"],
        "mixed.raw",
    ),
    makes(
        "convert qcow2 to raw",
        1.2,
        &["convert", "-f", "qcow2", "-O", "raw", "mixed.qcow2", "out"],
        "mixed.raw",
    ),
    makes(
        "convert qcow2 to qcow2 -W",
        1.2,
        &["convert", "-W", "-f", "qcow2", "-O", "qcow2", "mixed.qcow2", "out"],
        "mixed.raw",
    ),
    Case {
        metric: Metric::Wall,
        ..makes(
            "convert raw to qcow2 -t none -T none",
            0.95,
            &["convert", "-t", "none", "-T", "none", "-f", "raw", "-O", "qcow2", "mixed.raw", "out"],
            "mixed.raw",
        )
    },
    makes(
        "convert from zlib",
        2.0,
        &["convert", "-f", "qcow2", "-O", "raw", "zlib.qcow2", "out"],
        "mixed.raw",
    ),
    makes(
        "convert from zstd",
        1.3,
        &["convert", "-f", "qcow2", "-O", "raw", "zstd.qcow2", "out"],
        "mixed.raw",
    ),
    makes(
        "convert sparse 4 KiB data",
        4.0,
        &["convert", "-f", "raw", "-O", "qcow2", "sparse.raw", "out"],
        "sparse.raw",
    ),
    Case {
        target_from: Some("empty.qcow2"),
        proof: Proof::Targets,
        ..makes(
            "convert empty huge -n",
            8.0,
            &["convert", "-n", "-f", "qcow2", "-O", "qcow2", "empty.qcow2", "out"],
            "empty.qcow2",
        )
    },
    makes(
        "dd 4 KiB",
        3.0,
        &["dd", "-f", "qcow2", "-O", "raw", "bs=4k", "if=mixed.qcow2", "of=out"],
        "mixed.raw",
    ),
    makes(
        "flatten a chain: convert",
        1.2,
        &["convert", "-f", "qcow2", "-O", "qcow2", "chain-3.qcow2", "out"],
        "chain-3.qcow2",
    ),
    layers("flatten a chain: rebase", 1.2, &["rebase", "-f", "qcow2", "-b", "", "out"], "chain-3.qcow2"),
    // The base has what is committed since the first run: each run writes the same over it.
    layers("commit", 1.5, &["commit", "-q", "-f", "qcow2", "out"], "commit.qcow2"),
    layers(
        "rebase",
        1.5,
        &["rebase", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", "out"],
        "rebase.qcow2",
    ),
    layers(
        "rebase down a chain",
        1.5,
        &["rebase", "-f", "qcow2", "-b", "chain-1.qcow2", "-F", "qcow2", "out"],
        "chain-3.qcow2",
    ),
    looks("compare", 1.3, &["compare", "-f", "raw", "-F", "qcow2", "mixed.raw", "mixed.qcow2"]),
    looks("check sequential", 5.0, &["check", "-f", "qcow2", "sequential.qcow2"]),
    looks("check fragmented", 20.0, &["check", "-f", "qcow2", "fragmented.qcow2"]),
    looks("map sequential", 4.0, &["map", "-f", "qcow2", "sequential.qcow2"]),
    looks("map fragmented", 5.0, &["map", "-f", "qcow2", "--output=json", "fragmented.qcow2"]),
    io("read 4 KiB depth 1", 4.0, &["-f", "qcow2", "mixed.qcow2"], "read-1.io"),
    io("read 4 KiB depth 32", 3.0, &["-f", "qcow2", "mixed.qcow2"], "read-32.io"),
    io("read 64 KiB depth 32", 1.5, &["-f", "qcow2", "mixed.qcow2"], "read-64k.io"),
    io("read null-co depth 1", 3.0, &["--image-opts", "driver=null-co,size=1G"], "read-1.io"),
    writes("overwrite 4 KiB depth 32", 2.0, "overwrite-32.io", "full.qcow2"),
    writes("allocate 4 KiB sequential", 2.0, "allocate-sequential.io", "fresh.qcow2"),
    writes("allocate 4 KiB per cluster, depth 1", 3.0, "allocate-1.io", "fresh.qcow2"),
    writes("allocate 4 KiB per cluster, depth 32", 4.0, "allocate-32.io", "fresh.qcow2"),
    writes("allocate 64 KiB depth 32", 1.3, "allocate-64k.io", "fresh.qcow2"),
    Case {
        target: Some("out"),
        target_from: Some("overlay.qcow2"),
        proof: Proof::Targets,
        ..io("copy-on-write 4 KiB", 1.5, &["-t", "writeback", "-f", "qcow2", "out"], "allocate-1.io")
    },
    io("read through to backing", 3.0, &["-f", "qcow2", "overlay.qcow2"], "read-1.io"),
    snapshots("snapshot create sequential", 10.0, &["snapshot", "-c", "new", "out"], "sequential.qcow2"),
    snapshots(
        "snapshot apply sequential",
        10.0,
        &["snapshot", "-a", "a", "out"],
        "sequential-snapshots.qcow2",
    ),
    snapshots(
        "snapshot delete sequential",
        10.0,
        &["snapshot", "-d", "a", "out"],
        "sequential-snapshots.qcow2",
    ),
    snapshots("snapshot create fragmented", 20.0, &["snapshot", "-c", "new", "out"], "fragmented.qcow2"),
    snapshots(
        "snapshot apply fragmented",
        50.0,
        &["snapshot", "-a", "a", "out"],
        "fragmented-snapshots.qcow2",
    ),
    snapshots(
        "snapshot delete fragmented",
        50.0,
        &["snapshot", "-d", "a", "out"],
        "fragmented-snapshots.qcow2",
    ),
    looks("snapshot list of thousands", 8.0, &["snapshot", "-l", "many-snapshots.qcow2"]),
    snapshots(
        "snapshot create with thousands",
        8.0,
        &["snapshot", "-c", "new", "out"],
        "many-snapshots.qcow2",
    ),
    snapshots(
        "snapshot delete with thousands",
        8.0,
        &["snapshot", "-d", "s1000", "out"],
        "many-snapshots.qcow2",
    ),
];
