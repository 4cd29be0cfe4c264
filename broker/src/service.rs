//! The broker's control service: where partitions are, what is owned here, producer ids.

use std::ops::Range;
use std::sync::Arc;

use forebay_meta::locate::locate;
use forebay_meta::store::{MetaStore, scan};
use forebay_meta::{counter, keys, record};
use forebay_proto::error::Failure;
use forebay_proto::stored::BrokerRecord;
use forebay_proto::v1::broker_server::Broker as BrokerService;
use forebay_proto::v1::{self, ErrorCode};
use forebay_record::{BrokerId, Offset, PartitionId, SessionId};
use tokio::sync::{Mutex, mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::describe;
use crate::owners::{Command, Summary};
use crate::registration::Registration;

/// Producer ids taken from the store at a time.
const PRODUCER_IDS: u64 = 1_000;
/// Brokers that a cluster may have.
const BROKERS_MAX: usize = 65_536;

/// Answers control calls.
#[derive(Clone)]
pub struct Control {
    pub(crate) store: Arc<dyn MetaStore>,
    pub(crate) me: BrokerId,
    pub(crate) session: SessionId,
    pub(crate) mailbox: mpsc::Sender<Command>,
    pub(crate) registration: Arc<Registration>,
    pub(crate) producer_ids: Arc<Mutex<Range<u64>>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("me", &self.me)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Control {
    async fn locate_topic(&self, topic: &str) -> Result<v1::LocateResponse, Failure> {
        let located = locate(self.store.as_ref(), topic).await?;
        // What others own by now may be thought to be owned here still.
        let others = located
            .partitions
            .iter()
            .filter(|one| one.session != self.session);
        let seen: Vec<_> = others.map(|one| (one.id, one.epoch)).collect();
        if !seen.is_empty() && self.mailbox.send(Command::EpochsSeen(seen)).await.is_err() {
            tracing::debug!("the owners' task has ended");
        }
        let unavailable =
            |error: &dyn std::fmt::Display| Failure::new(ErrorCode::Unavailable, error.to_string());
        let (sessions, _) = scan(self.store.as_ref(), keys::BROKERS, BROKERS_MAX)
            .await
            .map_err(|error| unavailable(&error))?;
        let address_of = |owner: Option<BrokerId>, session: SessionId| {
            let entry = sessions
                .iter()
                .find(|entry| keys::broker_of(&entry.key) == owner && entry.create_revision.0 == session.0)?;
            record::decode::<BrokerRecord>(&entry.value)
                .ok()
                .map(|broker| broker.data_address)
        };
        let partitions = located
            .partitions
            .iter()
            .map(|one| v1::PartitionLocation {
                partition: one.number,
                partition_id: one.id.0,
                epoch: one.epoch.0,
                owner: one.owner.map_or(0, |owner| owner.0),
                address: address_of(one.owner, one.session).unwrap_or_default(),
                session: one.session.0,
            })
            .collect();
        Ok(v1::LocateResponse {
            topic: located.topic.name.clone(),
            topic_id: bytes::Bytes::copy_from_slice(located.topic.id.as_bytes()),
            batch_bytes_max: located.topic.config.batch_bytes_max,
            partitions,
            revision: located.revision.0,
        })
    }

    /// What is answered once the owners' task has ended.
    fn gone(&self) -> Status {
        let what = format!("{} is shutting down", self.me);
        Failure::new(ErrorCode::ShuttingDown, what).into()
    }

    async fn allocate_producer(&self) -> Result<u64, Failure> {
        let mut ids = self.producer_ids.lock().await;
        if let Some(id) = ids.next() {
            return Ok(id);
        }
        *ids = counter::allocate(self.store.as_ref(), keys::PRODUCER_IDS, PRODUCER_IDS).await?;
        ids.next()
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "no producer ids were allocated"))
    }
}

#[tonic::async_trait]
impl BrokerService for Control {
    async fn locate(
        &self,
        request: Request<v1::LocateRequest>,
    ) -> Result<Response<v1::LocateResponse>, Status> {
        Ok(Response::new(self.locate_topic(&request.get_ref().topic).await?))
    }

    async fn ping(&self, _request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        Ok(Response::new(v1::PingResponse {
            broker: self.me.0,
            session: self.session.0,
        }))
    }

    async fn describe_partitions(
        &self,
        request: Request<v1::DescribePartitionsRequest>,
    ) -> Result<Response<v1::DescribePartitionsResponse>, Status> {
        let partitions = request
            .into_inner()
            .partition_ids
            .into_iter()
            .map(PartitionId)
            .collect();
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(Command::Describe { partitions, reply })
            .await
            .map_err(|_| self.gone())?;
        let owned = answer.await.map_err(|_| self.gone())?;
        let partitions = owned
            .into_iter()
            .map(|one| v1::OwnedPartition {
                partition_id: one.partition.0,
                epoch: one.epoch.0,
                log_start: one.log_start.0,
                high_watermark: one.high_watermark.map(Offset::get),
                undecided_bytes: one.undecided_bytes,
                bytes_per_second: one.bytes_per_s,
                recovery: one.taking.as_ref().map(describe::recovery),
            })
            .collect();
        Ok(Response::new(v1::DescribePartitionsResponse { partitions }))
    }

    async fn summarize(
        &self,
        _request: Request<v1::SummarizeRequest>,
    ) -> Result<Response<v1::BrokerSummary>, Status> {
        let (reply, answer) = oneshot::channel();
        let sent = self.mailbox.send(Command::Summarize(reply)).await;
        sent.map_err(|_| self.gone())?;
        let Summary {
            partitions,
            recovering,
            segments,
            under_replicated,
            unoffloaded_bytes,
            undecided_bytes,
            lost,
            last_copy,
            taking,
        } = answer.await.map_err(|_| self.gone())?;
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(v1::BrokerSummary {
            partitions: small(partitions),
            partitions_recovering: small(recovering),
            segments: segments as u64,
            segments_under_replicated: under_replicated as u64,
            unoffloaded_bytes,
            undecided_bytes,
            segments_lost: lost as u64,
            segments_on_last_copy: last_copy as u64,
            recovering: taking.iter().map(describe::recovering).collect(),
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let draining = request.get_ref().draining;
        let updated = self
            .registration
            .update(|record| record.draining = draining)
            .await;
        updated.map_err(|error| {
            let what = format!("{} cannot say that it is drained: {error}", self.me);
            Failure::new(ErrorCode::Unavailable, what)
        })?;
        Ok(Response::new(v1::DrainResponse {}))
    }

    async fn force_seal(
        &self,
        request: Request<v1::ForceSealPartitionRequest>,
    ) -> Result<Response<v1::ForceSealResponse>, Status> {
        let request = request.into_inner();
        let partition = PartitionId(request.partition_id);
        let forcing = describe::forcing(&request)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::ForceSeal {
            partition,
            forcing,
            reply,
        };
        self.mailbox.send(command).await.map_err(|_| self.gone())?;
        let forced = answer.await.map_err(|_| self.gone())??;
        Ok(Response::new(describe::forced(forced)))
    }

    async fn declare_lost(
        &self,
        request: Request<v1::DeclareLostPartitionRequest>,
    ) -> Result<Response<v1::DeclareLostResponse>, Status> {
        let request = request.into_inner();
        let (reply, answer) = oneshot::channel();
        let command = Command::DeclareLost {
            partition: PartitionId(request.partition_id),
            declaring: describe::declaring(&request),
            reply,
        };
        self.mailbox.send(command).await.map_err(|_| self.gone())?;
        let declared = answer.await.map_err(|_| self.gone())??;
        Ok(Response::new(describe::declared(declared)))
    }

    async fn init_producer(
        &self,
        _request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let producer_id = self.allocate_producer().await?;
        Ok(Response::new(v1::InitProducerResponse {
            producer_id,
            producer_epoch: 0,
            error: None,
        }))
    }
}
