//! Images written from the beginning to the end, where nothing can be written twice: into a pipe.
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 table | L2 tables | data, in the order of the disk
//! ```
//!
//! Everything before the data depends on which clusters have data, so that is said first. A cluster that was said to
//! have data and is not written reads as zeroes. Memory is bounded: data that is scattered too finely is joined with
//! the holes between.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{
    BoxFuture, Buf, Child, Completion, Error, ErrorKind, ImageInfo, Limits, Node, Op, Operation,
    Preallocation, Request, Result,
};

use crate::create::CreateOptions;
use crate::geometry::{Geometry, HostOffset, SLICE_BYTES};
use crate::table::{Cell, L1Entry, Ownership, Storage};
use crate::{DRIVER, refcount};

/// Most runs of data that are remembered: 16 MiB of them.
const RUNS_MAX: usize = 1 << 20;

/// What cannot be written in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The options ask for more than tables and data.
    #[error("an image with these options cannot be written in one go")]
    Options,
    /// Data where none was announced, or out of order.
    #[error("data at {0} was not announced")]
    Unannounced(u64),
}

impl From<StreamError> for Error {
    fn from(e: StreamError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// Guest clusters with data, as runs in ascending order.
pub struct Announced {
    runs: Vec<Range<u64>>,
    /// Runs begin and end at multiples of so many clusters.
    grain: u64,
    runs_max: usize,
    cluster_bits: u32,
}

impl Announced {
    /// Nothing yet, for an image with clusters of this size.
    pub fn new(cluster_bits: u32) -> Self {
        Self { runs: Vec::new(), grain: 1, runs_max: RUNS_MAX, cluster_bits }
    }

    /// There is data in these bytes of the disk; they come in ascending order.
    pub fn add(&mut self, bytes: Range<u64>) {
        let clusters = bytes.start >> self.cluster_bits..bytes.end.div_ceil(1 << self.cluster_bits);
        self.push(clusters);
        while self.runs.len() > self.runs_max {
            self.grain *= 2;
            for run in std::mem::take(&mut self.runs) {
                self.push(run);
            }
        }
    }

    fn push(&mut self, run: Range<u64>) {
        let run = run.start / self.grain * self.grain..run.end.next_multiple_of(self.grain);
        match self.runs.last_mut() {
            Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
            _ => self.runs.push(run),
        }
    }
}

/// Where everything lies in an image that is written in one go.
pub struct StreamPlan {
    options: CreateOptions,
    geometry: Geometry,
    runs: Vec<Run>,
    /// Clusters of each part, in the order of the file.
    reftable: u64,
    refblocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
}

/// A run of guest clusters, and how many clusters of data come before it.
struct Run {
    guest: Range<u64>,
    before: u64,
}

impl StreamPlan {
    /// The layout of an image with these options and data.
    ///
    /// # Errors
    /// Options that the format does not allow, or that need more than tables and data.
    pub fn new(options: CreateOptions, announced: Announced) -> Result<Self> {
        options.validate()?;
        options.check_header()?;
        let standard = CreateOptions::default();
        let plain = options.l2_format == standard.l2_format
            && options.preallocation == standard.preallocation
            && options.data_file.is_none()
            && options.backing_file.is_none();
        if !plain {
            return Err(StreamError::Options.into());
        }
        let geometry = Geometry::new(options.cluster_bits, options.refcount_order, SLICE_BYTES);
        let disk = geometry.clusters_for(options.size);
        let (mut runs, mut data) = (Vec::with_capacity(announced.runs.len()), 0);
        for run in announced.runs {
            let guest = run.start.min(disk)..run.end.min(disk);
            if !guest.is_empty() {
                let count = guest.end - guest.start;
                runs.push(Run { guest, before: data });
                data += count;
            }
        }
        let l1 = geometry.clusters_for(geometry.l1_entries_for(options.size) * 8);
        let mut plan = Self { options, geometry, runs, reftable: 1, refblocks: 1, l1, l2: 0, data };
        plan.l2 = plan.tables().count() as u64;
        loop {
            let blocks = plan.clusters().div_ceil(plan.counts_per_block());
            let table = geometry.clusters_for(blocks * 8);
            if (blocks, table) == (plan.refblocks, plan.reftable) {
                return Ok(plan);
            }
            // Both only grow, and by ever less.
            (plan.refblocks, plan.reftable) = (blocks.max(plan.refblocks), table.max(plan.reftable));
        }
    }

    fn clusters(&self) -> u64 {
        1 + self.reftable + self.refblocks + self.l1 + self.l2 + self.data
    }

    fn counts_per_block(&self) -> u64 {
        self.geometry.refblock_entries()
    }

    /// Bytes of the image.
    pub fn file_len(&self) -> u64 {
        self.clusters() << self.geometry.cluster_bits
    }

    fn place(&self, cluster: u64) -> HostOffset {
        HostOffset(cluster << self.geometry.cluster_bits)
    }

    fn first_l2(&self) -> u64 {
        1 + self.reftable + self.refblocks + self.l1
    }

    fn first_data(&self) -> u64 {
        self.first_l2() + self.l2
    }

    /// The L1 indices that have a table, in order.
    fn tables(&self) -> impl Iterator<Item = u64> {
        let per_table = self.geometry.l2_entries();
        let mut last = None;
        self.runs
            .iter()
            .flat_map(move |run| run.guest.start / per_table..(run.guest.end - 1) / per_table + 1)
            .filter(move |index| {
                let new = last != Some(*index);
                last = Some(*index);
                new
            })
    }

    /// Everything before the data, cluster by cluster.
    pub fn metadata(&self) -> impl Iterator<Item = Result<Buf>> {
        let head = std::iter::once_with(|| self.header());
        let reftable = (0..self.reftable).map(|n| Ok(self.reftable_cluster(n)));
        let refblocks = (0..self.refblocks).map(|n| Ok(self.refblock(n)));
        let mut numbered = self.tables().enumerate().peekable();
        let entries = self.geometry.cluster_size() / 8;
        let l1 = (0..self.l1).map(move |n| {
            let mut cluster = self.empty();
            while let Some((number, index)) = numbered.next_if(|(_, index)| *index < (n + 1) * entries) {
                let table = self.place(self.first_l2() + number as u64);
                let at = (index - n * entries) as usize * 8;
                let entry = L1Entry::Table(table, Ownership::Private).encode();
                cluster[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            }
            Ok(cluster)
        });
        let l2 = self.tables().map(|index| Ok(self.l2_table(index)));
        head.chain(reftable).chain(refblocks).chain(l1).chain(l2)
    }

    fn empty(&self) -> Buf {
        Buf::zeroed(self.geometry.cluster_size() as usize)
    }

    fn header(&self) -> Result<Buf> {
        let table = u32::try_from(self.reftable).map_err(|_| ErrorKind::TooLarge)?;
        let mut header = self.options.header(table);
        header.size = self.options.size;
        header.l1_entries = u32::try_from(self.geometry.l1_entries_for(self.options.size))
            .map_err(|_| ErrorKind::TooLarge)?;
        if header.l1_entries > 0 {
            header.l1_offset = self.place(1 + self.reftable + self.refblocks);
        }
        let mut bytes = header.encode()?;
        bytes.resize(self.geometry.cluster_size() as usize, 0);
        Ok(Buf::copy_of(&bytes))
    }

    fn reftable_cluster(&self, number: u64) -> Buf {
        let mut cluster = self.empty();
        let entries = self.geometry.cluster_size() / 8;
        let first = number * entries;
        for block in first..self.refblocks.min(first + entries) {
            let at = (block - first) as usize * 8;
            let place = self.place(1 + self.reftable + block).0;
            cluster[at..at + 8].copy_from_slice(&place.to_be_bytes());
        }
        cluster
    }

    fn refblock(&self, number: u64) -> Buf {
        let mut cluster = self.empty();
        let order = self.options.refcount_order;
        let first = number * self.counts_per_block();
        for index in 0..self.counts_per_block().min(self.clusters().saturating_sub(first)) {
            refcount::put(&mut cluster, order, index, 1);
        }
        cluster
    }

    fn l2_table(&self, index: u64) -> Buf {
        let mut table = self.empty();
        let per_table = self.geometry.l2_entries();
        let covered = index * per_table..(index + 1) * per_table;
        let from = self.runs.partition_point(|run| run.guest.end <= covered.start);
        for run in self.runs[from..].iter().take_while(|run| run.guest.start < covered.end) {
            for guest in run.guest.start.max(covered.start)..run.guest.end.min(covered.end) {
                let host = self.place(self.first_data() + run.before + guest - run.guest.start);
                let at = ((guest - covered.start) * 8) as usize;
                let storage = Storage::Cluster(host, Ownership::Private);
                let cell = Cell { storage, alloc: self.geometry.all_subclusters(), zero: 0 };
                let (entry, _) = cell.encode(&self.geometry);
                table[at..at + 8].copy_from_slice(&entry.to_be_bytes());
            }
        }
        table
    }

    /// Where the data at `guest` lies, and how many bytes behind it lie there in a row.
    fn host_of(&self, guest: u64) -> Option<(u64, u64)> {
        let cluster = guest >> self.geometry.cluster_bits;
        let index = self.runs.partition_point(|run| run.guest.end <= cluster);
        let run = self.runs.get(index).filter(|run| run.guest.contains(&cluster))?;
        let inside = guest - (run.guest.start << self.geometry.cluster_bits);
        let host = self.place(self.first_data() + run.before).0 + inside;
        Some((host, (run.guest.end << self.geometry.cluster_bits) - guest))
    }
}

/// An image on its way into something that takes bytes in order only. Writes come in ascending order; what is not
/// written reads as zeroes.
pub struct StreamNode {
    plan: Arc<StreamPlan>,
    sink: Child,
}

impl StreamNode {
    /// Begins the image: writes everything before the data.
    ///
    /// # Errors
    /// The sink's.
    pub async fn begin(plan: StreamPlan, sink: Child) -> Result<Self> {
        let mut at = 0;
        for cluster in plan.metadata() {
            let cluster = cluster?;
            let len = cluster.len() as u64;
            sink.write(at, cluster).await?;
            at += len;
        }
        Ok(Self { plan: Arc::new(plan), sink })
    }
}

async fn write(plan: Arc<StreamPlan>, sink: Child, mut request: Request) -> Completion {
    let (mut at, end) = (request.offset, request.end());
    let mut rest = std::mem::take(&mut request.bufs);
    let mut done = cowbell_block::Bufs::none();
    while at < end {
        let Some((host, reach)) = plan.host_of(at) else {
            done.append(rest);
            return Completion::failed(done, StreamError::Unannounced(at));
        };
        let len = reach.min(end - at);
        let part = Request::write(host, rest.split_to(len as usize)).caused_by(request.cause);
        let completion = sink.submit(part).finish().await;
        done.append(completion.bufs);
        if let Err(e) = completion.result {
            done.append(rest);
            return Completion::failed(done, e);
        }
        at += len;
    }
    Completion::done(done)
}

impl Node for StreamNode {
    fn submit(&self, request: Request) -> Op {
        match request.op {
            Operation::Write => Op::wait(write(self.plan.clone(), self.sink.clone(), request)),
            // Zeroes are what is there.
            Operation::WriteZeroes | Operation::Discard | Operation::Flush => Op::done(request.bufs),
            _ => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn len(&self) -> u64 {
        self.plan.options.size
    }

    fn limits(&self) -> Limits {
        Limits { preferred_write: self.plan.geometry.cluster_size(), ..Limits::default() }
    }

    fn starts_as_zero(&self) -> bool {
        true
    }

    fn filename(&self) -> String {
        self.sink.node().filename()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: DRIVER, virtual_size: self.len(), ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    /// Ends the image: all its clusters are there.
    fn close(&self) -> BoxFuture<Result<()>> {
        let (plan, sink) = (self.plan.clone(), self.sink.clone());
        Box::pin(async move {
            let end = Request::truncate(plan.file_len(), Preallocation::Off);
            sink.submit(end).finish().await.result?;
            sink.node().close().await
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_scattered_too_finely_is_joined() {
        let mut announced = Announced { runs_max: 4, ..Announced::new(9) };
        for n in 0..64 {
            announced.add(n * 2048..n * 2048 + 1);
        }
        assert!(announced.runs.len() <= 4);
        assert!((0..64).all(|n| announced.runs.iter().any(|run| run.contains(&(n * 4)))));
        let mut announced = Announced::new(9);
        [0..1, 1..600, 1024..2048, 8000..8001].into_iter().for_each(|bytes| announced.add(bytes));
        assert_eq!(announced.runs, [0..4, 15..16]);
    }

    #[test]
    fn counts_of_any_number_of_clusters_fit() {
        for (cluster_bits, refcount_order) in [(9, 6), (9, 0), (16, 4), (21, 4), (12, 3)] {
            for size in [0, 512, 1 << 20, 3 << 30] {
                let options =
                    CreateOptions { cluster_bits, refcount_order, size, ..CreateOptions::default() };
                let mut announced = Announced::new(cluster_bits);
                announced.add(0..size);
                let plan = StreamPlan::new(options, announced).expect("allowed");
                let clusters = plan.clusters();
                assert!(plan.refblocks * plan.counts_per_block() >= clusters);
                assert!(plan.geometry.clusters_for(plan.refblocks * 8) <= plan.reftable);
                assert_eq!(plan.data, size.div_ceil(1 << cluster_bits));
            }
        }
    }
}
