//! Which storage nodes a new segment goes to.

use std::collections::BTreeSet;

use forebay_meta::model::Segment;
use forebay_record::{Generation, NodeId, SegmentId};

use super::action::{NodeView, Nodes};

/// Chooses `count` nodes for a segment, at least `quorum` of them usable now.
///
/// Nodes are ranked by a hash of segment and node, so that segments spread evenly and two brokers
/// with the same view choose alike; distinct zones come before equal ones. Where fewer usable
/// nodes than `count` exist, nodes that are down fill the set, so that the close quorum stays that
/// of a full set. `None` where fewer than `quorum` are usable.
#[must_use]
pub fn choose(
    segment: SegmentId,
    nodes: &Nodes,
    avoid: &BTreeSet<NodeId>,
    count: usize,
    quorum: usize,
) -> Option<Vec<(NodeId, Generation)>> {
    let mut ranked: Vec<_> = nodes
        .iter()
        .map(|(id, view)| (!is_usable(*id, view, avoid), rank(segment, *id), *id, view))
        .collect();
    ranked.sort_by_key(|(unusable, rank, id, view)| (*unusable, view.leaving, *rank, *id));
    let usable = ranked.iter().filter(|(unusable, ..)| !unusable).count();
    if usable < quorum {
        return None;
    }
    let mut chosen: Vec<(NodeId, Generation)> = Vec::with_capacity(count);
    let mut zones = BTreeSet::new();
    for fresh_zones_only in [true, false] {
        for (unusable, _, id, view) in &ranked {
            let taken = chosen.iter().any(|(node, _)| node == id);
            let zone_taken = !view.zone.is_empty() && zones.contains(&view.zone);
            if chosen.len() == count || taken || (fresh_zones_only && (*unusable || zone_taken)) {
                continue;
            }
            zones.insert(view.zone.clone());
            chosen.push((*id, view.generation));
        }
    }
    Some(chosen)
}

/// Chooses a node that takes the place of one replica of a sealed segment: not one of the others, and
/// in a zone that none of the others is in, where there is such a node, and one that takes frames as large
/// as those who have the segment, where there is a choice. None where no node can.
#[must_use]
pub fn replace(
    segment: &Segment,
    lost: (NodeId, Generation),
    nodes: &Nodes,
    avoid: &BTreeSet<NodeId>,
) -> Option<(NodeId, Generation)> {
    let others = || segment.replicas.iter().filter(|one| **one != lost);
    let zones: BTreeSet<&str> = others()
        .filter_map(|(node, _)| nodes.get(node))
        .map(|view| view.zone.as_str())
        .filter(|zone| !zone.is_empty())
        .collect();
    let largest = segment
        .replicas
        .iter()
        .filter_map(|(node, _)| nodes.get(node)?.frame_bytes_max)
        .max();
    let is_small = |view: &NodeView| view.frame_bytes_max < largest;
    nodes
        .iter()
        .filter(|(id, view)| {
            let taken = others().any(|(node, _)| node == *id) || lost == (**id, view.generation);
            !taken && is_usable(**id, view, avoid)
        })
        .min_by_key(|(id, view)| {
            (
                zones.contains(view.zone.as_str()),
                is_small(view),
                rank(segment.id, **id),
                **id,
            )
        })
        .map(|(id, view)| (*id, view.generation))
}

/// The least of the largest frames that the storage nodes take, in bytes of batches, and whose that is;
/// none where no node says. Every node counts, whatever its state: what is written now may have to go
/// to any of them later, when the replicas that took it are away.
#[must_use]
pub fn least_frame(nodes: &Nodes) -> Option<(u64, NodeId)> {
    let said = |(id, view): (&NodeId, &NodeView)| Some((view.frame_bytes_max?, *id));
    nodes.iter().filter_map(said).min()
}

/// Nodes that do not take a frame with so many bytes of batches.
pub fn too_small_for(bytes: u64, nodes: &Nodes) -> impl Iterator<Item = NodeId> {
    let is_small = move |view: &NodeView| view.frame_bytes_max.is_some_and(|max| bytes > max);
    nodes
        .iter()
        .filter(move |(_, view)| is_small(view))
        .map(|(id, _)| *id)
}

fn is_usable(id: NodeId, view: &NodeView, avoid: &BTreeSet<NodeId>) -> bool {
    view.usable && view.connected && !avoid.contains(&id)
}

fn rank(segment: SegmentId, node: NodeId) -> u64 {
    let mut x = segment.partition.0 ^ (u64::from(segment.seq) << 40) ^ (u64::from(node.0) << 20);
    x ^= u64::from(segment.epoch.0) << 52;
    x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use forebay_record::{Epoch, PartitionId};

    fn nodes(zones: &[&str]) -> Nodes {
        (1_u32..)
            .zip(zones)
            .map(|(id, zone)| {
                let view = NodeView {
                    generation: Generation(1),
                    zone: (*zone).to_owned(),
                    usable: true,
                    connected: true,
                    leaving: false,
                    frame_bytes_max: None,
                    heard_ms: 0,
                };
                (NodeId(id), view)
            })
            .collect()
    }

    fn segment(seq: u32) -> SegmentId {
        SegmentId {
            partition: PartitionId(3),
            epoch: Epoch(1),
            seq,
        }
    }

    #[test]
    fn replicas_lie_in_different_zones_where_there_are_enough() {
        let nodes = nodes(&["a", "a", "a", "b", "b", "c"]);
        for seq in 0..50 {
            let chosen = choose(segment(seq), &nodes, &BTreeSet::new(), 3, 2).unwrap();
            let zones: BTreeSet<_> = chosen
                .iter()
                .map(|(node, _)| nodes.get(node).unwrap().zone.clone())
                .collect();
            assert_eq!(zones.len(), 3, "{chosen:?}");
        }
    }

    #[test]
    fn a_lost_replica_is_replaced_in_a_zone_of_its_own_where_there_is_one() {
        use forebay_record::{Offset, Token};
        let all = nodes(&["a", "b", "c", "a", "b", "c", ""]);
        let generation = Generation(1);
        for seq in 0..50 {
            let sealed = Segment {
                id: segment(seq),
                token: Token(1),
                base: Offset(0),
                end: Some(Offset(9)),
                ack_quorum: 2,
                replicas: [1, 2, 3].map(|id| (NodeId(id), generation)).to_vec(),
                bytes: 1,
                sealed_ms: 0,
            };
            let lost = (NodeId(3), generation);
            let none = BTreeSet::new();
            let (chosen, _) = replace(&sealed, lost, &all, &none).unwrap();
            assert!([NodeId(6), NodeId(7)].contains(&chosen), "{chosen}");
            let avoid = BTreeSet::from([NodeId(6), NodeId(7)]);
            let (chosen, _) = replace(&sealed, lost, &all, &avoid).unwrap();
            assert!([NodeId(4), NodeId(5)].contains(&chosen), "{chosen}");
            // Larger frames may be in it than one of two equals takes.
            let mut uneven = all.clone();
            for (id, view) in &mut uneven {
                view.frame_bytes_max = Some(if *id == NodeId(6) { 500 } else { 900 });
            }
            let (chosen, _) = replace(&sealed, lost, &uneven, &none).unwrap();
            assert_eq!(chosen, NodeId(7));
            // The same node again, after it lost what it had.
            let mut reborn = nodes(&["a", "b", "c"]);
            assert_eq!(replace(&sealed, lost, &reborn, &none), None);
            reborn.get_mut(&NodeId(3)).unwrap().generation = Generation(2);
            assert_eq!(
                replace(&sealed, lost, &reborn, &none),
                Some((NodeId(3), Generation(2)))
            );
        }
    }

    #[test]
    fn a_node_that_is_down_only_fills_a_set_that_has_its_quorum() {
        let mut nodes = nodes(&["", "", ""]);
        nodes.get_mut(&NodeId(2)).unwrap().connected = false;
        let chosen = choose(segment(1), &nodes, &BTreeSet::new(), 3, 2).unwrap();
        assert_eq!(chosen.last().unwrap().0, NodeId(2));
        nodes.get_mut(&NodeId(3)).unwrap().usable = false;
        assert!(choose(segment(1), &nodes, &BTreeSet::new(), 3, 2).is_none());
    }

    #[test]
    fn the_least_frame_is_that_of_the_smallest_node_that_says_so() {
        let mut nodes = nodes(&["", "", "", ""]);
        assert_eq!(least_frame(&nodes), None);
        for (id, bytes) in [(1, 700), (3, 500), (4, 900)] {
            nodes.get_mut(&NodeId(id)).unwrap().frame_bytes_max = Some(bytes);
        }
        nodes.get_mut(&NodeId(3)).unwrap().connected = false;
        assert_eq!(least_frame(&nodes), Some((500, NodeId(3))));
        assert_eq!(too_small_for(500, &nodes).count(), 0);
        let small: Vec<_> = too_small_for(701, &nodes).collect();
        assert_eq!(small, [NodeId(1), NodeId(3)]);
    }

    #[test]
    fn segments_spread_over_the_nodes() {
        let nodes = nodes(&["", "", "", "", "", ""]);
        let mut counts = std::collections::BTreeMap::new();
        for seq in 0..600 {
            for (node, _) in choose(segment(seq), &nodes, &BTreeSet::new(), 3, 2).unwrap() {
                *counts.entry(node).or_insert(0) += 1;
            }
        }
        for (node, count) in counts {
            assert!((200..400).contains(&count), "{node} has {count} of 300");
        }
    }
}
