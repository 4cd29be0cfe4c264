//! Real processes, killed with kill -9 in the middle of writing; nothing acknowledged may be missing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_client::Client;
use forebay_tests::cluster::Cluster;
use forebay_tests::load::{self, Sent, Verdict};

const TOPIC: &str = "numbers";
const PARTITIONS: u32 = 4;
const WRITERS: u32 = 2;
/// A killed broker's session lasts ten seconds.
const SESSIONS_END: Duration = Duration::from_secs(30);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// Waits until the topic's end has moved on: the cluster takes writes.
async fn wait_for_progress(client: &Client, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut start = None;
    loop {
        let now = end(client).await;
        start = start.or(now);
        if let (Some(start), Some(now)) = (start, now)
            && now >= start + 500
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no progress {what}: {start:?} to {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn end(client: &Client) -> Option<u64> {
    let described = client.admin().describe_topic(TOPIC).await.ok()?;
    described
        .partitions
        .iter()
        .map(|partition| partition.high_watermark)
        .sum()
}

struct Run {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<anyhow::Result<Sent>>>,
    client: Client,
}

impl Run {
    async fn begin(cluster: &Cluster) -> Self {
        let client = cluster.client().await.unwrap();
        client
            .admin()
            .create_topic(TOPIC, PARTITIONS, BTreeMap::new())
            .await
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let client = cluster.client().await.unwrap();
            writers.push(tokio::spawn(load::write(
                client,
                TOPIC.to_owned(),
                PARTITIONS,
                writer,
                Arc::clone(&stop),
            )));
        }
        let run = Self {
            stop,
            writers,
            client,
        };
        wait_for_progress(&run.client, "at the start").await;
        run
    }

    async fn end(self, name: &str) -> Verdict {
        wait_for_progress(&self.client, "after the last fault").await;
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = Vec::new();
        for writer in self.writers {
            sent.push(writer.await.unwrap().unwrap());
        }
        let found = load::read(&self.client, TOPIC, PARTITIONS).await.unwrap();
        let verdict = load::compare(&sent, &found);
        let unknown: usize = sent.iter().map(|one| one.unknown.len()).sum();
        let failed: Vec<_> = sent.iter().flat_map(|one| &one.failed).take(3).collect();
        println!("{name}: {verdict:?}, {unknown} of unknown outcome, refused: {failed:?}");
        assert_eq!(verdict.lost, 0, "{name}: acknowledged records are missing");
        assert_eq!(
            verdict.doubled, 0,
            "{name}: an idempotent producer's records stand twice"
        );
        assert!(
            verdict.acknowledged > 1_000,
            "{name}: too little was written to prove anything"
        );
        verdict
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let run = Run::begin(&cluster).await;
    cluster.brokers[0].kill();
    wait_for_progress(&run.client, "with one broker").await;
    cluster.brokers[0].restart().unwrap();
    wait_for_progress(&run.client, "with the broker back").await;
    cluster.brokers[1].kill();
    run.end("broker killed").await;
}

/// The ids of the brokers that have a session, lowest first.
async fn broker_ids(client: &Client) -> Vec<u32> {
    let described = client.admin().describe_cluster().await.unwrap();
    let mut ids: Vec<_> = described.brokers.iter().map(|broker| broker.id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_given_their_ids_follow_each_other_and_lose_nothing() {
    let mut cluster = Cluster::start(binary(), 3, 0).unwrap();
    cluster.add_broker(binary(), 0).unwrap();
    cluster.add_broker(binary(), 0).unwrap();
    let run = Run::begin(&cluster).await;
    assert_eq!(broker_ids(&run.client).await, [1001, 1002]);
    cluster.brokers[0].kill();
    wait_for_progress(&run.client, "with one broker").await;
    cluster.brokers[0].restart().unwrap();
    cluster.brokers[1].stop().unwrap();
    wait_for_progress(&run.client, "with the one that came third").await;
    // The session of the one that was killed ends by itself.
    let until = Instant::now() + SESSIONS_END;
    while broker_ids(&run.client).await != [1003] && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(broker_ids(&run.client).await, [1003]);
    run.end("brokers without a configured id").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_storage_node_loses_nothing() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let run = Run::begin(&cluster).await;
    for node in 0..3 {
        cluster.nodes[node].kill();
        wait_for_progress(&run.client, "with two storage nodes").await;
        cluster.nodes[node].restart().unwrap();
        wait_for_progress(&run.client, "with the storage node back").await;
    }
    run.end("storage node killed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_loses_nothing() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let run = Run::begin(&cluster).await;
    for process in cluster.nodes.iter_mut().chain(&mut cluster.brokers) {
        process.kill();
    }
    cluster.etcd.kill();
    cluster.etcd.restart().unwrap();
    for process in cluster.nodes.iter_mut().chain(&mut cluster.brokers) {
        process.restart().unwrap();
    }
    run.end("everything killed").await;
}
