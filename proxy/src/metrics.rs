//! What a proxy counts. Label sets are fixed: operations and error codes, never topics.

use forebay_proto::v1::ErrorCode;
use forebay_runtime::metrics::{Metrics, latency_histogram};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

type Labels = [(&'static str, &'static str); 1];
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Handles to a proxy's metrics; clones share them.
#[derive(Clone)]
pub(crate) struct ProxyMetrics {
    requests: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    refused_batches: Family<Labels, Counter>,
    latency: Histograms,
    /// Bytes of batches taken from clients.
    pub bytes_in: Counter,
    /// Bytes of batches given to clients.
    pub bytes_out: Counter,
    /// Of those, read from storage nodes.
    pub bytes_out_catch_up: Counter,
    pub batches_in: Counter,
    pub produce_retries: Counter,
    pub route_refreshes: Counter,
    pub streams_open: Gauge,
    /// Bytes of requests admitted and not answered.
    pub request_bytes_held: Gauge,
    /// Bytes of answers under way.
    pub answer_bytes_held: Gauge,
}

impl ProxyMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let scope = metrics.scope("proxy");
        let latency = Histograms::new_with_constructor(latency_histogram as fn() -> Histogram);
        Self {
            requests: scope.register("requests", "Requests by operation", Family::default()),
            failures: scope.register("failures", "Failures answered, by code", Family::default()),
            refused_batches: scope.register(
                "refused_batches",
                "Batches refused by validation, by code",
                Family::default(),
            ),
            latency: scope.register("request_seconds", "Time from request to answer", latency),
            bytes_in: scope.counter("in_bytes", "Bytes of batches taken from clients"),
            bytes_out: scope.counter("out_bytes", "Bytes of batches given to clients"),
            bytes_out_catch_up: scope
                .counter("out_catch_up_bytes", "Bytes of batches read from storage nodes"),
            batches_in: scope.counter("in_batches", "Batches taken from clients"),
            produce_retries: scope.counter("produce_retries", "Batches sent to an owner again"),
            route_refreshes: scope.counter("route_refreshes", "Questions to brokers where a topic is"),
            streams_open: scope.gauge("produce_streams", "Open produce streams"),
            request_bytes_held: scope.gauge(
                "request_held_bytes",
                "Bytes of requests admitted and not answered",
            ),
            answer_bytes_held: scope.gauge("answer_held_bytes", "Bytes of answers under way"),
        }
    }

    pub(crate) fn request(&self, operation: &'static str) {
        self.requests.get_or_create(&[("operation", operation)]).inc();
    }

    pub(crate) fn answered(&self, operation: &'static str, seconds: f64) {
        self.latency
            .get_or_create(&[("operation", operation)])
            .observe(seconds);
    }

    pub(crate) fn failure(&self, code: ErrorCode) {
        self.failures.get_or_create(&[("code", code.as_str_name())]).inc();
    }

    pub(crate) fn refused_batch(&self, code: ErrorCode) {
        self.refused_batches
            .get_or_create(&[("code", code.as_str_name())])
            .inc();
    }
}
