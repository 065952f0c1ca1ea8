//! `check --data`: everything that the image itself stores is read, decompressed and decrypted, for the disk and for
//! each snapshot. What cannot be read is named by its place on the disk.

use std::sync::Arc;

use cowbell_block::{Buf, ExtentFlags, Finding, Node, Request, Result, SnapshotName, Topic};

/// Bytes read at once.
const PIECE_BYTES: u64 = 2 << 20;
/// Findings kept; beyond that they are only counted.
const FINDINGS_MAX: usize = 100_000;

const UNREADABLE: &Topic = &Topic {
    name: "data-unreadable",
    meaning: "What is stored for this part of the disk cannot be read: compressed data is damaged, its mapping is, or \
              the host cannot read the file.",
    repair: "None: the content is lost unless a copy of it exists. Writing the whole cluster anew makes it readable.",
};

/// What reading found.
#[derive(Default)]
pub struct DataReport {
    pub findings: Vec<Finding>,
    /// Clusters that cannot be read.
    pub errors: u64,
    /// Bytes of the disk and its snapshots that could.
    pub bytes: u64,
}

/// Reads what the image stores.
///
/// # Errors
/// The image does not say what it stores.
pub async fn read_all(node: &Arc<dyn Node>) -> Result<DataReport> {
    let mut report = DataReport::default();
    read_disk(&**node, 0, &mut report).await?;
    let snapshots = node.info().await?.snapshots;
    for (number, snapshot) in (1..).zip(snapshots) {
        match node.at_snapshot(SnapshotName::Id(snapshot.id)).await {
            Ok(view) => {
                let read = read_disk(&*view, number, &mut report).await;
                view.close().await?;
                read?;
            }
            Err(e) => {
                let line = format!("ERROR snapshot {number} cannot be read: {e}");
                report.found(Finding::new(UNREADABLE, line).of_snapshot(number));
            }
        }
    }
    Ok(report)
}

impl DataReport {
    fn found(&mut self, finding: Finding) {
        self.errors += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// Reads a disk, or the one of a snapshot, which is counted from 1.
async fn read_disk(node: &dyn Node, snapshot: u32, report: &mut DataReport) -> Result<()> {
    let (len, grain) = (node.len(), node.limits().preferred_write.max(512));
    let mut at = 0;
    while at < len {
        let status = node.submit(Request::status(at, len - at)).finish().await.into_extent();
        let extent = match status {
            Ok(extent) if extent.len > 0 => extent,
            // The mapping of this cluster is damaged: the next one may be sound.
            Ok(_) => break,
            Err(e) => {
                let end = (at / grain + 1) * grain;
                report.unreadable(at, snapshot, &e);
                at = end;
                continue;
            }
        };
        let stored = ExtentFlags::ALLOCATED | ExtentFlags::DATA;
        let end = (at + extent.len).min(len);
        if extent.flags.contains(stored) {
            read_range(node, at, end, grain, snapshot, report).await;
        }
        at = end;
    }
    Ok(())
}

async fn read_range(
    node: &dyn Node,
    start: u64,
    end: u64,
    grain: u64,
    snapshot: u32,
    report: &mut DataReport,
) {
    let mut at = start;
    while at < end {
        let piece = (end - at).min(PIECE_BYTES);
        if read(node, at, piece).await.is_ok() {
            report.bytes += piece;
            at += piece;
            continue;
        }
        // Which clusters of the piece it is.
        let stop = at + piece;
        while at < stop {
            let cluster_end = ((at / grain + 1) * grain).min(stop);
            match read(node, at, cluster_end - at).await {
                Ok(()) => report.bytes += cluster_end - at,
                Err(e) => report.unreadable(at, snapshot, &e),
            }
            at = cluster_end;
        }
    }
}

impl DataReport {
    fn unreadable(&mut self, at: u64, snapshot: u32, error: &cowbell_block::Error) {
        let of = if snapshot > 0 { format!(" of snapshot {snapshot}") } else { String::new() };
        let line = format!("ERROR data at guest offset {at:#x}{of} cannot be read: {error}");
        self.found(Finding::new(UNREADABLE, line).on_disk(at).of_snapshot(snapshot));
    }
}

async fn read(node: &dyn Node, at: u64, len: u64) -> Result<()> {
    let completion = node.submit(Request::read(at, Buf::scratch(len as usize))).finish().await;
    completion.into_bufs().map(|bufs| bufs.recycle())
}
