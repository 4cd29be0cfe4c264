//! What can go wrong with metadata above the store, and how a caller of the cluster sees it.
//!
//! Operations on the store end in [`MetaFailure`]; where they were asked for by a client, that
//! becomes a [`Failure`] of the error table. An unknown outcome stays unknown all the way.

use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;

use crate::record::{self, RecordError};
use crate::store::{Entry, LeaseError, ReadError, Regressed, TxnError};

/// Tries of a compare-and-swap loop before its caller is told that the key is contended. Each
/// lost try means that somebody else got through, so this many losses are not bad luck.
pub(crate) const TRIES_MAX: u32 = 64;

/// Why something in the metadata store could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaFailure {
    /// A read failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A transaction failed, or may have been applied.
    #[error(transparent)]
    Txn(#[from] TxnError),
    /// A lease was not granted or not ended.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A stored value cannot be used.
    #[error("value of {key} cannot be used")]
    Record {
        /// Where it is.
        key: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Somebody else was faster, again and again. Nothing was applied.
    #[error("{key} is contended: lost {tries} tries")]
    Contended {
        /// Which key.
        key: String,
        /// How often.
        tries: u32,
    },
    /// A counter has come to its end.
    #[error("counter {key} stands at {next}, {count} more ids were asked for")]
    Exhausted {
        /// Which counter.
        key: String,
        /// Where it stands.
        next: u64,
        /// Ids asked for.
        count: u64,
    },
    /// The store contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}

impl MetaFailure {
    /// The proof that the store went back in time, if that is what happened: the process has to
    /// stop (I24).
    #[must_use]
    pub const fn regressed(&self) -> Option<Regressed> {
        match self {
            Self::Read(ReadError::Regressed(regressed))
            | Self::Txn(TxnError::Regressed(regressed))
            | Self::Lease(LeaseError::Regressed(regressed)) => Some(*regressed),
            _ => None,
        }
    }

    /// The code of the error table.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Read(ReadError::Unavailable(_) | ReadError::Compacted { .. })
            | Self::Txn(TxnError::Unavailable(_))
            | Self::Lease(LeaseError::Unavailable(_))
            | Self::Contended { .. } => ErrorCode::Unavailable,
            Self::Txn(TxnError::Unknown(_)) => ErrorCode::OutcomeUnknown,
            Self::Read(ReadError::Refused(_) | ReadError::Regressed(_))
            | Self::Txn(TxnError::Refused(_) | TxnError::Regressed(_))
            | Self::Lease(LeaseError::Refused(_) | LeaseError::Regressed(_))
            | Self::Record { .. }
            | Self::Exhausted { .. }
            | Self::Inconsistent(_) => ErrorCode::Internal,
        }
    }
}

impl From<MetaFailure> for Failure {
    fn from(failure: MetaFailure) -> Self {
        let message = match &failure {
            MetaFailure::Record { source, .. } => format!("{failure}: {source}"),
            _ => failure.to_string(),
        };
        Self::new(failure.code(), message)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        MetaFailure::from(error).into()
    }
}

impl From<TxnError> for Failure {
    fn from(error: TxnError) -> Self {
        MetaFailure::from(error).into()
    }
}

/// Reads the message that an entry holds.
pub(crate) fn decode<M: prost::Message + Default>(entry: &Entry) -> Result<M, MetaFailure> {
    record::decode(&entry.value).map_err(|source| MetaFailure::Record {
        key: entry.key.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Unavailable, Unknown};

    #[test]
    fn an_unknown_outcome_is_never_reported_as_a_refusal() {
        let unknown = MetaFailure::from(TxnError::from(Unknown("connection lost".to_owned())));
        assert_eq!(unknown.code(), ErrorCode::OutcomeUnknown);
        let unavailable = MetaFailure::from(ReadError::from(Unavailable("no peer".to_owned())));
        assert_eq!(Failure::from(unavailable).code, ErrorCode::Unavailable);
    }

    #[test]
    fn a_damaged_record_names_its_key_and_the_damage() {
        let damaged = MetaFailure::Record {
            key: "/t/1".to_owned(),
            source: RecordError::Magic(3),
        };
        let failure = Failure::from(damaged);
        assert!(
            failure.message.contains("/t/1") && failure.message.contains("3 bytes"),
            "{failure}"
        );
    }
}
