//! What `info` says of an image.

use std::sync::Arc;

use cowbell_block::{ImageInfo, Result};
use serde_json::{Map, Value, json};

use crate::engine::Engine;
use crate::header::{Header, Incompatible, LAZY_REFCOUNTS};
use crate::snapshot::SnapshotTable;
use crate::{DRIVER, bitmap};

/// The facts of an image, read from its metadata only.
///
/// # Errors
/// A broken snapshot table or bitmap directory, or the file's error.
pub(crate) async fn describe(engine: &Arc<Engine>) -> Result<ImageInfo> {
    let header = engine.state.lock().header.clone();
    // At its final length from the start: a header may claim 65536 entries.
    let mut snapshots = Vec::with_capacity(header.snapshot_count as usize);
    SnapshotTable::scan(&engine.file, &header, |entry| snapshots.push(entry.info)).await?;
    let bitmaps = bitmap::describe(engine, &header).await?;
    let geometry = engine.geometry;
    let vm_state_start = engine.state.lock().vm_state_start();
    Ok(ImageInfo {
        format: DRIVER,
        virtual_size: header.size,
        cluster_size: Some(geometry.cluster_size()),
        encrypted: header.crypt_method != 0,
        dirty: Some(header.incompatible.contains(Incompatible::DIRTY)),
        backing_filename: header.backing_file.clone(),
        backing_format: header.backing_format.clone(),
        snapshots,
        vm_state_offset: Some(vm_state_start),
        format_specific: Some((DRIVER, format_specific(engine, &header, bitmaps))),
        ..ImageInfo::default()
    })
}

/// The facts of the format in the reference's order.
fn format_specific(engine: &Engine, header: &Header, bitmaps: Option<Value>) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut put = |key: &str, value: Value| facts.insert(key.to_owned(), value);
    let compression = header.compression.name();
    if header.version < 3 {
        put("compat", json!("0.10"));
        put("compression-type", json!(compression));
        put("refcount-bits", json!(1 << header.refcount_order));
        if let Some(crypto) = &engine.around.crypto {
            put("encrypt", Value::Object(crypto.facts()));
        }
        return facts;
    }
    put("compat", json!("1.1"));
    put("compression-type", json!(compression));
    put("lazy-refcounts", json!(header.compatible & LAZY_REFCOUNTS != 0));
    if let Some(list) = bitmaps {
        put("bitmaps", list);
    }
    put("refcount-bits", json!(1 << header.refcount_order));
    if let Some(name) = header.data_file() {
        put("data-file", json!(name));
    }
    if let Some(crypto) = &engine.around.crypto {
        put("encrypt", Value::Object(crypto.facts()));
    }
    if header.incompatible.contains(Incompatible::DATA_FILE) {
        put("data-file-raw", json!(header.has_raw_data_file()));
    }
    put("corrupt", json!(header.incompatible.contains(Incompatible::CORRUPT)));
    put("extended-l2", json!(header.incompatible.contains(Incompatible::EXTENDED_L2)));
    facts
}
