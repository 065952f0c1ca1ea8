//! Typed options: from one tree of names and values to the struct that a driver declares.
//!
//! A tree comes from JSON (typed values) or from a dotted list (strings only), so that every scalar is accepted
//! in both shapes: `true` and `"on"`, `65536` and `"64k"`. A driver declares a struct with
//! `#[serde(deny_unknown_fields, rename_all = "kebab-case")]` and calls [`parse`]; what it does not know is
//! refused by name, with the full dotted key.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Unexpected, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind};
use crate::registry::Role;

mod de_value;
mod size;

pub use size::{NumberError, SizeError, parse_number, parse_size};

/// Names and values, nested: children are objects, lists are arrays.
pub type OptionTree = Map<String, Value>;

/// An option that a tree gets wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A format or filter does not have this option.
    #[error("Block format '{driver}' does not support the option '{key}'")]
    UnknownToFormat {
        /// The driver.
        driver: String,
        /// The option's dotted key.
        key: String,
    },
    /// A protocol does not have this option.
    #[error("Block protocol '{driver}' doesn't support the option '{key}'")]
    UnknownToProtocol {
        /// The driver.
        driver: String,
        /// The option's dotted key.
        key: String,
    },
    /// Nobody has this option; [`parse`] turns it into one of the two above.
    #[error("Invalid parameter '{key}'")]
    Unknown {
        /// The option's dotted key.
        key: String,
    },
    /// A value that does not fit its option.
    #[error("Parameter '{key}' expects {expected}")]
    Expects {
        /// The option's dotted key.
        key: String,
        /// What would fit.
        expected: String,
    },
    /// A value that is no size.
    #[error("Parameter '{key}' expects a non-negative number below 2^64")]
    ExpectsSize {
        /// The option's dotted key.
        key: String,
    },
    /// A number beyond 64 bits.
    #[error("Value '{value}' is too large for parameter '{key}'")]
    TooLarge {
        /// The option's dotted key.
        key: String,
        /// The number as it was written.
        value: String,
    },
    /// A size that is negative or beyond 64 bits.
    #[error("Value '{value}' is out of range for parameter '{key}'")]
    OutOfRange {
        /// The option's dotted key.
        key: String,
        /// The size as it was written.
        value: String,
    },
    /// A word outside of the option's list of words.
    #[error("Parameter '{key}' does not accept value '{value}'")]
    NotAccepted {
        /// The option's dotted key.
        key: String,
        /// The word.
        value: String,
    },
    /// A value of the wrong JSON type.
    #[error("Invalid parameter type for '{key}', expected: {expected}")]
    WrongType {
        /// The option's dotted key.
        key: String,
        /// The right type.
        expected: String,
    },
    /// A required option that is absent.
    #[error("Parameter '{key}' is missing")]
    Missing {
        /// The option's dotted key.
        key: String,
    },
    /// A rule that a value's own type enforces.
    #[error("{text}")]
    Custom {
        /// The option's dotted key.
        key: String,
        /// What the type says.
        text: String,
    },
}

impl From<OptionError> for Error {
    fn from(e: OptionError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// Reads the options of `driver` from what the opener left of a tree (common options are gone already).
///
/// # Errors
/// Names the first option that is unknown, missing or has a bad value.
pub fn parse<T: DeserializeOwned>(driver: &str, role: Role, tree: OptionTree) -> Result<T, OptionError> {
    from_tree(tree).map_err(|e| match e {
        OptionError::Unknown { key } if role == Role::Protocol => {
            OptionError::UnknownToProtocol { driver: driver.to_owned(), key }
        }
        OptionError::Unknown { key } => OptionError::UnknownToFormat { driver: driver.to_owned(), key },
        other => other,
    })
}

/// Reads any options struct from a tree.
///
/// # Errors
/// As [`parse`], without a driver's name.
pub fn from_tree<T: DeserializeOwned>(tree: OptionTree) -> Result<T, OptionError> {
    T::deserialize(de_value::ValueDe(Value::Object(tree)))
}

/// `true`, `false`, or a word for them: on, off, yes, no, true, false, y, n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoolOpt(pub bool);

impl BoolOpt {
    /// What a word means.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "on" | "yes" | "true" | "y" => Some(Self(true)),
            "off" | "no" | "false" | "n" => Some(Self(false)),
            _ => None,
        }
    }
}

impl From<BoolOpt> for bool {
    fn from(value: BoolOpt) -> bool {
        value.0
    }
}

impl<'de> Deserialize<'de> for BoolOpt {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = BoolOpt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("'on' or 'off'")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<BoolOpt, E> {
                Ok(BoolOpt(value))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<BoolOpt, E> {
                BoolOpt::from_word(word).ok_or_else(|| E::invalid_value(Unexpected::Str(word), &self))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// A number of bytes: a JSON number, or text with an optional suffix (see [`parse_size`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeOpt(pub u64);

impl From<SizeOpt> for u64 {
    fn from(value: SizeOpt) -> u64 {
        value.0
    }
}

impl<'de> Deserialize<'de> for SizeOpt {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = SizeOpt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a non-negative number below 2^64")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<SizeOpt, E> {
                Ok(SizeOpt(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<SizeOpt, E> {
                u64::try_from(value).map(SizeOpt).map_err(|_| E::invalid_value(de_value::NO_SIZE, &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SizeOpt, E> {
                parse_size(text).map(SizeOpt).map_err(|e| match e {
                    SizeError::Malformed => E::invalid_value(de_value::NO_SIZE, &self),
                    SizeError::OutOfRange => E::invalid_value(de_value::OUT_OF_RANGE, &text),
                })
            }
        }
        deserializer.deserialize_any(Sizes)
    }
}

/// A plain number: a JSON number, or text (see [`parse_number`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumberOpt(pub u64);

impl<'de> Deserialize<'de> for NumberOpt {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = NumberOpt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<NumberOpt, E> {
                Ok(NumberOpt(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<NumberOpt, E> {
                // As its text would be read.
                Ok(NumberOpt(value.cast_unsigned()))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<NumberOpt, E> {
                parse_number(text).map(NumberOpt).map_err(|e| match e {
                    NumberError::Malformed => E::invalid_value(Unexpected::Str(text), &self),
                    NumberError::TooLarge => E::invalid_value(de_value::TOO_LARGE, &text),
                })
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// How a tree names a child.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ChildRef {
    /// The option is not there.
    #[default]
    Absent,
    /// `null`: there is to be no such child.
    Null,
    /// The name of a node that exists already.
    Node(String),
    /// The child's own options.
    Inline(OptionTree),
}

impl ChildRef {
    /// Whether the option is not there.
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

impl<'de> Deserialize<'de> for ChildRef {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::Null),
            Value::String(name) => Ok(Self::Node(name)),
            Value::Object(tree) => Ok(Self::Inline(tree)),
            _ => Err(de::Error::invalid_type(Unexpected::Other("scalar"), &"object or string")),
        }
    }
}

/// The options that every node has, taken out of its tree by the opener before the driver sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CommonOptions {
    /// The driver; absent: to be found out.
    pub driver: Option<String>,
    /// The node's name in the graph.
    pub node_name: Option<String>,
    /// Whether discards reach the node.
    pub discard: Option<DiscardMode>,
    /// Host cache behaviour, over what the context says.
    pub cache: CacheOptions,
    /// Whether writes are refused.
    pub read_only: Option<BoolOpt>,
    /// Whether the node falls back to reading when writing is not possible.
    pub auto_read_only: Option<BoolOpt>,
    /// Whether image locks of others are ignored.
    pub force_share: Option<BoolOpt>,
    /// What becomes of writes of zeroes.
    pub detect_zeroes: Option<DetectZeroes>,
    /// Accepted and without effect: nodes are always active here.
    pub active: Option<BoolOpt>,
}

/// The nested `cache` option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CacheOptions {
    /// Past the host's page cache.
    pub direct: Option<BoolOpt>,
    /// Flushes are ignored.
    pub no_flush: Option<BoolOpt>,
}

impl CommonOptions {
    const KEYS: [&'static str; 9] = [
        "driver",
        "node-name",
        "discard",
        "cache",
        "read-only",
        "auto-read-only",
        "force-share",
        "detect-zeroes",
        "active",
    ];

    /// Takes the common options out of `tree`.
    ///
    /// # Errors
    /// Names the option with a bad value.
    pub fn take(tree: &mut OptionTree) -> Result<Self, OptionError> {
        let driver = tree.get("driver").and_then(Value::as_str).map(str::to_owned);
        let mut own = OptionTree::new();
        for key in Self::KEYS {
            if let Some(value) = tree.shift_remove(key) {
                own.insert(key.to_owned(), value);
            }
        }
        from_tree(own).map_err(|e| match (e, driver) {
            // What is not ours would be the driver's.
            (OptionError::Unknown { key }, Some(driver)) => OptionError::UnknownToFormat { driver, key },
            (e, _) => e,
        })
    }
}

/// A word that is none of an option's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid parameter value: {0}")]
pub struct UnknownWord(String);

/// A word that is no [`DiscardMode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid discard option")]
pub struct UnknownDiscardMode;

/// Gives an enum the words that options and command lines have for its values.
#[macro_export]
macro_rules! option_words {
    ($type:ty { $($($word:literal)|+ => $value:ident,)+ }) => {
        impl $type {
            /// The value of this name, as on command lines.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($($word)|+ => Some(Self::$value),)+
                    _ => None,
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = $crate::options::UnknownWord;
            fn try_from(word: String) -> Result<Self, Self::Error> {
                Self::from_name(&word).ok_or($crate::options::UnknownWord::of(word))
            }
        }
    };
}

impl UnknownWord {
    /// This one.
    pub fn of(word: String) -> Self {
        Self(word)
    }
}

/// Whether discards reach a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DiscardMode {
    /// They succeed and do nothing.
    Ignore,
    /// They reach the node.
    #[default]
    Unmap,
}

impl DiscardMode {
    /// The mode of this name, as on command lines.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ignore" | "off" => Some(Self::Ignore),
            "unmap" | "on" => Some(Self::Unmap),
            _ => None,
        }
    }
}

impl TryFrom<String> for DiscardMode {
    type Error = UnknownDiscardMode;
    fn try_from(word: String) -> Result<Self, UnknownDiscardMode> {
        Self::from_name(&word).ok_or(UnknownDiscardMode)
    }
}

/// What becomes of writes whose data is all zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DetectZeroes {
    /// They are writes.
    #[default]
    Off,
    /// They become writes of zeroes.
    On,
    /// They become writes of zeroes that may release storage. Needs discard=unmap.
    Unmap,
}

option_words!(DetectZeroes { "off" => Off, "on" => On, "unmap" => Unmap, });

/// Which way requests reach the host's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AioMode {
    /// Whatever the host does best.
    #[default]
    Auto,
    /// Threads that block.
    Threads,
    /// Linux AIO.
    Native,
    /// io_uring.
    IoUring,
}

option_words!(AioMode {
    "auto" => Auto,
    "threads" => Threads,
    "native" => Native,
    "io_uring" | "io-uring" => IoUring,
});

/// How writes and flushes reach the host's storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMode {
    /// Past the host's page cache.
    pub direct: bool,
    /// Flushes are ignored.
    pub no_flush: bool,
    /// Each write is durable when it completes; applied by whoever submits at the root.
    pub write_through: bool,
}

impl CacheMode {
    /// The default: page cache, flushes count.
    pub const WRITEBACK: Self = Self { direct: false, no_flush: false, write_through: false };
    /// Direct I/O.
    pub const NONE: Self = Self { direct: true, ..Self::WRITEBACK };
    /// Direct I/O, every write durable.
    pub const DIRECTSYNC: Self = Self { direct: true, write_through: true, ..Self::WRITEBACK };
    /// Page cache, every write durable.
    pub const WRITETHROUGH: Self = Self { write_through: true, ..Self::WRITEBACK };
    /// Page cache, flushes ignored.
    pub const UNSAFE: Self = Self { no_flush: true, ..Self::WRITEBACK };

    /// The mode of this name, as in `-t` and `--cache`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "writeback" => Some(Self::WRITEBACK),
            "none" | "off" => Some(Self::NONE),
            "directsync" => Some(Self::DIRECTSYNC),
            "writethrough" => Some(Self::WRITETHROUGH),
            "unsafe" => Some(Self::UNSAFE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Sample {
        #[serde(default)]
        lazy_refcounts: BoolOpt,
        #[serde(default)]
        cache_size: Option<SizeOpt>,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        seconds: Option<NumberOpt>,
        #[serde(default)]
        mode: Option<DetectZeroes>,
        #[serde(default)]
        file: ChildRef,
        #[serde(default)]
        nested: Option<Nested>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Nested {
        key_secret: String,
    }

    fn check(tree: Value, expect: Result<impl Fn(&Sample) -> bool, &str>) {
        let Value::Object(tree) = tree else { panic!("an object") };
        let shown = format!("{tree:?}");
        match (parse::<Sample>("qcow2", Role::Format, tree), expect) {
            (Ok(sample), Ok(test)) => assert!(test(&sample), "{sample:?}"),
            (Err(e), Err(text)) => assert_eq!(e.to_string(), text, "{shown}"),
            (got, _) => panic!("{shown} gave {got:?}"),
        }
    }

    fn fails(tree: Value, text: &str) {
        check(tree, Err::<fn(&Sample) -> bool, _>(text));
    }

    #[test]
    fn scalars_are_taken_in_both_shapes() {
        for tree in [
            json!({"lazy-refcounts": true, "cache-size": 65536, "count": 7, "seconds": 16}),
            json!({"lazy-refcounts": "on", "cache-size": "64k", "count": "7", "seconds": "0x10"}),
        ] {
            check(
                tree,
                Ok(|s: &Sample| {
                    s.lazy_refcounts.0
                        && s.cache_size == Some(SizeOpt(65536))
                        && s.count == 7
                        && s.seconds == Some(NumberOpt(16))
                }),
            );
        }
    }

    #[test]
    fn children_have_four_shapes() {
        check(json!({}), Ok(|s: &Sample| s.file.is_absent()));
        check(json!({"file": null}), Ok(|s: &Sample| s.file == ChildRef::Null));
        check(json!({"file": "n1"}), Ok(|s: &Sample| s.file == ChildRef::Node("n1".into())));
        check(
            json!({"file": {"driver": "file", "x": [1, "a"]}}),
            Ok(|s: &Sample| matches!(&s.file, ChildRef::Inline(t) if t["x"] == json!([1, "a"]))),
        );
        fails(json!({"file": 5}), "Invalid parameter type for 'file', expected: object or string");
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        fails(json!({"foo": 1}), "Block format 'qcow2' does not support the option 'foo'");
        fails(
            json!({"nested": {"key-secret": "a", "b": 1}}),
            "Block format 'qcow2' does not support the option 'nested.b'",
        );
        fails(json!({"nested": {}}), "Parameter 'nested.key-secret' is missing");
        fails(json!({"lazy-refcounts": "maybe"}), "Parameter 'lazy-refcounts' expects 'on' or 'off'");
        fails(json!({"cache-size": "x"}), "Parameter 'cache-size' expects a non-negative number below 2^64");
        fails(json!({"cache-size": "-1"}), "Value '-1' is out of range for parameter 'cache-size'");
        fails(json!({"cache-size": -1}), "Parameter 'cache-size' expects a non-negative number below 2^64");
        fails(json!({"mode": "sure"}), "invalid parameter value: sure");
        fails(json!({"seconds": "1k"}), "Parameter 'seconds' expects a number");
        fails(
            json!({"seconds": "18446744073709551616"}),
            "Value '18446744073709551616' is too large for parameter 'seconds'",
        );
        fails(json!({"nested": 1}), "Invalid parameter type for 'nested', expected: object");
    }

    #[test]
    fn common_options_are_taken_out() {
        let Value::Object(mut tree) = json!({
            "driver": "raw", "cache": {"direct": "on"}, "read-only": true, "size": 5, "discard": "on"
        }) else {
            unreachable!()
        };
        let common = CommonOptions::take(&mut tree).expect("good options");
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["size"]);
        assert_eq!(common.cache.direct, Some(BoolOpt(true)));
        assert_eq!(common.discard, Some(DiscardMode::Unmap));
    }

    #[test]
    fn modes_have_names() {
        assert_eq!(CacheMode::from_name("none"), Some(CacheMode::NONE));
        assert_eq!(CacheMode::from_name("nothing"), None);
        assert_eq!(AioMode::from_name("io_uring"), Some(AioMode::IoUring));
        assert_eq!(DiscardMode::from_name("off"), Some(DiscardMode::Ignore));
        assert_eq!(DetectZeroes::from_name("x"), None);
    }
}
