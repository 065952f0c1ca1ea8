//! Which debug events there are to hit (T8): every event that the engine announces, or the layer that fits its requests
//! to the file, must have a fault strike right after it. The others are listed with the reason.

use cowbell_block::DebugEvent;

/// Events that nothing below a qcow2 image announces, and why. An event that is announced must not be here: a test
/// compares the list with the sources.
pub const NOT_ANNOUNCED: &[(DebugEvent, &str)] = &[
    (DebugEvent::None, "no event: what a request without one is tagged with"),
    (DebugEvent::RefblockUpdate, "refcount blocks are written in parts: refblock_update_part"),
    (DebugEvent::ClusterFree, "freeing is memory's until a flush, which has events of its own"),
    (DebugEvent::L1ShrinkWriteTable, "shrinking leaves the L1 table as long as it is"),
    (DebugEvent::L1ShrinkFreeL2Clusters, "shrinking leaves the L1 table as long as it is"),
    (DebugEvent::CorWrite, "copy-on-read is a filter, above the image"),
    (DebugEvent::ClusterAllocSpace, "announced by other formats"),
];

/// The events that must be hit.
pub fn announced() -> impl Iterator<Item = DebugEvent> {
    let left_out = |event: &DebugEvent| NOT_ANNOUNCED.iter().any(|(other, _)| other == event);
    DebugEvent::ALL.iter().copied().filter(move |event| !left_out(event))
}

/// Those of them that no fault struck, given how many struck each event.
pub fn missed(struck: &[u64]) -> Vec<&'static str> {
    let count = |event: &DebugEvent| struck.get(*event as usize).copied().unwrap_or(0);
    announced().filter(|event| count(event) == 0).map(DebugEvent::name).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sources(directory: &Path, out: &mut String) {
        for entry in std::fs::read_dir(directory).expect("the sources are there") {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                sources(&path, out);
            } else {
                out.push_str(&std::fs::read_to_string(&path).expect("text"));
            }
        }
    }

    /// An event that the engine has learned to announce must leave the list, and the simulation must hit it.
    #[test]
    fn the_list_is_what_the_sources_say() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let mut text = std::fs::read_to_string(crates.join("block/src/child.rs")).expect("there");
        sources(&crates.join("block/src/child"), &mut text);
        sources(&crates.join("qcow2/src"), &mut text);
        for event in DebugEvent::ALL {
            let name = format!("DebugEvent::{event:?}");
            let is_there = text.match_indices(&name).any(|(at, _)| {
                !text[at + name.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
            });
            let listed = NOT_ANNOUNCED.iter().find(|(other, _)| other == event);
            match listed {
                Some((_, reason)) => {
                    assert!(!is_there, "{} is announced now; it is listed as: {reason}", event.name());
                }
                None => assert!(is_there, "{} is not announced and not listed", event.name()),
            }
        }
    }
}
