//! What drivers can be told when they make a new image.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::options::{
    BoolOpt, NumberError, OptionError, OptionTree, SizeError, from_tree, parse_number, parse_size,
};

/// One option of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOption {
    /// The name, with underscores.
    pub name: &'static str,
    /// The type of its value.
    pub kind: OptionKind,
    /// One line for people.
    pub help: &'static str,
    /// The value when none is given, if it is a fixed one.
    pub default: Option<&'static str>,
    /// Whether the reference has it, or only this program under its own name.
    pub origin: Origin,
}

/// Who knows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The reference, too.
    Reference,
    /// Only this program.
    Ours,
}

impl CreateOption {
    /// An option without a fixed default.
    pub const fn new(name: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self { name, kind, help, default: None, origin: Origin::Reference }
    }

    /// The same option, which the reference does not have.
    #[must_use]
    pub const fn ours(mut self) -> Self {
        self.origin = Origin::Ours;
        self
    }

    /// The same option with a default.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
}

/// The type of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text.
    Str,
    /// A number of bytes with an optional suffix.
    Size,
    /// A number.
    Num,
    /// On or off.
    Bool,
}

impl OptionKind {
    /// The name, as help shows it between `<` and `>`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::Size => "size",
            Self::Num => "num",
            Self::Bool => "bool (on/off)",
        }
    }

    fn parse(self, key: &str, text: &str) -> Result<Value, OptionError> {
        let expects =
            |expected: &str| OptionError::Expects { key: key.to_owned(), expected: expected.to_owned() };
        match self {
            Self::Str => Ok(Value::from(text)),
            Self::Size => parse_size(text).map(Value::from).map_err(|e| match e {
                SizeError::Malformed => OptionError::ExpectsSize { key: key.to_owned() },
                SizeError::OutOfRange => {
                    OptionError::OutOfRange { key: key.to_owned(), value: text.to_owned() }
                }
            }),
            Self::Num => parse_number(text).map(Value::from).map_err(|e| match e {
                NumberError::Malformed => expects("a number"),
                NumberError::TooLarge => {
                    OptionError::TooLarge { key: key.to_owned(), value: text.to_owned() }
                }
            }),
            Self::Bool => {
                BoolOpt::from_word(text).map(|b| Value::from(b.0)).ok_or_else(|| expects("'on' or 'off'"))
            }
        }
    }
}

/// What to make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateArgs {
    /// The file name, in any form that has a protocol which can create.
    pub filename: String,
    /// The options by name, typed as their [`OptionKind`] says.
    pub options: OptionTree,
}

impl CreateArgs {
    /// An image of this name without options.
    pub fn new(filename: impl Into<String>) -> Self {
        Self { filename: filename.into(), options: OptionTree::new() }
    }

    /// Sets one option to a typed value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options.insert(name.to_owned(), value.into());
        self
    }

    /// Takes out the options that a driver itself understands; what stays is for the protocol below.
    pub fn take(&mut self, own: &[CreateOption]) -> OptionTree {
        let mut taken = OptionTree::new();
        for option in own {
            if let Some(value) = self.options.shift_remove(option.name) {
                taken.insert(option.name.to_owned(), value);
            }
        }
        taken
    }

    /// [`CreateArgs::take`], as a struct with `#[serde(deny_unknown_fields)]` and underscores in its names.
    ///
    /// # Errors
    /// A value does not fit its field.
    pub fn take_typed<T: DeserializeOwned>(&mut self, own: &[CreateOption]) -> Result<T, Error> {
        Ok(from_tree(self.take(own))?)
    }
}

/// Why options of creation cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateOptionError {
    /// A name that no driver has.
    #[error("Invalid parameter '{0}'")]
    Unknown(String),
    /// A bad value.
    #[error(transparent)]
    Value(#[from] OptionError),
}

impl From<CreateOptionError> for Error {
    fn from(e: CreateOptionError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// Adds `-o key=value,...` to `into`, typed by `known`: the options of the format, then those of the protocol
/// (the first of a name counts).
///
/// # Errors
/// Names the first option that is unknown or has a bad value.
pub fn parse_create_options(
    list: &str,
    known: &[CreateOption],
    into: &mut OptionTree,
) -> Result<(), CreateOptionError> {
    // Encryption options have dots in their names, so that lists here are flat.
    for (key, text) in crate::naming::split_option_list(list) {
        let option = known
            .iter()
            .find(|option| option.name == key)
            .ok_or_else(|| CreateOptionError::Unknown(key.to_owned()))?;
        into.insert(key.to_owned(), option.kind.parse(key, &text)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: [CreateOption; 4] = [
        CreateOption::new("size", OptionKind::Size, "Virtual disk size"),
        CreateOption::new("lazy_refcounts", OptionKind::Bool, "Postpone refcount updates").or("off"),
        CreateOption::new("encrypt.format", OptionKind::Str, "Encryption"),
        CreateOption::new("refcount_bits", OptionKind::Num, "Width of a reference count entry in bits"),
    ];

    #[test]
    fn lists_become_typed_values() {
        let mut tree = OptionTree::new();
        let list = "size=64M,lazy_refcounts=on,encrypt.format=a,,b,refcount_bits=8";
        parse_create_options(list, &KNOWN, &mut tree).expect("good options");
        let expect =
            json!({"size": 67108864, "lazy_refcounts": true, "encrypt.format": "a,b", "refcount_bits": 8});
        assert_eq!(Value::Object(tree), expect);
    }

    #[test]
    fn mistakes_are_named() {
        for (list, text) in [
            ("foo=1", "Invalid parameter 'foo'"),
            ("size=x", "Parameter 'size' expects a non-negative number below 2^64"),
            ("lazy_refcounts=1", "Parameter 'lazy_refcounts' expects 'on' or 'off'"),
            ("refcount_bits=x", "Parameter 'refcount_bits' expects a number"),
        ] {
            let error = parse_create_options(list, &KNOWN, &mut OptionTree::new()).expect_err(list);
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn drivers_take_only_what_is_theirs() {
        let mut args = CreateArgs::new("a").with("size", 5).with("nocow", true);
        assert_eq!(Value::Object(args.take(&KNOWN)), json!({"size": 5}));
        assert_eq!(Value::Object(args.options), json!({"nocow": true}));
    }
}
