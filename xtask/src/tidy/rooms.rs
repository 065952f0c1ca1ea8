//! Which crate may name which, and where unsafe code is forbidden.
//!
//! Adding an arrow is a design change: it changes this table, in a commit of its own.

use serde_json::Value;

use super::source::Source;

/// A crate of the workspace, and what its shipping code may name.
struct Room {
    name: &'static str,
    /// Crates of ours it may name.
    may_name: &'static [&'static str],
    unsafe_code: UnsafeCode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum UnsafeCode {
    /// `forbid` stands at the root of every library and program of the crate.
    Forbidden,
    /// `deny` stands there, and single modules earn an exception by an `allow` of their own.
    InNamedModules,
    /// The crate meets the operating system.
    Audited,
}

use UnsafeCode::{Audited, Forbidden, InNamedModules};

/// Absences that hold. Dependencies of tests are free, but for cycles, which cargo finds.
const ROOMS: [Room; 15] = [
    Room { name: "cowbell-block", may_name: &[], unsafe_code: InNamedModules },
    Room { name: "cowbell-luks", may_name: &["cowbell-block"], unsafe_code: Forbidden },
    Room { name: "cowbell-qcow2", may_name: &["cowbell-block", "cowbell-luks"], unsafe_code: Forbidden },
    Room { name: "cowbell-vpc", may_name: &["cowbell-block"], unsafe_code: Forbidden },
    Room { name: "cowbell-jobs", may_name: &["cowbell-block"], unsafe_code: Forbidden },
    Room { name: "cowbell-host", may_name: &["cowbell-block"], unsafe_code: Audited },
    Room { name: "cowbell-inspect", may_name: &["cowbell-block", "cowbell-qcow2"], unsafe_code: Forbidden },
    Room { name: "cowbell-checker", may_name: &[], unsafe_code: Forbidden },
    Room { name: "cowbell-machine", may_name: &[], unsafe_code: Forbidden },
    Room { name: "cowbell-vm", may_name: &["cowbell-block", "cowbell-machine"], unsafe_code: Forbidden },
    Room {
        name: "cowbell-sim",
        may_name: &[
            "cowbell-block",
            "cowbell-luks",
            "cowbell-qcow2",
            "cowbell-vpc",
            "cowbell-jobs",
            "cowbell-checker",
        ],
        unsafe_code: Forbidden,
    },
    Room {
        name: "cowbell-cli",
        may_name: &[
            "cowbell-block",
            "cowbell-luks",
            "cowbell-qcow2",
            "cowbell-jobs",
            "cowbell-host",
            "cowbell-inspect",
            "cowbell-machine",
            "cowbell-vm",
            "cowbell-vpc",
        ],
        unsafe_code: Forbidden,
    },
    Room { name: "cowbell-difftest", may_name: &[], unsafe_code: Forbidden },
    Room {
        name: "cowbell-fuzz",
        may_name: &[
            "cowbell-block",
            "cowbell-luks",
            "cowbell-qcow2",
            "cowbell-checker",
            "cowbell-inspect",
            "cowbell-vpc",
            "cowbell-difftest",
        ],
        unsafe_code: InNamedModules,
    },
    Room { name: "xtask", may_name: &[], unsafe_code: InNamedModules },
];

/// Packages from outside that only some of our crates may name.
const RESTRICTED: [(&str, &[&str]); 11] = [
    ("anyhow", &["cowbell-cli", "xtask"]),
    ("libc", &["cowbell-host", "cowbell-cli", "xtask"]),
    // The simulation and fuzzing measure CPU time, nothing else.
    ("rustix", &["cowbell-host", "cowbell-cli", "cowbell-sim", "cowbell-fuzz"]),
    ("io-uring", &["cowbell-host"]),
    ("landlock", &["cowbell-host"]),
    ("seccompiler", &["cowbell-host"]),
    ("tokio", &["cowbell-host"]),
    ("async-std", &[]),
    ("smol", &[]),
    ("rand", &[]),
    ("futures-util", &["cowbell-jobs", "cowbell-sim", "cowbell-host", "cowbell-cli"]),
];

/// Offences against the rules of this module.
pub fn check(metadata: &Value, sources: &[Source]) -> Vec<String> {
    let mut offences = Vec::new();
    for package in members(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        match ROOMS.iter().find(|room| room.name == name) {
            Some(room) => {
                offences.extend(arrows(room, package));
                offences.extend(unsafe_marks(room, package, sources));
            }
            None => offences.push(format!("{name}: a new crate needs a line in xtask/src/tidy/rooms.rs")),
        }
        offences.extend(lints(package));
    }
    offences
}

/// The packages of the workspace.
fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    let ids: Vec<&Value> = metadata["workspace_members"].as_array().into_iter().flatten().collect();
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(move |package| ids.iter().any(|id| **id == package["id"]))
}

/// Dependencies of the shipping code that the room may not have.
fn arrows(room: &Room, package: &Value) -> Vec<String> {
    let mut offences = Vec::new();
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let ships = dependency["kind"].is_null();
        let name = dependency["name"].as_str().unwrap_or_default();
        let ours = ROOMS.iter().any(|other| other.name == name);
        if ships && ours && !room.may_name.contains(&name) {
            offences.push(format!("{} names {name}, and may name {:?}", room.name, room.may_name));
        }
        let restricted = RESTRICTED.iter().find(|(outside, _)| *outside == name);
        if let Some((_, by)) = restricted
            && ships
            && !by.contains(&room.name)
        {
            offences.push(format!("{} names {name}, which only {by:?} may", room.name));
        }
    }
    offences
}

/// The attribute on unsafe code at the root of each library and program.
fn unsafe_marks(room: &Room, package: &Value, sources: &[Source]) -> Vec<String> {
    let wanted: &[&str] = match room.unsafe_code {
        Forbidden => &["#![forbid(unsafe_code)]"],
        InNamedModules => &["#![forbid(unsafe_code)]", "#![deny(unsafe_code)]"],
        Audited => return Vec::new(),
    };
    let roots = package["targets"].as_array().into_iter().flatten().filter(|target| {
        let kinds = target["kind"].as_array().into_iter().flatten();
        kinds.filter_map(Value::as_str).any(|kind| kind == "lib" || kind == "bin")
    });
    let mut offences = Vec::new();
    for root in roots.filter_map(|target| target["src_path"].as_str()) {
        let Some(source) = sources.iter().find(|source| root.ends_with(&format!("/{}", source.path))) else {
            continue;
        };
        if !wanted.iter().any(|mark| source.text.lines().any(|line| line == *mark)) {
            offences.push(format!("{}: {} is missing", source.path, wanted.join(" or ")));
        }
    }
    offences
}

/// Every crate takes the workspace's lints.
fn lints(package: &Value) -> Option<String> {
    let manifest = package["manifest_path"].as_str()?;
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    let takes = text.contains("[lints]\nworkspace = true");
    (!takes).then(|| format!("{manifest}: the workspace's lints are not taken"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependency: &str, kind: Value) -> Value {
        json!({ "name": name, "dependencies": [{ "name": dependency, "kind": kind }] })
    }

    #[test]
    fn arrows_point_down() {
        let room = |name| ROOMS.iter().find(|room: &&Room| room.name == name).unwrap();
        let check = |name, dependency, kind, expect: usize| {
            let found = arrows(room(name), &package(name, dependency, kind));
            assert_eq!(found.len(), expect, "{name} -> {dependency}: {found:?}");
        };
        check("cowbell-qcow2", "cowbell-block", Value::Null, 0);
        check("cowbell-block", "cowbell-qcow2", Value::Null, 1);
        check("cowbell-qcow2", "cowbell-host", Value::Null, 1);
        check("cowbell-qcow2", "cowbell-checker", json!("dev"), 0);
        check("cowbell-machine", "futures-util", Value::Null, 1);
        check("cowbell-qcow2", "anyhow", Value::Null, 1);
        check("cowbell-qcow2", "zerocopy", Value::Null, 0);
    }
}
