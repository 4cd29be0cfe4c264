//! Administration as an operator does it: real processes, the command line, and what running
//! clients notice of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use forebay_client::{
    Client, ClientConfig, DeliveryError, ErrorCode, Producer, ProducerConfig, ProducerRecord, SendError,
};
use forebay_tests::cluster::Cluster;
use forebay_tests::load::{Sent, compare, read};
use forebay_tests::process::Process;
use serde_json::{Value, json};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

fn standalone(folder: &Path) -> Process {
    standalone_with(folder, "storage.journal_file_bytes=16MiB")
}

fn standalone_with(folder: &Path, setting: &str) -> Process {
    let data = folder.join("data").display().to_string();
    let free = "127.0.0.1:0";
    let args = [
        "standalone",
        "--data",
        &data,
        "--listen",
        free,
        "--admin-listen",
        free,
        "--set",
        setting,
    ];
    let args: Vec<_> = args.map(str::to_owned).to_vec();
    Process::start("standalone", binary(), &args, folder).unwrap()
}

/// Runs a command, with text on standard input.
fn run_with(server: SocketAddr, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .args(["--server", &server.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that is refused at once does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn run(server: SocketAddr, args: &[&str]) -> Output {
    run_with(server, args, "")
}

/// The JSON that a command prints where it succeeds.
fn json_of(server: SocketAddr, args: &[&str]) -> Value {
    let args = [args, &["--format", "json"]].concat();
    let output = run(server, &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

/// What a command says that ends with this code.
fn refused(server: SocketAddr, args: &[&str], code: i32) -> String {
    let output = run(server, args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn client(server: SocketAddr) -> Client {
    Client::connect(ClientConfig::new([server.to_string()]))
        .await
        .unwrap()
}

async fn producer(client: &Client) -> Producer {
    let config = ProducerConfig {
        linger: Duration::ZERO,
        topic_refresh: Duration::from_millis(100),
        ..ProducerConfig::default()
    };
    client.producer(config).await.unwrap()
}

/// Segments of a topic's only partition, offloaded ones included.
fn parts(server: SocketAddr, topic: &str) -> usize {
    let described = json_of(server, &["topic", "describe", topic]);
    let partition = &described["partitions"][0];
    let count = |key: &str| partition[key].as_array().unwrap().len();
    count("segments") + count("offloaded") + usize::from(!partition["manifest"].is_null())
}

/// Writes a record and waits for its offset.
async fn write(producer: &Producer, topic: &str, timestamp_ms: Option<i64>, value: &[u8]) -> u64 {
    let record = ProducerRecord {
        timestamp_ms,
        ..ProducerRecord::new(topic, value)
    };
    let written = producer.send(record).await.unwrap().await.unwrap();
    written.offset.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_configuration_is_in_force_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path());
    let server = process.grpc;
    json_of(
        server,
        &["topic", "create", "t", "--config", "retention.ms=1234567"],
    );
    let client = client(server).await;
    let producer = producer(&client).await;
    let value = vec![b'x'; 300 << 10];
    for _ in 0..5 {
        write(&producer, "t", None, &value).await;
    }
    assert_eq!(parts(server, "t"), 1, "256 MiB are not full yet");

    let altered = json_of(
        server,
        &[
            "topic",
            "alter",
            "t",
            "--set",
            "segment.bytes=1048576",
            "--unset",
            "retention.ms",
        ],
    );
    let setting = |key: &str| {
        let settings = altered["settings"].as_array().unwrap();
        settings.iter().find(|one| one["key"] == key).unwrap().clone()
    };
    assert_eq!(
        setting("segment.bytes"),
        json!({"key": "segment.bytes", "value": "1048576", "is_default": false})
    );
    assert_eq!(
        setting("retention.ms"),
        json!({"key": "retention.ms", "value": "604800000", "is_default": true})
    );
    let described = json_of(server, &["topic", "describe", "t"]);
    assert_eq!(described["config"], json!({"segment.bytes": "1048576"}));
    let shown = String::from_utf8(run(server, &["topic", "describe", "t"]).stdout).unwrap();
    assert!(shown.contains("segment.bytes = 1048576\n"), "{shown}");
    assert!(shown.contains("retention.ms = 604800000  (default)\n"), "{shown}");
    eventually("the segment is rolled", || async {
        write(&producer, "t", None, b"one more").await;
        parts(server, "t") > 1
    })
    .await;

    // What a proxy may take follows as well, in both directions.
    json_of(
        server,
        &["topic", "alter", "t", "--set", "max.message.bytes=2048"],
    );
    let long = format!("{}\n", "y".repeat(5_000));
    eventually("the batch is refused", || async {
        let output = run_with(server, &["produce", "t"], &long);
        !output.status.success()
    })
    .await;
    json_of(server, &["topic", "alter", "t", "--unset", "max.message.bytes"]);
    eventually("the batch is taken", || async {
        run_with(server, &["produce", "t"], &long).status.success()
    })
    .await;

    let said = refused(server, &["topic", "alter", "t", "--set", "retention.bites=1"], 1);
    assert!(
        said.contains("retention.bites") && said.contains("retention.bytes"),
        "{said}"
    );
    refused(server, &["topic", "alter", "none", "--set", "retention.ms=1"], 1);
    refused(
        server,
        &["topic", "alter", "t", "--set", "a=1", "--unset", "a"],
        2,
    );
    refused(server, &["topic", "alter", "t"], 2);
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_journal_files_are_warned_of_and_bound_what_a_topic_may_allow() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone_with(folder.path(), "storage.journal_file_bytes=1MiB");
    let server = process.grpc;
    let log = process.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else {
        panic!("{log}");
    };
    for part in [
        "frame_bytes_max=655272",
        "max_message_bytes=8388608",
        "storage.journal_file_bytes",
    ] {
        assert!(warning.contains(part), "{part}: {warning}");
    }

    let large = "max.message.bytes=655273";
    let made = refused(server, &["topic", "create", "t", "--config", large], 1);
    json_of(server, &["topic", "create", "t"]);
    let altered = refused(server, &["topic", "alter", "t", "--set", large], 1);
    for said in [made, altered] {
        for part in [
            "max.message.bytes = 655273, at most 655272",
            "storage node 1",
            "storage.journal_file_bytes",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    json_of(
        server,
        &["topic", "alter", "t", "--set", "max.message.bytes=655272"],
    );
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_producer_finds_new_partitions_and_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path());
    let server = process.grpc;
    json_of(server, &["topic", "create", "t"]);
    let client = client(server).await;
    let producer = producer(&client).await;
    let handle = producer.topic("t").await.unwrap();
    let mut sent = Sent::default();
    let mut number = 0;
    let mut write = async |sent: &mut Sent| {
        number += 1;
        let value = format!("record {number}");
        let delivery = handle
            .send(ProducerRecord::new("t", value.as_bytes()))
            .await
            .unwrap();
        let written = delivery.await.unwrap();
        sent.acknowledged
            .insert((written.partition, written.offset.unwrap().0), value);
    };
    for _ in 0..50 {
        write(&mut sent).await;
    }
    assert_eq!(
        json_of(server, &["topic", "add-partitions", "t", "--count", "4"]),
        json!({"name": "t", "partitions": 4})
    );
    let until = Instant::now() + PATIENCE;
    while (0..4).any(|one| !sent.acknowledged.keys().any(|(partition, _)| *partition == one)) {
        assert!(Instant::now() < until, "new partitions were not found");
        write(&mut sent).await;
    }
    assert_eq!(handle.partitions(), 4);
    let found = read(&client, "t", 4).await.unwrap();
    let verdict = compare(std::slice::from_ref(&sent), &found);
    assert_eq!((verdict.lost, verdict.doubled), (0, 0), "{verdict:?}");
    assert_eq!(verdict.acknowledged, found.len());
    for count in ["4", "3", "99999"] {
        let said = refused(server, &["topic", "add-partitions", "t", "--count", count], 1);
        assert!(said.contains(count), "{said}");
    }
    refused(server, &["topic", "add-partitions", "t", "--count", "0"], 2);
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_is_unknown_soon_and_its_name_is_free_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path());
    let server = process.grpc;
    let first = json_of(server, &["topic", "create", "t", "--partitions", "2"]);
    let client = client(server).await;
    let producer = producer(&client).await;
    write(&producer, "t", None, b"old").await;
    let said = refused(server, &["topic", "delete", "t"], 2);
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(
        json_of(server, &["topic", "delete", "t", "--yes"]),
        json!({"name": "t", "deleted": true})
    );
    let said = refused(server, &["consume", "t", "--until-end"], 1);
    assert!(said.contains("does not exist"), "{said}");
    eventually("the producer is told", || async {
        match producer.send(ProducerRecord::new("t", b"late")).await {
            Ok(delivery) => matches!(
                delivery.await,
                Err(DeliveryError::Refused { refusal, .. }) if refusal.code == ErrorCode::UnknownTopic
            ),
            Err(SendError::Topic { refusal, .. }) => refusal.code == ErrorCode::UnknownTopic,
            Err(_) => false,
        }
    })
    .await;

    let second = json_of(server, &["topic", "create", "t"]);
    assert_ne!(first["id"], second["id"]);
    let other = self::producer(&client).await;
    assert_eq!(write(&other, "t", None, b"new").await, 0);
    let read = run(server, &["consume", "t", "--until-end", "--format", "json"]);
    let record: Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(
        (&record["value"], &record["offset"], &record["partition"]),
        (&json!("new"), &json!(0), &json!(0))
    );
    json_of(server, &["topic", "delete", "t", "--yes"]);
    json_of(server, &["topic", "create", "t"]);
    refused(server, &["topic", "delete", "none", "--yes"], 1);
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_found_by_time_wherever_the_records_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path());
    let server = process.grpc;
    // The records are from 1970.
    let config = [("segment.bytes", "1048576"), ("retention.ms", "-1")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let client = client(server).await;
    let admin = client.admin();
    admin.create_topic("t", 1, BTreeMap::from(config)).await.unwrap();
    let producer = producer(&client).await;
    // Times do not rise with offsets: the lowest offset counts.
    let time_of = |at: i64| if at == 17 { 9_000_000 } else { 1_000_000 + at * 10 };
    let value = vec![b'x'; 100 << 10];
    for at in 0..40 {
        assert_eq!(write(&producer, "t", Some(time_of(at)), &value).await, at as u64);
    }
    let expected = |time_ms: i64| (0..40).find(|at| time_of(*at) >= time_ms);
    let check = || {
        for time_ms in [
            0, 1_000_000, 1_000_001, 1_000_055, 1_000_160, 1_000_161, 1_000_390, 1_000_391, 9_000_000,
            9_000_001,
        ] {
            let found = json_of(server, &["topic", "offsets", "t", "--at", &time_ms.to_string()]);
            let offset = expected(time_ms);
            let wanted = json!([{
                "partition": 0, "offset": offset, "timestamp_ms": offset.map(time_of),
            }]);
            assert_eq!(found, wanted, "{time_ms}");
        }
    };
    check();
    assert!(parts(server, "t") > 3, "several segments");
    assert_eq!(
        json_of(server, &["topic", "offsets", "t"]),
        json!([{"partition": 0, "earliest": 0, "latest": 40}])
    );
    eventually("something is offloaded", || async {
        let described = json_of(server, &["topic", "describe", "t"]);
        let partition = &described["partitions"][0];
        !partition["offloaded"].as_array().unwrap().is_empty() || !partition["manifest"].is_null()
    })
    .await;
    check();
    let found = json_of(
        server,
        &["topic", "offsets", "t", "--partition", "0", "--at", "latest"],
    );
    assert_eq!(found[0]["offset"], 40);
    let found = json_of(server, &["topic", "offsets", "t", "--at", "10m"]);
    assert_eq!(found[0]["offset"], Value::Null, "all of it is from 1970");
    let found = json_of(
        server,
        &["topic", "offsets", "t", "--at", "1970-01-01T00:16:40.010Z"],
    );
    assert_eq!(found[0]["offset"], 1);
    refused(server, &["topic", "offsets", "t", "--partition", "1"], 2);
    refused(server, &["topic", "offsets", "t", "--at", "yesterday"], 2);
    refused(server, &["topic", "offsets", "none"], 1);
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_speaks_json_and_says_by_its_exit_code_how_it_went() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = standalone(folder.path());
    let server = process.grpc;
    assert_eq!(json_of(server, &["topic", "create", "t", "-p", "2"])["name"], "t");
    let produced = run_with(server, &["produce", "t", "--format", "json"], "a\nb\nc\n");
    let produced: Value = serde_json::from_slice(&produced.stdout).unwrap();
    assert_eq!(
        (&produced["delivered"], &produced["lines"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(json_of(server, &["topic", "list"])[0]["partitions"], 2);
    assert_eq!(json_of(server, &["version"])["name"], "forebay");
    eventually("both partitions are owned", || async {
        json_of(server, &["cluster", "status"])["partitions_without_owner"] == 0
    })
    .await;
    let status = json_of(server, &["cluster", "status"]);
    assert_eq!(
        (&status["topics"], &status["partitions"], &status["replicas"]),
        (&json!(1), &json!(2), &json!(1))
    );
    assert_eq!(status["segments_under_replicated"], 0);
    assert_eq!(status["brokers"][0]["partitions"], 2);
    let node = &status["storage_nodes"][0];
    assert_eq!(node["state"], "ACTIVE");
    assert!(node["capacity_bytes"].as_u64().unwrap() >= node["status"]["journal_bytes"].as_u64().unwrap());
    assert!(node["last_contact_ms"].as_i64().unwrap() > 0);
    let largest = node["frame_bytes_max"].as_u64().unwrap();
    assert!(largest >= 1 << 20 && largest < node["capacity_bytes"].as_u64().unwrap());
    let roles = status["processes"][0]["roles"].as_array().unwrap();
    for role in ["proxy", "broker 1", "storage 1", "controller"] {
        assert!(roles.contains(&json!(role)), "{role}: {roles:?}");
    }
    let shown = json_of(server, &["config", "show", "--set", "storage.id=7"]);
    let id = shown
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["key"] == "storage.id");
    assert_eq!(
        id,
        Some(&json!({"key": "storage.id", "value": 7, "origin": "flag storage.id"}))
    );
    let reference = json_of(server, &["config", "reference"]);
    let keys = reference.as_array().unwrap();
    assert!(
        keys.iter()
            .any(|one| one["variable"] == "FOREBAY_OBJECT_STORE__URL")
    );

    let wrong = folder.path().join("wrong.toml");
    std::fs::write(
        &wrong,
        "[object_store]\nurll = \"s3://b\"\nsecret_access_key = \"hush\"\nuploads_max = \"x\"\n",
    )
    .unwrap();
    let wrong = wrong.display().to_string();
    let checked = run(server, &["config", "check", &wrong]);
    let problems = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1));
    for words in [
        "object_store.urll",
        "did you mean object_store.url?",
        "object_store.uploads_max",
    ] {
        assert!(problems.contains(words), "{words}: {problems}");
    }
    let secret = ["--set", "object_store.secret_access_key=hush"];
    for command in [&["config", "show"], &["config", "check"]] {
        let args: Vec<&str> = command
            .iter()
            .chain(&secret)
            .copied()
            .chain(["--format", "json"])
            .collect();
        let output = run(server, &args);
        let said = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8(said).unwrap().contains("hush"), "{command:?}");
    }

    refused(server, &["topic", "describe", "none"], 1);
    refused(server, &["topic", "frobnicate"], 2);
    refused(server, &["config", "check", "/nowhere/at/all.toml"], 1);
    let script = run(server, &["completion", "bash"]);
    assert!(script.status.success());
    let mut bash = Command::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(&script.stdout).unwrap();
    assert!(bash.wait().unwrap().success());
    process.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_processes_takes_up_changes_and_shows_who_is_away() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let server = cluster.proxies[0].grpc;
    json_of(
        server,
        &["topic", "create", "t", "--config", "forebay.offload=false"],
    );
    let client = client(server).await;
    let producer = producer(&client).await;
    let value = vec![b'x'; 300 << 10];
    for _ in 0..4 {
        write(&producer, "t", None, &value).await;
    }
    assert_eq!(parts(server, "t"), 1);
    json_of(server, &["topic", "alter", "t", "--set", "segment.bytes=1048576"]);
    eventually("the owner in its own process rolls", || async {
        write(&producer, "t", None, b"one more").await;
        parts(server, "t") > 1
    })
    .await;
    json_of(server, &["topic", "add-partitions", "t", "--count", "3"]);
    eventually("all partitions are owned", || async {
        json_of(server, &["cluster", "status"])["partitions_without_owner"] == 0
    })
    .await;
    let status = json_of(server, &["cluster", "status"]);
    assert_eq!(
        (&status["partitions"], &status["replicas"]),
        (&json!(3), &json!(3))
    );
    assert!(
        status["unoffloaded_bytes"].as_u64().unwrap() > 1_000_000,
        "{status}"
    );
    assert_eq!(status["segments_under_replicated"], 0, "{status}");
    assert_eq!(status["processes"].as_array().unwrap().len(), 6, "{status}");

    cluster.nodes[0].kill();
    eventually("the node is away", || async {
        let status = json_of(server, &["cluster", "status"]);
        status["storage_nodes"][0]["state"] == "UNREACHABLE"
            && status["segments_under_replicated"].as_u64().unwrap() > 0
    })
    .await;
    let status = json_of(server, &["cluster", "status"]);
    let node = &status["storage_nodes"][0];
    assert_eq!(node["status"], Value::Null);
    assert!(
        node["last_contact_ms"].as_i64().unwrap() > 0,
        "it was seen before"
    );
}
