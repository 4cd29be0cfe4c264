//! Why bytes from the object store are not what they should be.

use crate::Offset;
use crate::batch::BatchError;
use crate::state::StateError;

/// Why bytes are not an object, a manifest or a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The bytes end inside a field.
    #[error("{what} truncated: {have} bytes, {need} needed")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Bytes at hand.
        have: u64,
        /// Bytes needed at least.
        need: u64,
    },
    /// Not the part expected.
    #[error("{what} has magic {found:02x?}, {expected:02x?} expected")]
    Magic {
        /// Which part.
        what: &'static str,
        /// As found.
        found: [u8; 4],
        /// As it should be.
        expected: [u8; 4],
    },
    /// A later format.
    #[error("{what} has format version {version}, which is not supported")]
    Version {
        /// Which part.
        what: &'static str,
        /// As stored.
        version: u16,
    },
    /// Damaged.
    #[error("{what} has checksum {found:08x}, {expected:08x} expected")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// As the bytes give it.
        found: u32,
        /// As stored.
        expected: u32,
    },
    /// A field that contradicts another, or is not supported.
    #[error("{what} is {found}, {expected} expected")]
    Value {
        /// Which field.
        what: &'static str,
        /// As stored.
        found: u64,
        /// What would be right.
        expected: String,
    },
    /// A count over its bound.
    #[error("{what}: {count}, at most {max} are possible")]
    Count {
        /// What is counted.
        what: &'static str,
        /// As stored or given.
        count: u64,
        /// The bound.
        max: u64,
    },
    /// A name that is no text, empty or too long.
    #[error("{0} is not a name of 1 to 255 bytes of text")]
    Name(&'static str),
    /// Offsets that do not continue each other.
    #[error("a batch or range begins at {found}, {expected} expected")]
    Gap {
        /// Where the batch begins.
        found: Offset,
        /// Where it should.
        expected: Offset,
    },
    /// A run without batches.
    #[error("the run at {0} has no batches")]
    Empty(Offset),
    /// Bytes that are no batch.
    #[error("the bytes after {at} are no batch: {source}")]
    Batch {
        /// End of the last whole batch.
        at: Offset,
        /// Why not.
        source: BatchError,
    },
    /// Bytes that are no state.
    #[error(transparent)]
    State(#[from] StateError),
}

impl ObjectError {
    pub(super) fn value(what: &'static str, found: u64, expected: impl Into<String>) -> Self {
        Self::Value {
            what,
            found,
            expected: expected.into(),
        }
    }
}
