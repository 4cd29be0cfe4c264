//! A whole node behind in-memory links: what is acknowledged is there after any stop.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_meta::keys;
use forebay_meta::record::encode;
use forebay_meta::store::{EmbeddedStore, MetaStore, Op, Txn};
use forebay_proto::data::endpoint::{Dialer, Exchange, Listener, ReplicaProtocol};
use forebay_proto::data::link::{self, Link};
use forebay_proto::data::replica::{
    FenceItem, FramesRequest, FromNode, HeadersRequest, Hello, NodeFailure, ReadRequest, Refusal, ToNode,
};
use forebay_proto::stored::CounterRecord;
use forebay_proto::v1::storage_node_server::StorageNode as _;
use forebay_record::frame::Frame;
use forebay_record::{Epoch, Offset};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::SystemClock;
use forebay_runtime::config::{ByteSize, HumanDuration};
use forebay_runtime::metrics::Metrics;
use forebay_runtime::net::{Connector, MemNetwork, SystemConnector};
use forebay_runtime::random::SeededRandom;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;

mod serve;
mod start;
mod trim;
mod uploads;

use super::*;
use crate::disk::RealFolders;
use crate::testing::{GENERATION, NODE, Writer, batch, segment};

const DEADLINE: Duration = Duration::from_secs(20);
/// More than any token in these tests.
const REVISIONS: u64 = 130;

struct World {
    folder: tempfile::TempDir,
    meta: Arc<EmbeddedStore>,
    metrics: Metrics,
    readiness: Readiness,
    tasks: Tasks,
    connector: Arc<SystemConnector>,
    exchange: Exchange<ReplicaProtocol>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new("test");
        let clock = Arc::new(SystemClock::new());
        let meta = EmbeddedStore::open(&folder.path().join("meta.redb"), clock, &tasks)
            .await
            .unwrap();
        // Tokens are revisions that the store has had, and partitions were made before they are held.
        let partitions = encode(&CounterRecord { next: 1_000 });
        for _ in 0..REVISIONS {
            let txn = Txn::new().then(Op::put(keys::PARTITION_IDS, partitions.clone()));
            meta.txn(txn).await.unwrap();
        }
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        Self {
            folder,
            meta: Arc::new(meta),
            metrics,
            readiness,
            tasks,
            connector: Arc::new(SystemConnector::new(MemNetwork::new())),
            exchange: Exchange::default(),
        }
    }

    fn dialer(&self) -> Dialer<ReplicaProtocol> {
        let connector: Arc<dyn Connector> = self.connector.clone();
        Dialer::new(connector, self.exchange.clone(), self.tasks.clone())
    }

    /// Lets a node be reached by a name.
    async fn listen(&self, name: &str, node: &StorageNode) {
        let tasks = self.tasks.clone();
        let listening = Listener::bind(name, None, &self.connector, &self.exchange, tasks.clone());
        let mut listener: Listener<ReplicaProtocol> = listening.await.unwrap();
        let (serving, sessions) = (node.clone(), tasks.clone());
        tasks.spawn("accept", async move {
            while let Ok(link) = listener.accept().await {
                let node = serving.clone();
                sessions.spawn("session", async move { node.serve(link).await });
            }
        });
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("node")
    }

    fn config(&self) -> Config {
        Config {
            data_dir: self.data(),
            node_id: NODE.0,
            journal_file_bytes: ByteSize::mib(1),
            commit_bytes_max: ByteSize::kib(256),
            data_address: "mem://node".to_owned(),
            ..Config::default()
        }
    }

    fn environment(&self) -> Environment {
        Environment {
            cluster_id: "c".to_owned(),
            incarnation: 1,
            restoring: false,
            bucket: None,
            meta: Arc::clone(&self.meta) as Arc<dyn MetaStore>,
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SeededRandom::new(7)),
            metrics: self.metrics.clone(),
            tracer: Tracer::off(),
            readiness: self.readiness.clone(),
            tasks: self.tasks.clone(),
            dialer: self.dialer(),
            folders: Arc::new(RealFolders),
            execution: Execution::Threads,
        }
    }

    async fn start(&self) -> StorageNode {
        StorageNode::start(self.config(), self.environment())
            .await
            .unwrap()
    }

    async fn reformat(&self) -> Result<Generation, StartError> {
        let reformat = Reformat::begin(&self.config(), 1, &*self.meta).await?;
        reformat.finish(&*self.meta).await
    }

    async fn refused(&self, config: Config) -> String {
        chain(&StorageNode::start(config, self.environment()).await.unwrap_err())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

struct Client {
    link: Link<ToNode, FromNode>,
}

impl Client {
    async fn connect(node: &StorageNode) -> Self {
        let mut client = Self::greet(node, "c", NODE).await;
        let welcome = FromNode::Welcome {
            node: NODE,
            generation: node.generation(),
            boot: node.boot(),
        };
        assert_eq!(client.recv().await, welcome);
        client
    }

    async fn greet(node: &StorageNode, cluster: &str, id: forebay_record::NodeId) -> Self {
        let (link, theirs) = link::memory();
        let node = node.clone();
        tokio::spawn(async move { node.serve(theirs).await });
        let mut client = Self { link };
        let hello = Hello {
            cluster: cluster.to_owned(),
            incarnation: 1,
            node: id,
            peer: "test".to_owned(),
        };
        client.send(ToNode::Hello(hello)).await;
        client
    }

    async fn send(&mut self, message: ToNode) {
        self.link.tx.send(message).await.unwrap();
    }

    async fn append(&mut self, frame: Frame) {
        self.send(ToNode::Append {
            generation: GENERATION,
            frame,
        })
        .await;
    }

    async fn recv(&mut self) -> FromNode {
        tokio::time::timeout(DEADLINE, self.link.rx.recv())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Waits until so many frames of a segment are acknowledged.
    async fn acked(&mut self, writer: &Writer) {
        loop {
            let acks = match self.recv().await {
                FromNode::Acks { acks, .. } => acks,
                FromNode::Urge(_) => continue,
                other => panic!("no acknowledgement: {other:?}"),
            };
            for ack in acks {
                assert_eq!(ack.segment, writer.segment);
                assert!(ack.frames <= writer.number && ack.tail <= writer.next);
                if ack.frames == writer.number {
                    assert_eq!(ack.tail, writer.next);
                    return;
                }
            }
        }
    }

    async fn write(&mut self, writer: &mut Writer, frames: u32) -> Vec<Frame> {
        let frames: Vec<Frame> = (0..frames)
            .map(|_| {
                if writer.number == 0 {
                    writer.open()
                } else {
                    writer.data(3)
                }
            })
            .collect();
        for frame in &frames {
            self.append(frame.clone()).await;
        }
        self.acked(writer).await;
        frames
    }

    async fn fence(&mut self, writer: &Writer) -> forebay_proto::data::replica::FencedState {
        let item = FenceItem {
            segment: writer.segment,
            generation: GENERATION,
            token: writer.token,
            base: Offset(10),
            by: Epoch(9),
        };
        self.send(ToNode::Fence {
            request: 5,
            items: vec![item],
        })
        .await;
        match self.recv().await {
            FromNode::Fenced { request: 5, states } => states[0],
            other => panic!("{other:?}"),
        }
    }

    fn read_of(writer: &Writer, from: u64, until: u64) -> ReadRequest {
        ReadRequest {
            segment: writer.segment,
            generation: GENERATION,
            from: Offset(from),
            until: Offset(until),
            max_bytes: 1 << 20,
        }
    }

    async fn read(&mut self, read: ReadRequest) -> Result<Bytes, NodeFailure> {
        self.send(ToNode::Read { request: 6, read }).await;
        match self.recv().await {
            FromNode::Read { request: 6, result } => result,
            other => panic!("{other:?}"),
        }
    }

    async fn frames(&mut self, writer: &Writer, from: u64) -> Result<Vec<Frame>, NodeFailure> {
        let frames = FramesRequest {
            segment: writer.segment,
            generation: GENERATION,
            from: Offset(from),
            max_bytes: 1 << 20,
        };
        self.send(ToNode::Frames { request: 7, frames }).await;
        match self.recv().await {
            FromNode::Frames { request: 7, result } => result,
            other => panic!("{other:?}"),
        }
    }
}

fn bytes_of(frames: &[Frame]) -> Bytes {
    let data = frames.iter().filter(|frame| frame.header.batches > 0);
    data.flat_map(|frame| frame.payload_bytes()).collect()
}
