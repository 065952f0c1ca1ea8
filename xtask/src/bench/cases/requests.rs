//! Scripts of single requests.

use super::{Case, io, writes};
use crate::bench::proof::{Proof, TARGET};

pub(super) const CASES: &[Case] = &[
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
        target: Some(TARGET),
        target_from: Some("overlay.qcow2"),
        proof: Proof::Targets,
        ..io("copy-on-write 4 KiB", 1.5, &["-t", "writeback", "-f", "qcow2", "out"], "allocate-1.io")
    },
    io("read through to backing", 3.0, &["-f", "qcow2", "overlay.qcow2"], "read-1.io"),
    io(
        "read 4 KiB depth 32, -i io_uring",
        1.3,
        &["-i", "io_uring", "-f", "qcow2", "mixed.qcow2"],
        "read-32.io",
    ),
    io("read 4 KiB depth 1, -t none", 0.95, &["-t", "none", "-f", "qcow2", "mixed.qcow2"], "read-1.io")
        .by_wall(),
    io("read 4 KiB depth 32, -t none", 0.95, &["-t", "none", "-f", "qcow2", "mixed.qcow2"], "read-32.io")
        .by_wall(),
    io("read 4 KiB over many tables", 5.0, &["-f", "qcow2", "wide.qcow2"], "read-wide.io"),
    io("read 4 KiB, idle blkdebug", 2.0, &["-f", "qcow2", "blkdebug::mixed.qcow2"], "read-1.io"),
    io("long script, null-co", 3.0, &["--image-opts", "driver=null-co,size=1G"], "long.io"),
    writes("allocate 4 KiB, extended L2", 2.0, "allocate-32.io", "extended.qcow2"),
    Case {
        target: Some(TARGET),
        target_from: Some("fresh.qcow2"),
        proof: Proof::Targets,
        ..io(
            "allocate 4 KiB, flush each 8, -t none",
            1.2,
            &["-t", "none", "-f", "qcow2", "out"],
            "allocate-flush.io",
        )
    }
    .by_wall(),
];
