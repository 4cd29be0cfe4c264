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
    /// Segments copied into the object store and verified.
    pub offloaded_segments: Counter,
    /// Bytes of them.
    pub offloaded_bytes: Counter,
    /// Segments that no replica could copy; each is tried again.
    pub offload_failures: Counter,
    /// Bytes of sealed segments that wait for it.
    pub offload_lag_bytes: Gauge,
    /// Manifests written.
    pub folds: Counter,
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
            offloaded_segments: metrics.counter(
                "offload_segments",
                "Segments copied into the object store and verified",
            ),
            offloaded_bytes: metrics.counter(
                "offload_bytes",
                "Bytes of segments copied into the object store and verified",
            ),
            offload_failures: metrics.counter(
                "offload_failures",
                "Segments that no replica could copy into the object store; each is tried again",
            ),
            offload_lag_bytes: metrics.gauge(
                "offload_lag_bytes",
                "Bytes of sealed segments that are not in the object store yet",
            ),
            folds: metrics.counter("manifest_writes", "Manifests written, by folds and by retention"),
        }
    }
}
