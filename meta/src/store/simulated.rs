//! A metadata store in memory, and its clients behind a network that delays and loses.
//!
//! 1. [`SimulatedStore`] is the store: it applies what reaches it, one transaction after the other,
//!    and ends leases that are not renewed in time. A simulation also ends them wrongly, or puts an
//!    earlier [`Image`] back.
//! 2. [`SimulatedStore::client`] is one process's [`MetaStore`]. Each message passes its [`Wire`],
//!    which says how long it takes and whether it arrives. A transaction whose request or answer is
//!    lost, or comes late, has an unknown outcome; it may still be applied after its caller has
//!    given up.
//!
//! The state and the evaluation of transactions are the embedded store's. No thread, and no time
//! but the clock's: a run depends on nothing but what its wires and clock do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use forebay_runtime::clock::{Clock, timeout};
use forebay_runtime::tasks::Tasks;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::embedded::plan::Plan;
use super::embedded::state::{Found, State};
use super::embedded::watch as following;
use super::error::{
    BadRequest, LeaseError, ReadError, Regressed, TxnError, Unavailable, Unknown, WatchError,
};
use super::lease::{LeaseKeeper, LeaseOwner};
use super::types::{Entry, LeaseId, Page, Range, Revision, Txn, TxnReply, incarnation_base};
use super::watch::WatchStream;
use super::{MetaStore, check};

/// How long a caller waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The network between one process and the store.
pub trait Wire: Send + Sync + 'static {
    /// How long a message takes to the store; none where it never arrives.
    fn there(&self) -> Option<Duration>;

    /// How long a message takes back; none where it never arrives.
    fn back(&self) -> Option<Duration>;

    /// How long news of changes take to whoever watches a prefix; none where they do not come for now,
    /// though answers may: as from a member of the store that fell behind.
    fn news(&self, prefix: &str) -> Option<Duration> {
        let _ = prefix;
        self.back()
    }
}

/// What a store held at some time.
#[derive(Debug, Clone)]
pub struct Image {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
}

impl Image {
    pub(super) const fn new(entries: BTreeMap<String, Entry>, revision: Revision) -> Self {
        Self { entries, revision }
    }
}

/// The store itself. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimulatedStore {
    server: Arc<Server>,
}

struct Server {
    state: RwLock<State>,
    changes: watch::Sender<Revision>,
    /// When each lease was last renewed.
    renewed: Mutex<BTreeMap<LeaseId, Duration>>,
    next_lease: AtomicU64,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
}

impl fmt::Debug for SimulatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedStore")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl SimulatedStore {
    /// An empty store. What is under way within it runs in `tasks`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, tasks: Tasks) -> Self {
        let server = Server {
            state: RwLock::new(State::new(BTreeMap::new(), Revision(0))),
            changes: watch::Sender::new(Revision(0)),
            renewed: Mutex::default(),
            next_lease: AtomicU64::new(1),
            clock,
            tasks,
        };
        Self {
            server: Arc::new(server),
        }
    }

    /// The store as one process sees it; its renewals run in `tasks`, and end with them.
    #[must_use]
    pub fn client(&self, wire: Arc<dyn Wire>, tasks: Tasks) -> Arc<dyn MetaStore> {
        Arc::new(Client {
            line: Arc::new(Line {
                server: Arc::clone(&self.server),
                wire,
                seen: Mutex::new(Revision(0)),
                closed: CancellationToken::new(),
            }),
            tasks,
        })
    }

    /// Its revision now.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.server.state.read().revision()
    }

    /// All entries with a prefix, now.
    #[must_use]
    pub fn entries(&self, prefix: &str) -> Vec<Entry> {
        let image = self.image();
        let within = image.entries.into_values();
        within.filter(|entry| entry.key.starts_with(prefix)).collect()
    }

    /// Every change that was made since a revision; the simulation's own view, which nothing delays.
    #[must_use]
    pub fn follow(&self, prefix: &str, after: Revision) -> WatchStream {
        follow(Arc::clone(&self.server), None, prefix, after)
    }

    /// Leases that are alive, each with its keys.
    #[must_use]
    pub fn leases(&self) -> Vec<(LeaseId, Vec<String>)> {
        let state = self.server.state.read();
        let renewed = self.server.renewed.lock();
        let keys = |id: &LeaseId| state.leased(*id).map(str::to_owned).collect();
        renewed.keys().map(|id| (*id, keys(id))).collect()
    }

    /// Ends a lease, whether its holder is healthy or not.
    pub fn end_lease(&self, lease: LeaseId) {
        self.server.end_lease(lease);
    }

    /// What it holds now.
    #[must_use]
    pub fn image(&self) -> Image {
        self.server.state.read().image()
    }

    /// Gives all revisions those of the next incarnation, as clients see them that know of it. All leases
    /// are over.
    pub fn raise(&self) {
        let mut image = self.image();
        let step = incarnation_base(2);
        let raise = |revision: &mut Revision| revision.0 = revision.0.saturating_add(step);
        for entry in image.entries.values_mut() {
            raise(&mut entry.create_revision);
            raise(&mut entry.mod_revision);
        }
        raise(&mut image.revision);
        self.restore(image);
    }

    /// Puts back what it held before, as after a restore from a backup: revisions begin there again,
    /// and all leases are over.
    pub fn restore(&self, image: Image) {
        let ended = {
            let mut state = self.server.state.write();
            let ended = state.end_leases();
            *state = State::new(image.entries, image.revision);
            ended
        };
        self.server.renewed.lock().clear();
        for lost in ended {
            lost.cancel();
        }
        self.server.changes.send_replace(image.revision);
    }
}

impl Server {
    fn apply(&self, txn: &Txn) -> Result<TxnReply, BadRequest> {
        self.plan(|plan| plan.txn(txn))
    }

    fn plan<T>(&self, change: impl FnOnce(&mut Plan<'_>) -> T) -> T {
        let (result, done, lost) = {
            let mut state = self.state.write();
            let mut plan = Plan::new(&state);
            let result = change(&mut plan);
            let done = plan.finish();
            let revision = done.revision;
            let lost = state.advance(revision, done.changes, &done.ended);
            (result, revision, lost)
        };
        lost.into_iter().for_each(|lost| lost.cancel());
        self.changes.send_if_modified(|revision| {
            let moved = *revision != done;
            *revision = done;
            moved
        });
        result
    }

    fn grant(self: &Arc<Self>, ttl: Duration) -> Result<LeaseId, BadRequest> {
        let id = LeaseId(self.next_lease.fetch_add(1, Ordering::Relaxed));
        // The holder finds out by its renewals, so the store tells nobody.
        let granted = self.state.write().grant(id, ttl, CancellationToken::new());
        granted.map_err(|count_max| BadRequest::TooMany {
            what: "leases",
            count: count_max + 1,
            count_max,
        })?;
        self.renewed.lock().insert(id, self.clock.monotonic());
        let server = Arc::clone(self);
        self.tasks.spawn(format!("lease-{id}"), async move {
            loop {
                let Some(renewed) = server.renewed.lock().get(&id).copied() else {
                    return;
                };
                let now = server.clock.monotonic();
                if now >= renewed + ttl {
                    return server.end_lease(id);
                }
                server.clock.sleep(renewed + ttl - now).await;
            }
        });
        Ok(id)
    }

    /// Whether the lease was alive.
    fn renew(&self, id: LeaseId) -> bool {
        let mut renewed = self.renewed.lock();
        renewed
            .get_mut(&id)
            .map(|at| *at = self.clock.monotonic())
            .is_some()
    }

    fn end_lease(&self, id: LeaseId) {
        if self.renewed.lock().remove(&id).is_some() {
            self.plan(|plan| plan.revoke(id));
        }
    }
}

/// A client's connection.
struct Line {
    server: Arc<Server>,
    wire: Arc<dyn Wire>,
    /// Highest revision that was answered (I24).
    seen: Mutex<Revision>,
    closed: CancellationToken,
}

/// What became of a call.
enum Called<T> {
    Answered(T),
    /// It may have arrived.
    Lost,
    Closed,
}

impl Line {
    /// Asks the store for something. What was sent is done when it arrives, whoever waits for it.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Arc<Server>) -> T + Send + 'static,
    ) -> Called<T> {
        if self.closed.is_cancelled() {
            return Called::Closed;
        }
        let (reply, answer) = oneshot::channel();
        if let Some(there) = self.wire.there() {
            let line = Arc::clone(self);
            self.server.tasks.spawn("call", async move {
                pass(&line.server, there).await;
                let answer = ask(&line.server);
                if let Some(back) = line.wire.back() {
                    pass(&line.server, back).await;
                    // Whoever asked may have given up.
                    let _ = reply.send(answer);
                } else {
                    line.server.clock.sleep(CALL_TIMEOUT).await;
                }
            });
        } else {
            let (clock, reply) = (Arc::clone(&self.server.clock), reply);
            self.server.tasks.spawn("lost call", async move {
                clock.sleep(CALL_TIMEOUT).await;
                drop(reply);
            });
        }
        match timeout(&*self.server.clock, CALL_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Called::Answered(answer),
            Ok(Err(_)) | Err(_) => Called::Lost,
        }
    }

    fn admit(&self, revision: Revision) -> Result<(), Regressed> {
        let mut seen = self.seen.lock();
        if revision < *seen {
            return Err(Regressed::Revision {
                seen: *seen,
                got: revision,
            });
        }
        *seen = revision;
        Ok(())
    }

    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&State) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let seen = *self.seen.lock();
        let asked = self.call(move |server| {
            let state = server.state.read();
            look(&state).map(|found| (found, state.revision()))
        });
        match asked.await {
            Called::Answered(answer) => {
                let (found, revision) = answer?;
                // Answers overtake each other: only one from before the question is wrong.
                if revision < seen {
                    self.admit(revision)?;
                }
                let mut newest = self.seen.lock();
                *newest = (*newest).max(revision);
                Ok(found)
            }
            Called::Lost => Err(Unavailable("no answer".to_owned()).into()),
            Called::Closed => Err(Unavailable("closed".to_owned()).into()),
        }
    }
}

async fn pass(server: &Server, time: Duration) {
    if !time.is_zero() {
        server.clock.sleep(time).await;
    }
}

struct Client {
    line: Arc<Line>,
    tasks: Tasks,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("seen", &*self.line.seen.lock())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl MetaStore for Client {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), ReadError> {
        check::key(key)?;
        let key = key.to_owned();
        let look = move |state: &State| Ok((state.get(&key).cloned(), state.revision()));
        self.line.read(look).await
    }

    async fn get_many(&self, keys: &[String]) -> Result<(Vec<Option<Entry>>, Revision), ReadError> {
        check::keys(keys)?;
        let keys = keys.to_vec();
        let look = move |state: &State| {
            let entries = keys.iter().map(|key| state.get(key).cloned()).collect();
            Ok((entries, state.revision()))
        };
        self.line.read(look).await
    }

    async fn range(&self, range: Range) -> Result<Page, ReadError> {
        check::range(&range)?;
        self.line.read(move |state| state.range(&range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, TxnError> {
        check::txn(&txn)?;
        let seen = *self.line.seen.lock();
        match self.line.call(move |server| server.apply(&txn)).await {
            Called::Answered(answer) => {
                let reply = answer?;
                if reply.revision < seen {
                    self.line.admit(reply.revision)?;
                }
                let mut newest = self.line.seen.lock();
                *newest = (*newest).max(reply.revision);
                Ok(reply)
            }
            Called::Lost => Err(Unknown("no answer".to_owned()).into()),
            Called::Closed => Err(Unavailable("closed".to_owned()).into()),
        }
    }

    fn watch(&self, prefix: &str, after: Revision) -> WatchStream {
        follow(
            Arc::clone(&self.line.server),
            Some(Arc::clone(&self.line)),
            prefix,
            after,
        )
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseKeeper, LeaseError> {
        check::ttl(ttl)?;
        let sent_at = self.line.server.clock.monotonic();
        let id = match self.line.call(move |server| server.grant(ttl)).await {
            Called::Answered(granted) => granted?,
            Called::Lost => return Err(Unavailable("no answer".to_owned()).into()),
            Called::Closed => return Err(Unavailable("closed".to_owned()).into()),
        };
        let (lost, ended, stop) = (
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let renewal = Renewal {
            line: Arc::clone(&self.line),
            id,
            ttl,
            proven_until: sent_at + ttl,
            lost: lost.clone(),
            ended: ended.clone(),
            stop: stop.clone(),
        };
        self.tasks.spawn(format!("renew-{id}"), renewal.run());
        let owner = Owner {
            line: Arc::clone(&self.line),
            stop,
        };
        Ok(LeaseKeeper::new(id, ttl, lost, ended, Arc::new(owner)))
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        revoke(&self.line, lease).await
    }

    async fn close(&self) {
        self.line.closed.cancel();
    }
}

async fn revoke(line: &Arc<Line>, lease: LeaseId) -> Result<(), LeaseError> {
    match line.call(move |server| server.end_lease(lease)).await {
        Called::Answered(()) => Ok(()),
        Called::Lost => Err(Unavailable("no answer".to_owned()).into()),
        Called::Closed => Err(Unavailable("closed".to_owned()).into()),
    }
}

struct Owner {
    line: Arc<Line>,
    /// Ends the renewals.
    stop: CancellationToken,
}

#[async_trait]
impl LeaseOwner for Owner {
    async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.stop.cancel();
        revoke(&self.line, lease).await
    }

    fn released(&self, _lease: LeaseId) {
        self.stop.cancel();
    }
}

/// Keeps a lease alive, three times per time to live, as the etcd store does.
struct Renewal {
    line: Arc<Line>,
    id: LeaseId,
    ttl: Duration,
    proven_until: Duration,
    lost: CancellationToken,
    ended: CancellationToken,
    stop: CancellationToken,
}

impl Renewal {
    async fn run(mut self) {
        let mut pause = self.ttl / 3;
        loop {
            let clock = Arc::clone(&self.line.server.clock);
            let left = self.left(&*clock);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.line.closed.cancelled() => break,
                () = clock.sleep(pause.min(left)) => {}
            }
            let sent_at = clock.monotonic();
            if sent_at >= self.proven_until && !self.lost.is_cancelled() {
                tracing::warn!(lease = %self.id, ttl = ?self.ttl, "lease not renewed in time");
                self.lost.cancel();
            }
            let (id, left) = (self.id, self.left(&*clock));
            let renewed = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                renewed = timeout(&*clock, left, self.line.call(move |server| server.renew(id))) => renewed,
            };
            match renewed {
                Ok(Called::Answered(true)) => {
                    self.proven_until = sent_at + self.ttl;
                    pause = self.ttl / 3;
                }
                Ok(Called::Answered(false)) => {
                    tracing::warn!(lease = %self.id, "lease has ended");
                    break;
                }
                Ok(Called::Lost | Called::Closed) | Err(_) => pause = RETRY_PAUSE,
            }
        }
        self.lost.cancel();
        self.ended.cancel();
    }

    /// Until the lease counts as lost, or until its time to live where it does already.
    fn left(&self, clock: &dyn Clock) -> Duration {
        if self.lost.is_cancelled() {
            self.ttl
        } else {
            self.proven_until.saturating_sub(clock.monotonic())
        }
    }
}

/// What a watch follows.
struct Followed {
    server: Arc<Server>,
    /// Where events come late, or not for now.
    line: Option<Arc<Line>>,
    prefix: String,
}

fn follow(server: Arc<Server>, line: Option<Arc<Line>>, prefix: &str, after: Revision) -> WatchStream {
    let changes = server.changes.subscribe();
    let followed = Followed {
        server,
        line,
        prefix: prefix.to_owned(),
    };
    following::start(followed, changes, prefix, after)
}

#[async_trait]
impl following::Source for Followed {
    async fn admit(&self, now: Revision, after: Revision) -> Result<(), WatchError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        // Where nothing comes through for now it looks again, as a stream that is resumed would.
        let back = loop {
            if line.closed.is_cancelled() {
                return Err(WatchError::Closed);
            }
            match line.wire.news(&self.prefix) {
                Some(back) => break back,
                None => self.server.clock.sleep(RETRY_PAUSE).await,
            }
        };
        pass(&self.server, back).await;
        if now < after {
            line.admit(now)?;
        }
        Ok(())
    }

    fn events(&self, prefix: &str, after: Revision) -> Found {
        self.server.state.read().events(prefix, after)
    }

    async fn closed(&self) {
        match &self.line {
            Some(line) => line.closed.cancelled().await,
            None => std::future::pending().await,
        }
    }
}
