//! Whether both sides find the image in order and read the same from it.

use serde_json::Value;

use crate::config::IMAGE;
use crate::lab::{Lab, Ran, Side};
use crate::model::Model;

/// Compares everything both tools tell about the image, and names every way in which they differ.
pub fn judge(lab: &mut Lab<'_>, model: &mut Model) -> Result<(), String> {
    let found = [same_check(lab), same_content(lab, model), same_map(lab), same_json(lab, "info")];
    let differences: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n    ")) }
}

/// Both find the image clean, and count the same.
fn same_check(lab: &mut Lab<'_>) -> Result<(), String> {
    let args = ["check", "-f", "qcow2", "--output=json", IMAGE];
    let theirs = lab.img(Side::Theirs, &args)?.ok("their check")?;
    let ours = lab.img(Side::Ours, &args)?.ok("our check")?;
    compare("check", &theirs, &ours)
}

/// Theirs reads the model, and ours reads what theirs reads.
fn same_content(lab: &mut Lab<'_>, model: &mut Model) -> Result<(), String> {
    let args = ["convert", "-f", "qcow2", "-O", "raw", IMAGE, "read.raw"];
    lab.img(Side::Theirs, &args)?.ok("their convert")?;
    model.settle(&lab.read("read.raw")?).map_err(|e| format!("theirs: {e}"))?;
    let args = ["compare", "-f", "raw", "-F", "qcow2", "read.raw", IMAGE];
    lab.img(Side::Ours, &args)?.ok("our compare with what theirs read")?;
    let args = ["convert", "-f", "qcow2", "-O", "raw", IMAGE, "ours.raw"];
    lab.img(Side::Ours, &args)?.ok("our convert")?;
    model.settle(&lab.read("ours.raw")?).map_err(|e| format!("ours: {e}"))
}

/// An internal snapshot reads as the disk did when it was made, on either side.
pub fn snapshot(lab: &mut Lab<'_>, name: &str, model: &mut Model) -> Result<(), String> {
    for side in [Side::Theirs, Side::Ours] {
        let args = ["convert", "-f", "qcow2", "-l", name, "-O", "raw", IMAGE, "snapshot.raw"];
        lab.img(side, &args)?.ok("a convert of a snapshot")?;
        // A snapshot has the size of its time; the reference reads as much as the disk has now.
        let mut read = lab.read("snapshot.raw")?;
        read.truncate(model.size() as usize);
        if side == Side::Theirs {
            read.extend_from_slice(model.rest_from(read.len()));
        }
        model.settle(&read).map_err(|e| format!("snapshot {name} by {}: {e}", side.name()))?;
    }
    Ok(())
}

/// Both map the same, but for holes of the file inside data clusters.
fn same_map(lab: &mut Lab<'_>) -> Result<(), String> {
    let args = ["map", "-f", "qcow2", "--output=json", IMAGE];
    let theirs = parse("their map", &lab.img(Side::Theirs, &args)?.ok("their map")?)?;
    let ours = parse("our map", &lab.img(Side::Ours, &args)?.ok("our map")?)?;
    match difference(&without_holes(&theirs), &without_holes(&ours), "map") {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

/// The extents, without what the reference finds out from holes of the file below when it takes the image for
/// a preallocated one: an estimate from the file's disk usage, which depends on the file system.
pub fn without_holes(extents: &Value) -> Value {
    let mut merged: Vec<Value> = Vec::new();
    for extent in extents.as_array().into_iter().flatten() {
        let mut extent = extent.clone();
        if extent["data"] == true {
            extent["zero"] = false.into();
        }
        let end = |e: &Value, from: &str| e[from].as_u64().zip(e["length"].as_u64()).map(|(a, b)| a + b);
        if let Some(last) = merged.last_mut()
            && ["depth", "present", "zero", "data", "compressed"].iter().all(|key| last[*key] == extent[*key])
            && last["data"] == true
            && end(last, "offset") == extent["offset"].as_u64()
        {
            last["length"] =
                (last["length"].as_u64().unwrap_or(0) + extent["length"].as_u64().unwrap_or(0)).into();
        } else {
            merged.push(extent);
        }
    }
    merged.into()
}

/// Both print the same JSON.
fn same_json(lab: &mut Lab<'_>, command: &str) -> Result<(), String> {
    let args = [command, "-f", "qcow2", "--output=json", IMAGE];
    let theirs = lab.img(Side::Theirs, &args)?.ok(&format!("their {command}"))?;
    let ours = lab.img(Side::Ours, &args)?.ok(&format!("our {command}"))?;
    compare(command, &theirs, &ours)
}

fn compare(what: &str, theirs: &Ran, ours: &Ran) -> Result<(), String> {
    match difference(&parse(what, theirs)?, &parse(what, ours)?, what) {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

fn parse(what: &str, ran: &Ran) -> Result<Value, String> {
    serde_json::from_str(&ran.out).map_err(|e| format!("{what}: {e}"))
}

/// The first difference of two JSON values; the order of keys is none.
pub fn difference(theirs: &Value, ours: &Value, at: &str) -> Option<String> {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            keys.filter_map(|key| match (a.get(key), b.get(key)) {
                (Some(x), Some(y)) => difference(x, y, &format!("{at}.{key}")),
                (Some(x), None) => Some(format!("{at}.{key}: theirs {x}, ours none")),
                (None, Some(y)) => Some(format!("{at}.{key}: theirs none, ours {y}")),
                (None, None) => None,
            })
            .next()
        }
        (Value::Array(a), Value::Array(b)) => {
            let pairs = a.iter().zip(b).enumerate();
            let mut found =
                pairs.filter_map(|(i, (x, y))| difference(x, y, &format!("{at}[{i}]")).map(|d| (i, d)));
            match found.next() {
                Some((i, found)) => Some(format!("{found} (theirs {}, ours {})", a[i], b[i])),
                None if a.len() != b.len() => {
                    Some(format!("{at}: theirs has {} entries, ours {}", a.len(), b.len()))
                }
                None => None,
            }
        }
        _ if theirs == ours => None,
        _ => Some(format!("{at}: theirs {theirs}, ours {ours}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found_by_name() {
        assert_eq!(difference(&json!({"a": 1, "b": 2}), &json!({"b": 2, "a": 1}), "x"), None);
        assert_eq!(difference(&json!({"a": 1}), &json!({}), "x").unwrap(), "x.a: theirs 1, ours none");
        let found = difference(&json!([{"a": 1}]), &json!([{"a": 2}]), "x").unwrap();
        assert!(found.starts_with("x[0].a: theirs 1, ours 2"), "{found}");
        assert!(difference(&json!([1]), &json!([1, 2]), "x").is_some());
    }
}
