//! Real processes: brokers that are drained, restarted in order and joined by others while records
//! are written. Nobody who writes may notice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_client::{Client, DeliveryError, ProducerConfig, ProducerRecord};
use forebay_proto::v1::{self, ErrorCode};
use forebay_tests::cluster::Cluster;
use forebay_tests::load;

const TOPIC: &str = "moving";
const PARTITIONS: u32 = 12;
const DEADLINE: Duration = Duration::from_secs(60);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// Waits until the cluster's description is as it should be.
async fn shows(
    client: &Client,
    what: &str,
    holds: impl Fn(&v1::DescribeClusterResponse) -> bool,
) -> v1::DescribeClusterResponse {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = client.admin().describe_cluster().await;
        if let Ok(found) = &found
            && holds(found)
        {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn has(found: &v1::DescribeClusterResponse, broker: u32, holds: impl Fn(u32) -> bool) -> bool {
    let named = found.brokers.iter().find(|one| one.id == broker);
    let summary = named.and_then(|one| one.summary.as_ref());
    summary.is_some_and(|summary| summary.partitions_recovering == 0 && holds(summary.partitions))
}

fn command(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = Command::new(binary())
        .args(["--server", &cluster.proxies[0].grpc.to_string()])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{said}");
    text
}

/// Writers without idempotence: for them every doubt is an error that they see.
fn write(
    client: &Client,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<anyhow::Result<load::Sent>>> {
    (0..2)
        .map(|writer| {
            let config = ProducerConfig {
                idempotent: writer == 0,
                ..ProducerConfig::default()
            };
            let (client, stop) = (client.clone(), Arc::clone(stop));
            tokio::spawn(load::write_as(
                client,
                TOPIC.to_owned(),
                PARTITIONS,
                writer,
                config,
                stop,
            ))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_joining_and_restarted_brokers_are_not_noticed_by_writers() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let client = cluster.client().await.unwrap();
    client
        .admin()
        .create_topic(TOPIC, PARTITIONS, BTreeMap::new())
        .await
        .unwrap();
    shows(&client, "both brokers have partitions", |found| {
        has(found, 1, |count| count == PARTITIONS / 2) && has(found, 2, |count| count == PARTITIONS / 2)
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&client, &stop);
    let said = command(&cluster, &["broker", "drain", "1", "--wait"]);
    assert_eq!(said, "broker 1 has no partitions left\n");
    let found = shows(&client, "all at broker 2", |found| {
        has(found, 2, |count| count == PARTITIONS)
    })
    .await;
    let last = found.moves.last().unwrap();
    assert_eq!(
        (last.from, last.to, last.why.as_str()),
        (1, 2, "broker 1 is drained")
    );
    let drained = found.moves.iter().map(|one| one.partitions).sum::<u32>();
    assert_eq!(drained, PARTITIONS / 2, "{:?}", found.moves);
    let text = command(&cluster, &["cluster", "status"]);
    assert!(
        text.contains("DRAINING") && text.contains("broker 1 is drained"),
        "{text}"
    );
    // Started again it is another session, is not drained, and gets its part by load.
    cluster.brokers[0].stop().unwrap();
    cluster.brokers[0].restart().unwrap();
    shows(&client, "broker 1 has its part again", |found| {
        has(found, 1, |count| count >= PARTITIONS / 3)
    })
    .await;
    // Without a drain of its own, a broker that is told to stop hands over by itself.
    cluster.brokers[1].stop().unwrap();
    shows(&client, "all at broker 1", |found| {
        has(found, 1, |count| count == PARTITIONS)
    })
    .await;
    cluster.brokers[1].restart().unwrap();
    shows(&client, "broker 2 has its part again", |found| {
        has(found, 2, |count| count >= PARTITIONS / 3)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut sent = Vec::new();
    for writer in writers {
        sent.push(writer.await.unwrap().unwrap());
    }
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    let verdict = load::compare(&sent, &found);
    for one in &sent {
        assert_eq!(
            (&one.failed, &one.unknown),
            (&Vec::new(), &Vec::new()),
            "{verdict:?}"
        );
    }
    assert_eq!((verdict.lost, verdict.doubled), (0, 0), "{verdict:?}");
    assert!(verdict.acknowledged > 500, "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_storage_nodes_producers_are_refused_in_time_and_go_on_when_nodes_return() {
    let mut cluster = Cluster::start(binary(), 3, 1).unwrap();
    let client = cluster.client().await.unwrap();
    client
        .admin()
        .create_topic(TOPIC, 1, BTreeMap::new())
        .await
        .unwrap();
    let config = ProducerConfig {
        delivery_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(2),
        idempotent: false,
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    let send = async |value: &'static str| {
        let record = ProducerRecord::new(TOPIC, value.as_bytes()).partition(0);
        producer.send(record).await.unwrap().await
    };
    send("before").await.unwrap();
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    // What was on its way when the nodes went may be in doubt; what comes after is refused or in
    // doubt too, and always within its time.
    for _ in 0..3 {
        let begun = Instant::now();
        let refused = send("meanwhile").await.unwrap_err();
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{:?}: {refused}",
            begun.elapsed()
        );
        let retriable = match &refused {
            DeliveryError::OutcomeUnknown { .. } | DeliveryError::TimedOut { .. } => true,
            DeliveryError::Refused { refusal, .. } => refusal.code == ErrorCode::NotEnoughReplicas,
            _ => false,
        };
        assert!(retriable, "{refused:?}");
    }
    cluster.nodes[1].restart().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = send("after").await {
        assert!(Instant::now() < deadline, "{error}");
    }
    let found = load::read(&client, TOPIC, 1).await.unwrap();
    assert_eq!(found.get(&(0, 0)).map(String::as_str), Some("before"));
    assert!(found.values().any(|value| value == "after"), "{found:?}");
}
