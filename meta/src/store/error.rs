//! What can go wrong with a metadata store, sorted by what the caller may conclude.
//!
//! A transaction's errors fall into three kinds that must never be mixed up: refused and
//! unavailable mean that nothing was applied, unknown means that it may have been. In doubt it is
//! unknown.

use std::time::Duration;

use super::types::{LeaseId, Revision};

/// A request that no retry will make right. Nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// A key, prefix or start is malformed.
    #[error("key {key:?} {why}")]
    Key {
        /// As given.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A key is too long.
    #[error("key of {bytes} bytes, {bytes_max} allowed")]
    KeyTooLong {
        /// As given.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A value is too large.
    #[error("value of {key:?} has {bytes} bytes, {bytes_max} allowed")]
    ValueTooLarge {
        /// Where it was to go.
        key: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Too much of something in one request.
    #[error("{count} {what} in one request, {count_max} allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        count_max: usize,
    },
    /// A transaction is too large as a whole.
    #[error("transaction of {bytes} bytes, {bytes_max} allowed")]
    TxnTooLarge {
        /// Its keys and values.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// One branch names a key twice.
    #[error("key {key:?} appears twice in one branch")]
    KeyTwice {
        /// Which.
        key: String,
    },
    /// A put names a lease that has ended.
    #[error("lease {} is unknown", .lease.map_or_else(|| "of a put".to_owned(), |id| id.to_string()))]
    LeaseNotFound {
        /// Which, where only one is named.
        lease: Option<LeaseId>,
    },
    /// A lease's time to live is out of bounds.
    #[error("time to live of {ttl:?}, {min:?} to {max:?} allowed")]
    Ttl {
        /// As given.
        ttl: Duration,
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A pinned revision lies in the future.
    #[error("the revision asked for is not reached, the store is at {current}")]
    FutureRevision {
        /// Where the store is.
        current: Revision,
    },
    /// A scan found more than its caller can take.
    #[error("more than {entries_max} entries under {prefix:?}")]
    TooManyEntries {
        /// The scan's prefix.
        prefix: String,
        /// The caller's limit.
        entries_max: usize,
    },
    /// The store's own words.
    #[error("refused by the metadata store: {0}")]
    Rejected(String),
}

/// The store could not be asked. Nothing was applied; later may be better.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata store unavailable: {0}")]
pub struct Unavailable(pub String);

/// The question went out and no answer came back: it may have been applied, or still be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("outcome unknown: {0}")]
pub struct Unknown(pub String);

/// The store is not the one it was: restored from a backup, or replaced (I24). The process has
/// to stop; what it believes may never have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Regressed {
    /// It answered from an earlier revision than one seen before.
    #[error("metadata store went back in time: revision {got} after {seen}")]
    Revision {
        /// The highest revision seen.
        seen: Revision,
        /// The answer's.
        got: Revision,
    },
    /// It answers under another cluster id.
    #[error("metadata store was replaced: etcd cluster {got:x} instead of {expected:x}")]
    Cluster {
        /// Of the first answer.
        expected: u64,
        /// Of this one.
        got: u64,
    },
}

/// Why a read has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The request is wrong.
    #[error(transparent)]
    Refused(#[from] BadRequest),
    /// The pinned revision is no longer kept; start over at the present.
    #[error("history before {at} is gone")]
    Compacted {
        /// A revision that is kept, not always the first one.
        at: Revision,
    },
    /// No answer in time.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The store went back; stop.
    #[error(transparent)]
    Regressed(#[from] Regressed),
}

/// Why a transaction has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// The request is wrong; not applied.
    #[error(transparent)]
    Refused(#[from] BadRequest),
    /// It was never sent; not applied.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It was sent; read before anything else is concluded.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The store went back; stop.
    #[error(transparent)]
    Regressed(#[from] Regressed),
}

/// Why a lease was not granted or not ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The request is wrong.
    #[error(transparent)]
    Refused(#[from] BadRequest),
    /// No answer in time. A lease that was granted unseen ends by itself.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The store went back; stop.
    #[error(transparent)]
    Regressed(#[from] Regressed),
}

/// Why a watch has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events were missed: read everything again and watch from there.
    #[error("history before {at} is gone")]
    Compacted {
        /// First revision still kept.
        at: Revision,
    },
    /// The prefix is malformed.
    #[error(transparent)]
    Refused(#[from] BadRequest),
    /// The store went back; stop.
    #[error(transparent)]
    Regressed(#[from] Regressed),
    /// The store was closed.
    #[error("metadata store closed")]
    Closed,
}
