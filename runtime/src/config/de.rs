//! From the merged tree to a typed configuration.
//!
//! A serde deserialiser of our own because three things must come together that no ready one
//! gives: the full key and the origin of a value in every error, unknown keys found without each
//! struct having to ask for it, and texts from the environment read as the type their key has.
//!
//! Limits: a struct with `#[serde(flatten)]` is read like a map, so its unknown keys go unnoticed
//! and its values from the environment stay texts. A default that is an enum alternative with data
//! cannot be overridden by another alternative with data, since tables are merged. Neither belongs
//! into a configuration.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::error::ConfigError;
use super::node::{Node, Value, join};
use super::secret::{HIDDEN, SECRET_NEWTYPE};

pub(super) struct NodeDeserializer {
    node: Node,
    key: String,
    secret: bool,
}

/// An error that may not know yet which key it is about; the innermost value tells it.
#[derive(Debug)]
pub(super) enum Error {
    About(Box<ConfigError>),
    Reason(String),
    MissingField(&'static str),
}

impl Error {
    pub(super) fn into_config(self) -> ConfigError {
        match self {
            Self::About(error) => *error,
            Self::Reason(reason) => ConfigError::invalid("configuration", reason),
            Self::MissingField(field) => ConfigError::MissingKey {
                key: field.to_owned(),
            },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::About(error) => error.fmt(f),
            Self::Reason(reason) => f.write_str(reason),
            Self::MissingField(field) => write!(f, "missing key {field}"),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::Reason(message.to_string())
    }

    fn invalid_type(_unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Reason(format!("expected {expected}"))
    }

    fn invalid_value(_unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Reason(format!("expected {expected}"))
    }

    fn unknown_variant(_variant: &str, expected: &'static [&'static str]) -> Self {
        Self::Reason(format!("expected one of {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field)
    }
}

/// What an error needs to know of the value it is about.
struct Place {
    key: String,
    value: String,
    origin: super::Origin,
}

impl Place {
    fn locate(self, error: Error) -> Error {
        let Self { key, value, origin } = self;
        let config = match error {
            Error::About(_) => return error,
            Error::Reason(reason) => ConfigError::BadValue {
                key,
                value,
                origin,
                reason,
            },
            Error::MissingField(field) => ConfigError::MissingKey {
                key: join(&key, field),
            },
        };
        Error::About(Box::new(config))
    }
}

impl NodeDeserializer {
    pub(super) fn root(node: Node) -> Self {
        Self {
            node,
            key: String::new(),
            secret: false,
        }
    }

    fn place(&self) -> Place {
        let value = if self.secret {
            HIDDEN.to_owned()
        } else {
            self.node.value.to_string()
        };
        let key = if self.key.is_empty() {
            "configuration"
        } else {
            &self.key
        };
        Place {
            key: key.to_owned(),
            value,
            origin: self.node.origin.clone(),
        }
    }

    fn child(key: String, node: Node, secret: bool) -> Self {
        Self { node, key, secret }
    }

    /// Refuses the first key that is not among `known`.
    fn check_keys(&self, known: &[&str]) -> Result<(), Error> {
        let Value::Table(table) = &self.node.value else {
            return Ok(());
        };
        let Some((key, node)) = table.iter().find(|(key, _)| !known.contains(&key.as_str())) else {
            return Ok(());
        };
        let unknown = ConfigError::UnknownKey {
            key: join(&self.key, key),
            origin: node.origin.clone(),
            nearest: nearest(key, known).map(|near| join(&self.key, near)),
        };
        Err(Error::About(Box::new(unknown)))
    }

    /// A text that was meant as a table or an array.
    fn expand(mut self, bracket: char) -> Result<Self, Error> {
        if let Value::Untyped(text) = &self.node.value
            && text.trim_start().starts_with(bracket)
        {
            let Some(node) = Node::from_inline(text.trim(), &self.node.origin) else {
                let reason = "expected an inline TOML value after the bracket".to_owned();
                // Not shown: a secret may be somewhere in it.
                let place = Place {
                    value: "an inline value".to_owned(),
                    ..self.place()
                };
                return Err(place.locate(Error::Reason(reason)));
            };
            self.node = node;
        }
        Ok(self)
    }

    fn visit_any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Self { node, key, secret } = self;
        match node.value {
            Value::Table(table) => visitor.visit_map(Entries {
                key,
                secret,
                entries: table.into_iter(),
                pending: None,
            }),
            Value::Array(items) => visitor.visit_seq(Items {
                key,
                secret,
                items: items.into_iter().enumerate(),
            }),
            Value::Text(text) | Value::Untyped(text) => visitor.visit_string(text),
            Value::Integer(value) => match (i64::try_from(value), u64::try_from(value)) {
                (Ok(value), _) => visitor.visit_i64(value),
                (_, Ok(value)) => visitor.visit_u64(value),
                _ => visitor.visit_i128(value),
            },
            Value::Float(value) => visitor.visit_f64(value),
            Value::Bool(value) => visitor.visit_bool(value),
        }
    }

    /// Reads an untyped text as a number or a boolean, where that is what the key holds; a text
    /// that is none stays a text, which the visitor then refuses.
    fn retype(mut self, parse: impl FnOnce(&str) -> Option<Value>) -> Self {
        if let Value::Untyped(text) = &self.node.value
            && let Some(value) = parse(text.trim())
        {
            self.node.value = value;
        }
        self
    }
}

fn parse_integer(text: &str) -> Option<Value> {
    text.replace('_', "").parse().ok().map(Value::Integer)
}

macro_rules! retyped {
    ($parse:expr => $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.retype($parse).deserialize_any(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDeserializer {
    type Error = Error;

    retyped!(parse_integer =>
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    retyped!(|text| text.parse().ok().map(Value::Float) => deserialize_f32 deserialize_f64);
    retyped!(|text| text.parse().ok().map(Value::Bool) => deserialize_bool);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let place = self.place();
        self.visit_any(visitor).map_err(|error| place.locate(error))
    }

    /// An empty variable or flag unsets an optional key.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Untyped(text) if text.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == SECRET_NEWTYPE {
            self.secret = true;
            if matches!(&self.node.value, Value::Text(t) | Value::Untyped(t) if t == HIDDEN) {
                let reason = "this is the hidden form of a secret, not a secret".to_owned();
                return Err(self.place().locate(Error::Reason(reason)));
            }
        }
        visitor.visit_newtype_struct(self)
    }

    /// An array, or a text with commas between the items.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut this = self.expand('[')?;
        if let Value::Untyped(text) = &this.node.value {
            let item = |text: &str| Node {
                origin: this.node.origin.clone(),
                value: Value::Untyped(text.trim().to_owned()),
            };
            let items = text.split(',').filter(|text| !text.trim().is_empty()).map(item);
            this.node.value = Value::Array(items.collect());
        }
        this.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.expand('{')?.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let this = self.expand('{')?;
        this.check_keys(fields)?;
        // The key of the struct itself stays empty at the root, for the name of a missing field.
        let place = Place {
            key: this.key.clone(),
            ..this.place()
        };
        this.visit_any(visitor).map_err(|error| place.locate(error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let place = self.place();
        let chosen = match self.node.value {
            Value::Text(text) | Value::Untyped(text) => visitor.visit_enum(text.into_deserializer()),
            Value::Table(table) if table.len() == 1 => {
                let (parent, secret) = (self.key, self.secret);
                let mut alternatives = table.into_iter().map(|(name, node)| {
                    let payload = Self::child(join(&parent, &name), node, secret);
                    Alternative { name, payload }
                });
                match alternatives.next() {
                    Some(alternative) => visitor.visit_enum(alternative),
                    None => Err(Error::Reason("expected one alternative".to_owned())),
                }
            }
            _ => Err(Error::Reason("expected the name of one alternative".to_owned())),
        };
        chosen.map_err(|error| place.locate(error))
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct identifier ignored_any
    }
}

struct Entries {
    key: String,
    secret: bool,
    entries: std::collections::btree_map::IntoIter<String, Node>,
    pending: Option<NodeDeserializer>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, node)) = self.entries.next() else {
            return Ok(None);
        };
        // A key may be read as a number (a map of ids), which the text form of it allows.
        let name_node = Node {
            origin: node.origin.clone(),
            value: Value::Untyped(name.clone()),
        };
        let key = join(&self.key, &name);
        self.pending = Some(NodeDeserializer::child(key.clone(), node, self.secret));
        seed.deserialize(NodeDeserializer::child(key, name_node, false))
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match self.pending.take() {
            Some(value) => seed.deserialize(value),
            None => Err(Error::Reason("a value was asked for before its key".to_owned())),
        }
    }
}

/// An alternative that carries data, written as a table of one key.
struct Alternative {
    name: String,
    payload: NodeDeserializer,
}

struct Payload(NodeDeserializer);

impl<'de> EnumAccess<'de> for Alternative {
    type Error = Error;
    type Variant = Payload;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Payload), Error> {
        let name = seed.deserialize(self.name.into_deserializer())?;
        Ok((name, Payload(self.payload)))
    }
}

impl<'de> VariantAccess<'de> for Payload {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Err(self
            .0
            .place()
            .locate(Error::Reason("expected nothing below this name".to_owned())))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_struct("", fields, visitor)
    }
}

struct Items {
    key: String,
    secret: bool,
    items: std::iter::Enumerate<std::vec::IntoIter<Node>>,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let key = format!("{}[{index}]", self.key);
        seed.deserialize(NodeDeserializer::child(key, node, self.secret))
            .map(Some)
    }
}

/// The known name with the fewest edits, if few enough to be a slip of the hand.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let edits_max = 1 + name.chars().count() / 4;
    let close = known.iter().map(|known| (edits(name, known), *known));
    close
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, known)| known)
}

/// Insertions, deletions and substitutions between two names (Levenshtein distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, c) in from.chars().enumerate() {
        let mut previous_row = row.iter().copied();
        let mut diagonal = previous_row.next().unwrap_or(0);
        let mut left = index + 1;
        let mut next_row = vec![left];
        for (above, other) in previous_row.zip(&to) {
            let substituted = diagonal + usize::from(c != *other);
            left = substituted.min(above + 1).min(left + 1);
            next_row.push(left);
            diagonal = above;
        }
        row = next_row;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_counts_single_changes() {
        for (from, to, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("a", "a", 0),
        ] {
            assert_eq!(edits(from, to), count, "{from} {to}");
        }
    }

    #[test]
    fn only_a_close_name_is_suggested() {
        let known = ["journal_file_bytes", "fsync", "listen"];
        assert_eq!(nearest("jornal_file_byte", &known), Some("journal_file_bytes"));
        assert_eq!(nearest("journal-file-bytes", &known), Some("journal_file_bytes"));
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("color", &known), None);
    }
}
