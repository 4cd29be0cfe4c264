//! What storage nodes refuse, told once in a while: a node that is full refuses every frame.

use std::collections::HashMap;

use forebay_proto::data::replica::Refusal;
use forebay_record::{NodeId, SegmentId};

/// A node's refusals are told at most this often.
const TELL_EVERY_MS: u64 = 5_000;

/// When each node's refusals were last told, and how many have come since. Bounded by the nodes.
#[derive(Debug, Default)]
pub struct Refusals {
    told: HashMap<NodeId, (u64, u64)>,
}

impl Refusals {
    /// Tells of one, or counts it.
    pub fn tell(&mut self, node: NodeId, segment: SegmentId, number: u32, refusal: Refusal, now_ms: u64) {
        if let Some(untold) = self.count(node, now_ms) {
            tracing::warn!(%node, %segment, number, ?refusal, untold, "storage node did not take a frame");
        }
    }

    /// How many were not told before this one, none where this one is not told either.
    fn count(&mut self, node: NodeId, now_ms: u64) -> Option<u64> {
        match self.told.get_mut(&node) {
            Some((at, untold)) if now_ms.saturating_sub(*at) < TELL_EVERY_MS => {
                *untold += 1;
                None
            }
            known => {
                let untold = known.map_or(0, |(_, untold)| *untold);
                self.told.insert(node, (now_ms, 0));
                Some(untold)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_a_full_node_are_told_once_in_a_while_with_their_number() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.count(NodeId(1), 10), Some(0));
        for now_ms in 11..111 {
            assert_eq!(refusals.count(NodeId(1), now_ms), None);
        }
        assert_eq!(
            refusals.count(NodeId(2), 20),
            Some(0),
            "another node's are another's"
        );
        assert_eq!(refusals.count(NodeId(1), 10 + TELL_EVERY_MS), Some(100));
    }
}
