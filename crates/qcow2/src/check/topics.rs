//! Kinds of findings: what each means for the data, and what a repair does about it.

use cowbell_block::Topic;

macro_rules! topics {
    ($($constant:ident $name:literal $meaning:literal $repair:literal;)*) => {
        $(pub(super) const $constant: &Topic =
            &Topic { name: $name, meaning: $meaning, repair: $repair };)*
        #[cfg(test)]
        const ALL: &[&Topic] = &[$($constant),*];
    };
}

topics! {
    LEAK "leak"
        "The cluster's refcount is higher than what refers to it. It takes space in the file; no data is at stake."
        "`-r leaks` and `-r all` lower the refcount; a cluster that nothing refers to is given back to the host.";
    REFCOUNT_LOW "refcount-too-low"
        "More refers to the cluster than its refcount says. A later write may take it for free, or for its own alone, \
         and overwrite what another part of the disk, or a snapshot, has there."
        "`-r all` raises the refcount; where no refcount block counts the cluster, it writes a new refcount structure \
         beside the old one.";
    REFCOUNT_OVERFLOW "refcount-overflow"
        "More refers to the cluster than refcounts of this width can count."
        "None. `amend -o refcount_bits=` makes them wider; `convert` makes a clean copy.";
    REFCOUNT_UNREADABLE "refcount-unreadable"
        "The refcount block that counts the cluster cannot be looked up, so nobody knows whether it is free."
        "`-r all` writes a new refcount structure from what is in use.";
    REFCOUNT_TABLE "refcount-table-entry"
        "An entry of the refcount table is damaged: the clusters that its block counts have no refcounts."
        "`-r all` writes a new refcount structure from what is in use.";
    REFCOUNT_BLOCK "refcount-block-shared"
        "Something else lies in the cluster of a refcount block: writing one destroys the other."
        "`-r all` writes a new refcount structure from what is in use, elsewhere.";
    COPIED_FLAG "copied-flag"
        "The flag says whether a cluster has one owner. Set where there are several, a write in place changes what a \
         snapshot or another part of the disk has; missing where there is one, it only costs speed."
        "`-r all` sets the flag as the refcount says, once refcounts are right.";
    OUTSIDE "outside-file"
        "A pointer leads behind the end of the file. What it led to is not there: it reads as zeroes or not at all."
        "None: nobody knows where the data was. Writing the range anew mends the mapping.";
    TABLE_UNALIGNED "table-unaligned"
        "A pointer to a table leads between clusters: it is damaged, and all that the table maps cannot be read."
        "None: nobody knows where the table was.";
    DATA_UNALIGNED "data-unaligned"
        "A pointer to data leads between clusters: it is damaged, and the range cannot be read."
        "None: nobody knows where the data was. Writing the whole cluster anew mends it.";
    RESERVE_UNALIGNED "reserve-unaligned"
        "A cluster that reads as zeroes has storage in reserve at a damaged place. The content is not affected."
        "`-r all` gives up the reserve; the range reads as zeroes as before.";
    RESERVED_BITS "reserved-bits"
        "Bits are set that have no meaning in this format: the entry is damaged, or was written by something unknown."
        "None: which bits are wrong cannot be known.";
    SUBCLUSTERS "subcluster-bitmap"
        "The bitmap of subclusters contradicts itself or its entry: parts of the cluster are said to be data and \
         zeroes at once."
        "`-r all` makes clusters with storage read as zeroes where the bitmap is unusable; other entries stay.";
    COMPRESSED "compressed-entry"
        "An entry of a compressed cluster has what such entries never have: it is damaged, or the cluster is in danger \
         of being written in place."
        "None: which part is wrong cannot be known.";
    ZERO_IN_VERSION_2 "zero-in-version-2"
        "Version 2 has no zero clusters: programs of its time read data there."
        "None. `amend -o compat=1.1` gives the entry its meaning.";
    SNAPSHOT_ENTRY "snapshot-entry"
        "An entry of the snapshot table lacks fields that version 3 demands, or has more extra data than there may be."
        "`-r all` writes the table anew, with all fields and without the surplus.";
    SNAPSHOT_COUNT "snapshots-beyond-limit"
        "There are more snapshots than there may be, or their table is too long: the image cannot be opened."
        "`-r all` drops the last ones; their data becomes free.";
    SNAPSHOT_L1 "snapshot-table-pointer"
        "The L1 table of a snapshot cannot be where its entry says: the snapshot cannot be read. The disk and the \
         others are not affected, but what only this snapshot has looks leaked."
        "None. Do not repair leaks before the snapshot is given up: `-r leaks` frees what it had.";
    BITMAP "bitmap"
        "A persistent bitmap, or the directory of all, is damaged: it cannot say what changed. The disk is not affected."
        "None. `bitmap --remove` takes the bitmap away.";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn names_are_unique_words() {
        let mut names: Vec<&str> = ALL.iter().map(|topic| topic.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || "-2".contains(c))));
    }
}
