//! Bits that flip in the journal of a storage node of three, without an object store: the damage is
//! found, told, and healed from the other nodes; nothing is missing, and a later start finds nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use forebay_client::Client;
use forebay_record::frame::{FrameHeader, FrameKind, HEADER_LEN};
use forebay_tests::cluster::{Cluster, Settings};
use forebay_tests::command::wait_until;
use forebay_tests::load;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TOPIC: &str = "kept";
const PARTITIONS: u32 = 2;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// A value of a process's metrics, 0 where it has none of that name.
async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let found = answer
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    found.map_or(0.0, |value| value.parse().unwrap())
}

/// Segments of the topic that are sealed: epoch and sequence.
async fn sealed(client: &Client) -> Vec<(u32, u32)> {
    let described = client.admin().describe_topic(TOPIC).await.unwrap();
    let segments = described.partitions.into_iter().flat_map(|one| one.segments);
    segments
        .filter(|one| one.end.is_some())
        .map(|one| (one.epoch, one.seq))
        .collect()
}

/// Flips a bit in the records of a sealed segment in a node's journal. Says in which file and where.
fn flip(folder: &Path, sealed: &[(u32, u32)], skip: usize) -> (String, u64) {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("journal-"))
        .collect();
    names.sort();
    let name = names.first().expect("a journal file");
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(folder.join(name))
        .unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let frames = bytes.windows(4).enumerate().filter(|(_, four)| four == b"FBF1");
    let at = frames
        .filter_map(|(at, _)| {
            let header = FrameHeader::parse(&bytes[at..]).ok()?;
            let id = (header.segment.epoch.0, header.segment.seq);
            (header.kind == FrameKind::Data && sealed.contains(&id)).then_some(at + HEADER_LEN + 70)
        })
        .nth(skip)
        .expect("a frame of a sealed segment") as u64;
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[bytes[at as usize] ^ 0x10]).unwrap();
    file.sync_all().unwrap();
    (name.clone(), at)
}

fn describe(cluster: &Cluster, node: u32) -> String {
    let output = Command::new(binary())
        .args(["storage", "describe", &node.to_string()])
        .args(["--server", &cluster.proxies[0].grpc.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of a node is whole again, and its partitions' owner knows it.
async fn wait_healed(cluster: &Cluster, at: usize) {
    let (node, broker) = (cluster.nodes[at].admin, cluster.brokers[0].admin);
    wait_until("a healed segment", || async {
        metric(node, "forebay_storage_healed_segments_total").await >= 1.0
    })
    .await
    .unwrap();
    wait_until("nothing damaged", || async {
        let said = describe(cluster, u32::try_from(at).unwrap() + 1);
        said.contains("nothing is known to be damaged")
            && metric(broker, "forebay_broker_segments_under_replicated").await == 0.0
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_are_found_and_healed_from_the_other_nodes_and_nothing_is_missing() {
    let settings = Settings {
        storage: "scrub_interval = \"1s\"\n".to_owned(),
        ..Settings::default()
    };
    let mut cluster = Cluster::start_as(binary(), 3, 1, settings).unwrap();
    let client = cluster.client().await.unwrap();
    let config = BTreeMap::from([("segment.ms".to_owned(), "1000".to_owned())]);
    let admin = client.admin();
    admin.create_topic(TOPIC, PARTITIONS, config).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (writing, topic) = (client.clone(), TOPIC.to_owned());
    let writer = tokio::spawn(load::write(writing, topic, PARTITIONS, 1, Arc::clone(&stop)));
    wait_until("sealed segments", || async { sealed(&client).await.len() >= 4 })
        .await
        .unwrap();
    let first_node = cluster.nodes[0].admin;
    wait_until("a pass of the scrub", || async {
        metric(first_node, "forebay_storage_scrub_passes_total").await >= 1.0
    })
    .await
    .unwrap();
    assert!(metric(first_node, "forebay_storage_scrub_bytes_total").await > 0.0);
    assert!(metric(first_node, "forebay_storage_scrub_last_pass_seconds").await > 1.7e9);

    // While the node runs.
    let folder = cluster.folder().join("node2");
    let (file, at) = flip(&folder, &sealed(&client).await, 3);
    let began = Instant::now();
    let node = cluster.nodes[1].admin;
    wait_until("damage found", || async {
        metric(node, "forebay_storage_damaged_frames_total").await >= 1.0
    })
    .await
    .unwrap();
    println!("found after {:?}", began.elapsed());
    wait_healed(&cluster, 1).await;
    println!("healed after {:?}", began.elapsed());
    assert_eq!(metric(node, "forebay_storage_damaged_frames_total").await, 1.0);
    let log = cluster.nodes[1].log();
    let told = log
        .lines()
        .find(|line| line.contains("a stored frame is damaged"))
        .unwrap();
    assert!(told.contains(&file), "{told} does not name {file} (byte {at})");
    let said = describe(&cluster, 2);
    assert!(said.contains("all it holds was last read back at"), "{said}");

    // While it does not.
    cluster.nodes[2].kill();
    let folder = cluster.folder().join("node3");
    flip(&folder, &sealed(&client).await, 5);
    cluster.nodes[2].restart().unwrap();
    assert!(
        cluster.nodes[2]
            .log()
            .contains("durable bytes of the journal are damaged")
    );
    wait_healed(&cluster, 2).await;

    // What was healed is sound after a start, and serves without the node that gave it.
    cluster.nodes[1].kill();
    cluster.nodes[1].restart().unwrap();
    assert_eq!(
        metric(cluster.nodes[1].admin, "forebay_storage_segments_limbo").await,
        0.0
    );
    let node = cluster.nodes[1].admin;
    wait_until("a pass of the scrub after the start", || async {
        metric(node, "forebay_storage_scrub_passes_total").await >= 1.0
    })
    .await
    .unwrap();
    assert_eq!(metric(node, "forebay_storage_damaged_frames_total").await, 0.0);
    stop.store(true, Ordering::Relaxed);
    let sent = writer.await.unwrap().unwrap();
    cluster.nodes[0].kill();
    assert!(sent.failed.is_empty(), "{:?}", sent.failed.first());
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    let verdict = load::compare(std::slice::from_ref(&sent), &found);
    println!("{verdict:?}");
    assert_eq!((verdict.lost, verdict.doubled), (0, 0));
    assert!(verdict.acknowledged > 500, "too little was written");
}
