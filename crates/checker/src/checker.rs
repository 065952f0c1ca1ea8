//! The course of a check: every structure claims the clusters it references, then the refcounts are
//! compared with the claims.

use crate::cells::Cells;
use crate::entry::{Faults, Geometry};
use crate::error::{CheckError, Limits};
use crate::finding::{Finding, HeaderFault};
use crate::header::Header;
use crate::image::{ReadAt, Reader};
use crate::mapping::{COMPACT_MIN, TableRef};
use crate::owner::{Owner, Place, Structure};
use crate::report::{Report, Summary};
use crate::sweep::{Range, Segment};

/// Checks one image. For many images in a row a [`Checker`] is quicker.
///
/// # Errors
/// As [`Checker::check`].
pub fn check(image: &dyn ReadAt, limits: Limits) -> Result<Report, CheckError> {
    let mut checker = Checker::new(limits);
    checker.check(image)?;
    Ok(checker.into_report())
}

/// Checks images one after the other and keeps its memory in between.
#[derive(Debug)]
pub struct Checker {
    limits: Limits,
    state: State,
}

impl Checker {
    /// A checker that keeps to `limits` in each check.
    pub fn new(limits: Limits) -> Self {
        Checker {
            limits,
            state: State {
                cells: Cells::new(limits.memory_bytes_max),
                report: Report::default(),
                tables: Vec::new(),
                blocks: Vec::new(),
                ranges: Vec::new(),
                segments: Vec::new(),
                compact_at: 0,
                buf: Vec::new(),
                copied_wrong: false,
                tables_max: usize::try_from(limits.memory_bytes_max / 40).unwrap_or(usize::MAX),
            },
        }
    }

    /// Checks an image. The report stays valid until the next check.
    ///
    /// # Errors
    /// [`CheckError::Header`] if the header cannot be used, [`CheckError::Io`] if reading fails,
    /// [`CheckError::MemoryLimit`] and [`CheckError::WorkLimit`] by the limits.
    pub fn check(&mut self, image: &dyn ReadAt) -> Result<&Report, CheckError> {
        self.state.clear(self.limits.findings_max);
        let reader = Reader::new(image, self.limits.work_bytes_max);
        let header = Header::parse(&reader)?;
        let geometry = Geometry::new(&header);
        Run { reader: &reader, header: &header, geometry, state: &mut self.state }.all()?;
        Ok(&self.state.report)
    }

    /// The report of the last check; empty if that ended with an error before anything was found.
    pub fn report(&self) -> &Report {
        &self.state.report
    }

    /// Gives the report of the last check away.
    pub fn into_report(self) -> Report {
        self.state.report
    }
}

/// What outlives a check.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cells: Cells,
    pub(crate) report: Report,
    /// L2 tables found so far; each once after compaction.
    pub(crate) tables: Vec<TableRef>,
    pub(crate) tables_max: usize,
    /// Length of `tables` at which duplicates are merged next.
    pub(crate) compact_at: usize,
    /// Refcount blocks that can be read: index in the refcount table and offset, ascending by index.
    pub(crate) blocks: Vec<(u64, u64)>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) buf: Vec<u8>,
    /// Some COPIED flag contradicts a refcount.
    pub(crate) copied_wrong: bool,
}

impl State {
    fn clear(&mut self, findings_max: usize) {
        self.cells.clear();
        self.report.reset(findings_max);
        self.tables.clear();
        self.compact_at = COMPACT_MIN;
        self.blocks.clear();
        self.ranges.clear();
        self.segments.clear();
        self.copied_wrong = false;
    }
}

/// One check under way.
pub(crate) struct Run<'a> {
    pub(crate) reader: &'a Reader<'a>,
    pub(crate) header: &'a Header,
    pub(crate) geometry: Geometry,
    pub(crate) state: &'a mut State,
}

impl Run<'_> {
    fn all(&mut self) -> Result<(), CheckError> {
        self.state.report.summary = Summary {
            version: self.header.version,
            cluster_size: self.header.cluster_size(),
            virtual_size: self.header.virtual_size,
            dirty: self.header.is_dirty(),
            marked_corrupt: self.header.is_marked_corrupt(),
            snapshots: self.header.snapshots,
            ..Summary::default()
        };
        self.state.cells.add(0, Owner::Header, 1)?;
        self.check_header();
        self.read_reftable()?;
        self.read_snapshots()?;
        self.scan_active_l1()?;
        self.scan_snapshot_l1s()?;
        self.scan_l2_tables()?;
        self.read_bitmaps()?;
        if let Some(luks) = self.header.luks {
            self.claim(Owner::Luks, Structure::Luks, luks.offset, luks.bytes)?;
        }
        self.compare_refcounts()?;
        self.locate_copied()
    }

    fn check_header(&mut self) {
        let header = self.header;
        let rules = [
            (header.bitmaps_consistent() && header.bitmaps.is_none(), HeaderFault::BitmapsWithoutExtension),
            (header.has_raw_data_file() && !header.has_data_file(), HeaderFault::RawDataFileWithoutDataFile),
            (header.has_raw_data_file() && header.has_backing, HeaderFault::RawDataFileWithBacking),
            (header.has_data_file() && header.snapshots > 0, HeaderFault::SnapshotsWithDataFile),
        ];
        for (broken, fault) in rules {
            if broken {
                self.state.report.add(Finding::Header { fault });
            }
        }
        let entries = u64::from(header.l1_entries);
        let needed = self.geometry.l1_entries(header.virtual_size);
        if entries < needed {
            let structure = Structure::ActiveL1;
            self.state.report.add(Finding::L1TooShort { structure, entries, needed });
        }
    }

    /// Counts a contiguous structure that occupies whole clusters.
    pub(crate) fn claim(
        &mut self,
        owner: Owner,
        structure: Structure,
        offset: u64,
        bytes: u64,
    ) -> Result<(), CheckError> {
        let Some(last_byte) = bytes.checked_sub(1).and_then(|rest| offset.checked_add(rest)) else {
            return Ok(());
        };
        self.check_beyond_eof(owner, structure, offset, last_byte);
        for cluster in self.geometry.cluster(offset)..=self.geometry.cluster(last_byte) {
            self.state.cells.add(cluster, owner, 1)?;
        }
        Ok(())
    }

    /// A table may end inside the last cluster of the file, but each of its clusters must start in it.
    pub(crate) fn check_beyond_eof(
        &mut self,
        owner: Owner,
        structure: Structure,
        offset: u64,
        last_byte: u64,
    ) {
        if self.geometry.offset(self.geometry.cluster(last_byte)) >= self.reader.len() {
            let place = Place { structure, table: offset, index: 0 };
            self.state.report.add(Finding::TableBeyondEof { owner, place, offset });
        }
    }
}

/// Adds a finding for each fault of an entry.
pub(crate) fn report_faults(report: &mut Report, faults: Faults, place: Place, value: u64) {
    if !faults.is_empty() {
        for fault in faults.iter() {
            report.add(Finding::Entry { place, value, fault });
        }
    }
}
