//! What a broker counts.

use forebay_proto::data::replica::Refusal;
use forebay_proto::v1::ErrorCode;
use forebay_runtime::metrics::{Labelled, Metrics};
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
    /// Of those, not served yet.
    pub partitions_recovering: Gauge,
    /// Of those, whose open segment has fewer live replicas than it should.
    pub partitions_under_replicated: Gauge,
    /// Of those, whose open segment has too few for a quorum.
    pub partitions_without_quorum: Gauge,
    /// Seconds from a grant to serving.
    pub takeover_seconds: Histogram,
    /// Ownerships that ended.
    pub released: Counter,
    /// Frames and segments refused because somebody newer owns the partition.
    pub fenced: Counter,
    /// Segments that entered a partition's chain.
    pub segments_opened: Counter,
    /// Batches that arrived.
    pub produced_batches: Counter,
    /// Bytes appended and not committed.
    pub undecided_bytes: Gauge,
    /// Bytes that wait for a place in a window.
    pub waiting_bytes: Gauge,
    /// Bytes of recent batches in memory.
    pub tail_cache_bytes: Gauge,
    /// Fetches that wait for data.
    pub fetches_waiting: Gauge,
    /// Messages that wait for the owners' task.
    pub mailbox: Gauge,
    /// Storage nodes registered.
    pub nodes: Gauge,
    /// Of those, with a session.
    pub nodes_connected: Gauge,
    requests: [Counter; 4],
    failures: Labelled<Counter, 2>,
    refused_frames: Labelled<Counter, 1>,
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
    /// Sealed segments that got a copy in the place of one that was lost.
    pub repaired_segments: Counter,
    /// Bytes of frames sent for that.
    pub repaired_bytes: Counter,
    /// Copies that failed; each is tried again while it is wanted.
    pub repair_failures: Counter,
    /// Copies that wait or run.
    pub repairs: Gauge,
    /// Sealed segments with too few sound copies.
    pub segments_under_replicated: Gauge,
    /// Of these, with one copy left.
    pub segments_on_last_copy: Gauge,
    /// Sealed segments without any copy.
    pub segments_lost: Gauge,
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
            partitions_recovering: metrics
                .gauge("partitions_recovering", "Partitions owned and not served yet"),
            partitions_under_replicated: metrics.gauge(
                "partitions_under_replicated",
                "Partitions whose open segment has fewer live replicas than it should",
            ),
            partitions_without_quorum: metrics.gauge(
                "partitions_without_quorum",
                "Partitions whose open segment has too few live replicas to commit anything",
            ),
            takeover_seconds: metrics
                .latency_histogram("takeover_seconds", "From the grant of a partition to serving it"),
            released: metrics.counter("partitions_released", "Ownerships of partitions that ended"),
            fenced: metrics.counter(
                "fenced",
                "Frames that a storage node refused because a newer owner closed the segment",
            ),
            segments_opened: metrics.counter(
                "segments_opened",
                "Segments that entered a partition's chain: after a takeover, a roll or trouble",
            ),
            produced_batches: metrics.counter("produced_batches", "Record batches that arrived"),
            undecided_bytes: metrics.gauge("undecided_bytes", "Bytes appended and not committed"),
            waiting_bytes: metrics.gauge(
                "waiting_bytes",
                "Bytes that wait for a place in a partition's window",
            ),
            tail_cache_bytes: metrics.gauge("tail_cache_bytes", "Bytes of recent batches in memory"),
            fetches_waiting: metrics.gauge("fetches_waiting", "Fetches that wait for data"),
            mailbox: metrics.gauge(
                "mailbox_messages",
                "Messages that wait for the task that owns the partitions",
            ),
            nodes: metrics.gauge("nodes", "Storage nodes registered"),
            nodes_connected: metrics.gauge("nodes_connected", "Storage nodes with a session"),
            requests: {
                let requests = metrics.counters("requests", "Requests of proxies, by kind", ["request"]);
                REQUESTS.map(|request| requests.with([request]))
            },
            failures: metrics.counters(
                "failures",
                "Requests of proxies that failed, by kind and code",
                ["request", "code"],
            ),
            refused_frames: metrics.counters(
                "refused_frames",
                "Frames that storage nodes did not take, by why",
                ["reason"],
            ),
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
            repaired_segments: metrics.counter(
                "repaired_segments",
                "Sealed segments that got a copy on a storage node in the place of one that was lost",
            ),
            repaired_bytes: metrics.counter("repaired_bytes", "Bytes of frames copied between storage nodes"),
            repair_failures: metrics.counter(
                "repair_failures",
                "Copies between storage nodes that failed; each is tried again while it is wanted",
            ),
            repairs: metrics.gauge("repairs_pending", "Copies between storage nodes that wait or run"),
            segments_under_replicated: metrics.gauge(
                "segments_under_replicated",
                "Sealed segments with fewer sound copies than they should have",
            ),
            segments_on_last_copy: metrics.gauge(
                "segments_on_last_copy",
                "Sealed segments of which one sound copy is left",
            ),
            segments_lost: metrics.gauge(
                "segments_lost",
                "Sealed segments without any copy, on storage nodes or in the object store",
            ),
        }
    }
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A batch.
    Produce,
    /// A fetch.
    Fetch,
    /// A position.
    Offsets,
    /// A plan for reading.
    Plan,
}

/// What they are called, in their order.
const REQUESTS: [&str; 4] = ["produce", "fetch", "offsets", "plan"];

impl Request {
    fn name(self) -> &'static str {
        REQUESTS.get(self as usize).copied().unwrap_or_default()
    }
}

impl BrokerMetrics {
    /// A request arrived.
    pub fn request(&self, request: Request) {
        if let Some(counter) = self.requests.get(request as usize) {
            counter.inc();
        }
    }

    /// A request, or one partition of it, was answered with a failure.
    pub fn failure(&self, request: Request, code: ErrorCode) {
        self.failures.with([request.name(), code.as_str_name()]).inc();
    }

    /// A storage node did not take a frame.
    pub fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::WrongGeneration(_) => "wrong_generation",
            Refusal::Closed => "closed",
            Refusal::Fenced(_) => {
                self.fenced.inc();
                "fenced"
            }
            Refusal::UnknownSegment => "unknown_segment",
            Refusal::NoNewSegments => "no_new_segments",
            Refusal::Gap(_) => "gap",
            Refusal::Overlap => "overlap",
            Refusal::Diverged => "diverged",
            Refusal::DiskFull => "disk_full",
            Refusal::Failed => "failed",
            Refusal::Malformed => "malformed",
        };
        self.refused_frames.with([reason]).inc();
    }
}
