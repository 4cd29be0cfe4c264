//! Steady load while members are killed: every record is followed to its acknowledgement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use forebay_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// How often records are handed over.
const BEAT: Duration = Duration::from_millis(5);
/// Records a second that a partition gets at most.
const RATE_OF_ONE: f64 = 200.0;
/// Outcomes kept between two looks at them.
const SAMPLES_MAX: usize = 4_000_000;

/// How much is written.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// Records a second over all partitions; each gets at most 200.
    pub records: u32,
    /// Bytes of each.
    pub bytes: usize,
}

/// What became of one record.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its partition.
    pub partition: u32,
    /// When it was handed over.
    pub began: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// Whether it was acknowledged.
    pub acknowledged: bool,
}

/// A producer at work.
pub struct Load {
    runtime: Runtime,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    partitions: u32,
}

impl Load {
    /// Makes a topic and begins to write to all of its partitions.
    pub fn start(endpoint: &str, topic: &str, partitions: u32, weight: Weight) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let producing = produce(
            endpoint.to_owned(),
            topic.to_owned(),
            partitions,
            weight,
            Arc::clone(&stop),
            Arc::clone(&samples),
        );
        let task = Some(runtime.spawn(producing));
        Ok(Self {
            runtime,
            task,
            stop,
            samples,
            partitions,
        })
    }

    /// What was settled since the last call.
    pub fn take(&mut self) -> anyhow::Result<Vec<Sample>> {
        if let Some(task) = self.task.take_if(|task| task.is_finished()) {
            self.runtime.block_on(task)?.context("the load ended")?;
            anyhow::bail!("the load ended by itself");
        }
        Ok(std::mem::take(&mut *self.samples.lock()))
    }

    /// Waits until every partition has acknowledged a record that was handed over after `since`,
    /// and gives all that was settled meanwhile.
    pub fn await_all(&mut self, since: Instant, within: Duration) -> anyhow::Result<Vec<Sample>> {
        let deadline = Instant::now() + within;
        let mut all = Vec::new();
        loop {
            all.extend(self.take()?);
            let seen = first_acknowledged(&all, since).len();
            if seen == self.partitions as usize {
                return Ok(all);
            }
            ensure!(
                Instant::now() < deadline,
                "only {seen} of {} partitions took a record within {within:?}",
                self.partitions
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the load and waits for what is under way.
    pub fn stop(mut self) -> anyhow::Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            self.runtime.block_on(task)??;
        }
        Ok(std::mem::take(&mut *self.samples.lock()))
    }
}

/// When each partition first acknowledged a record that was handed over after `since`.
pub fn first_acknowledged(samples: &[Sample], since: Instant) -> BTreeMap<u32, Instant> {
    let mut first = BTreeMap::new();
    let later = samples
        .iter()
        .filter(|one| one.acknowledged && one.began >= since);
    for sample in later {
        let at = first.entry(sample.partition).or_insert(sample.ended);
        *at = sample.ended.min(*at);
    }
    first
}

async fn produce(
    endpoint: String,
    topic: String,
    partitions: u32,
    weight: Weight,
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
) -> anyhow::Result<()> {
    let client = Client::connect(ClientConfig::new([&endpoint])).await?;
    client
        .admin()
        .create_topic(&topic, partitions, BTreeMap::new())
        .await?;
    let config = ProducerConfig {
        linger: Duration::from_millis(1),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).await?;
    let topic = producer.topic(&topic).await?;
    let rate = f64::from(weight.records).min(RATE_OF_ONE * f64::from(partitions));
    let value = vec![7_u8; weight.bytes];
    let (start, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = (rate * start.elapsed().as_secs_f64()) as u64;
        for number in sent..due {
            let partition = u32::try_from(number % u64::from(partitions)).unwrap_or_default();
            let began = Instant::now();
            let delivery = topic
                .send(ProducerRecord::new("", &value).partition(partition))
                .await?;
            let samples = Arc::clone(&samples);
            tokio::spawn(async move {
                let outcome = delivery.await;
                if let Err(error) = &outcome {
                    eprintln!("partition {partition}: {error}");
                }
                let mut samples = samples.lock();
                if samples.len() < SAMPLES_MAX {
                    samples.push(Sample {
                        partition,
                        began,
                        ended: Instant::now(),
                        acknowledged: outcome.is_ok(),
                    });
                }
            });
        }
        sent = sent.max(due);
        tokio::time::sleep(BEAT).await;
    }
    // What failed was counted where it failed.
    producer.flush().await.ok();
    producer.close().await.ok();
    Ok(())
}
