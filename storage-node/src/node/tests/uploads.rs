//! Copies of segments into an object store, as their owner asks for them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use forebay_meta::store::Revision;
use forebay_proto::data::replica::{UploadRequest, Uploaded};
use forebay_record::batch::{Builder, Codec, ProducerStamp, stamped_prefix};
use forebay_record::state::{PartitionState, ProducerBatch, ProducerEntry};
use forebay_record::{ProducerId, SessionId};
use forebay_tier::{
    Bucket, CacheConfig, Names, ObjectKind, ObjectStoreConfig, Reader as ObjectReader, RunStart, RunWriter,
    verify,
};
use uuid::Uuid;

use super::*;

const SESSION: SessionId = SessionId(77);
const TOPIC: Uuid = Uuid::from_u128(5);

struct Store {
    bucket: Bucket,
    names: Names,
}

impl Store {
    fn new(world: &World) -> Self {
        let config = ObjectStoreConfig {
            url: "memory://".to_owned(),
            part_bytes: ByteSize::mib(5),
            uploads_max: 1,
            ..ObjectStoreConfig::default()
        };
        let clock = Arc::new(SystemClock::new());
        let bucket = Bucket::open(&config, &world.metrics, clock, &|_| None).unwrap();
        Self {
            bucket: bucket.unwrap(),
            names: Names::new(SESSION),
        }
    }

    async fn start(&self, world: &World) -> StorageNode {
        let environment = Environment {
            bucket: Some(self.bucket.clone()),
            ..world.environment()
        };
        StorageNode::start(world.config(), environment).await.unwrap()
    }

    fn request(&self, writer: &Writer, until: u64) -> UploadRequest {
        UploadRequest {
            segment: writer.segment,
            generation: GENERATION,
            base: Offset(10),
            until: Offset(until),
            topic: TOPIC,
            session: SESSION,
            object: self.names.next(ObjectKind::Data, Revision(9)).to_string(),
        }
    }
}

impl Client {
    async fn upload(&mut self, upload: &UploadRequest) -> Result<Uploaded, NodeFailure> {
        let upload = upload.clone();
        self.send(ToNode::Upload { request: 8, upload }).await;
        loop {
            match self.recv().await {
                FromNode::Uploaded { request: 8, result } => return result,
                // What the copy finds is told to everybody.
                FromNode::Damaged(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A batch of real records by a producer, at an offset of epoch 2.
fn real_batch(base: u64, records: u32, producer: u64, sequence: i32, len: usize) -> Bytes {
    let mut builder = Builder::new(Codec::None, 1 << 20);
    for record in 0..records {
        let value = vec![record as u8; len];
        builder
            .append(
                1_000 + base as i64,
                None::<&[u8]>,
                Some(&value),
                &[] as &[(&str, Option<&[u8]>)],
            )
            .unwrap();
    }
    let stamp = ProducerStamp {
        id: ProducerId(producer),
        epoch: 0,
        sequence,
    };
    let batch = builder.finish(Some(stamp)).unwrap();
    let prefix = stamped_prefix(&batch, Offset(base), Epoch(2)).unwrap();
    [&prefix[..], &batch[prefix.len()..]].concat().into()
}

/// Writes frames of one batch each, 3 records and about 300 kB, from offset 10 on.
async fn write(client: &mut Client, frames: u32) -> (Writer, Vec<Bytes>) {
    let mut writer = Writer::new(1, 10);
    client.append(writer.open()).await;
    let mut batches = Vec::new();
    for number in 0..frames {
        let base = writer.next.0;
        let (producer, sequence) = (u64::from(number % 2), number as i32 / 2 * 3);
        let batch = real_batch(base, 3, producer, sequence, 100_000);
        client
            .append(writer.data_of(vec![batch.clone()], 1, base + 3))
            .await;
        batches.push(batch);
    }
    client.acked(&writer).await;
    (writer, batches)
}

#[tokio::test]
async fn a_segment_is_copied_up_to_its_sealed_end_with_the_state_that_its_owner_has_there() {
    let world = World::new().await;
    let store = Store::new(&world);
    let node = store.start(&world).await;
    let mut client = Client::connect(&node).await;
    let (writer, batches) = write(&mut client, 30).await;
    // A deposed owner committed more here than the next one sealed.
    client
        .send(ToNode::Commit(vec![(writer.segment, writer.next)]))
        .await;
    let upload = store.request(&writer, 10 + 3 * 27);
    let uploaded = client.upload(&upload).await.unwrap();

    let partition = writer.segment.partition;
    let random = SeededRandom::new(3);
    let info = verify(&store.bucket, &upload.object, partition, &uploaded, &random)
        .await
        .unwrap();
    assert_eq!(
        (info.base, info.end, info.batches),
        (Offset(10), upload.until, 27)
    );
    assert_eq!(uploaded.max_timestamp_ms, 1_000 + 10 + 3 * 26);
    let range = uploaded.position..uploaded.position + uploaded.len;
    let bytes = store.bucket.get_range(&upload.object, range).await.unwrap();
    assert!(bytes == batches[..27].concat(), "the run is not what was written");

    let reader = ObjectReader::open(store.bucket.clone(), &CacheConfig::default(), &Metrics::new())
        .await
        .unwrap();
    let run = forebay_meta::model::Run {
        base: upload.base,
        end: upload.until,
        object: upload.object.clone(),
        position: uploaded.position,
        len: uploaded.len,
        crc32c: uploaded.crc32c,
        max_timestamp_ms: uploaded.max_timestamp_ms,
    };
    // Of each producer the newest five of its batches below the end: 14 and 13 of them.
    let entry = |id: u64, count: u64| ProducerEntry {
        id: ProducerId(id),
        epoch: 0,
        last_timestamp_ms: 1_010 + 3 * (2 * (count - 1) + id) as i64,
        batches: (count - 5..count)
            .map(|at| ProducerBatch {
                first_sequence: at as i32 * 3,
                last_sequence: at as i32 * 3 + 2,
                base_offset: Offset(10 + 3 * (2 * at + id)),
                max_timestamp_ms: 1_010 + 3 * (2 * at + id) as i64,
            })
            .collect(),
    };
    let expected = PartitionState {
        epochs: vec![(Epoch(2), Offset(10))],
        producers: vec![entry(0, 14), entry(1, 13)],
    };
    assert_eq!(reader.state(&run).await.unwrap(), expected);
    reader.close().await;
    node.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_copied_is_refused_by_its_reason() {
    let world = World::new().await;
    let store = Store::new(&world);
    let node = store.start(&world).await;
    let mut client = Client::connect(&node).await;
    let (writer, _) = write(&mut client, 4).await;
    let good = store.request(&writer, 22);
    let change = |change: fn(&mut UploadRequest)| {
        let mut upload = store.request(&writer, 22);
        change(&mut upload);
        upload
    };
    for (upload, failure) in [
        (change(|one| one.segment.seq = 9), NodeFailure::NotFound),
        (
            change(|one| one.generation = Generation(2)),
            NodeFailure::WrongGeneration(GENERATION),
        ),
        (
            change(|one| one.until = Offset(23)),
            NodeFailure::Behind(Offset(22)),
        ),
        // The sealed end does not lie between two batches, or the base is another.
        (change(|one| one.until = Offset(21)), NodeFailure::Corrupt),
        (change(|one| one.base = Offset(12)), NodeFailure::Corrupt),
        (
            change(|one| one.object = "cluster".to_owned()),
            NodeFailure::ObjectStore,
        ),
        (change(|one| one.session = SessionId(1)), NodeFailure::ObjectStore),
    ] {
        assert_eq!(client.upload(&upload).await, Err(failure), "{upload:?}");
        assert!(store.bucket.head(&upload.object).await.is_err(), "{upload:?}");
    }
    client.upload(&good).await.unwrap();
    node.shutdown().await;

    // A damaged frame is never copied.
    let path = world.data().join(crate::journal::files::journal_name(1));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let node = store.start(&world).await;
    let at = 700_000;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    file.sync_all().unwrap();
    let mut client = Client::connect(&node).await;
    let damaged = store.request(&writer, 22);
    assert_eq!(client.upload(&damaged).await, Err(NodeFailure::Corrupt));
    assert!(store.bucket.head(&damaged.object).await.is_err());
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_without_an_object_store_says_so() {
    let world = World::new().await;
    let store = Store::new(&world);
    let node = world.start().await;
    let mut client = Client::connect(&node).await;
    let (writer, _) = write(&mut client, 1).await;
    let upload = store.request(&writer, 13);
    assert_eq!(client.upload(&upload).await, Err(NodeFailure::ObjectStore));
    node.shutdown().await;
}

#[tokio::test]
async fn copies_are_few_at_a_time_and_end_with_the_session_that_asked() {
    let world = World::new().await;
    let store = Store::new(&world);
    let node = store.start(&world).await;
    let mut client = Client::connect(&node).await;
    let (writer, _) = write(&mut client, 2).await;
    // The store's only place for an upload is taken.
    let start = RunStart {
        topic: TOPIC,
        segment: segment(5),
        base: Offset(0),
        session: SESSION,
    };
    let other = RunWriter::start(&store.bucket, "d/other", start).await;
    for request in 0..5 {
        let upload = store.request(&writer, 16);
        client.send(ToNode::Upload { request, upload }).await;
    }
    let overloaded = FromNode::Uploaded {
        request: 4,
        result: Err(NodeFailure::Overloaded),
    };
    assert_eq!(client.recv().await, overloaded);
    let running = || {
        let text = world.metrics.encode().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("forebay_storage_uploads_running "))
            .unwrap();
        line.ends_with(" 4")
            .then_some(4)
            .or(line.ends_with(" 0").then_some(0))
    };
    assert_eq!(running(), Some(4));
    drop(client);
    let ended = async {
        while running() != Some(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.unwrap();
    drop(other);
    let mut client = Client::connect(&node).await;
    client.upload(&store.request(&writer, 16)).await.unwrap();
    node.shutdown().await;
}
