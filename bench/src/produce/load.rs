//! The programs that make the load on the product, through its own Rust client.
//!
//! Each says `ready` after its warm-up, waits for a line, runs, and prints what it counted.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use forebay_client::{
    Acks, Client, ClientConfig, Compression, Consumer, ConsumerConfig, Delivery, Offset, Partitioner,
    Producer, ProducerConfig, ProducerRecord, StartPosition, TopicProducer,
};
use forebay_record::batch::Header;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::measure::{ClientCounts, Latencies};
use crate::pack::{Load, Packer, Values};
use crate::pipe::{await_end, await_line, say};
use crate::process::own_cpu;

/// Batches beyond the window that the producer has memory for: those being filled.
const FILLING: usize = 2;

/// Writes the load with acks=all and no compression; partitions take turns batch by batch.
#[derive(Debug, Args)]
pub struct Send {
    /// The proxy.
    #[arg(long)]
    pub endpoint: String,
    /// The topic.
    #[arg(long)]
    pub topic: String,
    /// Make the topic first.
    #[arg(long)]
    pub create: bool,
    /// What to send.
    #[command(flatten)]
    pub load: Load,
}

/// Reads the newest records of a topic.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The proxy.
    #[arg(long)]
    pub endpoint: String,
    /// The topic.
    #[arg(long)]
    pub topic: String,
    /// Its partitions.
    #[arg(long)]
    pub partitions: u32,
    /// Records of each partition that one pass reads, counted from the end.
    #[arg(long)]
    pub records: u64,
    /// How often to read them; each pass has a consumer of its own, ready before the clock starts.
    #[arg(long)]
    pub passes: usize,
    /// Whether a first pass, which is not measured, warms up.
    #[arg(long)]
    pub warm_up: bool,
}

impl Send {
    /// Sends everything and leaves.
    ///
    /// # Errors
    /// Where anything is refused, or its outcome is unknown.
    pub fn run(&self) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let client = Client::connect(ClientConfig::new([&self.endpoint])).await?;
            if self.create {
                client
                    .admin()
                    .create_topic(&self.topic, self.load.partitions, BTreeMap::new())
                    .await?;
            }
            let producer = client.producer(self.config()).await?;
            let mut sender = Sender::new(&self.load, producer.topic(&self.topic).await?)?;
            sender.send(&producer, self.load.warm_up_bytes).await?;
            say("ready")?;
            await_line()?;
            let counts = sender.send(&producer, self.load.bytes).await?;
            say(&format!("done {}", serde_json::to_string(&counts)?))?;
            producer.close().await?;
            await_end()
        })
    }

    fn config(&self) -> ProducerConfig {
        ProducerConfig {
            batch_bytes: self.load.batch_bytes,
            buffer_bytes_max: (self.load.window() + FILLING) * self.load.batch_bytes,
            compression: Compression::None,
            acks: Acks::All,
            // One partition until its batch is full, then the next: batches are full and leave
            // at once, as the raw pipe's do.
            partitioner: Partitioner::Sticky,
            ..ProducerConfig::default()
        }
    }
}

struct Sender {
    topic: TopicProducer,
    values: Values,
    /// Of one full batch, as the builder makes them.
    batch_records: u64,
    batch_bytes: u64,
    window: usize,
}

impl Sender {
    fn new(load: &Load, topic: TopicProducer) -> anyhow::Result<Self> {
        let batch = Packer::new(load).batch(0)?;
        let batch_records = u64::from(Header::parse(&batch)?.record_count());
        Ok(Self {
            topic,
            values: Values::new(),
            batch_records,
            batch_bytes: batch.len() as u64,
            window: load.window(),
        })
    }

    /// Sends whole batches' worth of records, and waits until all are acknowledged. The first
    /// record of each is followed to its acknowledgement, and that is its batch's latency.
    async fn send(&mut self, producer: &Producer, bytes: u64) -> anyhow::Result<ClientCounts> {
        let batches = bytes.div_ceil(self.batch_bytes);
        let mut latencies = Latencies::new()?;
        let mut in_flight = FuturesUnordered::new();
        let (start, cpu) = (Instant::now(), own_cpu());
        for _ in 0..batches {
            if in_flight.len() >= self.window
                && let Some(latency) = in_flight.next().await
            {
                latencies.record(latency?);
            }
            let began = Instant::now();
            let delivery = self
                .topic
                .send(ProducerRecord::new("", self.values.take()))
                .await?;
            in_flight.push(delivered(delivery, began));
            for _ in 1..self.batch_records {
                self.topic
                    .enqueue(ProducerRecord::new("", self.values.take()))
                    .await?;
            }
            // Lets the sending task run before the next batch is filled.
            tokio::task::yield_now().await;
        }
        producer.flush().await?;
        while let Some(latency) = in_flight.next().await {
            latencies.record(latency?);
        }
        Ok(ClientCounts {
            bytes: batches * self.batch_bytes,
            records: batches * self.batch_records,
            elapsed: start.elapsed(),
            latency_us: Some(latencies.quantiles()),
            cpu: own_cpu() - cpu,
        })
    }
}

async fn delivered(delivery: Delivery, began: Instant) -> anyhow::Result<std::time::Duration> {
    delivery.await?;
    Ok(began.elapsed())
}

impl Fetch {
    /// Reads everything and leaves.
    ///
    /// # Errors
    /// Where a partition cannot be read, or fewer records come than were asked for.
    pub fn run(&self) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let client = Client::connect(ClientConfig::new([&self.endpoint])).await?;
            let starts = self.starts(&client).await?;
            if self.warm_up {
                self.pass(&mut self.consumer(&client, &starts).await?, &starts)
                    .await?;
            }
            let mut consumers = Vec::with_capacity(self.passes);
            for _ in 0..self.passes {
                consumers.push(self.consumer(&client, &starts).await?);
            }
            say("ready")?;
            await_line()?;
            let (start, cpu) = (Instant::now(), own_cpu());
            let (mut bytes, mut records) = (0, 0);
            for mut consumer in consumers {
                let read = self.pass(&mut consumer, &starts).await?;
                bytes += read.0;
                records += read.1;
            }
            let counts = ClientCounts {
                bytes,
                records,
                elapsed: start.elapsed(),
                latency_us: None,
                cpu: own_cpu() - cpu,
            };
            say(&format!("done {}", serde_json::to_string(&counts)?))?;
            await_end()
        })
    }

    /// Where to begin in each partition, and where it ends.
    async fn starts(&self, client: &Client) -> anyhow::Result<Vec<(Offset, Offset)>> {
        let mut probe = client.consumer(ConsumerConfig::default())?;
        let mut starts = Vec::new();
        for partition in 0..self.partitions {
            probe
                .assign(&self.topic, partition, StartPosition::Latest)
                .await?;
            let end = probe
                .position(&self.topic, partition)
                .context("no position after assigning")?;
            starts.push((Offset(end.0.saturating_sub(self.records)), end));
        }
        Ok(starts)
    }

    async fn consumer(&self, client: &Client, starts: &[(Offset, Offset)]) -> anyhow::Result<Consumer> {
        let mut consumer = client.consumer(ConsumerConfig::default())?;
        for (partition, (start, _)) in (0..).zip(starts) {
            consumer
                .assign(&self.topic, partition, StartPosition::At(*start))
                .await?;
        }
        Ok(consumer)
    }

    /// Reads up to the ends; checks every checksum and that every record came. Bytes and records.
    async fn pass(&self, consumer: &mut Consumer, starts: &[(Offset, Offset)]) -> anyhow::Result<(u64, u64)> {
        let (mut bytes, mut records) = (0, 0);
        let mut until_end = consumer.until_end().await?;
        while let Some(batch) = until_end.next_batch().await? {
            bytes += batch.header().len_bytes() as u64;
            records += u64::from(batch.header().record_count());
        }
        let expected = starts.iter().map(|(start, end)| end.since(*start)).sum::<u64>();
        // The first batch of a partition may begin before the start.
        anyhow::ensure!(
            records >= expected,
            "{records} records came, {expected} were asked for"
        );
        Ok((bytes, records))
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
