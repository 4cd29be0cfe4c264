//! The `Admin` service: topics from the metadata store, the cluster from everyone in it.
//!
//! Changes are made here; [`topic`] and [`cluster`] describe, [`storage`] does both for storage nodes,
//! [`force`] ends segments that lost their quorum and declares losses. What a peer would have to tell and does
//! not is left unset; a description never fails because one member is away.

mod cluster;
mod force;
mod storage;
mod topic;

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::topics::{self, Topic};
use forebay_proto::v1::admin_server::Admin;
use forebay_proto::v1::{
    AddPartitionsRequest, AddPartitionsResponse, AlterTopicConfigRequest, AlterTopicConfigResponse,
    CreateTopicRequest, CreateTopicResponse, DeclareLostRequest, DeclareLostResponse, DeleteTopicRequest,
    DeleteTopicResponse, DescribeClusterRequest, DescribeClusterResponse, DescribeStorageNodeRequest,
    DescribeStorageNodeResponse, DescribeTopicRequest, DescribeTopicResponse, DrainBrokerRequest,
    DrainBrokerResponse, ForceSealRequest, ForceSealResponse, ListTopicsRequest, ListTopicsResponse,
    PartitionDescription, SetStorageNodeStateRequest, TopicSummary,
};
use tonic::{Request, Response, Status};

use crate::core::Core;
pub(crate) use cluster::Contacts;
use topic::{description, id_of, settings_of};

const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Peers asked at once.
const AT_ONCE: usize = 32;

/// Serves the `Admin` service.
#[derive(Clone)]
pub struct AdminHandler {
    pub(crate) core: Arc<Core>,
    /// When storage nodes last answered.
    pub(crate) contacts: Contacts,
}

impl std::fmt::Debug for AdminHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminHandler").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Admin for AdminHandler {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let call = self.core.begin("create_topic")?;
        let CreateTopicRequest {
            name,
            partitions,
            config,
        } = request.into_inner();
        let created = topics::create(&*self.core.meta, &*self.core.random, &name, partitions, config).await;
        let topic = created.map_err(|failure| call.failed(failure))?;
        self.core.routes.forget(&name);
        tracing::info!(topic = name, partitions, id = %topic.id, "topic created");
        // Just made: nobody owns it yet, and nothing is in it.
        let partitions = topic
            .partition_ids
            .iter()
            .zip(0..)
            .map(|(id, number)| PartitionDescription {
                partition: number,
                partition_id: id.0,
                ..PartitionDescription::default()
            });
        let partitions = partitions.collect();
        Ok(Response::new(CreateTopicResponse {
            topic: Some(description(topic, partitions)),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let call = self.core.begin("list_topics")?;
        let ListTopicsRequest { after, limit } = request.into_inner();
        let page = topics::list(&*self.core.meta, &after, limit as usize).await;
        let page = page.map_err(|failure| call.failed(failure))?;
        let topics = page.topics.into_iter().map(|topic| TopicSummary {
            id: id_of(&topic),
            partitions: count_of(&topic),
            name: topic.name,
        });
        Ok(Response::new(ListTopicsResponse {
            topics: topics.collect(),
            more: page.next.is_some(),
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        let call = self.core.begin("describe_topic")?;
        let topic = self
            .describe_one(&request.get_ref().name)
            .await
            .map_err(|failure| call.failed(failure))?;
        Ok(Response::new(DescribeTopicResponse { topic: Some(topic) }))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        let call = self.core.begin("delete_topic")?;
        let name = request.into_inner().name;
        topics::delete(&*self.core.meta, &name)
            .await
            .map_err(|failure| call.failed(failure))?;
        self.core.routes.forget(&name);
        tracing::info!(topic = name, "topic deleted");
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn drain_broker(
        &self,
        request: Request<DrainBrokerRequest>,
    ) -> Result<Response<DrainBrokerResponse>, Status> {
        let call = self.core.begin("drain_broker")?;
        let DrainBrokerRequest { broker, undo } = request.into_inner();
        self.drain(broker, !undo)
            .await
            .map_err(|failure| call.failed(failure))?;
        tracing::info!(broker, draining = !undo, "broker is told whether it is drained");
        Ok(Response::new(DrainBrokerResponse {}))
    }

    async fn force_seal(
        &self,
        request: Request<ForceSealRequest>,
    ) -> Result<Response<ForceSealResponse>, Status> {
        let call = self.core.begin("force_seal")?;
        let forced = self.force_end(request.into_inner()).await;
        Ok(Response::new(forced.map_err(|failure| call.failed(failure))?))
    }

    async fn declare_lost(
        &self,
        request: Request<DeclareLostRequest>,
    ) -> Result<Response<DeclareLostResponse>, Status> {
        let call = self.core.begin("declare_lost")?;
        let declared = self.declare(request.into_inner()).await;
        Ok(Response::new(declared.map_err(|failure| call.failed(failure))?))
    }

    async fn alter_topic_config(
        &self,
        request: Request<AlterTopicConfigRequest>,
    ) -> Result<Response<AlterTopicConfigResponse>, Status> {
        let call = self.core.begin("alter_topic_config")?;
        let AlterTopicConfigRequest { name, set, unset } = request.into_inner();
        let altered = topics::alter_config(&*self.core.meta, &name, &set, &unset).await;
        let topic = altered.map_err(|failure| call.failed(failure))?;
        self.core.routes.forget(&name);
        tracing::info!(topic = name, ?set, ?unset, "topic configuration changed");
        Ok(Response::new(AlterTopicConfigResponse {
            settings: settings_of(&topic),
        }))
    }

    async fn add_partitions(
        &self,
        request: Request<AddPartitionsRequest>,
    ) -> Result<Response<AddPartitionsResponse>, Status> {
        let call = self.core.begin("add_partitions")?;
        let AddPartitionsRequest { name, partitions } = request.into_inner();
        let grown = topics::add_partitions(&*self.core.meta, &name, partitions).await;
        let topic = grown.map_err(|failure| call.failed(failure))?;
        self.core.routes.forget(&name);
        tracing::info!(topic = name, partitions, "topic has more partitions");
        Ok(Response::new(AddPartitionsResponse {
            partitions: count_of(&topic),
        }))
    }

    async fn describe_cluster(
        &self,
        _: Request<DescribeClusterRequest>,
    ) -> Result<Response<DescribeClusterResponse>, Status> {
        let call = self.core.begin("describe_cluster")?;
        let cluster = self
            .describe_all()
            .await
            .map_err(|failure| call.failed(failure))?;
        Ok(Response::new(cluster))
    }

    async fn describe_storage_node(
        &self,
        request: Request<DescribeStorageNodeRequest>,
    ) -> Result<Response<DescribeStorageNodeResponse>, Status> {
        let call = self.core.begin("describe_storage_node")?;
        let described = self.describe_storage(request.get_ref().id).await;
        Ok(Response::new(described.map_err(|failure| call.failed(failure))?))
    }

    async fn set_storage_node_state(
        &self,
        request: Request<SetStorageNodeStateRequest>,
    ) -> Result<Response<DescribeStorageNodeResponse>, Status> {
        let call = self.core.begin("set_storage_node_state")?;
        let request = request.into_inner();
        let (id, state) = (request.id, request.state());
        let set = self.set_storage_state(id, state, request.accept_loss).await;
        Ok(Response::new(set.map_err(|failure| call.failed(failure))?))
    }
}

fn count_of(topic: &Topic) -> u32 {
    u32::try_from(topic.partition_ids.len()).unwrap_or(u32::MAX)
}
