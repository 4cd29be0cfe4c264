//! What a segment carries besides records: its OPEN payload and the partition's state.
//!
//! A new owner rebuilds duplicate detection from the last state frame and the batch headers after
//! it, never from data. Every segment begins with such a state, so a takeover reads one segment.
//!
//! OPEN payload, little endian:
//!
//! | bytes | field                                             |
//! |-------|---------------------------------------------------|
//! | 0–1   | format version, 1                                 |
//! | 2     | acknowledgements that commit                      |
//! | 3     | replicas, r                                       |
//! | 4–11  | base offset                                       |
//! | 12–19 | creation time, milliseconds since 1970            |
//! | 20–   | r × (node u32, generation u32), then a state      |
//!
//! State (the payload of a STATE frame, and the rest of OPEN):
//!
//! | field                                                                            |
//! |----------------------------------------------------------------------------------|
//! | format version u16, 1; leader epochs e u32; producers p u32                      |
//! | e × (epoch u32, start offset u64)                                                |
//! | p × (id u64, epoch i16, timestamp i64, batches b u8,                             |
//! |      b × (first sequence i32, last sequence i32, base offset u64, max time i64)) |

use crate::{Epoch, Generation, NodeId, Offset, ProducerId};

/// Batches remembered per producer, as in Kafka: the requests that may be in flight at once.
pub const PRODUCER_BATCHES_MAX: usize = 5;
/// Producers remembered per partition; the ones idle for longest are forgotten first.
pub const PRODUCERS_MAX: usize = 10_000;
/// Leader epochs remembered per partition.
pub const EPOCHS_MAX: usize = 10_000;
/// Replicas of one segment.
pub const REPLICAS_MAX: usize = 7;

const VERSION: u16 = 1;

/// Why bytes are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes end inside a field.
    #[error("partition state truncated at byte {0}")]
    Truncated(usize),
    /// A later or damaged format.
    #[error("partition state format version {0} is not supported")]
    Version(u16),
    /// A count over its bound.
    #[error("partition state names {count} {what}, at most {max} are possible")]
    Count {
        /// What is counted.
        what: &'static str,
        /// As stored.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// Bytes after the end.
    #[error("{0} bytes after the end of a partition state")]
    Trailing(usize),
}

/// One batch of an idempotent producer, remembered to recognise its repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerBatch {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// The offset that its first record has.
    pub base_offset: Offset,
    /// Its largest timestamp, milliseconds since 1970.
    pub max_timestamp_ms: i64,
}

/// What is remembered of one idempotent producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerEntry {
    /// The producer.
    pub id: ProducerId,
    /// Its newest epoch.
    pub epoch: i16,
    /// When it last wrote, by its own batch timestamps, milliseconds since 1970.
    pub last_timestamp_ms: i64,
    /// Its newest batches, oldest first, at most [`PRODUCER_BATCHES_MAX`].
    pub batches: Vec<ProducerBatch>,
}

/// The state of a partition at one offset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionState {
    /// Leader epochs and the first offset written under each, rising.
    pub epochs: Vec<(Epoch, Offset)>,
    /// Producers, in no particular order.
    pub producers: Vec<ProducerEntry>,
}

/// The payload of a segment's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPayload {
    /// First offset of the segment.
    pub base: Offset,
    /// When it was created, milliseconds since 1970, by its creator's clock; informs, never decides.
    pub created_ms: i64,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// The fixed replica set.
    pub replicas: Vec<(NodeId, Generation)>,
    /// State at the base offset.
    pub state: PartitionState,
}

/// Reads little-endian fields without ever reaching past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let chunk = rest.first_chunk::<N>().ok_or(StateError::Truncated(self.at))?;
        self.at += N;
        Ok(*chunk)
    }

    fn u8(&mut self) -> Result<u8, StateError> {
        self.take::<1>().map(u8::from_le_bytes)
    }
    fn u16(&mut self) -> Result<u16, StateError> {
        self.take::<2>().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, StateError> {
        self.take::<4>().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, StateError> {
        self.take::<8>().map(u64::from_le_bytes)
    }
    fn i64(&mut self) -> Result<i64, StateError> {
        self.take::<8>().map(i64::from_le_bytes)
    }
    fn i32(&mut self) -> Result<i32, StateError> {
        self.take::<4>().map(i32::from_le_bytes)
    }
    fn i16(&mut self) -> Result<i16, StateError> {
        self.take::<2>().map(i16::from_le_bytes)
    }

    /// A count that is within its bound and whose elements can fit into what is left.
    fn count(&mut self, what: &'static str, bound: usize, element_len: usize) -> Result<usize, StateError> {
        let count = self.u32()? as usize;
        let max = bound.min(self.bytes.len().saturating_sub(self.at) / element_len);
        if count > max {
            return Err(StateError::Count { what, count, max });
        }
        Ok(count)
    }

    fn finish(self) -> Result<(), StateError> {
        match self.bytes.len().saturating_sub(self.at) {
            0 => Ok(()),
            more => Err(StateError::Trailing(more)),
        }
    }
}

const EPOCH_LEN: usize = 12;
const PRODUCER_LEN_MIN: usize = 19;

impl PartitionState {
    /// The state's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.epochs.len() * EPOCH_LEN + self.producers.len() * 139);
        self.encode_into(&mut out);
        out
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        let epochs = self.epochs.iter().rev().take(EPOCHS_MAX).rev();
        let producers = self.producers.iter().take(PRODUCERS_MAX);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len_u32(epochs.len()).to_le_bytes());
        out.extend_from_slice(&len_u32(producers.len()).to_le_bytes());
        for (epoch, start) in epochs {
            out.extend_from_slice(&epoch.0.to_le_bytes());
            out.extend_from_slice(&start.0.to_le_bytes());
        }
        for producer in producers {
            let batches = producer.batches.iter().rev().take(PRODUCER_BATCHES_MAX).rev();
            out.extend_from_slice(&producer.id.0.to_le_bytes());
            out.extend_from_slice(&producer.epoch.to_le_bytes());
            out.extend_from_slice(&producer.last_timestamp_ms.to_le_bytes());
            out.push(u8::try_from(batches.len()).unwrap_or(u8::MAX));
            for batch in batches {
                out.extend_from_slice(&batch.first_sequence.to_le_bytes());
                out.extend_from_slice(&batch.last_sequence.to_le_bytes());
                out.extend_from_slice(&batch.base_offset.0.to_le_bytes());
                out.extend_from_slice(&batch.max_timestamp_ms.to_le_bytes());
            }
        }
    }

    /// Reads a state that fills `bytes`.
    ///
    /// # Errors
    /// Where the bytes are truncated, over a bound, of another version, or too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(bytes);
        let state = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(state)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, StateError> {
        let version = reader.u16()?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let epoch_count = reader.count("leader epochs", EPOCHS_MAX, EPOCH_LEN)?;
        let producer_count = reader.count("producers", PRODUCERS_MAX, PRODUCER_LEN_MIN)?;
        let mut state = Self::default();
        for _ in 0..epoch_count {
            state.epochs.push((Epoch(reader.u32()?), Offset(reader.u64()?)));
        }
        for _ in 0..producer_count {
            state.producers.push(read_producer(reader)?);
        }
        Ok(state)
    }
}

fn read_producer(reader: &mut Reader<'_>) -> Result<ProducerEntry, StateError> {
    let id = ProducerId(reader.u64()?);
    let epoch = reader.i16()?;
    let last_timestamp_ms = reader.i64()?;
    let count = usize::from(reader.u8()?);
    if count > PRODUCER_BATCHES_MAX {
        return Err(StateError::Count {
            what: "batches of a producer",
            count,
            max: PRODUCER_BATCHES_MAX,
        });
    }
    let mut batches = Vec::with_capacity(count);
    for _ in 0..count {
        batches.push(ProducerBatch {
            first_sequence: reader.i32()?,
            last_sequence: reader.i32()?,
            base_offset: Offset(reader.u64()?),
            max_timestamp_ms: reader.i64()?,
        });
    }
    Ok(ProducerEntry {
        id,
        epoch,
        last_timestamp_ms,
        batches,
    })
}

impl OpenPayload {
    /// The payload's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let replicas = self.replicas.iter().take(REPLICAS_MAX);
        let mut out = Vec::with_capacity(64 + self.state.producers.len() * 139);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(self.ack_quorum);
        out.push(u8::try_from(replicas.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(&self.base.0.to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        for (node, generation) in replicas {
            out.extend_from_slice(&node.0.to_le_bytes());
            out.extend_from_slice(&generation.0.to_le_bytes());
        }
        self.state.encode_into(&mut out);
        out
    }

    /// Reads an OPEN payload that fills `bytes`.
    ///
    /// # Errors
    /// As [`PartitionState::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u16()?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let ack_quorum = reader.u8()?;
        let count = usize::from(reader.u8()?);
        if count > REPLICAS_MAX {
            return Err(StateError::Count {
                what: "replicas",
                count,
                max: REPLICAS_MAX,
            });
        }
        let base = Offset(reader.u64()?);
        let created_ms = reader.i64()?;
        let mut replicas = Vec::with_capacity(count);
        for _ in 0..count {
            replicas.push((NodeId(reader.u32()?), Generation(reader.u32()?)));
        }
        let state = PartitionState::read(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            base,
            created_ms,
            ack_quorum,
            replicas,
            state,
        })
    }
}

/// A length that its bound keeps far below 2³².
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn batch() -> impl Strategy<Value = ProducerBatch> {
        (any::<i32>(), any::<i32>(), any::<u64>(), any::<i64>()).prop_map(|(a, b, c, d)| ProducerBatch {
            first_sequence: a,
            last_sequence: b,
            base_offset: Offset(c),
            max_timestamp_ms: d,
        })
    }

    fn producer() -> impl Strategy<Value = ProducerEntry> {
        (
            any::<u64>(),
            any::<i16>(),
            any::<i64>(),
            prop::collection::vec(batch(), 0..=PRODUCER_BATCHES_MAX),
        )
            .prop_map(|(id, epoch, last_timestamp_ms, batches)| ProducerEntry {
                id: ProducerId(id),
                epoch,
                last_timestamp_ms,
                batches,
            })
    }

    fn state() -> impl Strategy<Value = PartitionState> {
        (
            prop::collection::vec((any::<u32>(), any::<u64>()), 0..5),
            prop::collection::vec(producer(), 0..5),
        )
            .prop_map(|(epochs, producers)| PartitionState {
                epochs: epochs.into_iter().map(|(e, o)| (Epoch(e), Offset(o))).collect(),
                producers,
            })
    }

    fn open() -> impl Strategy<Value = OpenPayload> {
        (
            any::<u64>(),
            any::<i64>(),
            any::<u8>(),
            prop::collection::vec(any::<(u32, u32)>(), 0..=REPLICAS_MAX),
            state(),
        )
            .prop_map(|(base, created_ms, ack_quorum, replicas, state)| OpenPayload {
                base: Offset(base),
                created_ms,
                ack_quorum,
                replicas: replicas
                    .into_iter()
                    .map(|(n, g)| (NodeId(n), Generation(g)))
                    .collect(),
                state,
            })
    }

    proptest! {
        #[test]
        fn open_survives_the_round_trip(open in open()) {
            prop_assert_eq!(OpenPayload::decode(&open.encode()).unwrap(), open);
        }

        #[test]
        fn every_truncation_is_refused(open in open(), cut in any::<prop::sample::Index>()) {
            let bytes = open.encode();
            let cut = cut.index(bytes.len());
            prop_assert!(OpenPayload::decode(bytes.get(..cut).unwrap()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = OpenPayload::decode(&bytes);
            let _ = PartitionState::decode(&bytes);
        }
    }

    #[test]
    fn a_count_that_cannot_fit_is_refused_before_anything_is_allocated() {
        let mut bytes = PartitionState::default().encode();
        bytes.splice(2..6, u32::MAX.to_le_bytes());
        assert!(matches!(
            PartitionState::decode(&bytes),
            Err(StateError::Count { .. })
        ));
    }
}
