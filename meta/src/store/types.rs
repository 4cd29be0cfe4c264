//! What goes into a metadata store and what comes out: revisions, entries, transactions, events.
//!
//! Everything here is plain data, the same for every implementation.

use std::fmt;

use bytes::Bytes;

use super::RANGE_ENTRIES_MAX;

/// A point in the store's history. One for all keys; each transaction that changes anything has
/// its own, higher than all before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The bare number, for records.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Revisions that one incarnation of a cluster has room for.
const INCARNATION_REVISIONS: u64 = 1 << 40;

/// What is added to the revisions of a store that went back in time and whose cluster then got this
/// incarnation, from 1: every revision of a later incarnation is above all of an earlier one.
#[must_use]
pub const fn incarnation_base(incarnation: u32) -> u64 {
    (incarnation.saturating_sub(1) as u64).saturating_mul(INCARNATION_REVISIONS)
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a lease. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "l{:x}", self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the cluster.
    pub key: String,
    /// As put.
    pub value: Bytes,
    /// When the key came to be; a deleted and recreated key has a new one.
    pub create_revision: Revision,
    /// When it was last put.
    pub mod_revision: Revision,
    /// Puts since it came to be, from 1.
    pub version: u64,
    /// The lease whose end deletes it.
    pub lease: Option<LeaseId>,
}

/// A condition of a transaction. An absent key has revisions of zero and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was last put at this revision.
    ModRevision(String, Revision),
    /// The key came to be at this revision.
    CreateRevision(String, Revision),
    /// The key holds these bytes.
    Value(String, Bytes),
}

impl Compare {
    /// The key is absent.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Self {
        Self::ModRevision(key.into(), Revision(0))
    }

    /// The key is as this entry says.
    #[must_use]
    pub fn unchanged(entry: &Entry) -> Self {
        Self::ModRevision(entry.key.clone(), entry.mod_revision)
    }

    /// The key it looks at.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::ModRevision(key, _) | Self::CreateRevision(key, _) | Self::Value(key, _) => key,
        }
    }
}

/// One step of a branch. A branch names each key at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// Which.
        key: String,
        /// To what.
        value: Bytes,
        /// The lease it hangs on from now on; none takes it off any lease.
        lease: Option<LeaseId>,
    },
    /// Removes a key, if it is there.
    Delete {
        /// Which.
        key: String,
    },
    /// Reads a key, for [`TxnReply::reads`].
    Get {
        /// Which.
        key: String,
    },
}

impl Op {
    /// Sets a key without a lease.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// Sets a key that vanishes with a lease.
    #[must_use]
    pub fn put_leased(key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Reads a key.
    #[must_use]
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get { key: key.into() }
    }

    /// The key it names.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => key,
        }
    }
}

/// A transaction: where all compares hold, `then` is done, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// Conditions; none always hold.
    pub compares: Vec<Compare>,
    /// Done where they all hold.
    pub then: Vec<Op>,
    /// Done where one does not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a step for when the conditions hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds a step for when they do not.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether the compares held, so which branch was done.
    pub succeeded: bool,
    /// The store's revision right after it: its own, if it changed anything.
    pub revision: Revision,
    /// What the branch's gets read, in their order.
    pub reads: Vec<Option<Entry>>,
}

/// A read of all keys with a prefix, by pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// What the keys begin with.
    pub prefix: String,
    /// Continues behind this key.
    pub start_after: Option<String>,
    /// Entries at most; values above [`RANGE_ENTRIES_MAX`] mean that. A page may be shorter.
    pub limit: usize,
    /// Reads the past at this revision instead of the present.
    pub at: Option<Revision>,
}

impl Range {
    /// The first page of a prefix, at the present.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            start_after: None,
            limit: RANGE_ENTRIES_MAX,
            at: None,
        }
    }

    /// Bounds the page.
    #[must_use]
    pub fn limit(mut self, entries: usize) -> Self {
        self.limit = entries;
        self
    }

    /// Continues behind a key.
    #[must_use]
    pub fn start_after(mut self, key: impl Into<String>) -> Self {
        self.start_after = Some(key.into());
        self
    }

    /// Pins the revision, so that pages fit together.
    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.at = Some(revision);
        self
    }
}

/// One page of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision they were read at. Pass it to the next page, or to a watch.
    pub revision: Revision,
    /// There are keys behind the last one.
    pub more: bool,
}

/// A step of a watch: all changes up to a revision that were not delivered before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Everything up to here is delivered with this batch.
    pub revision: Revision,
    /// In order of revision; empty where only the revision moved on.
    pub events: Vec<WatchEvent>,
}

/// A change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// Of the transaction that made it.
    pub revision: Revision,
    /// What happened.
    pub kind: WatchKind,
}

impl WatchEvent {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match &self.kind {
            WatchKind::Put(entry) => &entry.key,
            WatchKind::Delete { key } => key,
        }
    }
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchKind {
    /// It was put, and is this now.
    Put(Entry),
    /// It was deleted, or its lease ended.
    Delete {
        /// Which.
        key: String,
    },
}
