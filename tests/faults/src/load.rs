//! Producers and readers of a round: the real client, and every answer noted.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_client::{
    Client, ClientConfig, ConsumeError, ConsumedBatch, Consumer, ConsumerConfig, Offset, ProducerConfig,
    ProducerRecord, StartPosition,
};
use forebay_history::{Event, Produced, Value};
use forebay_record::partition_for_key;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::recorder::Recorder;

/// The topic of a round.
pub const TOPIC: &str = "faults";
/// Its partitions.
pub const PARTITIONS: NonZeroU32 = NonZeroU32::new(6).unwrap();
/// Keys of one producer.
const KEYS: u64 = 40;
/// Records of one producer that are not answered yet.
const OPEN_MAX: usize = 2_000;
/// Records at a time, and the time between.
const BURST: u64 = 5;
const BURST_EVERY: Duration = Duration::from_millis(25);
/// How long a record is tried.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of these endpoints, which are tried from the given one on.
///
/// # Errors
/// Where none answers.
pub async fn client(endpoints: &[SocketAddr], first: usize) -> anyhow::Result<Client> {
    let mut endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    let first = first.checked_rem(endpoints.len()).unwrap_or(0);
    endpoints.rotate_left(first);
    Ok(Client::connect(ClientConfig::new(endpoints)).await?)
}

/// A record's key and value. Some values are long, so that segments fill up.
fn record(producer: u64, number: u64) -> (String, String) {
    let key = format!("key {producer}-{}", number % KEYS);
    let filler = if number.is_multiple_of(11) { 8_000 } else { 600 };
    let value = format!("{producer}-{number} {}", "x".repeat(filler));
    (key, value)
}

/// Sends numbered records with keys until told to stop, and waits for every answer.
///
/// # Errors
/// Where the producer cannot be made.
pub async fn produce(
    client: Client,
    producer: u64,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = ProducerConfig {
        delivery_timeout: DELIVERY_TIMEOUT,
        request_timeout: Duration::from_secs(10),
        ..ProducerConfig::default()
    };
    let sender = client.producer(config).await.context("no producer")?;
    let answers = TaskTracker::new();
    let open = Arc::new(Semaphore::new(OPEN_MAX));
    let mut tick = tokio::time::interval(BURST_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 0;
    while !stop.is_cancelled() {
        tick.tick().await;
        for _ in 0..BURST {
            let permit = tokio::select! {
                permit = Arc::clone(&open).acquire_owned() => permit?,
                () = stop.cancelled() => break,
            };
            let (key, value) = record(producer, number);
            let partition = partition_for_key(key.as_bytes(), PARTITIONS);
            let produced = Produced {
                producer,
                partition: u64::from(partition),
                sequence: number,
            };
            number += 1;
            recorder.begun(produced, Value::of(Some(key.as_bytes()), value.as_bytes()));
            let new = ProducerRecord::new(TOPIC, value.as_bytes()).key(key.as_bytes());
            let delivery = match sender.send(new).await {
                Ok(delivery) => delivery,
                Err(error) => {
                    recorder.settled(produced, false);
                    recorder.complain(format!("a record was not taken: {error}"));
                    continue;
                }
            };
            let recorder = Arc::clone(&recorder);
            answers.spawn(async move {
                match delivery.await {
                    Ok(metadata) => {
                        if metadata.partition != partition {
                            recorder.complain(format!(
                                "{produced} went to partition {}, its key says {partition}",
                                metadata.partition
                            ));
                        }
                        recorder.acked(produced, metadata.offset.map(Offset::get));
                    }
                    Err(error) => recorder.settled(produced, error.is_unknown()),
                }
                drop(permit);
            });
        }
    }
    answers.close();
    answers.wait().await;
    Ok(())
}

/// Reads all partitions at their tail until told to stop.
///
/// # Errors
/// Where the consumer cannot be made.
pub async fn tail(
    client: Client,
    reader: u64,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut consumer = client.consumer(ConsumerConfig::default())?;
    for partition in 0..PARTITIONS.get() {
        consumer
            .assign(TOPIC, partition, StartPosition::At(Offset(0)))
            .await?;
        recorder.note(Event::ScanBegun {
            reader,
            partition: u64::from(partition),
            from: 0,
        });
    }
    loop {
        let batch = tokio::select! {
            batch = consumer.next_batch() => batch,
            () = stop.cancelled() => return Ok(()),
        };
        match batch {
            Ok(batch) => take(&recorder, reader, batch),
            Err(error) => {
                judge(&recorder, &format!("reader {reader}"), &error);
                // Errors that come at once shall not be asked for in a tight loop.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for partition in 0..PARTITIONS.get() {
            let position = consumer.position(TOPIC, partition).unwrap_or_default().get();
            recorder.reached(reader, partition, position);
        }
    }
}

/// Notes what a reader was given.
fn take(recorder: &Recorder, reader: u64, batch: ConsumedBatch) {
    let partition = batch.partition;
    for record in batch {
        match record {
            Ok(record) => recorder.note(Event::Read {
                reader,
                partition: u64::from(partition),
                offset: record.offset.get(),
                value: Value::of(record.key.as_deref(), record.value.as_deref().unwrap_or_default()),
            }),
            Err(error) => recorder.complain(format!("reader {reader}: {error}")),
        }
    }
}

/// An error of a reader is a fault of the product where waiting does not help.
fn judge(recorder: &Recorder, who: &str, error: &ConsumeError) {
    match error {
        ConsumeError::OffsetOutOfRange { .. }
        | ConsumeError::Corrupt { .. }
        | ConsumeError::OutOfOrder { .. } => recorder.complain(format!("{who}: {error}")),
        _ => {}
    }
}

/// Reads one partition from its beginning to where it ends now.
///
/// # Errors
/// Where it cannot be read within the limit.
pub async fn scan(
    client: &Client,
    reader: u64,
    partition: u32,
    recorder: &Recorder,
    limit: Duration,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut consumer = client.consumer(ConsumerConfig::default())?;
    loop {
        match scan_once(&mut consumer, reader, partition, recorder, deadline).await {
            Ok(()) => return Ok(()),
            Err(error) if tokio::time::Instant::now() < deadline => {
                if let Some(error) = error.downcast_ref() {
                    judge(
                        recorder,
                        &format!("scan {reader} of partition {partition}"),
                        error,
                    );
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => {
                return Err(error.context(format!("partition {partition} cannot be read within {limit:?}")));
            }
        }
    }
}

async fn scan_once(
    consumer: &mut Consumer,
    reader: u64,
    partition: u32,
    recorder: &Recorder,
    deadline: tokio::time::Instant,
) -> anyhow::Result<()> {
    let at = u64::from(partition);
    consumer.assign(TOPIC, partition, StartPosition::Earliest).await?;
    let from = consumer.position(TOPIC, partition).unwrap_or_default().get();
    // Noted before the end is asked for: what is acknowledged until now must be below it.
    recorder.note(Event::ScanBegun {
        reader,
        partition: at,
        from,
    });
    let mut until_end = tokio::time::timeout_at(deadline, consumer.until_end()).await??;
    while let Some(batch) = tokio::time::timeout_at(deadline, until_end.next_batch()).await?? {
        take(recorder, reader, batch);
    }
    drop(until_end);
    let until = consumer.position(TOPIC, partition).unwrap_or_default().get();
    recorder.note(Event::ScanEnded {
        reader,
        partition: at,
        until,
        log_start: Some(from),
        high_watermark: Some(until),
    });
    Ok(())
}
