//! `img check`.

mod data;
mod explain;
mod live;

use std::fmt::Write;

use anyhow::{Result, anyhow};
use cowbell_block::error::errno_text;
use cowbell_block::node::{Access, CheckReport, Fix};
use cowbell_block::{ErrorKind, Finding};
use cowbell_host::block_on;
use serde_json::{Map, Value};

use super::{Form, form, format_or_options, one_image};
use crate::context::{Context, usage};
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, Image, Purpose, cache_mode, open};
use crate::out::{Out, complain, mutter};

/// Corruptions remain.
const STATUS_CORRUPT: u8 = 2;
/// Only leaks remain.
const STATUS_LEAKS: u8 = 3;
/// The format has no check.
const STATUS_UNSUPPORTED: u8 = 63;

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let fix = match args.value(&flags::REPAIR) {
        None => Fix::None,
        Some("leaks") => Fix::Leaks,
        Some("all") => Fix::All,
        Some(other) => {
            return Err(usage(format!("--repair (-r) expects 'leaks' or 'all' not '{other}'")));
        }
    };
    let form = form(args, &flags::OUTPUT)?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let cache = cache_mode("source cache", args.value(&flags::CACHE).unwrap_or("writeback"))?;
    let how = How {
        image_opts,
        access: if fix == Fix::None { Access::ReadOnly } else { Access::ReadWrite },
        force_share: args.has(&flags::FORCE_SHARE) || args.has(&flags::LIVE),
        cache,
        purpose: Purpose::Check,
        ..How::reading(name, format)
    };
    if fix != Fix::None && args.has(&flags::DATA) {
        return Err(usage("--data looks and changes nothing: it cannot be used with -r".to_owned()));
    }
    if args.has(&flags::LIVE) && (fix != Fix::None || args.has(&flags::DATA)) {
        return Err(usage("--live looks at tables only: it cannot be used with -r or --data".to_owned()));
    }
    let wanted = Wanted {
        fix,
        form,
        quiet: args.has(&flags::QUIET),
        explain: args.has(&flags::EXPLAIN),
        data: args.has(&flags::DATA),
    };
    match args.has(&flags::LIVE) {
        true => block_on(check_live(cx, &how, &wanted)),
        false => block_on(check(cx, &how, &wanted)),
    }
}

/// What the user asked for.
struct Wanted {
    fix: Fix,
    form: Form,
    quiet: bool,
    explain: bool,
    data: bool,
}

async fn check(cx: &Context, how: &How<'_>, wanted: &Wanted) -> Result<u8> {
    let image = open(cx, how).await?;
    let mut out = Out::new();
    let status = pass_by_pass(cx, &image, wanted, &mut out).await;
    out.flush();
    let closed = image.close().await;
    let status = status?;
    closed?;
    Ok(status)
}

async fn pass_by_pass(cx: &Context, image: &Image, wanted: &Wanted, out: &mut Out) -> Result<u8> {
    let Wanted { fix, form, quiet, data, .. } = *wanted;
    let first = match pass(image, fix).await {
        Ok(report) => report,
        // A format that cannot be repaired in this way may still have a check.
        Err(e) if e.kind() == ErrorKind::Unsupported && (fix == Fix::None || !has_check(image).await) => {
            cx.report("This image format does not support checks");
            return Ok(STATUS_UNSUPPORTED);
        }
        Err(e) => return Err(failed(cx, &e)),
    };
    let fixed = (first.corruptions_fixed, first.leaks_fixed);
    let mut report = first;
    let mut findings = std::mem::take(&mut report.findings);
    if fixed != (0, 0) {
        if form == Form::Human && !quiet {
            out.put(&format!(
                "The following inconsistencies were found and repaired:\n\n    \
                 {} leaked clusters\n    {} corruptions\n\n\
                 Double checking the fixed image now...\n",
                fixed.1, fixed.0
            ));
            out.flush_to_terminal();
        }
        // What was repaired is looked at once more: a repair is proven by a check that ends clean.
        report = pass(image, Fix::None).await.map_err(|e| failed(cx, &e))?;
        (report.corruptions_fixed, report.leaks_fixed) = fixed;
        findings.append(&mut report.findings);
    }
    let data = match data {
        true => Some(data::read_all(&image.node()).await.map_err(|e| failed(cx, &e))?),
        false => None,
    };
    for finding in data.iter().flat_map(|data| &data.findings) {
        complain(finding);
        findings.push(finding.clone());
    }
    let findings = if wanted.explain { explain::latest(findings) } else { Vec::new() };
    let subject = (image.node().driver(), image.node().filename());
    Ok(show(cx, wanted, &subject, &report, data.as_ref(), &findings, out))
}

/// Prints what was found; the status that says so.
fn show(
    cx: &Context,
    wanted: &Wanted,
    (driver, filename): &(&str, String),
    report: &CheckReport,
    data: Option<&data::DataReport>,
    findings: &[Finding],
    out: &mut Out,
) -> u8 {
    match wanted.form {
        _ if wanted.quiet => {}
        Form::Human => {
            out.put(&human_text(report));
            if let Some(data) = data {
                out.line(&format!("Data: {} bytes read, {} errors", data.bytes, data.errors));
            }
            if wanted.explain {
                out.put(&explain::text(findings));
            }
        }
        Form::Json => {
            let mut value = json_value(report, filename, driver);
            if let Some(data) = data {
                value["data-bytes"] = data.bytes.into();
                value["data-errors"] = data.errors.into();
            }
            if wanted.explain {
                value["findings"] = explain::json(findings);
            }
            out.put(&json::text(&value));
        }
    }
    if report.check_errors > 0 {
        out.flush_to_terminal();
        cx.report("Check failed");
        return 1;
    }
    match report {
        r if r.corruptions > 0 || data.is_some_and(|data| data.errors > 0) => STATUS_CORRUPT,
        r if r.leaks > 0 => STATUS_LEAKS,
        _ => 0,
    }
}

/// Checks an image that is in use.
async fn check_live(cx: &Context, how: &How<'_>, wanted: &Wanted) -> Result<u8> {
    let live::Lasting { report, driver, filename } = live::lasting(cx, how).await?;
    for finding in &report.findings {
        complain(finding);
    }
    let mut out = Out::new();
    let status = show(cx, wanted, &(driver, filename), &report, None, &report.findings, &mut out);
    out.flush();
    Ok(status)
}

/// What ends a check before its end: the reason, where it is known, and the class.
fn failed(cx: &Context, error: &cowbell_block::Error) -> anyhow::Error {
    if let Some(reason) = error.cause() {
        cx.report(format_args!("ERROR {reason}"));
    }
    anyhow!("Check failed: {}", errno_text(error.errno()))
}

async fn has_check(image: &Image) -> bool {
    !matches!(image.node().check(Fix::None).await, Err(e) if e.kind() == ErrorKind::Unsupported)
}

/// Findings that are told by one call.
const LINES_AT_ONCE: usize = 500;

/// One check; its findings go to standard error as they are.
async fn pass(image: &Image, fix: Fix) -> cowbell_block::Result<CheckReport> {
    let report = image.node().check(fix).await?;
    // Many at once: an image without refcounts has a line for each cluster.
    for findings in report.findings.chunks(LINES_AT_ONCE) {
        let mut lines = String::new();
        for finding in findings {
            lines.push_str(finding);
            lines.push('\n');
        }
        mutter(lines);
    }
    if report.findings_omitted > 0 {
        complain(format_args!("... and {} more", report.findings_omitted));
    }
    Ok(report)
}

fn human_text(report: &CheckReport) -> String {
    let mut out = String::new();
    if report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0 {
        out.push_str("No errors were found on the image.\n");
    }
    if report.corruptions > 0 {
        let _ = write!(
            out,
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        let _ = write!(
            out,
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.\n",
            report.leaks
        );
    }
    if report.check_errors > 0 {
        let _ = write!(out, "\n{} internal errors have occurred during the check.\n", report.check_errors);
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let (all, allocated) = (report.total_clusters, report.allocated_clusters);
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        let _ = writeln!(
            out,
            "{allocated}/{all} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, all),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated),
        );
    }
    if report.image_end_offset > 0 {
        let _ = writeln!(out, "Image end offset: {}", report.image_end_offset);
    }
    out
}

fn json_value(report: &CheckReport, filename: &str, format: &str) -> Value {
    let mut map = Map::new();
    map.insert("filename".into(), filename.into());
    map.insert("format".into(), format.into());
    map.insert("check-errors".into(), report.check_errors.into());
    let counters = [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    for (key, value) in counters.into_iter().filter(|(_, value)| *value > 0) {
        map.insert(key.into(), value.into());
    }
    Value::Object(map)
}
