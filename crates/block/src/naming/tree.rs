//! Reads JSON and dotted lists into nested trees.

use serde_json::Value;
use serde_json::map::Entry;

use crate::options::OptionTree;

/// Deepest nesting of a tree: far beyond any real graph, far below any stack.
const TREE_DEPTH_MAX: usize = 64;

/// Options that do not form a tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The JSON parser's complaint.
    #[error("{0}")]
    Syntax(String),
    /// JSON, but no object.
    #[error("Invalid JSON object given")]
    NotAnObject,
    /// Beyond 64 levels.
    #[error("options nested deeper than {TREE_DEPTH_MAX} levels")]
    TooDeep,
    /// `a=1,a.b=2`.
    #[error("Cannot mix scalar and non-scalar keys")]
    ScalarAndChild,
    /// `a.0=1,a.b=2`.
    #[error("Cannot mix list and non-list keys")]
    ListAndNames,
    /// `a.0=1,a.2=2`.
    #[error("Missing list index {0}")]
    MissingIndex(usize),
    /// `=value`, `a..b=` and the like.
    #[error("Invalid parameter '{0}'")]
    BadKey(String),
}

/// Reads the object after `json:`.
///
/// Single quotes are accepted around strings, as the reference accepts them.
///
/// # Errors
/// The text is no JSON object, is nested too deep, or its keys contradict each other.
pub fn parse_json(text: &str) -> Result<OptionTree, TreeError> {
    let parsed = match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(e) if text.contains('\'') => serde_json::from_str(&with_double_quotes(text)).map_err(|_| e),
        Err(e) => Err(e),
    };
    match parsed.map_err(|e| TreeError::Syntax(complaint(text, &e)))? {
        Value::Object(tree) => nest(tree),
        _ => Err(TreeError::NotAnObject),
    }
}

/// The parser's complaint in the reference's words, as far as it has words for it.
fn complaint(text: &str, error: &serde_json::Error) -> String {
    if text.trim().is_empty() {
        return "Expecting a JSON value".to_owned();
    }
    let own = error.to_string();
    let keyword = keyword_at(text, error);
    let words = match own.as_str() {
        s if !keyword.is_empty() && (s.starts_with("expected value") || s.starts_with("key must be")) => {
            return format!("JSON parse error, invalid keyword '{keyword}'");
        }
        s if s.starts_with("expected value") => "expecting value",
        _ if error.is_eof() => "premature EOI",
        s if s.starts_with("trailing characters") => return "Expecting at most one JSON value".to_owned(),
        s if s.starts_with("trailing comma") => "expecting value",
        s if s.starts_with("expected `:`") => "missing : in object pair",
        s if s.starts_with("expected `,` or `]`") => "expected separator in list",
        s if s.starts_with("expected `,` or `}`") => "expected separator in dict",
        s if s.starts_with("key must be a string") => "key is not a string in object",
        s if s.starts_with("invalid escape") => "invalid escape sequence in string",
        s => s,
    };
    format!("JSON parse error, {words}")
}

/// The word in which the parser stopped; empty if there is none.
fn keyword_at<'a>(text: &'a str, error: &serde_json::Error) -> &'a str {
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    &rest[..rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len()]
}

fn with_double_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => out.push('\''),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            ('"', Some('\'')) => out.push_str("\\\""),
            ('\'' | '"', None) => {
                quote = Some(c);
                out.push('"');
            }
            (_, Some(open)) if c == open => {
                quote = None;
                out.push('"');
            }
            _ => out.push(c),
        }
    }
    out
}

/// Reads `key=value,key.sub=value`; a comma in a value is doubled, a key without a value means `on`.
///
/// # Errors
/// A key is malformed, or keys contradict each other.
pub fn parse_option_list(list: &str) -> Result<OptionTree, TreeError> {
    let flat = split_option_list(list).into_iter();
    nest(flat.map(|(key, value)| (key.to_owned(), Value::from(value))).collect())
}

/// The keys and values of a list, in order, dots left as they are.
pub fn split_option_list(list: &str) -> Vec<(&str, String)> {
    let mut pairs = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (key, after) = rest.split_at(rest.find(['=', ',']).unwrap_or(rest.len()));
        let value;
        (value, rest) = match after.strip_prefix('=') {
            Some(text) => take_value(text),
            None => ("on".to_owned(), after.strip_prefix(',').unwrap_or("")),
        };
        pairs.push((key, value));
    }
    pairs
}

/// Takes a value up to a single comma, which is consumed too.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(comma) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
}

/// Turns dotted keys into nested objects, and objects with keys 0, 1, 2 … into arrays.
///
/// # Errors
/// The tree is too deep, or a key is used as a scalar and as a parent, or a list has gaps.
pub fn nest(flat: OptionTree) -> Result<OptionTree, TreeError> {
    let mut tree = OptionTree::new();
    merge(&mut tree, flat, 0)?;
    match listed(Value::Object(tree), 0)? {
        Value::Object(tree) => Ok(tree),
        // The whole tree has keys 0, 1, …: no options of anything.
        _ => Err(TreeError::BadKey("0".to_owned())),
    }
}

fn merge(into: &mut OptionTree, from: OptionTree, depth: usize) -> Result<(), TreeError> {
    for (key, value) in from {
        insert(into, &key, &key, value, depth)?;
    }
    Ok(())
}

fn insert(
    into: &mut OptionTree,
    whole: &str,
    key: &str,
    value: Value,
    depth: usize,
) -> Result<(), TreeError> {
    if depth > TREE_DEPTH_MAX {
        return Err(TreeError::TooDeep);
    }
    let (head, tail) = match key.split_once('.') {
        Some((head, tail)) => (head, Some(tail)),
        None => (key, None),
    };
    if head.is_empty() {
        return Err(TreeError::BadKey(whole.to_owned()));
    }
    let slot = match into.entry(head) {
        Entry::Occupied(slot) => slot.into_mut(),
        Entry::Vacant(slot) if tail.is_some() || value.is_object() => {
            slot.insert(Value::Object(OptionTree::new()))
        }
        Entry::Vacant(slot) => {
            slot.insert(value);
            return Ok(());
        }
    };
    match (slot, tail, value) {
        (Value::Object(existing), Some(tail), value) => insert(existing, whole, tail, value, depth + 1),
        (Value::Object(existing), None, Value::Object(more)) => merge(existing, more, depth + 1),
        // The same scalar twice: the last one counts, as in every option list.
        (slot, None, value) if !slot.is_object() && !value.is_object() => {
            *slot = value;
            Ok(())
        }
        _ => Err(TreeError::ScalarAndChild),
    }
}

fn listed(value: Value, depth: usize) -> Result<Value, TreeError> {
    if depth > TREE_DEPTH_MAX {
        return Err(TreeError::TooDeep);
    }
    match value {
        Value::Object(tree) => {
            let mut nested = OptionTree::new();
            for (key, value) in tree {
                nested.insert(key, listed(value, depth + 1)?);
            }
            as_list(nested)
        }
        Value::Array(items) => {
            let items: Result<_, _> = items
                .into_iter()
                .map(|item| match item {
                    Value::Object(tree) => {
                        let mut nested = OptionTree::new();
                        merge(&mut nested, tree, depth + 1)?;
                        listed(Value::Object(nested), depth + 1)
                    }
                    other => listed(other, depth + 1),
                })
                .collect();
            Ok(Value::Array(items?))
        }
        scalar => Ok(scalar),
    }
}

fn as_list(mut tree: OptionTree) -> Result<Value, TreeError> {
    let is_index = |key: &String| key.bytes().all(|b| b.is_ascii_digit());
    let indexes = tree.keys().filter(|key| is_index(key)).count();
    if indexes == 0 {
        return Ok(Value::Object(tree));
    }
    if indexes != tree.len() {
        return Err(TreeError::ListAndNames);
    }
    let take = |i: usize| tree.shift_remove(&i.to_string()).ok_or(TreeError::MissingIndex(i));
    Ok(Value::Array((0..indexes).map(take).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(text: &str, expect: Result<Value, TreeError>) {
        assert_eq!(parse_option_list(text).map(Value::Object), expect, "{text}");
    }

    #[test]
    fn lists_nest_and_unescape() {
        list(
            "driver=qcow2,file.driver=file,file.filename=a,,b,,",
            Ok(json!({"driver": "qcow2", "file": {"driver": "file", "filename": "a,b,"}})),
        );
        list("children.0.driver=a,children.1=n", Ok(json!({"children": [{"driver": "a"}, "n"]})));
        list("a=,b,c=1,c=2", Ok(json!({"a": "", "b": "on", "c": "2"})));
        list("", Ok(json!({})));
    }

    #[test]
    fn lists_that_contradict_themselves() {
        list("a=1,a.b=2", Err(TreeError::ScalarAndChild));
        list("a.b=2,a=1", Err(TreeError::ScalarAndChild));
        list("a.0=2,a.b=1", Err(TreeError::ListAndNames));
        list("a.0=2,a.2=1", Err(TreeError::MissingIndex(1)));
        list("=x", Err(TreeError::BadKey(String::new())));
        list("a..b=x", Err(TreeError::BadKey("a..b".into())));
        list("0=a,1=b", Err(TreeError::BadKey("0".into())));
    }

    #[test]
    fn json_takes_dotted_and_nested_keys_together() {
        let tree = parse_json(r#"{"file.driver":"file","file":{"filename":"a","x.y":[{"p.q":1}]}}"#);
        let expect = json!({"file": {"driver": "file", "filename": "a", "x": {"y": [{"p": {"q": 1}}]}}});
        assert_eq!(tree.map(Value::Object), Ok(expect));
    }

    #[test]
    fn broken_json_is_reported_in_the_references_words() {
        for (text, expect) in [
            ("", "Expecting a JSON value"),
            ("{", "JSON parse error, premature EOI"),
            (r#"{"a":1,"#, "JSON parse error, premature EOI"),
            (r#"{"a" 1}"#, "JSON parse error, missing : in object pair"),
            (r#"{"a":1}}"#, "Expecting at most one JSON value"),
            (r#"{"a":1,}"#, "JSON parse error, expecting value"),
            (r#"{"a":[1 2]}"#, "JSON parse error, expected separator in list"),
            (r#"{1:2}"#, "JSON parse error, key is not a string in object"),
        ] {
            assert_eq!(parse_json(text), Err(TreeError::Syntax(expect.to_owned())), "{text}");
        }
    }

    #[test]
    fn json_with_single_quotes() {
        let tree = parse_json(r#"{'a': 'it"s', "b": "it's", 'c': 'x\'y'}"#);
        assert_eq!(tree.map(Value::Object), Ok(json!({"a": "it\"s", "b": "it's", "c": "x'y"})));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n));
        assert!(parse_json(&deep(60)).is_ok());
        assert_eq!(parse_json(&deep(100)), Err(TreeError::TooDeep));
        assert!(matches!(parse_json(&deep(100_000)), Err(TreeError::Syntax(_))));
        let arrays = format!(r#"{{"a":{}{}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(parse_json(&arrays), Err(TreeError::TooDeep));
        let dotted = vec!["a"; 100_000].join(".");
        assert_eq!(parse_option_list(&format!("{dotted}=1")), Err(TreeError::TooDeep));
    }
}
