//! Storage nodes: what partitions need of one, emptying it, and taking it out of the cluster.
//!
//! What an operator wants is written into the node's record; owners follow it and move what the node
//! holds. A node is taken out only once nothing needs it, or once it does not answer any more and
//! others have what it had: everything else needs the operator's word for the loss.

use forebay_meta::keys;
use forebay_meta::storage::{self, Holdings};
use forebay_proto::error::Failure;
use forebay_proto::stored::{ClusterRecord, NodeRecord, NodeState};
use forebay_proto::v1::{
    DescribeStorageNodeResponse, ErrorCode, StorageNodeDescription, StorageNodeHoldings, StorageNodeState,
};
use forebay_record::{Generation, NodeId};
use futures_util::{StreamExt, stream};

use super::{AT_ONCE, AdminHandler};

fn refused(what: String) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, what)
}

impl AdminHandler {
    pub(super) async fn describe_storage(&self, id: u32) -> Result<DescribeStorageNodeResponse, Failure> {
        let record = storage::get(&*self.core.meta, NodeId(id)).await?;
        let (node, holdings) = self.survey(record).await?;
        Ok(DescribeStorageNodeResponse {
            node: Some(node),
            holdings: Some(of(holdings)),
        })
    }

    pub(super) async fn set_storage_state(
        &self,
        id: u32,
        wanted: StorageNodeState,
        accept_loss: bool,
    ) -> Result<DescribeStorageNodeResponse, Failure> {
        let record = storage::get(&*self.core.meta, NodeId(id)).await?;
        let state = match wanted {
            StorageNodeState::Unspecified => {
                return Err(refused("state is not set: ACTIVE, DRAINING or GONE".to_owned()));
            }
            StorageNodeState::Active => NodeState::Active,
            StorageNodeState::Draining => {
                if record.state() != NodeState::Draining {
                    self.check_drain(id).await?;
                }
                NodeState::Draining
            }
            StorageNodeState::Gone => {
                if record.state() != NodeState::Gone {
                    self.check_removal(record, accept_loss).await?;
                }
                NodeState::Gone
            }
        };
        storage::set_state(&*self.core.meta, NodeId(id), state).await?;
        tracing::info!(
            node = id,
            state = state.as_str_name(),
            accept_loss,
            "state of a storage node set"
        );
        self.describe_storage(id).await
    }

    /// The others must be enough for whole segments, or what the node holds has nowhere to go.
    async fn check_drain(&self, id: u32) -> Result<(), Failure> {
        let cluster = self
            .record::<ClusterRecord>(keys::CLUSTER)
            .await?
            .unwrap_or_default();
        let nodes = self.registered().await?;
        let others = nodes
            .iter()
            .filter(|node| node.id != id && node.state() == NodeState::Active)
            .count();
        if others >= cluster.replicas as usize {
            return Ok(());
        }
        Err(refused(format!(
            "storage node {id} cannot be emptied: {others} other active storage nodes, {} needed for the replicas of a segment",
            cluster.replicas
        )))
    }

    async fn check_removal(&self, record: NodeRecord, accept_loss: bool) -> Result<(), Failure> {
        let id = record.id;
        let (node, holdings) = self.survey(record).await?;
        if holdings.is_empty() {
            return Ok(());
        }
        let Holdings {
            open, sealed, sole, ..
        } = holdings;
        if node.status.is_some() {
            return Err(refused(format!(
                "storage node {id} answers, and {sealed} sealed and {open} open segments are on it: drain it first"
            )));
        }
        if sole > 0 && !accept_loss {
            return Err(refused(format!(
                "storage node {id} has the last copy of {sole} segments, as far as the nodes that answer tell: \
                 bring it back, or accept the loss"
            )));
        }
        Ok(())
    }

    /// A node as it is, and what is needed of it. Other nodes count where they answer now.
    async fn survey(&self, record: NodeRecord) -> Result<(StorageNodeDescription, Holdings), Failure> {
        let id = NodeId(record.id);
        let nodes = self.registered().await?;
        let live: Vec<(NodeId, Generation)> = stream::iter(nodes)
            .filter(|node| std::future::ready(node.state() != NodeState::Gone))
            .map(|node| self.describe_node(node))
            .buffered(AT_ONCE)
            .filter_map(|node| {
                let status = node
                    .status
                    .map(|status| (NodeId(node.id), Generation(status.generation)));
                std::future::ready(status)
            })
            .collect()
            .await;
        let is_live = |node, generation| live.contains(&(node, generation));
        let holdings = storage::holdings(&*self.core.meta, id, &is_live).await?;
        Ok((self.describe_node(record).await, holdings))
    }

    /// Every registered node, from the store itself: what was just changed counts.
    async fn registered(&self) -> Result<Vec<NodeRecord>, Failure> {
        let mut nodes = Vec::new();
        self.each(keys::NODES, |entry| {
            nodes.extend(super::cluster::readable::<NodeRecord>(entry));
        })
        .await?;
        Ok(nodes)
    }
}

const fn of(holdings: Holdings) -> StorageNodeHoldings {
    StorageNodeHoldings {
        segments_open: holdings.open,
        segments_sealed: holdings.sealed,
        bytes: holdings.bytes,
        segments_sole: holdings.sole,
    }
}
