//! What a broker counts.

use forebay_runtime::metrics::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// A broker's metrics; clones count together.
#[derive(Debug, Clone)]
pub struct BrokerMetrics {
    /// Bytes of batches that arrived.
    pub produced_bytes: Counter,
    /// Bytes of batches served from the tail.
    pub fetched_bytes: Counter,
    /// Seconds from a batch's arrival to its answer.
    pub produce_latency: Histogram,
    /// Seconds that a storage node's newest write waited in it.
    pub node_queue_delay: Histogram,
    /// Partitions owned.
    pub partitions: Gauge,
}

impl BrokerMetrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("broker");
        Self {
            produced_bytes: metrics.counter("produced_bytes", "Bytes of record batches that arrived"),
            fetched_bytes: metrics.counter("fetched_bytes", "Bytes of record batches served from the tail"),
            produce_latency: metrics
                .latency_histogram("produce_latency_seconds", "From a batch's arrival to its answer"),
            node_queue_delay: metrics.latency_histogram(
                "node_queue_delay_seconds",
                "How long a storage node's newest write waited in it",
            ),
            partitions: metrics.gauge("partitions", "Partitions owned"),
        }
    }
}
