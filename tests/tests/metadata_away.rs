//! Real processes: etcd is away for longer than any session lives, from all or from one broker. What is
//! open goes on, and nobody stays with a broker that was replaced.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, Producer, ProducerConfig, ProducerRecord, StartPosition,
};
use forebay_tests::cluster::Cluster;
use forebay_tests::gate::Gate;
use forebay_tests::load;

const PARTITIONS: u32 = 4;
const AWAY: Duration = Duration::from_secs(16);
/// Sessions live three seconds here; eight without a sign of life of the store count as silence, and two
/// more are enough for whoever would end because of it.
const SILENCE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(30);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// Writes one record to each partition and waits for all of them.
async fn write_round(producer: &Producer, topic: &str, partitions: u32, value: &str) {
    let mut deliveries = Vec::new();
    for partition in 0..partitions {
        let record = ProducerRecord::new(topic, value.as_bytes()).partition(partition);
        deliveries.push(producer.send(record).await.unwrap());
    }
    for delivery in deliveries {
        delivery
            .await
            .unwrap_or_else(|error| panic!("{topic}: {value}: {error}"));
    }
}

/// Epoch and owner of each partition.
async fn owners(client: &Client, topic: &str) -> Vec<(u32, u32)> {
    let found = client.admin().describe_topic(topic).await.unwrap();
    let of = |one: &forebay_proto::v1::PartitionDescription| (one.epoch, one.owner);
    found.partitions.iter().map(of).collect()
}

/// A consumer of the busy topic, from its beginning.
async fn follow(client: &Client) -> Consumer {
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    for partition in 0..PARTITIONS {
        consumer
            .assign("busy", partition, StartPosition::Earliest)
            .await
            .unwrap();
    }
    consumer
}

async fn tail(consumer: &mut Consumer, until: &str) {
    let deadline = Instant::now() + DEADLINE;
    let mut last = [const { String::new() }; PARTITIONS as usize];
    while last.iter().any(|value| value != until) {
        let left = deadline.saturating_duration_since(Instant::now());
        let batch = tokio::time::timeout(left, consumer.next_batch())
            .await
            .unwrap_or_else(|_| panic!("read up to {last:?}, not to {until}"))
            .unwrap();
        let partition = usize::try_from(batch.partition).unwrap();
        for record in batch {
            let value = record.unwrap().value.clone().unwrap_or_default();
            last[partition] = String::from_utf8(value.to_vec()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_what_is_open_is_written_and_read_and_nobody_ends() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let client = cluster.client().await.unwrap();
    for topic in ["busy", "idle"] {
        client
            .admin()
            .create_topic(topic, PARTITIONS, BTreeMap::new())
            .await
            .unwrap();
    }
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    let mut consumer = follow(&client).await;
    write_round(&producer, "busy", PARTITIONS, "before").await;
    tail(&mut consumer, "before").await;
    let before = owners(&client, "busy").await;
    let processes: Vec<_> = cluster
        .brokers
        .iter()
        .map(forebay_tests::process::Process::id)
        .collect();

    cluster.etcd.kill();
    let gone = Instant::now();
    let (mut rounds, mut late) = (0, 0);
    while gone.elapsed() < AWAY {
        rounds += 1;
        late += usize::from(gone.elapsed() > SILENCE);
        write_round(&producer, "busy", PARTITIONS, &format!("away {rounds}")).await;
        tail(&mut consumer, &format!("away {rounds}")).await;
    }
    assert!(late > 0, "none of {rounds} rounds began after {SILENCE:?}");
    // Nobody could say that partitions without an open segment are still owned here.
    for broker in &cluster.brokers {
        let log = broker.log();
        assert!(
            log.contains("nobody confirms that this broker still owns it"),
            "{log}"
        );
    }

    cluster.etcd.restart().unwrap();
    write_round(&producer, "idle", PARTITIONS, "after").await;
    write_round(&producer, "busy", PARTITIONS, "after").await;
    tail(&mut consumer, "after").await;
    assert_eq!(owners(&client, "busy").await, before, "nothing was taken over");
    for (broker, id) in cluster.brokers.iter().zip(processes) {
        assert_eq!(broker.id(), id);
        let log = broker.log();
        assert!(!log.contains("session is lost"), "{log}");
    }
    let found = load::read(&client, "busy", PARTITIONS).await.unwrap();
    assert_eq!(found.len(), (rounds + 2) * PARTITIONS as usize);
    producer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_leave_a_broker_that_was_replaced_and_cannot_know() {
    let settings = "[controller]\nrebalance = false\n";
    let mut cluster = Cluster::start_with(binary(), 3, 0, settings).unwrap();
    let etcd = cluster.etcd.endpoint();
    let gate = Gate::open(etcd.trim_start_matches("http://").parse().unwrap())
        .await
        .unwrap();
    let behind = format!("metadata.etcd=[\"http://{}\"]", gate.address());
    cluster.add_broker_with(binary(), 1, &[behind]).unwrap();
    cluster.add_proxy(binary()).unwrap();
    let of = |proxy: usize| ClientConfig::new([cluster.proxies[proxy].grpc.to_string()]);
    let (writing, reading) = (
        Client::connect(of(0)).await.unwrap(),
        Client::connect(of(1)).await.unwrap(),
    );
    writing
        .admin()
        .create_topic("busy", PARTITIONS, BTreeMap::new())
        .await
        .unwrap();
    let producer = writing.producer(ProducerConfig::default()).await.unwrap();
    let mut consumer = follow(&reading).await;
    write_round(&producer, "busy", PARTITIONS, "before").await;
    tail(&mut consumer, "before").await;
    cluster.add_broker(binary(), 2).unwrap();
    assert!(
        owners(&writing, "busy")
            .await
            .iter()
            .all(|(_, owner)| *owner == 1)
    );

    gate.set_open(false);
    let deadline = Instant::now() + DEADLINE;
    while owners(&writing, "busy")
        .await
        .iter()
        .any(|(_, owner)| *owner != 2)
    {
        assert!(Instant::now() < deadline, "nobody took over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // By a proxy that has never heard of the first broker, which so gets nothing that would be refused.
    cluster.add_proxy(binary()).unwrap();
    let fresh = ClientConfig::new([cluster.proxies[2].grpc.to_string()]);
    let fresh = Client::connect(fresh).await.unwrap();
    let other = fresh.producer(ProducerConfig::default()).await.unwrap();
    write_round(&other, "busy", PARTITIONS, "by the other").await;
    tail(&mut consumer, "by the other").await;
    let log = cluster.brokers[0].log();
    assert!(
        log.contains("nobody confirms that this broker still owns it"),
        "{log}"
    );

    // It hears that its session is over, and ends for good.
    gate.set_open(true);
    while !cluster.brokers[0].log().contains("session of broker b1 is lost") {
        assert!(Instant::now() < deadline, "{}", cluster.brokers[0].log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    producer.close().await.unwrap();
    other.close().await.unwrap();
}
