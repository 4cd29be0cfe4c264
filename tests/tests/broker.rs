//! A cluster in one process: brokers and storage nodes, spoken to by the data protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_broker::{Broker, BrokerConfig, Parts, partition};
use forebay_meta::store::{EmbeddedStore, MetaStore, Op, Txn};
use forebay_meta::{cluster, keys, record, topics};
use forebay_proto::data::endpoint::{ClientLink, Dialer, Exchange, FrontProtocol, Listener, ReplicaProtocol};
use forebay_proto::data::front::{Acks, Fetch, FetchPartition, FromBroker, Position, Produce, ToBroker};
use forebay_proto::stored::PlacementRecord;
use forebay_proto::v1::ErrorCode;
use forebay_record::batch::{Builder, Codec};
use forebay_record::{BrokerId, Epoch, Offset, PartitionId};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::{Clock, SystemClock};
use forebay_runtime::config::ByteSize;
use forebay_runtime::execution::Execution;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::net::{MemNetwork, SystemConnector};
use forebay_runtime::random::{OsRandom, Random};
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use forebay_storage_node::disk::RealFolders;
use forebay_storage_node::{Config as NodeConfig, Environment, StorageNode};

struct World {
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    tasks: Tasks,
    connector: Arc<SystemConnector>,
    fronts: Exchange<FrontProtocol>,
    nodes: Exchange<ReplicaProtocol>,
    cluster: cluster::Cluster,
    storage: Vec<StorageNode>,
    replicas: u8,
    partition: PartitionId,
    folder: tempfile::TempDir,
}

impl World {
    /// As many storage nodes as replicas; all but one of three commit, the one of one.
    async fn start(replicas: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let random: Arc<dyn Random> = Arc::new(OsRandom);
        let tasks = Tasks::new("test");
        let store = EmbeddedStore::open(&folder.path().join("meta"), Arc::clone(&clock), &tasks)
            .await
            .unwrap();
        let store: Arc<dyn MetaStore> = Arc::new(store);
        let ack_quorum = replicas / 2 + 1;
        let settings = cluster::ClusterSettings {
            cluster_id: None,
            replicas,
            ack_quorum,
        };
        let cluster = cluster::join(store.as_ref(), &settings, random.as_ref())
            .await
            .unwrap();
        let topic = topics::create(store.as_ref(), random.as_ref(), "t", 1, BTreeMap::new())
            .await
            .unwrap();
        let partition = topic.partition_ids[0];
        wish(store.as_ref(), partition, 1).await;
        let connector = Arc::new(SystemConnector::new(MemNetwork::new()));
        let nodes = Exchange::default();
        let mut world = Self {
            store,
            clock,
            random,
            tasks,
            connector,
            fronts: Exchange::default(),
            nodes,
            cluster,
            storage: Vec::new(),
            replicas,
            partition,
            folder,
        };
        for id in 1..=u32::from(replicas) {
            let node = world.node(id).await;
            world.storage.push(node);
        }
        world
    }

    async fn node(&self, id: u32) -> StorageNode {
        let tasks = self.tasks.group(format!("node {id}"));
        let name = format!("node-{id}");
        let node_config = NodeConfig {
            node_id: id,
            data_dir: self.folder.path().join(&name),
            journal_file_bytes: ByteSize::mib(4),
            data_address: format!("mem://{name}"),
            ..NodeConfig::default()
        };
        let environment = Environment {
            cluster_id: self.cluster.id.clone(),
            incarnation: self.cluster.incarnation,
            restoring: false,
            meta: Arc::clone(&self.store),
            bucket: None,
            clock: Arc::clone(&self.clock),
            random: Arc::clone(&self.random),
            metrics: Metrics::new(),
            tracer: Tracer::off(),
            readiness: Readiness::new(),
            tasks: tasks.clone(),
            dialer: Dialer::new(self.connector.clone(), self.nodes.clone(), tasks.clone()),
            folders: Arc::new(RealFolders),
            execution: Execution::Threads,
        };
        let node = StorageNode::start(node_config, environment).await.unwrap();
        let mut listener: Listener<ReplicaProtocol> =
            Listener::bind(&name, None, &self.connector, &self.nodes, tasks.clone())
                .await
                .unwrap();
        let (serving, sessions) = (node.clone(), tasks.clone());
        tasks.spawn("accept", async move {
            while let Ok(link) = listener.accept().await {
                let node = serving.clone();
                sessions.spawn("session", async move { node.serve(link).await });
            }
        });
        node
    }

    async fn broker(&self, id: u32) -> (Broker, ClientLink<FrontProtocol>) {
        let name = format!("broker-{id}");
        let tasks = self.tasks.group(&name);
        let listener = Listener::bind(&name, None, &self.connector, &self.fronts, tasks.clone())
            .await
            .unwrap();
        let config = BrokerConfig {
            id: BrokerId(id),
            zone: String::new(),
            data_address: format!("mem://{name}"),
            control_address: String::new(),
            session_ttl: Duration::from_secs(10),
            tail_cache_bytes: 1 << 20,
            repair_bytes_per_second: 0,
            partition: partition::Config {
                replicas: usize::from(self.replicas),
                ack_quorum: self.replicas / 2 + 1,
                ..partition::Config::default()
            },
        };
        let parts = Parts {
            objects: None,
            cluster: self.cluster.id.clone(),
            incarnation: self.cluster.incarnation,
            store: Arc::clone(&self.store),
            nodes: Dialer::new(self.connector.clone(), self.nodes.clone(), tasks.clone()),
            clock: Arc::clone(&self.clock),
            random: Arc::clone(&self.random),
            metrics: Metrics::new(),
            tracer: Tracer::off(),
            tasks: tasks.clone(),
        };
        let broker = Broker::start(config, parts, listener).await.unwrap();
        let dialer: Dialer<FrontProtocol> = Dialer::new(self.connector.clone(), self.fronts.clone(), tasks);
        let mut link = dialer.dial(&format!("mem://{name}")).await.unwrap();
        let cluster = self.cluster.id.clone();
        link.tx
            .send(ToBroker::Hello {
                cluster,
                peer: "test".to_owned(),
                broker: BrokerId(id),
            })
            .await
            .unwrap();
        let Some(FromBroker::Welcome { .. }) = link.rx.recv().await.unwrap() else {
            panic!("no welcome")
        };
        (broker, link)
    }
}

async fn wish(store: &dyn MetaStore, partition: PartitionId, broker: u32) {
    let wish = record::encode(&PlacementRecord {
        broker,
        from_session: 0,
    });
    store
        .txn(Txn::new().then(Op::put(keys::wish(partition), wish)))
        .await
        .unwrap();
}

fn batch(text: &str) -> Bytes {
    let mut builder = Builder::new(Codec::None, 1024);
    builder
        .append(5, None, Some(text.as_bytes()), &[] as &[(&str, Option<&[u8]>)])
        .unwrap();
    builder.finish(None).unwrap()
}

async fn produce(link: &mut ClientLink<FrontProtocol>, partition: PartitionId, text: &str) -> Offset {
    for request in 0.. {
        let produce = Produce {
            request,
            partition,
            epoch: Epoch(0),
            acks: Acks::All,
            deadline_ms: 10_000,
            batch: batch(text),
        };
        link.tx.send(ToBroker::Produce(produce)).await.unwrap();
        match link.rx.recv().await.unwrap() {
            Some(FromBroker::Produced {
                result: Ok(offset), ..
            }) => return offset,
            Some(FromBroker::Produced {
                result: Err(failure), ..
            }) => {
                assert!(request < 500, "{failure:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

async fn end(link: &mut ClientLink<FrontProtocol>, partition: PartitionId) -> Option<Offset> {
    let question = ToBroker::Offsets {
        request: 9,
        partition,
        epoch: Epoch(0),
        position: Position::Latest,
    };
    link.tx.send(question).await.unwrap();
    match link.rx.recv().await.unwrap() {
        Some(FromBroker::Offsets { result, .. }) => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_appends_answers_and_hands_over_to_its_next_incarnation() {
    let world = World::start(1).await;
    let (broker, mut link) = world.broker(1).await;
    for number in 0..20 {
        assert_eq!(
            produce(&mut link, world.partition, &format!("record {number}")).await,
            Offset(number)
        );
    }
    assert_eq!(end(&mut link, world.partition).await, Some(Offset(20)));
    let fetch = Fetch {
        request: 5,
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 1_000,
        partitions: vec![FetchPartition {
            partition: world.partition,
            epoch: Epoch(0),
            offset: Offset(3),
            max_bytes: 0,
        }],
    };
    link.tx.send(ToBroker::Fetch(fetch)).await.unwrap();
    let Some(FromBroker::Fetched { partitions, .. }) = link.rx.recv().await.unwrap() else {
        panic!("no answer")
    };
    let fetched = partitions[0].as_ref().unwrap();
    assert_eq!((fetched.high_watermark, fetched.batches.len()), (Offset(20), 34));

    drop(link);
    broker
        .shutdown(world.clock.as_ref(), Duration::from_secs(5))
        .await;
    let (broker, mut link) = world.broker(1).await;
    assert_eq!(produce(&mut link, world.partition, "after").await, Offset(20));
    assert_eq!(end(&mut link, world.partition).await, Some(Offset(21)));
    broker
        .shutdown(world.clock.as_ref(), Duration::from_secs(5))
        .await;
    world.storage[0].shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_leaves_answers_what_is_sent_before_the_goodbye_and_then_closes() {
    let world = World::start(1).await;
    let (broker, mut link) = world.broker(1).await;
    assert_eq!(produce(&mut link, world.partition, "before").await, Offset(0));
    let clock = Arc::clone(&world.clock);
    let leaving = tokio::spawn(async move { broker.shutdown(clock.as_ref(), Duration::from_secs(5)).await });
    assert_eq!(link.rx.recv().await.unwrap(), Some(FromBroker::Leaving));
    // On its way when the broker said so: it owns nothing any more, and says that for each.
    for request in 1..=100 {
        let late = Produce {
            request,
            partition: world.partition,
            epoch: Epoch(0),
            acks: Acks::All,
            deadline_ms: 1_000,
            batch: batch("late"),
        };
        link.tx.send(ToBroker::Produce(late)).await.unwrap();
    }
    link.tx.send(ToBroker::Goodbye).await.unwrap();
    for expected in 1..=100 {
        let answer = link.rx.recv().await.unwrap();
        let Some(FromBroker::Produced {
            request,
            result: Err(failure),
        }) = answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!((request, failure.code), (expected, ErrorCode::NotOwner));
    }
    assert_eq!(link.rx.recv().await.unwrap(), None);
    leaving.await.unwrap();
    world.storage[0].shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_go_on_with_two_and_another_broker_takes_over_what_was_acknowledged() {
    let mut world = World::start(3).await;
    let (first, mut link) = world.broker(1).await;
    for number in 0..50 {
        assert_eq!(
            produce(&mut link, world.partition, &format!("record {number}")).await,
            Offset(number)
        );
    }
    world.storage.remove(0).kill().await;
    for number in 50..100 {
        assert_eq!(
            produce(&mut link, world.partition, &format!("record {number}")).await,
            Offset(number)
        );
    }
    // The first broker never hears of it: what it still holds is fenced at the storage nodes.
    wish(world.store.as_ref(), world.partition, 2).await;
    let (second, mut other) = world.broker(2).await;
    for number in 100..150 {
        assert_eq!(
            produce(&mut other, world.partition, &format!("record {number}")).await,
            Offset(number)
        );
    }
    assert_eq!(end(&mut other, world.partition).await, Some(Offset(150)));
    let late = Produce {
        request: 7,
        partition: world.partition,
        epoch: Epoch(0),
        acks: Acks::All,
        deadline_ms: 1_000,
        batch: batch("too late"),
    };
    link.tx.send(ToBroker::Produce(late)).await.unwrap();
    let Some(FromBroker::Produced { result, .. }) = link.rx.recv().await.unwrap() else {
        panic!("no answer")
    };
    assert!(result.is_err(), "a deposed owner acknowledged: {result:?}");
    second
        .shutdown(world.clock.as_ref(), Duration::from_secs(5))
        .await;
    first.shutdown(world.clock.as_ref(), Duration::from_secs(5)).await;
}
