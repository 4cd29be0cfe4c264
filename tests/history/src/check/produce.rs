//! Records that were sent and what was answered: H5, H6 and the acknowledgements of H1.

use super::log::By;
use super::{Checker, Outcome, Place, Position, Written};
use crate::event::{Produced, Value};
use crate::report::Rule;

impl Checker<'_> {
    pub(super) fn on_begun(&mut self, at: Position, record: Produced, value: Value) {
        self.log(record.partition);
        if let Some(other) = self.written.get(&value) {
            let (other, begun) = (other.record, other.begun);
            let what = format!("{record} has the value {value}, which {other} has already");
            self.violated(Rule::History, Place::of(record.partition), &[begun, at], what);
            return;
        }
        if let Some(other) = self.values.insert(record, value) {
            let what = format!("{record} is sent twice, as {other} and as {value}");
            self.violated(Rule::History, Place::of(record.partition), &[at], what);
        }
        self.written.insert(
            value,
            Written {
                record,
                begun: at,
                outcome: Outcome::Open,
                place: None,
                read: false,
            },
        );
    }

    /// Notes what became of a record; none where the history contradicts itself.
    pub(super) fn settle(&mut self, at: Position, record: Produced, outcome: Outcome) -> Option<Value> {
        let place = Place::of(record.partition);
        let Some(value) = self.values.get(&record).copied() else {
            self.violated(
                Rule::History,
                place,
                &[at],
                format!("{record} is answered and was never sent"),
            );
            return None;
        };
        let written = self.written.get_mut(&value)?;
        if written.outcome != Outcome::Open {
            let (before, begun) = (written.outcome, written.begun);
            let what = format!("{record} is answered twice, {before:?} and {outcome:?}");
            self.violated(Rule::History, place, &[begun, at], what);
            return None;
        }
        written.outcome = outcome;
        Some(value)
    }

    pub(super) fn on_failed(&mut self, at: Position, record: Produced) {
        let Some(value) = self.settle(at, record, Outcome::Failed) else {
            return;
        };
        if let Some((offset, seen)) = self.written.get(&value).and_then(|written| written.place) {
            let what = format!("{} was refused for sure and was read", self.tell(value));
            self.violated(Rule::H6, Place::at(record.partition, offset), &[seen, at], what);
        }
    }

    pub(super) fn on_acked(&mut self, at: Position, record: Produced, offset: Option<u64>) {
        let promise = self.rules.promise_to(record.producer);
        let outcome = if promise.quorum {
            Outcome::Acked
        } else {
            Outcome::Unknown
        };
        let Some(value) = self.settle(at, record, outcome) else {
            return;
        };
        if !promise.quorum {
            return;
        }
        let log = self.log(record.partition);
        log.last_ack = at;
        log.final_scans = 0;
        let Some(offset) = offset else {
            log.unplaced.push((value, at));
            return;
        };
        if !promise.repeats {
            let acked = self.acked.entry((record.producer, record.partition)).or_default();
            acked.push((record.sequence, offset, at));
        }
        if let Err(slot) = self.log(record.partition).place(offset, value, By::Ack, at) {
            let (mine, other) = (self.tell(value), self.tell(slot.value));
            let place = Place::at(record.partition, offset);
            let (rule, what) = if slot.acked > 0 {
                (
                    Rule::H2,
                    format!("acknowledged for {mine}, and for {other} before"),
                )
            } else {
                (
                    Rule::H1,
                    format!("acknowledged for {mine}, but readers found {other}"),
                )
            };
            self.violated(rule, place, &[slot.acked, slot.read, at], what);
        }
        self.found_at(at, value, record.partition, offset);
    }

    /// Someone told where a value stands: it stands there only.
    pub(super) fn found_at(&mut self, at: Position, value: Value, partition: u64, offset: u64) {
        let Some(written) = self.written.get_mut(&value) else {
            return;
        };
        let Some((first, seen)) = written.place else {
            written.place = Some((offset, at));
            return;
        };
        // What was declared lost may be written once more.
        let lost = self.rules.losses_allowed && self.log(partition).is_declared(first, first + 1);
        let Some(written) = self.written.get_mut(&value) else {
            return;
        };
        if lost && first != offset {
            written.place = Some((offset, at));
            return;
        }
        if first == offset || self.rules.promise_to(written.record.producer).repeats {
            return;
        }
        let (rule, outcome) = match written.outcome {
            Outcome::Acked => (Rule::H5, "acknowledged"),
            Outcome::Open | Outcome::Unknown => (Rule::H6, "of unknown outcome"),
            Outcome::Failed => (Rule::H6, "refused"),
        };
        let what = format!("{}, {outcome}, stands here and at {first}", self.tell(value));
        self.violated(rule, Place::at(partition, offset), &[seen, at], what);
    }

    pub(super) fn finish_produces(&mut self) {
        for ((producer, partition), mut acked) in std::mem::take(&mut self.acked) {
            acked.sort_unstable();
            for pair in acked.windows(2) {
                let [(before, first, first_at), (after, second, second_at)] = pair else {
                    continue;
                };
                if first >= second {
                    let what = format!(
                        "producer {producer} record {after} is acknowledged here and record {before}, sent before it, at {first}"
                    );
                    self.violated(
                        Rule::H5,
                        Place::at(partition, *second),
                        &[*first_at, *second_at],
                        what,
                    );
                }
            }
        }
    }
}
