//! Copies that are gone for good, and bytes that were flipped: what can be read is read, what cannot is told,
//! and after the operator's word everything goes on, the object store included.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use forebay_client::{Client, ClientConfig, Compression, ProducerConfig, ProducerRecord};
use forebay_proto::v1::PartitionDescription;
use forebay_tests::cluster::Cluster;
use forebay_tests::command::{self, text};
use forebay_tests::load;
use forebay_tests::process::Process;

const TOPIC: &str = "orders";
/// Large enough for segments to roll: they have a mebibyte at least.
const VALUE_BYTES: usize = 16_000;
type Written = BTreeMap<(u32, u64), String>;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

fn cli(server: &str, args: &[&str]) -> Output {
    command::cli(binary(), server, args).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn client(server: &str) -> Client {
    Client::connect(ClientConfig::new([server.to_owned()]))
        .await
        .unwrap()
}

fn value(number: u64) -> String {
    format!("record {number:08} {}", "x".repeat(VALUE_BYTES))
}

/// Writes records, each in a batch of its own, as they are.
async fn write(client: &Client, numbers: std::ops::Range<u64>) -> Written {
    let config = ProducerConfig {
        compression: Compression::None,
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await.unwrap();
    let mut written = Written::new();
    for number in numbers {
        let value = value(number);
        let record = ProducerRecord::new(TOPIC, value.as_bytes()).partition(0);
        let metadata = producer.send(record).await.unwrap().await.unwrap();
        written.insert((0, metadata.offset.unwrap().get()), value);
    }
    written
}

async fn described(client: &Client) -> Option<PartitionDescription> {
    let topic = client.admin().describe_topic(TOPIC).await.ok()?;
    topic.partitions.into_iter().next()
}

/// Waits until the partition is as wanted.
async fn until(
    client: &Client,
    what: &str,
    is: impl Fn(&PartitionDescription) -> bool,
) -> PartitionDescription {
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut last = None;
    loop {
        let partition = described(client).await;
        if let Some(partition) = partition.clone().filter(&is) {
            return partition;
        }
        last = partition.or(last);
        assert!(Instant::now() < deadline, "{what}: not in time: {last:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Repeats a command until it says what is wanted.
async fn until_said(server: &str, args: &[&str], wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = text(&cli(server, args));
        if said.contains(wanted) {
            return said;
        }
        assert!(
            Instant::now() < deadline,
            "{args:?} does not say {wanted:?}: {said}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Flips a bit of a record's value in a journal.
fn flip(folder: &Path, number: u64) {
    let wanted = format!("record {number:08} xxx");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let found = bytes
            .windows(wanted.len())
            .position(|window| window == wanted.as_bytes());
        if let Some(at) = found {
            bytes[at + wanted.len()] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("record {number} is in no file of {}", folder.display());
}

fn journal(data: &Path) -> PathBuf {
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("journal-") {
                return folder;
            }
        }
    }
    panic!("no journal in {}", data.display());
}

fn missing(written: &Written, found: &Written) -> BTreeSet<u64> {
    let lacks = written.iter().filter(|(at, value)| found.get(at) != Some(value));
    lacks.map(|((_, offset), _)| *offset).collect()
}

fn standalone(folder: &Path) -> Process {
    let objects = format!("object_store.url=file://{}", folder.join("objects").display());
    let args = [
        "standalone",
        "--data",
        &folder.join("data").display().to_string(),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--set",
        "storage.journal_file_bytes=16MiB",
        "--set",
        "storage.trim_grace=0s",
        "--set",
        &objects,
    ]
    .map(str::to_owned);
    Process::start("standalone", binary(), &args, folder).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_of_the_only_copy_is_told_and_given_up_and_all_else_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = standalone(folder.path());
    let address = server.grpc.to_string();
    let first = client(&address).await;
    let settings = BTreeMap::from([("forebay.offload".to_owned(), "false".to_owned())]);
    first.admin().create_topic(TOPIC, 1, settings).await.unwrap();
    // A sealed segment, and one that is open.
    let mut written = write(&first, 0..40).await;
    let alter = |size: &str| {
        cli(
            &address,
            &["topic", "alter", TOPIC, "--set", &format!("segment.bytes={size}")],
        )
    };
    assert!(alter("1048576").status.success());
    written.extend(write(&first, 40..80).await);
    until(&first, "a roll", |one| one.segments.len() > 1).await;
    assert!(alter("268435456").status.success());
    written.extend(write(&first, 80..300).await);
    let lost = written
        .iter()
        .find_map(|((_, offset), found)| (*found == value(100)).then_some(*offset));
    let lost = lost.unwrap();
    drop(first);
    server.kill();
    flip(&journal(&folder.path().join("data")), 100);

    server.restart().unwrap();
    let address = server.grpc.to_string();
    assert!(
        server.log().contains("durable bytes of the journal are damaged"),
        "{}",
        server.log()
    );
    let dry = ["partition", "force-seal", TOPIC, "0", "--dry-run"];
    let told = until_said(&address, &dry, "lost: damaged offsets").await;
    println!("{told}");
    let shown = text(&cli(&address, &["topic", "describe", TOPIC]));
    assert!(shown.contains("may have lost bytes"), "{shown}");
    let forced = cli(
        &address,
        &[
            "partition",
            "force-seal",
            TOPIC,
            "0",
            "--yes",
            "--force",
            "--format",
            "json",
        ],
    );
    let forced = json(&forced);
    let damaged = &forced["lost"][0];
    let (base, end) = (
        damaged["base"].as_u64().unwrap(),
        damaged["end"].as_u64().unwrap(),
    );
    assert!(base <= lost && lost < end && end - base < 50, "{forced}");

    let second = client(&address).await;
    let found = load::read(&second, TOPIC, 1).await.unwrap();
    let gone = missing(&written, &found);
    assert!(gone.iter().all(|offset| (base..end).contains(offset)), "{gone:?}");
    assert!(gone.contains(&lost), "{gone:?}");
    let after = write(&second, 300..400).await;
    let next = forced["next"].as_u64().unwrap();
    assert!(
        after.keys().all(|(_, offset)| *offset >= next),
        "an offset is used twice"
    );
    written.retain(|(_, offset), _| !gone.contains(offset));
    written.extend(after);
    let consumed = text(&cli(
        &address,
        &["consume", TOPIC, "--from", "earliest", "--until-end"],
    ));
    assert!(consumed.contains("records are lost"), "no warning");

    // A start finds everything in agreement, and what is sealed goes into the object store in pieces.
    drop(second);
    server.kill();
    server.restart().unwrap();
    let address = server.grpc.to_string();
    let third = client(&address).await;
    until(&third, "an owner", |one| one.high_watermark.is_some()).await;
    let altered = cli(
        &address,
        &["topic", "alter", TOPIC, "--set", "forebay.offload=true"],
    );
    assert!(altered.status.success(), "{}", text(&altered));
    until(&third, "everything in the object store", |one| {
        one.segments.is_empty()
    })
    .await;
    let found = load::read(&third, TOPIC, 1).await.unwrap();
    assert!(found == written, "lacks {:?}", missing(&written, &found));
    written.extend(write(&third, 400..420).await);
    let found = load::read(&third, TOPIC, 1).await.unwrap();
    assert!(found == written, "lacks {:?}", missing(&written, &found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_whose_only_copies_are_gone_are_declared_lost_and_the_others_are_offloaded_and_expire() {
    let objects = tempfile::tempdir().unwrap();
    let settings = format!(
        "[cluster]\nreplicas = 1\nack_quorum = 1\n[object_store]\nurl = \"file://{}\"\n",
        objects.path().display()
    );
    let mut cluster = Cluster::start_with(binary(), 3, 1, &settings).unwrap();
    let server = cluster.proxies[0].grpc.to_string();
    let client = client(&server).await;
    let settings = BTreeMap::from([
        ("forebay.offload".to_owned(), "false".to_owned()),
        ("segment.bytes".to_owned(), "1048576".to_owned()),
    ]);
    client.admin().create_topic(TOPIC, 1, settings).await.unwrap();
    let mut written = write(&client, 0..700).await;
    let before = described(&client).await.unwrap();
    let nodes = |partition: &PartitionDescription| -> Vec<(u32, u64, Option<u64>)> {
        let of = partition.segments.iter().filter(|one| one.end.is_some());
        of.map(|one| (one.replicas[0].node, one.base, one.end)).collect()
    };
    let sealed = nodes(&before);
    assert!(sealed.len() > 5, "{sealed:?}");
    // The node that has the oldest one.
    let oldest = sealed.iter().min_by_key(|one| one.1).unwrap();
    let lost: Vec<_> = sealed.iter().filter(|one| one.0 == oldest.0).collect();
    assert!(lost.len() < sealed.len(), "all on one node: {sealed:?}");
    let at = usize::try_from(oldest.0).unwrap() - 1;
    cluster.nodes[at].kill();
    std::fs::remove_dir_all(cluster.folder().join(format!("node{}", oldest.0))).unwrap();
    written.extend(write(&client, 700..720).await);
    let altered = cli(
        &server,
        &["topic", "alter", TOPIC, "--set", "forebay.offload=true"],
    );
    assert!(altered.status.success(), "{}", text(&altered));

    let declare = ["partition", "declare-lost", TOPIC, "0"];
    let with = |more: &[&'static str]| cli(&server, &[&declare[..], more].concat());
    let away = with(&["--yes"]);
    assert!(text(&away).contains("may come back"), "{}", text(&away));
    let removed = cli(
        &server,
        &[
            "storage",
            "remove",
            &oldest.0.to_string(),
            "--yes",
            "--accept-loss",
        ],
    );
    assert!(removed.status.success(), "{}", text(&removed));
    let dry = until_said(&server, &[&declare[..], &["--dry-run"]].concat(), "lost: offsets").await;
    println!("{dry}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let declared = loop {
        let declared = with(&["--yes", "--format", "json"]);
        if declared.status.success() {
            break json(&declared);
        }
        assert!(Instant::now() < deadline, "{}", text(&declared));
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let segments = declared["segments"].as_array().unwrap();
    assert!(segments.len() >= lost.len(), "{declared}");
    let ranges: Vec<_> = segments
        .iter()
        .map(|one| (one["base"].as_u64().unwrap(), one["end"].as_u64().unwrap()))
        .collect();
    let is_lost = |offset: u64| ranges.iter().any(|(base, end)| (*base..*end).contains(&offset));
    let again = with(&["--yes"]);
    assert!(text(&again).contains("nothing of"), "{}", text(&again));

    written.retain(|(_, offset), _| !is_lost(*offset));
    // Enough for the list of ranges to be folded into the manifest, over the gaps.
    written.extend(write(&client, 720..1_900).await);
    let past = until(&client, "a manifest", |one| {
        one.segments.iter().filter(|one| one.end.is_some()).count() == 0 && one.manifest.is_some()
    })
    .await;
    println!("{:?} {:?}", past.manifest, past.gaps);
    let found = load::read(&client, TOPIC, 1).await.unwrap();
    assert!(found == written, "lacks {:?}", missing(&written, &found));
    let shown = text(&cli(&server, &["topic", "describe", TOPIC]));
    assert!(shown.contains("declared lost"), "{shown}");
    let status = text(&cli(&server, &["cluster", "status"]));
    assert!(!status.contains("DATA LOSS"), "{status}");
    // Retention goes over the gaps too.
    let altered = cli(
        &server,
        &["topic", "alter", TOPIC, "--set", "retention.bytes=2097152"],
    );
    assert!(altered.status.success(), "{}", text(&altered));
    let last = ranges.iter().map(|(_, end)| *end).max().unwrap();
    until(&client, "retention", |one| {
        one.log_start >= last && one.gaps.is_empty()
    })
    .await;
    let found = load::read(&client, TOPIC, 1).await.unwrap();
    assert!(!found.is_empty() && found.iter().all(|(at, value)| written.get(at) == Some(value)));
}
