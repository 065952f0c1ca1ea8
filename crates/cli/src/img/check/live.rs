//! `check --live`: an image that somebody writes to meanwhile.
//!
//! The file is looked at while it changes, so one look sees tables of one moment and refcounts of another. What is
//! really wrong stays; so the image is opened and looked at again and again, with longer and longer pauses, and only
//! what every look found is told. Leaks are never told: a writer counts clusters before it refers to them. Nor is what
//! an image with postponed refcounts says about them.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, anyhow};
use cowbell_block::node::{CheckReport, Fix};

use crate::context::Context;
use crate::open::{How, open};

/// Looks that must agree.
const LOOKS: u32 = 5;
/// Looks that may fail, since the header or a table was being written.
const FAILURES_MAX: u32 = 8;
/// The first pause; each one is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(25);

/// Kinds that say nothing while the image is in use.
const PASSING: &[&str] = &["leak"];
/// Kinds that say nothing while refcounts are postponed.
const POSTPONED: &[&str] = &["refcount-too-low", "copied-flag"];

/// What all looks found.
pub struct Lasting {
    /// Its corruptions are the findings that lasted.
    pub report: CheckReport,
    /// The image's driver and name.
    pub driver: &'static str,
    pub filename: String,
}

/// One look at the image as it is now.
async fn look(cx: &Context, how: &How<'_>) -> Result<Lasting> {
    let image = open(cx, how).await?;
    let node = image.node();
    let postponed = node.info().await.is_ok_and(|info| info.dirty == Some(true));
    let checked = node.check(Fix::None).await;
    let (driver, filename) = (node.driver(), node.filename());
    image.close().await?;
    let mut report = checked.map_err(|e| anyhow!("Check failed: {e}"))?;
    report.findings.retain(|finding| match finding.topic().map(|topic| topic.name) {
        None => false,
        Some(name) if PASSING.contains(&name) => false,
        Some(name) => !(postponed && POSTPONED.contains(&name)),
    });
    Ok(Lasting { report, driver, filename })
}

/// Looks until what is left has lasted, or nothing is.
///
/// # Errors
/// The image cannot be looked at, whenever it is tried.
pub async fn lasting(cx: &Context, how: &How<'_>) -> Result<Lasting> {
    let mut all: Option<Lasting> = None;
    let (mut looks, mut failures) = (0, 0);
    while looks < LOOKS {
        let mut now = match look(cx, how).await {
            Ok(now) => now,
            Err(e) if failures == FAILURES_MAX => return Err(e),
            Err(_) => {
                failures += 1;
                sleep(PAUSE);
                continue;
            }
        };
        looks += 1;
        if let Some(before) = &all {
            let known: BTreeSet<&str> = before.report.findings.iter().map(|finding| &**finding).collect();
            now.report.findings.retain(|finding| known.contains(&**finding));
        }
        let is_over = now.report.findings.is_empty();
        all = Some(now);
        if is_over {
            break;
        }
        if looks < LOOKS {
            sleep(PAUSE * 2u32.pow(looks - 1));
        }
    }
    let mut lasting = all.ok_or_else(|| anyhow!("the image was not looked at"))?;
    let report = &mut lasting.report;
    report.corruptions = report.findings.len() as u64;
    (report.leaks, report.check_errors, report.findings_omitted) = (0, 0, 0);
    Ok(lasting)
}
