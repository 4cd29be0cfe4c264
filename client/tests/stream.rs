//! The client against a gRPC server that keeps a small log in memory: real sockets, real batches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_client::{
    Acks, Client, ClientConfig, Compression, ConsumeError, ConsumerConfig, DeliveryError, ErrorCode, Offset,
    OnOutOfRange, Producer, ProducerConfig, ProducerRecord, ProducerStamp, SendError, StartPosition,
    WriteError,
};
use forebay_proto::error::Failure;
use forebay_proto::v1;
use forebay_proto::v1::data_server::{Data, DataServer};
use forebay_record::Epoch;
use forebay_record::batch::{Builder, Codec, Header, Limits, sequence_after, stamp_in_place, validate};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const PARTITIONS: u32 = 2;
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Log {
    batches: Vec<(Header, Bytes)>,
    end: u64,
    start: u64,
    /// Next sequence, by producer.
    producers: HashMap<u64, i32>,
}

/// What the server does to the next produce requests, in turn.
enum Fault {
    Refuse(ErrorCode),
    /// Applies, and breaks the connection instead of answering.
    Lose,
    Forget,
}

#[derive(Default)]
struct State {
    logs: [Log; PARTITIONS as usize],
    faults: Vec<Fault>,
    producers: u64,
    requests: usize,
}

#[derive(Clone)]
struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Server {
    async fn start() -> (Self, SocketAddr) {
        let server = Self {
            state: Arc::default(),
            changed: watch::Sender::new(()),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = DataServer::new(server.clone()).max_decoding_message_size(72 << 20);
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        (server, address)
    }

    fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// None where the connection is to break.
    fn produce(&self, request: v1::ProduceRequest) -> Option<v1::ProduceResponse> {
        let mut state = self.state.lock();
        state.requests += 1;
        let fault = (!state.faults.is_empty()).then(|| state.faults.remove(0));
        if let Some(Fault::Forget) = fault {
            state.logs.iter_mut().for_each(|log| log.producers.clear());
        }
        let mut answer = v1::ProduceResponse {
            request_id: request.request_id,
            partitions: Vec::new(),
        };
        for part in request.partitions {
            let mut done = v1::PartitionProduced {
                topic: part.topic.clone(),
                partition: part.partition,
                ..Default::default()
            };
            let outcome = match &fault {
                Some(Fault::Refuse(code)) => Err(Failure::new(*code, "told to")),
                _ => state.logs[part.partition as usize].append(part),
            };
            match outcome {
                Ok(base) => done.base_offset = base,
                Err(failure) => done.error = Some(failure.into()),
            }
            answer.partitions.push(done);
        }
        self.changed.send_replace(());
        (!matches!(fault, Some(Fault::Lose))).then_some(answer)
    }

    fn fetch_now(&self, request: &v1::FetchRequest) -> (v1::FetchResponse, usize) {
        let state = self.state.lock();
        let mut left = request.max_bytes as usize;
        let partitions: Vec<_> = request
            .partitions
            .iter()
            .map(|wanted| {
                let log = &state.logs[wanted.partition as usize];
                let mut answer = v1::PartitionFetched {
                    topic: wanted.topic.clone(),
                    partition: wanted.partition,
                    high_watermark: log.end,
                    log_start: log.start,
                    ..Default::default()
                };
                if wanted.offset < log.start || wanted.offset > log.end {
                    answer.error = Some(Failure::new(ErrorCode::OffsetOutOfRange, "not there").into());
                    return answer;
                }
                let mut bytes = BytesMut::new();
                for (header, batch) in log
                    .batches
                    .iter()
                    .filter(|(header, _)| header.end_offset().0 > wanted.offset)
                {
                    if batch.len() > left && !bytes.is_empty() {
                        break;
                    }
                    left = left.saturating_sub(header.len_bytes());
                    bytes.extend_from_slice(batch);
                }
                answer.batches = bytes.freeze();
                answer
            })
            .collect();
        let urgent = partitions
            .iter()
            .map(|part| part.batches.len() + usize::from(part.error.is_some()))
            .sum();
        (v1::FetchResponse { partitions }, urgent)
    }
}

impl Log {
    fn append(&mut self, part: v1::PartitionProduce) -> Result<u64, Failure> {
        let Some(v1::partition_produce::Data::Batch(batch)) = part.data else {
            panic!("not a batch")
        };
        let header = validate(&batch, &Limits::default())
            .map_err(|error| Failure::new(ErrorCode::CorruptBatch, error.to_string()))?;
        if let Some(stamp) = header.producer() {
            let known = self.producers.contains_key(&stamp.id.0);
            if !known && stamp.sequence != 0 {
                return Err(Failure::new(
                    ErrorCode::UnknownProducer,
                    format!("{} is unknown", stamp.id),
                ));
            }
            let next = self.producers.entry(stamp.id.0).or_default();
            if stamp.sequence < *next {
                let same = |(header, _): &&(Header, Bytes)| header.producer() == Some(stamp);
                return Ok(self
                    .batches
                    .iter()
                    .find(same)
                    .expect("a known duplicate")
                    .0
                    .base_offset()
                    .0);
            }
            if stamp.sequence > *next {
                let message = format!("sequence {} after {next}", stamp.sequence);
                return Err(Failure::new(ErrorCode::OutOfOrderSequence, message));
            }
            *next += header.record_count() as i32;
        }
        let base = self.end;
        let mut stamped = BytesMut::from(batch.as_ref());
        stamp_in_place(&mut stamped, Offset(base), Epoch(1)).unwrap();
        self.end += u64::from(header.record_count());
        self.batches
            .push((Header::parse(&stamped).unwrap(), stamped.freeze()));
        Ok(base)
    }
}

#[tonic::async_trait]
impl Data for Server {
    type ProduceStreamStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::ProduceResponse, Status>> + Send>>;

    async fn produce(&self, _: Request<v1::ProduceRequest>) -> Result<Response<v1::ProduceResponse>, Status> {
        Err(Status::unimplemented("the client streams"))
    }

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (server, mut requests) = (self.clone(), request.into_inner());
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let answered = request.acks() != v1::Acks::None;
                let sent = match server.produce(request) {
                    Some(answer) if answered => answers.send(Ok(answer)).await,
                    Some(_) => Ok(()),
                    None => {
                        let _gone = answers.send(Err(Status::unavailable("told to break"))).await;
                        return;
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch(&self, request: Request<v1::FetchRequest>) -> Result<Response<v1::FetchResponse>, Status> {
        let request = request.into_inner();
        let mut changed = self.changed.subscribe();
        let wait = Duration::from_millis(request.max_wait_ms.into());
        let until = tokio::time::Instant::now() + wait;
        loop {
            let (answer, bytes) = self.fetch_now(&request);
            if bytes >= request.min_bytes as usize {
                return Ok(Response::new(answer));
            }
            if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return Ok(Response::new(answer));
            }
        }
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        let state = self.state.lock();
        let partitions = request.into_inner().partitions.into_iter().map(|wanted| {
            let log = &state.logs[wanted.partition as usize];
            let offset = match wanted.position.unwrap() {
                v1::partition_position::Position::Earliest(_) => Some(log.start),
                v1::partition_position::Position::Latest(_) => Some(log.end),
                v1::partition_position::Position::TimestampMs(ms) => log
                    .batches
                    .iter()
                    .find(|(header, _)| header.max_timestamp() >= ms)
                    .map(|(header, _)| header.base_offset().0),
            };
            v1::PartitionOffset {
                topic: wanted.topic,
                partition: wanted.partition,
                offset,
                ..Default::default()
            }
        });
        Ok(Response::new(v1::ListOffsetsResponse {
            partitions: partitions.collect(),
        }))
    }

    async fn metadata(
        &self,
        request: Request<v1::MetadataRequest>,
    ) -> Result<Response<v1::MetadataResponse>, Status> {
        let topics = request.into_inner().topics.into_iter().map(|name| {
            let error = (name != "t").then(|| Failure::new(ErrorCode::UnknownTopic, "no such topic").into());
            v1::TopicMetadata {
                name,
                id: Bytes::new(),
                partitions: PARTITIONS,
                batch_bytes_max: 1 << 20,
                error,
            }
        });
        Ok(Response::new(v1::MetadataResponse {
            cluster: "test".to_owned(),
            topics: topics.collect(),
        }))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let mut state = self.state.lock();
        state.producers += 1;
        Ok(Response::new(v1::InitProducerResponse {
            producer_id: state.producers,
            producer_epoch: 0,
            error: None,
        }))
    }
}

async fn connect(address: SocketAddr) -> Client {
    Client::connect(ClientConfig::new([address.to_string()]))
        .await
        .unwrap()
}

fn small() -> ProducerConfig {
    let retry_backoff = Duration::from_millis(1);
    ProducerConfig {
        batch_bytes: 1024,
        linger: Duration::from_millis(1),
        retry_backoff,
        ..Default::default()
    }
}

/// All values of a partition, in order.
async fn values(client: &Client, partition: u32) -> Vec<u32> {
    let mut consumer = client
        .consumer(ConsumerConfig {
            max_bytes: 4096,
            ..Default::default()
        })
        .unwrap();
    consumer
        .assign("t", partition, StartPosition::Earliest)
        .await
        .unwrap();
    let mut values = Vec::new();
    let mut all = consumer.until_end().await.unwrap();
    while let Some(batch) = within(all.next_batch()).await.unwrap() {
        for record in batch {
            let record = record.unwrap();
            assert_eq!(record.offset.0, values.len() as u64);
            values.push(u32::from_be_bytes(
                record.value.unwrap().as_ref().try_into().unwrap(),
            ));
        }
    }
    values
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("nothing happened in time")
}

async fn enqueue(producer: &Producer, values: std::ops::Range<u32>) {
    for value in values {
        let bytes = value.to_be_bytes();
        producer
            .enqueue(ProducerRecord::new("t", &bytes).partition(0))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_is_sent_is_read_with_every_compression() {
    for compression in Compression::ALL {
        let (_server, address) = Server::start().await;
        let client = connect(address).await;
        let producer = client
            .producer(ProducerConfig {
                compression,
                ..small()
            })
            .await
            .unwrap();
        let headers = [("h", Some(&b"1"[..])), ("h", None)];
        let mut deliveries = Vec::new();
        for value in 0..1000u32 {
            let bytes = value.to_be_bytes();
            let record = ProducerRecord::new("t", &bytes)
                .partition(1)
                .key(b"k")
                .headers(&headers)
                .timestamp_ms(77);
            deliveries.push(producer.send(record).await.unwrap());
        }
        within(producer.flush()).await.unwrap();
        for (offset, delivery) in (0..).zip(deliveries) {
            let metadata = within(delivery).await.unwrap();
            assert_eq!(
                (metadata.partition, metadata.offset, metadata.timestamp_ms),
                (1, Some(Offset(offset)), 77)
            );
        }
        assert_eq!(values(&client, 1).await, (0..1000).collect::<Vec<_>>());
        within(producer.close()).await.unwrap();
    }
}

#[tokio::test]
async fn refusals_and_lost_connections_neither_lose_nor_repeat_nor_reorder() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    enqueue(&producer, 0..2000).await;
    server.fail([
        Fault::Refuse(ErrorCode::NotOwner),
        Fault::Lose,
        Fault::Refuse(ErrorCode::OutcomeUnknown),
        Fault::Lose,
        Fault::Refuse(ErrorCode::Overloaded),
    ]);
    enqueue(&producer, 2000..4000).await;
    within(producer.flush()).await.unwrap();
    assert_eq!(values(&client, 0).await, (0..4000).collect::<Vec<_>>());
    assert!(server.state.lock().faults.is_empty());
}

#[tokio::test]
async fn a_forgotten_producer_goes_on_under_a_new_id() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    enqueue(&producer, 0..500).await;
    within(producer.flush()).await.unwrap();
    server.fail([Fault::Forget]);
    enqueue(&producer, 500..1500).await;
    within(producer.flush()).await.unwrap();
    assert_eq!(values(&client, 0).await, (0..1500).collect::<Vec<_>>());
    assert_eq!(server.state.lock().producers, 2);
}

#[tokio::test]
async fn a_rejected_batch_fails_alone_and_its_records_are_counted() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    server.fail([Fault::Refuse(ErrorCode::InvalidBatch)]);
    enqueue(&producer, 0..1000).await;
    let error = within(producer.flush()).await.unwrap_err();
    assert_eq!(error.unknown, 0);
    assert!(
        matches!(&error.first, DeliveryError::Refused { refusal, .. } if refusal.code == ErrorCode::InvalidBatch)
    );
    let expected: Vec<_> = (error.failed as u32..1000).collect();
    assert_eq!(values(&client, 0).await, expected);
    assert_eq!(
        server.state.lock().producers,
        1,
        "a clean refusal needs no new id"
    );
}

#[tokio::test]
async fn without_idempotence_a_lost_answer_is_reported_as_unknown() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client
        .producer(ProducerConfig {
            idempotent: false,
            ..small()
        })
        .await
        .unwrap();
    server.fail([Fault::Lose]);
    let delivery = producer
        .send(ProducerRecord::new("t", b"0000").partition(0))
        .await
        .unwrap();
    assert!(within(delivery).await.unwrap_err().is_unknown());
    assert_eq!(values(&client, 0).await.len(), 1, "it was written all the same");
}

#[tokio::test]
async fn nothing_is_awaited_without_acknowledgement() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client
        .producer(ProducerConfig {
            acks: Acks::None,
            ..small()
        })
        .await
        .unwrap();
    let delivery = producer
        .send(ProducerRecord::new("t", b"0000").partition(0))
        .await
        .unwrap();
    assert_eq!(within(delivery).await.unwrap().offset, None);
    let mut changed = server.changed.subscribe();
    within(async {
        while server.state.lock().requests == 0 {
            changed.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_buffer_makes_senders_wait_and_nothing_is_lost() {
    let (_server, address) = Server::start().await;
    let client = connect(address).await;
    // Room for two batches, and a linger that only impatience ends.
    let linger = Duration::from_secs(30);
    let config = ProducerConfig {
        buffer_bytes_max: 2048,
        linger,
        ..small()
    };
    let producer = client.producer(config).await.unwrap();
    within(async {
        for value in 0..300u32 {
            let bytes = value.to_be_bytes();
            let record = ProducerRecord::new("t", &bytes).partition(value % PARTITIONS);
            producer.enqueue(record).await.unwrap();
        }
    })
    .await;
    within(producer.close()).await.unwrap();
    let both = [values(&client, 0).await, values(&client, 1).await].concat();
    assert_eq!(both.len(), 300);
}

#[tokio::test]
async fn many_records_of_one_partition_are_taken_at_once() {
    let (_server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    let topic = producer.topic("t").await.unwrap();
    let bytes: Vec<_> = (0..5000u32).map(u32::to_be_bytes).collect();
    let records = bytes.iter().map(|value| ProducerRecord::new("t", value));
    assert_eq!(within(topic.enqueue_all(1, records)).await.unwrap(), 5000);
    within(producer.flush()).await.unwrap();
    assert_eq!(values(&client, 1).await, (0..5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_by_name() {
    let (_server, address) = Server::start().await;
    let producer = connect(address)
        .await
        .producer(ProducerConfig::default())
        .await
        .unwrap();
    let error = producer
        .enqueue(ProducerRecord::new("nope", b""))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SendError::Topic { refusal, .. } if refusal.code == ErrorCode::UnknownTopic),
        "{error}"
    );
    let error = producer
        .enqueue(ProducerRecord::new("t", b"").partition(PARTITIONS))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        SendError::UnknownPartition {
            partition: PARTITIONS,
            ..
        }
    ));
    let error = producer
        .enqueue(ProducerRecord::new("t", &vec![0; 2 << 20]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SendError::RecordTooLarge { max: 1_048_576, .. }),
        "{error}"
    );
    let clone = producer.clone();
    within(producer.close()).await.unwrap();
    assert_eq!(
        clone.enqueue(ProducerRecord::new("t", b"")).await.unwrap_err(),
        SendError::Closed
    );
}

#[tokio::test]
async fn keyless_records_visit_all_partitions_and_keyed_ones_stay() {
    let (server, address) = Server::start().await;
    let producer = connect(address).await.producer(small()).await.unwrap();
    for _ in 0..1000 {
        producer
            .enqueue(ProducerRecord::new("t", b"keyless record"))
            .await
            .unwrap();
    }
    within(producer.flush()).await.unwrap();
    let before: Vec<_> = server.state.lock().logs.iter().map(|log| log.end).collect();
    assert!(before.iter().all(|end| *end > 0), "{before:?}");
    for _ in 0..1000 {
        producer
            .enqueue(ProducerRecord::new("t", b"keyed").key(b"k"))
            .await
            .unwrap();
    }
    within(producer.flush()).await.unwrap();
    let grown = server
        .state
        .lock()
        .logs
        .iter()
        .zip(before)
        .filter(|(log, before)| log.end > *before)
        .count();
    assert_eq!(grown, 1);
}

#[tokio::test]
async fn a_consumer_starts_within_a_batch_seeks_and_waits_for_more() {
    let (_server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    enqueue(&producer, 0..100).await;
    within(producer.flush()).await.unwrap();
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    assert_eq!(
        consumer.next_batch().await.unwrap_err(),
        ConsumeError::NothingAssigned
    );
    consumer
        .assign("t", 0, StartPosition::At(Offset(42)))
        .await
        .unwrap();
    let first = within(consumer.next_batch())
        .await
        .unwrap()
        .into_iter()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(first.offset, Offset(42));
    assert_eq!(consumer.position("t", 0), Some(Offset(100)));
    assert_eq!(consumer.high_watermark("t", 0), Some(Offset(100)));

    let mut waiting = tokio::spawn(async move {
        let batch = consumer.next_batch().await.unwrap();
        (consumer, batch.into_iter().next().unwrap().unwrap().offset)
    });
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "there is nothing yet");
    enqueue(&producer, 100..101).await;
    let (mut consumer, offset) = within(waiting).await.unwrap();
    assert_eq!(offset, Offset(100));

    consumer.seek("t", 0, StartPosition::Timestamp(0)).await.unwrap();
    let raw = within(consumer.next_raw()).await.unwrap();
    assert_eq!((raw.from, raw.header.base_offset()), (Offset(0), Offset(0)));
    assert_eq!(raw.bytes.len(), raw.header.len_bytes());
    consumer
        .seek("t", 0, StartPosition::Timestamp(i64::MAX))
        .await
        .unwrap();
    assert_eq!(consumer.position("t", 0), Some(Offset(101)));
}

#[tokio::test]
async fn an_offset_that_is_not_there_is_named_or_replaced() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    enqueue(&producer, 0..1000).await;
    within(producer.flush()).await.unwrap();
    let start = server.state.lock().logs[0].batches[3].0.base_offset();
    server.state.lock().logs[0].start = start.0;
    for (policy, expected) in [
        (OnOutOfRange::Earliest, start),
        (OnOutOfRange::Latest, Offset(1000)),
    ] {
        let mut consumer = client
            .consumer(ConsumerConfig {
                on_out_of_range: policy,
                ..Default::default()
            })
            .unwrap();
        consumer
            .assign("t", 0, StartPosition::At(Offset(5000)))
            .await
            .unwrap();
        let next = tokio::spawn(async move { consumer.next_batch().await.unwrap().header().base_offset() });
        if policy == OnOutOfRange::Latest {
            // Sent until the consumer, which starts at the end it finds, has seen one.
            within(async {
                while !next.is_finished() {
                    enqueue(&producer, 0..1).await;
                    producer.flush().await.unwrap();
                }
            })
            .await;
        }
        assert!(within(next).await.unwrap() >= expected, "{policy:?}");
    }
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    consumer
        .assign("t", 0, StartPosition::At(Offset(1)))
        .await
        .unwrap();
    let error = within(consumer.next_batch()).await.unwrap_err();
    assert!(
        matches!(error, ConsumeError::OffsetOutOfRange { offset: Offset(1), log_start, .. } if log_start == start),
        "{error}"
    );
}

#[tokio::test]
async fn a_damaged_batch_is_reported_and_not_skipped() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    enqueue(&producer, 0..1000).await;
    within(producer.flush()).await.unwrap();
    let (good, damaged) = {
        let (header, batch) = &mut server.state.lock().logs[0].batches[2];
        let good = batch.clone();
        let mut bytes = BytesMut::from(batch.as_ref());
        bytes[100] ^= 1;
        *batch = bytes.freeze();
        (good, *header)
    };
    let mut consumer = client.consumer(ConsumerConfig::default()).unwrap();
    consumer.assign("t", 0, StartPosition::Earliest).await.unwrap();
    let error = loop {
        if let Err(error) = within(consumer.next_batch()).await {
            break error;
        }
    };
    assert!(
        matches!(&error, ConsumeError::Corrupt { offset, .. } if *offset == damaged.base_offset()),
        "{error}"
    );
    server.state.lock().logs[0].batches[2].1 = good;
    assert_eq!(
        within(consumer.next_batch())
            .await
            .unwrap()
            .header()
            .base_offset(),
        damaged.base_offset()
    );
}

#[tokio::test]
async fn a_dropped_producer_settles_what_it_held() {
    let (_server, address) = Server::start().await;
    let client = connect(address).await;
    let config = ProducerConfig {
        linger: Duration::from_secs(30),
        ..Default::default()
    };
    let producer = client.producer(config).await.unwrap();
    let delivery = producer.send(ProducerRecord::new("t", b"0000")).await.unwrap();
    drop(producer);
    assert!(matches!(
        within(delivery).await,
        Err(DeliveryError::Dropped { .. })
    ));
}

#[tokio::test]
async fn a_client_takes_the_endpoint_that_answers() {
    let (_server, address) = Server::start().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::connect(ClientConfig::new([dead.to_string(), address.to_string()]))
        .await
        .unwrap();
    let metadata = client.admin().metadata(&["t"]).await.unwrap();
    assert_eq!(metadata.topics[0].partitions, PARTITIONS);
}

/// A ready batch of these numbers as records.
fn ready(numbers: std::ops::Range<u32>, stamp: Option<ProducerStamp>) -> Bytes {
    let mut builder = Builder::new(Codec::None, 1024);
    for number in numbers {
        let none: [(&str, Option<&[u8]>); 0] = [];
        builder
            .append(1, None, Some(&number.to_be_bytes()), &none)
            .unwrap();
    }
    builder.finish(stamp).unwrap()
}

/// The story: a program is killed after its batches were written and before it noted that; a second
/// run sends them once more under the same numbers, through a connection that breaks in between.
#[tokio::test]
async fn ready_batches_sent_again_by_another_run_are_written_once() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let stamp = {
        let producer = client.producer(small()).await.unwrap();
        producer.new_producer_id().await.unwrap()
    };
    for (run, end) in [(0, 20), (1, 40)] {
        let producer = client.producer(small()).await.unwrap();
        let writer = producer.partition_writer("t", 1).await.unwrap();
        if run == 1 {
            server.fail([Fault::Lose, Fault::Refuse(ErrorCode::NotOwner)]);
        }
        let mut deliveries = Vec::new();
        for at in (0..end).step_by(4) {
            let sequence = sequence_after(stamp.sequence, at as i32);
            let batch = ready(at..at + 4, Some(ProducerStamp { sequence, ..stamp }));
            let space = writer.reserve(batch.len()).await.unwrap();
            deliveries.push((at, writer.write(batch, space).unwrap()));
        }
        for (at, delivery) in deliveries {
            assert_eq!(
                delivery.await.unwrap().offset,
                Some(Offset(at.into())),
                "run {run}"
            );
        }
        assert_eq!(producer.retries().count > 0, run == 1);
        assert_eq!(producer.retries().last, None);
    }
    assert_eq!(values(&client, 1).await, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_no_numbered_batch_is_not_taken_and_a_refusal_closes_the_writer() {
    let (server, address) = Server::start().await;
    let client = connect(address).await;
    let producer = client.producer(small()).await.unwrap();
    let missing = producer.partition_writer("t", PARTITIONS).await.unwrap_err();
    assert!(
        matches!(missing, WriteError::Send(SendError::UnknownPartition { .. })),
        "{missing}"
    );
    let unnumbered = ProducerConfig {
        idempotent: false,
        ..small()
    };
    let unnumbered = client.producer(unnumbered).await.unwrap();
    let refused = unnumbered.partition_writer("t", 0).await.unwrap_err();
    assert_eq!(refused, WriteError::NotIdempotent);

    let stamp = producer.new_producer_id().await.unwrap();
    let writer = producer.partition_writer("t", 0).await.unwrap();
    let too_much = writer.reserve(usize::MAX).await.unwrap_err();
    assert!(
        matches!(too_much, WriteError::Send(SendError::RecordTooLarge { .. })),
        "{too_much}"
    );
    let good = ready(0..4, Some(stamp));
    let longer = Bytes::from([good.as_ref(), b"x"].concat());
    for (batch, wanted) in [
        (Bytes::from_static(b"nonsense"), "not a batch"),
        (longer, "bytes given"),
        (ready(0..4, None), "without producer id"),
    ] {
        let space = writer.reserve(1024).await.unwrap();
        let error = writer.write(batch, space).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }

    server.fail([Fault::Refuse(ErrorCode::InvalidBatch)]);
    let space = writer.reserve(1024).await.unwrap();
    let refused = writer.write(good.clone(), space).unwrap().await.unwrap_err();
    assert!(matches!(refused, DeliveryError::Refused { .. }), "{refused}");
    let space = writer.reserve(1024).await.unwrap();
    let closed = writer.write(good, space).unwrap_err();
    assert_eq!(closed, WriteError::Send(SendError::Closed));
    assert!(values(&client, 0).await.is_empty());
}
