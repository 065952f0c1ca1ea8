//! Names of other files as images store them: what kind of name it is, which hosts it leads to, and whether it leaves
//! the image's directory. Nothing is resolved or opened.

use cowbell_block::naming::protocol_of;
use serde_json::{Map, Value};

use super::printable;

/// Most values that are listed of a JSON name.
const VALUES_MAX: usize = 100;

/// Something that a file names outside of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What it is for: `backing file`, `data file`, `extent`, …
    pub role: &'static str,
    /// The name, fit for a terminal.
    pub name: String,
    /// What kind of name it is.
    pub kind: Kind,
    /// What is inside: protocol, host, and the values of a JSON name by their path.
    pub details: Map<String, Value>,
}

/// A kind of name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A path from the image's directory, which stays inside.
    Relative,
    /// A path that leaves the image's directory upwards.
    Outside,
    /// A path from the root.
    Absolute,
    /// A name with a protocol.
    Protocol,
    /// Options of nodes as JSON.
    Json,
}

impl Kind {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Relative => "relative-path",
            Self::Outside => "path-outside",
            Self::Absolute => "absolute-path",
            Self::Protocol => "protocol",
            Self::Json => "json",
        }
    }

    /// What it means for whoever opens the image.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Relative => "below the image's directory",
            Self::Outside => "a path that leaves the image's directory",
            Self::Absolute => "an absolute path",
            Self::Protocol => "over a protocol",
            Self::Json => "a tree of nodes, which may open anything",
        }
    }
}

impl Reference {
    /// Takes a name apart.
    pub fn new(role: &'static str, name: &str) -> Self {
        let mut details = Map::new();
        let kind = match (name.strip_prefix("json:"), protocol_of(name)) {
            (Some(json), _) => {
                match serde_json::from_str::<Value>(json) {
                    Ok(value) => collect("", &value, &mut details),
                    Err(e) => {
                        details.insert("error".into(), e.to_string().into());
                    }
                }
                Kind::Json
            }
            (None, Some(protocol)) => {
                details.insert("protocol".into(), safe(protocol).into());
                if let Some(host) = host_of(&name[protocol.len() + 1..]) {
                    details.insert("host".into(), safe(host).into());
                }
                Kind::Protocol
            }
            (None, None) if name.starts_with('/') => Kind::Absolute,
            (None, None) if leaves(name) => Kind::Outside,
            (None, None) => Kind::Relative,
        };
        Self { role, name: safe(name), kind, details }
    }
}

fn safe(text: &str) -> String {
    text.chars().flat_map(printable).collect()
}

/// The host of what follows a protocol: `//user@host:port/path`, or `host:port`.
fn host_of(rest: &str) -> Option<&str> {
    let rest = match rest.strip_prefix("//") {
        Some(url) => url.split(['/', '?']).next()?,
        None => rest.split(':').next()?,
    };
    Some(rest.rsplit('@').next().unwrap_or(rest)).filter(|host| !host.is_empty())
}

/// Whether a relative path goes above its directory on its way.
fn leaves(path: &str) -> bool {
    let mut depth = 0i64;
    path.split('/').any(|part| {
        match part {
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
        depth < 0
    })
}

/// The values of a JSON name, by their path.
fn collect(path: &str, value: &Value, into: &mut Map<String, Value>) {
    let below = |key: &str| if path.is_empty() { safe(key) } else { format!("{path}.{}", safe(key)) };
    match value {
        _ if into.len() >= VALUES_MAX => {}
        Value::Object(map) => map.iter().for_each(|(key, value)| collect(&below(key), value, into)),
        Value::Array(list) => {
            let numbered = list.iter().enumerate();
            numbered.for_each(|(index, value)| collect(&below(&index.to_string()), value, into));
        }
        Value::String(text) => {
            into.insert(path.to_owned(), safe(text).into());
        }
        other => {
            into.insert(path.to_owned(), other.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let kind = |name: &str| Reference::new("backing file", name).kind;
        assert_eq!(kind("base.qcow2"), Kind::Relative);
        assert_eq!(kind("a/../base.qcow2"), Kind::Relative);
        assert_eq!(kind("a/../../base.qcow2"), Kind::Outside);
        assert_eq!(kind("/etc/shadow"), Kind::Absolute);
        assert_eq!(kind("./x:y"), Kind::Relative);
        let host = |name: &str| Reference::new("backing file", name).details["host"].clone();
        assert_eq!(host("nbd:10.0.0.1:10809"), "10.0.0.1");
        assert_eq!(host("https://user@example.org:81/a?b"), "example.org:81");
        let json = Reference::new("backing file", r#"json:{"driver":"nbd","server":{"host":"h"},"a":[1]}"#);
        let details: Vec<_> = json.details.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(details, ["driver=\"nbd\"", "server.host=\"h\"", "a.0=1"]);
        assert!(Reference::new("backing file", "json:{").details.contains_key("error"));
        assert_eq!(Reference::new("backing file", "a\u{1b}[m").name, "a\\u{1b}[m");
        let bytes = cowbell_block::names::from_bytes(b"a\x9bb");
        assert_eq!(Reference::new("backing file", &bytes).name, "a\\x9bb");
    }
}
