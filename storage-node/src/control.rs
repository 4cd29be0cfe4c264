//! The gRPC service of one storage node, for the controller and for tools.

use std::sync::Weak;

use forebay_proto::error::Failure;
use forebay_proto::v1;
use tonic::{Request, Response, Status};

use crate::node::Shared;

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

#[tonic::async_trait]
impl v1::storage_node_server::StorageNode for Control {
    async fn status(
        &self,
        _request: Request<v1::StorageNodeStatusRequest>,
    ) -> Result<Response<v1::StorageNodeStatus>, Status> {
        match self.shared.upgrade() {
            Some(shared) => Ok(Response::new(shared.status())),
            None => Err(Failure::new(v1::ErrorCode::ShuttingDown, "the storage node has stopped").into()),
        }
    }
}
