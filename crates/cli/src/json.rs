//! JSON in the reference's form: four spaces, one key per line, empty lists and objects on two lines, and keys
//! in the reference's order.
//!
//! The reference orders keys by a hash. Programs must not rely on it, but people compare outputs, so the
//! order is kept as observed: it is one order over all names, whatever object they are in. Names that the
//! reference does not have come last, in the order they were added.

use cowbell_block::names;
use serde_json::{Map, Value};

/// The names in the order that the reference prints them.
const ORDER: &[&str] = &[
    "image-end-offset",
    "compressed-clusters",
    "total-clusters",
    "icount",
    "flags",
    "vm-clock-nsec",
    "corruptions",
    "children",
    "backing-filename-format",
    "corruptions-fixed",
    "check-errors",
    "leaks",
    "leaks-fixed",
    "allocated-clusters",
    "name",
    "date-sec",
    "date-nsec",
    "vm-clock-sec",
    "id",
    "vm-state-size",
    "granularity",
    "info",
    "snapshots",
    "virtual-size",
    "filename",
    "cluster-size",
    "ivgen-alg",
    "detached-header",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "ivgen-hash-alg",
    "format",
    "cipher-mode",
    "slots",
    "active",
    "iters",
    "key-offset",
    "stripes",
    "payload-offset",
    "master-key-iters",
    "actual-size",
    "fragmented-clusters",
    "compressed",
    "format-specific",
    "full-backing-filename",
    "encrypted",
    "backing-filename",
    "dirty-flag",
    "type",
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "data-file",
    "encrypt",
    "data-file-raw",
    "corrupt",
    "extended-l2",
    "data",
];

/// The text of `value`, with a newline at the end.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out.push('\n');
    out
}

fn write(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Array(items) => {
            list(out, '[', ']', depth, items.iter(), |out, item| write(out, item, depth + 1));
        }
        Value::Object(map) => {
            list(out, '{', '}', depth, ordered(map).into_iter(), |out, (key, value)| {
                string(out, key);
                out.push_str(": ");
                write(out, value, depth + 1);
            });
        }
        Value::String(text) => string(out, text),
        other => out.push_str(&other.to_string()),
    }
}

fn ordered(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let rank = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| rank(key));
    entries
}

fn list<T>(
    out: &mut String,
    open: char,
    close: char,
    depth: usize,
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(out, depth + 1);
        each(out, item);
    }
    line(out, depth);
    out.push(close);
}

fn line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("    ", depth));
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            // JSON is text: what is none in a name cannot be said in it.
            _ if names::byte_of(c).is_some() => out.push_str("\\uFFFD"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_form_is_the_references() {
        let value = json!({"type": "x", "children": [], "filename": "a\"\u{fc}\n", "corrupt": false});
        let expected = "{\n    \"children\": [\n    ],\n    \"filename\": \"a\\\"\\u00FC\\n\",\n    \
                        \"type\": \"x\",\n    \"corrupt\": false\n}\n";
        assert_eq!(text(&value), expected);
    }
}
