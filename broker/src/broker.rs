//! Puts a broker together: session, owners' task, storage nodes, assignments, connections.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use forebay_meta::session::{self, Session, SessionError};
use forebay_meta::store::{MetaStore, Revision, WatchError, scan};
use forebay_meta::{keys, topics};
use forebay_proto::data::endpoint::{Dialer, FrontProtocol, Listener, ReplicaProtocol};
use forebay_proto::stored::BrokerRecord;
use forebay_record::{BrokerId, SessionId};
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::assignments::Assignments;
use crate::changes::Changes;
use crate::config::BrokerConfig;
use crate::front::Front;
use crate::metrics::BrokerMetrics;
use crate::nodes::Nodes;
use crate::objects::Objects;
use crate::owners::{Command, Driver, Settings};
use crate::registration::Registration;
use crate::service::Control;
use crate::store::Records;

/// Messages that may wait for the owners' task.
const MAILBOX: usize = 8_192;
/// How often the session's floor is stored.
const PROMISE_EVERY: Duration = Duration::from_secs(60);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often a broker that hands over looks what is left.
const LEFT_EVERY: Duration = Duration::from_millis(10);
/// A broker that hands over waits so long for somebody to take the next partition.
const STALLED_MAX: Duration = Duration::from_secs(3);
/// A broker that leaves waits so long for its proxies' last requests.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Brokers that a cluster may have.
const BROKERS_MAX: usize = 65_536;
/// How often the metadata store is asked whether it answers.
const PULSE: Duration = Duration::from_secs(3);
/// A metadata store may be silent for so long, at least, before that means anything.
const SILENCE_MIN: Duration = Duration::from_secs(8);

/// What a broker is made of.
#[derive(Clone)]
pub struct Parts {
    /// Cluster id.
    pub cluster: String,
    /// Cluster incarnation.
    pub incarnation: u32,
    /// The metadata store.
    pub store: Arc<dyn MetaStore>,
    /// The object store, where there is one.
    pub objects: Option<Objects>,
    /// To reach storage nodes.
    pub nodes: Dialer<ReplicaProtocol>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Begins spans.
    pub tracer: Tracer,
    /// Where tasks run.
    pub tasks: Tasks,
}

/// A running broker.
pub struct Broker {
    session: Arc<Session>,
    mailbox: mpsc::Sender<Command>,
    control: Control,
    intake: Tasks,
    work: Tasks,
    connections: Tasks,
    leaving: CancellationToken,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Registers the broker's session and begins to take partitions.
    ///
    /// The session is this process's identity (I1): where it is lost, the process group is asked
    /// to shut down, and whatever is still open here can no longer commit metadata.
    ///
    /// # Errors
    /// Where the metadata store does not take the session.
    pub async fn start(
        config: BrokerConfig,
        parts: Parts,
        mut listener: Listener<FrontProtocol>,
    ) -> Result<Self, SessionError> {
        let record = BrokerRecord {
            id: config.id.0,
            data_address: config.data_address.clone(),
            control_address: config.control_address.clone(),
            zone: config.zone.clone(),
            l0_floor: 0,
            draining: false,
        };
        let session = session::register_broker(Arc::clone(&parts.store), &record, config.session_ttl).await?;
        tracing::info!(broker = %config.id, session = %session.id(), "broker session registered");
        // Whatever is granted later is read later: from here on no change is missed.
        let topics_from = Revision(session.id().0);
        let (intake, work) = (parts.tasks.group("intake"), parts.tasks.group("work"));
        let (connections, leaving) = (work.group("connections"), CancellationToken::new());
        let (mailbox, commands) = mpsc::channel(MAILBOX);
        let (released_tx, released) = mpsc::unbounded_channel();
        let records = Records {
            store: Arc::clone(&parts.store),
            me: config.id,
            session: session.id(),
        };
        let (floor, published) = watch::channel(0);
        let (changes, waiting) = mpsc::unbounded_channel();
        let storing = Changes {
            records: records.clone(),
            clock: Arc::clone(&parts.clock),
            waiting,
            mailbox: mailbox.clone(),
        };
        work.spawn("changes", storing.run(work.token()));
        let driver = Driver::new(Settings {
            partition: config.partition.clone(),
            tail_cache_bytes: config.tail_cache_bytes,
            records: records.clone(),
            changes,
            clock: Arc::clone(&parts.clock),
            nonce: parts.random.u64(),
            tasks: work.clone(),
            mailbox: mailbox.clone(),
            released: released_tx,
            objects: parts.objects.clone(),
            floor,
            silence_max_ms: u64::try_from(config.session_ttl.max(SILENCE_MIN).as_millis())
                .unwrap_or(u64::MAX),
            repair_bytes_per_second: config.repair_bytes_per_second,
            metrics: BrokerMetrics::new(&parts.metrics),
            tracer: parts.tracer.clone(),
        });
        let token = work.token();
        work.spawn("owners", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = driver.run(commands) => {}
            }
        });
        let nodes = Nodes {
            store: Arc::clone(&parts.store),
            dialer: parts.nodes.clone(),
            cluster: parts.cluster.clone(),
            incarnation: parts.incarnation,
            peer: format!("broker {}", config.id),
            clock: Arc::clone(&parts.clock),
            tasks: work.clone(),
            events: mailbox.clone(),
        };
        work.spawn("nodes", nodes.run());
        work.spawn(
            "pulse",
            pulse(
                Arc::clone(&parts.store),
                Arc::clone(&parts.clock),
                mailbox.clone(),
                work.token(),
            ),
        );
        work.spawn(
            "topics",
            follow_topics(
                Arc::clone(&parts.store),
                Arc::clone(&parts.clock),
                topics_from,
                mailbox.clone(),
                parts.tasks.clone(),
                work.token(),
            ),
        );
        let assignments = Assignments {
            records,
            clock: Arc::clone(&parts.clock),
            random: Arc::clone(&parts.random),
            tasks: intake.clone(),
            mailbox: mailbox.clone(),
            released,
        };
        intake.spawn("assignments", assignments.run());
        let front = Front {
            cluster: parts.cluster.clone(),
            broker: config.id,
            session: session.id(),
            mailbox: mailbox.clone(),
            connections: Arc::new(AtomicU64::new(1)),
            tracer: parts.tracer.clone(),
            leaving: leaving.clone(),
        };
        let (accepted_in, clock) = (connections.clone(), Arc::clone(&parts.clock));
        let token = intake.token();
        intake.spawn("accept", async move {
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = token.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok(link) => {
                        let (front, stop) = (front.clone(), accepted_in.token());
                        accepted_in.spawn("connection", async move {
                            tokio::select! {
                                () = stop.cancelled() => {}
                                () = front.serve(link) => {}
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        clock.sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        });
        let session = Arc::new(session);
        let registration = Arc::new(Registration::new(Arc::clone(&session), record));
        work.spawn(
            "floor",
            promise(
                Arc::clone(&registration),
                published,
                Arc::clone(&parts.clock),
                work.token(),
            ),
        );
        let (lost, process) = (session.lost(), parts.tasks.clone());
        let (stop, me) = (work.token(), config.id);
        work.spawn("session", async move {
            tokio::select! {
                // A session that ends because the broker left is not lost.
                biased;
                () = stop.cancelled() => {}
                () = lost => {
                    tracing::error!(broker = %me, "the broker's session is lost");
                    process.request_shutdown(format!("session of broker {me} is lost"));
                }
            }
        });
        let control = Control {
            store: parts.store,
            me: config.id,
            session: session.id(),
            mailbox: mailbox.clone(),
            registration,
            producer_ids: Arc::default(),
        };
        Ok(Self {
            session,
            mailbox,
            control,
            intake,
            work,
            connections,
            leaving,
        })
    }

    /// The control service.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// This broker.
    #[must_use]
    pub const fn id(&self) -> BrokerId {
        self.control.me
    }

    /// Its session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session.id()
    }

    /// Has its partitions moved to other brokers, as far as there are any and a controller sees to it:
    /// each is served all the time but for the moment of its own move. Returns when nothing is left,
    /// when nobody takes anything for [`STALLED_MAX`], or at the deadline; [`Broker::shutdown`] does
    /// the rest.
    pub async fn hand_over(&self, clock: &dyn Clock, deadline: Duration) {
        if let Err(error) = self.try_hand_over(clock, deadline).await {
            tracing::warn!(broker = %self.id(), error, "partitions are not handed over");
        }
    }

    async fn try_hand_over(&self, clock: &dyn Clock, deadline: Duration) -> Result<(), String> {
        let store = &self.control.store;
        let (brokers, _) = scan(store.as_ref(), keys::BROKERS, BROKERS_MAX)
            .await
            .map_err(|error| error.to_string())?;
        let mine = keys::broker(self.id());
        if self.owned().await? == 0 || brokers.iter().all(|entry| entry.key == mine) {
            return Ok(());
        }
        let registration = &self.control.registration;
        registration
            .update(|record| record.draining = true)
            .await
            .map_err(|error| error.to_string())?;
        let begun = clock.monotonic();
        let (mut left, mut progress) = (self.owned().await?, begun);
        while left > 0 {
            clock.sleep(LEFT_EVERY).await;
            let (now, owned) = (clock.monotonic(), self.owned().await?);
            if owned < left {
                progress = now;
            }
            left = owned;
            if now.saturating_sub(progress) >= STALLED_MAX || now.saturating_sub(begun) >= deadline {
                return Err(format!("{left} are left after {:?}", now.saturating_sub(begun)));
            }
        }
        Ok(())
    }

    /// How many partitions are owned here.
    async fn owned(&self) -> Result<usize, String> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| "the owners' task has ended".to_owned();
        let asked = self.mailbox.send(Command::Summarize(reply)).await;
        asked.map_err(|error| error.to_string())?;
        Ok(answer.await.map_err(gone)?.partitions)
    }

    /// Leaves in order: takes nothing new, commits and seals what it has, answers what is still asked, ends
    /// its session.
    pub async fn shutdown(self, clock: &dyn Clock, deadline: Duration) {
        self.intake.cancel();
        let (done, resigned) = oneshot::channel();
        if self.mailbox.send(Command::ResignAll(done)).await.is_ok()
            && forebay_runtime::clock::timeout(clock, deadline, resigned)
                .await
                .is_err()
        {
            tracing::warn!(broker = %self.id(), "partitions were still busy when the broker left");
        }
        // A batch that is on its way here is answered: closed unread, its outcome would be in doubt.
        self.leaving.cancel();
        if forebay_runtime::clock::timeout(clock, FAREWELL_MAX, self.connections.wait())
            .await
            .is_err()
        {
            let left = self.connections.running().len();
            tracing::warn!(broker = %self.id(), left, "proxies did not say goodbye in time");
        }
        // Before the session ends, so that its end is not taken for a loss.
        self.work.cancel();
        if let Err(error) = self.session.close().await {
            tracing::warn!(%error, "the broker's session was not closed; it will expire");
        }
    }
}

/// Writes the session's promise into its record: no object with an older revision in its name will
/// get its first reference from here. Garbage collection removes nothing newer.
async fn promise(
    registration: Arc<Registration>,
    mut floor: watch::Receiver<u64>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = floor.changed() => if changed.is_err() { return },
        }
        let newest = *floor.borrow_and_update();
        match registration.update(|record| record.l0_floor = newest).await {
            Ok(()) => {}
            Err(SessionError::Over { .. }) => return,
            Err(error) => tracing::warn!(%error, "the session's floor was not stored; garbage waits"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(PROMISE_EVERY) => {}
        }
    }
}

/// Tells the owners' task of topics that change, so that a changed configuration is in force within
/// moments. Where the store went back in time the process must not go on (I24).
async fn follow_topics(
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    after: Revision,
    mailbox: mpsc::Sender<Command>,
    process: Tasks,
    stop: CancellationToken,
) {
    let tell = |change| {
        let mailbox = &mailbox;
        async move {
            // A closed mailbox owns nothing that could change.
            let _ = mailbox.send(Command::TopicChanged(change)).await;
        }
    };
    let ended = tokio::select! {
        () = stop.cancelled() => return,
        ended = topics::follow(store, clock, after, tell) => ended,
    };
    match ended {
        Ok(never) => match never {},
        Err(WatchError::Closed) => {}
        Err(error) => process.request_shutdown(format!("topics cannot be followed: {error}")),
    }
}

/// Asks the metadata store for a sign of life, so that planned changes wait while it has none.
async fn pulse(
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    mailbox: mpsc::Sender<Command>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        match store.get(keys::CLUSTER).await {
            Ok((_, revision)) => {
                if mailbox.send(Command::MetadataAnswered(revision.0)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "the metadata store does not answer; planned rolls wait"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(PULSE) => {}
        }
    }
}
