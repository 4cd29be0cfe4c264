//! Metrics as an operator meets them: every role is scraped while it works, and everything on the
//! page is in docs/metrics.md, which is checked against what the code registers.
//!
//! `FOREBAY_WRITE_DOCS=1` writes the page's tables anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay::server::{StandaloneOptions, start_standalone};
use forebay_client::{ConsumerConfig, ProducerConfig, ProducerRecord, StartPosition};
use forebay_runtime::config::ByteSize;
use forebay_runtime::metrics::Description;
use forebay_tests::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the names begin with, and whose they are.
const SECTIONS: [(&str, &str); 12] = [
    ("forebay_proxy_", "Proxy"),
    ("forebay_broker_", "Broker"),
    ("forebay_storage_", "Storage node"),
    ("forebay_controller_", "Controller"),
    ("forebay_meta_", "Metadata store, as each process sees it"),
    ("forebay_object_store_", "Object store, as each process sees it"),
    ("forebay_object_cache_", "Cache of objects"),
    ("forebay_object_gc_", "Removal of objects that nothing names"),
    ("forebay_grpc_", "gRPC services"),
    ("forebay_process_", "Process"),
    ("forebay_tokio_", "Runtime of tasks"),
    ("forebay_build_", "Build"),
];

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

fn tables(described: &[Description]) -> String {
    let mut text = String::new();
    for (prefix, title) in SECTIONS {
        let of_section: Vec<_> = described
            .iter()
            .filter(|one| one.name.starts_with(prefix))
            .collect();
        if of_section.is_empty() {
            continue;
        }
        write!(
            text,
            "\n## {title}\n\n| metric | type | labels | what |\n|---|---|---|---|\n"
        )
        .unwrap();
        for one in of_section {
            let labels = one.labels.join(", ");
            let labels = if labels.is_empty() { "—" } else { &labels };
            writeln!(
                text,
                "| `{}` | {} | {labels} | {} |",
                one.name, one.kind, one.help
            )
            .unwrap();
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_lists_exactly_what_the_code_registers() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = StandaloneOptions {
        data_dir: folder.path().join("data"),
        grpc_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..StandaloneOptions::default()
    };
    options.config.storage.journal_file_bytes = ByteSize::mib(16);
    let running = start_standalone(options).await.unwrap();
    let described = running.metrics().describe();
    running.shutdown().await.unwrap();

    for one in &described {
        let known = SECTIONS.iter().any(|(prefix, _)| one.name.starts_with(prefix));
        assert!(known, "{} belongs to no section", one.name);
        assert!(one.kind != "other", "{} is of no known type", one.name);
        assert!(
            one.help.chars().next().is_some_and(char::is_uppercase) || one.help.starts_with('1'),
            "{}: {:?} does not begin like a sentence",
            one.name,
            one.help
        );
        assert!(
            !one.help.contains('|') && !one.help.contains('\n'),
            "{}",
            one.name
        );
        let unit = ["seconds", "bytes"].iter().any(|unit| one.name.ends_with(unit));
        assert!(
            one.kind != "histogram" || unit,
            "histogram {} has no unit",
            one.name
        );
    }
    let text = std::fs::read_to_string(page()).unwrap();
    let (intro, _) = text.split_once("\n## ").expect("sections");
    let wanted = format!("{intro}{}", tables(&described));
    if std::env::var_os("FOREBAY_WRITE_DOCS").is_some() {
        std::fs::write(page(), &wanted).unwrap();
        return;
    }
    for (line, now) in wanted.lines().zip(text.lines()) {
        assert_eq!(
            now, line,
            "docs/metrics.md is not up to date; FOREBAY_WRITE_DOCS=1 writes it"
        );
    }
    assert_eq!(text.lines().count(), wanted.lines().count());
}

/// The values of a page by name with labels, and the names alone.
async fn scrape(admin: SocketAddr) -> (BTreeMap<String, f64>, BTreeSet<String>) {
    let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (mut values, mut names) = (BTreeMap::new(), BTreeSet::new());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    for line in body.lines().filter(|line| line.starts_with("forebay_")) {
        let (key, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        names.insert(key.split('{').next().unwrap().to_owned());
        values.insert(key.to_owned(), value);
    }
    (values, names)
}

/// Names that the page documents, as they are scraped.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(page()).unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `forebay_")) {
        let mut cells = line.split(" | ");
        let name = cells
            .next()
            .unwrap()
            .trim_start_matches("| `")
            .trim_end_matches('`');
        match cells.next().unwrap() {
            "histogram" => {
                names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
            }
            _ => {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_shows_its_work_and_nothing_that_is_not_documented() {
    let binary = Path::new(env!("CARGO_BIN_EXE_forebay-under-test"));
    let cluster = Cluster::start(binary, 3, 1).unwrap();
    let client = cluster.client().await.unwrap();
    client
        .admin()
        .create_topic("orders", 3, BTreeMap::new())
        .await
        .unwrap();
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    for partition in 0..3 {
        for _ in 0..10 {
            let record = ProducerRecord::new("orders", b"value").partition(partition);
            producer.enqueue(record).await.unwrap();
        }
    }
    producer.close().await.unwrap();
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    for partition in 0..3 {
        consumer
            .assign("orders", partition, StartPosition::Earliest)
            .await
            .unwrap();
    }
    let mut read = 0;
    let mut batches = consumer.until_end().await.unwrap();
    while let Some(batch) = batches.next_batch().await.unwrap() {
        read += batch.into_iter().count();
    }
    assert_eq!(read, 30);

    let documented = documented();
    let check = |names: &BTreeSet<String>| {
        let unknown: Vec<_> = names.difference(&documented).collect();
        assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    };
    let (proxy, names) = scrape(cluster.proxies[0].admin).await;
    check(&names);
    assert_eq!(
        proxy["forebay_proxy_topic_in_records_total{topic=\"orders\"}"],
        30.0
    );
    assert_eq!(proxy["forebay_proxy_in_records_total"], 30.0);
    assert!(proxy["forebay_proxy_topic_out_bytes_total{topic=\"orders\"}"] > 0.0);
    assert!(proxy["forebay_grpc_calls_total{method=\"forebay.v1.Data/InitProducer\",code=\"OK\"}"] >= 1.0);
    assert!(proxy["forebay_grpc_call_seconds_count{method=\"forebay.v1.Data/Fetch\"}"] >= 1.0);
    assert!(proxy["forebay_process_resident_memory_bytes"] > 1e6);
    let (broker, names) = scrape(cluster.brokers[0].admin).await;
    check(&names);
    assert!(broker["forebay_broker_requests_total{request=\"produce\"}"] >= 3.0);
    assert!(broker["forebay_broker_takeover_seconds_count"] >= 3.0);
    assert!(broker["forebay_broker_segments_opened_total"] >= 3.0);
    assert!(broker["forebay_meta_requests_total{operation=\"txn\",outcome=\"ok\"}"] >= 3.0);
    // A census is taken once a second.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (broker, _) = scrape(cluster.brokers[0].admin).await;
        let seen = ["partitions", "nodes_connected", "partitions_under_replicated"]
            .map(|name| broker[&format!("forebay_broker_{name}")]);
        if seen == [3.0, 3.0, 0.0] {
            assert_eq!(broker["forebay_controller_leader"], 1.0);
            break;
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut frames = 0.0;
    for node in &cluster.nodes {
        let (node, names) = scrape(node.admin).await;
        check(&names);
        frames += node["forebay_storage_frames_total"];
        assert!(node["forebay_storage_journal_fsync_seconds_count"] >= 1.0);
        assert!(node["forebay_storage_requests_total{request=\"append\"}"] >= 1.0);
        assert_eq!(node["forebay_storage_journal_failed"], 0.0);
    }
    assert!(frames >= 9.0, "{frames}");
}
