//! What users need of a node, and what they let others do to it.

use std::fmt;

use bitflags::bitflags;

use crate::child::EdgeKind;

bitflags! {
    /// Things that can be done to a node.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
    pub struct Permissions: u8 {
        /// Read data that stays what it was unless one writes oneself.
        const CONSISTENT_READ = 1;
        /// Change the content.
        const WRITE = 1 << 1;
        /// Write what reads return anyway.
        const WRITE_UNCHANGED = 1 << 2;
        /// Change the length.
        const RESIZE = 1 << 3;
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Permissions, &str); 4] = [
            (Permissions::CONSISTENT_READ, "consistent read"),
            (Permissions::WRITE, "write"),
            (Permissions::WRITE_UNCHANGED, "write unchanged"),
            (Permissions::RESIZE, "resize"),
        ];
        let mut separator = "";
        for (_, name) in NAMES.iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What one user of a node needs and allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// What it does itself.
    pub required: Permissions,
    /// What others may do meanwhile.
    pub shared: Permissions,
}

impl Needs {
    /// Nothing needed, everything allowed: what a node without users is asked for.
    pub const NOTHING: Self = Self { required: Permissions::empty(), shared: Permissions::all() };

    /// A reader that bears with everything but a change of what it reads.
    pub const READ: Self = Self {
        required: Permissions::CONSISTENT_READ,
        shared: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
    };

    /// The only writer.
    pub const WRITE: Self = Self {
        required: Permissions::CONSISTENT_READ.union(Permissions::WRITE).union(Permissions::RESIZE),
        shared: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
    };

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { required: self.required | other.required, shared: self.shared & other.shared }
    }

    /// What a node that is asked for `self`, and accepts writes or not, asks of its child over an edge of `kind`.
    ///
    /// The rules are the reference's, so that the same graphs are possible.
    pub fn below(self, kind: EdgeKind, accepts_writes: bool) -> Self {
        let changes = Permissions::WRITE | Permissions::RESIZE;
        let mut needs = self;
        match kind {
            EdgeKind::Filtered => {}
            EdgeKind::Window => needs.shared -= Permissions::RESIZE,
            EdgeKind::Storage => {
                // Metadata may change even if nobody above writes, and nobody else may touch it.
                if accepts_writes {
                    needs.required |= changes;
                }
                needs.required |= Permissions::CONSISTENT_READ;
                needs.shared -= changes;
            }
            EdgeKind::Data => {}
            EdgeKind::Backing => {
                needs.required &= Permissions::CONSISTENT_READ;
                // Who can live with changing data can live with a changing backing file.
                let changing =
                    if self.shared.contains(Permissions::WRITE) { changes } else { Permissions::empty() };
                needs.shared = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED | changing;
            }
        }
        if matches!(kind, EdgeKind::Storage | EdgeKind::Data) {
            needs.shared -= Permissions::RESIZE;
            if needs.required.contains(Permissions::WRITE_UNCHANGED) {
                needs.required |= Permissions::WRITE;
            }
            if needs.required.contains(Permissions::WRITE) {
                needs.required |= Permissions::RESIZE;
            }
        }
        needs
    }
}
