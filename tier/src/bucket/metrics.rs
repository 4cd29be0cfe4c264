//! What is counted of the object store. Label sets are fixed: operations and outcomes.

use std::time::Duration;

use forebay_runtime::metrics::{Metrics, latency_histogram};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::error::StoreError;

type OutcomeLabels = [(&'static str, &'static str); 2];
type OpLabels = [(&'static str, &'static str); 1];
type Histograms = Family<OpLabels, Histogram, fn() -> Histogram>;

/// Handles to a process's metrics of the object store; clones share them.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    requests: Family<OutcomeLabels, Counter>,
    latency: Histograms,
    pub read_bytes: Counter,
    pub written_bytes: Counter,
    /// 1 after a delete was refused.
    pub deletes_refused: Gauge,
}

impl StoreMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let scope = metrics.scope("object_store");
        let latency = Histograms::new_with_constructor(latency_histogram as fn() -> Histogram);
        Self {
            requests: scope.register(
                "requests",
                "Operations on the object store, retries included in one, by outcome",
                Family::default(),
            ),
            latency: scope.register(
                "request_seconds",
                "Time of an operation with its retries",
                latency,
            ),
            read_bytes: scope.counter("read_bytes", "Bytes read from the object store"),
            written_bytes: scope.counter("written_bytes", "Bytes written to the object store"),
            deletes_refused: scope.gauge("deletes_refused", "Whether the object store refuses deletes"),
        }
    }

    pub fn done<T>(&self, op: &'static str, took: Duration, result: &Result<T, StoreError>) {
        let outcome = result.as_ref().map_or_else(StoreError::outcome, |_| "ok");
        self.requests
            .get_or_create(&[("op", op), ("outcome", outcome)])
            .inc();
        self.latency
            .get_or_create(&[("op", op)])
            .observe(took.as_secs_f64());
    }
}
