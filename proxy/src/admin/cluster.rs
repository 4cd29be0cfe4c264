//! The cluster as it is: who is there from the metadata store, how they are from themselves.
//!
//! What it costs grows with members and topics, not with partitions: each broker adds up its own
//! partitions, and no partition record is read. A member that does not answer in time is shown as
//! registered, without what only it knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{Entry, Range};
use forebay_meta::{keys, record};
use forebay_proto::error::Failure;
use forebay_proto::stored::{
    ClusterRecord, ControllerRecord, MovesRecord, NodeRecord, NodeState, ProxyRecord, TopicRecord,
};
use forebay_proto::v1::{
    BrokerDescription, BrokerSummary, DescribeClusterResponse, DrainRequest, ErrorCode, MoveDescription,
    ProxyDescription, RecoveringPartition, StorageNodeDescription, StorageNodeStatus,
    StorageNodeStatusRequest, SummarizeRequest,
};
use forebay_record::{BrokerId, NodeId};
use forebay_runtime::clock;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::{AT_ONCE, AdminHandler, BROKER_TIMEOUT};
use crate::membership::LiveBroker;

const NODE_TIMEOUT: Duration = Duration::from_secs(1);
const UNREACHABLE: &str = "UNREACHABLE";
/// State of a node whose journal is dead and that still runs.
const FAILED: &str = "FAILED";

/// When each storage node last answered this proxy, milliseconds since 1970. One entry for each
/// node that is registered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contacts {
    answered_ms: Arc<Mutex<BTreeMap<NodeId, i64>>>,
}

impl Contacts {
    fn answered(&self, node: NodeId, at_ms: i64) {
        self.answered_ms.lock().insert(node, at_ms);
    }

    fn last(&self, node: NodeId) -> Option<i64> {
        self.answered_ms.lock().get(&node).copied()
    }

    fn keep(&self, is_known: impl Fn(NodeId) -> bool) {
        self.answered_ms.lock().retain(|node, _| is_known(*node));
    }
}

/// What brokers say of their partitions, added up.
#[derive(Default)]
struct Totals {
    owned: u32,
    under_replicated: u64,
    unoffloaded_bytes: u64,
    undecided_bytes: u64,
    lost: u64,
    recovering: Vec<RecoveringPartition>,
}

impl Totals {
    fn add(&mut self, summary: &BrokerSummary) {
        self.owned = self.owned.saturating_add(summary.partitions);
        self.under_replicated = self
            .under_replicated
            .saturating_add(summary.segments_under_replicated);
        self.unoffloaded_bytes = self.unoffloaded_bytes.saturating_add(summary.unoffloaded_bytes);
        self.undecided_bytes = self.undecided_bytes.saturating_add(summary.undecided_bytes);
        self.lost = self.lost.saturating_add(summary.segments_lost);
        self.recovering.extend(summary.recovering.iter().cloned());
    }
}

impl AdminHandler {
    pub(super) async fn describe_all(&self) -> Result<DescribeClusterResponse, Failure> {
        let view = self.core.membership.now();
        self.contacts.keep(|node| view.nodes.contains_key(&node));
        let controller = self.record::<ControllerRecord>(keys::CONTROLLER).await?;
        let cluster = self
            .record::<ClusterRecord>(keys::CLUSTER)
            .await?
            .unwrap_or_default();
        let (topics, partitions) = self.count_topics().await?;
        let brokers: Vec<_> = view.brokers.iter().map(|(id, one)| (*id, one.clone())).collect();
        let brokers: Vec<BrokerDescription> = stream::iter(brokers)
            .map(|(id, broker)| self.describe_broker(id, broker))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let nodes: Vec<NodeRecord> = view.nodes.values().cloned().collect();
        let storage_nodes = stream::iter(nodes)
            .map(|node| self.describe_node(node))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut totals = Totals::default();
        for summary in brokers.iter().filter_map(|broker| broker.summary.as_ref()) {
            totals.add(summary);
        }
        Ok(DescribeClusterResponse {
            cluster: self.core.cluster.clone(),
            controller: controller.map(|record| record.id).unwrap_or_default(),
            brokers,
            storage_nodes,
            proxies: self.proxies().await?,
            topics,
            partitions,
            partitions_without_owner: partitions.saturating_sub(totals.owned),
            segments_under_replicated: totals.under_replicated,
            unoffloaded_bytes: totals.unoffloaded_bytes,
            undecided_bytes: totals.undecided_bytes,
            segments_lost: totals.lost,
            incarnation: cluster.incarnation,
            replicas: cluster.replicas,
            ack_quorum: cluster.ack_quorum,
            moves: self.moves().await?,
            recovering: self.named(totals.recovering).await?,
        })
    }

    /// Partitions that are being taken over with the names of their topics, the longest first.
    async fn named(&self, mut them: Vec<RecoveringPartition>) -> Result<Vec<RecoveringPartition>, Failure> {
        if them.is_empty() {
            return Ok(them);
        }
        let mut names = BTreeMap::new();
        self.each(keys::TOPICS, |entry| {
            if let Some(topic) = readable::<TopicRecord>(entry).filter(|topic| !topic.deleted) {
                names.insert(topic.id, topic.name);
            }
        })
        .await?;
        for one in &mut them {
            one.topic = names.get(&one.topic_id).cloned().unwrap_or_default();
        }
        let for_ms = |one: &RecoveringPartition| one.recovery.as_ref().map_or(0, |it| it.for_ms);
        them.sort_by_key(|one| std::cmp::Reverse(for_ms(one)));
        Ok(them)
    }

    async fn moves(&self) -> Result<Vec<MoveDescription>, Failure> {
        let moves = self.record::<MovesRecord>(keys::MOVES).await?.unwrap_or_default();
        let described = moves.moves.into_iter().map(|one| MoveDescription {
            at_ms: one.at_ms,
            partitions: one.partitions,
            from: one.from,
            to: one.to,
            why: one.why,
        });
        Ok(described.collect())
    }

    /// Tells a broker that it is drained, or is not any more.
    pub(super) async fn drain(&self, id: u32, draining: bool) -> Result<(), Failure> {
        let view = self.core.membership.now();
        let Some(broker) = view.brokers.get(&BrokerId(id)) else {
            let known: Vec<_> = view.brokers.keys().map(|id| id.0.to_string()).collect();
            let what = format!("no broker {id} has a session, only: {}", known.join(", "));
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        };
        let address = &broker.record.control_address;
        let away = |why: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::Unavailable, format!("broker {id} at {address}: {why}"))
        };
        let service = self.core.control.broker(address).map_err(|error| away(&error))?;
        let telling = service.drain(Request::new(DrainRequest { draining }));
        match clock::timeout(&*self.core.clock, BROKER_TIMEOUT, telling).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(Failure::from(status)),
            Err(elapsed) => Err(away(&elapsed)),
        }
    }

    /// A record that may not be there. One that cannot be read is logged and shown as not there.
    pub(super) async fn record<M: prost::Message + Default>(&self, key: &str) -> Result<Option<M>, Failure> {
        let (entry, _) = self.core.meta.get(key).await?;
        Ok(entry.and_then(|entry| readable(&entry)))
    }

    /// Every entry below a prefix, page by page, so that many cost time and not memory.
    pub(super) async fn each(&self, prefix: &str, mut take: impl FnMut(&Entry)) -> Result<(), Failure> {
        let mut range = Range::new(prefix);
        loop {
            let page = self.core.meta.range(range.clone()).await?;
            page.entries.iter().for_each(&mut take);
            match page.entries.last() {
                Some(last) if page.more => range = range.start_after(last.key.clone()),
                _ => return Ok(()),
            }
        }
    }

    async fn proxies(&self) -> Result<Vec<ProxyDescription>, Failure> {
        let mut proxies = Vec::new();
        self.each(keys::PROXIES, |entry| {
            proxies.extend(readable::<ProxyRecord>(entry).map(|one| ProxyDescription {
                id: one.id,
                address: one.address,
                zone: one.zone,
            }));
        })
        .await?;
        Ok(proxies)
    }

    /// Topics that are not deleted, and their partitions.
    async fn count_topics(&self) -> Result<(u32, u32), Failure> {
        let (mut topics, mut partitions) = (0_u32, 0_u32);
        self.each(keys::TOPICS, |entry| {
            if let Some(topic) = readable::<TopicRecord>(entry).filter(|topic| !topic.deleted) {
                topics = topics.saturating_add(1);
                let count = u32::try_from(topic.partition_ids.len()).unwrap_or(u32::MAX);
                partitions = partitions.saturating_add(count);
            }
        })
        .await?;
        Ok((topics, partitions))
    }

    async fn describe_broker(&self, id: BrokerId, broker: LiveBroker) -> BrokerDescription {
        let address = broker.record.control_address;
        let summary = match self.core.control.broker(&address) {
            Ok(service) => {
                let asking = service.summarize(Request::new(SummarizeRequest {}));
                told(
                    &address,
                    clock::timeout(&*self.core.clock, BROKER_TIMEOUT, asking).await,
                )
            }
            Err(error) => {
                tracing::debug!(address, %error, "broker cannot be asked");
                None
            }
        };
        BrokerDescription {
            id: id.0,
            address,
            zone: broker.record.zone,
            session: broker.session.0,
            partitions: summary.as_ref().map_or(0, |summary| summary.partitions),
            summary,
            draining: broker.record.draining,
        }
    }

    pub(super) async fn describe_node(&self, node: NodeRecord) -> StorageNodeDescription {
        let id = NodeId(node.id);
        let status = self.node_status(&node.control_address).await;
        if status.is_some() {
            self.contacts.answered(id, self.core.clock.now_unix_ms());
        }
        let registered = node.state().as_str_name().trim_start_matches("NODE_STATE_");
        // One that is gone for good is not expected to answer.
        let gone = node.state() == NodeState::Gone;
        let state = match &status {
            Some(status) if !status.failure.is_empty() => FAILED,
            Some(_) => registered,
            None if gone => registered,
            None => UNREACHABLE,
        };
        StorageNodeDescription {
            id: node.id,
            state: state.to_owned(),
            address: node.control_address,
            zone: node.zone,
            generation: node.generation,
            boot: node.boot,
            status,
            last_contact_ms: self.contacts.last(id),
            capacity_bytes: node.capacity_bytes,
            frame_bytes_max: node.frame_bytes_max,
        }
    }

    async fn node_status(&self, address: &str) -> Option<StorageNodeStatus> {
        let node = self.core.control.node(address).ok()?;
        let asking = node.status(Request::new(StorageNodeStatusRequest {}));
        told(
            address,
            clock::timeout(&*self.core.clock, NODE_TIMEOUT, asking).await,
        )
    }
}

pub(super) fn readable<M: prost::Message + Default>(entry: &Entry) -> Option<M> {
    record::decode(&entry.value)
        .inspect_err(|error| tracing::warn!(key = entry.key, %error, "metadata cannot be read"))
        .ok()
}

/// What a peer answered, if it did.
fn told<T>(address: &str, answer: Result<Result<Response<T>, Status>, clock::Elapsed>) -> Option<T> {
    match answer {
        Ok(Ok(told)) => Some(told.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(address, %status, "peer does not say how it is");
            None
        }
        Err(elapsed) => {
            tracing::debug!(address, %elapsed, "peer does not say how it is");
            None
        }
    }
}
