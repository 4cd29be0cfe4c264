//! The gRPC service of one storage node, for the controller and for tools.

use std::sync::Weak;

use forebay_proto::error::Failure;
use forebay_proto::v1;
use forebay_record::{Epoch, PartitionId, SegmentId, Token};
use forebay_runtime::execution::Execution;
use tonic::{Request, Response, Status};

use crate::node::Shared;

/// Partitions in one question.
const HOLDS_MAX: usize = 1000;
/// Segments in one page of an inventory.
const INVENTORY_MAX: usize = 1000;

/// Answers for a node as long as it is there; cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Weak<Shared>,
}

impl Control {
    pub(crate) const fn new(shared: Weak<Shared>) -> Self {
        Self { shared }
    }
}

fn stopped() -> Status {
    Failure::new(v1::ErrorCode::ShuttingDown, "the storage node has stopped").into()
}

/// One page of what is held. Reads the first frame of each segment: blocks.
fn inventory(shared: &Shared, after: Option<SegmentId>) -> v1::InventoryResponse {
    let reader = shared.reader();
    let found = shared.index.after(after, INVENTORY_MAX);
    let more = found.len() == INVENTORY_MAX;
    let segments = found.into_iter().map(|(id, index)| {
        let opened = reader.opened(id).ok();
        let (token, open) = opened.map_or((Token(0), None), |(token, open)| (token, Some(open)));
        let replicas = open.iter().flat_map(|open| &open.replicas);
        v1::InventorySegment {
            partition_id: id.partition.0,
            epoch: id.epoch.0,
            seq: id.seq,
            token: token.0,
            base: index.base().0,
            tail: index.tail().0,
            committed: index.committed().0,
            limbo: index.is_limbo(),
            bytes: index.bytes(),
            ack_quorum: open.as_ref().map_or(0, |open| u32::from(open.ack_quorum)),
            replicas: replicas
                .map(|(node, generation)| v1::ReplicaDescription {
                    node: node.0,
                    generation: generation.0,
                })
                .collect(),
        }
    });
    v1::InventoryResponse {
        segments: segments.collect(),
        more,
    }
}

#[tonic::async_trait]
impl v1::storage_node_server::StorageNode for Control {
    async fn status(
        &self,
        _request: Request<v1::StorageNodeStatusRequest>,
    ) -> Result<Response<v1::StorageNodeStatus>, Status> {
        match self.shared.upgrade() {
            Some(shared) => Ok(Response::new(shared.status())),
            None => Err(stopped()),
        }
    }

    async fn holds(&self, request: Request<v1::HoldsRequest>) -> Result<Response<v1::HoldsResponse>, Status> {
        let mut partition_ids = request.into_inner().partition_ids;
        if partition_ids.len() > HOLDS_MAX {
            let what = format!(
                "{} partitions in one request, at most {HOLDS_MAX}",
                partition_ids.len()
            );
            return Err(Failure::new(v1::ErrorCode::InvalidRequest, what).into());
        }
        let shared = self.shared.upgrade().ok_or_else(stopped)?;
        partition_ids.retain(|id| shared.index.holds(PartitionId(*id)));
        Ok(Response::new(v1::HoldsResponse { partition_ids }))
    }

    async fn inventory(
        &self,
        request: Request<v1::InventoryRequest>,
    ) -> Result<Response<v1::InventoryResponse>, Status> {
        let after = request.into_inner().after.map(|last| SegmentId {
            partition: PartitionId(last.partition_id),
            epoch: Epoch(last.epoch),
            seq: last.seq,
        });
        let shared = self.shared.upgrade().ok_or_else(stopped)?;
        if let Execution::Simulated(_) = shared.execution {
            return Ok(Response::new(inventory(&shared, after)));
        }
        let listing = tokio::task::spawn_blocking(move || inventory(&shared, after));
        listing.await.map(Response::new).map_err(|_| stopped())
    }
}
