//! What went wrong with the object store, by what the caller can do about it.

use forebay_record::object::ObjectError;

/// A failure of the object store. `place` is the bucket with prefix and endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such object. To a reader: the plan is stale (I23).
    #[error("{place} has no object {name}")]
    NotFound {
        /// Where.
        place: String,
        /// Which object.
        name: String,
    },
    /// The store says no, and will say so again until someone changes something.
    #[error("{place} refused to {op} {name}: {reason}; {hint}")]
    Refused {
        /// Where.
        place: String,
        /// What was asked.
        op: &'static str,
        /// Of which object.
        name: String,
        /// What the store said.
        reason: String,
        /// What to look at.
        hint: &'static str,
    },
    /// No answer, or not now. A write may or may not have been done.
    #[error("{place} did not {op} {name}: {reason}")]
    Unavailable {
        /// Where.
        place: String,
        /// What was asked.
        op: &'static str,
        /// Of which object.
        name: String,
        /// What happened.
        reason: String,
    },
    /// The object is not what it should be.
    #[error("object {name} in {place} is corrupt: {reason}")]
    Corrupt {
        /// Where.
        place: String,
        /// Which object.
        name: String,
        /// What is wrong, with expected and found.
        reason: String,
    },
}

impl StoreError {
    /// One word for metrics.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Refused { .. } => "refused",
            Self::Unavailable { .. } => "unavailable",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// Why an object store cannot be used as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The settings make no client.
    #[error("object store {place} cannot be opened: {reason}")]
    Settings {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// Another cluster's objects are there.
    #[error(
        "{place} belongs to cluster {found}, this is cluster {cluster}: two clusters in one place would \
         delete each other's objects; set another prefix in object_store.url"
    )]
    Foreign {
        /// Where.
        place: String,
        /// This cluster.
        cluster: String,
        /// The cluster that uses it.
        found: String,
    },
    /// A try at an operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a run was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object store failed. What was written is given up; another try needs another name.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The batches are not the run that was announced.
    #[error("object {name} cannot be written: {source}")]
    Run {
        /// The object.
        name: String,
        /// What is wrong with them.
        source: ObjectError,
    },
}
