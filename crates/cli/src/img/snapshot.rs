//! `img snapshot`, and internal snapshots as the other commands name them.

mod tree;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use cowbell_block::naming::split_option_list;
use cowbell_block::node::{Access, Node, SnapshotInfo};
use cowbell_block::options::DiscardMode;
use cowbell_block::{ErrorKind, NewSnapshot, Root, SnapshotChange, SnapshotName};
use cowbell_host::block_on;
use serde_json::Value;

use super::{Form, facts, form, format_or_options, one_image};
use crate::context::{Context, Reported, usage};
use crate::face::Face;
use crate::flags::{Args, img as flags};
use crate::json;
use crate::open::{How, Image, open, warn_probed_raw};
use crate::out::Out;

/// Most bytes of a name that the reference stores.
const NAME_BYTES_REFERENCE: usize = 255;

/// What is to be done.
enum Action<'a> {
    List,
    Tree,
    Create(&'a str),
    Apply(&'a str),
    Delete(&'a str),
}

pub(super) fn run(cx: &Context, args: &Args) -> Result<u8> {
    let form = form(args, &flags::OUTPUT_MORE)?;
    let action = action(args)?;
    let name = one_image(args)?;
    let (format, image_opts) = format_or_options(args, &flags::FORMAT)?;
    let lists = matches!(action, Action::List);
    let looks = lists || matches!(action, Action::Tree);
    let how = How {
        image_opts,
        access: if looks { Access::ReadOnly } else { Access::ReadWrite },
        discard: DiscardMode::Unmap,
        force_share: args.has(&flags::FORCE_SHARE),
        ..How::reading(name, format)
    };
    block_on(async {
        let image = open(cx, &how).await?;
        if image.probed_raw && !looks {
            warn_probed_raw(name);
            if matches!(action, Action::Apply(_)) {
                // The reference opens the image anew for that, and says it again.
                warn_probed_raw(name);
            }
        }
        let done = act(cx, &image.node(), &action, form).await;
        let listed = match (&done, form) {
            (Ok(()), _) if lists || form == Form::Json && !looks => Some(image.node().info().await),
            _ => None,
        };
        let closed = image.close().await;
        done?;
        closed?;
        if let Some(info) = listed {
            show(form, &info?.snapshots);
        }
        Ok(0)
    })
}

fn action(args: &Args) -> Result<Action<'_>> {
    let given = [
        args.has(&flags::SNAPSHOT_LIST).then_some(Action::List),
        args.has(&flags::SNAPSHOT_TREE).then_some(Action::Tree),
        args.value(&flags::SNAPSHOT_CREATE).map(Action::Create),
        args.value(&flags::SNAPSHOT_APPLY).map(Action::Apply),
        args.value(&flags::SNAPSHOT_DELETE).map(Action::Delete),
    ];
    let actions = [
        &flags::SNAPSHOT_LIST,
        &flags::SNAPSHOT_TREE,
        &flags::SNAPSHOT_CREATE,
        &flags::SNAPSHOT_APPLY,
        &flags::SNAPSHOT_DELETE,
    ];
    let times = args.iter().filter(|(flag, _)| actions.iter().any(|action| std::ptr::eq(*flag, *action)));
    if times.count() > 1 {
        let ours = if args.has(&flags::SNAPSHOT_TREE) { ", '--tree'" } else { "" };
        return Err(usage(format!("Cannot mix '-l', '-a', '-c', '-d'{ours}")));
    }
    Ok(given.into_iter().flatten().next().unwrap_or(Action::List))
}

async fn act(cx: &Context, node: &Arc<dyn Node>, action: &Action<'_>, form: Form) -> Result<()> {
    match action {
        Action::List => Ok(()),
        Action::Tree => tree::show(cx, &**node, form).await,
        Action::Create(name) => {
            let new = new_snapshot(cx, name);
            let made = node.change_snapshots(SnapshotChange::Create(new)).await;
            made.map_err(|e| anyhow!("Could not create snapshot '{name}': {}", reason(cx, &e)))
        }
        Action::Apply(name) => {
            let which = SnapshotName::IdOrName((*name).to_owned());
            let applied = node.change_snapshots(SnapshotChange::Apply(which)).await;
            applied.map_err(|e| match e.kind() {
                ErrorKind::Unsupported if !offers_snapshots(node) => {
                    anyhow!("Could not apply snapshot '{name}': Block driver does not support snapshots")
                }
                ErrorKind::Busy => anyhow!("Could not apply snapshot '{name}': {e}"),
                _ => {
                    // The reference tells of a broken table by itself; the name `cowbell` gives it as the reason.
                    if cx.face != Face::Cowbell && cowbell_qcow2::blames_snapshot_table(&e) {
                        cx.report(&e);
                    }
                    anyhow!("Could not apply snapshot '{name}': Failed to load snapshot: {}", reason(cx, &e))
                }
            })
        }
        Action::Delete(name) => {
            // The reference looks by name only, and then deletes that one.
            let snapshots = node.info().await.map(|info| info.snapshots).unwrap_or_default();
            let Some(found) = snapshots.into_iter().find(|snapshot| snapshot.name == *name) else {
                bail!("Could not delete snapshot '{name}': snapshot not found");
            };
            let which = SnapshotName::Both { id: found.id, name: found.name };
            let deleted = node.change_snapshots(SnapshotChange::Delete(which)).await;
            deleted.map_err(|e| anyhow!("Could not delete snapshot '{name}': {e}"))
        }
    }
}

/// The reference knows only the number of an error.
fn reason(cx: &Context, error: &cowbell_block::Error) -> String {
    match cx.face {
        Face::Cowbell => error.to_string(),
        _ => cowbell_block::error::errno_text(error.errno()),
    }
}

fn offers_snapshots(node: &Arc<dyn Node>) -> bool {
    node.driver() == cowbell_qcow2::DRIVER
}

/// A snapshot of now. No machine runs: the reference stores an instruction count of 0, which is no count at all.
fn new_snapshot(cx: &Context, name: &str) -> NewSnapshot {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (name, icount) = match cx.face {
        Face::Cowbell => (name, None),
        _ => (&name[..name.floor_char_boundary(NAME_BYTES_REFERENCE)], Some(0)),
    };
    NewSnapshot {
        name: name.to_owned(),
        date_sec: now.as_secs() as u32,
        date_nsec: now.subsec_nanos(),
        icount,
        ..NewSnapshot::default()
    }
}

fn show(form: Form, snapshots: &[SnapshotInfo]) {
    let mut out = Out::new();
    match form {
        Form::Json => {
            let list = snapshots.iter().map(facts::snapshot_value).collect();
            out.put(&json::text(&Value::Array(list)));
        }
        Form::Human if snapshots.is_empty() => {}
        Form::Human => {
            out.put("Snapshot list:\n");
            facts::snapshots(snapshots).into_iter().for_each(|line| out.put(&format!("{line}\n")));
        }
    }
}

/// A snapshot as `-l` of convert names it.
///
/// # Errors
/// A list of options with something else in it; told already.
pub(super) fn parse_name(cx: &Context, text: &str) -> Result<SnapshotName> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotName::IdOrName(text.to_owned()));
    }
    let (mut id, mut name) = (None, None);
    for (key, value) in split_option_list(text) {
        match key {
            "snapshot.id" => id = Some(value),
            "snapshot.name" => name = Some(value),
            other => {
                cx.report(format_args!("Invalid parameter '{other}'"));
                cx.report(format_args!("Failed in parsing snapshot param '{text}'"));
                return Err(Reported.into());
            }
        }
    }
    Ok(match (id, name) {
        (Some(id), Some(name)) => SnapshotName::Both { id, name },
        (Some(id), None) => SnapshotName::Id(id),
        (None, name) => SnapshotName::Name(name.unwrap_or_default()),
    })
}

/// Makes `image` show one of its snapshots; returns the disk, to be closed after it.
///
/// # Errors
/// There is no such snapshot, or there can be none.
pub(super) async fn enter(image: &mut Image, which: SnapshotName) -> Result<Arc<dyn Node>> {
    let disk = image.node();
    if !offers_snapshots(&disk) {
        bail!(
            "Failed to load snapshot: Block format '{}' used by device '' does not support temporarily loading \
             internal snapshots",
            disk.driver()
        );
    }
    let view = disk.at_snapshot(which).await.map_err(|e| anyhow!("Failed to load snapshot: {e}"))?;
    image.root = Root::new(view);
    Ok(disk)
}
