//! The seam to where metadata lives: [`MetaStore`], implemented on etcd and on an embedded file.
//!
//! 1. A caller reads ([`MetaStore::get`], [`MetaStore::range`]) and learns the revision it read at.
//! 2. It decides, then changes keys in one transaction that compares what it saw (`txn`).
//! 3. It follows later changes from that revision on ([`MetaStore::watch`]).
//! 4. What must vanish with a process hangs on a lease ([`MetaStore::lease_grant`]).
//!
//! Promises, checked for both implementations by one contract suite: every read is linearizable;
//! a transaction is applied once or not at all and is never sent twice; revisions only rise; a
//! watch neither skips nor repeats an event; every call ends within a deadline. A store that went
//! back in time is refused for good (I24).

mod check;
mod embedded;
mod error;
mod etcd;
mod lease;
mod metered;
#[cfg(any(test, feature = "simulation"))]
mod simulated;
mod types;
mod watch;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

pub use embedded::{EmbeddedStore, OpenError};
pub use error::{BadRequest, LeaseError, ReadError, Regressed, TxnError, Unavailable, Unknown, WatchError};
pub use etcd::{ConnectError, EtcdOptions, EtcdStore};
pub use lease::LeaseKeeper;
pub use metered::MeteredStore;
#[cfg(any(test, feature = "simulation"))]
pub use simulated::{Image, SimulatedStore, Wire};
pub use types::{
    Compare, Entry, LeaseId, Op, Page, Range, Revision, Txn, TxnReply, WatchBatch, WatchEvent, WatchKind,
    incarnation_base,
};
pub use watch::WatchStream;

/// Longest key, in bytes, without the cluster's prefix.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most puts in one branch of a transaction.
pub const PUTS_MAX: usize = 64;
/// Most compares, or operations of one branch, in a transaction.
pub const OPS_MAX: usize = 128;
/// Most bytes of keys and values in a transaction; etcd refuses requests of 1.5 MiB.
pub const TXN_BYTES_MAX: usize = 1_310_720;
/// Most keys of one [`MetaStore::get_many`].
pub const READ_KEYS_MAX: usize = 64;
/// Most entries of one page of a range.
pub const RANGE_ENTRIES_MAX: usize = 1000;
/// Shortest and longest time to live of a lease.
pub const LEASE_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Where a cluster's metadata lives. Keys are relative to the cluster and begin with `/`.
///
/// Dropping a call's future leaves reads without effect and transactions with an unknown outcome.
#[async_trait]
pub trait MetaStore: Debug + Send + Sync + 'static {
    /// The entry of a key, and the revision it was read at. Linearizable.
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError>;

    /// Entries of up to [`READ_KEYS_MAX`] keys in their order, all read at one revision.
    /// Linearizable.
    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError>;

    /// One page of the keys with a prefix, in key order. Linearizable without [`Range::at`];
    /// with it, exactly what the store held at that revision.
    async fn range(&self, range: Range) -> Result<Page, ReadError>;

    /// Applies one branch of a transaction as a whole, or nothing. Never sent a second time: an
    /// unknown outcome is the caller's to resolve, by a read that looks for its own change.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError>;

    /// Every change with a revision above `after` to keys with the prefix, in order, none twice.
    /// Reconnects by itself; ends with an error or never.
    fn watch(&self, prefix: &str, after: Revision) -> WatchStream;

    /// A new lease, kept alive for as long as the returned keeper lives. The store may round the
    /// time to live up.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError>;

    /// Ends a lease: its keys are deleted in one transaction. An unknown lease counts as ended.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError>;

    /// Stops everything the store runs in the background and gives back files and locks. Calls
    /// afterwards are answered as unavailable; a second close does nothing.
    async fn close(&self);
}

/// Reads all keys with a prefix at one revision, page by page.
///
/// # Errors
/// As [`MetaStore::range`]; [`ReadError::Compacted`] where the pages took longer than history is
/// kept; [`BadRequest::TooManyEntries`] where there are more than `entries_max`.
pub async fn scan(
    store: &dyn MetaStore,
    prefix: &str,
    entries_max: usize,
) -> Result<(Vec<Entry>, Revision), ReadError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut range = Range::new(prefix);
    loop {
        let page = store.range(range.clone()).await?;
        entries.extend(page.entries);
        if entries.len() > entries_max {
            return Err(BadRequest::TooManyEntries {
                prefix: prefix.to_owned(),
                entries_max,
            }
            .into());
        }
        match entries.last() {
            Some(last) if page.more => {
                range = range.start_after(last.key.clone()).at(page.revision);
            }
            _ => return Ok((entries, page.revision)),
        }
    }
}
