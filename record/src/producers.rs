//! Duplicate detection: what each idempotent producer wrote last.
//!
//! The table includes batches that are staged and not committed, so a repetition that overtakes
//! the commit is recognised too; who asks decides whether to answer it yet. It is rebuilt after a
//! takeover from a state frame and batch headers, never from data. The rules are Kafka's
//! (KIP-98): five batches are remembered per producer, and a new epoch starts at sequence zero. So
//! does a producer that is unknown: were it to start anywhere, a batch that overtakes the ones before
//! it would make those look like repetitions, and they would be acknowledged without being written.

use std::collections::HashMap;

use crate::batch::{Header, sequence_after};
use crate::state::{PRODUCER_BATCHES_MAX, PRODUCERS_MAX, ProducerBatch, ProducerEntry};
use crate::{Offset, ProducerId};

/// What a batch is to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New: append it.
    New,
    /// Written before at this offset.
    Duplicate(Offset),
}

/// Why a batch of an idempotent producer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A newer incarnation of the producer has written.
    #[error("producer {producer} epoch {epoch} is fenced by epoch {newest}")]
    Fenced {
        /// The producer.
        producer: ProducerId,
        /// The batch's epoch.
        epoch: i16,
        /// The newest epoch seen.
        newest: i16,
    },
    /// Nothing is known of the producer, and this is not its first batch.
    #[error("producer {producer} is unknown here and sent sequence {found}, 0 was expected")]
    Unknown {
        /// The producer.
        producer: ProducerId,
        /// The batch's first sequence.
        found: i32,
    },
    /// A batch before this one is missing.
    #[error("producer {producer} sent sequence {found}, {expected} was expected")]
    OutOfOrder {
        /// The producer.
        producer: ProducerId,
        /// The batch's first sequence.
        found: i32,
        /// The next in order.
        expected: i32,
    },
    /// Written so long ago that its offset is forgotten.
    #[error("producer {producer} repeated sequence {found}, which was written before {oldest}")]
    Repeated {
        /// The producer.
        producer: ProducerId,
        /// The batch's first sequence.
        found: i32,
        /// The oldest sequence remembered.
        oldest: i32,
    },
}

/// The table of one partition.
#[derive(Debug, Default, Clone)]
pub struct Producers {
    entries: HashMap<ProducerId, ProducerEntry>,
}

impl Producers {
    /// A table as a state frame has it.
    #[must_use]
    pub fn from_entries(entries: Vec<ProducerEntry>) -> Self {
        Self {
            entries: entries.into_iter().map(|entry| (entry.id, entry)).collect(),
        }
    }

    /// The entries as they were at an offset: what was staged at or after it is left out.
    #[must_use]
    pub fn snapshot_below(&self, end: Offset) -> Vec<ProducerEntry> {
        let mut entries: Vec<_> = self
            .entries
            .values()
            .map(|entry| ProducerEntry {
                batches: entry
                    .batches
                    .iter()
                    .filter(|batch| batch.base_offset < end)
                    .copied()
                    .collect(),
                ..entry.clone()
            })
            .filter(|entry| !entry.batches.is_empty())
            .collect();
        entries.sort_by_key(|entry| entry.id);
        entries
    }

    /// Producers remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Decides what a batch is; a batch without a producer is always new.
    ///
    /// # Errors
    /// Where the producer is fenced, left something out, or repeats what is forgotten.
    pub fn check(&self, batch: &Header) -> Result<Verdict, SequenceError> {
        let (Some(producer), Some(last)) = (batch.producer_id(), batch.last_sequence()) else {
            return Ok(Verdict::New);
        };
        let (epoch, first) = (batch.producer_epoch(), batch.base_sequence());
        let begins = || match first {
            0 => Ok(Verdict::New),
            found => Err(SequenceError::Unknown { producer, found }),
        };
        let Some(entry) = self.entries.get(&producer) else {
            return begins();
        };
        if epoch < entry.epoch {
            return Err(SequenceError::Fenced {
                producer,
                epoch,
                newest: entry.epoch,
            });
        }
        if epoch > entry.epoch {
            return match first {
                0 => Ok(Verdict::New),
                found => Err(SequenceError::OutOfOrder {
                    producer,
                    found,
                    expected: 0,
                }),
            };
        }
        let known = entry
            .batches
            .iter()
            .find(|one| one.first_sequence == first && one.last_sequence == last);
        if let Some(known) = known {
            return Ok(Verdict::Duplicate(known.base_offset));
        }
        let Some(newest) = entry.batches.last() else {
            return begins();
        };
        let expected = sequence_after(newest.last_sequence, 1);
        if first == expected {
            return Ok(Verdict::New);
        }
        // Half of the ring behind the newest sequence counts as the past.
        let behind = i64::from(newest.last_sequence) - i64::from(first);
        let oldest = entry.batches.first().map_or(0, |one| one.first_sequence);
        if (0..i64::from(i32::MAX) / 2).contains(&behind) {
            return Err(SequenceError::Repeated {
                producer,
                found: first,
                oldest,
            });
        }
        Err(SequenceError::OutOfOrder {
            producer,
            found: first,
            expected,
        })
    }

    /// Remembers a batch that has been given its offset.
    pub fn record(&mut self, batch: &Header, base: Offset) {
        let (Some(id), Some(last_sequence)) = (batch.producer_id(), batch.last_sequence()) else {
            return;
        };
        if !self.entries.contains_key(&id) && self.entries.len() >= PRODUCERS_MAX {
            self.forget_idlest();
        }
        let epoch = batch.producer_epoch();
        let max_timestamp_ms = batch.max_timestamp();
        let entry = self.entries.entry(id).or_insert_with(|| ProducerEntry {
            id,
            epoch,
            last_timestamp_ms: max_timestamp_ms,
            batches: Vec::with_capacity(PRODUCER_BATCHES_MAX),
        });
        if epoch != entry.epoch {
            entry.epoch = epoch;
            entry.batches.clear();
        }
        if entry.batches.len() >= PRODUCER_BATCHES_MAX {
            entry.batches.remove(0);
        }
        entry.last_timestamp_ms = entry.last_timestamp_ms.max(max_timestamp_ms);
        entry.batches.push(ProducerBatch {
            first_sequence: batch.base_sequence(),
            last_sequence,
            base_offset: base,
            max_timestamp_ms,
        });
    }

    fn forget_idlest(&mut self) {
        let idlest = self
            .entries
            .values()
            .min_by_key(|entry| (entry.last_timestamp_ms, entry.id))
            .map(|entry| entry.id);
        if let Some(id) = idlest {
            self.entries.remove(&id);
        }
    }
}
