//! Names for nodes that no plain string names.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

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

/// JSON on one line with a blank after each colon and comma, as file names show it.
pub fn write_json(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, OneLine);
    value.serialize(&mut serializer).expect("a value always serializes into memory");
    String::from_utf8(out).expect("JSON is UTF-8")
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
        let value = json!({"driver": "raw", "list": [1, true, null], "file": {"filename": "a\"b"}});
        assert_eq!(
            write_json(&value),
            r#"{"driver": "raw", "list": [1, true, null], "file": {"filename": "a\"b"}}"#
        );
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
