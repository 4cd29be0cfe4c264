//! The merged configuration before it has a type: a tree of values that know their origin.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// Line, from 1.
        line: usize,
    },
    /// By the environment variable of this name.
    Env(Arc<str>),
    /// By the flag for this dotted key.
    Flag(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(key) => write!(f, "flag {key}"),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Text(String),
    /// From the environment or a flag: read as whatever type its key has.
    Untyped(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(_) => f.write_str("a table"),
            Self::Array(items) => write!(f, "an array of {}", items.len()),
            Self::Text(text) | Self::Untyped(text) => write!(f, "{text:?}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

impl Node {
    pub(super) fn empty() -> Self {
        Self {
            origin: Origin::Default,
            value: Value::Table(BTreeMap::new()),
        }
    }

    /// Lays `over` over `self`: tables key by key, anything else as a whole.
    pub(super) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Table(below), Value::Table(above)) => {
                for (key, node) in above {
                    match below.get_mut(&key) {
                        Some(existing) => existing.merge(node),
                        None => {
                            below.insert(key, node);
                        }
                    }
                }
            }
            (_, value) => {
                *self = Node {
                    origin: over.origin,
                    value,
                }
            }
        }
    }

    /// Takes out what lies at `parts`; whether there was anything. A leaf above them goes as a whole.
    pub(super) fn remove(&mut self, parts: &[&str]) -> bool {
        let (Value::Table(table), Some((part, rest))) = (&mut self.value, parts.split_first()) else {
            return false;
        };
        match table.get_mut(*part) {
            Some(node) if !rest.is_empty() && matches!(node.value, Value::Table(_)) => node.remove(rest),
            Some(_) => table.remove(*part).is_some(),
            None => false,
        }
    }

    /// A tree with one untyped leaf.
    pub(super) fn leaf(dotted: &[&str], text: &str, origin: &Origin) -> Node {
        let leaf = Node {
            origin: origin.clone(),
            value: Value::Untyped(text.to_owned()),
        };
        dotted.iter().rev().fold(leaf, |node, key| Node {
            origin: origin.clone(),
            value: Value::Table(BTreeMap::from([((*key).to_owned(), node)])),
        })
    }

    /// Whether a leaf at `parts` would hide, or be hidden by, one that is already here. Within one
    /// layer nobody means that.
    pub(super) fn contradicts(&self, parts: &[&str]) -> bool {
        match (&self.value, parts.split_first()) {
            (Value::Table(table), Some((part, rest))) => {
                table.get(*part).is_some_and(|node| node.contradicts(rest))
            }
            (Value::Table(_), None) => true,
            (_, rest) => rest.is_some(),
        }
    }

    pub(super) fn from_file(path: &Path, text: &str) -> Result<Node, ConfigError> {
        let path: Arc<Path> = path.into();
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            path: PathBuf::from(&*path),
            line: error.span().map_or(1, |span| line_at(text, span.start)),
            message: error.message().to_owned(),
        })?;
        let origin = |offset| Origin::File {
            path: Arc::clone(&path),
            line: line_at(text, offset),
        };
        Ok(from_parsed(DeValue::Table(table.into_inner()), 0, &origin))
    }

    /// Reads a value written inline, as in `FOREBAY_HOSTS='["a", "b"]'`.
    pub(super) fn from_inline(text: &str, origin: &Origin) -> Option<Node> {
        let value = DeValue::parse(text).ok()?;
        Some(from_parsed(value.into_inner(), 0, &|_| origin.clone()))
    }

    pub(super) fn from_default(value: toml::Value) -> Node {
        let value = match value {
            toml::Value::Table(table) => {
                // A secret's default went through its hidden form and is lost; what is left out
                // here is filled in by the type's own `serde(default)`.
                let shown = table
                    .into_iter()
                    .filter(|(_, v)| v.as_str() != Some(super::secret::HIDDEN));
                Value::Table(
                    shown
                        .map(|(key, value)| (key, Self::from_default(value)))
                        .collect(),
                )
            }
            toml::Value::Array(items) => Value::Array(items.into_iter().map(Self::from_default).collect()),
            toml::Value::String(text) => Value::Text(text),
            toml::Value::Integer(value) => Value::Integer(value.into()),
            toml::Value::Float(value) => Value::Float(value),
            toml::Value::Boolean(value) => Value::Bool(value),
            toml::Value::Datetime(value) => Value::Text(value.to_string()),
        };
        Node {
            origin: Origin::Default,
            value,
        }
    }

    /// The node at a dotted key, or the innermost one above it that exists.
    pub(super) fn closest(&self, dotted: &str) -> &Node {
        let mut node = self;
        for key in dotted.split('.') {
            match &node.value {
                Value::Table(table) if table.contains_key(key) => {
                    node = table.get(key).unwrap_or(node);
                }
                _ => return node,
            }
        }
        node
    }

    /// Dotted names of all keys whose last part is `name`.
    pub(super) fn named(&self, name: &str, prefix: &str, found: &mut Vec<String>) {
        let Value::Table(table) = &self.value else {
            return;
        };
        for (key, node) in table {
            let dotted = join(prefix, key);
            if key == name {
                found.push(dotted.clone());
            }
            node.named(name, &dotted, found);
        }
    }
}

pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn from_parsed(value: DeValue<'_>, offset: usize, origin: &dyn Fn(usize) -> Origin) -> Node {
    let value = match value {
        DeValue::Table(table) => Value::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    let offset = key.span().start;
                    let node = from_parsed(value.into_inner(), offset, origin);
                    (key.into_inner().into_owned(), node)
                })
                .collect(),
        ),
        DeValue::Array(items) => {
            let node = |item: Spanned<DeValue<'_>>| {
                let offset = item.span().start;
                from_parsed(item.into_inner(), offset, origin)
            };
            Value::Array(items.into_iter().map(node).collect())
        }
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(integer) => {
            let text = integer.as_str();
            // What does not fit even here stays too large for the type of any key.
            let limit = if text.starts_with('-') {
                i128::MIN
            } else {
                i128::MAX
            };
            Value::Integer(i128::from_str_radix(text, integer.radix()).unwrap_or(limit))
        }
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(value) => Value::Float(value),
            Err(_malformed) => Value::Text(float.to_string()),
        },
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(value) => Value::Text(value.to_string()),
    };
    Node {
        origin: origin(offset),
        value,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
