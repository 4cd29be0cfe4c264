//! The partition record's two forms: the stored message and the checked value.

use bytes::Bytes;
use forebay_proto::stored;
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use uuid::Uuid;

use super::{Gap, ManifestRef, Partition, Run, Segment};
use crate::record::{self, RecordError};

impl Partition {
    /// The record as a value of the metadata store.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        record::encode(&stored::PartitionRecord::from(self))
    }

    /// Reads a record and checks that its chain is one (I11).
    ///
    /// # Errors
    /// Where the value is damaged or says what cannot be.
    pub fn decode(value: &[u8]) -> Result<Self, RecordError> {
        Self::try_from(record::decode::<stored::PartitionRecord>(value)?)
    }
}

impl From<&Partition> for stored::PartitionRecord {
    fn from(partition: &Partition) -> Self {
        Self {
            partition_id: partition.id.0,
            epoch: partition.epoch.0,
            owner: partition.owner.map_or(0, |owner| owner.0),
            session: partition.session.0,
            last_seq: partition.last_seq,
            log_start: partition.log_start.0,
            manifest: partition.manifest.as_ref().map(|manifest| stored::Manifest {
                object: manifest.object.clone(),
                generation: manifest.generation,
                end: manifest.end.0,
                len: manifest.len,
                crc32c: manifest.crc32c,
            }),
            recent: partition
                .recent
                .iter()
                .map(|run| stored::OffloadedRun {
                    base: run.base.0,
                    end: run.end.0,
                    object: run.object.clone(),
                    position: run.position,
                    len: run.len,
                    crc32c: run.crc32c,
                    max_timestamp_ms: run.max_timestamp_ms,
                })
                .collect(),
            chain: partition.chain.iter().map(stored::SegmentRecord::from).collect(),
            op: partition.op,
            gaps: partition
                .gaps
                .iter()
                .map(|gap| stored::Gap {
                    base: gap.base.0,
                    end: gap.end.0,
                    reason: gap.reason.clone(),
                })
                .collect(),
            topic_id: Bytes::copy_from_slice(partition.topic.as_bytes()),
            partition: partition.number,
            deleted: partition.deleted,
        }
    }
}

impl From<&Segment> for stored::SegmentRecord {
    fn from(segment: &Segment) -> Self {
        Self {
            epoch: segment.id.epoch.0,
            seq: segment.id.seq,
            token: segment.token.0,
            base: segment.base.0,
            end: segment.end.map(Offset::get),
            replicas: segment
                .replicas
                .iter()
                .map(|(node, generation)| stored::ReplicaRecord {
                    node: node.0,
                    generation: generation.0,
                })
                .collect(),
            bytes: segment.bytes,
            sealed_ms: segment.sealed_ms,
            ack_quorum: u32::from(segment.ack_quorum),
            l0_min_rev: None,
            flags: 0,
        }
    }
}

fn bad(what: impl Into<String>) -> RecordError {
    RecordError::Message(what.into())
}

fn segment(partition: PartitionId, stored: stored::SegmentRecord) -> Result<Segment, RecordError> {
    let id = SegmentId {
        partition,
        epoch: Epoch(stored.epoch),
        seq: stored.seq,
    };
    let ack_quorum =
        u8::try_from(stored.ack_quorum).map_err(|_| bad(format!("{id} has a quorum over 255")))?;
    if ack_quorum == 0 || usize::from(ack_quorum) > stored.replicas.len() {
        return Err(bad(format!(
            "{id} commits with {ack_quorum} of {} replicas",
            stored.replicas.len()
        )));
    }
    Ok(Segment {
        id,
        token: Token(stored.token),
        base: Offset(stored.base),
        end: stored.end.map(Offset),
        ack_quorum,
        replicas: stored
            .replicas
            .iter()
            .map(|replica| (NodeId(replica.node), Generation(replica.generation)))
            .collect(),
        bytes: stored.bytes,
        sealed_ms: stored.sealed_ms,
    })
}

impl TryFrom<stored::PartitionRecord> for Partition {
    type Error = RecordError;

    fn try_from(stored: stored::PartitionRecord) -> Result<Self, RecordError> {
        let id = PartitionId(stored.partition_id);
        let topic = Uuid::from_slice(&stored.topic_id).map_err(|_| bad(format!("{id} has no topic id")))?;
        let chain = stored
            .chain
            .into_iter()
            .map(|one| segment(id, one))
            .collect::<Result<Vec<_>, _>>()?;
        let gaps: Vec<Gap> = stored
            .gaps
            .into_iter()
            .map(|gap| Gap {
                base: Offset(gap.base),
                end: Offset(gap.end),
                reason: gap.reason,
            })
            .collect();
        let is_declared = |from: Offset, to: Offset| {
            let end = gaps.iter().fold(from, |at, gap| {
                if gap.base <= at && at < gap.end {
                    gap.end
                } else {
                    at
                }
            });
            from == to || (from < to && end >= to)
        };
        for pair in chain.windows(2) {
            if let [older, newer] = pair
                && (older.token >= newer.token || !older.end.is_some_and(|end| is_declared(end, newer.base)))
            {
                return Err(bad(format!(
                    "chain of {id} is broken between {} and {}",
                    older.id, newer.id
                )));
            }
        }
        Ok(Self {
            id,
            topic,
            number: stored.partition,
            epoch: Epoch(stored.epoch),
            owner: (stored.owner != 0).then_some(BrokerId(stored.owner)),
            session: SessionId(stored.session),
            last_seq: stored.last_seq,
            log_start: Offset(stored.log_start),
            manifest: stored.manifest.map(|manifest| ManifestRef {
                object: manifest.object,
                generation: manifest.generation,
                end: Offset(manifest.end),
                len: manifest.len,
                crc32c: manifest.crc32c,
            }),
            recent: stored
                .recent
                .into_iter()
                .map(|run| Run {
                    base: Offset(run.base),
                    end: Offset(run.end),
                    object: run.object,
                    position: run.position,
                    len: run.len,
                    crc32c: run.crc32c,
                    max_timestamp_ms: run.max_timestamp_ms,
                })
                .collect(),
            chain,
            op: stored.op,
            gaps,
            deleted: stored.deleted,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Sealed;
    use super::*;

    fn record() -> Partition {
        let mut partition = Partition::new(PartitionId(4), Uuid::from_u128(77), 3);
        partition = partition.grant(BrokerId(2), SessionId(11), 5).unwrap();
        let segment = |seq, token, base| Segment {
            id: SegmentId {
                partition: PartitionId(4),
                epoch: Epoch(1),
                seq,
            },
            token: Token(token),
            base: Offset(base),
            end: None,
            ack_quorum: 2,
            replicas: vec![
                (NodeId(1), Generation(1)),
                (NodeId(2), Generation(3)),
                (NodeId(3), Generation(1)),
            ],
            bytes: 0,
            sealed_ms: 0,
        };
        partition = partition.open_first(segment(1, 20, 0), 6).unwrap();
        let sealed = Sealed {
            bytes: 512,
            at_ms: 1_700_000_000_000,
        };
        partition
            .seal(Offset(9), sealed, Some(segment(2, 21, 9)), 7)
            .unwrap()
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        let partition = record();
        assert_eq!(Partition::decode(&partition.encode()).unwrap(), partition);
    }

    #[test]
    fn a_broken_chain_is_refused_when_read() {
        let mut partition = record();
        for segment in &mut partition.chain {
            segment.end = segment.end.map(|end| Offset(end.0 + 1));
        }
        let error = Partition::decode(&partition.encode()).unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
