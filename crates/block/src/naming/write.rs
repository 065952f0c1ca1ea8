//! Names for nodes that no plain string names.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use crate::naming::tree::{nest, parse_json};
use crate::node::Node;
use crate::options::OptionTree;

/// `json:{...}` for a node with these options of its own and these children, in this order.
pub fn json_filename(driver: &str, own: OptionTree, children: &[(&str, &dyn Node)]) -> String {
    let mut tree = OptionTree::new();
    tree.insert("driver".to_owned(), Value::from(driver));
    tree.extend(own);
    for (role, child) in children {
        tree.insert((*role).to_owned(), options_of(*child));
    }
    format!("json:{}", write_json(&Value::Object(tree)))
}

/// The options that would open a node again, as far as its name tells.
pub fn options_of(node: &dyn Node) -> Value {
    let name = node.filename();
    if let Some(json) = name.strip_prefix("json:")
        && let Ok(tree) = serde_json::from_str(json)
    {
        return tree;
    }
    let mut tree = OptionTree::new();
    tree.insert("driver".to_owned(), Value::from(node.driver()));
    match node.primary() {
        // A format that is named by its file.
        Some(child) if child.filename() == name => tree.insert("file".to_owned(), options_of(&*child)),
        _ => tree.insert("filename".to_owned(), Value::from(name)),
    };
    Value::Object(tree)
}

/// JSON on one line with a blank after each colon and comma, as file names show it: in the reference's order, and with
/// what is no node of its own in dotted keys.
pub fn write_json(value: &Value) -> String {
    let shown = one_line(&as_shown(value));
    match value {
        // Not every tree is what is read of its dotted keys: an object with the keys 0 and 1 would become a list.
        Value::Object(tree) if parse_json(&shown) != nest(tree.clone()) => one_line(value),
        _ => shown,
    }
}

fn one_line(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, OneLine);
    value.serialize(&mut serializer).expect("a value always serializes into memory");
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// The value as the reference shows it.
fn as_shown(value: &Value) -> Value {
    match value {
        Value::Object(tree) => {
            let mut flat = Vec::new();
            tree.iter().for_each(|(key, value)| flatten(key, value, &mut flat));
            // Of one bucket, what came last is first.
            flat.reverse();
            flat.sort_by_key(|(key, _)| bucket(key));
            Value::Object(flat.into_iter().collect())
        }
        Value::Array(items) => items.iter().map(as_shown).collect(),
        scalar => scalar.clone(),
    }
}

/// Whether this is the options of a node, or a list of such.
fn is_node(value: &Value) -> bool {
    match value {
        Value::Object(tree) => tree.contains_key("driver"),
        Value::Array(items) => items.iter().all(is_node),
        _ => false,
    }
}

fn flatten(key: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    let below = |name: &str| format!("{key}.{name}");
    match value {
        _ if is_node(value) => into.push((key.to_owned(), as_shown(value))),
        Value::Object(tree) if !tree.is_empty() => {
            tree.iter().for_each(|(name, value)| flatten(&below(name), value, into))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| flatten(&below(&at.to_string()), item, into));
        }
        scalar => into.push((key.to_owned(), scalar.clone())),
    }
}

/// Where the reference keeps a key in its tables of 512 buckets, whose order is that of its output: the hash of Samba's
/// trivial database, modulo their number.
fn bucket(key: &str) -> u32 {
    const BUCKETS: u32 = 512;
    let start = 0x238f_13af_u32.wrapping_mul(key.len() as u32);
    let sum = key.bytes().zip(0_u32..).fold(start, |sum, (byte, at)| {
        // The shifts repeat after 24: no bit of a byte is lost.
        sum.wrapping_add(u32::from(byte) << (at.wrapping_mul(5) % 24))
    });
    1_103_515_243_u32.wrapping_mul(sum).wrapping_add(12345) % BUCKETS
}

struct OneLine;

impl OneLine {
    fn separate<W: ?Sized + io::Write>(out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
}

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        Self::separate(out, first)
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        Self::separate(out, first)
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_written_on_one_line() {
        let value = json!({"driver": "raw", "file": {"driver": "file", "filename": "a\"b"}});
        assert_eq!(
            write_json(&value),
            r#"{"driver": "raw", "file": {"driver": "file", "filename": "a\"b"}}"#
        );
    }

    /// As `qemu-img info` of the reference names these images.
    #[test]
    fn keys_are_in_the_references_order_and_flat() {
        for (value, expect) in [
            (
                json!({"driver": "raw", "offset": "1M", "size": 512, "file": {"driver": "file", "filename": "r"}}),
                r#"{"offset": "1M", "driver": "raw", "size": 512, "file": {"driver": "file", "filename": "r"}}"#,
            ),
            (
                json!({
                    "driver": "blkdebug", "align": "4k", "inject-error": [{"event": "read_aio"}],
                    "image": {"driver": "file", "filename": "r"}
                }),
                r#"{"image": {"driver": "file", "filename": "r"}, "driver": "blkdebug", "inject-error.0.event": "read_aio", "align": "4k"}"#,
            ),
            (
                json!({"driver": "quorum", "vote-threshold": 1, "children": [{"driver": "null-co"}]}),
                r#"{"children": [{"driver": "null-co"}], "driver": "quorum", "vote-threshold": 1}"#,
            ),
        ] {
            assert_eq!(write_json(&value), expect);
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_tree() {
        for text in [
            r#"{"a": -1, "b": 1.5, "c": null, "d": true, "e": [], "f": {}}"#,
            r#"{"a": {"0": 1, "1": {}}, "b": [[], {}, [{"c": 1}]]}"#,
            r#"{"a": [{"b.c": 1}], "d": [{"driver": "raw"}, 2]}"#,
        ] {
            let tree = parse_json(text).unwrap();
            assert_eq!(parse_json(&write_json(&Value::Object(tree.clone()))), Ok(tree), "{text}");
        }
    }

    /// A name written for a child is read again by whoever opens it: a number must not drift on the way.
    #[test]
    fn numbers_are_read_as_they_were_written() {
        let many_digits = format!("{{\"n\": {}1}}", "4".repeat(85));
        for text in [many_digits.as_str(), "{\"n\": 0.1e-7}", "{\"n\": 123456789012345678901234567890.5}"] {
            let tree = crate::naming::parse_json(text).unwrap();
            let written = write_json(&Value::Object(tree.clone()));
            assert_eq!(crate::naming::parse_json(&written), Ok(tree), "{written}");
        }
    }
}
