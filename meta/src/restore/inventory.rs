//! What storage nodes say they hold, by partition and segment.

use std::collections::BTreeMap;

use forebay_proto::v1;
use forebay_record::{Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, Token};

use super::{Copy, Held};

/// What nodes hold, as far as they were asked.
#[derive(Debug, Default)]
pub struct Inventory {
    held: BTreeMap<PartitionId, BTreeMap<SegmentId, Held>>,
    nothing: BTreeMap<SegmentId, Held>,
}

impl Inventory {
    /// Takes one line of what a node of this generation holds. Without the segment's first frame nothing is
    /// known of it there: such a line is passed over.
    pub fn take(&mut self, node: NodeId, generation: Generation, one: &v1::InventorySegment) {
        let id = SegmentId {
            partition: PartitionId(one.partition_id),
            epoch: Epoch(one.epoch),
            seq: one.seq,
        };
        let Ok(ack_quorum @ 1..) = u8::try_from(one.ack_quorum) else {
            return;
        };
        let named = one.replicas.iter();
        let held = || Held {
            id,
            token: Token(one.token),
            base: Offset(one.base),
            ack_quorum,
            replicas: named
                .map(|replica| (NodeId(replica.node), Generation(replica.generation)))
                .collect(),
            bytes: 0,
            copies: BTreeMap::new(),
        };
        let segments = self.held.entry(id.partition).or_default();
        let segment = segments.entry(id).or_insert_with(held);
        segment.bytes = segment.bytes.max(one.bytes);
        segment.copies.insert(
            node,
            Copy {
                generation,
                tail: Offset(one.tail),
                committed: Offset(one.committed),
                limbo: one.limbo,
            },
        );
    }

    /// What is held of a partition.
    #[must_use]
    pub fn of(&self, partition: PartitionId) -> &BTreeMap<SegmentId, Held> {
        self.held.get(&partition).unwrap_or(&self.nothing)
    }

    /// Partitions of which something is held, rising.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.held.keys().copied()
    }
}
