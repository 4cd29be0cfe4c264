//! Numbered records, what was answered about them, and what is read afterwards.
//!
//! The comparison knows nothing of how the product works: every acknowledged record must be read
//! exactly where its acknowledgement says, every offset has one value, and no value that an
//! idempotent producer wrote stands twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use forebay_client::{
    Client, Consumer, ConsumerConfig, DeliveryError, ProducerConfig, ProducerRecord, StartPosition,
};

/// Records of one writer that are not answered yet: keeps a run to what can be compared in memory.
const OPEN_MAX: usize = 50;

/// What became of the records that were sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Acknowledged: partition and offset, and the value.
    pub acknowledged: BTreeMap<(u32, u64), String>,
    /// Nobody knows whether they were written.
    pub unknown: Vec<String>,
    /// Refused, with why.
    pub failed: Vec<String>,
}

/// Writes records one after the other to partitions in turn until told to stop.
///
/// # Errors
/// Where the producer cannot be made, or a record is not even taken.
pub async fn write(
    client: Client,
    topic: String,
    partitions: u32,
    writer: u32,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Sent> {
    let config = ProducerConfig::default();
    write_as(client, topic, partitions, writer, config, stop).await
}

/// The same by a producer of one's own making.
///
/// # Errors
/// As [`write`].
pub async fn write_as(
    client: Client,
    topic: String,
    partitions: u32,
    writer: u32,
    config: ProducerConfig,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Sent> {
    let producer = client.producer(config).await?;
    let mut sent = Sent::default();
    let mut deliveries = std::collections::VecDeque::new();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let value = format!("writer {writer} record {number}");
        let partition = u32::try_from(number % u64::from(partitions))?;
        let record = ProducerRecord::new(&topic, value.as_bytes()).partition(partition);
        let delivery = producer
            .send(record)
            .await
            .with_context(|| format!("{value} was not taken"))?;
        deliveries.push_back((value, delivery));
        number += 1;
        while deliveries.len() > OPEN_MAX {
            let Some((value, delivery)) = deliveries.pop_front() else {
                break;
            };
            settle(&mut sent, value, delivery.await);
        }
    }
    for (value, delivery) in deliveries {
        settle(&mut sent, value, delivery.await);
    }
    Ok(sent)
}

fn settle(sent: &mut Sent, value: String, outcome: Result<forebay_client::RecordMetadata, DeliveryError>) {
    match outcome {
        Ok(metadata) => match metadata.offset {
            Some(offset) => {
                sent.acknowledged
                    .insert((metadata.partition, offset.get()), value);
            }
            // Acknowledged as a repetition whose offset is forgotten: it must be there, somewhere.
            None => sent.unknown.push(value),
        },
        Err(error @ DeliveryError::OutcomeUnknown { .. }) => sent.unknown.push(format!("{value}: {error}")),
        Err(error) => sent.failed.push(format!("{value}: {error}")),
    }
}

/// Reads partitions from their beginning to their end.
///
/// # Errors
/// Where something cannot be read.
pub async fn read(
    client: &Client,
    topic: &str,
    partitions: u32,
) -> anyhow::Result<BTreeMap<(u32, u64), String>> {
    let mut found = BTreeMap::new();
    let mut consumer: Consumer = client.consumer(ConsumerConfig::default())?;
    for partition in 0..partitions {
        consumer.assign(topic, partition, StartPosition::Earliest).await?;
    }
    let mut until_end = consumer.until_end().await?;
    while let Some(batch) = until_end.next_batch().await? {
        let partition = batch.partition;
        for record in batch {
            let record = record?;
            let value = String::from_utf8(record.value.clone().unwrap_or_default().to_vec())?;
            let key = (partition, record.offset.get());
            if let Some(other) = found.insert(key, value.clone()) {
                anyhow::ensure!(
                    other == value,
                    "partition {partition} has two values at {}",
                    record.offset
                );
            }
        }
    }
    Ok(found)
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Records acknowledged.
    pub acknowledged: usize,
    /// Records read.
    pub read: usize,
    /// Acknowledged records that were not read where they should be.
    pub lost: usize,
    /// Values that stand more than once.
    pub doubled: usize,
}

/// Compares what was promised with what is there.
#[must_use]
pub fn compare(sent: &[Sent], found: &BTreeMap<(u32, u64), String>) -> Verdict {
    let promised = sent.iter().flat_map(|one| &one.acknowledged);
    let lost = promised
        .clone()
        .filter(|(at, value)| found.get(at) != Some(value))
        .count();
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for value in found.values() {
        *counts.entry(value).or_default() += 1;
    }
    Verdict {
        acknowledged: promised.count(),
        read: found.len(),
        lost,
        doubled: counts.values().filter(|count| **count > 1).count(),
    }
}
