//! Pings every broker that has a session and says which of them count as dead.
//!
//! Runs inside the leader's own future, so that it ends when the leadership does. At most one ping
//! per broker is on its way; each ends within its timeout whatever the probe does.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use forebay_record::{BrokerId, SessionId};
use forebay_runtime::clock::{Clock, timeout};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use super::health::{Health, Illness, PING_EVERY, PING_TIMEOUT, ProbeError};

/// Pings a broker at its control address.
pub type Probe = Arc<dyn Fn(BrokerId, String) -> BoxFuture<'static, Result<(), ProbeError>> + Send + Sync>;

/// Pings the process of another controller at its address, which is its id.
pub type ProbeLeader = Arc<dyn Fn(String) -> BoxFuture<'static, Result<(), ProbeError>> + Send + Sync>;

/// How a controller pings others.
#[derive(Clone)]
pub struct Probes {
    /// The leader brokers.
    pub broker: Probe,
    /// The other candidates the leader.
    pub leader: ProbeLeader,
}

/// Whom to ping: brokers with a session, and where.
pub(super) type Patients = BTreeMap<BrokerId, (SessionId, String)>;
/// Who counts as dead, in which session and why.
pub(super) type Sick = BTreeMap<BrokerId, (SessionId, Illness)>;

type Ping = (BrokerId, SessionId, Result<(), ProbeError>);

pub(super) struct Prober {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) probe: Probe,
    pub(super) patients: watch::Receiver<Patients>,
    pub(super) sick: watch::Sender<Sick>,
    /// Pings that failed.
    pub(super) failed: Counter,
}

impl Prober {
    /// Pings until dropped.
    pub(super) async fn run(mut self) -> Infallible {
        let mut health: BTreeMap<BrokerId, Health> = BTreeMap::new();
        let mut flying: FuturesUnordered<BoxFuture<'static, Ping>> = FuturesUnordered::new();
        let mut flying_to: BTreeSet<BrokerId> = BTreeSet::new();
        loop {
            let mut round = self.clock.sleep(PING_EVERY);
            let patients = self.patients.borrow_and_update().clone();
            self.admit(&patients, &mut health);
            for (broker, (session, address)) in &patients {
                if flying_to.insert(*broker) {
                    flying.push(self.ping(*broker, *session, address.clone()));
                }
            }
            loop {
                tokio::select! {
                    Some((broker, session, outcome)) = flying.next(), if !flying.is_empty() => {
                        flying_to.remove(&broker);
                        self.on_ping(&mut health, broker, session, outcome);
                    }
                    // Who was not known yet need not wait for the next round.
                    Ok(()) = self.patients.changed() => {
                        if self.patients.borrow().keys().any(|broker| !health.contains_key(broker)) {
                            break;
                        }
                    }
                    () = &mut round => break,
                }
            }
        }
    }

    fn ping(&self, broker: BrokerId, session: SessionId, address: String) -> BoxFuture<'static, Ping> {
        let (clock, probe) = (Arc::clone(&self.clock), Arc::clone(&self.probe));
        Box::pin(async move {
            let outcome = timeout(&*clock, PING_TIMEOUT, probe(broker, address)).await;
            (broker, session, outcome.unwrap_or(Err(ProbeError::Timeout)))
        })
    }

    /// Begins anew with every new session and forgets who has none.
    fn admit(&self, patients: &Patients, health: &mut BTreeMap<BrokerId, Health>) {
        let left = health.len();
        health.retain(|broker, health| {
            patients
                .get(broker)
                .is_some_and(|(session, _)| *session == health.session)
        });
        let changed = health.len() != left;
        for (broker, (session, _)) in patients {
            health.entry(*broker).or_insert_with(|| Health::new(*session));
        }
        if changed {
            self.publish(health);
        }
    }

    fn on_ping(
        &self,
        health: &mut BTreeMap<BrokerId, Health>,
        broker: BrokerId,
        session: SessionId,
        outcome: Result<(), ProbeError>,
    ) {
        let now: Duration = self.clock.monotonic();
        let Some(judged) = health.get_mut(&broker).filter(|health| health.session == session) else {
            return;
        };
        if let Err(error) = &outcome {
            tracing::debug!(broker = broker.0, session = session.0, %error, "ping failed");
            self.failed.inc();
        }
        if judged.on_ping(now, outcome) {
            match judged.illness() {
                Some(reason) => {
                    tracing::info!(broker = broker.0, session = session.0, %reason, "broker counts as dead");
                }
                None => tracing::info!(broker = broker.0, session = session.0, "broker is well again"),
            }
            self.publish(health);
        }
    }

    fn publish(&self, health: &BTreeMap<BrokerId, Health>) {
        let sick = health.iter().filter_map(|(broker, health)| {
            health
                .illness()
                .map(|illness| (*broker, (health.session, illness)))
        });
        self.sick.send_replace(sick.collect());
    }
}
