//! The events that this program raises, and the forms of their lines.

/// How a word of a line is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Who it is about: hexadecimal with `0x`; nobody is `(nil)`.
    Who,
    /// Decimal.
    Decimal,
    /// Hexadecimal with `0x`.
    Hex,
    /// As it is.
    Name,
}

use Form::{Decimal as N, Hex as X, Name as S, Who as P};

macro_rules! events {
    ($($variant:ident = $name:literal $form:expr,)*) => {
        /// Something that can be told.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is its standard name, see `name`")]
        pub enum TraceEvent { $($variant,)* }

        impl TraceEvent {
            /// All events that are raised here.
            pub const ALL: &'static [TraceEvent] = &[$(TraceEvent::$variant,)*];

            /// The standard name.
            pub const fn name(self) -> &'static str {
                match self { $(TraceEvent::$variant => $name,)* }
            }

            /// The texts of a line, each with the form of what follows it.
            pub(super) fn form(self) -> &'static [(&'static str, Form)] {
                match self { $(TraceEvent::$variant => &$form,)* }
            }
        }
    };
}

events! {
    BdrvOpenCommon = "bdrv_open_common"
        [(" bs ", P), (" filename \"", S), ("\" flags ", X), (" format_name \"", S), ("\"", S)],
    BlkRootAttach = "blk_root_attach" [(" child ", P), (" blk ", P), (" bs ", P)],
    BlkRootDetach = "blk_root_detach" [(" child ", P), (" blk ", P), (" bs ", P)],
    BlkCoPreadv = "blk_co_preadv" [(" blk ", P), (" bs ", P), (" offset ", N), (" bytes ", N), (" flags ", X)],
    BlkCoPwritev = "blk_co_pwritev" [(" blk ", P), (" bs ", P), (" offset ", N), (" bytes ", N), (" flags ", X)],
    BdrvCoPreadvPart = "bdrv_co_preadv_part" [(" bs ", P), (" offset ", N), (" bytes ", N), (" flags ", X)],
    BdrvCoPwritevPart = "bdrv_co_pwritev_part" [(" bs ", P), (" offset ", N), (" bytes ", N), (" flags ", X)],
    BdrvCoPwriteZeroes = "bdrv_co_pwrite_zeroes" [(" bs ", P), (" offset ", N), (" bytes ", N), (" flags ", X)],
    BdrvCoDoCopyOnReadv = "bdrv_co_do_copy_on_readv"
        [(" bs ", P), (" offset ", N), (" bytes ", N), (" cluster_offset ", N), (" cluster_bytes ", N)],
    BdrvCoCopyRangeFrom = "bdrv_co_copy_range_from"
        [(" src ", P), (" offset ", N), (" dst ", P), (" offset ", N), (" bytes ", N), (" rw flags ", X), (" ", X)],
    BdrvCoCopyRangeTo = "bdrv_co_copy_range_to"
        [(" src ", P), (" offset ", N), (" dst ", P), (" offset ", N), (" bytes ", N), (" rw flags ", X), (" ", X)],
    BlockCopyProcess = "block_copy_process" [(" bcs ", P), (" start ", N)],
    BlockCopyReadFail = "block_copy_read_fail" [(" bcs ", P), (" start ", N), (" ret ", N)],
    BlockCopyWriteFail = "block_copy_write_fail" [(" bcs ", P), (" start ", N), (" ret ", N)],
    Qcow2AddTask = "qcow2_add_task"
        [(" co ", P), (" bs ", P), (" pool ", P), (": ", S), (": cluster_type ", N), (" file_cluster_offset ", N),
         (" offset ", N), (" bytes ", N), (" qiov ", P), (" qiov_offset ", N)],
    Qcow2WritevStartReq = "qcow2_writev_start_req" [(" co ", P), (" offset ", X), (" bytes ", N)],
    Qcow2WritevDoneReq = "qcow2_writev_done_req" [(" co ", P), (" ret ", N)],
    Qcow2WritevData = "qcow2_writev_data" [(" co ", P), (" offset ", X)],
    Qcow2PwriteZeroesStartReq = "qcow2_pwrite_zeroes_start_req" [(" co ", P), (" offset ", X), (" bytes ", N)],
    Qcow2PwriteZeroes = "qcow2_pwrite_zeroes" [(" co ", P), (" offset ", X), (" bytes ", N)],
    Qcow2SkipCow = "qcow2_skip_cow" [(" co ", P), (" offset ", X), (" nb_clusters ", N)],
    Qcow2AllocClustersOffset = "qcow2_alloc_clusters_offset" [(" co ", P), (" offset ", X), (" bytes ", N)],
    Qcow2HandleCopied = "qcow2_handle_copied"
        [(" co ", P), (" guest_offset ", X), (" host_offset ", X), (" bytes ", X)],
    Qcow2HandleAlloc = "qcow2_handle_alloc"
        [(" co ", P), (" guest_offset ", X), (" host_offset ", X), (" bytes ", X)],
    Qcow2DoAllocClustersOffset = "qcow2_do_alloc_clusters_offset"
        [(" co ", P), (" guest_offset ", X), (" host_offset ", X), (" nb_clusters ", N)],
    Qcow2ClusterAllocPhys = "qcow2_cluster_alloc_phys" [(" co ", P)],
    Qcow2ClusterLinkL2 = "qcow2_cluster_link_l2" [(" co ", P), (" nb_clusters ", N)],
    Qcow2L2Allocate = "qcow2_l2_allocate" [(" bs ", P), (" l1_index ", N)],
    Qcow2L2AllocateWriteL2 = "qcow2_l2_allocate_write_l2" [(" bs ", P), (" l1_index ", N)],
    Qcow2L2AllocateDone = "qcow2_l2_allocate_done" [(" bs ", P), (" l1_index ", N), (" ret ", N)],
    Qcow2CacheGet = "qcow2_cache_get"
        [(" co ", P), (" is_l2_cache ", N), (" offset ", X), (" read_from_disk ", N)],
    Qcow2CacheGetRead = "qcow2_cache_get_read" [(" co ", P), (" is_l2_cache ", N), (" index ", N)],
    Qcow2CacheFlush = "qcow2_cache_flush" [(" co ", P), (" is_l2_cache ", N)],
    Qcow2CacheEntryFlush = "qcow2_cache_entry_flush" [(" co ", P), (" is_l2_cache ", N), (" index ", N)],
    FileCopyFileRange = "file_copy_file_range"
        [(" bs ", P), (" src_fd ", N), (" offset ", N), (" dst_fd ", N), (" offset ", N), (" bytes ", N),
         (" flags ", N), (" ret ", N)],
    FileFlushFdatasyncFailed = "file_flush_fdatasync_failed" [(" errno ", N)],
}

impl TraceEvent {
    /// The event's place in a set.
    pub(super) const fn bit(self) -> u64 {
        1 << self as u32
    }

    /// The event with this standard name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_event_has_its_place_in_a_set() {
        let mut names: Vec<_> = TraceEvent::ALL.iter().map(|event| event.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TraceEvent::ALL.len());
        assert!(TraceEvent::ALL.len() <= 64);
        assert!(TraceEvent::ALL.iter().all(|event| TraceEvent::from_name(event.name()) == Some(*event)));
    }
}
