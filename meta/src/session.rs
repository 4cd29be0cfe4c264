//! The session of a broker or a proxy: a key that vanishes with its process.
//!
//! 1. Remove the key that an earlier incarnation of the same id left behind, by compare-and-swap.
//! 2. Create it under a lease of our own. The revision at which it came to be is the session's id:
//!    no other session, before or after, has the same.
//! 3. Follow it: the session is over when its lease has ended or its key is not ours any more. A store
//!    that does not answer ends no session: nobody else can have one either.
//!
//! A session only says who is alive. What keeps a dead owner from writing is the compare of its
//! session in every change of a partition record (I10), never the end of a lease.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::stored::{BrokerRecord, ProxyRecord};
use forebay_record::{BrokerId, SessionId};
use tokio::sync::Mutex;

use crate::failure::{MetaFailure, TRIES_MAX};
use crate::record::encode;
use crate::store::{
    BadRequest, Compare, Entry, LeaseError, LeaseKeeper, MetaStore, Op, ReadError, Revision, Txn, TxnError,
    WatchError, WatchKind,
};
use crate::{counter, keys};

/// Why a session could not be had or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// It is over. The process may register again, and then is another.
    #[error("session {id} of {key} is over")]
    Over {
        /// Its key.
        key: String,
        /// Its id.
        id: SessionId,
    },
    /// The record is of another process.
    #[error("record of {given} cannot go to {key}")]
    OtherKey {
        /// The session's key.
        key: String,
        /// The key that the record belongs to.
        given: String,
    },
    /// The id cannot be part of a key.
    #[error("proxy id {0:?} must have 1 to {PROXY_ID_BYTES_MAX} bytes of a-z A-Z 0-9 . _ -")]
    ProxyId(String),
    /// The store failed.
    #[error(transparent)]
    Meta(#[from] MetaFailure),
}

impl From<TxnError> for SessionError {
    fn from(error: TxnError) -> Self {
        Self::Meta(error.into())
    }
}

/// Longest id of a proxy.
pub const PROXY_ID_BYTES_MAX: usize = 128;

/// Highest id that an operator may give a broker; those above are for [`allocate_broker_id`], so
/// that no configured broker ever takes the session of another one.
pub const CONFIGURED_BROKER_ID_MAX: u32 = 1_000;

/// Highest id of a broker: what clients of other protocols know brokers by is signed.
const BROKER_ID_MAX: u64 = i32::MAX as u64;

/// An id that no broker of the cluster has or had. Each start takes another one: a process that
/// keeps nothing has no use for its last one.
///
/// # Errors
/// As the store fails, and once all ids were handed out.
pub async fn allocate_broker_id(store: &dyn MetaStore) -> Result<BrokerId, MetaFailure> {
    let taken = counter::allocate(store, keys::BROKER_IDS, 1).await?;
    let id = taken.start.saturating_add(u64::from(CONFIGURED_BROKER_ID_MAX));
    match u32::try_from(id) {
        Ok(fits) if id <= BROKER_ID_MAX => Ok(BrokerId(fits)),
        _ => Err(MetaFailure::Exhausted {
            key: keys::BROKER_IDS.to_owned(),
            next: taken.start,
            count: 1,
        }),
    }
}

/// A registered process. Dropping it lets the lease run out; [`Session::close`] ends it at once.
pub struct Session {
    store: Arc<dyn MetaStore>,
    keeper: LeaseKeeper,
    key: String,
    id: SessionId,
    /// When the key was last put: an update that is late never undoes a newer one.
    revision: Mutex<Revision>,
}

/// Registers a broker.
///
/// # Errors
/// As the store fails. Nothing is left behind but a lease that ends by itself.
pub async fn register_broker(
    store: Arc<dyn MetaStore>,
    record: &BrokerRecord,
    ttl: Duration,
) -> Result<Session, SessionError> {
    register(store, keys::broker(BrokerId(record.id)), record, ttl).await
}

/// Registers a proxy.
///
/// # Errors
/// As [`register_broker`], and where the id cannot be part of a key.
pub async fn register_proxy(
    store: Arc<dyn MetaStore>,
    record: &ProxyRecord,
    ttl: Duration,
) -> Result<Session, SessionError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let id = record.id.as_str();
    if id.is_empty() || id.len() > PROXY_ID_BYTES_MAX || !id.bytes().all(allowed) {
        return Err(SessionError::ProxyId(record.id.clone()));
    }
    register(store, keys::proxy(id), record, ttl).await
}

async fn register(
    store: Arc<dyn MetaStore>,
    key: String,
    record: &impl prost::Message,
    ttl: Duration,
) -> Result<Session, SessionError> {
    let keeper = store.lease_grant(ttl).await.map_err(MetaFailure::from)?;
    let value = encode(record);
    let mut unknown: Option<TxnError> = None;
    for _ in 0..TRIES_MAX {
        let (entry, _) = store.get(&key).await.map_err(MetaFailure::from)?;
        let txn = match entry {
            Some(entry) if entry.lease == Some(keeper.id()) => {
                // A create of unknown outcome landed.
                return Ok(Session::new(store, keeper, &entry));
            }
            Some(entry) => {
                tracing::info!(
                    key,
                    session = entry.create_revision.0,
                    "removing the session of an earlier incarnation"
                );
                Txn::new()
                    .when(Compare::unchanged(&entry))
                    .then(Op::delete(key.clone()))
            }
            None => Txn::new().when(Compare::absent(key.clone())).then(Op::put_leased(
                key.clone(),
                value.clone(),
                keeper.id(),
            )),
        };
        // Whatever this did, the read of the next round tells.
        match store.txn(txn).await {
            Ok(_) => {}
            Err(error @ TxnError::Unknown(_)) => unknown = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(SessionError::Meta(match unknown {
        Some(error) => error.into(),
        None => MetaFailure::Contended {
            key,
            tries: TRIES_MAX,
        },
    }))
}

impl Session {
    fn new(store: Arc<dyn MetaStore>, keeper: LeaseKeeper, entry: &Entry) -> Self {
        let id = SessionId(entry.create_revision.0);
        tracing::info!(key = entry.key, session = id.0, "session registered");
        Self {
            store,
            keeper,
            key: entry.key.clone(),
            id,
            revision: Mutex::new(entry.mod_revision),
        }
    }

    /// The create revision of the key: what partition records know the owner by.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The condition that this session is not over, for every change of a partition record (I10).
    #[must_use]
    pub fn alive(&self) -> Compare {
        Compare::CreateRevision(self.key.clone(), Revision(self.id.0))
    }

    /// Completes once the session is over: its lease has ended, its key was removed or belongs to
    /// another session, or the store ended for good. The future owns what it needs.
    ///
    /// Cancel safety: only waits.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let (store, key, id) = (Arc::clone(&self.store), self.key.clone(), self.id);
        let lease = self.keeper.ended_token();
        async move {
            tokio::select! {
                () = lease.cancelled() => {}
                () = replaced(&*store, &key, id) => {}
            }
        }
    }

    /// Replaces a broker's record.
    ///
    /// # Errors
    /// [`SessionError::Over`] where the session is; as the store fails.
    pub async fn update_broker(&self, record: &BrokerRecord) -> Result<(), SessionError> {
        self.update(keys::broker(BrokerId(record.id)), record).await
    }

    /// Replaces a proxy's record.
    ///
    /// # Errors
    /// As [`Session::update_broker`].
    pub async fn update_proxy(&self, record: &ProxyRecord) -> Result<(), SessionError> {
        self.update(keys::proxy(&record.id), record).await
    }

    async fn update(&self, key: String, record: &impl prost::Message) -> Result<(), SessionError> {
        if key != self.key {
            return Err(SessionError::OtherKey {
                key: self.key.clone(),
                given: key,
            });
        }
        let value = encode(record);
        // A tokio mutex, held across the calls on purpose: updates go one after the other.
        let mut revision = self.revision.lock().await;
        let mut unknown: Option<TxnError> = None;
        for _ in 0..TRIES_MAX {
            let txn = Txn::new()
                .when(self.alive())
                .when(Compare::ModRevision(key.clone(), *revision))
                .then(Op::put_leased(key.clone(), value.clone(), self.keeper.id()))
                .otherwise(Op::get(key.clone()));
            match self.store.txn(txn).await {
                Ok(reply) if reply.succeeded => {
                    *revision = reply.revision;
                    return Ok(());
                }
                // Only this session writes the key, so a newer put is an earlier try of our own,
                // or of an update whose caller went away.
                Ok(reply) => match reply.reads.into_iter().next().flatten() {
                    Some(entry) if entry.create_revision.0 == self.id.0 => *revision = entry.mod_revision,
                    _ => return Err(self.over()),
                },
                Err(TxnError::Refused(BadRequest::LeaseNotFound { .. })) => return Err(self.over()),
                Err(error @ TxnError::Unknown(_)) => unknown = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Meta(match unknown {
            Some(error) => error.into(),
            None => MetaFailure::Contended {
                key,
                tries: TRIES_MAX,
            },
        }))
    }

    fn over(&self) -> SessionError {
        SessionError::Over {
            key: self.key.clone(),
            id: self.id,
        }
    }

    /// Ends the session: its key is gone when this returns.
    ///
    /// # Errors
    /// Where the store could not be asked; the lease then runs out by itself.
    pub async fn close(&self) -> Result<(), LeaseError> {
        tracing::info!(key = self.key, session = self.id.0, "session closed");
        self.keeper.revoke().await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("key", &self.key)
            .field("id", &self.id)
            .field("keeper", &self.keeper)
            .finish_non_exhaustive()
    }
}

/// Completes once the key does not belong to the session any more, or can never be asked again.
async fn replaced(store: &dyn MetaStore, key: &str, id: SessionId) {
    let mut from = Revision(id.0);
    loop {
        let mut watch = store.watch(key, from);
        let ended = loop {
            match watch.next().await {
                Some(Ok(batch)) => {
                    let over =
                        batch
                            .events
                            .iter()
                            .filter(|event| event.key() == key)
                            .any(|event| match &event.kind {
                                WatchKind::Put(entry) => entry.create_revision.0 != id.0,
                                WatchKind::Delete { .. } => true,
                            });
                    if over {
                        return;
                    }
                    from = from.max(batch.revision);
                }
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        match ended {
            // What was missed is made up for by a read.
            Some(WatchError::Compacted { .. }) => match store.get(key).await {
                Ok((Some(entry), revision)) if entry.create_revision.0 == id.0 => from = revision,
                Ok(_) => return,
                // The lease decides while the store does not answer; the watch is tried again and
                // waits inside the store.
                Err(error) => {
                    tracing::debug!(key, %error, "session key could not be read after a compaction");
                    if matches!(error, ReadError::Regressed(_)) {
                        return;
                    }
                }
            },
            Some(WatchError::Refused(_) | WatchError::Regressed(_) | WatchError::Closed) | None => return,
        }
    }
}

#[cfg(test)]
mod tests;
