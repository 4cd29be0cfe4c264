//! The sources, and laying them over each other.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::de::NodeDeserializer;
use super::node::{Node, Origin, Value, join};
use super::{ConfigError, Validate};

/// What an environment variable's name starts with to be part of the configuration.
pub const ENV_PREFIX: &str = "FOREBAY_";

/// Between the parts of a key in the name of an environment variable.
const ENV_SEPARATOR: &str = "__";

const CONTRADICTION: &str = "one sets a key as a whole, another a key below it";

/// The sources of a configuration. The order in which they are given does not matter: flags win
/// over the environment, that over files, those over the defaults. Within one kind the later wins.
#[derive(Debug, Clone)]
pub struct Layers {
    file: Node,
    env: Node,
    flags: Node,
}

impl Default for Layers {
    fn default() -> Self {
        Self::new()
    }
}

impl Layers {
    /// Defaults only.
    pub fn new() -> Self {
        Self {
            file: Node::empty(),
            env: Node::empty(),
            flags: Node::empty(),
        }
    }

    /// Adds a TOML file.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::ReadFile {
            path: PathBuf::from(path),
            source,
        })?;
        self.file_text(path, &text)
    }

    /// Adds TOML text; `path` is only what errors call it.
    pub fn file_text(mut self, path: &Path, text: &str) -> Result<Self, ConfigError> {
        self.file.merge(Node::from_file(path, text)?);
        Ok(self)
    }

    /// Adds every variable named `FOREBAY_…`, such as
    /// `FOREBAY_STORAGE__JOURNAL_FILE_BYTES=64MiB` for `storage.journal_file_bytes`. Names in
    /// `reserved` are passed over: they mean something else to the program. `main` passes
    /// [`std::env::vars_os`].
    pub fn env(
        mut self,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
        reserved: &[&str],
    ) -> Result<Self, ConfigError> {
        let mut ours = Vec::new();
        for (name, value) in vars {
            // A name that is not Unicode cannot start with the prefix and be a key as well.
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(ENV_PREFIX) && !reserved.contains(&name.as_str()) {
                ours.push((name, value));
            }
        }
        // The order of the environment is nobody's intention.
        ours.sort();
        for (name, value) in ours {
            let refuse = |reason| ConfigError::Env {
                name: name.clone(),
                reason,
            };
            let value = value.to_str().ok_or_else(|| refuse("the value is not Unicode"))?;
            let key = name.strip_prefix(ENV_PREFIX).unwrap_or(&name).to_lowercase();
            let parts: Vec<&str> = key.split(ENV_SEPARATOR).collect();
            if parts.iter().any(|part| part.is_empty()) {
                return Err(refuse("a part of the key is empty"));
            }
            if self.env.contradicts(&parts) {
                return Err(refuse(CONTRADICTION));
            }
            let origin = Origin::Env(Arc::from(name.as_str()));
            self.env.merge(Node::leaf(&parts, value, &origin));
        }
        Ok(self)
    }

    /// Adds overrides of the form `dotted.key=value`.
    pub fn flags<S: AsRef<str>>(
        mut self,
        overrides: impl IntoIterator<Item = S>,
    ) -> Result<Self, ConfigError> {
        for text in overrides {
            let text = text.as_ref();
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            let refuse = |reason| ConfigError::Flag {
                text: key.to_owned(),
                reason,
            };
            let parts: Vec<&str> = key.trim().split('.').collect();
            if !text.contains('=') || parts.iter().any(|part| part.is_empty()) {
                return Err(refuse("not of the form dotted.key=value"));
            }
            if self.flags.contradicts(&parts) {
                return Err(refuse(CONTRADICTION));
            }
            let origin = Origin::Flag(Arc::from(key.trim()));
            self.flags.merge(Node::leaf(&parts, value, &origin));
        }
        Ok(self)
    }

    /// The defaults alone, and all layers over them.
    fn merged<T: Serialize + Default>(&self) -> Result<(Node, Node), ConfigError> {
        let default =
            toml::Value::try_from(T::default()).map_err(|source| ConfigError::Defaults { source })?;
        let default = Node::from_default(default);
        let mut merged = default.clone();
        for layer in [&self.file, &self.env, &self.flags] {
            merged.merge(layer.clone());
        }
        Ok((default, merged))
    }

    /// Every key that has a value, in the order of its name, with where the value comes from. Secrets
    /// are hidden.
    ///
    /// # Errors
    /// As [`Layers::load`].
    pub fn effective<T>(&self) -> Result<Vec<Effective>, ConfigError>
    where
        T: DeserializeOwned + Serialize + Default + Validate,
    {
        let config = self.load::<T>()?;
        let (_, merged) = self.merged::<T>()?;
        let shown = toml::Value::try_from(&config).map_err(|source| ConfigError::Defaults { source })?;
        let mut found = Vec::new();
        flatten(&shown, "", &merged, &mut found);
        Ok(found)
    }

    /// All that is wrong with a configuration, the worst of each key: what is found first is left
    /// out before the next is looked for. Empty where [`Layers::load`] succeeds.
    #[must_use]
    pub fn problems<T>(&self) -> Vec<ConfigError>
    where
        T: DeserializeOwned + Serialize + Default + Validate,
    {
        let mut left = self.clone();
        let mut problems = Vec::new();
        while let Err(error) = left.load::<T>() {
            let key = error.key().map(str::to_owned);
            problems.push(error);
            // What no layer has set cannot be left out: nothing after it can be seen.
            if !key.is_some_and(|key| left.remove(&key)) {
                break;
            }
        }
        problems
    }

    /// Takes a key out of every layer; whether there was one.
    fn remove(&mut self, key: &str) -> bool {
        let parts: Vec<&str> = key.split('[').next().unwrap_or(key).split('.').collect();
        let mut found = false;
        for layer in [&mut self.file, &mut self.env, &mut self.flags] {
            found |= layer.remove(&parts);
        }
        found
    }

    /// Reads all layers into `T` and validates it.
    pub fn load<T>(&self) -> Result<T, ConfigError>
    where
        T: DeserializeOwned + Serialize + Default + Validate,
    {
        let (default, merged) = self.merged::<T>()?;
        let config = T::deserialize(NodeDeserializer::root(merged.clone()))
            .map_err(|error| suggest(error.into_config(), &default))?;
        config.validate().map_err(|error| with_origin(error, &merged))?;
        Ok(config)
    }
}

/// A value in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// Full dotted name.
    pub key: String,
    /// `***` where it is a secret.
    pub value: toml::Value,
    /// Where it was set.
    pub origin: Origin,
}

fn flatten(value: &toml::Value, key: &str, merged: &Node, found: &mut Vec<Effective>) {
    if let toml::Value::Table(table) = value {
        for (part, value) in table {
            flatten(value, &join(key, part), merged, found);
        }
        return;
    }
    let node = merged.closest(key);
    // Above the key there is only what other keys are in: the value is a default of the type itself.
    let origin = match node.value {
        Value::Table(_) => Origin::Default,
        _ => node.origin.clone(),
    };
    found.push(Effective {
        key: key.to_owned(),
        value: value.clone(),
        origin,
    });
}

/// The environment variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', ENV_SEPARATOR).to_uppercase())
}

/// A key that exists under another part is worth a hint when nothing beside it is close.
fn suggest(error: ConfigError, default: &Node) -> ConfigError {
    let ConfigError::UnknownKey {
        key,
        origin,
        nearest: None,
    } = error
    else {
        return error;
    };
    let mut found = Vec::new();
    default.named(key.rsplit('.').next().unwrap_or(&key), "", &mut found);
    let nearest = found.into_iter().next();
    ConfigError::UnknownKey { key, origin, nearest }
}

fn with_origin(error: ConfigError, merged: &Node) -> ConfigError {
    let ConfigError::Invalid {
        key,
        origin: None,
        reason,
    } = error
    else {
        return error;
    };
    let node = merged.closest(&key);
    // A table is no answer: one of the keys below it may come from somewhere else.
    let origin = (!matches!(node.value, Value::Table(_))).then(|| node.origin.clone());
    ConfigError::Invalid { key, origin, reason }
}

/// The whole configuration as TOML with secrets hidden, to be logged once at start.
pub fn effective_toml<T: Serialize>(config: &T) -> String {
    let text = toml::Table::try_from(config).and_then(|table| toml::to_string(&table));
    text.unwrap_or_else(|error| format!("# the configuration cannot be shown: {error}\n"))
}
