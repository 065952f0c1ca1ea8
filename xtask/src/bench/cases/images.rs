//! Whole images made, compared, merged.

use super::{Case, Metric, layers, looks, makes};
use crate::bench::proof::Proof;

pub(super) const CASES: &[Case] = &[
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
    makes(
        "convert qcow2 to raw -t none -T none",
        0.95,
        &["convert", "-t", "none", "-T", "none", "-f", "qcow2", "-O", "raw", "mixed.qcow2", "out"],
        "mixed.raw",
    )
    .by_wall(),
    makes(
        "convert -c to zlib",
        3.0,
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "mixed.raw", "out"],
        "mixed.raw",
    )
    .with_pairs(3),
    makes(
        "convert -c to zlib -W -m 16",
        3.0,
        &["convert", "-c", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", "mixed.raw", "out"],
        "mixed.raw",
    )
    .with_pairs(3),
    makes(
        "convert -c to zstd",
        1.5,
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "mixed.raw", "out"],
        "mixed.raw",
    ),
    makes(
        "convert -c to zstd -W -m 16",
        1.5,
        &[
            "convert",
            "-c",
            "-W",
            "-m",
            "16",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            "mixed.raw",
            "out",
        ],
        "mixed.raw",
    ),
    Case {
        proof: Proof::Compare(&[
            "--object",
            "secret,id=s,data=abc",
            "--image-opts",
            "driver=raw,file.driver=file,file.filename=mixed.raw",
            "driver=luks,key-secret=s,file.driver=file,file.filename=out",
        ]),
        ..makes(
            "convert into LUKS",
            3.0,
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "luks",
                "--object",
                "secret,id=s,data=abc",
                "-o",
                "key-secret=s,iter-time=10",
                "mixed.raw",
                "out",
            ],
            "mixed.raw",
        )
    },
];
