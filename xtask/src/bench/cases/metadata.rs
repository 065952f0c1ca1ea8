//! What goes through tables, and what starting costs.

use super::{Case, changes, creates, looks, snapshots};

pub(super) const CASES: &[Case] = &[
    looks("start-up: info", 3.0, &["info", "small.qcow2"]).with_pairs(25),
    looks("check sequential", 5.0, &["check", "-f", "qcow2", "sequential.qcow2"]),
    looks("check fragmented", 20.0, &["check", "-f", "qcow2", "fragmented.qcow2"]),
    looks("map sequential", 4.0, &["map", "-f", "qcow2", "sequential.qcow2"]),
    looks("map fragmented", 5.0, &["map", "-f", "qcow2", "--output=json", "fragmented.qcow2"]),
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
    looks("check wide", 5.0, &["check", "-f", "qcow2", "wide.qcow2"]).with_pairs(3),
    looks("check with many snapshots", 5.0, &["check", "-f", "qcow2", "many-snapshots.qcow2"]),
    Case {
        // The lines about each lost refcount go to the other stream.
        ..changes(
            "check -r all, refcounts lost",
            10.0,
            &["check", "-q", "-r", "all", "-f", "qcow2", "out"],
            "lost.qcow2",
        )
    },
    looks("map wide", 20.0, &["map", "-f", "qcow2", "--output=json", "wide.qcow2"]).with_pairs(3),
    looks("measure sequential", 4.0, &["measure", "-f", "qcow2", "-O", "qcow2", "sequential.qcow2"]),
    looks("measure fragmented", 5.0, &["measure", "-f", "qcow2", "-O", "qcow2", "fragmented.qcow2"]),
    looks("measure wide", 20.0, &["measure", "-f", "qcow2", "-O", "qcow2", "wide.qcow2"]).with_pairs(3),
    creates(
        "create preallocated, 64 KiB clusters",
        4.0,
        &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "out", "64G"],
    ),
    creates(
        "create preallocated, 4 KiB clusters",
        20.0,
        &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=4k", "out", "8G"],
    )
    .with_pairs(3),
    changes(
        "resize --shrink",
        10.0,
        &["resize", "-q", "--shrink", "-f", "qcow2", "out", "1G"],
        "sequential.qcow2",
    ),
    changes(
        "amend compat",
        3.0,
        &["amend", "-q", "-f", "qcow2", "-o", "compat=0.10", "out"],
        "sequential.qcow2",
    ),
    changes("bitmap add", 2.0, &["bitmap", "--add", "-f", "qcow2", "out", "b"], "mixed.qcow2"),
];
