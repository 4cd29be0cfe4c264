//! Metadata in one file of one process, for standalone.
//!
//! 1. [`file`](self): the durable form, a redb file behind a lock; opening it voids all sessions.
//! 2. [`state`](self): everything in memory, with the recent past; reads and watches see only this.
//! 3. [`plan`](self): evaluates queued transactions one after the other against the state.
//! 4. [`writer`](self): one thread makes a group of them durable by one commit, then visible, then
//!    answers.
//!
//! A commit that fails ends the store: whether it reached the disk is unknown until the file is
//! opened again, so no read may answer in the meantime.

mod file;
pub(super) mod plan;
pub(super) mod state;
#[cfg(test)]
mod tests;
pub(super) mod watch;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use forebay_runtime::clock::{Clock, timeout};
use forebay_runtime::tasks::Tasks;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::file::OpenError;
use self::file::{Loaded, MetaFile};
use self::state::State;
use self::writer::{Command, Shared};
use super::error::{BadRequest, LeaseError, ReadError, TxnError, Unavailable, Unknown};
use super::lease::{LeaseKeeper, LeaseOwner};
use super::types::{Entry, LeaseId, Page, Range, Revision, Txn, TxnReply};
use super::watch::WatchStream;
use super::{MetaStore, check};

/// Requests waiting for the writer; more wait for a place.
const MAILBOX: usize = 1024;
/// How long a request waits for the disk before its outcome counts as unknown.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A metadata store in a file.
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    shared: Arc<Shared>,
    mailbox: mpsc::Sender<Command>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    runtime: tokio::runtime::Handle,
    /// Lease ids count up from here; the upper half tells the openings of the file apart.
    next_lease: AtomicU64,
}

impl EmbeddedStore {
    /// Opens the file, or creates it in a directory that exists. All keys that hung on leases are
    /// deleted; watches from before are compacted. Leases run on `clock`, in a group below
    /// `tasks`.
    ///
    /// # Errors
    /// Where another process has it, it is damaged, or the disk fails.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>, tasks: &Tasks) -> Result<Self, OpenError> {
        Self::open_with(path, clock, tasks, MetaFile::open).await
    }

    async fn open_with(
        path: &Path,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
        open: impl FnOnce(&Path) -> Result<(MetaFile, Loaded), OpenError> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let (mailbox, commands) = mpsc::channel(MAILBOX);
        let opened = writer::start(path.to_owned(), commands, open).await?;
        let inner = Inner {
            path: path.to_owned(),
            shared: opened.shared,
            mailbox,
            clock,
            tasks: tasks.group("embedded"),
            runtime: tokio::runtime::Handle::current(),
            next_lease: AtomicU64::new(opened.first_lease),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl Inner {
    fn read<T>(&self, look: impl FnOnce(&State) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let state = self.shared.state.read();
        // Looked at under the lock: a writer that fails stops the store before it lets go.
        match self.shared.stopped() {
            Some(why) => Err(Unavailable(why).into()),
            None => look(&state),
        }
    }

    /// Sends a command and waits for its answer; the errors tell whether it was sent.
    ///
    /// Cancel safety: a command that was sent is executed, whoever waits.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ask> {
        if let Some(why) = self.shared.stopped() {
            return Err(Ask::NotSent(why));
        }
        let (reply, answer) = oneshot::channel();
        match timeout(&*self.clock, CALL_TIMEOUT, self.mailbox.reserve()).await {
            Ok(Ok(place)) => place.send(command(reply)),
            Ok(Err(_)) => return Err(Ask::NotSent(self.why())),
            Err(elapsed) => return Err(Ask::NotSent(format!("the disk is busy: {elapsed}"))),
        }
        match timeout(&*self.clock, CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Ask::Unanswered(self.why())),
            Err(elapsed) => Err(Ask::Unanswered(format!("the disk is busy: {elapsed}"))),
        }
    }

    fn why(&self) -> String {
        self.shared
            .stopped()
            .unwrap_or_else(|| format!("{} is closed", self.path.display()))
    }
}

enum Ask {
    NotSent(String),
    Unanswered(String),
}

#[async_trait]
impl MetaStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        check::key(key)?;
        self.inner
            .read(|state| Ok((state.get(key).cloned(), state.revision())))
    }

    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        check::keys(keys)?;
        self.inner.read(|state| {
            let entries = keys.iter().map(|key| state.get(key).cloned()).collect();
            Ok((entries, state.revision()))
        })
    }

    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        check::range(&range)?;
        self.inner.read(|state| state.range(&range))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        check::txn(&txn)?;
        match self.inner.ask(|reply| Command::Txn { txn, reply }).await {
            Ok(outcome) => outcome,
            Err(Ask::NotSent(why)) => Err(Unavailable(why).into()),
            Err(Ask::Unanswered(why)) => Err(Unknown(why).into()),
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        let shared = Arc::clone(&self.inner.shared);
        let changes = shared.changes();
        watch::start(shared, changes, prefix, after)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        check::ttl(ttl)?;
        if let Some(why) = self.inner.shared.stopped() {
            return Err(Unavailable(why).into());
        }
        let number = self.inner.next_lease.fetch_add(1, Ordering::Relaxed);
        let (id, lost) = (LeaseId(number), CancellationToken::new());
        self.inner
            .shared
            .state
            .write()
            .grant(id, ttl, lost.clone())
            .map_err(|count_max| BadRequest::TooMany {
                what: "leases",
                count: count_max + 1,
                count_max,
            })?;
        let owner: Arc<dyn LeaseOwner> = Arc::<Inner>::clone(&self.inner);
        // This store is never away from its holders: what is lost has ended.
        Ok(LeaseKeeper::new(id, ttl, lost.clone(), lost, owner))
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        LeaseOwner::revoke(&*self.inner, lease).await
    }

    async fn close(&self) {
        self.inner.tasks.cancel();
        self.inner.tasks.wait().await;
        if let Ok(place) = self.inner.mailbox.reserve().await {
            place.send(Command::Stop);
        }
        self.inner.shared.ended().await;
    }
}

#[async_trait]
impl LeaseOwner for Inner {
    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        match self
            .ask(|reply| Command::Revoke {
                lease,
                reply: Some(reply),
            })
            .await
        {
            Ok(outcome) => outcome.map_err(LeaseError::from),
            Err(Ask::NotSent(why) | Ask::Unanswered(why)) => Err(Unavailable(why).into()),
        }
    }

    /// The holder lives in this process, so its keeper is proof enough and nothing is renewed;
    /// only without it does the time to live run.
    fn released(&self, lease: LeaseId) {
        let Some(ttl) = self.shared.state.read().ttl(lease) else {
            return;
        };
        // A keeper may be dropped anywhere, also where no runtime is entered.
        let _entered = self.runtime.enter();
        let run_out = self.clock.sleep(ttl);
        let (mailbox, closing) = (self.mailbox.downgrade(), self.tasks.token());
        self.tasks.spawn(format!("lease-{lease}"), async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = run_out => {}
            }
            // A failed send means that the store is closed, which ends all leases anyway.
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Command::Revoke { lease, reply: None }).await;
            }
        });
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}
