//! The programs of a budget run: one writes numbered records at a fixed rate, one reads them all
//! back and checks each.
//!
//! A record is its partition, its number in the partition, and bytes that follow from both, so that
//! a lost, repeated, moved or damaged record is found by reading alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use forebay_client::{
    Acks, Client, ClientConfig, ConsumerConfig, ProducerConfig, ProducerRecord, StartPosition,
};
use forebay_runtime::config::ByteSize;

use crate::pack::{VALUE_BYTES, Values};
use crate::pipe::{await_end, say};

/// How often records are handed over.
const BEAT: Duration = Duration::from_millis(20);
/// Most bytes that the producer holds.
const BUFFER_BYTES: usize = 32 << 20;
/// How often the writer says how far it is, and the reader too.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Writes numbered records at a fixed rate.
#[derive(Debug, Args)]
pub struct Trickle {
    /// The proxy.
    #[arg(long)]
    pub endpoint: String,
    /// The topic; it is made.
    #[arg(long)]
    pub topic: String,
    /// Its partitions.
    #[arg(long)]
    pub partitions: u32,
    /// Bytes of values a second, over all partitions.
    #[arg(long)]
    pub rate: ByteSize,
    /// Bytes of values in all.
    #[arg(long)]
    pub bytes: ByteSize,
    /// Settings of the topic, `key=value`.
    #[arg(long = "set")]
    pub settings: Vec<String>,
}

/// Reads all records of a topic and checks them.
#[derive(Debug, Args)]
pub struct Check {
    /// The proxy.
    #[arg(long)]
    pub endpoint: String,
    /// The topic.
    #[arg(long)]
    pub topic: String,
    /// Its partitions.
    #[arg(long)]
    pub partitions: u32,
    /// Records that each partition must hold.
    #[arg(long)]
    pub records: u64,
}

/// The values of all records, by partition and number.
struct Numbered {
    pool: Bytes,
    span: u64,
    value: Vec<u8>,
}

impl Numbered {
    fn new() -> Self {
        let mut values = Values::new();
        let mut pool = Vec::new();
        for _ in 0..512 {
            pool.extend_from_slice(values.take());
        }
        Self {
            span: (pool.len() - VALUE_BYTES) as u64,
            pool: pool.into(),
            value: Vec::with_capacity(VALUE_BYTES),
        }
    }

    fn value(&mut self, partition: u32, number: u64) -> &[u8] {
        let at = number
            .wrapping_mul(7_919)
            .wrapping_add(u64::from(partition).wrapping_mul(104_729))
            % self.span;
        let at = usize::try_from(at).unwrap_or_default();
        self.value.clear();
        self.value.extend_from_slice(&partition.to_le_bytes());
        self.value.extend_from_slice(&number.to_le_bytes());
        let rest = VALUE_BYTES - self.value.len();
        self.value
            .extend_from_slice(self.pool.get(at..at + rest).unwrap_or_default());
        &self.value
    }
}

impl Trickle {
    /// Writes everything and leaves.
    ///
    /// # Errors
    /// Where anything is refused, or its outcome is unknown.
    pub fn run(&self) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let client = Client::connect(ClientConfig::new([&self.endpoint])).await?;
            let mut settings = BTreeMap::new();
            for setting in &self.settings {
                let (key, value) = setting.split_once('=').context("--set wants key=value")?;
                settings.insert(key.to_owned(), value.to_owned());
            }
            client
                .admin()
                .create_topic(&self.topic, self.partitions, settings)
                .await?;
            let producer = client
                .producer(ProducerConfig {
                    buffer_bytes_max: BUFFER_BYTES,
                    acks: Acks::All,
                    ..ProducerConfig::default()
                })
                .await?;
            let topic = producer.topic(&self.topic).await?;
            let mut numbered = Numbered::new();
            let total = self.bytes.as_u64() / VALUE_BYTES as u64;
            let (start, mut sent, mut said) = (Instant::now(), 0_u64, Instant::now());
            while sent < total {
                let due =
                    (self.rate.as_u64() as f64 * start.elapsed().as_secs_f64()) as u64 / VALUE_BYTES as u64;
                for number in sent..due.min(total) {
                    let partition = u32::try_from(number % u64::from(self.partitions)).unwrap_or_default();
                    let value = numbered.value(partition, number / u64::from(self.partitions));
                    topic
                        .enqueue(ProducerRecord::new("", value).partition(partition))
                        .await?;
                }
                sent = sent.max(due.min(total));
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    say(&format!("sent {}", sent * VALUE_BYTES as u64))?;
                }
                tokio::time::sleep(BEAT).await;
            }
            producer.flush().await?;
            producer.close().await?;
            say(&format!("done {sent}"))?;
            await_end()
        })
    }
}

impl Check {
    /// Reads everything and leaves.
    ///
    /// # Errors
    /// Where a record is missing, repeated, out of place or damaged.
    pub fn run(&self) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let client = Client::connect(ClientConfig::new([&self.endpoint])).await?;
            let mut numbered = Numbered::new();
            let (mut checked, mut said) = (0_u64, Instant::now());
            for partition in 0..self.partitions {
                let mut consumer = client.consumer(ConsumerConfig::default())?;
                consumer
                    .assign(&self.topic, partition, StartPosition::Earliest)
                    .await?;
                let mut next = 0;
                let mut until_end = consumer.until_end().await?;
                while let Some(batch) = until_end.next_batch().await? {
                    for record in batch {
                        let record = record?;
                        let expected = numbered.value(partition, next);
                        ensure!(
                            record.offset.0 == next && record.value.as_deref() == Some(expected),
                            "partition {partition} offset {}: not record {next}",
                            record.offset
                        );
                        next += 1;
                    }
                    if said.elapsed() >= SAY_EVERY {
                        said = Instant::now();
                        say(&format!("checked {}", (checked + next) * VALUE_BYTES as u64))?;
                    }
                }
                ensure!(
                    next == self.records,
                    "partition {partition} holds {next} records, {} were acknowledged",
                    self.records
                );
                checked += next;
            }
            say(&format!("done {checked}"))?;
            await_end()
        })
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
