//! How large an image would be, before it is made.
//!
//! The figures are the reference's, so that whoever provides the storage gets the same ones: metadata is counted for
//! the whole disk, data only as far as the source has some.

use std::sync::Arc;

use cowbell_block::chain::Chain;
use cowbell_block::registry::{MeasureSource, Measurement};
use cowbell_block::{Error, ErrorKind, Flags, Node, Preallocation, Result, names};
use serde_json::Value;

use crate::CreateOptions;
use crate::geometry::{Geometry, SLICE_BYTES};
use crate::header::L1_BYTES_MAX;

#[derive(Debug, thiserror::Error)]
#[error("The image size is too large (try using a larger cluster size)")]
struct TooLarge;

/// Measures an image with these options and `key_material` bytes of keys for `source`.
///
/// # Errors
/// Options that the format does not allow, a disk too long for it, or the source's error.
pub(crate) async fn measure(
    options: &CreateOptions,
    key_material: u64,
    source: &MeasureSource,
) -> Result<Measurement> {
    options.validate()?;
    let geometry = Geometry::new(options.cluster_bits, options.refcount_order, SLICE_BYTES);
    let geometry = geometry.with_l2(options.l2_format);
    let cluster = geometry.cluster_size();
    let len = match source {
        MeasureSource::Size(len) => *len,
        MeasureSource::Image(node) => node.len(),
    };
    let too_large = || Error::new(ErrorKind::TooLarge, TooLarge);
    let disk =
        len.checked_next_multiple_of(cluster).filter(|d| *d <= i64::MAX as u64).ok_or_else(too_large)?;
    if geometry.l1_entries_for(disk) * 8 > L1_BYTES_MAX {
        return Err(too_large());
    }
    let data = match source {
        _ if matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full) => disk,
        MeasureSource::Size(_) => 0,
        // How much of the chain below is shared is not known.
        MeasureSource::Image(_) if options.backing_file.is_some() => disk,
        MeasureSource::Image(node) => data_bytes(node, cluster).await?,
    };
    // Whole clusters hold the keys; the reference does not count their references.
    let fully_allocated = metadata_bytes(&geometry, disk) + disk + key_material.next_multiple_of(cluster);
    let bitmaps = match source {
        MeasureSource::Image(node) if options.version >= 3 => bitmap_bytes(node, cluster).await?,
        _ => None,
    };
    Ok(Measurement { required: fully_allocated - disk + data, fully_allocated, bitmaps })
}

/// Bytes of the clusters that a copy of the disk would allocate.
async fn data_bytes(node: &Arc<dyn Node>, cluster: u64) -> Result<u64> {
    let chain = Chain::of(node.clone()).with_flags(Flags::PRECISE);
    let (mut at, mut bytes) = (0, 0);
    while at < chain.len() {
        let extent = chain.status(at, chain.len() - at).await?;
        let mut len = extent.len;
        if !extent.is_zero() && extent.is_data() {
            // The next extent begins in a cluster that is not counted yet.
            len = (at + len).next_multiple_of(cluster) - at;
            bytes += at % cluster + len;
        }
        at += len;
    }
    Ok(bytes)
}

/// Bytes of everything but data in an image whose disk of `disk` bytes, whole clusters, is allocated.
fn metadata_bytes(geometry: &Geometry, disk: u64) -> u64 {
    let cluster = geometry.cluster_size();
    let l2 = geometry.clusters_for(disk).next_multiple_of(geometry.l2_entries()) * geometry.l2_entry_bytes();
    let l1 = geometry.clusters_for(l2).next_multiple_of(cluster / 8) * 8;
    let counted = cluster + l2 + l1;
    counted + refcount_bytes(geometry, geometry.clusters_for(counted + disk))
}

/// Bytes of the refcount blocks and the table that count `clusters` clusters and themselves.
fn refcount_bytes(geometry: &Geometry, clusters: u64) -> u64 {
    let (mut blocks, mut table) = (0, 0);
    loop {
        let before = blocks + table;
        blocks = (clusters + table + blocks).div_ceil(geometry.refblock_entries());
        table = geometry.clusters_for(blocks * 8);
        if blocks + table == before {
            return before << geometry.cluster_bits;
        }
    }
}

/// Bytes that the source's persistent bitmaps would take, inconsistent ones as well (as the reference counts them);
/// `None` where it can have none.
async fn bitmap_bytes(node: &Arc<dyn Node>, cluster: u64) -> Result<Option<u64>> {
    let info = node.info().await?;
    let Some((crate::DRIVER, facts)) = info.format_specific else { return Ok(None) };
    if facts.get("compat").and_then(Value::as_str) == Some("0.10") {
        return Ok(None);
    }
    let (mut bytes, mut directory) = (0, 0u64);
    for bitmap in facts.get("bitmaps").and_then(Value::as_array).into_iter().flatten() {
        let granularity = bitmap.get("granularity").and_then(Value::as_u64).unwrap_or(1).max(1);
        let name = bitmap.get("name").and_then(Value::as_str).unwrap_or_default();
        let content = info.virtual_size.div_ceil(granularity).div_ceil(8).next_multiple_of(cluster);
        bytes += content + (content / cluster * 8).next_multiple_of(cluster);
        directory += crate::bitmap::directory::entry_bytes(names::to_bytes(name).len());
    }
    Ok(Some(bytes + directory.next_multiple_of(cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::L2Format;

    /// Figures of the reference, `measure --size`.
    #[test]
    fn sizes_are_those_of_the_reference() {
        let run = |options: CreateOptions, size| {
            let mut future = Box::pin(async move { measure(&options, 0, &MeasureSource::Size(size)).await });
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            match std::future::Future::poll(future.as_mut(), &mut cx) {
                std::task::Poll::Ready(result) => result.map(|m| (m.required, m.fully_allocated)),
                std::task::Poll::Pending => panic!("nothing to wait for"),
            }
        };
        let usual = CreateOptions::default;
        assert_eq!(run(usual(), 1 << 30).unwrap(), (393_216, 1_074_135_040));
        assert_eq!(run(usual(), 0).unwrap(), (196_608, 196_608));
        let large = CreateOptions { cluster_bits: 21, refcount_order: 0, ..usual() };
        assert_eq!(run(large, 10 << 40).unwrap(), (50_331_648, 10_995_166_609_408));
        let extended = CreateOptions { l2_format: L2Format::Extended, ..usual() };
        assert_eq!(run(extended, 10 << 40).unwrap(), (3_020_488_704, 10_998_136_766_464));
        let error = run(usual(), 7 << 60).expect_err("too large");
        assert_eq!(error.to_string(), "The image size is too large (try using a larger cluster size)");
    }
}
