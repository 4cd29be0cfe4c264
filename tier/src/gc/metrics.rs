//! What is counted of garbage collection.

use std::sync::atomic::AtomicU64;

use forebay_runtime::metrics::{Labelled, Metrics};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{GcError, Round};

pub(super) struct GcMetrics {
    rounds: Labelled<Counter, 1>,
    deleted: Counter,
    garbage: Gauge,
    marked: Gauge,
    floor: Gauge<u64, AtomicU64>,
}

impl GcMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let scope = metrics.scope("object_gc");
        Self {
            rounds: scope.counters("rounds", "Rounds of garbage collection, by outcome", ["outcome"]),
            deleted: scope.counter("deleted_objects", "Objects deleted as garbage"),
            garbage: scope.gauge(
                "garbage_objects",
                "Objects that the last round found to be garbage",
            ),
            marked: scope.gauge("marked_objects", "Objects that the last round found to be needed"),
            floor: scope.register(
                "floor_revision",
                "Objects with this revision in their name or a later one are not looked at",
                Gauge::default(),
            ),
        }
    }

    pub fn done(&self, result: &Result<Round, GcError>) {
        let outcome = match result {
            Ok(round) if round.split => "split",
            Ok(round) if round.refused => "refused",
            Ok(_) => "ok",
            Err(_) => "error",
        };
        self.rounds.with([outcome]).inc();
        if let Ok(round) = result {
            let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.deleted.inc_by(round.deleted);
            self.garbage.set(signed(round.garbage - round.deleted));
            self.marked.set(signed(round.marked));
            self.floor.set(round.floor.0);
        }
    }
}
