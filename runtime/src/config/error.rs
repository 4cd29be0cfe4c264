//! What can be wrong with a configuration. Every message names the key (or the line) and the
//! source, so that whoever reads it knows which file, variable or flag to change.

use std::io;
use std::path::PathBuf;

use super::node::Origin;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {}", .path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// An environment variable's name or value cannot be used.
    #[error("environment variable {name}: {reason}")]
    Env {
        /// The variable.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A flag is not of the form `dotted.key=value`, or contradicts an earlier one.
    #[error("flag {text:?}: {reason}")]
    Flag {
        /// The flag's key; its value may be a secret.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration has no such key.
    #[error("unknown key {key} ({origin}){}", did_you_mean(.nearest))]
    UnknownKey {
        /// Full dotted name.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A value of the wrong type or form.
    #[error("bad value for {key}: {value} ({origin}): {reason}")]
    BadValue {
        /// Full dotted name.
        key: String,
        /// The value as given; `***` if the key holds a secret.
        value: String,
        /// Where it was set.
        origin: Origin,
        /// What was expected.
        reason: String,
    },
    /// A key without a default is set nowhere.
    #[error("missing key {key}")]
    MissingKey {
        /// Full dotted name.
        key: String,
    },
    /// [`Validate`](super::Validate) refused.
    #[error("bad value for {key}{}: {reason}", from(.origin))]
    Invalid {
        /// Full dotted name.
        key: String,
        /// Where it was set, once known.
        origin: Option<Origin>,
        /// What is wrong with it.
        reason: String,
    },
    /// `T::default()` cannot be represented as TOML.
    #[error("the default configuration cannot be represented")]
    Defaults {
        /// What the serialiser said.
        source: toml::ser::Error,
    },
}

impl ConfigError {
    /// An error for [`Validate`](super::Validate): `key` is relative to the part being validated.
    pub fn invalid(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.into(),
            origin: None,
            reason: reason.into(),
        }
    }

    /// Full dotted name of the key it is about, where it is about one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::UnknownKey { key, .. }
            | Self::BadValue { key, .. }
            | Self::MissingKey { key }
            | Self::Invalid { key, .. } => Some(key),
            Self::ReadFile { .. }
            | Self::Syntax { .. }
            | Self::Env { .. }
            | Self::Flag { .. }
            | Self::Defaults { .. } => None,
        }
    }

    /// Puts the name of the enclosing part before the key of an [`ConfigError::Invalid`].
    #[must_use]
    pub fn under(self, part: &str) -> Self {
        match self {
            Self::Invalid { key, origin, reason } => Self::Invalid {
                key: format!("{part}.{key}"),
                origin,
                reason,
            },
            other => other,
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|key| format!(", did you mean {key}?"))
        .unwrap_or_default()
}

fn from(origin: &Option<Origin>) -> String {
    origin
        .as_ref()
        .map(|origin| format!(" ({origin})"))
        .unwrap_or_default()
}
