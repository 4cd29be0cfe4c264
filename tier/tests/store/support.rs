//! Places to store objects in, and batches to store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_meta::model::Run;
use forebay_meta::store::Revision;
use forebay_record::batch::{Builder, Codec, stamp_in_place};
use forebay_record::state::{PartitionState, ProducerEntry};
use forebay_record::{Epoch, Offset, PartitionId, ProducerId, SegmentId, SessionId};
use forebay_runtime::clock::SystemClock;
use forebay_runtime::config::{ByteSize, HumanDuration, Secret, Validate};
use forebay_runtime::metrics::Metrics;
use forebay_tier::{
    Bucket, CacheConfig, Names, ObjectKind, ObjectStoreConfig, Reader, RunStart, RunWriter, StoreError,
    WriteError, Written,
};
use uuid::Uuid;

use crate::weed::{ACCESS_KEY, BUCKET, SECRET};

pub const PARTITION: PartitionId = PartitionId(7);
pub const TOPIC: Uuid = Uuid::from_u128(0xabc);
pub const PART_BYTES: u64 = 5 << 20;

/// Settings with short times, for a store at `url`.
pub fn config(url: &str) -> ObjectStoreConfig {
    ObjectStoreConfig {
        url: url.to_owned(),
        part_bytes: ByteSize::bytes(PART_BYTES),
        request_timeout: HumanDuration::secs(5),
        connect_timeout: HumanDuration::secs(1),
        retry_timeout: HumanDuration::secs(5),
        ..ObjectStoreConfig::default()
    }
}

/// Settings for a prefix in the server's bucket.
pub fn s3_config(endpoint: &str, prefix: &str) -> ObjectStoreConfig {
    ObjectStoreConfig {
        endpoint: endpoint.to_owned(),
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: Some(Secret::new(SECRET.to_owned())),
        allow_http: true,
        ..config(&format!("s3://{BUCKET}/{prefix}"))
    }
}

pub fn open_with(config: &ObjectStoreConfig, metrics: &Metrics) -> Bucket {
    config.validate().unwrap();
    Bucket::open(config, metrics, Arc::new(SystemClock::new()), &|_| None)
        .unwrap()
        .unwrap()
}

pub fn open(config: &ObjectStoreConfig) -> Bucket {
    open_with(config, &Metrics::new())
}

pub fn names() -> Names {
    Names::new(SessionId(77))
}

pub fn name(names: &Names) -> String {
    names.next(ObjectKind::Data, Revision(5)).to_string()
}

pub async fn reader(bucket: &Bucket) -> Reader {
    let config = CacheConfig {
        memory_bytes: ByteSize::mib(64),
        ..CacheConfig::default()
    };
    Reader::open(bucket.clone(), &config, &Metrics::new())
        .await
        .unwrap()
}

/// A batch at an offset whose values are incompressible enough and tell the offset; timestamps are ten
/// times the offsets.
pub fn batch(base: u64, records: u64, value_bytes: usize) -> Bytes {
    let mut builder = Builder::new(Codec::None, 1 << 20);
    for offset in base..base + records {
        let mut value = offset.to_be_bytes().repeat(value_bytes / 8 + 1);
        value.truncate(value_bytes);
        let timestamp_ms = i64::try_from(offset * 10).unwrap();
        builder
            .append::<&str>(timestamp_ms, None, Some(&value), &[])
            .unwrap();
    }
    let mut batch = builder.finish(None).unwrap().to_vec();
    stamp_in_place(&mut batch, Offset(base), Epoch(3)).unwrap();
    batch.into()
}

/// Batches of `records` records each that follow one another.
pub fn batches(base: u64, count: u64, records: u64, value_bytes: usize) -> Vec<Bytes> {
    (0..count)
        .map(|n| batch(base + n * records, records, value_bytes))
        .collect()
}

pub fn start(base: u64) -> RunStart {
    RunStart {
        topic: TOPIC,
        segment: SegmentId {
            partition: PARTITION,
            epoch: Epoch(3),
            seq: 1,
        },
        base: Offset(base),
        session: SessionId(77),
    }
}

pub fn state(marker: u64) -> PartitionState {
    PartitionState {
        epochs: vec![(Epoch(3), Offset(0))],
        producers: vec![ProducerEntry {
            id: ProducerId(marker),
            epoch: 1,
            last_timestamp_ms: 5,
            batches: Vec::new(),
        }],
    }
}

/// Writes a run.
pub async fn write(
    bucket: &Bucket,
    name: &str,
    base: u64,
    batches: &[Bytes],
    end: u64,
) -> Result<Written, WriteError> {
    let mut writer = RunWriter::start(bucket, name, start(base)).await;
    for batch in batches {
        if let Err(error) = writer.write(batch.clone()).await {
            writer.abort().await;
            return Err(error);
        }
    }
    writer.finish(state(end), Offset(end)).await
}

/// What a record says of a written run.
pub fn run(name: &str, base: u64, end: u64, written: &Written) -> Run {
    Run {
        base: Offset(base),
        end: Offset(end),
        object: name.to_owned(),
        position: written.position,
        len: written.len,
        crc32c: written.crc32c,
        max_timestamp_ms: written.max_timestamp_ms,
    }
}

pub async fn list(bucket: &Bucket, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    bucket
        .list(prefix, |object| names.push(object.name))
        .await
        .unwrap();
    names.sort();
    names
}

pub fn concat(batches: &[Bytes]) -> Vec<u8> {
    batches.iter().flat_map(|batch| batch.to_vec()).collect()
}

#[track_caller]
pub fn assert_not_found<T: std::fmt::Debug>(result: Result<T, StoreError>, name: &str) {
    match result {
        Err(StoreError::NotFound { name: found, .. }) => assert_eq!(found, name),
        other => panic!("not found expected: {other:?}"),
    }
}

/// Asserts that something is corrupt and that the message names the object and all of `says`.
#[track_caller]
pub fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>, name: &str, says: &[&str]) {
    match result {
        Err(error @ StoreError::Corrupt { .. }) => {
            let message = error.to_string();
            for part in says.iter().chain([&name]) {
                assert!(message.contains(part), "{message}: {part} expected");
            }
        }
        other => panic!("corrupt expected: {other:?}"),
    }
}

/// Tries again until a value is there.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{what} does not come"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The value of a metric with its labels, 0 where it is not there.
pub fn metric(metrics: &Metrics, name_and_labels: &str) -> u64 {
    let text = metrics.encode().unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}
