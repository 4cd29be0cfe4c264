//! The controller: elects a leader, which pings brokers and says where partitions should be.
//!
//! 1. Every process with the role is a candidate ([`election`](self)); one of them leads, and the others
//!    ping it.
//! 2. The leader follows topics, broker sessions and wishes, and pings the brokers.
//! 3. It writes wishes for partitions that have no live broker ([`plan_placement`]). Brokers follow
//!    the wishes and take the partitions by a grant of their own: a wish is a hint, the grant is
//!    what fences, so a mistaken or late wish costs time and never data.
//! 4. It empties brokers that are drained and evens out loads by planned moves, in which the old
//!    owner hands over before the next one takes its grant ([`plan_moves`]).
//! 5. It removes what belongs to deleted topics and to interrupted creations; records that prove to
//!    storage nodes what they may delete go last, once nobody has anything left.
//!
//! It keeps nothing: all it knows is in the metadata store.

mod balance;
mod drain;
mod election;
mod health;
mod leader;
mod moves;
mod place;
mod probe;
mod remove;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_runtime::clock::{Clock, timeout};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use balance::{Held, Limits, Move, plan_moves};
pub use drain::{Ask, Holders};
pub use health::{Illness, ProbeError};
pub use moves::{Balancing, Weigh};
pub use place::{Placement, plan_placement};
pub use probe::{Probe, ProbeLeader, Probes};
pub use status::{BrokerStatus, Status};

use crate::failure::MetaFailure;
use crate::store::{LeaseKeeper, MetaStore, Revision, WatchError};
use leader::Leader;
use probe::{Patients, Prober, Sick};
use status::ControllerMetrics;

/// How long giving up the leadership may take; after that the lease runs out by itself.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the controller, or its leadership, has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Stop {
    #[error("leadership is over")]
    Deposed,
    #[error("metadata store closed")]
    Closed,
    #[error(transparent)]
    Watch(WatchError),
    #[error(transparent)]
    Store(MetaFailure),
}

impl Stop {
    /// Whether the controller can do nothing any more.
    fn is_final(&self) -> bool {
        match self {
            Self::Deposed | Self::Watch(WatchError::Compacted { .. }) => false,
            Self::Closed | Self::Watch(_) => true,
            Self::Store(failure) => failure.regressed().is_some(),
        }
    }
}

impl From<MetaFailure> for Stop {
    fn from(failure: MetaFailure) -> Self {
        Self::Store(failure)
    }
}

impl From<WatchError> for Stop {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Closed => Self::Closed,
            error => Self::Watch(error),
        }
    }
}

/// The controller of one process. Ends with its task group.
pub struct Controller {
    tasks: Tasks,
    status: watch::Receiver<Status>,
}

impl Controller {
    /// Starts as a candidate. A store that went back in time ends the process (I24).
    #[allow(clippy::too_many_arguments)]
    pub fn start(
        store: Arc<dyn MetaStore>,
        id: String,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        probes: Probes,
        holders: Holders,
        balancing: Balancing,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Self {
        let tasks = tasks.group("controller");
        let (sender, status) = watch::channel(Status::default());
        let metrics = ControllerMetrics::new(metrics);
        let candidate = Candidate {
            store,
            id,
            clock,
            random,
            probes,
            holders,
            balancing,
            metrics,
            status: sender,
        };
        let stopped = tasks.token();
        tasks.spawn_critical("leader", async move { candidate.run(stopped).await });
        Self { tasks, status }
    }

    /// What the controller knows now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The same, to be followed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Stops; a leader resigns, so that the next one need not wait for its lease.
    pub async fn shutdown(self) {
        self.tasks.cancel();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}

/// What a process brings to the election.
struct Candidate {
    store: Arc<dyn MetaStore>,
    id: String,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    probes: Probes,
    holders: Holders,
    balancing: Balancing,
    metrics: ControllerMetrics,
    status: watch::Sender<Status>,
}

impl Candidate {
    async fn run(self, stopped: CancellationToken) -> Result<(), Stop> {
        loop {
            let elected = tokio::select! {
                biased;
                () = stopped.cancelled() => return Ok(()),
                elected = self.campaign() => elected,
            };
            let stop = match elected {
                Ok((keeper, election)) => {
                    let stop = self.reign(&keeper, election, &stopped).await;
                    self.status.send_replace(Status::default());
                    self.metrics.show(&Status::default());
                    self.resign(keeper).await;
                    stop
                }
                Err(stop) => Some(stop),
            };
            match stop {
                None => return Ok(()),
                Some(Stop::Closed) => {
                    tracing::info!(id = self.id, "controller ends, the metadata store was closed");
                    return Ok(());
                }
                Some(stop) if stop.is_final() => return Err(stop),
                Some(stop) => tracing::info!(id = self.id, %stop, "controller stands for election again"),
            }
        }
    }

    /// Leads until told to stop (none), or until that is impossible.
    ///
    /// Cancel safety: a transaction that is dropped on its way compares the election and what it
    /// changes, so that it lands as the leader meant it or not at all.
    async fn reign(
        &self,
        keeper: &LeaseKeeper,
        election: Revision,
        stopped: &CancellationToken,
    ) -> Option<Stop> {
        tracing::info!(id = self.id, %election, "controller leads");
        self.metrics.elections.inc();
        let (patients, patients_rx) = watch::channel(Patients::new());
        let (sick_tx, sick) = watch::channel(Sick::new());
        let prober = Prober {
            clock: Arc::clone(&self.clock),
            probe: Arc::clone(&self.probes.broker),
            patients: patients_rx,
            sick: sick_tx,
            failed: self.metrics.pings_failed.clone(),
        };
        let leader = Leader {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            random: Arc::clone(&self.random),
            metrics: self.metrics.clone(),
            holders: self.holders.clone(),
            balancing: self.balancing.clone(),
            election,
            patients,
            sick,
            status: self.status.clone(),
        };
        tokio::select! {
            biased;
            () = stopped.cancelled() => None,
            () = keeper.lost() => Some(Stop::Deposed),
            never = prober.run() => match never {},
            led = Box::pin(leader.lead()) => match led {
                Ok(never) => match never {},
                Err(stop) => Some(stop),
            },
        }
    }

    async fn resign(&self, keeper: LeaseKeeper) {
        match timeout(&*self.clock, RESIGN_TIMEOUT, keeper.revoke()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(id = self.id, %error, "leadership runs out by itself"),
            Err(elapsed) => tracing::debug!(id = self.id, %elapsed, "leadership runs out by itself"),
        }
    }
}
