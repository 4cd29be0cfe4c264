//! Two of the three replicas of an open segment lost for good, and the owner with them: the partition
//! waits and says for whom; after the operator's word it goes on, and what was lost is told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use forebay_client::{Client, ProducerConfig, ProducerRecord};
use forebay_proto::v1::PartitionDescription;
use forebay_tests::cluster::Cluster;
use forebay_tests::command::{self, text};
use forebay_tests::load;

const TOPIC: &str = "orders";
const RECORDS: u64 = 400;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

fn cli(cluster: &Cluster, args: &[&str]) -> Output {
    command::cli(binary(), &cluster.proxies[0].grpc.to_string(), args).unwrap()
}

async fn write(client: &Client, from: u64) -> BTreeMap<(u32, u64), String> {
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    for number in from..from + RECORDS {
        let value = format!("record {number}");
        let record = ProducerRecord::new(TOPIC, value.as_bytes()).partition(0);
        let delivery = producer.send(record).await.unwrap();
        // Many batches, so that there is more than one frame.
        if number % 20 == 19 {
            let metadata = delivery.await.unwrap();
            acknowledged.insert((0, metadata.offset.unwrap().get()), value);
        }
    }
    acknowledged
}

/// Waits until the partition is as wanted.
async fn until(
    client: &Client,
    what: &str,
    is: impl Fn(&PartitionDescription) -> bool,
) -> PartitionDescription {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let described = client.admin().describe_topic(TOPIC).await;
        let partition = described
            .ok()
            .and_then(|topic| topic.partitions.into_iter().next());
        if let Some(partition) = partition.filter(&is) {
            return partition;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_lost_its_quorum_waits_and_goes_on_by_the_operators_word() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let client = cluster.client().await.unwrap();
    client
        .admin()
        .create_topic(TOPIC, 1, BTreeMap::new())
        .await
        .unwrap();
    let before = write(&client, 0).await;
    let partition = until(&client, "an owner", |one| one.owner != 0).await;
    let refused = cli(&cluster, &["partition", "force-seal", TOPIC, "0", "--yes"]);
    assert!(!refused.status.success(), "{}", text(&refused));
    assert!(text(&refused).contains("it is served"), "{}", text(&refused));

    for node in [2, 3] {
        cluster.nodes[node - 1].kill();
        std::fs::remove_dir_all(cluster.folder().join(format!("node{node}"))).unwrap();
    }
    let owner = usize::try_from(partition.owner).unwrap();
    cluster.brokers[owner - 1].kill();
    let waiting = until(&client, "a takeover that waits", |one| {
        one.recovery
            .as_ref()
            .is_some_and(|it| it.step == "FENCING" && it.nodes.len() == 2 && it.for_ms > 6_000)
    })
    .await;
    let recovery = waiting.recovery.unwrap();
    println!("{recovery:?}");
    let named: Vec<_> = recovery.nodes.iter().map(|one| one.node).collect();
    assert_eq!(named, [2, 3]);
    assert!(
        recovery.waits_for.contains("1 of 2 needed"),
        "{}",
        recovery.waits_for
    );
    for command in [&["cluster", "status"][..], &["topic", "describe", TOPIC]] {
        let shown = text(&cli(&cluster, command));
        assert!(
            shown.contains("recovers since") && shown.contains("n2, n3"),
            "{shown}"
        );
    }

    for id in [4, 5] {
        cluster.add_node(binary(), id).unwrap();
    }
    let asked = cli(&cluster, &["partition", "force-seal", TOPIC, "0"]);
    assert_eq!(asked.status.code(), Some(2), "{}", text(&asked));
    let low = cli(
        &cluster,
        &["partition", "force-seal", TOPIC, "0", "--yes", "--end", "1"],
    );
    assert!(text(&low).contains("cannot go on at @1"), "{}", text(&low));
    let forced = cli(
        &cluster,
        &["partition", "force-seal", TOPIC, "0", "--yes", "--format", "json"],
    );
    println!("{}", text(&forced));
    assert!(forced.status.success(), "{}", text(&forced));
    let forced: serde_json::Value = serde_json::from_slice(&forced.stdout).unwrap();
    let (end, next) = (forced["end"].as_u64().unwrap(), forced["next"].as_u64().unwrap());
    assert!(end > 0 && next == end + (1 << 32), "{forced}");

    let after = write(&client, RECORDS).await;
    assert!(
        after.keys().all(|(_, offset)| *offset >= next),
        "an offset is used twice"
    );
    let found = load::read(&client, TOPIC, 1).await.unwrap();
    let kept = before.iter().filter(|((_, offset), _)| *offset < end);
    let missing: Vec<_> = kept
        .chain(&after)
        .filter(|(at, value)| found.get(at) != Some(value))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(found.keys().all(|(_, offset)| *offset < end || *offset >= next));
    let described = until(&client, "a declared gap", |one| !one.gaps.is_empty()).await;
    assert_eq!((described.gaps[0].base, described.gaps[0].end), (end, next));
    let consumed = cli(&cluster, &["consume", TOPIC, "--from", "earliest", "--until-end"]);
    assert!(
        text(&consumed).contains("records are lost"),
        "{}",
        text(&consumed)
    );
    let shown = text(&cli(&cluster, &["topic", "describe", TOPIC]));
    assert!(
        shown.contains("declared lost") && !shown.contains("recovers since"),
        "{shown}"
    );
}
