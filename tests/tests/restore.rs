//! etcd restored from an older snapshot under real processes: what was acknowledged after the backup is
//! refused to be forgotten, and comes back by the operator's command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_client::{Client, ProducerConfig, ProducerRecord};
use forebay_tests::cluster::Cluster;
use forebay_tests::load;

const TOPIC: &str = "numbers";
const PARTITIONS: u32 = 4;
const RECORDS: u64 = 8_000;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forebay-under-test"))
}

/// Writes numbered records and returns where each was acknowledged.
async fn write(client: &Client, from: u64, count: u64) -> BTreeMap<(u32, u64), String> {
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut deliveries = Vec::new();
    for number in from..from + count {
        let value = format!("record {number:<2000}");
        let partition = u32::try_from(number % u64::from(PARTITIONS)).unwrap();
        let record = ProducerRecord::new(TOPIC, value.as_bytes()).partition(partition);
        let delivery = producer.send(record).await.unwrap();
        deliveries.push((value, delivery));
        // Several batches a partition, so that segments roll.
        if number % 500 == 499 {
            for (value, delivery) in deliveries.drain(..) {
                let metadata = delivery.await.unwrap();
                acknowledged.insert((metadata.partition, metadata.offset.unwrap().get()), value);
            }
        }
    }
    for (value, delivery) in deliveries {
        let metadata = delivery.await.unwrap();
        acknowledged.insert((metadata.partition, metadata.offset.unwrap().get()), value);
    }
    acknowledged
}

async fn wait_for_end(client: &Client, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let described = client.admin().describe_topic(TOPIC).await;
        if described.is_ok_and(|topic| topic.partitions.iter().all(|one| one.high_watermark.is_some())) {
            return;
        }
        assert!(Instant::now() < deadline, "no owner {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn raise(cluster: &Cluster, more: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command
        .args([
            "metadata",
            "raise-incarnation",
            "--yes",
            "--format",
            "json",
            "--config",
        ])
        .arg(cluster.config("proxy1"))
        .args(more);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn finished(child: Child) -> serde_json::Value {
    let done = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{errors}");
    println!("{errors}{}", String::from_utf8_lossy(&done.stdout));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Waits until the command has raised the incarnation: nodes that start later run with the next one.
fn wait_until_raised(cluster: &mut Cluster, node: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.nodes[node].restart().is_err() {
        assert!(Instant::now() < deadline, "{}", cluster.nodes[node].log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_after_a_backup_is_never_silently_forgotten() {
    let mut cluster = Cluster::start(binary(), 3, 2).unwrap();
    let client = cluster.client().await.unwrap();
    let config = BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]);
    client
        .admin()
        .create_topic(TOPIC, PARTITIONS, config)
        .await
        .unwrap();
    let mut acknowledged = write(&client, 0, RECORDS).await;
    let backup = cluster.folder().join("backup.db");
    cluster.etcd.save(&backup).unwrap();
    // Rolls, and a takeover of what the first broker owns, all after the backup.
    acknowledged.extend(write(&client, RECORDS, RECORDS / 2).await);
    cluster.brokers[0].kill();
    wait_for_end(&client, "after the kill").await;
    acknowledged.extend(write(&client, RECORDS * 3 / 2, RECORDS / 2).await);
    assert_eq!(acknowledged.len() as u64, RECORDS * 2);
    drop(client);
    cluster.kill_all();
    cluster.etcd.restore(&backup).unwrap();

    // Restarted as a supervisor would: a storage node says what is wrong and what to do.
    for node in 0..3 {
        let error = cluster.nodes[node].restart().unwrap_err().to_string();
        assert!(
            error.contains("raise-incarnation") && error.contains("node"),
            "node {node} started on the restored metadata: {error}"
        );
    }

    let raising = raise(&cluster, &[]);
    for node in 0..3 {
        wait_until_raised(&mut cluster, node);
    }
    let report = finished(raising).await;
    assert_eq!(report["incarnation"], 2);
    assert!(report["adopted"].as_u64().unwrap() > 4, "{report}");
    assert_eq!(report["lost"].as_array().unwrap().len(), 0, "{report}");
    for broker in &mut cluster.brokers {
        broker.restart().unwrap();
    }
    cluster.proxies[0].restart().unwrap();
    let client = cluster.client().await.unwrap();
    wait_for_end(&client, "after the restore").await;
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    let missing: Vec<_> = acknowledged
        .iter()
        .filter(|(at, value)| found.get(at) != Some(value))
        .map(|(at, value)| (at, value.trim_end()))
        .take(5)
        .collect();
    assert!(
        missing.is_empty(),
        "of {} acknowledged, read {}: {missing:?}",
        acknowledged.len(),
        found.len()
    );
    // And it goes on.
    let more = write(&client, RECORDS * 2, 1_000).await;
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    assert!(more.iter().all(|(at, value)| found.get(at) == Some(value)));
    // A restart of the nodes finds records and segments in agreement.
    for node in 0..3 {
        cluster.nodes[node].kill();
        cluster.nodes[node].restart().unwrap();
    }
}

/// Runs the command to its end and returns what it printed, or what it complained of.
fn forebay(args: &[&str]) -> Result<String, String> {
    let done = Command::new(binary())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        Err(text(&done.stderr))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_disks_lost_the_loss_is_declared_and_readers_are_led_over_it() {
    let mut cluster = Cluster::start(binary(), 3, 1).unwrap();
    let client = cluster.client().await.unwrap();
    client
        .admin()
        .create_topic(TOPIC, PARTITIONS, BTreeMap::new())
        .await
        .unwrap();
    write(&client, 0, 400).await;
    let backup = cluster.folder().join("backup.db");
    cluster.etcd.save(&backup).unwrap();
    let config = cluster.config("node1").display().to_string();
    let reformat = ["storage", "reformat", "--config", &config];
    let refused = forebay(&[&reformat[..], &["--yes"]].concat()).unwrap_err();
    assert!(
        refused.contains("pid"),
        "a running node was reformatted: {refused}"
    );
    drop(client);
    cluster.kill_all();
    cluster.etcd.restore(&backup).unwrap();
    let raising = raise(&cluster, &[]);
    for node in 0..3 {
        let name = format!("node{}", node + 1);
        std::fs::remove_dir_all(cluster.folder().join(&name)).unwrap();
        let error = cluster.nodes[node].restart().unwrap_err().to_string();
        assert!(
            error.contains("storage reformat") && error.contains(&name),
            "{error}"
        );
        let config = cluster.config(&name).display().to_string();
        let asked = forebay(&["storage", "reformat", "--config", &config]).unwrap_err();
        assert!(asked.contains("--yes"), "{asked}");
        let done = forebay(&["storage", "reformat", "--config", &config, "--yes"]).unwrap();
        println!("{done}");
        wait_until_raised(&mut cluster, node);
    }
    let report = finished(raising).await;
    assert_eq!(
        report["lost"].as_array().unwrap().len() as u32,
        PARTITIONS,
        "{report}"
    );
    for broker in &mut cluster.brokers {
        broker.restart().unwrap();
    }
    cluster.proxies[0].restart().unwrap();
    let client = cluster.client().await.unwrap();
    wait_for_end(&client, "after the loss").await;
    let more = write(&client, 400, 400).await;
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    assert_eq!(found, more, "what is read is what was written after the loss");
    assert!(
        more.keys().all(|(_, offset)| *offset >= 1 << 32),
        "no offset is used twice"
    );
}

/// Waits until a description of the topic is as wanted.
async fn until(client: &Client, what: &str, is: impl Fn(&forebay_proto::v1::PartitionDescription) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let described = client.admin().describe_topic(TOPIC).await;
        if described.is_ok_and(|topic| topic.partitions.iter().all(&is)) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_into_the_object_store_after_a_backup_is_listed_again() {
    let objects = tempfile::tempdir().unwrap();
    let settings = format!("[object_store]\nurl = \"file://{}\"\n", objects.path().display());
    let mut cluster = Cluster::start_with(binary(), 3, 2, &settings).unwrap();
    let client = cluster.client().await.unwrap();
    let config = BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]);
    let admin = client.admin();
    admin.create_topic(TOPIC, PARTITIONS, config).await.unwrap();
    let mut acknowledged = write(&client, 0, RECORDS / 8).await;
    let backup = cluster.folder().join("backup.db");
    cluster.etcd.save(&backup).unwrap();
    // Everything is sealed and offloaded by new brokers, and then written on.
    acknowledged.extend(write(&client, RECORDS / 8, RECORDS / 2).await);
    for broker in &mut cluster.brokers {
        broker.stop().unwrap();
    }
    for broker in &mut cluster.brokers {
        broker.restart().unwrap();
    }
    until(&client, "all in the object store", |one| {
        one.high_watermark.is_some() && one.segments.is_empty()
    })
    .await;
    // Nodes that lose what they had are the surest trim.
    drop(client);
    cluster.kill_all();
    cluster.etcd.restore(&backup).unwrap();
    let raising = raise(&cluster, &[]);
    for node in 0..3 {
        let name = format!("node{}", node + 1);
        std::fs::remove_dir_all(cluster.folder().join(&name)).unwrap();
        let config = cluster.config(&name).display().to_string();
        let deadline = Instant::now() + Duration::from_secs(60);
        let reformat = ["storage", "reformat", "--config", &config, "--yes"];
        while let Err(why) = forebay(&reformat) {
            assert!(Instant::now() < deadline, "{why}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        wait_until_raised(&mut cluster, node);
    }
    let report = finished(raising).await;
    assert!(report["offloaded"].as_u64().unwrap() > 4, "{report}");
    assert_eq!(report["unusable"].as_array().unwrap().len(), 0, "{report}");
    assert_eq!(report["lost"].as_array().unwrap().len(), 0, "{report}");
    for broker in &mut cluster.brokers {
        broker.restart().unwrap();
    }
    cluster.proxies[0].restart().unwrap();
    let client = cluster.client().await.unwrap();
    wait_for_end(&client, "after the restore").await;
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    let missing = acknowledged
        .iter()
        .filter(|(at, value)| found.get(at) != Some(value));
    assert_eq!(
        missing.count(),
        0,
        "of {} read {}",
        acknowledged.len(),
        found.len()
    );
    let more = write(&client, RECORDS, 1_000).await;
    assert!(
        more.keys().all(|at| !acknowledged.contains_key(at)),
        "an offset is used twice"
    );
    let found = load::read(&client, TOPIC, PARTITIONS).await.unwrap();
    assert_eq!(found.len(), acknowledged.len() + more.len());
}
