//! A real embedded store for tests, and faults put between it and whoever uses it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use forebay_runtime::clock::SystemClock;
use forebay_runtime::tasks::Tasks;
use parking_lot::Mutex;

use crate::store::{
    EmbeddedStore, Entry, LeaseError, LeaseId, LeaseKeeper, MetaStore, Page, Range, ReadError, Revision, Txn,
    TxnError, TxnReply, Unavailable, Unknown, WatchStream,
};

/// What happens to one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    Pass,
    /// Applied, and the answer lost.
    AnswerLost,
    /// Lost on its way, which nobody can tell.
    RequestLost,
    /// Applied after the next one was.
    Late,
    /// Never sent.
    NotSent,
}

/// A store whose transactions meet faults, in the order given; later ones meet none.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn MetaStore>,
    faults: Mutex<VecDeque<Fault>>,
    late: Mutex<Vec<Txn>>,
    /// How many of the next watches begin before all history.
    pub(crate) stale_watches: AtomicU32,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn MetaStore>, faults: impl IntoIterator<Item = Fault>) -> Self {
        let faults = Mutex::new(faults.into_iter().collect());
        Self {
            inner,
            faults,
            late: Mutex::default(),
            stale_watches: AtomicU32::new(0),
        }
    }
}

#[async_trait]
impl MetaStore for Faulty {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        self.inner.get(key).await
    }

    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        self.inner.get_many(keys).await
    }

    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        self.inner.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        let fault = self.faults.lock().pop_front().unwrap_or(Fault::Pass);
        let unknown = || TxnError::from(Unknown("connection lost".to_owned()));
        let outcome = match fault {
            Fault::Pass => self.inner.txn(txn).await,
            Fault::AnswerLost => {
                self.inner.txn(txn).await?;
                Err(unknown())
            }
            Fault::RequestLost => Err(unknown()),
            Fault::Late => {
                self.late.lock().push(txn);
                return Err(unknown());
            }
            Fault::NotSent => Err(Unavailable("no connection".to_owned()).into()),
        };
        let late = std::mem::take(&mut *self.late.lock());
        for txn in late {
            self.inner.txn(txn).await?;
        }
        outcome
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        let take = |left: u32| left.checked_sub(1);
        let stale = self
            .stale_watches
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok();
        self.inner.watch(prefix, if stale { Revision(0) } else { after })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.inner.lease_revoke(lease).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// An embedded store in a temporary folder.
pub(crate) struct World {
    pub(crate) store: Arc<dyn MetaStore>,
    pub(crate) tasks: Tasks,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    async fn open(folder: tempfile::TempDir) -> Self {
        let (clock, tasks) = (Arc::new(SystemClock::new()), Tasks::new("test"));
        let store = EmbeddedStore::open(&folder.path().join("meta.redb"), clock, &tasks)
            .await
            .unwrap();
        Self {
            store: Arc::new(store),
            tasks,
            folder,
        }
    }

    /// The same file after a restart, which forgets sessions and history.
    pub(crate) async fn reopen(self) -> Self {
        self.store.close().await;
        Self::open(self.folder).await
    }

    pub(crate) fn faulty(&self, faults: impl IntoIterator<Item = Fault>) -> Arc<Faulty> {
        Arc::new(Faulty::new(Arc::clone(&self.store), faults))
    }
}

/// All faults that leave an outcome unknown.
pub(crate) const UNKNOWNS: [Fault; 3] = [Fault::AnswerLost, Fault::RequestLost, Fault::Late];

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, holds).await.expect(what);
}
