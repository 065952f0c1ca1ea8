//! `img snapshot --tree`: who came from whom, and what each holds alone and together with others.

use anyhow::{Result, anyhow};
use cowbell_block::node::{Node, SnapshotInfo};
use cowbell_qcow2::{Evidence, Holder, Qcow2, Sharing};
use serde_json::{Value, json};

use super::super::{Form, facts};
use crate::context::Context;
use crate::json;
use crate::out::Out;
use crate::size::human;

/// Narrowest column of names, and the widest that others are aligned to, in characters.
const NAME_COLUMNS: (usize, usize) = (24, 64);

/// Prints the tree of an image's snapshots.
pub(super) async fn show(cx: &Context, node: &dyn Node, form: Form) -> Result<()> {
    let Some(image) = node.as_any().downcast_ref::<Qcow2>() else {
        return Err(anyhow!("images of format '{}' have no internal snapshots", node.driver()));
    };
    let snapshots = image.info().await?.snapshots;
    let sharing = image.sharing().await?;
    if sharing.snapshots.len() != snapshots.len() {
        return Err(anyhow!("the snapshots of the image changed while they were looked at"));
    }
    let mut out = Out::new();
    match form {
        Form::Json => out.put(&json::text(&json_value(&snapshots, &sharing))),
        Form::Human => human_lines(&snapshots, &sharing).iter().for_each(|line| out.line(line)),
    }
    out.flush();
    if sharing.broken > 0 {
        cx.report(format_args!(
            "warning: the image is damaged: {} references lead nowhere, see 'img check'; sizes are of what could be \
             followed",
            sharing.broken
        ));
    }
    if sharing.unattributed > 0 {
        cx.report(format_args!(
            "warning: {} are shared in too many different ways to say by whom; 'shared' may be more by up to that",
            human(sharing.unattributed)
        ));
    }
    Ok(())
}

fn word(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Clusters => "clusters",
        Evidence::ClustersAndOrder => "clusters-and-order",
        Evidence::Order => "order",
    }
}

fn json_value(snapshots: &[SnapshotInfo], sharing: &Sharing) -> Value {
    let add = |mut value: Value, holder: &Holder| {
        value["exclusive"] = holder.exclusive.into();
        value["shared"] = holder.shared.into();
        if let Some(parent) = holder.parent {
            value["parent"] = snapshots[parent.snapshot as usize].id.clone().into();
            value["parent-evidence"] = word(parent.evidence).into();
        }
        value
    };
    let list = snapshots.iter().zip(&sharing.snapshots).map(|(snapshot, holder)| {
        let mut value = facts::snapshot_value(snapshot);
        value["disk-size"] = snapshot.disk_size.into();
        add(value, holder)
    });
    let mut value = json!({ "snapshots": list.collect::<Vec<_>>(), "disk": add(json!({}), &sharing.disk) });
    if sharing.unattributed > 0 {
        value["unattributed"] = sharing.unattributed.into();
    }
    if sharing.broken > 0 {
        value["broken-references"] = sharing.broken.into();
    }
    value
}

fn human_lines(snapshots: &[SnapshotInfo], sharing: &Sharing) -> Vec<String> {
    let holder = |number: usize| sharing.snapshots.get(number).unwrap_or(&sharing.disk);
    let rows: Vec<(usize, String)> = drawing(sharing)
        .into_iter()
        .map(|row| {
            let guessed = holder(row.holder).parent.is_some_and(|p| p.evidence != Evidence::Clusters);
            let name = match snapshots.get(row.holder) {
                Some(snapshot) => format!("{} {}", printable(&snapshot.id), printable(&snapshot.name)),
                None => "the disk as it is".to_owned(),
            };
            (row.holder, format!("{}{} {name}", row.lines, if guessed { '?' } else { '*' }))
        })
        .collect();
    let widest = rows.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
    let width = widest.clamp(NAME_COLUMNS.0, NAME_COLUMNS.1);
    let mut lines =
        vec![format!("{:<width$} {:>10} {:>10} {:>19}", "SNAPSHOT", "EXCLUSIVE", "SHARED", "DATE")];
    lines.extend(rows.iter().map(|(number, text)| {
        let of = holder(*number);
        let date = snapshots.get(*number).map(|s| facts::local_time(s.date_sec)).unwrap_or_default();
        let line = format!("{text:<width$} {:>10} {:>10} {date:>19}", human(of.exclusive), human(of.shared));
        line.trim_end().to_owned()
    }));
    lines.push(String::new());
    lines.push(
        "EXCLUSIVE would be free without this one alone. The format stores no parents: they are derived"
            .into(),
    );
    lines.push("from what is shared, and where that fits several (?) the one made last is taken.".into());
    lines
}

/// What people see of a name that anybody may have written.
fn printable(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A line of the tree: what is drawn before the holder, by its number (the disk's is the last).
#[derive(Debug, PartialEq, Eq)]
struct Row {
    lines: String,
    holder: usize,
}

/// The tree, oldest first. The branch that leads to the disk stays in its column; others are indented.
fn drawing(sharing: &Sharing) -> Vec<Row> {
    let disk = sharing.snapshots.len();
    let parent = |number: usize| {
        let holder = sharing.snapshots.get(number).unwrap_or(&sharing.disk);
        holder.parent.map(|parent| parent.snapshot as usize)
    };
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); disk + 1];
    let mut stack: Vec<(usize, usize, bool)> = Vec::new();
    for number in (0..=disk).rev() {
        match parent(number) {
            Some(of) => children[of].push(number),
            None => stack.push((number, 0, false)),
        }
    }
    let mut leads = vec![false; disk + 1];
    let mut at = Some(disk);
    while let Some(number) = at {
        leads[number] = true;
        at = parent(number);
    }
    let mut rows = Vec::with_capacity(disk + 1);
    while let Some((holder, depth, branches)) = stack.pop() {
        let lines = "| ".repeat(depth - usize::from(branches)) + if branches { "|-" } else { "" };
        rows.push(Row { lines, holder });
        // Latest first, since the stack turns them around.
        let below = &children[holder];
        let main = below.iter().copied().find(|child| leads[*child]).or(below.first().copied());
        stack.extend(main.map(|main| (main, depth, false)));
        stack.extend(
            below.iter().filter(|child| Some(**child) != main).map(|child| (*child, depth + 1, true)),
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowbell_qcow2::Parent;

    fn drawn(parents: &[Option<u32>]) -> Vec<String> {
        let parent = |p: &Option<u32>| p.map(|snapshot| Parent { snapshot, evidence: Evidence::Clusters });
        let mut holders: Vec<Holder> =
            parents.iter().map(|p| Holder { parent: parent(p), ..Holder::default() }).collect();
        let disk = holders.pop().expect("a disk");
        let sharing = Sharing { disk, snapshots: holders, unattributed: 0, broken: 0 };
        drawing(&sharing).iter().map(|row| format!("{}{}", row.lines, row.holder)).collect()
    }

    #[test]
    fn lines_stay_in_their_column_and_branches_are_indented() {
        assert_eq!(drawn(&[None]), ["0"]);
        assert_eq!(drawn(&[None, Some(0), Some(1)]), ["0", "1", "2"]);
        // 1 and 4 go on from 0, 2 and 3 from 1; the disk (5) from 3.
        let parents = [None, Some(0), Some(1), Some(1), Some(0), Some(3)];
        assert_eq!(drawn(&parents), ["0", "|-4", "1", "|-2", "3", "5"]);
        // A branch with a line and a branch of its own.
        let parents = [None, Some(0), Some(1), Some(2), Some(1), Some(0)];
        assert_eq!(drawn(&parents), ["0", "|-1", "| |-2", "| | 3", "| 4", "5"]);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
