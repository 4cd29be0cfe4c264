//! What can be configured, told from the configuration's own type: no key has a second description.
//!
//! The names, kinds and texts come from the type's schema, whose texts are the documentation
//! comments of its fields; the defaults from `T::default()`. A section that is added to the type is
//! in the reference without anything else being done for it.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value};

use super::layers::variable;
use super::node::join;
use super::{ByteSize, ConfigError, HumanDuration, Secret};

/// What a kind of value is called in the schema, where JSON has no word for it.
const SIZE: &str = "size";
const DURATION: &str = "duration";
const SECRET: &str = "secret";

/// One section: the keys below one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, as in `[name]`; empty for keys outside of all sections.
    pub name: String,
    /// What it is about.
    pub text: String,
    /// Its keys, by name.
    pub keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Full dotted name.
    pub name: String,
    /// What its value is, such as `size` or `text`.
    pub kind: String,
    /// As TOML; none where it is not set by default.
    pub default: Option<String>,
    /// What it means.
    pub text: String,
    /// The environment variable that sets it.
    pub variable: String,
}

/// All keys of a configuration, section by section, both by name.
///
/// # Errors
/// Where the defaults cannot be represented.
pub fn reference<T: JsonSchema + Serialize + Default>() -> Result<Vec<Section>, ConfigError> {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let defaults = toml::Value::try_from(T::default()).map_err(|source| ConfigError::Defaults { source })?;
    let mut sections = Vec::new();
    let mut loose = Section {
        name: String::new(),
        text: String::new(),
        keys: Vec::new(),
    };
    for (name, schema) in properties(schema.as_value()) {
        let default = defaults.get(name);
        if properties(schema).next().is_some() {
            let mut keys = Vec::new();
            add(name, schema, default, &mut keys);
            sections.push(Section {
                name: name.clone(),
                text: text_of(schema),
                keys,
            });
        } else {
            add(name, schema, default, &mut loose.keys);
        }
    }
    if !loose.keys.is_empty() {
        sections.push(loose);
    }
    sections.sort_by(|one, other| one.name.cmp(&other.name));
    sections
        .iter_mut()
        .for_each(|section| section.keys.sort_by(|one, other| one.name.cmp(&other.name)));
    Ok(sections)
}

/// Adds a key, or those below it.
fn add(name: &str, schema: &Value, default: Option<&toml::Value>, keys: &mut Vec<Key>) {
    let mut below = properties(schema).peekable();
    if below.peek().is_none() {
        keys.push(Key {
            name: name.to_owned(),
            kind: kind_of(schema),
            default: default.map(toml::Value::to_string),
            text: text_of(schema),
            variable: variable(name),
        });
        return;
    }
    for (part, schema) in below {
        let default = default.and_then(|default| default.get(part));
        add(&join(name, part), schema, default, keys);
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(Map::iter)
}

/// The text of a schema on one line.
fn text_of(schema: &Value) -> String {
    let text = schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a value is, in words.
fn kind_of(schema: &Value) -> String {
    if let Some(format) = schema.get("format").and_then(Value::as_str)
        && [SIZE, DURATION, SECRET].contains(&format)
    {
        return format.to_owned();
    }
    let texts = |value: &Value| value.as_str().map(|text| format!("`{text}`"));
    let alternatives = ["oneOf", "anyOf"]
        .iter()
        .find_map(|key| schema.get(*key)?.as_array());
    if let Some(alternatives) = alternatives {
        let words = alternatives
            .iter()
            .filter(|one| one.get("type").and_then(Value::as_str) != Some("null"))
            .map(|one| one.get("const").and_then(texts).unwrap_or_else(|| kind_of(one)));
        return words.collect::<Vec<_>>().join(" or ");
    }
    if let Some(names) = schema.get("enum").and_then(Value::as_array) {
        return names.iter().filter_map(texts).collect::<Vec<_>>().join(" or ");
    }
    // An optional value has `null` beside its type.
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null"),
        Some(kind) => kind.as_str(),
        None => None,
    };
    match kind {
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("number") => "number".to_owned(),
        Some("array") => {
            let item = schema.get("items").map_or_else(String::new, kind_of);
            format!("list of {item}")
        }
        Some("object") => "table".to_owned(),
        _ => "text".to_owned(),
    }
}

fn named(format: &str) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": format})
}

macro_rules! schema_of_unit {
    ($type:ty, $format:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $format.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                named($format)
            }
        }
    };
}

schema_of_unit!(ByteSize, SIZE);
schema_of_unit!(HumanDuration, DURATION);

impl<T> JsonSchema for Secret<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        SECRET.into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        named(SECRET)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    /// Shape of a thing.
    #[derive(Serialize, JsonSchema, Default)]
    #[serde(rename_all = "lowercase")]
    #[allow(dead_code)]
    enum Shape {
        /// With corners.
        Square,
        /// Without.
        #[default]
        Round,
    }

    #[derive(Serialize, JsonSchema)]
    #[serde(default)]
    struct Part {
        /// How large
        /// it is.
        size: ByteSize,
        /// What it looks like.
        shape: Shape,
        /// Who may see it.
        password: Option<Secret<String>>,
        names: Vec<String>,
        /// Kept so long, if set.
        kept: Option<HumanDuration>,
        deep: Deep,
    }

    #[derive(Serialize, JsonSchema, Default)]
    struct Deep {
        /// On or off.
        on: bool,
    }

    impl Default for Part {
        fn default() -> Self {
            Self {
                size: ByteSize::mib(3),
                shape: Shape::default(),
                password: Some(Secret::new("x".to_owned())),
                names: vec!["a".to_owned()],
                kept: None,
                deep: Deep::default(),
            }
        }
    }

    #[derive(Serialize, JsonSchema, Default)]
    #[serde(default)]
    struct Whole {
        /// The part.
        part: Part,
        /// How many.
        count: u32,
    }

    #[test]
    fn every_key_is_told_with_its_kind_default_text_and_variable() {
        let sections = reference::<Whole>().unwrap();
        assert_eq!(sections.len(), 2);
        assert_eq!(
            (sections[0].name.as_str(), sections[0].keys[0].name.as_str()),
            ("", "count")
        );
        assert_eq!(
            (sections[1].name.as_str(), sections[1].text.as_str()),
            ("part", "The part.")
        );
        let shown: Vec<_> = sections[1]
            .keys
            .iter()
            .map(|key| {
                (
                    key.name.as_str(),
                    key.kind.as_str(),
                    key.default.as_deref(),
                    key.text.as_str(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("part.deep.on", "`true` or `false`", Some("false"), "On or off."),
                ("part.kept", "duration", None, "Kept so long, if set."),
                ("part.names", "list of text", Some("[\"a\"]"), ""),
                ("part.password", "secret", Some("\"***\""), "Who may see it."),
                (
                    "part.shape",
                    "`square` or `round`",
                    Some("\"round\""),
                    "What it looks like."
                ),
                ("part.size", "size", Some("\"3MiB\""), "How large it is."),
            ]
        );
        assert_eq!(sections[1].keys[0].variable, "FOREBAY_PART__DEEP__ON");
    }
}
