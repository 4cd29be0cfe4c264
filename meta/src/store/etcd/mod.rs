//! Metadata in etcd, 3.4 and later.
//!
//! 1. [`peers`](self): one connection per endpoint, one of them current; a call has a deadline and
//!    a permit, and moves on to the next endpoint where that is safe.
//! 2. Every answer's header is compared with the highest revision seen before the call (I24).
//! 3. Entries leave with keys relative to the cluster.
//!
//! A transaction is sent again only where the connection was refused before it could be written:
//! etcd applies what it is sent twice. Neither the client library nor its channel retries.

mod convert;
mod lease;
mod peers;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse, Txn as EtcdTxn, TxnOp, TxnOpResponse, TxnResponse};
use forebay_runtime::tasks::Tasks;

use self::convert::Keys;
use self::peers::{Failure, Peers, Resend};
use super::error::{BadRequest, LeaseError, ReadError, TxnError, Unknown};
use super::lease::LeaseKeeper;
use super::types::{Entry, LeaseId, Page, Range, Revision, Txn, TxnReply};
use super::watch::WatchStream;
use super::{MetaStore, RANGE_ENTRIES_MAX, check};

/// Wait between two rounds of tries in [`EtcdStore::connect_within`].
const CONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Where etcd is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `http://host:port` of each member.
    pub endpoints: Vec<String>,
    /// What all of the cluster's keys begin with, as `/forebay/<cluster>`.
    pub prefix: String,
    /// For one TCP connection.
    pub connect_timeout: Duration,
    /// For one call with all its tries.
    pub call_timeout: Duration,
    /// Calls in flight at once; more wait, within their deadline.
    pub calls_max: usize,
    /// The highest revision this process remembers from before (I24); zero for none.
    pub seen: Revision,
}

impl EtcdOptions {
    /// Defaults for a cluster's keys on these endpoints.
    #[must_use]
    pub fn new(endpoints: Vec<String>, cluster: &str) -> Self {
        Self {
            endpoints,
            prefix: format!("/forebay/{cluster}"),
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            calls_max: 128,
            seen: Revision(0),
        }
    }
}

/// Why there is no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// An option is wrong.
    #[error("etcd {option} {value:?}: {why}")]
    Option {
        /// Which.
        option: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// No endpoint answered.
    #[error("no answer from etcd at {}: {last}", .endpoints.join(", "))]
    Unreachable {
        /// All that were tried.
        endpoints: Vec<String>,
        /// The last failure.
        last: ReadError,
    },
}

/// A metadata store in etcd.
pub struct EtcdStore {
    peers: Arc<Peers>,
    keys: Keys,
    tasks: Tasks,
}

impl EtcdStore {
    /// Connects and asks once. Renewals of leases run in a group below `tasks`.
    ///
    /// # Errors
    /// Where an option is wrong or no endpoint answers within the call timeout.
    pub async fn connect(options: EtcdOptions, tasks: &Tasks) -> Result<Self, ConnectError> {
        let store = Self::open(options, tasks).await?;
        match store.ask().await {
            Ok(()) => Ok(store),
            Err(last) => Err(store.unreachable(last)),
        }
    }

    /// As [`EtcdStore::connect`], but goes on asking until `limit` has passed.
    ///
    /// # Errors
    /// Where an option is wrong, etcd went back in time, or no endpoint answers by then.
    pub async fn connect_within(
        options: EtcdOptions,
        tasks: &Tasks,
        limit: Duration,
    ) -> Result<Self, ConnectError> {
        let give_up = tokio::time::Instant::now() + limit;
        let store = Self::open(options, tasks).await?;
        loop {
            match store.ask().await {
                Ok(()) => return Ok(store),
                Err(ReadError::Unavailable(error)) if tokio::time::Instant::now() < give_up => {
                    tracing::warn!(endpoints = ?store.peers.endpoints(), %error, "waiting for etcd");
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                Err(last) => return Err(store.unreachable(last)),
            }
        }
    }

    /// The same store with the revisions of an incarnation of the cluster: before it is shared, and
    /// once.
    #[must_use]
    pub fn of_incarnation(mut self, incarnation: u32) -> Self {
        let revisions = convert::Revisions::of(incarnation);
        if self.peers.take_revisions(revisions) {
            self.keys.revisions = revisions;
        }
        self
    }

    /// The highest revision that etcd has answered with.
    #[must_use]
    pub fn seen(&self) -> Revision {
        self.peers.seen()
    }

    async fn open(options: EtcdOptions, tasks: &Tasks) -> Result<Self, ConnectError> {
        let keys = Keys::new(&options.prefix)?;
        let peers = Arc::new(Peers::open(&options).await?);
        Ok(Self {
            peers,
            keys,
            tasks: tasks.group("etcd"),
        })
    }

    async fn ask(&self) -> Result<(), ReadError> {
        self.get("/").await.map(|_| ())
    }

    fn unreachable(&self, last: ReadError) -> ConnectError {
        ConnectError::Unreachable {
            endpoints: self.peers.endpoints(),
            last,
        }
    }

    async fn fetch(
        &self,
        start: Vec<u8>,
        options: Option<GetOptions>,
    ) -> Result<(GetResponse, Revision), Failure> {
        let ticket = self.peers.ticket()?;
        let response = self
            .peers
            .call(Resend::Always, |mut peer| {
                let (start, options) = (start.clone(), options.clone());
                async move { peer.kv.get(start, options).await }
            })
            .await?;
        let revision = self.peers.admit(ticket, response.header())?;
        Ok((response, revision))
    }

    async fn send(&self, resend: Resend, txn: EtcdTxn) -> Result<(TxnResponse, Revision), Failure> {
        let ticket = self.peers.ticket()?;
        let response = self
            .peers
            .call(resend, |mut peer| {
                let txn = txn.clone();
                async move { peer.kv.txn(txn).await }
            })
            .await?;
        let revision = self.peers.admit(ticket, response.header())?;
        Ok((response, revision))
    }

    fn reads(&self, response: &TxnResponse) -> Result<Vec<Option<Entry>>, BadRequest> {
        let mut reads = Vec::new();
        for response in response.op_responses() {
            if let TxnOpResponse::Get(mut get) = response {
                reads.push(get.take_kvs().pop().map(|kv| self.keys.entry(kv)).transpose()?);
            }
        }
        Ok(reads)
    }
}

#[async_trait]
impl MetaStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        check::key(key)?;
        let (mut response, revision) = self
            .fetch(self.keys.absolute(key), None)
            .await
            .map_err(|f| f.of_read(self.seen()))?;
        let entry = response
            .take_kvs()
            .pop()
            .map(|kv| self.keys.entry(kv))
            .transpose()?;
        Ok((entry, revision))
    }

    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        check::keys(keys)?;
        let gets: Vec<TxnOp> = keys
            .iter()
            .map(|key| TxnOp::get(self.keys.absolute(key), None))
            .collect();
        let txn = EtcdTxn::new().and_then(gets);
        let (response, revision) = self
            .send(Resend::Always, txn)
            .await
            .map_err(|f| f.of_read(self.seen()))?;
        Ok((self.reads(&response)?, revision))
    }

    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        check::range(&range)?;
        let (start, end) = self.keys.span(&range.prefix, range.start_after.as_deref());
        let mut limit = range.limit.min(RANGE_ENTRIES_MAX);
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
                .with_revision(range.at.map_or(0, |at| self.keys.revisions.signed(at)));
            match self.fetch(start.clone(), Some(options)).await {
                Ok((mut response, revision)) => {
                    let more = response.more();
                    let kvs = response.take_kvs();
                    let entries: Result<Vec<Entry>, BadRequest> =
                        kvs.into_iter().map(|kv| self.keys.entry(kv)).collect();
                    let revision = range.at.unwrap_or(revision);
                    return Ok(Page {
                        entries: entries?,
                        revision,
                        more,
                    });
                }
                // A page may be shorter than asked for; a page of one always fits.
                Err(Failure::AnswerTooLarge(_)) if limit > 1 => limit /= 2,
                Err(failure) => return Err(failure.of_read(self.seen())),
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        check::txn(&txn)?;
        let lease = convert::single_lease(&txn);
        let sent = self.send(Resend::IfUnsent, self.keys.txn(txn)).await;
        let (response, revision) = sent.map_err(|failure| failure.of_txn(lease))?;
        // The transaction is done: an unreadable answer must not look like a refusal.
        let reads = self
            .reads(&response)
            .map_err(|error| Unknown(error.to_string()))?;
        Ok(TxnReply {
            succeeded: response.succeeded(),
            revision,
            reads,
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        watch::start(Arc::clone(&self.peers), self.keys.clone(), prefix, after)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        lease::grant(&self.peers, &self.tasks, ttl).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        lease::revoke(&self.peers, lease).await
    }

    async fn close(&self) {
        self.peers.close();
        self.tasks.cancel();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("endpoints", &self.peers.endpoints())
            .field("keys", &self.keys)
            .field("seen", &self.seen())
            .finish_non_exhaustive()
    }
}
