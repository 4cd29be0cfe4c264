//! What the controller shows of itself: a snapshot for whoever asks, and metrics.

use std::collections::BTreeMap;

use forebay_record::{BrokerId, SessionId};
use forebay_runtime::metrics::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::health::Illness;
use crate::store::Revision;

/// A snapshot of the controller of one process. Where it does not lead, all but `leader` is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether this process leads.
    pub leader: bool,
    /// The revision that names its leadership.
    pub election: Option<Revision>,
    /// Brokers that have a session.
    pub brokers: BTreeMap<BrokerId, BrokerStatus>,
    /// Topics that are not deleted.
    pub topics: usize,
    /// Deleted topics with something left to remove.
    pub topics_deleting: usize,
    /// Deleted topics of which storage nodes or owners may have something left.
    pub topics_draining: usize,
    /// Partitions of topics that are not deleted.
    pub partitions: usize,
    /// Partitions that are not wished to be at a live broker.
    pub unplaced: usize,
    /// The newest failure that the controller went on from.
    pub last_failure: Option<String>,
}

/// A broker that has a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Its session.
    pub session: SessionId,
    /// Where it is pinged.
    pub control_address: String,
    /// Why it counts as dead, if it does.
    pub illness: Option<Illness>,
    /// It is to be emptied.
    pub draining: bool,
    /// Partitions that are wished to be there.
    pub partitions: usize,
}

#[derive(Debug, Clone)]
pub(super) struct ControllerMetrics {
    pub(super) leader: Gauge,
    pub(super) elections: Counter,
    pub(super) brokers_live: Gauge,
    pub(super) partitions: Gauge,
    pub(super) partitions_unplaced: Gauge,
    pub(super) topics_draining: Gauge,
    pub(super) wishes_written: Counter,
    pub(super) records_removed: Counter,
    pub(super) failures: Counter,
    pub(super) tick_seconds: Histogram,
    pub(super) pings_failed: Counter,
    pub(super) brokers: Gauge,
}

impl ControllerMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("controller");
        Self {
            leader: metrics.gauge("leader", "1 where this process leads"),
            elections: metrics.counter("elections", "Elections won by this process"),
            brokers_live: metrics.gauge("brokers_live", "Brokers that partitions may be placed at"),
            partitions: metrics.gauge("partitions", "Partitions of topics that are not deleted"),
            partitions_unplaced: metrics.gauge(
                "partitions_unplaced",
                "Partitions not wished to be at a live broker",
            ),
            topics_draining: metrics.gauge(
                "topics_draining",
                "Deleted topics of which storage nodes or owners may have something left",
            ),
            wishes_written: metrics.counter("wishes_written", "Placement wishes written"),
            records_removed: metrics.counter("records_removed", "Partition records removed"),
            failures: metrics.counter("failures", "Failures that the controller went on from"),
            pings_failed: metrics.counter("pings_failed", "Pings that brokers did not answer"),
            brokers: metrics.gauge("brokers", "Brokers that have a session"),
            tick_seconds: metrics.latency_histogram("tick_seconds", "Time of one tick"),
        }
    }

    pub(super) fn show(&self, status: &Status) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let live = status
            .brokers
            .values()
            .filter(|broker| broker.illness.is_none())
            .count();
        self.leader.set(i64::from(status.leader));
        self.brokers_live.set(gauge(live));
        self.brokers.set(gauge(status.brokers.len()));
        self.partitions.set(gauge(status.partitions));
        self.partitions_unplaced.set(gauge(status.unplaced));
        self.topics_draining.set(gauge(status.topics_draining));
    }
}
