//! Clients: producers that number what they send, readers that note what they are given.
//!
//! They use the Rust SDK over the simulated network, as an application does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use forebay_client::{
    Client, ClientConfig, ConsumerConfig, Delivery, DeliveryError, Producer, ProducerConfig, ProducerRecord,
    StartPosition,
};
use forebay_history::{Event, Produced, Value};
use forebay_runtime::clock::Clock as _;
use forebay_runtime::random::{Random, SeededRandom};
use tokio::task::JoinSet;

use crate::host::GRPC;
use crate::world::World;

/// The topic that is written.
pub const TOPIC: &str = "events";
/// Records of one producer that are not answered.
const OPEN_MAX: usize = 200;
/// Records are written for so long after a repair by hand.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Largest record.
const RECORD_BYTES_MAX: u64 = 3_000;

/// Numbers handed out over the whole run.
#[derive(Debug, Default)]
pub struct Numbers {
    producers: AtomicU64,
    readers: AtomicU64,
    values: AtomicU64,
}

impl Numbers {
    fn next(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Connects a client's host to the proxies.
///
/// # Errors
/// Where none answers.
pub async fn connect(world: &World, host: &str, first: u32) -> anyhow::Result<Client> {
    let proxies = world.options.proxies;
    let endpoints = (0..proxies).map(|at| format!("proxy-{}:{GRPC}", (first + at) % proxies + 1));
    let config = ClientConfig {
        connector: Some(world.network.connector(host)),
        retry_timeout: Duration::from_secs(60),
        ..ClientConfig::new(endpoints)
    };
    Ok(Client::connect(config).await?)
}

/// The same, again and again until it works.
///
/// # Errors
/// Where it did not within two simulated minutes.
pub async fn reach(world: &World, host: &str, first: u32) -> anyhow::Result<Client> {
    let trying = async {
        loop {
            match connect(world, host, first).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), trying)
        .await
        .with_context(|| format!("{host} reaches no proxy"))
}

/// Writes until told to stop, and then until every record is answered.
pub async fn produce(world: World, number: u32, numbers: Arc<Numbers>, stop: Arc<AtomicBool>) {
    let random = SeededRandom::stream(world.seed, 0x9_0000 + u64::from(number));
    while !stop.load(Ordering::Relaxed) {
        let host = format!("producer-{number}");
        let Ok(client) = connect(&world, &host, number).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let config = ProducerConfig {
            linger: Duration::from_millis(random.range(0, 10)),
            delivery_timeout: Duration::from_secs(random.range(5, 40)),
            ..ProducerConfig::default()
        };
        let Ok(producer) = client.producer(config).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        session(&world, producer, &random, &numbers, &stop).await;
    }
}

/// One producer from its start to its end.
async fn session(
    world: &World,
    producer: Producer,
    random: &SeededRandom,
    numbers: &Numbers,
    stop: &AtomicBool,
) {
    let me = Numbers::next(&numbers.producers);
    let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
    let mut answers = JoinSet::new();
    let mut left = random.range(50, 1_500);
    while !stop.load(Ordering::Relaxed) && left > 0 {
        left -= 1;
        // Bursts and pauses.
        let pause = if random.range(0, 20) == 0 {
            Duration::from_millis(random.range(5, 300))
        } else {
            Duration::from_micros(random.range(0, 4_000))
        };
        tokio::time::sleep(pause).await;
        while answers.len() >= OPEN_MAX {
            // Panics are told by the simulation as a whole.
            let _ = answers.join_next().await;
        }
        let partition = random.range(0, u64::from(world.options.partitions));
        let sequence = sequences.entry(partition).or_default();
        *sequence += 1;
        let record = Produced {
            producer: me,
            partition,
            sequence: *sequence,
        };
        let value = Numbers::next(&numbers.values);
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(8 + random.range(0, RECORD_BYTES_MAX) as usize, value as u8);
        let key = format!("k{}", value % 17);
        world.note_len(Value(value), bytes.len() as u64);
        let number = u32::try_from(partition).unwrap_or_default();
        world.note(Event::Begun {
            record,
            value: Value(value),
        });
        let sent = producer.send(
            ProducerRecord::new(TOPIC, &bytes)
                .key(key.as_bytes())
                .partition(number)
                .timestamp_ms(world.clock.now_unix_ms()),
        );
        match sent.await {
            Ok(delivery) => {
                let world = world.clone();
                answers.spawn(async move { settle(&world, record, delivery).await });
            }
            Err(error) => {
                tracing::debug!(target: "sim", %record, %error, "not taken");
                world.note(Event::Failed { record });
            }
        }
    }
    while answers.join_next().await.is_some() {}
    if let Err(error) = producer.close().await {
        tracing::debug!(target: "sim", producer = me, %error, "producer closed");
    }
}

async fn settle(world: &World, record: Produced, delivery: Delivery) {
    let event = match delivery.await {
        Ok(metadata) => {
            let offset = metadata.offset.map(|offset| offset.get());
            tracing::debug!(target: "sim", %record, partition = record.partition, offset, "acknowledged");
            Event::Acked { record, offset }
        }
        Err(error @ DeliveryError::OutcomeUnknown { .. }) => {
            tracing::debug!(target: "sim", %record, %error, "unknown");
            Event::Unknown { record }
        }
        Err(error) => {
            tracing::debug!(target: "sim", %record, %error, "failed");
            Event::Failed { record }
        }
    };
    world.note(event);
}

/// Reads all partitions until told to stop, beginning anew where it fails.
pub async fn follow(world: World, number: u32, numbers: Arc<Numbers>, stop: Arc<AtomicBool>) {
    let host = format!("reader-{number}");
    let mut from: BTreeMap<u32, u64> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = connect(&world, &host, number).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let reader = Numbers::next(&numbers.readers);
        skip_what_went(&world, &client, &mut from).await;
        if let Err(error) = read_on(&world, &client, reader, &mut from, &stop).await {
            tracing::debug!(target: "sim", reader, error = format!("{error:#}"), "reader begins anew");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Goes on at the log's beginning where retention has passed a reader.
async fn skip_what_went(world: &World, client: &Client, from: &mut BTreeMap<u32, u64>) {
    if world.options.retention.is_none() {
        return;
    }
    let wanted = (0..world.options.partitions).map(|of| (TOPIC.to_owned(), of, StartPosition::Earliest));
    match client.admin().list_offsets(wanted.collect()).await {
        Ok(starts) => {
            for (partition, start) in (0..).zip(starts) {
                let start = start.offset.map_or(0, |offset| offset.get());
                let next = from.entry(partition).or_default();
                *next = start.max(*next);
            }
        }
        Err(error) => tracing::debug!(target: "sim", %error, "nobody says where the log begins"),
    }
}

async fn read_on(
    world: &World,
    client: &Client,
    reader: u64,
    from: &mut BTreeMap<u32, u64>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let config = ConsumerConfig {
        max_bytes: 64 << 10,
        retry_timeout: Duration::from_secs(10),
        ..ConsumerConfig::default()
    };
    let mut consumer = client.consumer(config)?;
    for partition in 0..world.options.partitions {
        let start = *from.entry(partition).or_default();
        let position = StartPosition::At(forebay_client::Offset(start));
        consumer.assign(TOPIC, partition, position).await?;
        world.note(Event::ScanBegun {
            reader,
            partition: u64::from(partition),
            from: start,
        });
    }
    while !stop.load(Ordering::Relaxed) {
        let next = tokio::time::timeout(Duration::from_secs(1), consumer.next_batch());
        let batch = match next.await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => {
                end(world, reader, from);
                return Err(error.into());
            }
            Err(_) => continue,
        };
        let partition = batch.partition;
        for record in batch {
            let record = record?;
            note_read(
                world,
                reader,
                partition,
                record.offset.get(),
                record.value.as_deref(),
            );
            from.insert(partition, record.offset.get() + 1);
        }
    }
    end(world, reader, from);
    Ok(())
}

fn end(world: &World, reader: u64, from: &BTreeMap<u32, u64>) {
    for (partition, until) in from {
        world.note(Event::ScanEnded {
            reader,
            partition: u64::from(*partition),
            until: *until,
            log_start: None,
            high_watermark: None,
        });
    }
}

fn note_read(world: &World, reader: u64, partition: u32, offset: u64, value: Option<&[u8]>) {
    let number = value.and_then(|value| value.first_chunk::<8>());
    world.note(Event::Read {
        reader,
        partition: u64::from(partition),
        offset,
        value: Value(number.map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))),
    });
}

/// Writes for a while once more, and reads everything through each proxy.
///
/// # Errors
/// Where a producer panicked.
pub async fn serve(world: &World, numbers: &Arc<Numbers>) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let producer = produce(world.clone(), 100, Arc::clone(numbers), Arc::clone(&stop));
    let producer = tokio::spawn(producer);
    tokio::time::sleep(AFTERWARDS).await;
    stop.store(true, Ordering::Relaxed);
    producer.await.context("a producer panicked")?;
    scan_all(world, numbers).await;
    Ok(())
}

/// Nothing is written any more: reads everything through each proxy, at least twice, until it works.
pub async fn scan_all(world: &World, numbers: &Numbers) {
    world.note(Event::Quiesced);
    for number in 0..world.options.proxies.max(2) {
        while let Err(error) = scan(world, number, numbers).await {
            tracing::info!(target: "sim", error = format!("{error:#}"), "scan begins anew");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Reads everything once, through the proxies in turn.
///
/// # Errors
/// Where something cannot be read.
pub async fn scan(world: &World, number: u32, numbers: &Numbers) -> anyhow::Result<()> {
    let client = reach(world, &format!("scanner-{number}"), number).await?;
    let reader = Numbers::next(&numbers.readers);
    for partition in 0..world.options.partitions {
        let mut consumer = client.consumer(ConsumerConfig::default())?;
        consumer.assign(TOPIC, partition, StartPosition::Earliest).await?;
        let begin = consumer
            .position(TOPIC, partition)
            .context("an assigned partition has no position")?
            .get();
        let of = u64::from(partition);
        world.note(Event::ScanBegun {
            reader,
            partition: of,
            from: begin,
        });
        let wanted = vec![(TOPIC.to_owned(), partition, StartPosition::Latest)];
        let ends = client.admin().list_offsets(wanted).await?;
        let end = ends.first().and_then(|found| found.offset);
        let end = end.context("a partition has no end")?.get();
        let mut until = begin;
        let mut batches = consumer.until_end().await?;
        while let Some(batch) = batches.next_batch().await? {
            for record in batch {
                let record = record?;
                note_read(
                    world,
                    reader,
                    partition,
                    record.offset.get(),
                    record.value.as_deref(),
                );
                until = record.offset.get() + 1;
            }
        }
        world.note(Event::ScanEnded {
            reader,
            partition: of,
            until,
            log_start: Some(begin),
            high_watermark: Some(end),
        });
    }
    Ok(())
}
