//! Sessions with brokers and storage nodes: one multiplexed link per peer, kept in a [`Pool`].
//!
//! 1. [`Pool::ensure`] dials a peer that has no session, says hello and waits for the welcome.
//! 2. A [`Session`] numbers requests and hands each answer to who asked for it. Dropping a
//!    request withdraws it where the protocol can.
//! 3. What answers no request here (a produce's outcome) and the session's beginning and end go
//!    to the pool's event queue, in order.
//! 4. A session that ended is dialled again when next asked for, after a backoff.

mod front;
mod node;

use std::collections::HashMap;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_proto::data::endpoint::{ClientLink, Dialer, Protocol};
use forebay_proto::data::link::{LinkReceiver, LinkSender, TrySendError};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_runtime::clock::{self, Clock};
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::{self, TraceContext};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

/// A peer that does not answer a dial and a hello for this long is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The first wait after a failure, doubling.
const RETRY_BASE: Duration = Duration::from_millis(20);
const RETRY_CEILING: Duration = Duration::from_secs(1);
/// Peers remembered; a cluster has fewer.
const PEERS_MAX: usize = 16_384;

/// Who this process is to its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Cluster id.
    pub cluster: String,
    /// Cluster incarnation.
    pub incarnation: u32,
    /// This process's name, for logs.
    pub name: String,
}

/// What one protocol's client end must say and understand.
pub(crate) trait Speaks: Protocol {
    /// Names a peer.
    type Peer: Copy + Eq + Hash + Display + Debug + Send + Sync + 'static;
    /// What a peer is called in messages.
    const WHAT: &'static str;
    /// The first message.
    fn hello(identity: &Identity, peer: Self::Peer) -> Self::Up;
    /// Checks the first answer.
    fn greeted(answer: Self::Down, peer: Self::Peer) -> Result<(), String>;
    /// The request that a message answers here, none where it is an event.
    fn answers(message: &Self::Down) -> Option<u64>;
    /// True where the peer says that it will end the session: it takes no request any more.
    fn leaves(message: &Self::Down) -> bool;
    /// Withdraws a request.
    fn cancel(request: u64) -> Option<Self::Up>;
    /// The same message as part of a trace.
    fn traced(context: Box<TraceContext>, message: Self::Up) -> Self::Up;
}

/// Something that happened to a session.
pub(crate) struct PeerEvent<P: Speaks> {
    pub peer: P::Peer,
    /// Counts the pool's sessions: tells a later session with the same peer apart.
    pub generation: u64,
    pub kind: PeerEventKind<P>,
}

pub(crate) enum PeerEventKind<P: Speaks> {
    /// The session begins.
    Up(LinkSender<P::Up>),
    /// A message that answers no request of [`Session::request`].
    Message(P::Down),
    /// The session ended, or never began.
    Down(String),
}

type Waiting<D> = Mutex<Option<HashMap<u64, oneshot::Sender<D>>>>;

/// A live session.
pub(crate) struct Session<P: Speaks> {
    peer: P::Peer,
    tx: LinkSender<P::Up>,
    next: AtomicU64,
    /// None once the session has ended.
    waiting: Waiting<P::Down>,
}

impl<P: Speaks> Session<P> {
    /// Asks and waits for the answer.
    ///
    /// Cancel safety: dropping the future forgets the request and withdraws it where possible.
    ///
    /// # Errors
    /// Where the session ends first. The request must be one that may be repeated.
    pub(crate) async fn request(&self, make: impl FnOnce(u64) -> P::Up) -> Result<P::Down, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, tx),
            None => return Err(self.lost()),
        };
        let mut asked = Asked {
            session: self,
            id,
            answered: false,
        };
        let message = match trace::current() {
            Some(context) => P::traced(context, make(id)),
            None => make(id),
        };
        if self.tx.send(message).await.is_err() {
            return Err(self.lost());
        }
        let answer = rx.await;
        asked.answered = true;
        answer.map_err(|_| self.lost())
    }

    fn lost(&self) -> Failure {
        Failure::new(
            ErrorCode::Unavailable,
            format!("connection to {} {} was lost", P::WHAT, self.peer),
        )
    }
}

/// Forgets a request that nobody waits for any more.
struct Asked<'a, P: Speaks> {
    session: &'a Session<P>,
    id: u64,
    answered: bool,
}

impl<P: Speaks> Drop for Asked<'_, P> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(waiting) = self.session.waiting.lock().as_mut() {
            waiting.remove(&self.id);
        }
        if let Some(cancel) = P::cancel(self.id) {
            match self.session.tx.try_send(cancel) {
                // Without a cancel the peer answers at its own deadline, and nobody listens.
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
            }
        }
    }
}

enum State<P: Speaks> {
    Connecting,
    Up(Arc<Session<P>>),
    Down(String),
}

struct Known<P: Speaks> {
    address: Arc<str>,
    state: watch::Receiver<State<P>>,
    failures: u32,
    retry_at: Duration,
}

/// How a peer stands after [`Pool::ensure`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A session exists or is being made; an event tells when.
    Underway,
    /// The last try failed and it is too early for another.
    Resting(String),
}

/// All sessions of one protocol. Clones share them.
pub(crate) struct Pool<P: Speaks> {
    shared: Arc<Shared<P>>,
}

impl<P: Speaks> Clone for Pool<P> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<P: Speaks> {
    dialer: Dialer<P>,
    identity: Identity,
    events: Option<mpsc::Sender<PeerEvent<P>>>,
    peers: Mutex<HashMap<P::Peer, Known<P>>>,
    generations: AtomicU64,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    tasks: Tasks,
}

impl<P: Speaks> Pool<P> {
    pub(crate) fn new(
        dialer: Dialer<P>,
        identity: Identity,
        events: Option<mpsc::Sender<PeerEvent<P>>>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        tasks: Tasks,
    ) -> Self {
        let peers = Mutex::default();
        let generations = AtomicU64::new(1);
        let shared = Shared {
            dialer,
            identity,
            events,
            peers,
            generations,
            clock,
            random,
            tasks,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Dials the peer unless a session exists, is being made, or has just failed.
    pub(crate) fn ensure(&self, peer: P::Peer, address: &Arc<str>) -> Standing {
        match self.known(peer, address) {
            Ok(_) => Standing::Underway,
            Err(reason) => Standing::Resting(reason),
        }
    }

    /// The session with a peer, made if there is none.
    ///
    /// # Errors
    /// Where the peer cannot be reached.
    pub(crate) async fn session(
        &self,
        peer: P::Peer,
        address: &Arc<str>,
    ) -> Result<Arc<Session<P>>, Failure> {
        let unreachable = |reason: &str| {
            Failure::new(
                ErrorCode::Unavailable,
                format!("{} {peer} at {address} cannot be reached: {reason}", P::WHAT),
            )
        };
        let mut state = self.known(peer, address).map_err(|reason| unreachable(&reason))?;
        loop {
            match &*state.borrow_and_update() {
                State::Up(session) => return Ok(Arc::clone(session)),
                State::Down(reason) => return Err(unreachable(reason)),
                State::Connecting => {}
            }
            if state.changed().await.is_err() {
                return Err(unreachable("the proxy is stopping"));
            }
        }
    }

    fn known(&self, peer: P::Peer, address: &Arc<str>) -> Result<watch::Receiver<State<P>>, String> {
        let shared = &self.shared;
        let mut peers = shared.peers.lock();
        let mut failures = 0;
        if let Some(known) = peers.get(&peer) {
            let here = known.address == *address;
            match &*known.state.borrow() {
                // A session with an old address ends by itself when its process is gone; until
                // then nothing is lost by using it, since every request names an epoch.
                State::Up(_) => return Ok(known.state.clone()),
                State::Connecting if here => return Ok(known.state.clone()),
                State::Down(reason) if here && shared.clock.monotonic() < known.retry_at => {
                    return Err(reason.clone());
                }
                State::Down(_) if here => failures = known.failures,
                State::Connecting | State::Down(_) => {}
            }
        } else if peers.len() >= PEERS_MAX {
            peers.retain(|_, known| !matches!(*known.state.borrow(), State::Down(_)));
        }
        let (publish, state) = watch::channel(State::Connecting);
        let known = Known {
            address: Arc::clone(address),
            state: state.clone(),
            failures,
            retry_at: Duration::ZERO,
        };
        peers.insert(peer, known);
        drop(peers);
        let generation = shared.generations.fetch_add(1, Ordering::Relaxed);
        let run = run(Arc::clone(shared), peer, Arc::clone(address), generation, publish);
        shared
            .tasks
            .spawn(format!("session with {} {peer}", P::WHAT), run);
        Ok(state)
    }
}

impl<P: Speaks> Shared<P> {
    async fn tell(&self, peer: P::Peer, generation: u64, kind: PeerEventKind<P>) {
        if let Some(events) = &self.events
            && events
                .send(PeerEvent {
                    peer,
                    generation,
                    kind,
                })
                .await
                .is_err()
        {
            tracing::trace!(%peer, "nobody listens for session events any more");
        }
    }

    async fn connect(&self, peer: P::Peer, address: &str) -> Result<ClientLink<P>, String> {
        let connecting = async {
            let mut link = self
                .dialer
                .dial(address)
                .await
                .map_err(|error| error.to_string())?;
            let hello = P::hello(&self.identity, peer);
            link.tx.send(hello).await.map_err(|closed| closed.to_string())?;
            match link.rx.recv().await {
                Ok(Some(answer)) => P::greeted(answer, peer).map(|()| link),
                Ok(None) => Err("connection was closed instead of a welcome".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        };
        match clock::timeout(&*self.clock, CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(elapsed) => Err(elapsed.to_string()),
        }
    }

    /// Notes how the session ended, and when the next may be tried.
    fn rest(&self, peer: P::Peer, address: &Arc<str>, was_up: bool) {
        let mut peers = self.peers.lock();
        let Some(known) = peers.get_mut(&peer).filter(|known| known.address == *address) else {
            return;
        };
        known.failures = if was_up {
            0
        } else {
            known.failures.saturating_add(1)
        };
        let wait = match known.failures {
            0 => Duration::ZERO,
            failures => RETRY_BASE
                .saturating_mul(2_u32.saturating_pow(failures.min(16) - 1))
                .min(RETRY_CEILING),
        };
        let half = u64::try_from(wait.as_nanos() / 2).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.range(0, half.saturating_add(1)));
        known.retry_at = self
            .clock
            .monotonic()
            .saturating_add(wait / 2)
            .saturating_add(jitter);
    }
}

/// One session from dial to end.
async fn run<P: Speaks>(
    shared: Arc<Shared<P>>,
    peer: P::Peer,
    address: Arc<str>,
    generation: u64,
    publish: watch::Sender<State<P>>,
) {
    let token = shared.tasks.token();
    let connected = tokio::select! {
        () = token.cancelled() => Err("the proxy is stopping".to_owned()),
        connected = shared.connect(peer, &address) => connected,
    };
    let was_up = connected.is_ok();
    let reason = match connected {
        Err(reason) => {
            tracing::debug!(%peer, %address, reason, "no session with {}", P::WHAT);
            reason
        }
        Ok(link) => {
            tracing::info!(%peer, %address, generation, "session with {} begins", P::WHAT);
            let session = Arc::new(Session {
                peer,
                tx: link.tx.clone(),
                next: AtomicU64::new(1),
                waiting: Mutex::new(Some(HashMap::new())),
            });
            publish.send_replace(State::Up(Arc::clone(&session)));
            shared.tell(peer, generation, PeerEventKind::Up(link.tx)).await;
            let reason = tokio::select! {
                () = token.cancelled() => "the proxy is stopping".to_owned(),
                reason = receive(&shared, &session, generation, link.rx) => reason,
            };
            tracing::info!(%peer, %address, generation, reason, "session with {} ends", P::WHAT);
            // Dropping the senders tells everyone who still waits.
            session.waiting.lock().take();
            reason
        }
    };
    shared.rest(peer, &address, was_up);
    publish.send_replace(State::Down(reason.clone()));
    shared.tell(peer, generation, PeerEventKind::Down(reason)).await;
}

async fn receive<P: Speaks>(
    shared: &Shared<P>,
    session: &Session<P>,
    generation: u64,
    mut rx: LinkReceiver<P::Down>,
) -> String {
    loop {
        match rx.recv().await {
            Ok(Some(message)) => match P::answers(&message) {
                Some(id) => {
                    let asker = session
                        .waiting
                        .lock()
                        .as_mut()
                        .and_then(|waiting| waiting.remove(&id));
                    // An answer that nobody waits for belongs to a request that was dropped.
                    if let Some(asker) = asker
                        && asker.send(message).is_err()
                    {
                        tracing::trace!(peer = %session.peer, id, "answer came too late");
                    }
                }
                None => {
                    if P::leaves(&message) {
                        // Whoever waits asks again elsewhere; dropping the senders tells them.
                        session.waiting.lock().take();
                    }
                    shared
                        .tell(session.peer, generation, PeerEventKind::Message(message))
                        .await
                }
            },
            Ok(None) => return "the peer closed the connection".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}
