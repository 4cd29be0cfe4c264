//! The gRPC service of one storage node, for the controller and for tools.

use std::sync::Weak;

use forebay_proto::error::Failure;
use forebay_proto::v1;
use forebay_record::PartitionId;
use tonic::{Request, Response, Status};

use crate::node::Shared;

/// Partitions in one question.
const HOLDS_MAX: usize = 1000;

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
}
