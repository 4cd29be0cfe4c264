//! How far a log's beginning may move, from what clients know (H8).
//!
//! A limit of bytes lets go what lies before the newest records that together reach it. How long each
//! record is that was acknowledged or read is known, but not what batches and frames add to it: so a
//! record counts for as much as it may take at most. Records that nobody has seen yet count too. A limit of
//! time keeps every record for so long after its producer began to send it; no clock is wrong in such a run.
//! What is allowed is thus never less than what the product may do, and little more.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_history::{Event, Produced, Value};

/// The most that a record may take beside its value: a frame and a batch of its own, with its key.
const RECORD_BYTES: u64 = 400;

/// What a topic keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The newest bytes.
    Bytes(u64),
    /// Records that are not older.
    Time(Duration),
}

impl Limit {
    /// As the topic is configured.
    #[must_use]
    pub fn config(self) -> (&'static str, String) {
        match self {
            Self::Bytes(most) => ("retention.bytes", most.to_string()),
            Self::Time(age) => ("retention.ms", age.as_millis().to_string()),
        }
    }
}

/// What is known of all partitions.
#[derive(Debug, Default)]
pub struct Allowed {
    lens: BTreeMap<Value, u64>,
    sent: BTreeMap<Produced, Value>,
    begun: BTreeMap<Value, Duration>,
    partitions: BTreeMap<u64, Known>,
}

/// A record whose offset is known.
#[derive(Debug, Clone, Copy)]
struct Placed {
    bytes: u64,
    begun: Duration,
}

/// What is known of a partition.
#[derive(Debug, Default)]
struct Known {
    placed: BTreeMap<u64, Placed>,
    /// Bytes of records that were sent, and whose offset is not known.
    elsewhere: BTreeMap<Value, u64>,
    /// Told before.
    until: u64,
}

impl Known {
    /// The first offset that must stay; none where all that is known may go.
    fn must_stay(&self, limit: Limit, now: Duration) -> Option<u64> {
        match limit {
            Limit::Bytes(most) => {
                let mut bytes: u64 = self.elsewhere.values().sum();
                if bytes >= most {
                    return None;
                }
                for (offset, one) in self.placed.iter().rev() {
                    bytes += one.bytes;
                    if bytes >= most {
                        return Some(*offset);
                    }
                }
                Some(0)
            }
            Limit::Time(age) => {
                let since = now.saturating_sub(age);
                let stays = self.placed.iter().find(|(_, one)| one.begun > since);
                stays.map(|(offset, _)| *offset)
            }
        }
    }
}

impl Allowed {
    /// How long a record is that will be noted.
    pub fn note_len(&mut self, value: Value, bytes: u64) {
        self.lens.insert(value, bytes + RECORD_BYTES);
    }

    /// What an event says that happened just now, and what may go where it tells a log's beginning.
    pub fn on_event(&mut self, event: &Event, limit: Limit, now: Duration) -> Option<Event> {
        match event {
            Event::Begun { record, value } => {
                let bytes = self.lens.get(value).copied().unwrap_or_default();
                self.sent.insert(*record, *value);
                self.begun.insert(*value, now);
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
            Event::Chain(record) => self.tell(record.partition, record.log_start, limit, now),
            Event::ScanEnded {
                partition,
                log_start: Some(start),
                ..
            } => self.tell(*partition, *start, limit, now),
            _ => None,
        }
    }

    fn of(&mut self, partition: u64) -> &mut Known {
        self.partitions.entry(partition).or_default()
    }

    fn place(&mut self, partition: u64, offset: u64, value: Value) {
        let bytes = self.lens.get(&value).copied().unwrap_or_default();
        let begun = self.begun.get(&value).copied().unwrap_or_default();
        let known = self.of(partition);
        known.elsewhere.remove(&value);
        known.placed.insert(offset, Placed { bytes, begun });
    }

    /// What may go, where somebody says that something went.
    fn tell(&mut self, partition: u64, start: u64, limit: Limit, now: Duration) -> Option<Event> {
        let known = self.of(partition);
        if start <= known.until {
            return None;
        }
        let until = known.must_stay(limit, now).unwrap_or(start);
        // What could go a while ago may still go.
        known.until = known.until.max(until);
        Some(Event::RetentionAllowed {
            partition,
            until: known.until,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Limit = Limit::Bytes(3_000);
    const NOW: Duration = Duration::from_secs(20);

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
            assert_eq!(allowed.on_event(&event, THREE, Duration::from_secs(value)), None);
        }
    }

    fn until(event: Option<Event>) -> u64 {
        match event {
            Some(Event::RetentionAllowed { until, .. }) => until,
            _ => 0,
        }
    }

    #[test]
    fn what_was_begun_before_the_age_may_go_up_to_the_first_that_was_not() {
        let mut allowed = Allowed::default();
        // The second was begun last: the producer sent it again and again.
        for (value, offset) in [(1, 0), (9, 1), (2, 2)] {
            sent(&mut allowed, value, Some(offset));
        }
        let age = Limit::Time(Duration::from_secs(15));
        assert_eq!(until(allowed.tell(0, 2, age, NOW)), 1);
        assert_eq!(until(allowed.tell(0, 3, age, NOW + Duration::from_secs(4))), 3);
    }

    #[test]
    fn what_lies_before_the_newest_records_of_the_limit_may_go() {
        let mut allowed = Allowed::default();
        (0..10).for_each(|value| sent(&mut allowed, value, Some(value)));
        // Three records of 1,000 bytes reach it.
        assert_eq!(until(allowed.tell(0, 1, THREE, NOW)), 7);
        assert_eq!(allowed.tell(0, 7, THREE, NOW), None);
        // One whose offset is not known may lie behind them.
        sent(&mut allowed, 10, None);
        assert_eq!(until(allowed.tell(0, 8, THREE, NOW)), 8);
    }
}
