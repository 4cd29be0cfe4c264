//! One process with everything in it, used through its gRPC address as a client would.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::server::{Running, StandaloneOptions, start_standalone};
use forebay_client::{
    Client, ClientConfig, Compression, ConsumerConfig, Offset, ProducerConfig, ProducerRecord, StartPosition,
};
use forebay_proto::error::Failure;
use forebay_proto::v1::data_client::DataClient;
use forebay_proto::v1::{self, ErrorCode, partition_produce::Data};
use forebay_record::batch::{Builder, Codec};
use forebay_runtime::config::ByteSize;
use forebay_runtime::random::{Random, SeededRandom};
use tonic::transport::Channel;

struct Standalone {
    running: Running,
    client: Client,
    raw: DataClient<Channel>,
    folder: tempfile::TempDir,
}

fn options(folder: &std::path::Path) -> StandaloneOptions {
    let free = ([127, 0, 0, 1], 0).into();
    let mut options = StandaloneOptions {
        data_dir: folder.join("data"),
        grpc_listen: free,
        admin_listen: free,
        ..StandaloneOptions::default()
    };
    options.config.storage.journal_file_bytes = ByteSize::mib(16);
    options
}

impl Standalone {
    async fn start() -> Self {
        Self::over(tempfile::tempdir().unwrap()).await
    }

    async fn over(folder: tempfile::TempDir) -> Self {
        let options = options(folder.path());
        Self::with(options, folder).await
    }

    async fn with(options: StandaloneOptions, folder: tempfile::TempDir) -> Self {
        let running = start_standalone(options).await.unwrap();
        let address = running.grpc_address().to_string();
        let client = Client::connect(ClientConfig::new([address.clone()]))
            .await
            .unwrap();
        let raw = DataClient::connect(format!("http://{address}")).await.unwrap();
        Self {
            running,
            client,
            raw,
            folder,
        }
    }

    async fn topic(&self, name: &str, partitions: u32) {
        self.client
            .admin()
            .create_topic(name, partitions, BTreeMap::new())
            .await
            .unwrap();
    }

    async fn write(&self, topic: &str, values: std::ops::Range<u32>) {
        let producer = self.client.producer(ProducerConfig::default()).await.unwrap();
        for value in values {
            let value = value.to_string();
            producer
                .enqueue(ProducerRecord::new(topic, value.as_bytes()).partition(0))
                .await
                .unwrap();
        }
        producer.close().await.unwrap();
    }

    async fn read(&self, topic: &str, from: StartPosition) -> Vec<String> {
        let mut consumer = self.client.consumer(ConsumerConfig::default()).unwrap();
        consumer.assign(topic, 0, from).await.unwrap();
        let mut values = Vec::new();
        let mut until_end = consumer.until_end().await.unwrap();
        while let Some(batch) = until_end.next_batch().await.unwrap() {
            for record in batch {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
        values
    }

    async fn produce(&mut self, topic: &str, partition: u32, data: Data) -> Result<u64, Failure> {
        let request = v1::ProduceRequest {
            request_id: 1,
            acks: v1::Acks::All as i32,
            timeout_ms: 5_000,
            partitions: vec![v1::PartitionProduce {
                topic: topic.to_owned(),
                partition,
                data: Some(data),
                ..v1::PartitionProduce::default()
            }],
        };
        let mut response = self.raw.produce(request).await?.into_inner();
        let one = response.partitions.remove(0);
        one.error.map_or(Ok(one.base_offset), |error| Err(error.into()))
    }

    async fn fetch(
        &mut self,
        topic: &str,
        partition: u32,
        offset: u64,
    ) -> Result<v1::PartitionFetched, Failure> {
        let request = v1::FetchRequest {
            partitions: vec![v1::PartitionFetch {
                topic: topic.to_owned(),
                partition,
                offset,
                max_bytes: 0,
            }],
            min_bytes: 1,
            max_bytes: 1 << 20,
            max_wait_ms: 100,
        };
        let one = self.raw.fetch(request).await?.into_inner().partitions.remove(0);
        match one.error.clone() {
            Some(error) => Err(error.into()),
            None => Ok(one),
        }
    }

    async fn stop(self) -> tempfile::TempDir {
        drop(self.raw);
        drop(self.client);
        self.running.shutdown().await.unwrap();
        self.folder
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn batch() -> Vec<u8> {
    let mut builder = Builder::new(Codec::None, 1024);
    for value in ["one", "two", "three"] {
        builder
            .append(
                1_000,
                None,
                Some(value.as_bytes()),
                &[] as &[(&str, Option<&[u8]>)],
            )
            .unwrap();
    }
    builder.finish(None).unwrap().to_vec()
}

/// Puts the right checksum into a batch that was tampered with.
fn seal(batch: &mut [u8]) {
    let crc = forebay_record::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_read_in_order_and_survives_a_restart() {
    let standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    standalone.write("t", 0..5_000).await;
    assert_eq!(
        standalone.read("t", StartPosition::Earliest).await,
        numbers(0..5_000)
    );
    let folder = standalone.stop().await;

    let standalone = Standalone::over(folder).await;
    assert_eq!(
        standalone.read("t", StartPosition::Earliest).await,
        numbers(0..5_000),
        "read from the journal"
    );
    standalone.write("t", 5_000..6_000).await;
    assert_eq!(
        standalone.read("t", StartPosition::At(Offset(4_990))).await,
        numbers(4_990..6_000)
    );
    assert!(standalone.read("t", StartPosition::Latest).await.is_empty());
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_comes_back_as_it_went_in() {
    let standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    let mut expected = Vec::new();
    for (round, compression) in [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ]
    .into_iter()
    .enumerate()
    {
        let config = ProducerConfig {
            compression,
            ..ProducerConfig::default()
        };
        let producer = standalone.client.producer(config).await.unwrap();
        for number in 0..500 {
            let value = format!("{round} {number} {}", "x".repeat(number % 50));
            producer
                .enqueue(ProducerRecord::new("t", value.as_bytes()))
                .await
                .unwrap();
            expected.push(value);
        }
        producer.close().await.unwrap();
    }
    assert_eq!(standalone.read("t", StartPosition::Earliest).await, expected);
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_leads_to_the_first_record_at_or_after_it() {
    let standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    let producer = standalone
        .client
        .producer(ProducerConfig::default())
        .await
        .unwrap();
    for number in 0..1_000_i64 {
        let value = number.to_string();
        let record = ProducerRecord::new("t", value.as_bytes()).timestamp_ms(1_000_000 + number * 10);
        producer.enqueue(record).await.unwrap();
    }
    producer.close().await.unwrap();
    let found = standalone
        .read("t", StartPosition::Timestamp(1_000_000 + 5_005))
        .await;
    assert_eq!(found, numbers(501..1_000));
    let admin = standalone.client.admin();
    let after = admin
        .list_offsets(vec![("t".to_owned(), 0, StartPosition::Timestamp(9_999_999_999))])
        .await
        .unwrap();
    assert_eq!(after[0].offset, None, "no record is that young");
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn structured_records_are_encoded_by_the_proxy() {
    let mut standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    let record = |value: &'static str| v1::Record {
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::from_static(value.as_bytes())),
        timestamp_ms: 0,
        headers: vec![],
    };
    let records = v1::Records {
        records: vec![record("a"), record("b")],
        compression: v1::Compression::Zstd as i32,
    };
    assert_eq!(standalone.produce("t", 0, Data::Records(records)).await, Ok(0));
    assert_eq!(standalone.read("t", StartPosition::Earliest).await, ["a", "b"]);
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_malformed_batch_is_refused_by_name_and_writes_nothing() {
    let mut standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    let tampered = |change: &dyn Fn(&mut Vec<u8>), sealed: bool| {
        let mut bytes = batch();
        change(&mut bytes);
        if sealed {
            seal(&mut bytes);
        }
        Bytes::from(bytes)
    };
    let bomb = {
        let mut builder = Builder::new(Codec::Zstd, 1024);
        let zeros = vec![0; 80 << 20];
        builder
            .append(1, None, Some(&zeros), &[] as &[(&str, Option<&[u8]>)])
            .unwrap();
        builder.finish(None).unwrap()
    };
    let large = {
        let mut builder = Builder::new(Codec::None, 10 << 20);
        builder
            .append(1, None, Some(&vec![7; 9 << 20]), &[] as &[(&str, Option<&[u8]>)])
            .unwrap();
        builder.finish(None).unwrap()
    };
    let cases: Vec<(&str, Bytes, &[ErrorCode])> = vec![
        (
            "wrong checksum",
            tampered(&|b| b[30] ^= 1, false),
            &[ErrorCode::CorruptBatch],
        ),
        (
            "wrong count",
            tampered(&|b| b[60] = 2, true),
            &[ErrorCode::InvalidBatch, ErrorCode::CorruptBatch],
        ),
        (
            "negative length",
            tampered(&|b| b[8] = 0xff, true),
            &[ErrorCode::CorruptBatch, ErrorCode::InvalidBatch],
        ),
        (
            "overlong",
            tampered(&|b| b[11] = b[11].wrapping_add(9), true),
            &[ErrorCode::CorruptBatch, ErrorCode::InvalidBatch],
        ),
        (
            "record length",
            tampered(&|b| b[61] = 0xfe, true),
            &[ErrorCode::CorruptBatch, ErrorCode::InvalidBatch],
        ),
        (
            "unknown codec",
            tampered(&|b| b[22] = 5, true),
            &[ErrorCode::UnsupportedCompression],
        ),
        (
            "magic 0",
            tampered(&|b| b[16] = 0, true),
            &[ErrorCode::UnsupportedFormat],
        ),
        (
            "magic 1",
            tampered(&|b| b[16] = 1, true),
            &[ErrorCode::UnsupportedFormat],
        ),
        (
            "empty",
            Bytes::new(),
            &[
                ErrorCode::CorruptBatch,
                ErrorCode::InvalidBatch,
                ErrorCode::InvalidRequest,
            ],
        ),
        (
            "bomb",
            bomb,
            &[
                ErrorCode::BatchTooLarge,
                ErrorCode::InvalidBatch,
                ErrorCode::CorruptBatch,
            ],
        ),
        ("over-size", large, &[ErrorCode::BatchTooLarge]),
    ];
    for (name, bytes, allowed) in cases {
        let failure = standalone.produce("t", 0, Data::Batch(bytes)).await.unwrap_err();
        assert!(allowed.contains(&failure.code), "{name}: {failure:?}");
        assert!(failure.message.len() > 10, "{name}: {failure:?}");
    }
    assert!(standalone.read("t", StartPosition::Earliest).await.is_empty());
    assert_eq!(
        standalone.produce("t", 0, Data::Batch(batch().into())).await,
        Ok(0)
    );
    standalone.stop().await;
}

/// A batch of one record, which no codec makes smaller.
fn random_batch(bytes: usize) -> Data {
    let mut value = vec![0; bytes];
    SeededRandom::new(bytes as u64).fill(&mut value);
    let mut builder = Builder::new(Codec::None, bytes + 1024);
    builder
        .append(1_000, None, Some(&value), &[] as &[(&str, Option<&[u8]>)])
        .unwrap();
    Data::Batch(builder.finish(None).unwrap())
}

/// Files of 1 MiB hold batches of up to 640 KiB, and topics allow 8 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_too_large_for_the_journals_files_is_refused_at_once_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.config.storage.journal_file_bytes = ByteSize::mib(1);
    let mut standalone = Standalone::with(options, folder).await;
    standalone.topic("t", 1).await;
    let began = Instant::now();
    let failure = standalone
        .produce("t", 0, random_batch(900 << 10))
        .await
        .unwrap_err();
    assert_eq!(failure.code, ErrorCode::BatchTooLarge, "{failure:?}");
    for part in ["at most 655272", "storage node 1", "storage.journal_file_bytes"] {
        assert!(failure.message.contains(part), "{part}: {failure:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let small = standalone.produce("t", 0, Data::Batch(batch().into())).await;
    assert_eq!(small, Ok(0));
    assert_eq!(
        standalone.produce("t", 0, random_batch(639 << 10)).await,
        Ok(3),
        "one that just fits"
    );

    // What arrives together is put into frames that fit as well.
    let raw = standalone.raw.clone();
    let produces = (0..16).map(|at| {
        let mut raw = raw.clone();
        async move {
            let request = v1::ProduceRequest {
                request_id: at,
                acks: v1::Acks::All as i32,
                timeout_ms: 20_000,
                partitions: vec![v1::PartitionProduce {
                    topic: "t".to_owned(),
                    data: Some(random_batch(200 << 10)),
                    ..v1::PartitionProduce::default()
                }],
            };
            raw.produce(request).await.unwrap().into_inner().partitions
        }
    });
    let mut offsets = Vec::new();
    for partitions in futures_util::future::join_all(produces).await {
        assert_eq!(partitions[0].error, None);
        offsets.push(partitions[0].base_offset);
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (4..20).collect::<Vec<_>>());

    // With larger files a restart is all it takes.
    let folder = standalone.stop().await;
    let mut standalone = Standalone::over(folder).await;
    assert_eq!(standalone.produce("t", 0, random_batch(900 << 10)).await, Ok(20));
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_is_refused_by_name() {
    let mut standalone = Standalone::start().await;
    standalone.topic("t", 1).await;
    let good = || Data::Batch(batch().into());
    let failure = standalone.produce("nope", 0, good()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::UnknownTopic);
    assert!(failure.message.contains("nope"), "{failure:?}");
    let failure = standalone.produce("t", 7, good()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::UnknownPartition);
    assert!(failure.message.contains('7'), "{failure:?}");
    assert_eq!(
        standalone.fetch("nope", 0, 0).await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );

    standalone.write("t", 0..10).await;
    let failure = standalone.fetch("t", 0, 999).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::OffsetOutOfRange);
    assert!(
        failure.message.contains("999") && failure.message.contains("10"),
        "{failure:?}"
    );
    let at_end = standalone.fetch("t", 0, 10).await.unwrap();
    assert_eq!((at_end.high_watermark, at_end.batches.len()), (10, 0));

    let admin = standalone.client.admin();
    assert!(
        admin.create_topic("t", 1, BTreeMap::new()).await.is_err(),
        "it exists"
    );
    assert!(
        admin
            .create_topic("a/b", 1, BTreeMap::new())
            .await
            .unwrap_err()
            .to_string()
            .contains("a/b")
    );
    assert!(admin.create_topic("u", 0, BTreeMap::new()).await.is_err());
    let config = BTreeMap::from([("no.such.key".to_owned(), "1".to_owned())]);
    assert!(
        admin
            .create_topic("u", 1, config)
            .await
            .unwrap_err()
            .to_string()
            .contains("no.such.key")
    );
    admin.delete_topic("t").await.unwrap();
    assert!(admin.describe_topic("t").await.is_err());
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_folder_is_refused() {
    let standalone = Standalone::start().await;
    let error = start_standalone(options(standalone.folder.path()))
        .await
        .map(|_| ())
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("data"), "{text}");
    standalone.topic("t", 1).await;
    standalone.write("t", 0..10).await;
    standalone.stop().await;
}
