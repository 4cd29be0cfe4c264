//! What a storage node counts.

use std::time::Duration;

use forebay_proto::data::replica::{Refusal, ToNode};
use forebay_runtime::metrics::{Labelled, Metrics};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::node::Shared;
use crate::pressure::Level;
use crate::trim::Figures;

/// The counters, gauges and histograms of one node.
#[derive(Debug, Clone)]
pub(crate) struct NodeMetrics {
    pub data_bytes: Counter,
    pub copied_bytes: Counter,
    pub healed_segments: Counter,
    pub overhead_bytes: Counter,
    pub zeroed_bytes: Counter,
    pub fsyncs: Counter,
    pub commit_bytes: Histogram,
    pub commit_seconds: Histogram,
    pub write_seconds: Histogram,
    pub fsync_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub segments_open: Gauge,
    pub segments_fenced: Gauge,
    pub segments_limbo: Gauge,
    pub files: Gauge,
    pub sessions: Gauge,
    pub frames: Counter,
    refused_frames: Labelled<Counter, 1>,
    /// Bytes of messages that wait for the journal thread.
    pub queue_bytes: Gauge,
    pub spares: Gauge,
    /// 1 where nothing is written any more.
    pub failed: Gauge,
    pub requests: RequestMetrics,
    read_seconds: Labelled<Histogram, 1>,
    pub reads: Counter,
    pub read_bytes: Counter,
    pub reads_overloaded: Counter,
    /// Bytes that takeovers read.
    pub recovery_bytes: Counter,
}

impl NodeMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("storage");
        Self {
            copied_bytes: metrics.counter(
                "copied_bytes",
                "Bytes of frames that came from another storage node's copy of a segment",
            ),
            healed_segments: metrics.counter(
                "healed_segments",
                "Damaged segments that are whole again, because a peer gave what was missing",
            ),
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
            write_seconds: metrics
                .latency_histogram("journal_write_seconds", "Time of the write of one group commit"),
            fsync_seconds: metrics
                .latency_histogram("journal_fsync_seconds", "Time of the fsync of one group commit"),
            queue_seconds: metrics.latency_histogram(
                "journal_queue_seconds",
                "Time that a frame waited for the journal",
            ),
            segments_open: metrics.gauge("segments_open", "Segments that take frames"),
            segments_fenced: metrics.gauge("segments_fenced", "Closed segments"),
            segments_limbo: metrics.gauge("segments_limbo", "Segments with bytes missing, maybe"),
            files: metrics.gauge("journal_files", "Journal files in use"),
            sessions: metrics.gauge("sessions", "Connections"),
            frames: metrics.counter("frames", "Frames that arrived"),
            refused_frames: metrics.counters("refused_frames", "Frames refused, by why", ["reason"]),
            queue_bytes: metrics.gauge(
                "journal_queue_bytes",
                "Bytes of messages that wait for the journal, looked at once a second",
            ),
            spares: metrics.gauge("journal_spare_files", "Journal files that are prepared"),
            failed: metrics.gauge(
                "journal_failed",
                "1 where the journal failed and this node only reads",
            ),
            requests: RequestMetrics::new(&metrics),
            read_seconds: metrics.latency_histograms(
                "read_seconds",
                "From a read request's arrival to its answer",
                ["request"],
            ),
            reads: metrics.counter("reads", "Read requests answered"),
            read_bytes: metrics.counter("read_bytes", "Bytes of answers to read requests"),
            recovery_bytes: metrics.counter(
                "recovery_bytes",
                "Bytes of answers to takeovers: states, batch headers, undecided frames",
            ),
            reads_overloaded: metrics.counter("reads_overloaded", "Read requests refused for want of room"),
        }
    }
}

impl NodeMetrics {
    /// A frame was refused.
    pub(crate) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::WrongGeneration(_) => "wrong_generation",
            Refusal::Closed => "closed",
            Refusal::Fenced(_) => "fenced",
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

    /// A read request was answered.
    pub(crate) fn read(&self, request: &'static str, took: Duration) {
        self.read_seconds.with([request]).observe(took.as_secs_f64());
    }
}

/// Messages of brokers and proxies, by kind.
#[derive(Debug, Clone)]
pub(crate) struct RequestMetrics {
    append: Counter,
    commit: Counter,
    others: Labelled<Counter, 1>,
}

impl RequestMetrics {
    fn new(scope: &Metrics) -> Self {
        let others = scope.counters(
            "requests",
            "Messages of brokers and proxies, by kind",
            ["request"],
        );
        Self {
            append: others.with(["append"]),
            commit: others.with(["commit"]),
            others,
        }
    }

    pub(crate) fn count(&self, message: &ToNode) {
        let kind = match message {
            ToNode::Append { .. } => {
                self.append.inc();
                return;
            }
            ToNode::Commit(_) => {
                self.commit.inc();
                return;
            }
            ToNode::Hello(_) => "hello",
            ToNode::Fence { .. } => "fence",
            ToNode::Read { .. } => "read",
            ToNode::Frames { .. } => "frames",
            ToNode::Headers { .. } => "headers",
            ToNode::Lookup { .. } => "lookup",
            ToNode::Confirm { .. } => "confirm",
            ToNode::Upload { .. } => "upload",
            ToNode::Survey { .. } => "survey",
            ToNode::Missing { .. } => "missing",
            ToNode::Sealed { .. } => "sealed",
            ToNode::Copy { .. } => "copy",
            ToNode::ForgetCopy { .. } => "forget_copy",
            ToNode::Traced(traced) => return self.count(&traced.1),
        };
        self.others.with([kind]).inc();
    }
}

/// What is counted about letting go of segments, and about how full the disk is.
#[derive(Debug, Clone)]
pub(crate) struct TrimMetrics {
    pub segments: Counter,
    pub files: Counter,
    pub reads: Counter,
    pub urges: Counter,
    waiting_segments: Gauge,
    waiting_bytes: Gauge,
    unrecorded: Gauge,
    disk_used_bytes: Gauge,
    disk_budget_bytes: Gauge,
    disk_level: Gauge,
    held_bytes: Gauge,
}

impl TrimMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("storage");
        Self {
            segments: metrics.counter("trim_segments", "Segments forgotten because no record needs them"),
            files: metrics.counter("trim_files", "Journal files taken out of use"),
            reads: metrics.counter("trim_reads", "Reads of partition records, up to 64 records each"),
            urges: metrics.counter("trim_urges", "Times that brokers were asked to offload"),
            waiting_segments: metrics.gauge(
                "trim_waiting_segments",
                "Segments that no record needs and that stay a while for readers",
            ),
            waiting_bytes: metrics.gauge("trim_waiting_bytes", "Bytes of frames of those segments"),
            unrecorded: metrics.gauge(
                "trim_partitions_without_record",
                "Partitions with segments here whose record is missing or damaged: nothing of them is deleted",
            ),
            disk_used_bytes: metrics.gauge("disk_used_bytes", "Bytes of all journal files, in use or not"),
            disk_budget_bytes: metrics.gauge("disk_budget_bytes", "Most bytes of all journal files"),
            disk_level: metrics.gauge(
                "disk_level",
                "Pressure: 0 calm, 1 early, 2 owners are urged, 3 no new segments, 4 no data",
            ),
            held_bytes: metrics.gauge("held_bytes", "Bytes of frames held"),
        }
    }

    pub(crate) fn show(&self, figures: &Figures, shared: &Shared, level: Level) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.waiting_segments, figures.released);
        set(&self.waiting_bytes, figures.released_bytes);
        set(&self.unrecorded, figures.unrecorded);
        set(&self.disk_used_bytes, shared.pool.bytes());
        set(&self.disk_budget_bytes, shared.pool.budget_bytes());
        set(&self.disk_level, level as u64);
        set(&self.held_bytes, figures.bytes);
    }
}

/// What is counted about copies into the object store.
#[derive(Debug, Clone)]
pub(crate) struct UploadMetrics {
    pub segments: Counter,
    pub bytes: Counter,
    pub failures: Counter,
    pub running: Gauge,
}

impl UploadMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("storage");
        Self {
            segments: metrics.counter("upload_segments", "Segments copied into the object store"),
            bytes: metrics.counter("upload_bytes", "Bytes of objects written"),
            failures: metrics.counter(
                "upload_failures",
                "Copies into the object store that failed; the owner asks again",
            ),
            running: metrics.gauge("uploads_running", "Copies into the object store under way"),
        }
    }
}

/// What is counted about reading live frames back.
#[derive(Debug, Clone)]
pub(crate) struct ScrubMetrics {
    pub bytes: Counter,
    pub passes: Counter,
    pub last_pass: Gauge,
    /// Also those that readers met.
    pub damaged_frames: Counter,
}

impl ScrubMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("storage");
        Self {
            bytes: metrics.counter(
                "scrub_bytes",
                "Bytes of live frames read back to see whether they are right",
            ),
            passes: metrics.counter("scrub_passes", "Times that all live frames were read back"),
            last_pass: metrics.gauge(
                "scrub_last_pass_seconds",
                "When all live frames were last read back, seconds since 1970; 0 before the first time",
            ),
            damaged_frames: metrics.counter(
                "damaged_frames",
                "Stored frames that the scrub or a reader found to be damaged, each counted once",
            ),
        }
    }
}
