//! One partition's records on their way into batches.
//!
//! No I/O and no clock. A batch is built in place by the record crate's builder: a record's bytes
//! are copied once, from the caller into the batch. A batch is sealed when the next record does
//! not fit, when its linger is over, or on demand, and is then only handed on.
//!
//! Whoever opens a batch brings the memory for it, a permit for its full size, so that appending
//! never allocates beyond what was admitted.

use std::collections::VecDeque;

use bytes::Bytes;
use forebay_record::batch::{BuildError, Builder, HEADER_LEN, ProducerStamp, sequence_after};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::record::ProducerRecord;
use super::settlement::Settlement;

/// Largest overhead of a record beside its bytes: lengths, deltas, attributes, counts.
const RECORD_OVERHEAD: usize = 40;
/// Largest overhead of a header beside its bytes.
const HEADER_OVERHEAD: usize = 10;
/// A sealed batch that fills less than this part of its memory is copied into less.
const SPARSE: usize = 2;
/// Least that a sealed batch counts for, so that tiny ones are bounded in number.
const CHARGE_LEAST: usize = 1 << 10;

/// Most bytes that a record may take in a batch.
pub(crate) fn record_bytes_most(record: &ProducerRecord<'_>) -> usize {
    let headers = record.headers.iter().fold(0usize, |sum, (name, value)| {
        sum.saturating_add(name.len())
            .saturating_add(value.map_or(0, <[u8]>::len))
            .saturating_add(HEADER_OVERHEAD)
    });
    payload_bytes(record)
        .saturating_add(headers)
        .saturating_add(RECORD_OVERHEAD)
}

/// Least bytes that a batch of this record has without compression.
pub(crate) fn batch_bytes_least(record: &ProducerRecord<'_>) -> usize {
    payload_bytes(record).saturating_add(HEADER_LEN)
}

fn payload_bytes(record: &ProducerRecord<'_>) -> usize {
    record
        .key
        .map_or(0, <[u8]>::len)
        .saturating_add(record.value.map_or(0, <[u8]>::len))
}

/// A batch as it will be sent.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub bytes: Bytes,
    pub records: i32,
    /// The numbers written in it; the lane has the last word on them.
    pub stamp: Option<ProducerStamp>,
    /// When its first record came.
    pub opened: Instant,
    pub settlement: Settlement,
    /// Memory, given back when the batch is dropped.
    pub space: OwnedSemaphorePermit,
}

/// What a new batch is made of.
#[derive(Debug)]
pub(crate) struct Material {
    pub builder: Builder,
    pub settlement: Settlement,
    pub space: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Open {
    material: Material,
    opened: Instant,
    due: Instant,
}

/// The open batch of a partition and the sealed ones that wait to be sent.
#[derive(Debug)]
pub(crate) struct Accumulator {
    batch_bytes: usize,
    open: Option<Open>,
    sealed: VecDeque<Sealed>,
    /// Numbers of the batch to be sealed next.
    next: Option<ProducerStamp>,
    /// Whether the sender has been told that something can be taken.
    pub announced: bool,
    /// Whether the sender keeps a timer for the open batch.
    pub timed: bool,
    /// Whether the topic is gone or the producer closed.
    pub closed: bool,
}

/// A builder to be used again, and whether a batch was sealed.
pub(crate) struct Emptied {
    pub builder: Builder,
    pub failure: Option<(Settlement, BuildError)>,
}

impl Accumulator {
    pub(crate) const fn new(batch_bytes: usize, next: Option<ProducerStamp>) -> Self {
        Self {
            batch_bytes,
            open: None,
            sealed: VecDeque::new(),
            next,
            announced: false,
            timed: false,
            closed: false,
        }
    }

    /// Batches have another size from now on, the open one included.
    pub(crate) const fn resize(&mut self, batch_bytes: usize) {
        self.batch_bytes = batch_bytes;
    }

    /// Size at which batches are sealed.
    pub(crate) const fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(crate) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Whether a record of at most `most` bytes can go into the open batch.
    pub(crate) fn fits(&self, most: usize) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.material.builder.len_estimate().saturating_add(most) <= self.batch_bytes)
    }

    /// Begins a batch. There is none open.
    pub(crate) fn begin(&mut self, material: Material, now: Instant, due: Instant) {
        self.open = Some(Open {
            material,
            opened: now,
            due,
        });
    }

    /// Adds a record to the open batch, and says which of its records it is.
    pub(crate) fn append(
        &mut self,
        record: &ProducerRecord<'_>,
        timestamp_ms: i64,
    ) -> Option<Result<(u32, &mut Settlement), BuildError>> {
        let material = &mut self.open.as_mut()?.material;
        let index = material.builder.count() as u32;
        let appended = material
            .builder
            .append(timestamp_ms, record.key, record.value, record.headers);
        Some(appended.map(|()| (index, &mut material.settlement)))
    }

    /// Records of the open batch, and how many of them are traced.
    pub(crate) fn open_counts(&self) -> (usize, usize) {
        self.open.as_ref().map_or((0, 0), |open| {
            let Material {
                builder, settlement, ..
            } = &open.material;
            (builder.count(), settlement.traced())
        })
    }

    /// When the open batch is to be sealed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.due)
    }

    /// Makes the open batch due at once.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.due = open.due.min(now);
        }
    }

    /// Seals the open batch, if there is one. An empty one is dropped.
    pub(crate) fn seal(&mut self) -> Option<Emptied> {
        let Open {
            material:
                Material {
                    mut builder,
                    settlement,
                    mut space,
                },
            opened,
            ..
        } = self.open.take()?;
        let records = builder.count() as i32;
        if records == 0 {
            return Some(Emptied {
                builder,
                failure: None,
            });
        }
        let bytes = match builder.finish(self.next) {
            Ok(bytes) => bytes,
            Err(error) => {
                return Some(Emptied {
                    builder,
                    failure: Some((settlement, error)),
                });
            }
        };
        let stamp = self.next;
        if let Some(next) = &mut self.next {
            next.sequence = sequence_after(next.sequence, records);
        }
        let admitted = space.num_permits();
        let sparse = bytes.len() < admitted / SPARSE;
        if sparse {
            drop(space.split(admitted - bytes.len().max(CHARGE_LEAST).min(admitted)));
        }
        // Without compression the batch is a slice of the builder's memory, which it would pin.
        let bytes = if sparse && builder.codec() == forebay_record::batch::Codec::None {
            Bytes::copy_from_slice(&bytes)
        } else {
            bytes
        };
        self.sealed.push_back(Sealed {
            bytes,
            records,
            stamp,
            opened,
            settlement,
            space,
        });
        Some(Emptied {
            builder,
            failure: None,
        })
    }

    /// Takes over a batch that was built elsewhere.
    pub(crate) fn push(&mut self, batch: Sealed) {
        self.sealed.push_back(batch);
    }

    /// The oldest sealed batch.
    pub(crate) fn pop(&mut self) -> Option<Sealed> {
        self.sealed.pop_front()
    }

    /// Sets the numbers of the oldest batch that waits here. Those sealed already keep what is
    /// written in them until they are sent.
    pub(crate) fn renumber(&mut self, stamp: ProducerStamp) {
        let sequence = self.sealed.iter().fold(stamp.sequence, |sequence, batch| {
            sequence_after(sequence, batch.records)
        });
        self.next = Some(ProducerStamp { sequence, ..stamp });
    }

    /// Drops everything that waits, and takes nothing more.
    pub(crate) fn close(&mut self) -> (Option<Material>, VecDeque<Sealed>) {
        self.closed = true;
        (
            self.open.take().map(|open| open.material),
            std::mem::take(&mut self.sealed),
        )
    }
}

#[cfg(test)]
#[path = "accumulate_tests.rs"]
mod tests;
