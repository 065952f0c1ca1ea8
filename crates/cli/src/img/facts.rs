//! The facts that `info` shows, for people and for programs.

use std::fmt::Write;

use cowbell_block::names;
use cowbell_block::node::{ImageInfo, SnapshotInfo};
use serde_json::{Map, Value, json};

use crate::size::human;

/// One node's facts and its children's.
pub(crate) struct Facts {
    pub(crate) filename: String,
    pub(crate) info: ImageInfo,
    pub(crate) children: Vec<(String, Facts)>,
    pub(crate) is_protocol: bool,
}

/// Drivers that stand in for storage, and do not say what is stored below them.
const SIZELESS: [&str; 2] = ["blkdebug", "blkverify"];

impl Facts {
    /// Bytes that the host gives: the node's own, or all its children's.
    fn actual_size(&self) -> Option<u64> {
        if let Some(own) = self.info.actual_size {
            return Some(own);
        }
        if SIZELESS.contains(&self.info.format) {
            return None;
        }
        let sizes: Option<Vec<u64>> = self.children.iter().map(|(_, child)| child.actual_size()).collect();
        sizes.filter(|sizes| !sizes.is_empty()).map(|sizes| sizes.iter().sum())
    }
}

/// The text for people, several lines.
pub(crate) fn human_text(facts: &Facts) -> String {
    let mut out = String::new();
    node(&mut out, facts, "", "");
    out
}

/// `indent` counts for a child; `path` is its place below the image.
fn node(out: &mut String, facts: &Facts, path: &str, indent: &str) {
    let info = &facts.info;
    let mut line = |text: String| {
        let _ = writeln!(out, "{indent}{text}");
    };
    let disk_size = match facts.actual_size() {
        Some(bytes) => format!("disk size: {}", human(bytes)),
        None => "disk size: unavailable".to_owned(),
    };
    if facts.is_protocol && !path.is_empty() {
        line(format!("filename: {}", facts.filename));
        line(format!("protocol type: {}", info.format));
        line(format!("file length: {} ({} bytes)", human(info.virtual_size), info.virtual_size));
        line(disk_size);
    } else {
        line(format!("image: {}", facts.filename));
        line(format!("file format: {}", info.format));
        line(format!("virtual size: {} ({} bytes)", human(info.virtual_size), info.virtual_size));
        line(disk_size);
        if info.encrypted {
            line("encrypted: yes".to_owned());
        }
        if let Some(bytes) = info.cluster_size {
            line(format!("cluster_size: {bytes}"));
        }
        if info.dirty == Some(true) {
            line("cleanly shut down: no".to_owned());
        }
        if let Some(name) = &info.backing_filename {
            line(backing_line(name, info.full_backing_filename.as_deref()));
            if let Some(format) = &info.backing_format {
                line(format!("backing file format: {format}"));
            }
        }
        if !info.snapshots.is_empty() {
            line("Snapshot list:".to_owned());
            snapshots(&info.snapshots).into_iter().for_each(&mut line);
        }
    }
    if let Some((_, data)) = &info.format_specific
        && !data.is_empty()
    {
        let _ = writeln!(out, "{indent}Format specific information:");
        object(out, data, &format!("{indent}    "));
    }
    for (role, child) in &facts.children {
        let path = format!("{path}/{role}");
        let _ = writeln!(out, "{indent}Child node '{path}':");
        node(out, child, &path, &format!("{indent}    "));
    }
}

fn backing_line(name: &str, full: Option<&str>) -> String {
    match full {
        None => format!("backing file: {name} (cannot determine actual path)"),
        Some(full) if full != name => format!("backing file: {name} (actual path: {full})"),
        Some(_) => format!("backing file: {name}"),
    }
}

/// The format's block, `key: value` with dashes as spaces. Also printed by `io info`.
pub(crate) fn object(out: &mut String, map: &Map<String, Value>, indent: &str) {
    for (key, value) in map {
        let key = key.replace('-', " ");
        entry(out, &key, value, indent);
    }
}

fn entry(out: &mut String, key: &str, value: &Value, indent: &str) {
    let inner = format!("{indent}    ");
    match value {
        Value::Object(map) => {
            let _ = writeln!(out, "{indent}{key}:");
            object(out, map, &inner);
        }
        Value::Array(items) => {
            let _ = writeln!(out, "{indent}{key}:");
            for (index, item) in items.iter().enumerate() {
                entry(out, &format!("[{index}]"), item, &inner);
            }
        }
        Value::String(text) => {
            let _ = writeln!(out, "{indent}{key}: {text}");
        }
        other => {
            let _ = writeln!(out, "{indent}{key}: {other}");
        }
    }
}

/// The table of internal snapshots, header first.
pub(crate) fn snapshots(list: &[SnapshotInfo]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}",
        "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"
    )];
    lines.extend(list.iter().map(|snapshot| {
        let icount = snapshot.icount.map_or_else(|| "--".to_owned(), |icount| icount.to_string());
        format!(
            "{} {} {:>8} {:>19} {:>15} {icount:>10}",
            padded(&snapshot.id, 7),
            padded(&snapshot.name, 16),
            human(snapshot.vm_state_size),
            local_time(snapshot.date_sec),
            vm_clock(snapshot.vm_clock_nsec),
        )
    }));
    lines
}

/// `text` with blanks behind it up to `bytes` bytes: C counts bytes, whatever they look like.
fn padded(text: &str, bytes: usize) -> String {
    let missing = bytes.saturating_sub(names::to_bytes(text).len());
    format!("{text}{:missing$}", "")
}

fn vm_clock(nsec: u64) -> String {
    let msec = nsec / 1_000_000;
    let (sec, msec) = (msec / 1000, msec % 1000);
    format!("{:04}:{:02}:{:02}.{msec:03}", sec / 3600, sec / 60 % 60, sec % 60)
}

/// `YYYY-MM-DD HH:MM:SS` in the local time zone.
pub(crate) fn local_time(unix_sec: u32) -> String {
    let offset = crate::zone::offset_seconds(i64::from(unix_sec));
    let (days, second) = {
        let local = i64::from(unix_sec) + offset;
        (local.div_euclid(86_400), local.rem_euclid(86_400))
    };
    let (year, month, day) = crate::zone::civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// The value for programs.
pub(crate) fn json_value(facts: &Facts) -> Value {
    let info = &facts.info;
    let mut map = Map::new();
    let children = facts
        .children
        .iter()
        .map(|(role, child)| json!({ "name": role, "info": json_value(child) }))
        .collect();
    map.insert("children".to_owned(), Value::Array(children));
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    put("virtual-size", Some(info.virtual_size.into()));
    put("filename", Some(facts.filename.clone().into()));
    put("format", Some(info.format.into()));
    put("actual-size", facts.actual_size().map(Value::from));
    put("cluster-size", info.cluster_size.map(Value::from));
    put("encrypted", info.encrypted.then(|| true.into()));
    put("compressed", info.compressed.then(|| true.into()));
    put("backing-filename", info.backing_filename.clone().map(Value::from));
    put("full-backing-filename", info.full_backing_filename.clone().map(Value::from));
    put("backing-filename-format", info.backing_format.clone().map(Value::from));
    put("dirty-flag", (!info.is_bare).then(|| info.dirty.unwrap_or(false).into()));
    let snapshots: Vec<Value> = info.snapshots.iter().map(snapshot_value).collect();
    put("snapshots", (!snapshots.is_empty()).then_some(Value::Array(snapshots)));
    if let Some((kind, data)) = &info.format_specific {
        put("format-specific", Some(json!({ "type": kind, "data": data })));
    }
    Value::Object(map)
}

/// An internal snapshot for programs.
pub(crate) fn snapshot_value(snapshot: &SnapshotInfo) -> Value {
    let clock = snapshot.vm_clock_nsec;
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": clock / 1_000_000_000,
        "vm-clock-nsec": clock % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        value["icount"] = icount.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_in_bytes() {
        for (text, expect) in [("ab", "ab  "), ("ä", "ä  "), ("日本", "日本"), ("日本語", "日本語")]
        {
            assert_eq!(padded(text, 4), expect);
        }
    }

    #[test]
    fn the_snapshot_table_has_the_references_columns() {
        let snapshot = SnapshotInfo {
            id: "1".into(),
            name: "s1".into(),
            icount: Some(0),
            vm_clock_nsec: 3_723_004_000_000,
            ..SnapshotInfo::default()
        };
        let lines = snapshots(&[snapshot]);
        assert_eq!(
            lines[0],
            "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"
        );
        assert!(lines[1].starts_with("1       s1                    0 B "), "{}", lines[1]);
        assert!(lines[1].ends_with(" 0001:02:03.004          0"), "{}", lines[1]);
    }
}
