//! How far a log's beginning may move, from what clients know (H8).
//!
//! A limit of bytes lets go what lies before the newest records that together reach it. How long each
//! record is that was acknowledged or read is known, but not what batches and frames add to it: so a
//! record counts for as much as it may take at most. Records that nobody has seen yet count too. What is
//! allowed is thus never less than what the product may do, and little more.

use std::collections::BTreeMap;

use forebay_history::{Event, Produced, Value};

/// The most that a record may take beside its value: a frame and a batch of its own, with its key.
const RECORD_BYTES: u64 = 400;

/// What is known of all partitions.
#[derive(Debug, Default)]
pub struct Allowed {
    lens: BTreeMap<Value, u64>,
    sent: BTreeMap<Produced, Value>,
    partitions: BTreeMap<u64, Known>,
}

/// What is known of a partition.
#[derive(Debug, Default)]
struct Known {
    /// Bytes of each record whose offset is known.
    placed: BTreeMap<u64, u64>,
    /// Records that were sent, and whose offset is not known.
    elsewhere: BTreeMap<Value, u64>,
    /// Told before.
    until: u64,
}

impl Known {
    fn place(&mut self, offset: u64, value: Value, bytes: u64) {
        self.elsewhere.remove(&value);
        self.placed.insert(offset, bytes);
    }

    /// The first offset that must stay.
    fn must_stay(&self, most: u64) -> u64 {
        let mut bytes: u64 = self.elsewhere.values().sum();
        if bytes >= most {
            // All that is known may be beyond the limit.
            return u64::MAX;
        }
        for (offset, len) in self.placed.iter().rev() {
            bytes += len;
            if bytes >= most {
                return *offset;
            }
        }
        0
    }
}

impl Allowed {
    /// How long a record is that will be noted.
    pub fn note_len(&mut self, value: Value, bytes: u64) {
        self.lens.insert(value, bytes + RECORD_BYTES);
    }

    /// What an event says, and what may go where it tells a log's beginning.
    pub fn on_event(&mut self, event: &Event, most: u64) -> Option<Event> {
        match event {
            Event::Begun { record, value } => {
                let bytes = self.lens.get(value).copied().unwrap_or_default();
                self.sent.insert(*record, *value);
                self.of(record.partition).elsewhere.insert(*value, bytes);
                None
            }
            Event::Acked {
                record,
                offset: Some(offset),
            } => {
                let value = self.sent.get(record).copied()?;
                self.place(record.partition, *offset, value);
                None
            }
            Event::Failed { record } => {
                let value = self.sent.get(record).copied()?;
                self.of(record.partition).elsewhere.remove(&value);
                None
            }
            Event::Read {
                partition,
                offset,
                value,
                ..
            } => {
                self.place(*partition, *offset, *value);
                None
            }
            Event::Chain(record) => self.tell(record.partition, record.log_start, most),
            Event::ScanEnded {
                partition,
                log_start: Some(start),
                ..
            } => self.tell(*partition, *start, most),
            _ => None,
        }
    }

    fn of(&mut self, partition: u64) -> &mut Known {
        self.partitions.entry(partition).or_default()
    }

    fn place(&mut self, partition: u64, offset: u64, value: Value) {
        let bytes = self.lens.get(&value).copied().unwrap_or_default();
        self.of(partition).place(offset, value, bytes);
    }

    /// What may go, where somebody says that something went.
    fn tell(&mut self, partition: u64, start: u64, most: u64) -> Option<Event> {
        let known = self.of(partition);
        if start <= known.until {
            return None;
        }
        known.until = known.must_stay(most);
        Some(Event::RetentionAllowed {
            partition,
            until: known.until,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(allowed: &mut Allowed, value: u64, offset: Option<u64>) {
        let record = Produced {
            producer: 1,
            partition: 0,
            sequence: value,
        };
        allowed.note_len(Value(value), 600);
        let events = [
            Event::Begun {
                record,
                value: Value(value),
            },
            Event::Acked { record, offset },
        ];
        for event in events {
            assert_eq!(allowed.on_event(&event, 3_000), None);
        }
    }

    #[test]
    fn what_lies_before_the_newest_records_of_the_limit_may_go() {
        let mut allowed = Allowed::default();
        (0..10).for_each(|value| sent(&mut allowed, value, Some(value)));
        // Three records of 1,000 bytes reach it.
        let until = |event: Option<Event>| match event {
            Some(Event::RetentionAllowed { until, .. }) => until,
            _ => 0,
        };
        assert_eq!(until(allowed.tell(0, 1, 3_000)), 7);
        assert_eq!(allowed.tell(0, 7, 3_000), None);
        // One whose offset is not known may lie behind them.
        sent(&mut allowed, 10, None);
        assert_eq!(until(allowed.tell(0, 8, 3_000)), 8);
    }
}
