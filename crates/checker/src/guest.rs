//! What the guest sees: where the content of each part of its disk comes from.
//!
//! This is a reader of the mapping and nothing more: it checks no refcounts, follows no backing file and
//! decompresses nothing. It answers for any image whose header can be used; where an entry breaks a rule
//! that leaves its content undefined, the answer is [`Source::Invalid`].

use crate::entry::{EntryFault, Geometry, L2Entry, Mapping};
use crate::error::CheckError;
use crate::header::Header;
use crate::image::{ReadAt, Reader, be64};
use crate::snapshots;

/// A stretch of the guest's disk whose content has one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset in bytes.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Where the content is.
    pub source: Source,
}

/// Where content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the image file.
    Data {
        /// Host offset of the first byte of the extent. What lies beyond the end of the file is zero.
        host: u64,
    },
    /// In the external data file.
    DataFile {
        /// Offset of the first byte of the extent in that file.
        offset: u64,
    },
    /// Reads as zeroes.
    Zero,
    /// Not in this image: the backing file's content, zeroes where there is none.
    Unallocated,
    /// In a compressed cluster. Extents never span two of them.
    Compressed {
        /// Host offset of the compressed data.
        host: u64,
        /// Length in bytes of the sectors that hold it; the data may end earlier.
        bytes: u64,
        /// Offset of the first byte of the extent in the cluster after decompression.
        within: u64,
    },
    /// Undefined: the entry breaks this rule.
    Invalid(EntryFault),
}

/// The mapping of one disk in an image, active or of a snapshot.
///
/// It holds the position of the L1 table only and reads the tables anew for each question.
#[derive(Debug, Clone, Copy)]
pub struct GuestView {
    geometry: Geometry,
    l1_offset: u64,
    l1_entries: u64,
    size: u64,
}

impl GuestView {
    /// The active disk.
    ///
    /// # Errors
    /// [`CheckError::Header`] if the header cannot be used, [`CheckError::Io`] if reading fails.
    pub fn active(image: &dyn ReadAt) -> Result<Self, CheckError> {
        let header = Header::parse(&Reader::new(image, u64::MAX))?;
        Ok(GuestView {
            geometry: Geometry::new(&header),
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries.into(),
            size: header.virtual_size,
        })
    }

    /// The disk of the snapshot with this index in the snapshot table. Without a size of its own in the
    /// table it is as large as the active disk.
    ///
    /// # Errors
    /// As [`active`](Self::active), and [`CheckError::NoSuchSnapshot`].
    pub fn snapshot(image: &dyn ReadAt, index: u32) -> Result<Self, CheckError> {
        let reader = Reader::new(image, u64::MAX);
        let header = Header::parse(&reader)?;
        let entry = snapshots::find(&reader, &header, index)?;
        Ok(GuestView {
            geometry: Geometry::new(&header),
            l1_offset: entry.l1_offset,
            l1_entries: entry.l1_entries.into(),
            size: entry.disk_bytes.unwrap_or(header.virtual_size),
        })
    }

    /// The same with the first `bytes` of the VM state area, and where that begins: behind all that the L2 tables of
    /// the disk can map.
    pub fn with_vm_state(self, bytes: u64) -> (Self, u64) {
        let span_bits = self.geometry.cluster_bits.wrapping_add(self.geometry.l2_bits());
        let tables = self.size.div_ceil(1u64.wrapping_shl(span_bits));
        let start = tables.saturating_mul(1u64.wrapping_shl(span_bits));
        (GuestView { size: start.saturating_add(bytes), ..self }, start)
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends the extents of `offset..offset + len` to `out`, ascending and without gaps, cut off at the
    /// end of the disk. Neighbours with one source are merged. Nothing is appended for an empty range.
    ///
    /// `image` must be the image the view was made from, or a later state of it in which neither header
    /// nor L1 table moved.
    ///
    /// # Errors
    /// [`CheckError::Io`] if reading fails. `out` then holds what was found before.
    pub fn extents(
        &self,
        image: &dyn ReadAt,
        offset: u64,
        len: u64,
        out: &mut Vec<Extent>,
    ) -> Result<(), CheckError> {
        let reader = Reader::new(image, u64::MAX);
        let end = offset.saturating_add(len).min(self.size);
        let kept = out.len();
        let l2_span_bits = self.geometry.cluster_bits.wrapping_add(self.geometry.l2_bits());
        let mut at = offset;
        while at < end {
            let l1_index = at.wrapping_shr(l2_span_bits);
            let span_end =
                l1_index.saturating_add(1).saturating_mul(1u64.wrapping_shl(l2_span_bits)).min(end);
            let raw = if l1_index < self.l1_entries {
                reader.word(self.l1_offset.saturating_add(l1_index.saturating_mul(8)))?
            } else {
                0
            };
            let entry = self.geometry.l1_entry(raw);
            let mut sink = Sink { out, kept };
            match (entry.faults.undefined(), entry.target()) {
                (Some(fault), _) => sink.push(at, span_end, Source::Invalid(fault)),
                (None, None) => sink.push(at, span_end, Source::Unallocated),
                (None, Some(table)) => self.l2_extents(&reader, table, at, span_end, &mut sink)?,
            }
            at = span_end;
        }
        Ok(())
    }

    fn l2_extents(
        &self,
        reader: &Reader<'_>,
        table: u64,
        start: u64,
        end: u64,
        sink: &mut Sink<'_>,
    ) -> Result<(), CheckError> {
        let geometry = self.geometry;
        let index_mask = 1u64.wrapping_shl(geometry.l2_bits()).wrapping_sub(1);
        let mut at = start;
        while at < end {
            let index = geometry.cluster(at) & index_mask;
            let cluster_end = geometry.offset(geometry.cluster(at).saturating_add(1)).min(end);
            let entry = if geometry.extended {
                let mut raw = [0; 16];
                reader.exact(table.saturating_add(index.saturating_mul(16)), &mut raw)?;
                geometry.l2_entry(be64(&raw, 0), be64(&raw, 8))
            } else {
                geometry.l2_entry(reader.word(table.saturating_add(index.saturating_mul(8)))?, 0)
            };
            self.cluster_extents(&entry, at, cluster_end, sink);
            at = cluster_end;
        }
        Ok(())
    }

    /// The part `at..end` of one guest cluster.
    fn cluster_extents(&self, entry: &L2Entry, at: u64, end: u64, sink: &mut Sink<'_>) {
        let within = self.geometry.within(at);
        if let Some(fault) = entry.faults.undefined() {
            // A bad subcluster does not spoil its neighbours, a bad offset does.
            if fault != EntryFault::SubclusterBoth {
                return sink.push(at, end, Source::Invalid(fault));
            }
        }
        match entry.mapping {
            Mapping::Unallocated => sink.push(at, end, Source::Unallocated),
            Mapping::Zero { .. } => sink.push(at, end, Source::Zero),
            Mapping::Data { host } => sink.push(at, end, self.data(host.saturating_add(within))),
            Mapping::Compressed { host, bytes } => {
                sink.push(at, end, Source::Compressed { host, bytes, within });
            }
            Mapping::Subclusters { host, allocated, zero } => {
                let bits = self.geometry.cluster_bits.wrapping_sub(5);
                let cluster_start = at.wrapping_sub(within);
                let mut at = at;
                while at < end {
                    let number = at.wrapping_sub(cluster_start).wrapping_shr(bits);
                    let next =
                        number.saturating_add(1).wrapping_shl(bits).saturating_add(cluster_start).min(end);
                    let mask = 1u32.wrapping_shl(u32::try_from(number).unwrap_or(0));
                    let source = match (allocated & mask != 0, zero & mask != 0, host) {
                        (true, true, _) => Source::Invalid(EntryFault::SubclusterBoth),
                        (true, false, Some(host)) => {
                            self.data(host.saturating_add(at.wrapping_sub(cluster_start)))
                        }
                        (true, false, None) => Source::Invalid(EntryFault::SubclusterWithoutHost),
                        (false, true, _) => Source::Zero,
                        (false, false, _) => Source::Unallocated,
                    };
                    sink.push(at, next, source);
                    at = next;
                }
            }
        }
    }

    fn data(&self, host: u64) -> Source {
        if self.geometry.data_file { Source::DataFile { offset: host } } else { Source::Data { host } }
    }
}

/// Where `guest_offset..guest_offset + len` of the active disk comes from; see [`GuestView::extents`].
///
/// # Errors
/// As [`GuestView::active`].
pub fn read_guest(image: &dyn ReadAt, guest_offset: u64, len: u64) -> Result<Vec<Extent>, CheckError> {
    let mut extents = Vec::new();
    GuestView::active(image)?.extents(image, guest_offset, len, &mut extents)?;
    Ok(extents)
}

/// Merges neighbours while extents are appended.
struct Sink<'a> {
    out: &'a mut Vec<Extent>,
    /// Extents of an earlier call; not to be touched.
    kept: usize,
}

impl Sink<'_> {
    fn push(&mut self, at: u64, end: u64, source: Source) {
        let len = end.saturating_sub(at);
        if self.out.len() > self.kept
            && let Some(last) = self.out.last_mut()
            && last.continues_as(source)
        {
            last.len = last.len.saturating_add(len);
            return;
        }
        self.out.push(Extent { offset: at, len, source });
    }
}

impl Extent {
    fn continues_as(&self, next: Source) -> bool {
        match (self.source, next) {
            (Source::Data { host }, Source::Data { host: next }) => host.checked_add(self.len) == Some(next),
            (Source::DataFile { offset }, Source::DataFile { offset: next }) => {
                offset.checked_add(self.len) == Some(next)
            }
            (Source::Compressed { .. }, Source::Compressed { .. }) => false,
            (last, next) => last == next,
        }
    }
}
