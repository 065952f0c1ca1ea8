//! Deserializes option structs from JSON values that may all be strings, keeping the dotted key of a mistake.

use std::fmt::Display;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde_json::Value;

use super::{BoolOpt, OptionError};

type Result<T> = std::result::Result<T, OptionError>;

impl OptionError {
    /// The same mistake seen from one level further up.
    fn below(mut self, parent: &str) -> Self {
        let key = match &mut self {
            Self::UnknownToFormat { key, .. }
            | Self::UnknownToProtocol { key, .. }
            | Self::Unknown { key }
            | Self::Expects { key, .. }
            | Self::ExpectsSize { key }
            | Self::TooLarge { key, .. }
            | Self::OutOfRange { key, .. }
            | Self::NotAccepted { key, .. }
            | Self::WrongType { key, .. }
            | Self::Missing { key }
            | Self::Custom { key, .. } => key,
        };
        *key = if key.is_empty() { parent.to_owned() } else { format!("{parent}.{key}") };
        self
    }
}

/// Said of a size that is none of ours to hold; the text of the size stands where an expectation would.
pub(super) const OUT_OF_RANGE: Unexpected<'static> = Unexpected::Other("a size out of range");
/// Said of a number that 64 bits do not hold, in the same way.
pub(super) const TOO_LARGE: Unexpected<'static> = Unexpected::Other("a number out of range");
/// Said of what is no size.
pub(super) const NO_SIZE: Unexpected<'static> = Unexpected::Other("no size");

impl de::Error for OptionError {
    fn custom<T: Display>(text: T) -> Self {
        Self::Custom { key: String::new(), text: text.to_string() }
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let text = expected.to_string();
        // Derived visitors name the struct they build; a user knows it as an object.
        let expected = if text.starts_with("struct ") { "object".to_owned() } else { text };
        Self::WrongType { key: String::new(), expected }
    }
    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match unexpected {
            NO_SIZE => Self::ExpectsSize { key: String::new() },
            TOO_LARGE => Self::TooLarge { key: String::new(), value: expected.to_string() },
            OUT_OF_RANGE => Self::OutOfRange { key: String::new(), value: expected.to_string() },
            _ => Self::Expects { key: String::new(), expected: expected.to_string() },
        }
    }
    fn unknown_variant(value: &str, _: &'static [&'static str]) -> Self {
        Self::NotAccepted { key: String::new(), value: value.to_owned() }
    }
    fn unknown_field(key: &str, _: &'static [&'static str]) -> Self {
        Self::Unknown { key: key.to_owned() }
    }
    fn missing_field(key: &'static str) -> Self {
        Self::Missing { key: key.to_owned() }
    }
}

/// A value on its way into a typed option.
pub(super) struct ValueDe(pub(super) Value);

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            match &self.0 {
                Value::String(text) => match text.parse::<$type>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(OptionError::invalid_value(Unexpected::Str(text), &"a number")),
                },
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for ValueDe {
    type Error = OptionError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => visitor.visit_seq(Items { items: items.into_iter(), index: 0 }),
            Value::Object(tree) => visitor.visit_map(Entries { entries: tree.into_iter(), value: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match &self.0 {
            Value::String(word) => match BoolOpt::from_word(word) {
                Some(value) => visitor.visit_bool(value.0),
                None => Err(OptionError::invalid_value(Unexpected::Str(word), &"'on' or 'off'")),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        match self.0 {
            Value::String(word) => visitor.visit_enum(Word(word)),
            _ => Err(OptionError::invalid_type(Unexpected::Other("value"), &"string")),
        }
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

struct Word(String);

impl<'de> EnumAccess<'de> for Word {
    type Error = OptionError;
    type Variant = Bare;
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Bare)> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Bare))
    }
}

/// A variant without content, the only kind that options have.
struct Bare;

impl<'de> VariantAccess<'de> for Bare {
    type Error = OptionError;
    fn unit_variant(self) -> Result<()> {
        Ok(())
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value> {
        Err(OptionError::invalid_type(Unexpected::UnitVariant, &"object"))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value> {
        Err(OptionError::invalid_type(Unexpected::UnitVariant, &"list"))
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value> {
        Err(OptionError::invalid_type(Unexpected::UnitVariant, &"object"))
    }
}

struct Entries {
    entries: serde_json::map::IntoIter,
    value: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = OptionError;
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let name = key.as_str().into_deserializer();
        let name = seed.deserialize::<de::value::StrDeserializer<'_, OptionError>>(name)?;
        self.value = Some((key, value));
        Ok(Some(name))
    }
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let (key, value) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(ValueDe(value)).map_err(|e| e.below(&key))
    }
}

struct Items {
    items: std::vec::IntoIter<Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = OptionError;
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(ValueDe(value)).map(Some).map_err(|e| e.below(&index.to_string()))
    }
}
