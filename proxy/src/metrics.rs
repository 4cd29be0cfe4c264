//! What a proxy counts. Label sets are fixed: operations and error codes; topics only up to a
//! configured number, and only those that exist.

use std::collections::HashMap;
use std::sync::Arc;

use forebay_proto::v1::ErrorCode;
use forebay_runtime::metrics::{Labelled, Metrics};
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// What stands for every topic that has no series of its own.
const OTHER_TOPICS: &str = "__other__";

/// Handles to a proxy's metrics; clones share them.
#[derive(Clone)]
pub(crate) struct ProxyMetrics {
    requests: Labelled<Counter, 1>,
    failures: Labelled<Counter, 1>,
    refused_batches: Labelled<Counter, 1>,
    latency: Labelled<Histogram, 1>,
    retries: Labelled<Counter, 1>,
    /// By topic, as many as are configured.
    pub topics: TopicMetrics,
    /// Bytes of batches taken from clients.
    pub bytes_in: Counter,
    /// Bytes of batches given to clients.
    pub bytes_out: Counter,
    /// Of those, read from storage nodes.
    pub bytes_out_catch_up: Counter,
    pub batches_in: Counter,
    pub records_in: Counter,
    pub batch_bytes: Histogram,
    /// Batches that wait for an answer or for their turn.
    pub lanes_busy: Gauge,
    pub route_refreshes: Counter,
    pub streams_open: Gauge,
    /// Bytes of requests admitted and not answered.
    pub request_bytes_held: Gauge,
    /// Bytes of answers under way.
    pub answer_bytes_held: Gauge,
}

impl ProxyMetrics {
    /// Registers the metrics; `topics_max` topics are counted by name.
    pub(crate) fn new(metrics: &Metrics, topics_max: usize) -> Self {
        let scope = metrics.scope("proxy");
        Self {
            requests: scope.counters("requests", "Requests by operation", ["operation"]),
            failures: scope.counters("failures", "Failures answered, by code", ["code"]),
            refused_batches: scope.counters(
                "refused_batches",
                "Batches refused by validation, by code",
                ["code"],
            ),
            latency: scope.latency_histograms(
                "request_seconds",
                "Time from request to answer",
                ["operation"],
            ),
            retries: scope.counters(
                "produce_retries",
                "Times that a partition's batches were sent again: elsewhere, where the route was wrong or the \
                 owner lost, or in place",
                ["class"],
            ),
            topics: TopicMetrics::new(&scope, topics_max),
            bytes_in: scope.counter("in_bytes", "Bytes of batches taken from clients"),
            bytes_out: scope.counter("out_bytes", "Bytes of batches given to clients"),
            bytes_out_catch_up: scope
                .counter("out_catch_up_bytes", "Bytes of batches read from storage nodes"),
            batches_in: scope.counter("in_batches", "Batches taken from clients"),
            records_in: scope.counter("in_records", "Records taken from clients"),
            batch_bytes: scope.size_histogram("batch_bytes", "Sizes of batches taken from clients"),
            lanes_busy: scope.gauge(
                "produce_partitions_busy",
                "Partitions with batches that are not answered",
            ),
            route_refreshes: scope.counter("route_refreshes", "Questions to brokers where a topic is"),
            streams_open: scope.gauge("produce_streams", "Open produce streams"),
            request_bytes_held: scope.gauge(
                "request_held_bytes",
                "Bytes of requests admitted and not answered",
            ),
            answer_bytes_held: scope.gauge("answer_held_bytes", "Bytes of answers under way"),
        }
    }

    /// Shows how much memory there is for requests and for answers, each.
    pub(crate) fn memory(metrics: &Metrics, half: u64) {
        let gauge = metrics.scope("proxy").gauge(
            "memory_max_bytes",
            "Most bytes of requests in memory at a time, and of answers as many again",
        );
        gauge.set(i64::try_from(half).unwrap_or(i64::MAX));
    }

    pub(crate) fn request(&self, operation: &'static str) {
        self.requests.with([operation]).inc();
    }

    pub(crate) fn answered(&self, operation: &'static str, seconds: f64) {
        self.latency.with([operation]).observe(seconds);
    }

    pub(crate) fn failure(&self, code: ErrorCode) {
        self.failures.with([code.as_str_name()]).inc();
    }

    pub(crate) fn refused_batch(&self, code: ErrorCode) {
        self.refused_batches.with([code.as_str_name()]).inc();
    }

    /// Lanes that went back to sending, because of the route and otherwise.
    pub(crate) fn retried(&self, elsewhere: u64, in_place: u64) {
        for (class, count) in [("elsewhere", elsewhere), ("in_place", in_place)] {
            if count > 0 {
                self.retries.with([class]).inc_by(count);
            }
        }
    }
}

/// What is counted for one topic.
#[derive(Clone)]
pub(crate) struct OneTopic {
    pub bytes_in: Counter,
    pub records_in: Counter,
    pub bytes_out: Counter,
}

/// Series by topic: the first topics that are used get their own, all others share one. Topics are
/// counted once they were found to exist, so that nobody outside makes label values.
#[derive(Clone)]
pub(crate) struct TopicMetrics {
    bytes_in: Labelled<Counter, 1>,
    records_in: Labelled<Counter, 1>,
    bytes_out: Labelled<Counter, 1>,
    topics_max: usize,
    known: Arc<RwLock<HashMap<Arc<str>, OneTopic>>>,
}

impl TopicMetrics {
    fn new(scope: &Metrics, topics_max: usize) -> Self {
        let counters = |name: &str, help: &str| {
            let help = format!("{help}, by topic; those beyond proxy.topic_metrics_max are __other__");
            scope.counters(name, &help, ["topic"])
        };
        Self {
            bytes_in: counters("topic_in_bytes", "Bytes of batches taken from clients"),
            records_in: counters("topic_in_records", "Records taken from clients"),
            bytes_out: counters("topic_out_bytes", "Bytes of batches given to clients"),
            topics_max,
            known: Arc::default(),
        }
    }

    /// The series of a topic that exists.
    pub(crate) fn of(&self, topic: &str) -> OneTopic {
        if let Some(known) = self.known.read().get(topic) {
            return known.clone();
        }
        let mut known = self.known.write();
        let name = if known.len() < self.topics_max {
            topic
        } else {
            OTHER_TOPICS
        };
        let one = OneTopic {
            bytes_in: self.bytes_in.with([name.to_owned()]),
            records_in: self.records_in.with([name.to_owned()]),
            bytes_out: self.bytes_out.with([name.to_owned()]),
        };
        if name != OTHER_TOPICS {
            known.insert(topic.into(), one.clone());
        }
        one
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn topics_beyond_the_limit_share_one_series() {
        let metrics = Metrics::new();
        let proxy = ProxyMetrics::new(&metrics, 2);
        for topic in ["a", "b", "a", "c", "d"] {
            proxy.topics.of(topic).bytes_in.inc_by(10);
        }
        let text = metrics.encode().unwrap();
        for (topic, bytes) in [("a", 20), ("b", 10), ("__other__", 20)] {
            let line = format!("forebay_proxy_topic_in_bytes_total{{topic=\"{topic}\"}} {bytes}\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
        assert!(!text.contains("topic=\"c\""), "{text}");
    }
}
