//! Layered configuration: defaults ← TOML file ← environment ← flags.
//!
//! 1. [`Layers`] collects the sources; each value remembers where it came from.
//! 2. [`Layers::load`] lays them over `T::default()`, key by key, and reads the result into `T`.
//!    A key that `T` does not have is refused with its full dotted name, its source and the
//!    nearest key that exists; so is a value of the wrong type.
//! 3. [`Validate::validate`] checks what types cannot say.
//! 4. [`effective_toml`] prints the outcome for the log, secrets hidden; [`Layers::effective`] says
//!    where each value comes from, [`Layers::problems`] all that is wrong, and [`reference`] what
//!    can be configured at all.
//!
//! Nothing here reads the process environment or its arguments by itself: `main` passes them in.

mod de;
mod error;
mod layers;
mod node;
mod reference;
mod secret;
mod size;
#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use layers::{ENV_PREFIX, Effective, Layers, effective_toml};
pub use node::Origin;
pub use reference::{Key, Section, reference};
pub use secret::Secret;
pub use size::{ByteSize, HumanDuration, ParseUnitError};

/// Checks of a configuration that its types cannot make.
pub trait Validate {
    /// Refuses a configuration that must not be used; the error names the key, relative to
    /// `self`. The caller prefixes it with [`ConfigError::under`]:
    ///
    /// ```
    /// # use forebay_runtime::config::{ConfigError, Validate};
    /// struct Storage { journals: u32 }
    /// struct Config { storage: Storage }
    ///
    /// impl Validate for Storage {
    ///     fn validate(&self) -> Result<(), ConfigError> {
    ///         if self.journals == 0 {
    ///             return Err(ConfigError::invalid("journals", "0 is not allowed, at least 1"));
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// impl Validate for Config {
    ///     fn validate(&self) -> Result<(), ConfigError> {
    ///         self.storage.validate().map_err(|error| error.under("storage"))
    ///     }
    /// }
    /// # let bad = Config { storage: Storage { journals: 0 } };
    /// # assert!(bad.validate().unwrap_err().to_string().contains("storage.journals"));
    /// ```
    fn validate(&self) -> Result<(), ConfigError>;
}
