//! `img convert --bitmaps`: the bitmaps of the source, in the target.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use cowbell_block::node::Node;
use cowbell_qcow2::{BitmapError, BitmapInfo, Qcow2, Recording};

use super::bitmap::qcow2;
use crate::context::Context;

/// What happens to inconsistent bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The conversion is refused.
    Refused,
    /// They are left out, with a warning.
    Skipped,
}

/// The bitmaps that are to be copied.
pub(super) struct Bitmaps {
    source: Arc<dyn Node>,
    list: Vec<BitmapInfo>,
}

impl Bitmaps {
    /// Looks into the source, before a target is made.
    ///
    /// # Errors
    /// It can have no bitmaps, or one of them is inconsistent.
    pub(super) async fn of(cx: &Context, source: Arc<dyn Node>, broken: Broken) -> Result<Self> {
        let Some(image) = storing(&source) else { bail!("Source lacks bitmap support") };
        let mut list = image.bitmaps().await?;
        // The reference goes through them from the last to the first.
        for bitmap in list.iter().rev().filter(|bitmap| bitmap.inconsistent) {
            match broken {
                Broken::Skipped => {
                    cx.report(format!("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
                }
                Broken::Refused => bail!(
                    "Cannot copy inconsistent bitmap '{}'\n\
                     Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
                    bitmap.name
                ),
            }
        }
        list.retain(|bitmap| !bitmap.inconsistent);
        Ok(Self { source, list })
    }

    /// Looks whether the target can have bitmaps, before anything is copied.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn check_target(&self, target: &Arc<dyn Node>) -> Result<()> {
        match storing(target) {
            Some(_) => Ok(()),
            None => bail!("Format driver '{}' does not support bitmaps", target.driver()),
        }
    }

    /// Copies them. They record from then on if they did in the source.
    ///
    /// # Errors
    /// A name is taken, the disks differ in length, or a file's error.
    pub(super) async fn copy(&self, target: &Arc<dyn Node>) -> Result<()> {
        let (Some(source), Some(target)) = (qcow2(&self.source), qcow2(target)) else { return Ok(()) };
        self.check(target).await?;
        for bitmap in &self.list {
            let failed = |what: &str, e| anyhow!("Failed to {what} bitmap {}: {e}", bitmap.name);
            let added = target.add_bitmap(&bitmap.name, bitmap.granularity).await;
            added.map_err(|e| failed("create", e))?;
            let merged = async {
                let mut bits = source.read_bitmap(&bitmap.name).await?;
                target.merge_bitmap(&bitmap.name, &mut bits).await?;
                match bitmap.recording {
                    true => Ok(()),
                    false => target.set_recording(&bitmap.name, Recording::Off).await,
                }
            };
            merged.await.map_err(|e| failed("populate", e))?;
        }
        Ok(())
    }

    /// Finds what stands against it before the first is copied: all of them or none.
    async fn check(&self, target: &Qcow2) -> Result<()> {
        let there = target.bitmaps().await?;
        let (destination, from) = (target.len(), self.source.len());
        for BitmapInfo { name, .. } in self.list.iter().rev() {
            if there.iter().any(|known| known.name == *name) {
                bail!("Failed to create bitmap {name}: {}", BitmapError::Exists(name.clone()));
            }
            if destination != from {
                bail!("Failed to populate bitmap {name}: {}", BitmapError::Sizes { destination, from });
            }
        }
        Ok(())
    }
}

/// The node as an image that has a place for bitmaps.
fn storing(node: &Arc<dyn Node>) -> Option<&Qcow2> {
    qcow2(node).filter(|image| image.offers_bitmaps())
}
