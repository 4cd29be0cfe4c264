//! What is counted of the object store. Label sets are fixed: operations and outcomes.

use std::time::Duration;

use forebay_runtime::metrics::{Labelled, Metrics};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::error::StoreError;

/// Handles to a process's metrics of the object store; clones share them.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    requests: Labelled<Counter, 2>,
    latency: Labelled<Histogram, 1>,
    pub read_bytes: Counter,
    pub written_bytes: Counter,
    /// 1 after a delete was refused.
    pub deletes_refused: Gauge,
}

impl StoreMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let scope = metrics.scope("object_store");
        Self {
            requests: scope.counters(
                "requests",
                "Operations on the object store, retries included in one, by outcome",
                ["op", "outcome"],
            ),
            latency: scope.latency_histograms(
                "request_seconds",
                "Time of an operation with its retries",
                ["op"],
            ),
            read_bytes: scope.counter("read_bytes", "Bytes read from the object store"),
            written_bytes: scope.counter("written_bytes", "Bytes written to the object store"),
            deletes_refused: scope.gauge("deletes_refused", "Whether the object store refuses deletes"),
        }
    }

    pub fn done<T>(&self, op: &'static str, took: Duration, result: &Result<T, StoreError>) {
        let outcome = result.as_ref().map_or_else(StoreError::outcome, |_| "ok");
        self.requests.with([op, outcome]).inc();
        self.latency.with([op]).observe(took.as_secs_f64());
    }
}
