//! What all clients of a round note, in the order in which it happened.

use std::collections::BTreeMap;
use std::time::Instant;

use forebay_history::{Event, History, Produced, Value};
use parking_lot::Mutex;

/// Shared by all who note.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    inner: Mutex<Inner>,
}

/// A time without an acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gap {
    /// How long, microseconds.
    pub us: u64,
    /// In which partition.
    pub partition: u64,
    /// Since when, microseconds since the round began.
    pub from_us: u64,
}

#[derive(Debug, Default)]
struct Inner {
    history: History,
    /// When something was last acknowledged in a partition, microseconds.
    last_ack_us: BTreeMap<u64, u64>,
    longest_gap: Gap,
    /// Sends of which the acknowledgement is not known yet: when they began.
    begun_us: BTreeMap<Produced, u64>,
    /// The newest begin of a record that was acknowledged, by partition.
    acked_begun_us: BTreeMap<u64, u64>,
    /// First offset behind all acknowledgements and final ends, by partition.
    ends: BTreeMap<u64, u64>,
    /// Where tailing readers are, by reader and partition.
    positions: BTreeMap<(u64, u32), u64>,
    complaints: Vec<String>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            inner: Mutex::default(),
        }
    }
}

impl Recorder {
    /// Microseconds since the round began.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes an event.
    pub fn note(&self, event: Event) {
        let mut inner = self.inner.lock();
        // Under the lock, so that times rise with the events.
        let now = self.now_us();
        inner.history.push(now, event);
    }

    /// A record is about to be sent.
    pub fn begun(&self, record: Produced, value: Value) {
        let mut inner = self.inner.lock();
        let now = self.now_us();
        inner.begun_us.insert(record, now);
        inner.history.push(now, Event::Begun { record, value });
    }

    /// A record was acknowledged.
    pub fn acked(&self, record: Produced, offset: Option<u64>) {
        let mut inner = self.inner.lock();
        let now = self.now_us();
        if let Some(last) = inner.last_ack_us.insert(record.partition, now) {
            let gap = Gap {
                us: now - last,
                partition: record.partition,
                from_us: last,
            };
            if gap.us > inner.longest_gap.us {
                inner.longest_gap = gap;
            }
        }
        if let Some(begun) = inner.begun_us.remove(&record) {
            let newest = inner.acked_begun_us.entry(record.partition).or_default();
            *newest = begun.max(*newest);
        }
        if let Some(offset) = offset {
            let end = inner.ends.entry(record.partition).or_default();
            *end = (offset + 1).max(*end);
        }
        inner.history.push(now, Event::Acked { record, offset });
    }

    /// A record will never be acknowledged.
    pub fn settled(&self, record: Produced, unknown: bool) {
        let mut inner = self.inner.lock();
        let now = self.now_us();
        inner.begun_us.remove(&record);
        let event = if unknown {
            Event::Unknown { record }
        } else {
            Event::Failed { record }
        };
        inner.history.push(now, event);
    }

    /// Something that no promise is about and that should not have happened.
    pub fn complain(&self, what: String) {
        let mut inner = self.inner.lock();
        // A reader that fails again and again says the same each time.
        if inner.complaints.len() < 50 && !inner.complaints.contains(&what) {
            inner.complaints.push(what);
        }
    }

    /// All of these.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.inner.lock().complaints.clone()
    }

    /// Partitions below a number in which nothing was acknowledged that was sent since a moment.
    #[must_use]
    pub fn silent_since(&self, since_us: u64, partitions: u32) -> Vec<u32> {
        let inner = self.inner.lock();
        let acked = |partition: &u32| inner.acked_begun_us.get(&u64::from(*partition)).copied();
        (0..partitions)
            .filter(|partition| acked(partition).is_none_or(|begun| begun < since_us))
            .collect()
    }

    /// A tailing reader was given all below a position.
    pub fn reached(&self, reader: u64, partition: u32, position: u64) {
        self.inner.lock().positions.insert((reader, partition), position);
    }

    /// Tailing readers that were not given all that is acknowledged: reader, partition, its position
    /// and the end.
    #[must_use]
    pub fn behind(&self) -> Vec<(u64, u32, u64, u64)> {
        let inner = self.inner.lock();
        let end = |partition: u32| inner.ends.get(&u64::from(partition)).copied().unwrap_or(0);
        inner
            .positions
            .iter()
            .map(|((reader, partition), position)| (*reader, *partition, *position, end(*partition)))
            .filter(|(_, _, position, end)| position < end)
            .collect()
    }

    /// The longest time that a partition went without an acknowledgement.
    #[must_use]
    pub fn longest_gap(&self) -> Gap {
        self.inner.lock().longest_gap
    }

    /// All that was noted.
    #[must_use]
    pub fn history(&self) -> History {
        self.inner.lock().history.clone()
    }
}
