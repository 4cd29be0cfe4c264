//! Sealed segments in the object store, as a client sees them: nothing is missing once they are
//! offloaded and trimmed, and what the store or an operator gets wrong is named.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay::server::{Running, StandaloneOptions, start_standalone};
use forebay_client::{
    Client, ClientConfig, ConsumerConfig, Offset, ProducerConfig, ProducerRecord, StartPosition,
};
use forebay_proto::v1::PartitionDescription;
use forebay_runtime::clock::SystemClock;
use forebay_runtime::config::{ByteSize, HumanDuration, Secret};
use forebay_runtime::metrics::Metrics;
use forebay_tier::{Bucket, ObjectStoreConfig};

#[path = "../../tier/tests/store/weed.rs"]
mod weed;

const TOPIC: &str = "logs";
/// Each cluster has a place of its own in the bucket.
static NUMBER: AtomicU32 = AtomicU32::new(0);
const DEADLINE: Duration = Duration::from_secs(90);
const VALUE_BYTES: usize = 4_000;

struct Standalone {
    running: Running,
    client: Client,
    /// Timestamp of record 0: records must not be so old that retention by time takes them.
    since_ms: i64,
}

fn options(folder: &Path, store: Option<ObjectStoreConfig>) -> StandaloneOptions {
    let free = ([127, 0, 0, 1], 0).into();
    let mut options = StandaloneOptions {
        data_dir: folder.join("data"),
        grpc_listen: free,
        admin_listen: free,
        ..StandaloneOptions::default()
    };
    options.config.storage.journal_file_bytes = ByteSize::mib(16);
    options.config.storage.trim_grace = HumanDuration::millis(0);
    // Nothing of the log's past in the broker's memory.
    options.config.broker.tail_cache_bytes = ByteSize::mib(1);
    options.config.object_store = store.unwrap_or_default();
    options
}

impl Standalone {
    async fn start(folder: &Path, store: Option<ObjectStoreConfig>) -> Self {
        let running = start_standalone(options(folder, store)).await.unwrap();
        let client = Client::connect(ClientConfig::new([running.grpc_address().to_string()]))
            .await
            .unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let since_ms = i64::try_from(now.as_millis()).unwrap() - 3_600_000;
        Self {
            running,
            client,
            since_ms,
        }
    }

    async fn topic(&self, settings: &[(&str, &str)]) {
        let settings = settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>();
        self.client
            .admin()
            .create_topic(TOPIC, 1, settings)
            .await
            .unwrap();
    }

    async fn write(&self, numbers: std::ops::Range<u64>) {
        let producer = self.client.producer(ProducerConfig::default()).await.unwrap();
        for number in numbers {
            let record = value(number);
            let record = ProducerRecord::new(TOPIC, &record).partition(0);
            producer
                .enqueue(record.timestamp_ms(self.since_ms + i64::try_from(number).unwrap()))
                .await
                .unwrap();
        }
        producer.close().await.unwrap();
    }

    async fn described(&self) -> PartitionDescription {
        let topic = self.client.admin().describe_topic(TOPIC).await.unwrap();
        topic.partitions[0].clone()
    }

    /// Waits until the partition is as it should be.
    async fn until(&self, what: &str, is: impl Fn(&PartitionDescription) -> bool) -> PartitionDescription {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let now = self.described().await;
            if is(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "never {what}: {now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads from a position to the end; every record must be the one its offset says.
    async fn read(&self, from: StartPosition) -> anyhow::Result<(u64, u64)> {
        let mut consumer = self.client.consumer(ConsumerConfig::default())?;
        consumer.assign(TOPIC, 0, from).await?;
        let first = consumer.position(TOPIC, 0).unwrap().0;
        let mut next = first;
        let mut until_end = consumer.until_end().await?;
        while let Some(batch) = until_end.next_batch().await? {
            for record in batch {
                let record = record?;
                assert_eq!(record.offset, Offset(next));
                assert_eq!(record.value.unwrap(), value(next), "offset {next}");
                next += 1;
            }
        }
        Ok((first, next))
    }

    async fn stop(self) {
        drop(self.client);
        self.running.shutdown().await.unwrap();
    }
}

fn value(number: u64) -> Vec<u8> {
    let mut value = format!("{number}:").into_bytes();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while value.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
    }
    value
}

/// Everything but the open segment is offloaded.
fn is_offloaded(partition: &PartitionDescription) -> bool {
    partition.segments.len() <= 1 && (partition.manifest.is_some() || !partition.offloaded.is_empty())
}

async fn s3() -> (std::sync::Arc<weed::Weed>, ObjectStoreConfig) {
    let weed = weed::weed();
    let config = ObjectStoreConfig {
        url: format!(
            "s3://{}/cluster-{}",
            weed::BUCKET,
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ),
        endpoint: weed.endpoint(),
        access_key_id: weed::ACCESS_KEY.to_owned(),
        secret_access_key: Some(Secret::new(weed::SECRET.to_owned())),
        allow_http: true,
        ..ObjectStoreConfig::default()
    };
    // The server makes the bucket a moment after it answers.
    let clock = std::sync::Arc::new(SystemClock::new());
    let bucket = Bucket::open(&config, &Metrics::new(), clock, &|_| None)
        .unwrap()
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = bucket.put("probe/0", bytes::Bytes::from_static(b"here")).await {
        assert!(Instant::now() < deadline, "no bucket: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (weed, config)
}

/// Writes enough for a manifest, waits until it is offloaded and trimmed, and reads it back: at
/// once, by time, and after a restart.
async fn goes_around(store: Option<ObjectStoreConfig>) {
    const RECORDS: u64 = 6_000;
    let folder = tempfile::tempdir().unwrap();
    let one = Standalone::start(folder.path(), store.clone()).await;
    one.topic(&[("segment.bytes", "1048576"), ("segment.ms", "1000")])
        .await;
    for round in 0..6 {
        one.write(round * 1_000..(round + 1) * 1_000).await;
    }
    let now = one
        .until("in a manifest", |now| now.manifest.is_some() && is_offloaded(now))
        .await;
    assert!(now.manifest.as_ref().unwrap().end > 0);
    assert_eq!(one.read(StartPosition::Earliest).await.unwrap(), (0, RECORDS));
    let by_time = StartPosition::Timestamp(one.since_ms + 1_234);
    let (first, end) = one.read(by_time).await.unwrap();
    assert_eq!(end, RECORDS);
    // A batch's records share a lookup: the first record at or after the time, exactly.
    assert_eq!(first, 1_234);
    one.stop().await;

    let again = Standalone::start(folder.path(), store).await;
    assert_eq!(again.read(StartPosition::Earliest).await.unwrap(), (0, RECORDS));
    again.write(RECORDS..RECORDS + 500).await;
    assert_eq!(
        again.read(StartPosition::Earliest).await.unwrap(),
        (0, RECORDS + 500)
    );
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_offloaded_to_a_folder_is_read_as_before() {
    goes_around(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_offloaded_to_s3_is_read_as_before() {
    let (_weed, config) = s3().await;
    goes_around(Some(config)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_size_moves_the_log_start_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let one = Standalone::start(folder.path(), None).await;
    one.topic(&[
        ("segment.bytes", "1048576"),
        ("segment.ms", "1000"),
        ("retention.bytes", "4194304"),
    ])
    .await;
    for round in 0..4 {
        one.write(round * 1_000..(round + 1) * 1_000).await;
    }
    let now = one
        .until("shorter", |now| is_offloaded(now) && now.log_start >= 2_000)
        .await;
    let (first, end) = one.read(StartPosition::Earliest).await.unwrap();
    assert_eq!((first, end), (now.log_start.max(first), 4_000));
    // Only whole ranges go, and only those beyond the limit.
    let kept = (end - first) * VALUE_BYTES as u64;
    assert!(kept >= 4 << 20, "{kept} bytes are kept");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_not_offloaded_is_bounded_by_retention_too() {
    let folder = tempfile::tempdir().unwrap();
    let one = Standalone::start(folder.path(), None).await;
    one.topic(&[
        ("segment.bytes", "1048576"),
        ("segment.ms", "1000"),
        ("retention.bytes", "2097152"),
        ("forebay.offload", "false"),
    ])
    .await;
    one.write(0..2_000).await;
    let now = one.until("shorter", |now| now.log_start > 0).await;
    assert!(now.offloaded.is_empty() && now.manifest.is_none(), "{now:?}");
    let (first, end) = one.read(StartPosition::Earliest).await.unwrap();
    assert!(first >= now.log_start && end == 2_000, "{first} to {end}");
    one.stop().await;
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_is_named_and_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let one = Standalone::start(folder.path(), None).await;
    one.topic(&[("segment.bytes", "1048576"), ("segment.ms", "1000")])
        .await;
    one.write(0..1_000).await;
    let now = one.until("offloaded", is_offloaded).await;
    let object = now.offloaded[0].object.clone();
    // In the middle of the records, where only the chunk's checksum sees it.
    let path = folder.path().join("data/objects").join(&object);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let read = tokio::time::timeout(Duration::from_secs(30), one.read(StartPosition::Earliest)).await;
    let error = format!("{:#}", read.expect("an answer in time").unwrap_err());
    assert!(error.contains(&object) && error.contains("chunk"), "{error}");
    // What lies in other objects is read as before.
    let after = StartPosition::At(Offset(now.offloaded[0].end));
    assert_eq!(one.read(after).await.unwrap().1, 1_000);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_bucket_and_wrong_credentials_end_the_start_by_name() {
    let (_weed, right) = s3().await;
    let bucket = ObjectStoreConfig {
        url: "s3://no-such-bucket".to_owned(),
        ..right.clone()
    };
    let secret = ObjectStoreConfig {
        secret_access_key: Some(Secret::new("wrong".to_owned())),
        ..right
    };
    for (config, named) in [(bucket, "no-such-bucket"), (secret, "secret_access_key")] {
        let folder = tempfile::tempdir().unwrap();
        let error = start_standalone(options(folder.path(), Some(config)))
            .await
            .map(|_| ())
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(named), "{named} is not in: {error}");
    }
}

/// The store is away at the start and for all of the writing: nothing is refused, and everything is
/// offloaded once it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_holds_up_nothing_but_offload() {
    let folder = tempfile::tempdir().unwrap();
    let objects_at = folder.path().join("objects");
    // A file where the folder should be: every operation fails until it is gone.
    let config = ObjectStoreConfig {
        url: format!("file://{}", objects_at.display()),
        ..ObjectStoreConfig::default()
    };
    let one = Standalone::start(folder.path(), Some(config)).await;
    one.topic(&[("segment.bytes", "1048576"), ("segment.ms", "1000")])
        .await;
    let aside = folder.path().join("aside");
    std::fs::rename(&objects_at, &aside).unwrap();
    std::fs::write(&objects_at, b"not a folder").unwrap();
    one.write(0..1_000).await;
    one.until("sealed", |now| now.segments.len() >= 3).await;
    assert_eq!(one.read(StartPosition::Earliest).await.unwrap(), (0, 1_000));
    std::fs::remove_file(&objects_at).unwrap();
    std::fs::rename(&aside, &objects_at).unwrap();
    one.until("offloaded", is_offloaded).await;
    assert!(!objects(&objects_at).is_empty());
    assert_eq!(one.read(StartPosition::Earliest).await.unwrap(), (0, 1_000));
    one.stop().await;
}
