//! Storage nodes as an operator sees them: the state that their records name, and what partitions'
//! records still need of them.
//!
//! A state is changed by compare-and-swap on the node's own record, which the node itself rewrites from
//! time to time; nothing else of the record is touched. A node that is declared gone is never asked
//! again: whoever declares it so must have looked at [`holdings`] first.

use forebay_proto::error::Failure;
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_proto::v1::ErrorCode;
use forebay_record::{Generation, NodeId};

use crate::failure::{MetaFailure, TRIES_MAX, decode};
use crate::keys;
use crate::model::Partition;
use crate::record::encode;
use crate::store::{Compare, MetaStore, Op, Range, Txn, TxnError};

/// What partitions' records name a node for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Segments being written.
    pub open: u64,
    /// Sealed segments that are not offloaded.
    pub sealed: u64,
    /// Bytes of the sealed ones, as far as they are known.
    pub bytes: u64,
    /// Segments that could not be read, or their end not be recovered, without this node.
    pub sole: u64,
}

impl Holdings {
    /// True where nothing needs the node.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.open == 0 && self.sealed == 0
    }

    /// Adds what one partition needs of a node.
    fn add(&mut self, record: &Partition, node: NodeId, is_live: &dyn Fn(NodeId, Generation) -> bool) {
        if record.deleted {
            return;
        }
        for segment in &record.chain {
            if segment.generation_of(node).is_none() {
                continue;
            }
            let others = segment
                .replicas
                .iter()
                .filter(|(id, generation)| *id != node && is_live(*id, *generation))
                .count();
            let needed = match segment.end {
                Some(_) => {
                    self.sealed += 1;
                    self.bytes += segment.bytes;
                    1
                }
                None => {
                    self.open += 1;
                    segment.close_quorum()
                }
            };
            self.sole += u64::from(others < needed);
        }
    }
}

/// Reads every partition's record, page by page, and adds up what is needed of a node. `is_live` says
/// whether another node can be asked for what a record names it for.
///
/// # Errors
/// As the store fails, and where a record is damaged: then nobody knows.
pub async fn holdings(
    store: &dyn MetaStore,
    node: NodeId,
    is_live: &(dyn Fn(NodeId, Generation) -> bool + Sync),
) -> Result<Holdings, Failure> {
    let mut holdings = Holdings::default();
    let mut range = Range::new(keys::PARTITIONS);
    loop {
        let page = store.range(range.clone()).await.map_err(MetaFailure::from)?;
        for entry in &page.entries {
            let record = Partition::decode(&entry.value).map_err(|error| {
                let what = format!("record {} is damaged: {error}", entry.key);
                Failure::new(ErrorCode::Internal, what)
            })?;
            holdings.add(&record, node, is_live);
        }
        match page.entries.last() {
            Some(last) if page.more => range = range.start_after(last.key.clone()),
            _ => return Ok(holdings),
        }
    }
}

/// A node's record.
///
/// # Errors
/// `INVALID_REQUEST` where there is no such node, and as the store fails.
pub async fn get(store: &dyn MetaStore, node: NodeId) -> Result<NodeRecord, Failure> {
    let (entry, _) = store.get(&keys::node(node)).await.map_err(MetaFailure::from)?;
    let entry = entry.ok_or_else(|| unknown(node))?;
    Ok(decode(&entry)?)
}

/// The least of the largest frames that the registered storage nodes take, in bytes of batches, and
/// whose that is; none where no node says. Nodes that are gone do not count.
///
/// # Errors
/// As the store fails, and where a record is damaged: then nobody knows.
pub async fn least_frame(store: &dyn MetaStore) -> Result<Option<(u64, NodeId)>, MetaFailure> {
    let mut least: Option<(u64, NodeId)> = None;
    let mut range = Range::new(keys::NODES);
    loop {
        let page = store.range(range.clone()).await?;
        for entry in &page.entries {
            let record: NodeRecord = decode(entry)?;
            if record.frame_bytes_max > 0 && record.state() != NodeState::Gone {
                let this = (record.frame_bytes_max, NodeId(record.id));
                least = Some(least.map_or(this, |least| least.min(this)));
            }
        }
        match page.entries.last() {
            Some(last) if page.more => range = range.start_after(last.key.clone()),
            _ => return Ok(least),
        }
    }
}

fn unknown(node: NodeId) -> Failure {
    let what = format!("there is no storage node {}", node.0);
    Failure::new(ErrorCode::InvalidRequest, what)
}

/// Sets the state that a node's record names. Safe to repeat.
///
/// # Errors
/// `INVALID_REQUEST` where there is no such node or it is gone already, and as the store fails.
pub async fn set_state(store: &dyn MetaStore, node: NodeId, state: NodeState) -> Result<NodeRecord, Failure> {
    let key = keys::node(node);
    for _ in 0..TRIES_MAX {
        let (entry, _) = store.get(&key).await.map_err(MetaFailure::from)?;
        let entry = entry.ok_or_else(|| unknown(node))?;
        let record: NodeRecord = decode(&entry)?;
        if record.state() == state {
            return Ok(record);
        }
        if record.state() == NodeState::Gone {
            let what = format!(
                "storage node {} is gone: only its own start, over an empty folder, brings it back",
                node.0
            );
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        let changed = NodeRecord {
            state: state as i32,
            ..record
        };
        let txn = Txn::new()
            .when(Compare::unchanged(&entry))
            .then(Op::put(key.clone(), encode(&changed)));
        // Whatever became of it, the next read tells.
        match store.txn(txn).await {
            Ok(_) | Err(TxnError::Unknown(_)) => {}
            Err(error) => return Err(MetaFailure::from(error).into()),
        }
    }
    Err(MetaFailure::Contended {
        key,
        tries: TRIES_MAX,
    }
    .into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use forebay_record::{BrokerId, Epoch, Offset, PartitionId, SegmentId, SessionId, Token};
    use uuid::Uuid;

    use super::*;
    use crate::faults::{UNKNOWNS, World};
    use crate::model::{Sealed, Segment};

    const NODE: NodeId = NodeId(3);

    async fn register(world: &World, state: NodeState) {
        let record = NodeRecord {
            id: NODE.0,
            boot: 7,
            state: state as i32,
            ..NodeRecord::default()
        };
        let put = Txn::new().then(Op::put(keys::node(NODE), encode(&record)));
        world.store.txn(put).await.unwrap();
    }

    #[tokio::test]
    async fn a_state_is_set_once_whatever_the_store_says_of_it() {
        for fault in UNKNOWNS {
            let world = World::new().await;
            register(&world, NodeState::Active).await;
            let faulty = world.faulty([fault]);
            let set = set_state(&*faulty, NODE, NodeState::Draining).await.unwrap();
            assert_eq!((set.state(), set.boot), (NodeState::Draining, 7));
            assert_eq!(get(&*world.store, NODE).await.unwrap(), set);
        }
    }

    #[tokio::test]
    async fn a_node_that_is_gone_or_unknown_stays_so() {
        let world = World::new().await;
        let unknown = set_state(&*world.store, NODE, NodeState::Draining)
            .await
            .unwrap_err();
        assert_eq!(unknown.code, ErrorCode::InvalidRequest);
        register(&world, NodeState::Gone).await;
        let gone = set_state(&*world.store, NODE, NodeState::Active)
            .await
            .unwrap_err();
        assert!(gone.message.contains("gone"), "{gone:?}");
    }

    #[tokio::test]
    async fn the_least_frame_is_of_the_nodes_that_say_so_and_are_not_gone() {
        let world = World::new().await;
        assert_eq!(least_frame(&*world.store).await.unwrap(), None);
        for (id, frame_bytes_max, state) in [
            (1, 0, NodeState::Active),
            (2, 900, NodeState::Active),
            (3, 100, NodeState::Gone),
            (4, 700, NodeState::Draining),
        ] {
            let record = NodeRecord {
                id,
                state: state as i32,
                frame_bytes_max,
                ..NodeRecord::default()
            };
            let put = Txn::new().then(Op::put(keys::node(NodeId(id)), encode(&record)));
            world.store.txn(put).await.unwrap();
        }
        assert_eq!(least_frame(&*world.store).await.unwrap(), Some((700, NodeId(4))));
    }

    #[tokio::test]
    async fn what_records_name_a_node_for_is_added_up() {
        let world = World::new().await;
        let segment = |seq, base| Segment {
            id: SegmentId {
                partition: PartitionId(1),
                epoch: Epoch(1),
                seq,
            },
            token: Token(u64::from(seq)),
            base: Offset(base),
            end: None,
            ack_quorum: 2,
            replicas: (2..=4).map(|id| (NodeId(id), Generation(1))).collect(),
            bytes: 0,
            sealed_ms: 0,
        };
        let record = Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(5), 1)
            .unwrap()
            .open_first(segment(1, 0), 2)
            .unwrap()
            .seal(Offset(9), Sealed { bytes: 70, at_ms: 0 }, Some(segment(2, 9)), 3)
            .unwrap();
        let put = Op::put(keys::partition(record.id), record.encode());
        world.store.txn(Txn::new().then(put)).await.unwrap();
        let of = |node, live: &'static [u32]| {
            let store = &world.store;
            async move {
                holdings(&**store, NodeId(node), &|id, _| live.contains(&id.0))
                    .await
                    .unwrap()
            }
        };
        let all = Holdings {
            open: 1,
            sealed: 1,
            bytes: 70,
            sole: 0,
        };
        assert_eq!(of(3, &[2, 3, 4]).await, all);
        // One other has the sealed one; the open one's end takes two of three.
        assert_eq!(of(3, &[4]).await, Holdings { sole: 1, ..all });
        assert_eq!(of(3, &[]).await, Holdings { sole: 2, ..all });
        assert!(of(9, &[]).await.is_empty());
    }
}
