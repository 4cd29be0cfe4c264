//! A cache that gives wrong bytes.

#![allow(clippy::unwrap_used)]

use forebay_record::batch::{Builder, Codec};
use forebay_record::{Epoch, PartitionId, SegmentId, SessionId};
use forebay_runtime::clock::SystemClock;

use super::*;
use crate::config::ObjectStoreConfig;
use crate::run_writer::{RunStart, RunWriter};

/// A damaged cache costs a request, never an answer.
#[tokio::test]
async fn what_the_cache_has_damaged_is_read_past_it() {
    let config = ObjectStoreConfig {
        url: "memory://".to_owned(),
        ..ObjectStoreConfig::default()
    };
    let metrics = Metrics::new();
    let bucket = Bucket::open(&config, &metrics, Arc::new(SystemClock::new()), &|_| None)
        .unwrap()
        .unwrap();
    let mut builder = Builder::new(Codec::None, 1 << 10);
    builder.append::<&str>(5, None, Some(b"value"), &[]).unwrap();
    let batch = builder.finish(None).unwrap();
    let start = RunStart {
        topic: uuid::Uuid::nil(),
        segment: SegmentId {
            partition: PartitionId(1),
            epoch: Epoch(1),
            seq: 1,
        },
        base: Offset(0),
        session: SessionId(1),
    };
    let mut writer = RunWriter::start(&bucket, "d/1", start).await;
    writer.write(batch.clone()).await.unwrap();
    let written = writer.finish(PartitionState::default(), Offset(1)).await.unwrap();
    let run = Run {
        base: Offset(0),
        end: Offset(1),
        object: "d/1".to_owned(),
        position: written.position,
        len: written.len,
        crc32c: written.crc32c,
        max_timestamp_ms: written.max_timestamp_ms,
    };
    let reader = Reader::open(bucket, &CacheConfig::default(), &metrics)
        .await
        .unwrap();
    reader.damage_cache(&run).await;
    assert_eq!(reader.read(&run, Offset(0), Offset(1), 9).await.unwrap(), batch);
    reader.damage_cache(&run).await;
    assert_eq!(reader.lookup(&run, Offset(0), 5).await.unwrap(), Some(Offset(0)));
    let text = metrics.encode().unwrap();
    assert!(text.contains("forebay_object_cache_failures_total 2\n"), "{text}");
}
