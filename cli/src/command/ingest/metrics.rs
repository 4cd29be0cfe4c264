//! What an ingest tells a scraper.

use std::sync::atomic::AtomicU64;

use forebay_runtime::metrics::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::tally::Tally;

/// Inputs with a lag of their own; the others are summed up.
const LABELS_MAX: usize = 100;
const OTHERS: &str = "others";

type Labels = Vec<(String, String)>;

/// The metrics of an ingest.
#[derive(Debug)]
pub struct IngestMetrics {
    bytes_read: Counter,
    records_read: Counter,
    bytes: Counter,
    records: Counter,
    batches: Counter,
    skipped_lines: Counter,
    retries: Counter,
    in_flight: Gauge,
    inputs: Gauge,
    lag: Family<Labels, Gauge>,
    checkpoint_age: Gauge<f64, AtomicU64>,
}

impl IngestMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let metrics = metrics.scope("ingest");
        Self {
            bytes_read: metrics.counter("read_bytes", "Bytes of input read and handed over to be sent"),
            records_read: metrics.counter("read_records", "Records read and handed over to be sent"),
            bytes: metrics.counter("acknowledged_bytes", "Bytes of input acknowledged"),
            records: metrics.counter("acknowledged_records", "Records acknowledged"),
            batches: metrics.counter("acknowledged_batches", "Batches acknowledged"),
            skipped_lines: metrics.counter("skipped_lines", "Lines left out because they fit no batch"),
            retries: metrics.counter(
                "retries",
                "Refusals and lost connections that were followed by a retry",
            ),
            in_flight: metrics.gauge("in_flight_bytes", "Bytes of input sent and not acknowledged"),
            inputs: metrics.gauge("inputs", "Inputs that are not over"),
            lag: metrics.register(
                "lag_bytes",
                "Bytes of an input that are there and not acknowledged",
                Family::default(),
            ),
            checkpoint_age: metrics.register(
                "checkpoint_age_seconds",
                "Time since the checkpoint was last written",
                Gauge::default(),
            ),
        }
    }

    /// Shows what was counted.
    pub fn show(&self, tally: &Tally, retries: u64, in_flight: u64) {
        let raise = |counter: &Counter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        raise(&self.bytes_read, tally.bytes_read);
        raise(&self.records_read, tally.records_read);
        raise(&self.bytes, tally.bytes);
        raise(&self.records, tally.records);
        raise(&self.batches, tally.batches);
        raise(&self.skipped_lines, tally.skipped_lines);
        raise(&self.retries, retries);
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
    }

    /// Shows the lag of the inputs that are not over.
    pub fn show_lags<'a>(&self, lags: impl Iterator<Item = (&'a str, u64)>) {
        self.lag.clear();
        let (mut count, mut others) = (0, 0);
        for (name, lag) in lags {
            count += 1;
            if count <= LABELS_MAX {
                self.set_lag(name, lag);
            } else {
                others += lag;
            }
        }
        if count > LABELS_MAX {
            self.set_lag(OTHERS, others);
        }
        self.inputs.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn set_lag(&self, name: &str, lag: u64) {
        self.lag
            .get_or_create(&vec![("input".to_owned(), name.to_owned())])
            .set(i64::try_from(lag).unwrap_or(i64::MAX));
    }

    /// Shows how old the checkpoint is.
    pub fn show_checkpoint_age(&self, seconds: f64) {
        self.checkpoint_age.set(seconds);
    }
}
