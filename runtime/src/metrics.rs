//! Metrics of one process, or of one of several clusters in a test process: a registry that is
//! passed in, never found.
//!
//! Asking twice for the same name gives the same metric, so two parts of a process that count the
//! same thing add up instead of producing a page that no scraper accepts. Label values must be
//! bounded by whoever makes a [`Labelled`] metric: kinds, codes, configured names, never what a
//! client can choose freely. [`Metrics::describe`] lists everything, used or not.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// The content type of [`Metrics::encode`].
pub const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What every metric's name starts with.
const NAME_PREFIX: &str = "forebay";

/// A handle to one registry; clones share it.
#[derive(Clone, Default)]
pub struct Metrics {
    state: Arc<Mutex<State>>,
    scope: String,
}

#[derive(Default)]
struct State {
    registry: Registry,
    known: BTreeMap<String, Known>,
}

struct Known {
    metric: Box<dyn Any + Send + Sync>,
    description: Description,
}

/// What a metric is, for documentation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Description {
    /// As a query names it; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: Vec<&'static str>,
    /// What it counts.
    pub help: String,
}

/// A metric for each value of some labels. Clones share it.
#[derive(Debug, Clone)]
pub struct Labelled<M, const N: usize> {
    names: [&'static str; N],
    family: Family<LabelSet<N>, M, fn() -> M>,
}

type LabelSet<const N: usize> = [(&'static str, Cow<'static, str>); N];

impl<M: Clone + 'static, const N: usize> Labelled<M, N> {
    /// The metric of these label values, in the order of the labels. Takes a lock and a hash:
    /// where it is asked for often, keep what is returned.
    #[must_use]
    pub fn with<V: Into<Cow<'static, str>>>(&self, values: [V; N]) -> M {
        let mut values = values.into_iter();
        let labels = self.names.map(|name| {
            let value = values.next().map(Into::into).unwrap_or_default();
            (name, value)
        });
        self.family.get_or_create_owned(&labels)
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle to the same registry whose names start with `part` as well, such as `journal`.
    pub fn scope(&self, part: &str) -> Self {
        Self {
            state: Arc::clone(&self.state),
            scope: format!("{}{part}_", self.scope),
        }
    }

    /// The metric of this name: `metric` itself the first time, afterwards the one that was
    /// registered first. The unit comes last in `name`; counters get `_total` by themselves.
    ///
    /// A name that is taken by a metric of another type is a defect of the program: it is logged
    /// as an error, and `metric` works but is not shown.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.register_labelled(name, help, &[], metric)
    }

    fn register_labelled<M: Metric + Clone>(
        &self,
        name: &str,
        help: &str,
        labels: &[&'static str],
        metric: M,
    ) -> M {
        let name = format!("{NAME_PREFIX}_{}{name}", self.scope);
        let mut state = self.state.lock();
        if let Some(known) = state.known.get(&name) {
            if let Some(known) = known.metric.downcast_ref::<M>() {
                return known.clone();
            }
            tracing::error!(name, "metric name is taken by a metric of another type");
            return metric;
        }
        let (kind, suffix) = kind_of(metric.metric_type());
        let description = Description {
            name: format!("{name}{suffix}"),
            kind,
            labels: labels.to_vec(),
            help: help.to_owned(),
        };
        state.registry.register(name.clone(), help, metric.clone());
        let metric_again = Box::new(metric.clone());
        state.known.insert(
            name,
            Known {
                metric: metric_again,
                description,
            },
        );
        metric
    }

    /// Metrics that are made when they are asked for, with what they are.
    pub fn collect(&self, name: &str, collector: impl Collector, descriptions: Vec<Description>) {
        let mut state = self.state.lock();
        let key = format!("{NAME_PREFIX}_{}{name}", self.scope);
        if state.known.contains_key(&key) {
            return;
        }
        state.registry.register_collector(Box::new(collector));
        for (at, description) in descriptions.into_iter().enumerate() {
            let key = if at == 0 {
                key.clone()
            } else {
                description.name.clone()
            };
            let metric = Box::new(());
            state.known.insert(key, Known { metric, description });
        }
    }

    /// A number that only grows, for each value of the labels.
    pub fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
    ) -> Labelled<Counter, N> {
        self.labelled(name, help, labels, Counter::default)
    }

    /// A number that goes up and down, for each value of the labels.
    pub fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
    ) -> Labelled<Gauge, N> {
        self.labelled(name, help, labels, Gauge::default)
    }

    /// A distribution of times in seconds, for each value of the labels.
    pub fn latency_histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
    ) -> Labelled<Histogram, N> {
        self.labelled(name, help, labels, latency_histogram)
    }

    fn labelled<M, const N: usize>(
        &self,
        name: &str,
        help: &str,
        names: [&'static str; N],
        make: fn() -> M,
    ) -> Labelled<M, N>
    where
        M: Clone + 'static,
        Family<LabelSet<N>, M, fn() -> M>: Metric,
    {
        let family = Family::new_with_constructor(make);
        let family = self.register_labelled(name, help, &names, family);
        Labelled { names, family }
    }

    /// Everything that is registered, in the order of names.
    #[must_use]
    pub fn describe(&self) -> Vec<Description> {
        let state = self.state.lock();
        let mut all: Vec<_> = state
            .known
            .values()
            .map(|known| known.description.clone())
            .collect();
        all.sort();
        all
    }

    /// A number that only grows.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// A distribution of times in seconds, over [`latency_seconds`].
    pub fn latency_histogram(&self, name: &str, help: &str) -> Histogram {
        self.register(name, help, latency_histogram())
    }

    /// A distribution of sizes in bytes, over [`size_bytes`].
    pub fn size_histogram(&self, name: &str, help: &str) -> Histogram {
        self.register(name, help, size_histogram())
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.state.lock().registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("known", &self.state.lock().known.keys())
            .finish()
    }
}

/// What a type is called, and what its name ends with.
const fn kind_of(kind: MetricType) -> (&'static str, &'static str) {
    match kind {
        MetricType::Counter => ("counter", "_total"),
        MetricType::Gauge => ("gauge", ""),
        MetricType::Histogram => ("histogram", ""),
        _ => ("other", ""),
    }
}

/// A histogram over [`latency_seconds`], also as a constructor for a `Family`.
pub fn latency_histogram() -> Histogram {
    Histogram::new(latency_seconds())
}

/// A histogram over [`size_bytes`], also as a constructor for a `Family`.
pub fn size_histogram() -> Histogram {
    Histogram::new(size_bytes())
}

/// Bucket bounds from 50 µs, doubling, to 26 s: from a write into a cache to a hung disk.
pub fn latency_seconds() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(50e-6), |bound| Some(bound * 2.0)).take(20)
}

/// Bucket bounds from 256 B, times four, to 64 MiB: from one small record to a journal file.
pub fn size_bytes() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(256.0), |bound| Some(bound * 4.0)).take(10)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use prometheus_client::metrics::family::Family;

    use super::*;

    #[test]
    fn metrics_are_encoded_as_openmetrics_text() {
        let metrics = Metrics::new();
        metrics.scope("journal").counter("appends", "Appends").inc_by(3);
        metrics.gauge("connections", "Open connections").set(-2);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("# TYPE forebay_journal_appends counter\n"),
            "{text}"
        );
        assert!(text.contains("\nforebay_journal_appends_total 3\n"), "{text}");
        assert!(text.contains("\nforebay_connections -2\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn a_name_asked_for_twice_is_one_metric() {
        let metrics = Metrics::new();
        metrics.counter("appends", "Appends").inc();
        metrics.clone().counter("appends", "Appends").inc();
        let text = metrics.encode().unwrap();
        assert_eq!(text.matches("forebay_appends_total").count(), 1);
        assert!(text.contains("forebay_appends_total 2\n"), "{text}");
    }

    #[test]
    fn a_name_of_another_type_keeps_the_first_metric() {
        let metrics = Metrics::new();
        metrics.counter("appends", "Appends").inc();
        metrics.gauge("appends", "Appends").set(9);
        let text = metrics.encode().unwrap();
        assert_eq!(text.matches("forebay_appends").count(), 3, "{text}");
        assert!(text.contains("forebay_appends_total 1\n"), "{text}");
    }

    #[test]
    fn two_registries_do_not_share_metrics() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.counter("appends", "Appends").inc();
        assert!(!two.encode().unwrap().contains("appends"));
    }

    #[test]
    fn families_of_histograms_take_the_common_buckets() {
        let metrics = Metrics::new();
        let family = Family::<Vec<(String, String)>, Histogram>::new_with_constructor(latency_histogram);
        let family = metrics.register("append_seconds", "Append latency", family);
        family
            .get_or_create(&vec![("role".to_owned(), "broker".to_owned())])
            .observe(0.0001);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("forebay_append_seconds_bucket{le=\"0.0001\",role=\"broker\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("forebay_append_seconds_bucket{le=\"0.00005\",role=\"broker\"} 0\n"),
            "{text}"
        );
    }

    #[test]
    fn labelled_metrics_are_described_before_they_are_used() {
        let metrics = Metrics::new().scope("broker");
        let failures = metrics.counters("failures", "Refusals", ["request", "code"]);
        metrics.gauge("partitions", "Owned");
        let described: Vec<_> = metrics
            .describe()
            .into_iter()
            .map(|one| (one.name, one.kind, one.labels))
            .collect();
        assert_eq!(
            described,
            [
                (
                    "forebay_broker_failures_total".to_owned(),
                    "counter",
                    vec!["request", "code"]
                ),
                ("forebay_broker_partitions".to_owned(), "gauge", vec![]),
            ]
        );
        failures.with(["produce", "NOT_OWNER"]).inc();
        failures
            .with(["produce".to_owned(), "NOT_OWNER".to_owned()])
            .inc();
        let text = metrics.encode().unwrap();
        let line = "forebay_broker_failures_total{request=\"produce\",code=\"NOT_OWNER\"} 2\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn buckets_span_what_they_say() {
        let last = latency_seconds().last().unwrap();
        assert!((26.0..27.0).contains(&last), "{last}");
        assert_eq!(size_bytes().last().unwrap(), 64.0 * 1024.0 * 1024.0);
    }
}
