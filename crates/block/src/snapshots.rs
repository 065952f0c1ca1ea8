//! Internal snapshots as callers name and change them.

use crate::names;

/// Which snapshot of an image is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotName {
    /// The one with this id or, if there is none, the first with this name.
    IdOrName(String),
    /// The one with this id.
    Id(String),
    /// The first with this name.
    Name(String),
    /// The one with both.
    Both {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
}

impl SnapshotName {
    /// Whether a snapshot with this id and name is meant, when it is looked for `by`.
    pub fn matches(&self, by: MatchBy, id: &[u8], name: &[u8]) -> bool {
        let same = |text: &str, stored: &[u8]| *names::to_bytes(text) == *stored;
        match (self, by) {
            (Self::IdOrName(word) | Self::Id(word), MatchBy::Id) => same(word, id),
            (Self::IdOrName(word) | Self::Name(word), MatchBy::Name) => same(word, name),
            (Self::Both { id: i, name: n }, MatchBy::Id) => same(i, id) && same(n, name),
            (Self::Id(_), MatchBy::Name)
            | (Self::Name(_), MatchBy::Id)
            | (Self::Both { .. }, MatchBy::Name) => false,
        }
    }
}

/// Ids go before names: all snapshots are looked at by id first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchBy {
    /// By id, or by both.
    Id,
    /// By name alone.
    Name,
}

/// A snapshot to be made of the disk as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The user's name for it; need not be unique.
    pub name: String,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds of the date.
    pub date_nsec: u32,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The machine's instruction count, if it has one.
    pub icount: Option<u64>,
    /// Bytes of VM state, written to the VM state area before. When there are any, the area belongs to the snapshot
    /// alone from now on.
    pub vm_state_size: u64,
}

/// A change to an image's snapshots. Each happens as a whole or not at all, also when the power fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Keeps the disk as it is now.
    Create(NewSnapshot),
    /// Makes the disk what it was, its length included. What it is now is lost.
    Apply(SnapshotName),
    /// Forgets a snapshot.
    Delete(SnapshotName),
    /// Gives a snapshot another name.
    Rename(SnapshotName, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_told_apart() {
        let word = || "1".to_owned();
        let found = |which: &SnapshotName, by| which.matches(by, b"1", b"x");
        assert!(found(&SnapshotName::IdOrName(word()), MatchBy::Id));
        assert!(!found(&SnapshotName::Name(word()), MatchBy::Id));
        assert!(!found(&SnapshotName::Id("x".into()), MatchBy::Name));
        assert!(found(&SnapshotName::IdOrName("x".into()), MatchBy::Name));
        assert!(found(&SnapshotName::Both { id: word(), name: "x".into() }, MatchBy::Id));
        assert!(!found(&SnapshotName::Both { id: word(), name: "y".into() }, MatchBy::Id));
    }
}
