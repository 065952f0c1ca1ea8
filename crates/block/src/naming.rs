//! The ways of naming an image, and the one option tree they all become.
//!
//! ```text
//!   a.qcow2                       {"file": {"driver": "file", "filename": "a.qcow2"}}
//!   file:a:b.img                  {"file": {"driver": "file", "filename": "./a:b.img"}}
//!   nbd://host/export             {"file": {"driver": "nbd", …}}              what the driver makes of it
//!   json:{"driver": "raw", …}     the object, with dotted keys nested
//!   driver=raw,file.filename=x    {"driver": "raw", "file": {"filename": "x"}}        (--image-opts)
//! ```
//!
//! A tree without `driver` is probed. Nothing here opens anything.

use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::node::Node;
use crate::options::OptionTree;
use crate::registry::{Registry, Role};

mod tree;
mod write;

pub use tree::{TreeError, nest, parse_json, parse_option_list, split_option_list};
pub use write::{json_filename, options_of, write_json};

/// A name that leads nowhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// No driver handles the prefix.
    #[error("Unknown protocol '{0}'")]
    UnknownProtocol(String),
    /// The registry has no such driver.
    #[error("Unknown driver '{0}'")]
    UnknownDriver(String),
    /// A JSON tree that cannot be read.
    #[error("Could not parse the JSON options: {0}")]
    Json(#[source] TreeError),
    /// JSON, but no object.
    #[error("Invalid JSON object given")]
    NotAnObject,
    /// A dotted list that cannot be read.
    #[error(transparent)]
    List(TreeError),
    /// A tree that says neither how to open nor what.
    #[error("Must specify either driver or file")]
    NothingToOpen,
    /// A format without its child.
    #[error("A block device must be specified for \"{role}\"")]
    ChildMissing {
        /// The child's role.
        role: String,
    },
    /// A child named by a node that does not exist.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    UnknownNode(String),
}

impl From<TreeError> for NamingError {
    fn from(e: TreeError) -> Self {
        match e {
            TreeError::NotAnObject => Self::NotAnObject,
            e => Self::Json(e),
        }
    }
}

impl From<NamingError> for Error {
    fn from(e: NamingError) -> Self {
        let kind = match e {
            NamingError::UnknownNode(_) => ErrorKind::NotFound,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

/// How a user named an image.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageName {
    /// A file name in any of its forms.
    Text(String),
    /// A dotted list, as `--image-opts` takes it.
    OptionList(String),
    /// Options that are a tree already.
    Tree(OptionTree),
}

impl From<&str> for ImageName {
    fn from(name: &str) -> Self {
        Self::Text(name.to_owned())
    }
}

impl From<OptionTree> for ImageName {
    fn from(tree: OptionTree) -> Self {
        Self::Tree(tree)
    }
}

/// The options that an image's name stands for. With `format` that driver opens it, otherwise it is probed.
///
/// # Errors
/// The name has an unknown prefix, or its options cannot be read.
pub fn image_tree(registry: &Registry, name: &ImageName, format: Option<&str>) -> Result<OptionTree, Error> {
    let mut tree = match name {
        ImageName::Tree(tree) => nest(tree.clone()).map_err(NamingError::List)?,
        ImageName::OptionList(list) => parse_image_options(list).map_err(NamingError::List)?,
        ImageName::Text(text) => match text.strip_prefix("json:") {
            Some(json) => parse_json(json).map_err(NamingError::from)?,
            None => return plain_image_tree(registry, text, format),
        },
    };
    if let Some(format) = format {
        tree.insert("driver".to_owned(), Value::from(format));
    }
    Ok(tree)
}

/// A list of options in which the first word may go without a key: it names a node then.
fn parse_image_options(list: &str) -> Result<OptionTree, TreeError> {
    let first = list.split(',').next().unwrap_or_default();
    match first.contains('=') || list.is_empty() {
        true => parse_option_list(list),
        false => parse_option_list(&format!("file={list}")),
    }
}

fn plain_image_tree(registry: &Registry, text: &str, format: Option<&str>) -> Result<OptionTree, Error> {
    let driver = match format {
        Some(format) => {
            Some(registry.driver(format).ok_or_else(|| NamingError::UnknownDriver(format.to_owned()))?)
        }
        None => None,
    };
    if let Some(driver) = driver
        && (driver.role() == Role::Protocol || !driver.prefixes().is_empty())
    {
        // `-f file NAME`: the driver itself is what the user wants to see.
        let mut tree = driver.parse_filename(text)?;
        tree.insert("driver".to_owned(), Value::from(driver.name()));
        return Ok(tree);
    }
    let mut tree = OptionTree::new();
    if let Some(driver) = driver {
        tree.insert("driver".to_owned(), Value::from(driver.name()));
    }
    tree.insert("file".to_owned(), Value::Object(storage_tree(registry, text)?));
    Ok(tree)
}

/// The options of the protocol node that a file name stands for.
///
/// # Errors
/// The name has an unknown prefix, or its driver cannot read the rest.
pub fn storage_tree(registry: &Registry, name: &str) -> Result<OptionTree, Error> {
    if let Some(json) = name.strip_prefix("json:") {
        return Ok(parse_json(json).map_err(NamingError::from)?);
    }
    let driver = match registry.driver_of_path(name) {
        Some(driver) => driver,
        None => match protocol_of(name) {
            Some(prefix) => registry
                .driver_of_prefix(prefix)
                .ok_or_else(|| NamingError::UnknownProtocol(prefix.to_owned()))?,
            None => registry.driver("file").ok_or_else(|| NamingError::UnknownDriver("file".to_owned()))?,
        },
    };
    let mut tree = OptionTree::new();
    tree.insert("driver".to_owned(), Value::from(driver.name()));
    tree.append(&mut driver.parse_filename(name)?);
    Ok(tree)
}

/// The prefix of a name that has one: what stands before a colon that comes before any slash.
pub fn protocol_of(name: &str) -> Option<&str> {
    let end = name.find([':', '/'])?;
    name[end..].starts_with(':').then(|| &name[..end])
}

/// Whether the name starts with a protocol.
pub fn has_protocol(name: &str) -> bool {
    protocol_of(name).is_some()
}

/// Removes `prefix:` from a name; a rest that would itself look like a protocol is protected by `./`.
pub fn strip_prefix(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':')) {
        Some(rest) if has_protocol(rest) => format!("./{rest}"),
        Some(rest) => rest.to_owned(),
        None => name.to_owned(),
    }
}

/// The directory part of a name, with its slash; empty when there is none.
pub fn directory_of(name: &str) -> &str {
    let start = protocol_of(name).map_or(0, |prefix| prefix.len() + 1);
    match name[start..].rfind('/') {
        Some(slash) => &name[..start + slash + 1],
        None => &name[..start],
    }
}

/// What `name` means when it stands in the image `base`: relative names are relative to its directory.
pub fn resolve_relative(base: &str, name: &str) -> String {
    if name.starts_with('/') || has_protocol(name) || base.starts_with("json:") {
        return name.to_owned();
    }
    format!("{}{name}", directory_of(base))
}

/// The name that relative names in an image are resolved against: that of the file that stores it, whatever filters
/// (`blkdebug::a.qcow2`) stand in between.
pub fn location_of(node: &dyn Node) -> String {
    match node.primary() {
        Some(child) => location_of(&*child),
        None => node.filename(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, format: Option<&str>, expect: Result<Value, &str>) {
        let registry = crate::registry::tests::sample();
        let got = image_tree(&registry, &ImageName::from(name), format).map(Value::Object);
        assert_eq!(got.map_err(|e| e.to_string()), expect.map_err(str::to_owned), "{name}");
    }

    #[test]
    fn plain_names_are_files() {
        check("a.img", None, Ok(json!({"file": {"driver": "file", "filename": "a.img"}})));
        check("./a:b", None, Ok(json!({"file": {"driver": "file", "filename": "./a:b"}})));
        check("file:a:b", None, Ok(json!({"file": {"driver": "file", "filename": "./a:b"}})));
        check("a", Some("raw"), Ok(json!({"driver": "raw", "file": {"driver": "file", "filename": "a"}})));
        check("a", Some("file"), Ok(json!({"driver": "file", "filename": "a"})));
    }

    #[test]
    fn devices_claim_their_paths_and_protocols_their_prefixes() {
        check("/dev/sda", None, Ok(json!({"file": {"driver": "host_device", "filename": "/dev/sda"}})));
        check("a:b", None, Err("Unknown protocol 'a'"));
        check("a", Some("b"), Err("Unknown driver 'b'"));
    }

    #[test]
    fn json_is_the_tree_and_the_format_wins() {
        check(
            r#"json:{"driver":"x","file.filename":"a"}"#,
            Some("raw"),
            Ok(json!({"driver": "raw", "file": {"filename": "a"}})),
        );
        check("json:[]", None, Err("Invalid JSON object given"));
    }

    #[test]
    fn relative_names_are_resolved_against_the_base() {
        for (base, name, expect) in [
            ("a", "b", "b"),
            ("x/a", "b", "x/b"),
            ("/x/a", "../b", "/x/../b"),
            ("/x/a", "/b", "/b"),
            ("/x/a", "nbd:b", "nbd:b"),
            ("ssh://h/x/a", "b", "ssh://h/x/b"),
            ("fat:a", "b", "fat:b"),
        ] {
            assert_eq!(resolve_relative(base, name), expect, "{base} {name}");
        }
    }
}
