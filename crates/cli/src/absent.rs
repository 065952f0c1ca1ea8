//! Image formats that are recognised, so that they are not taken for raw disks, and refused by name.
//!
//! Without this a probing command would copy, or write into, the container of an image as if it were a disk.

use std::sync::Arc;

use cowbell_block::context::OpenContext;
use cowbell_block::node::NotOffered;
use cowbell_block::options::OptionTree;
use cowbell_block::registry::{Driver, Registry, Role, Score};
use cowbell_block::{BoxFuture, Error, Node, Result};

/// A format that comes later.
struct Absent {
    name: &'static str,
    /// Where its magic lies, and what it is; any of them.
    magics: &'static [(usize, &'static [u8])],
}

const FORMATS: &[Absent] = &[
    Absent { name: "parallels", magics: &[(0, b"WithoutFreeSpace"), (0, b"WithouFreSpacExt")] },
    Absent { name: "qcow", magics: &[(0, b"QFI\xfb\0\0\0\x01")] },
    Absent { name: "qed", magics: &[(0, b"QED\0")] },
    Absent { name: "vdi", magics: &[(64, b"\x7f\x10\xda\xbe")] },
    Absent { name: "vhdx", magics: &[(0, b"vhdxfile")] },
    Absent { name: "vmdk", magics: &[(0, b"KDMV"), (0, b"COWD"), (0, b"# Disk DescriptorFile")] },
];

/// Adds them all.
pub fn add_drivers(registry: &mut Registry) {
    for format in FORMATS {
        registry.add(Absent { name: format.name, magics: format.magics });
    }
}

/// Whether the format of this name is known, and comes later.
pub fn is_absent(name: &str) -> bool {
    FORMATS.iter().any(|format| format.name == name)
}

/// `names` without those of formats that come later.
pub fn without_absent(names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| !is_absent(name)).collect()
}

impl Driver for Absent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn role(&self) -> Role {
        Role::Format
    }

    fn probe(&self, head: &[u8]) -> Score {
        let is_ours = |(at, magic): &(usize, &[u8])| head.get(*at..at + magic.len()) == Some(*magic);
        if self.magics.iter().any(is_ours) { 100 } else { 0 }
    }

    fn open(&self, _: OptionTree, _: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let error = NotOffered {
            driver: self.name,
            what: "anything yet: the format comes in a later version of cowbell",
        };
        Box::pin(std::future::ready(Err(Error::from(error))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_recognised_by_their_first_bytes() {
        let mut registry = Registry::new();
        add_drivers(&mut registry);
        for format in FORMATS {
            for (at, magic) in format.magics {
                let mut head = vec![0; 512];
                head[*at..at + magic.len()].copy_from_slice(magic);
                assert_eq!(registry.driver_of_content(&head).map(|d| d.name()), Some(format.name));
            }
        }
        assert!(registry.driver_of_content(&[0; 512]).is_none());
        assert!(registry.driver_of_content(b"QED").is_none(), "shorter than its magic");
    }
}
