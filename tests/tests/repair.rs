//! Storage nodes that are lost for good, and storage nodes that are emptied, while records are written:
//! every sealed segment gets its copies back, replicas stay in different zones, nothing is missing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use forebay_client::Client;
use forebay_proto::v1::SegmentDescription;
use forebay_tests::cluster::{Cluster, Settings};
use forebay_tests::command::{self, text, wait_until};
use forebay_tests::load;

const TOPIC: &str = "kept";
const PARTITIONS: u32 = 3;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

fn cli(cluster: &Cluster, args: &[&str]) -> Output {
    command::cli(binary(), &cluster.proxies[0].grpc.to_string(), args).unwrap()
}

async fn segments(client: &Client) -> Vec<SegmentDescription> {
    let described = client.admin().describe_topic(TOPIC).await.unwrap();
    described
        .partitions
        .into_iter()
        .flat_map(|partition| partition.segments)
        .collect()
}

fn nodes_of(segment: &SegmentDescription) -> BTreeSet<u32> {
    segment.replicas.iter().map(|replica| replica.node).collect()
}

/// How many of the sealed segments there were at first lie on these nodes only, and on three of them.
async fn sealed(client: &Client) -> Vec<SegmentDescription> {
    let mut all = segments(client).await;
    all.retain(|segment| segment.end.is_some());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_made_up_for_and_a_drained_one_is_empty_and_nothing_is_missing() {
    let settings = Settings {
        broker: "repair_after = \"2s\"\n".to_owned(),
        zones: ["a", "b", "c"].map(str::to_owned).to_vec(),
        ..Settings::default()
    };
    let mut cluster = Cluster::start_as(binary(), 4, 2, settings).unwrap();
    let client = cluster.client().await.unwrap();
    let config = BTreeMap::from([("segment.ms".to_owned(), "1000".to_owned())]);
    let admin = client.admin();
    admin.create_topic(TOPIC, PARTITIONS, config).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, topic) = (client.clone(), TOPIC.to_owned());
    let writer = tokio::spawn(load::write(writing, topic, PARTITIONS, 1, Arc::clone(&stop)));

    wait_until("sealed segments on node 2", || async {
        let all = sealed(&client).await;
        all.iter().filter(|one| nodes_of(one).contains(&2)).count() >= 3
    })
    .await
    .unwrap();
    for segment in segments(&client).await {
        // Nodes 1 and 4 share a zone.
        let nodes = nodes_of(&segment);
        assert!(
            !nodes.is_superset(&BTreeSet::from([1, 4])),
            "{nodes:?} share a zone"
        );
    }
    let alive = text(&cli(&cluster, &["storage", "remove", "2", "--yes"]));
    assert!(alive.contains("drain it first"), "{alive}");

    cluster.nodes[1].kill();
    let lost = Instant::now();
    wait_until("everything of node 2 on other nodes", || async {
        let holdings = admin.describe_storage_node(2).await.unwrap().holdings.unwrap();
        holdings.segments_open + holdings.segments_sealed == 0
    })
    .await
    .unwrap();
    println!("made up for a lost node after {:?}", lost.elapsed());
    for segment in segments(&client).await {
        assert_eq!(nodes_of(&segment), BTreeSet::from([1, 3, 4]));
    }
    let removed = cli(&cluster, &["storage", "remove", "2", "--yes"]);
    assert!(removed.status.success(), "{}", text(&removed));
    let too_few = text(&cli(&cluster, &["storage", "drain", "1"]));
    assert!(too_few.contains("3 needed"), "{too_few}");

    cluster.add_node(binary(), 5).unwrap();
    let began = Instant::now();
    let drained = cli(&cluster, &["storage", "drain", "1", "--wait"]);
    let said = text(&drained);
    println!("drained after {:?}:\n{said}", began.elapsed());
    assert!(drained.status.success() && said.contains("is empty"), "{said}");
    assert!(said.contains("ETA") && said.contains("on its disk"), "{said}");
    let status = admin
        .describe_storage_node(1)
        .await
        .unwrap()
        .node
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.bytes_held, 0, "something is left on its disk");
    for segment in segments(&client).await {
        assert_eq!(nodes_of(&segment), BTreeSet::from([3, 4, 5]), "one in each zone");
    }
    let removed = cli(&cluster, &["storage", "remove", "1", "--yes"]);
    assert!(removed.status.success(), "{}", text(&removed));
    cluster.nodes[0].kill();
    let listed = text(&cli(&cluster, &["storage", "list"]));
    assert_eq!(listed.matches("GONE").count(), 2, "{listed}");

    stop.store(true, Ordering::Relaxed);
    let sent = writer.await.unwrap().unwrap();
    assert!(sent.failed.is_empty(), "{:?}", sent.failed.first());
    assert!(sent.unknown.is_empty(), "{:?}", sent.unknown.first());
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    let verdict = load::compare(std::slice::from_ref(&sent), &found);
    println!("{verdict:?}");
    assert_eq!((verdict.lost, verdict.doubled), (0, 0));
    assert_eq!(verdict.acknowledged, verdict.read);
    assert!(verdict.acknowledged > 1_000, "too little was written");
}
