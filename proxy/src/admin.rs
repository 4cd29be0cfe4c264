//! The `Admin` service: topics from the metadata store, the cluster from everyone in it.
//!
//! What a peer would have to tell and does not is left unset; a description never fails because
//! one member is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::model::Partition;
use forebay_meta::store::Range;
use forebay_meta::topics::{self, Topic};
use forebay_meta::{keys, record};
use forebay_proto::error::Failure;
use forebay_proto::stored::{ControllerRecord, NodeRecord, NodeState, ProxyRecord};
use forebay_proto::v1::admin_server::Admin;
use forebay_proto::v1::{
    BrokerDescription, CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeClusterRequest, DescribeClusterResponse, DescribePartitionsRequest, DescribeTopicRequest,
    DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse, PartitionDescription, ProxyDescription,
    ReplicaDescription, SegmentDescription, StorageNodeDescription, StorageNodeStatus,
    StorageNodeStatusRequest, TopicDescription, TopicSummary,
};
use forebay_record::{BrokerId, Offset, PartitionId, SessionId};
use forebay_runtime::clock;
use futures_util::StreamExt;
use futures_util::stream;
use tonic::{Request, Response, Status};

use crate::core::Core;

const NODE_TIMEOUT: Duration = Duration::from_secs(1);
const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Peers asked at once.
const AT_ONCE: usize = 32;
/// Partitions in one question to a broker.
const PARTITIONS_ASKED_MAX: usize = 1000;
const UNREACHABLE: &str = "UNREACHABLE";

/// Serves the `Admin` service.
#[derive(Clone)]
pub struct AdminHandler {
    pub(crate) core: Arc<Core>,
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
            partitions: u32::try_from(topic.partition_ids.len()).unwrap_or(u32::MAX),
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
            .describe(&request.get_ref().name)
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

    async fn describe_cluster(
        &self,
        _: Request<DescribeClusterRequest>,
    ) -> Result<Response<DescribeClusterResponse>, Status> {
        let call = self.core.begin("describe_cluster")?;
        let cluster = self.cluster().await.map_err(|failure| call.failed(failure))?;
        Ok(Response::new(cluster))
    }
}

impl AdminHandler {
    async fn describe(&self, name: &str) -> Result<TopicDescription, Failure> {
        let topic = topics::get(&*self.core.meta, name).await?;
        let partitions = topics::partitions(&*self.core.meta, &topic).await?;
        let ends = self.high_watermarks(&partitions).await;
        let described = partitions
            .iter()
            .map(|one| describe_partition(one, ends.get(&one.id).copied()))
            .collect();
        Ok(description(topic, described))
    }

    /// High watermarks as the live owners tell them.
    async fn high_watermarks(&self, partitions: &[Partition]) -> BTreeMap<PartitionId, Offset> {
        let view = self.core.membership.now();
        let mut owned: BTreeMap<BrokerId, Vec<u64>> = BTreeMap::new();
        for one in partitions {
            let live = |owner: &BrokerId| {
                view.brokers
                    .get(owner)
                    .is_some_and(|broker| broker.session == one.session)
            };
            if let Some(owner) = one.owner.filter(live) {
                owned.entry(owner).or_default().push(one.id.0);
            }
        }
        let questions = owned.into_iter().flat_map(|(broker, ids)| {
            let address = view
                .brokers
                .get(&broker)
                .map(|live| live.record.control_address.clone())
                .unwrap_or_default();
            let chunks: Vec<_> = ids.chunks(PARTITIONS_ASKED_MAX).map(<[u64]>::to_vec).collect();
            chunks.into_iter().map(move |ids| (broker, address.clone(), ids))
        });
        let questions: Vec<_> = questions.collect();
        let mut answers = stream::iter(questions)
            .map(|(broker, address, ids)| async move { (broker, self.ask_owner(&address, ids).await) })
            .buffer_unordered(AT_ONCE);
        let mut ends = BTreeMap::new();
        while let Some((broker, answer)) = answers.next().await {
            match answer {
                Ok(owned) => ends.extend(owned),
                Err(failure) => tracing::debug!(%broker, %failure, "broker does not describe its partitions"),
            }
        }
        ends
    }

    async fn ask_owner(&self, address: &str, ids: Vec<u64>) -> Result<Vec<(PartitionId, Offset)>, Failure> {
        let away = |error: &dyn std::fmt::Display| {
            Failure::new(forebay_proto::v1::ErrorCode::Unavailable, error.to_string())
        };
        let broker = self.core.control.broker(address).map_err(|error| away(&error))?;
        let asking =
            broker.describe_partitions(Request::new(DescribePartitionsRequest { partition_ids: ids }));
        let answer = clock::timeout(&*self.core.clock, BROKER_TIMEOUT, asking)
            .await
            .map_err(|error| away(&error))??;
        let owned = answer.into_inner().partitions.into_iter();
        Ok(owned
            .map(|one| (PartitionId(one.partition_id), Offset(one.high_watermark)))
            .collect())
    }

    async fn cluster(&self) -> Result<DescribeClusterResponse, Failure> {
        let view = self.core.membership.now();
        let meta = &*self.core.meta;
        let (controller, _) = meta.get(keys::CONTROLLER).await?;
        let controller = match controller {
            Some(entry) => record::decode::<ControllerRecord>(&entry.value)
                .map(|record| record.id)
                .unwrap_or_default(),
            None => String::new(),
        };
        let live: BTreeMap<BrokerId, SessionId> = view
            .brokers
            .iter()
            .map(|(id, broker)| (*id, broker.session))
            .collect();
        let counts = self.count_partitions(&live).await?;
        let brokers = view.brokers.iter().map(|(id, broker)| BrokerDescription {
            id: id.0,
            address: broker.record.control_address.clone(),
            zone: broker.record.zone.clone(),
            session: broker.session.0,
            partitions: counts.by_broker.get(id).copied().unwrap_or(0),
        });
        let nodes: Vec<NodeRecord> = view.nodes.values().cloned().collect();
        let storage_nodes = stream::iter(nodes)
            .map(|node| self.describe_node(node))
            .buffered(AT_ONCE)
            .collect()
            .await;
        Ok(DescribeClusterResponse {
            cluster: self.core.cluster.clone(),
            controller,
            brokers: brokers.collect(),
            storage_nodes,
            proxies: self.proxies().await?,
            topics: self.count_topics().await?,
            partitions: counts.all,
            partitions_without_owner: counts.without_owner,
        })
    }

    async fn proxies(&self) -> Result<Vec<ProxyDescription>, Failure> {
        let mut proxies = Vec::new();
        let mut range = Range::new(keys::PROXIES);
        loop {
            let page = self.core.meta.range(range.clone()).await?;
            let records = page
                .entries
                .iter()
                .filter_map(|entry| record::decode::<ProxyRecord>(&entry.value).ok());
            proxies.extend(records.map(|one| ProxyDescription {
                id: one.id,
                address: one.address,
                zone: one.zone,
            }));
            match page.entries.last() {
                Some(last) if page.more => range = range.start_after(last.key.clone()),
                _ => return Ok(proxies),
            }
        }
    }

    async fn count_topics(&self) -> Result<u32, Failure> {
        let mut count = 0;
        let mut range = Range::new(keys::TOPIC_NAMES);
        loop {
            let page = self.core.meta.range(range.clone()).await?;
            count += page.entries.len();
            match page.entries.last() {
                Some(last) if page.more => range = range.start_after(last.key.clone()),
                _ => return Ok(u32::try_from(count).unwrap_or(u32::MAX)),
            }
        }
    }

    /// Page by page, so that many partitions cost time and not memory.
    async fn count_partitions(&self, live: &BTreeMap<BrokerId, SessionId>) -> Result<Counts, Failure> {
        let mut counts = Counts::default();
        let mut range = Range::new(keys::PARTITIONS);
        loop {
            let page = self.core.meta.range(range.clone()).await?;
            for entry in &page.entries {
                match Partition::decode(&entry.value) {
                    Ok(partition) if partition.deleted => {}
                    Ok(partition) => counts.add(&partition, live),
                    Err(error) => tracing::warn!(key = entry.key, %error, "partition record cannot be read"),
                }
            }
            match page.entries.last() {
                Some(last) if page.more => range = range.start_after(last.key.clone()),
                _ => return Ok(counts),
            }
        }
    }

    async fn describe_node(&self, node: NodeRecord) -> StorageNodeDescription {
        let status = self.node_status(&node.control_address).await;
        let registered = node.state().as_str_name().trim_start_matches("NODE_STATE_");
        // One that is gone for good is not expected to answer.
        let gone = node.state() == NodeState::Gone;
        let state = if status.is_some() || gone {
            registered
        } else {
            UNREACHABLE
        };
        StorageNodeDescription {
            id: node.id,
            state: state.to_owned(),
            address: node.control_address,
            zone: node.zone,
            generation: node.generation,
            boot: node.boot,
            status,
        }
    }

    async fn node_status(&self, address: &str) -> Option<StorageNodeStatus> {
        let node = self.core.control.node(address).ok()?;
        let asking = node.status(Request::new(StorageNodeStatusRequest {}));
        match clock::timeout(&*self.core.clock, NODE_TIMEOUT, asking).await {
            Ok(Ok(status)) => Some(status.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(address, %status, "storage node does not tell its status");
                None
            }
            Err(elapsed) => {
                tracing::debug!(address, %elapsed, "storage node does not tell its status");
                None
            }
        }
    }
}

#[derive(Default)]
struct Counts {
    all: u32,
    without_owner: u32,
    by_broker: BTreeMap<BrokerId, u32>,
}

impl Counts {
    fn add(&mut self, partition: &Partition, live: &BTreeMap<BrokerId, SessionId>) {
        self.all = self.all.saturating_add(1);
        match partition
            .owner
            .filter(|owner| live.get(owner) == Some(&partition.session))
        {
            Some(owner) => *self.by_broker.entry(owner).or_default() += 1,
            None => self.without_owner = self.without_owner.saturating_add(1),
        }
    }
}

fn id_of(topic: &Topic) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(topic.id.as_bytes())
}

fn description(topic: Topic, partitions: Vec<PartitionDescription>) -> TopicDescription {
    TopicDescription {
        id: id_of(&topic),
        name: topic.name,
        config: topic.raw_config,
        partitions,
    }
}

fn describe_partition(partition: &Partition, high_watermark: Option<Offset>) -> PartitionDescription {
    let segments = partition.chain.iter().map(|segment| SegmentDescription {
        epoch: segment.id.epoch.0,
        seq: segment.id.seq,
        base: segment.base.0,
        end: segment.end.map(Offset::get),
        replicas: segment
            .replicas
            .iter()
            .map(|(node, generation)| ReplicaDescription {
                node: node.0,
                generation: generation.0,
            })
            .collect(),
        bytes: segment.bytes,
    });
    PartitionDescription {
        partition: partition.number,
        partition_id: partition.id.0,
        epoch: partition.epoch.0,
        owner: partition.owner.map_or(0, |owner| owner.0),
        log_start: partition.log_start.0,
        high_watermark: high_watermark.map(Offset::get),
        segments: segments.collect(),
    }
}
