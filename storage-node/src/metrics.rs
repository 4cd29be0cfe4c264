//! What a storage node counts.

use forebay_runtime::metrics::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// The counters, gauges and histograms of one node.
#[derive(Debug, Clone)]
pub(crate) struct NodeMetrics {
    pub data_bytes: Counter,
    pub overhead_bytes: Counter,
    pub zeroed_bytes: Counter,
    pub fsyncs: Counter,
    pub commit_bytes: Histogram,
    pub commit_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub segments_open: Gauge,
    pub segments_fenced: Gauge,
    pub segments_limbo: Gauge,
    pub files: Gauge,
    pub sessions: Gauge,
    pub reads: Counter,
    pub read_bytes: Counter,
    pub reads_overloaded: Counter,
}

impl NodeMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("storage");
        Self {
            data_bytes: metrics.counter("journal_data_bytes", "Bytes of frames written to the journal"),
            overhead_bytes: metrics.counter(
                "journal_overhead_bytes",
                "Bytes of block headers, padding, snapshots and marks written to the journal",
            ),
            zeroed_bytes: metrics.counter("journal_zeroed_bytes", "Bytes written to prepare journal files"),
            fsyncs: metrics.counter("journal_fsyncs", "Journal writes that were made durable"),
            commit_bytes: metrics.size_histogram("journal_commit_bytes", "Bytes of one group commit"),
            commit_seconds: metrics.latency_histogram(
                "journal_commit_seconds",
                "Time to write one group commit and make it durable",
            ),
            queue_seconds: metrics.latency_histogram(
                "journal_queue_seconds",
                "Time that a frame waited for the journal",
            ),
            segments_open: metrics.gauge("segments_open", "Segments that take frames"),
            segments_fenced: metrics.gauge("segments_fenced", "Closed segments"),
            segments_limbo: metrics.gauge("segments_limbo", "Segments with bytes missing, maybe"),
            files: metrics.gauge("journal_files", "Journal files in use"),
            sessions: metrics.gauge("sessions", "Connections"),
            reads: metrics.counter("reads", "Read requests answered"),
            read_bytes: metrics.counter("read_bytes", "Bytes of answers to read requests"),
            reads_overloaded: metrics.counter("reads_overloaded", "Read requests refused for want of room"),
        }
    }
}
