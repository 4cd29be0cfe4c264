//! Calls over gRPC against brokers and storage nodes whose ends the tests speak themselves: real
//! sessions inside the process, a real metadata store, a real gRPC server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod fetch;
mod offsets;
mod produce;
mod rest;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_meta::store::{EmbeddedStore, MetaStore, Op, Txn};
use forebay_meta::{keys, record};
use forebay_proto::data::endpoint::{
    Dialer, Exchange, FrontProtocol, Listener, Protocol, ReplicaProtocol, ServerLink,
};
use forebay_proto::data::front::{FromBroker, Produce, ToBroker};
use forebay_proto::data::replica::{FromNode, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::stored::{BrokerRecord, NodeRecord};
use forebay_proto::v1::broker_server::Broker;
use forebay_proto::v1::data_client::DataClient;
use forebay_proto::v1::partition_produce::Data;
use forebay_proto::v1::{
    Acks, BrokerSummary, DescribePartitionsRequest, DescribePartitionsResponse, DrainRequest, DrainResponse,
    ErrorCode, InitProducerRequest, InitProducerResponse, LocateRequest, LocateResponse, PartitionLocation,
    PartitionProduce, PingRequest, PingResponse, ProduceRequest, ProduceResponse, SummarizeRequest,
};
use forebay_record::batch::{Builder, Codec, ProducerStamp, stamp_in_place};
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, ProducerId, SessionId};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::SystemClock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::net::SystemConnector;
use forebay_runtime::random::SeededRandom;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::{Control, Deps, Proxy, ProxyConfig};

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "c1";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("waited too long")
}

/// What all brokers answer to control calls.
#[derive(Default)]
struct Map {
    topics: Mutex<HashMap<String, LocateResponse>>,
    located: AtomicUsize,
}

#[tonic::async_trait]
impl Broker for Map {
    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        self.located.fetch_add(1, Ordering::SeqCst);
        let topic = request.into_inner().topic;
        match self.topics.lock().get(&topic) {
            Some(answer) => Ok(Response::new(answer.clone())),
            None => Err(Failure::new(ErrorCode::UnknownTopic, format!("no topic {topic}")).into()),
        }
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Ok(Response::new(PingResponse::default()))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Ok(Response::new(DrainResponse {}))
    }

    async fn force_seal(
        &self,
        _: Request<forebay_proto::v1::ForceSealPartitionRequest>,
    ) -> Result<Response<forebay_proto::v1::ForceSealResponse>, Status> {
        Err(Status::unimplemented("these brokers own nothing"))
    }

    async fn declare_lost(
        &self,
        _: Request<forebay_proto::v1::DeclareLostPartitionRequest>,
    ) -> Result<Response<forebay_proto::v1::DeclareLostResponse>, Status> {
        Err(Status::unimplemented("these brokers own nothing"))
    }

    async fn describe_partitions(
        &self,
        _: Request<DescribePartitionsRequest>,
    ) -> Result<Response<DescribePartitionsResponse>, Status> {
        Ok(Response::new(DescribePartitionsResponse::default()))
    }

    async fn summarize(&self, _: Request<SummarizeRequest>) -> Result<Response<BrokerSummary>, Status> {
        Ok(Response::new(BrokerSummary::default()))
    }

    async fn init_producer(
        &self,
        _: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        Ok(Response::new(InitProducerResponse {
            producer_id: 77,
            producer_epoch: 0,
            error: None,
        }))
    }
}

impl Map {
    /// Says who owns each partition: broker 0 for nobody. Partition ids count from 100.
    fn set(&self, topic: &str, owners: &[(u32, u32)]) {
        let location = |(number, (broker, epoch)): (usize, &(u32, u32))| PartitionLocation {
            partition: number as u32,
            partition_id: 100 + number as u64,
            epoch: *epoch,
            owner: *broker,
            address: if *broker == 0 {
                String::new()
            } else {
                format!("mem://b{broker}")
            },
            session: 1,
        };
        let answer = LocateResponse {
            topic: topic.to_owned(),
            topic_id: Bytes::from_static(&[9; 16]),
            batch_bytes_max: 1 << 20,
            partitions: owners.iter().enumerate().map(location).collect(),
            revision: 1,
        };
        self.topics.lock().insert(topic.to_owned(), answer);
    }
}

struct Cluster {
    proxy: Proxy,
    client: DataClient<Channel>,
    channel: Channel,
    map: Arc<Map>,
    meta: Arc<dyn MetaStore>,
    fronts: Exchange<FrontProtocol>,
    nodes: Exchange<ReplicaProtocol>,
    connector: SystemConnector,
    tasks: Tasks,
    metrics: Metrics,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        Self::with(ProxyConfig::default()).await
    }

    async fn with(config: ProxyConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, tasks) = (Arc::new(SystemClock::new()), Tasks::new("test"));
        let store = EmbeddedStore::open(&folder.path().join("meta"), clock.clone(), &tasks)
            .await
            .unwrap();
        let meta: Arc<dyn MetaStore> = Arc::new(store);
        let map = Arc::new(Map::default());
        let control = Control::new();
        for id in [1, 2] {
            control.register_broker(format!("mem://c{id}"), Arc::clone(&map) as Arc<dyn Broker>);
            let record = BrokerRecord {
                id,
                data_address: format!("mem://b{id}"),
                control_address: format!("mem://c{id}"),
                ..BrokerRecord::default()
            };
            put(&*meta, keys::broker(BrokerId(id)), record::encode(&record)).await;
        }
        for id in [1, 2, 3] {
            let record = NodeRecord {
                id,
                generation: 1,
                data_address: format!("mem://n{id}"),
                ..NodeRecord::default()
            };
            put(&*meta, keys::node(NodeId(id)), record::encode(&record)).await;
        }
        let (fronts, nodes) = (Exchange::default(), Exchange::default());
        let connector = SystemConnector::default();
        let metrics = Metrics::new();
        let deps = Deps {
            cluster: CLUSTER.to_owned(),
            incarnation: 1,
            meta: Arc::clone(&meta),
            fronts: Dialer::new(Arc::new(connector.clone()), fronts.clone(), tasks.clone()),
            nodes: Dialer::new(Arc::new(connector.clone()), nodes.clone(), tasks.clone()),
            cold: None,
            control,
            clock,
            random: Arc::new(SeededRandom::new(5)),
            metrics: metrics.clone(),
            tracer: Tracer::off(),
            readiness: Readiness::new(),
            tasks: tasks.group("proxy"),
        };
        let proxy = Proxy::start(config, deps).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = crate::tune(Server::builder()).add_routes(proxy.routes().unwrap());
        let stop = tasks.token();
        tasks.spawn("server", async move {
            let served =
                server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
            served.await.unwrap();
        });
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let client = DataClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let _folder = folder;
        Self {
            proxy,
            client,
            channel,
            map,
            meta,
            fronts,
            nodes,
            connector,
            tasks,
            metrics,
            _folder,
        }
    }

    async fn broker(&self, id: u32) -> ScriptedBroker {
        let name = format!("b{id}");
        let tasks = self.tasks.clone();
        let listener = Listener::bind(&name, None, &self.connector, &self.fronts, tasks)
            .await
            .unwrap();
        ScriptedBroker { id, listener }
    }

    async fn node(&self, id: u32) -> ScriptedNode {
        let name = format!("n{id}");
        let tasks = self.tasks.clone();
        let listener = Listener::bind(&name, None, &self.connector, &self.nodes, tasks)
            .await
            .unwrap();
        ScriptedNode { id, listener }
    }

    /// A produce stream: requests in, answers out.
    async fn stream(&self) -> (mpsc::UnboundedSender<ProduceRequest>, Streaming<ProduceResponse>) {
        let (tx, rx) = mpsc::unbounded_channel();
        let answers = self
            .client
            .clone()
            .produce_stream(UnboundedReceiverStream::new(rx))
            .await
            .unwrap();
        (tx, answers.into_inner())
    }

    fn metric(&self, name: &str) -> i64 {
        let text = self.metrics.encode().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("forebay_proxy_{name} ")))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

async fn put(meta: &dyn MetaStore, key: String, value: Bytes) {
    assert!(
        meta.txn(Txn::new().then(Op::put(key, value)))
            .await
            .unwrap()
            .succeeded
    );
}

/// A broker's end of the front protocol, spoken by the test.
struct ScriptedBroker {
    id: u32,
    listener: Listener<FrontProtocol>,
}

impl ScriptedBroker {
    async fn accept(&mut self) -> Conversation<FrontProtocol> {
        let mut link = soon(self.listener.accept()).await.unwrap();
        let hello = soon(link.rx.recv()).await.unwrap().unwrap();
        let ToBroker::Hello { cluster, broker, .. } = hello else {
            panic!("{hello:?}")
        };
        assert_eq!((cluster.as_str(), broker), (CLUSTER, BrokerId(self.id)));
        link.tx
            .send(FromBroker::Welcome {
                broker,
                session: SessionId(1),
            })
            .await
            .unwrap();
        Conversation { link }
    }
}

/// A storage node's end of the replica protocol, spoken by the test.
struct ScriptedNode {
    id: u32,
    listener: Listener<ReplicaProtocol>,
}

impl ScriptedNode {
    async fn accept(&mut self) -> Conversation<ReplicaProtocol> {
        let mut link = soon(self.listener.accept()).await.unwrap();
        let hello = soon(link.rx.recv()).await.unwrap().unwrap();
        assert!(
            matches!(&hello, ToNode::Hello(hello) if hello.node == NodeId(self.id)),
            "{hello:?}"
        );
        let welcome = FromNode::Welcome {
            node: NodeId(self.id),
            generation: Generation(1),
            boot: 1,
        };
        link.tx.send(welcome).await.unwrap();
        Conversation { link }
    }
}

struct Conversation<P: Protocol> {
    link: ServerLink<P>,
}

impl<P: Protocol> Conversation<P> {
    async fn next(&mut self) -> P::Up {
        soon(self.link.rx.recv())
            .await
            .unwrap()
            .expect("the proxy closed the link")
    }

    async fn say(&mut self, message: P::Down) {
        self.link.tx.send(message).await.unwrap();
    }
}

impl Conversation<FrontProtocol> {
    async fn produce(&mut self) -> Produce {
        match self.next().await {
            ToBroker::Produce(produce) => produce,
            other => panic!("{other:?}"),
        }
    }

    async fn produced(&mut self, produce: &Produce, result: Result<u64, ErrorCode>) {
        let result = result.map(Offset).map_err(|code| Failure::new(code, "scripted"));
        self.say(FromBroker::Produced {
            request: produce.request,
            result,
        })
        .await;
    }
}

/// A batch of one record whose value is the number.
fn batch(value: u32) -> Bytes {
    batch_of(value, None, 1)
}

fn idempotent(value: u32, sequence: i32) -> Bytes {
    batch_of(
        value,
        Some(ProducerStamp {
            id: ProducerId(5),
            epoch: 0,
            sequence,
        }),
        1,
    )
}

fn batch_of(value: u32, stamp: Option<ProducerStamp>, records: u32) -> Bytes {
    let mut builder = Builder::new(Codec::None, 256);
    for at in 0..records {
        builder
            .append::<&str>(1000 + i64::from(at), None, Some(&value.to_be_bytes()), &[])
            .unwrap();
    }
    builder.finish(stamp).unwrap()
}

/// A batch as a broker stored it.
fn stored(base: u64, records: u32) -> Bytes {
    let mut bytes = batch_of(7, None, records).to_vec();
    stamp_in_place(&mut bytes, Offset(base), Epoch(1)).unwrap();
    bytes.into()
}

fn value_of(batch: &Bytes) -> u32 {
    let decoded = forebay_record::batch::decode(batch, &Default::default()).unwrap();
    let value = decoded.records().next().unwrap().unwrap().value.unwrap();
    u32::from_be_bytes(value.try_into().unwrap())
}

fn request(id: u64, batches: &[(u32, Bytes)]) -> ProduceRequest {
    let partition = |(number, batch): &(u32, Bytes)| PartitionProduce {
        topic: "t".to_owned(),
        partition: *number,
        data: Some(Data::Batch(batch.clone())),
        ..PartitionProduce::default()
    };
    ProduceRequest {
        request_id: id,
        acks: Acks::All as i32,
        timeout_ms: 10_000,
        partitions: batches.iter().map(partition).collect(),
    }
}

/// The answers of a stream until `count` have come: base offset or error code by request.
async fn answers(
    stream: &mut Streaming<ProduceResponse>,
    count: usize,
) -> BTreeMap<u64, Result<u64, ErrorCode>> {
    let mut all = BTreeMap::new();
    while all.len() < count {
        let answer = soon(stream.message()).await.unwrap().expect("the stream ended");
        let first = &answer.partitions[0];
        let result = first
            .error
            .as_ref()
            .map_or(Ok(first.base_offset), |error| Err(error.code()));
        assert!(all.insert(answer.request_id, result).is_none(), "answered twice");
    }
    all
}
