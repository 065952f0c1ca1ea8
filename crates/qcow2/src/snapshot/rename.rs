//! Gives a snapshot another name.

use std::sync::Arc;

use cowbell_block::{Result, SnapshotName, names};

use super::rows::{Input, Output, Row};
use super::shadow::{Shadow, Switch};
use super::{SnapshotError, SnapshotTable, TABLE_BYTES_MAX};
use crate::engine::{Dropped, Engine};
use crate::geometry::HostCluster;
use crate::header::Header;

/// Renames a snapshot.
pub(super) async fn rename(engine: &Arc<Engine>, which: &SnapshotName, name: &str) -> Result<()> {
    let bytes = names::to_bytes(name).len();
    if bytes > usize::from(u16::MAX) {
        return Err(SnapshotError::NameTooLong(bytes).into());
    }
    let header = engine.state.lock().header.clone();
    let (index, _) = SnapshotTable::find(&engine.file, &header, which).await?;
    let mut shadow = Shadow::new(engine, Dropped::Replaced);
    let done = rewrite(&mut shadow, &header, |at, row| {
        if at == index {
            row.name = names::to_bytes(name).into_owned();
        }
    })
    .await;
    if done.is_err() {
        shadow.abandon().await;
    }
    done
}

/// Writes the table anew, all entries complete, and each as `change` makes it.
pub(super) async fn rewrite(
    shadow: &mut Shadow,
    header: &Header,
    change: impl Fn(u32, &mut Row),
) -> Result<()> {
    let engine = shadow.engine.clone();
    let change = |index: u32, row: Row| {
        let mut row = row.completed(header.size);
        change(index, &mut row);
        row
    };
    let (mut bytes, mut index) = (0, 0);
    let mut input = Input::new(&engine.file, header);
    while let Some(row) = input.next().await? {
        bytes += change(index, row).stored_len();
        index += 1;
    }
    if bytes > TABLE_BYTES_MAX {
        return Err(SnapshotError::TooLarge.into());
    }
    shadow.drop_structure(header.snapshots_offset, input.table_bytes());
    let place = shadow.own(engine.geometry.clusters_for(bytes), 1).await?;
    let offset = engine.geometry.host_offset(HostCluster(place.first));
    let mut input = Input::new(&engine.file, header);
    let mut output = Output::new(&engine.file, offset);
    let mut index = 0;
    while let Some(row) = input.next().await? {
        output.put(&change(index, row)).await?;
        index += 1;
    }
    output.finish().await?;
    let snapshots = Some((offset, header.snapshot_count));
    shadow.commit(Switch { snapshots, ..Switch::default() }).await
}
