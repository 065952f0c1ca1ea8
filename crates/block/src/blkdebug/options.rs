//! The options of `blkdebug`, and what can be wrong with them.

use serde::Deserialize;
use serde_json::Value;

use super::config::ConfigError;
use super::rules::{Rule, RuleError, Section};
use crate::child::Child;
use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result, errno_text};
use crate::graph::{Needs, Permissions};
use crate::naming::ImageName;
use crate::node::{Limits, Portions};
use crate::options::{ChildRef, OptionTree, SizeOpt};

/// Longest rule file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Limits that can be pretended lie below this: `INT_MAX`, as in the reference.
const LIMIT_MAX: u64 = i32::MAX as u64;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BlkdebugOptions {
    #[serde(default)]
    pub(super) image: ChildRef,
    /// The image as a name, from the short form.
    pub(super) x_image: Option<String>,
    pub(super) config: Option<String>,
    pub(super) align: Option<SizeOpt>,
    pub(super) max_transfer: Option<SizeOpt>,
    pub(super) opt_write_zero: Option<SizeOpt>,
    pub(super) max_write_zero: Option<SizeOpt>,
    pub(super) opt_discard: Option<SizeOpt>,
    pub(super) max_discard: Option<SizeOpt>,
    pub(super) inject_error: Option<Value>,
    pub(super) set_state: Option<Value>,
    #[serde(default)]
    pub(super) take_child_perms: Vec<String>,
    #[serde(default)]
    pub(super) unshare_child_perms: Vec<String>,
}

/// Options that contradict each other or the image.
#[derive(Debug, thiserror::Error)]
pub enum BlkdebugError {
    /// The short form has two colons.
    #[error("blkdebug requires both config file and image path")]
    Form,
    /// A limit that cannot be kept.
    #[error("Cannot meet constraints with {name} {value}")]
    Limit {
        /// The option.
        name: &'static str,
        /// Its value in bytes.
        value: u64,
    },
    /// The rule file cannot be opened or read.
    #[error("Could not read blkdebug config file: {}", errno_text(*.0))]
    Unreadable(i32),
    /// It is longer than any rule file.
    #[error("Could not read blkdebug config file: it has more than {CONFIG_BYTES_MAX} bytes")]
    TooLong,
    /// `inject-error` or `set-state` are lists of options.
    #[error("Block protocol 'blkdebug' doesn't support the option '{0}'")]
    NoSection(&'static str),
    /// No permission of this name.
    #[error("Parameter 'null' does not accept value '{0}'")]
    Permission(String),
    /// What the rule file says.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the options say.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

impl From<BlkdebugError> for Error {
    fn from(e: BlkdebugError) -> Self {
        match e {
            BlkdebugError::Unreadable(errno) => Error::with_errno(errno, e),
            e => Error::new(ErrorKind::InvalidInput, e),
        }
    }
}

/// A list of one.
pub(super) fn as_list(value: Value) -> Value {
    if value.is_object() { Value::Array(vec![value]) } else { value }
}

/// The rules of a section of options, whose scalars may be of any type.
pub(super) fn section_rules(
    section: Section,
    value: Option<&Value>,
) -> std::result::Result<Vec<Rule>, BlkdebugError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let items = value.as_array().ok_or(BlkdebugError::NoSection(section.name()))?;
    items.iter().map(|item| option_rule(section, item)).collect()
}

fn option_rule(section: Section, item: &Value) -> std::result::Result<Rule, BlkdebugError> {
    let tree = item.as_object().ok_or(BlkdebugError::NoSection(section.name()))?;
    let mut pairs = Vec::new();
    for (key, value) in tree {
        // The names of options have dashes where those of files have underscores; both are understood.
        let known = key.replace('-', "_");
        if !section.has(&known) {
            return Err(RuleError::Option { section: section.name(), key: key.clone() }.into());
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
            other => other.to_string(),
        };
        pairs.push((known, text));
    }
    Ok(Rule::new(section, &pairs)?)
}

pub(super) fn permissions(names: &[String]) -> std::result::Result<Permissions, BlkdebugError> {
    let mut all = Permissions::empty();
    for name in names {
        all |= match name.as_str() {
            "consistent-read" => Permissions::CONSISTENT_READ,
            "write" => Permissions::WRITE,
            "write-unchanged" => Permissions::WRITE_UNCHANGED,
            "resize" => Permissions::RESIZE,
            _ => return Err(BlkdebugError::Permission(name.clone())),
        };
    }
    Ok(all)
}

pub(super) fn extended(needs: Needs, take: Permissions, unshare: Permissions) -> Needs {
    Needs { required: needs.required | take, shared: needs.shared - unshare }
}

pub(super) async fn read_config(name: &str, cx: &OpenContext) -> Result<Vec<u8>> {
    let unreadable = |e: Error| Error::from(BlkdebugError::Unreadable(e.errno()));
    let mut own = OpenContext::new(cx.registry.clone()).with_needs(Needs::NOTHING);
    own.policy = cx.policy;
    let mut tree = OptionTree::new();
    tree.insert("driver".to_owned(), "file".into());
    tree.insert("filename".to_owned(), name.into());
    let file = own.open_image(&ImageName::Tree(tree), None).await.map_err(unreadable)?.node;
    if file.len() > CONFIG_BYTES_MAX {
        return Err(BlkdebugError::TooLong.into());
    }
    let bytes = Child::new(file.clone()).read(0, file.len() as usize).await.map_err(unreadable)?.to_vec();
    file.close().await.map_err(unreadable)?;
    Ok(bytes)
}

/// The limits that the options pretend, over those of the image.
pub(super) fn pretended(
    options: &BlkdebugOptions,
    below: Limits,
) -> std::result::Result<Limits, BlkdebugError> {
    let given = |option: &Option<SizeOpt>| option.as_ref().map_or(0, |size| size.0);
    let own_align = given(&options.align);
    let align = own_align.max(u64::from(below.request_alignment));
    if own_align != 0 && (align >= LIMIT_MAX || !align.is_power_of_two()) {
        return Err(BlkdebugError::Limit { name: "align", value: own_align });
    }
    let limit = |name, option: &Option<SizeOpt>, multiple_of: u64| {
        let value = given(option);
        match value != 0 && (value >= LIMIT_MAX || !value.is_multiple_of(multiple_of)) {
            true => Err(BlkdebugError::Limit { name, value }),
            false => Ok(value),
        }
    };
    let max_transfer = limit("max-transfer", &options.max_transfer, align)?;
    let zeroes_grain = limit("opt-write-zero", &options.opt_write_zero, align)?.max(align);
    let discard_grain = limit("opt-discard", &options.opt_discard, align)?.max(align);
    Ok(Limits {
        request_alignment: align as u32,
        max_transfer: if max_transfer == 0 { below.max_transfer } else { max_transfer },
        portions: Some(Portions {
            zeroes_grain,
            zeroes_max: limit("max-write-zero", &options.max_write_zero, zeroes_grain)?,
            discard_grain,
            discard_max: limit("max-discard", &options.max_discard, discard_grain)?,
        }),
        ..below
    })
}
