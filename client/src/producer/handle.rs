//! What users hold: sending, flushing, closing.
//!
//! A record that finds room costs no wait. Where memory is used up, sending waits for batches to
//! be settled, at most for the delivery timeout.

use std::iter::Peekable;
use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use forebay_proto::v1::{self, ErrorCode};
use forebay_record::batch::{BuildError, Codec, ProducerStamp};
use parking_lot::MutexGuard;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::accumulate::{Accumulator, batch_bytes_least, record_bytes_most};
use super::config::ProducerConfig;
use super::partition::{Choice, choose};
use super::record::ProducerRecord;
use super::sender::{Sender, init_producer};
use super::settlement::{Delivery, FlushError};
use super::shared::{Facts, Partition, Retries, Shared, TOPICS_MAX, Topic};
use super::writer::{PartitionWriter, WriteError};
use crate::admin::metadata;
use crate::backoff::Spread;
use crate::config::ConfigError;
use crate::error::Refusal;
use crate::link::{ConnectError, Link};
use crate::trace::{HEADERS_BYTES_MAX, Publish, Tracer};

/// A sender that waited this long for memory asks for open batches to be sent as they are.
const PATIENCE: Duration = Duration::from_millis(50);
/// Topics in one question.
const TOPICS_ASKED_MAX: usize = 1000;

/// Why a producer cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No endpoint accepts a connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The service gave no producer id.
    #[error("no producer id: {0}")]
    InitProducer(Refusal),
}

/// Why a record was not taken. Nothing of it will be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The producer is closed.
    #[error("producer is closed")]
    Closed,
    /// The topic cannot be looked up, or does not exist.
    #[error("topic {topic:?}: {refusal}")]
    Topic {
        /// The topic.
        topic: String,
        /// What the service says.
        refusal: Refusal,
    },
    /// The topic has no such partition.
    #[error("topic {topic:?} has {partitions} partitions, no partition {partition}")]
    UnknownPartition {
        /// The topic.
        topic: Arc<str>,
        /// Partition asked for.
        partition: u32,
        /// Partitions there are.
        partitions: u32,
    },
    /// The record is larger than a batch may be.
    #[error("record makes a batch of {bytes} bytes, {max} are allowed")]
    RecordTooLarge {
        /// Bytes of the smallest batch with it.
        bytes: usize,
        /// The topic's limit, or all memory of the producer.
        max: usize,
    },
    /// Memory was used up for all that time.
    #[error("no room for {bytes} bytes within {waited:?}")]
    NoRoom {
        /// Bytes asked for.
        bytes: usize,
        /// Time waited.
        waited: Duration,
    },
    /// The record cannot be part of a batch.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The producer writes to too many topics.
    #[error("producer writes to {max} topics already")]
    TooManyTopics {
        /// Limit.
        max: usize,
    },
}

/// What closing reports.
pub type CloseError = FlushError;

/// Sends records. Cheap to clone; clones share everything.
///
/// Records of one partition are written in the order they were given. When the last clone is
/// dropped, what was not sent is dropped with it: [`Producer::close`] or [`Producer::flush`]
/// first.
///
/// With idempotence, which is on by default, retries neither duplicate nor reorder. When the
/// service has forgotten or fenced the producer's numbers, or a batch whose outcome is unknown is
/// given up, the partition goes on under a new producer id: batches that may have been written
/// are reported as unknown, all others are sent.
#[derive(Debug, Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// One topic is looked up at a time.
    lookup: tokio::sync::Mutex<()>,
    task: AbortOnDropHandle<()>,
    _refresh: AbortOnDropHandle<()>,
}

/// What becomes of a record's outcome.
#[derive(Debug, Clone, Copy)]
enum Want {
    Delivery,
    Count,
}

enum Step {
    Done(Option<Delivery>),
    /// A batch must be opened, and takes this much memory.
    NeedsSpace(usize),
}

impl Producer {
    pub(crate) async fn start(
        link: Link,
        config: ProducerConfig,
        tracer: Tracer,
    ) -> Result<Self, ProducerError> {
        config.validate()?;
        let link = Arc::new(link);
        link.connected().await?;
        let identity = if config.is_idempotent() {
            Some(init_producer(&link).await.map_err(ProducerError::InitProducer)?)
        } else {
            None
        };
        let shared = Arc::new(Shared::new(config, identity, tracer));
        let sender = Sender::new(shared.clone(), link.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(sender.run()));
        let refresh_interval = shared.config.topic_refresh;
        let inner = Arc::new_cyclic(|weak| Inner {
            shared,
            link,
            lookup: tokio::sync::Mutex::new(()),
            task,
            _refresh: AbortOnDropHandle::new(tokio::spawn(refresh_every(refresh_interval, weak.clone()))),
        });
        Ok(Self { inner })
    }

    /// Takes a record, and gives a future of its outcome. Waits only for memory.
    ///
    /// Cancel safety: when this is dropped before it is ready, the record was not taken.
    ///
    /// # Errors
    /// The record was not taken.
    pub async fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery, SendError> {
        let topic = self.inner.topic(record.topic).await?;
        self.inner.send(&topic, &record).await
    }

    /// Takes a record whose outcome only matters to [`Producer::flush`]: the cheapest way to send.
    ///
    /// Cancel safety: when this is dropped before it is ready, the record was not taken.
    ///
    /// # Errors
    /// The record was not taken.
    pub async fn enqueue(&self, record: ProducerRecord<'_>) -> Result<(), SendError> {
        let topic = self.inner.topic(record.topic).await?;
        self.inner.append(&topic, &record, Want::Count).await?;
        Ok(())
    }

    /// A handle to one topic, which saves looking it up for each record.
    ///
    /// # Errors
    /// The topic cannot be looked up, or does not exist.
    pub async fn topic(&self, name: &str) -> Result<TopicProducer, SendError> {
        let topic = self.inner.topic(name).await?;
        Ok(TopicProducer {
            inner: self.inner.clone(),
            topic,
        })
    }

    /// A handle to one partition that takes batches which are built and numbered already; see
    /// [`PartitionWriter`]. Its place in the producer stays taken when it is dropped: make few, and
    /// use them again.
    ///
    /// # Errors
    /// The topic cannot be looked up or has no such partition, or the producer is not idempotent.
    pub async fn partition_writer(&self, topic: &str, partition: u32) -> Result<PartitionWriter, WriteError> {
        if !self.inner.shared.config.is_idempotent() {
            return Err(WriteError::NotIdempotent);
        }
        let topic = self.inner.topic(topic).await?;
        if partition >= topic.count.get() {
            return Err(missing(&topic, partition).into());
        }
        Ok(PartitionWriter::new(self.inner.shared.clone(), &topic, partition))
    }

    /// A new producer id, for batches that are numbered without this producer's help. Asks until
    /// there is an answer, at most for the client's retry timeout.
    ///
    /// # Errors
    /// What the service says.
    pub async fn new_producer_id(&self) -> Result<ProducerStamp, Refusal> {
        Ok(init_producer(&self.inner.link).await?.stamp(0))
    }

    /// What did not work so far and was, or is, tried again.
    #[must_use]
    pub fn retries(&self) -> Retries {
        self.inner.shared.retries.lock().clone()
    }

    /// Sends what is gathered and waits until all that was taken before is settled.
    ///
    /// # Errors
    /// Records that were enqueued since the last flush were not delivered, or their outcome is
    /// unknown. Records with a [`Delivery`] are not counted: it tells.
    pub async fn flush(&self) -> Result<(), FlushError> {
        self.inner.shared.hurry();
        self.inner.shared.ledger.settle_all().await;
        self.inner.shared.ledger.take_failures()
    }

    /// Takes no more records, and flushes.
    ///
    /// # Errors
    /// As [`Producer::flush`]. The producer is closed all the same.
    pub async fn close(self) -> Result<(), CloseError> {
        self.inner.shared.closed.store(true, Ordering::SeqCst);
        self.inner.shared.hurry();
        while !self.inner.shared.ledger.is_settled() {
            self.inner.shared.hurry();
            self.inner.shared.ledger.settle_all().await;
        }
        self.inner.task.abort();
        self.inner.shared.ledger.take_failures()
    }
}

/// Sends records to one topic; the topic that a record names does not matter.
///
/// Follows a topic that is given more partitions.
#[derive(Debug, Clone)]
pub struct TopicProducer {
    inner: Arc<Inner>,
    topic: Arc<Topic>,
}

impl TopicProducer {
    /// Partitions of the topic.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.topic.newest().count.get()
    }

    /// As [`Producer::send`].
    ///
    /// # Errors
    /// The record was not taken.
    pub async fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery, SendError> {
        self.inner.send(self.topic.newest(), &record).await
    }

    /// As [`Producer::enqueue`].
    ///
    /// # Errors
    /// The record was not taken.
    pub async fn enqueue(&self, record: ProducerRecord<'_>) -> Result<(), SendError> {
        self.inner
            .append(self.topic.newest(), &record, Want::Count)
            .await?;
        Ok(())
    }

    /// Enqueues many records for one partition, whatever partition they name, taking its lock
    /// once for each batch rather than for each record. Says how many.
    ///
    /// Cancel safety: when this is dropped before it is ready, some of the records were taken, in
    /// their order.
    ///
    /// # Errors
    /// A record was not taken; those before it were.
    pub async fn enqueue_all<'r, I>(&self, partition: u32, records: I) -> Result<u64, SendError>
    where
        I: IntoIterator<Item = ProducerRecord<'r>>,
    {
        let topic = self.topic.newest();
        let Some(at) = topic.partition(partition) else {
            return Err(missing(topic, partition));
        };
        let mut records = records.into_iter().peekable();
        let (mut space, mut taken) = (None, 0);
        while let Some(bytes) = self
            .inner
            .append_run(topic, at, &mut records, &mut space, &mut taken)?
        {
            space = Some(self.inner.space(bytes).await?);
        }
        Ok(taken)
    }
}

impl Inner {
    async fn send(&self, topic: &Topic, record: &ProducerRecord<'_>) -> Result<Delivery, SendError> {
        // A record that is taken with this wish always has a delivery.
        self.append(topic, record, Want::Delivery)
            .await?
            .ok_or(SendError::Closed)
    }

    async fn append(
        &self,
        topic: &Topic,
        record: &ProducerRecord<'_>,
        want: Want,
    ) -> Result<Option<Delivery>, SendError> {
        let mut space = None;
        loop {
            match self.append_now(topic, record, want, &mut space)? {
                Step::Done(delivery) => return Ok(delivery),
                Step::NeedsSpace(bytes) => space = Some(self.space(bytes).await?),
            }
        }
    }

    /// Appends a record, unless that takes memory that is not there.
    fn append_now(
        &self,
        topic: &Topic,
        record: &ProducerRecord<'_>,
        want: Want,
        space: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Step, SendError> {
        let most = self.admit(topic, record)?;
        let partitioner = self.shared.config.partitioner;
        // After a visit to every partition it takes the one it is at.
        let mut moves = topic.count.get();
        loop {
            let choice = choose(
                partitioner,
                record.partition,
                record.key,
                topic.count,
                &topic.cursor,
            );
            let (number, sticky) = match choice {
                Choice::Fixed(number) => (number, false),
                Choice::Sticky(number) => (number, moves > 0),
                Choice::Missing(number) => return Err(missing(topic, number)),
            };
            let Some(partition) = topic.partition(number) else {
                return Err(missing(topic, number));
            };
            let mut state = partition.state.lock();
            if sticky && state.is_open() && !state.fits(most) {
                self.seal_full(partition, &mut state);
                moves -= 1;
                continue;
            }
            return self.put(partition, &mut state, record, most, want, space);
        }
    }

    /// Appends records to one partition until they end, or until memory is needed: then how much.
    fn append_run<'r>(
        &self,
        topic: &Topic,
        partition: &Partition,
        records: &mut Peekable<impl Iterator<Item = ProducerRecord<'r>>>,
        space: &mut Option<OwnedSemaphorePermit>,
        taken: &mut u64,
    ) -> Result<Option<usize>, SendError> {
        let mut state = partition.state.lock();
        while let Some(record) = records.peek() {
            let most = self.admit(topic, record)?;
            if let Step::NeedsSpace(bytes) =
                self.put(partition, &mut state, record, most, Want::Count, space)?
            {
                return Ok(Some(bytes));
            }
            records.next();
            *taken += 1;
        }
        Ok(None)
    }

    /// Most bytes a record takes, if it may be sent at all.
    fn admit(&self, topic: &Topic, record: &ProducerRecord<'_>) -> Result<usize, SendError> {
        let (least, config) = (batch_bytes_least(record), &self.shared.config);
        if config.compression == Codec::None && least > topic.batch_bytes_max {
            return Err(SendError::RecordTooLarge {
                bytes: least,
                max: topic.batch_bytes_max,
            });
        }
        // Room for the headers of a trace, should this record be part of one.
        let trace = if self.shared.tracer.is_on() {
            HEADERS_BYTES_MAX
        } else {
            0
        };
        Ok(record_bytes_most(record) + trace)
    }

    /// Puts a record into a partition's batch, opening one where that is needed.
    fn put(
        &self,
        partition: &Partition,
        state: &mut MutexGuard<'_, Accumulator>,
        record: &ProducerRecord<'_>,
        most: usize,
        want: Want,
        space: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Step, SendError> {
        // Looked at under the partition's lock, which closing takes afterwards: a record that
        // passes here is seen by it.
        if state.closed || self.shared.is_closed() {
            return Err(SendError::Closed);
        }
        if !state.fits(most) {
            self.seal_full(partition, state);
            let bytes = Shared::batch_space(partition, most);
            let max = self.shared.config.buffer_bytes_max;
            if bytes > max {
                return Err(SendError::RecordTooLarge { bytes, max });
            }
            let Some(space) = space
                .take()
                .filter(|space| space.num_permits() >= bytes)
                .or_else(|| {
                    // At most `buffer_bytes_max`, which is far below 4 GiB.
                    self.shared
                        .memory
                        .clone()
                        .try_acquire_many_owned(bytes as u32)
                        .ok()
                })
            else {
                return Ok(Step::NeedsSpace(bytes));
            };
            self.shared.begin(partition, state, space);
        }
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let publish = self.publish(partition, state, record);
        let (headers, with_trace);
        let record = match &publish {
            Some(publish) => {
                headers = publish.headers(record.headers);
                with_trace = ProducerRecord {
                    headers: &headers,
                    ..*record
                };
                &with_trace
            }
            None => record,
        };
        match state.append(record, timestamp_ms) {
            Some(Ok((index, settlement))) => {
                if let Some(publish) = publish {
                    settlement.trace(index, publish.span);
                }
                Ok(Step::Done(match want {
                    Want::Delivery => Some(settlement.delivery(index, timestamp_ms)),
                    Want::Count => {
                        settlement.count();
                        None
                    }
                }))
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(SendError::Closed),
        }
    }

    /// The span of a record, where its trace is recorded. Without a trace of the application's own
    /// only the first record of a batch may begin one: that costs nothing per record.
    fn publish(
        &self,
        partition: &Partition,
        state: &Accumulator,
        record: &ProducerRecord<'_>,
    ) -> Option<Publish> {
        let tracer = &self.shared.tracer;
        if !tracer.is_on() {
            return None;
        }
        let (records, traced) = state.open_counts();
        let may_begin = records == 0 && record_bytes_most(record) + HEADERS_BYTES_MAX <= state.batch_bytes();
        Publish::begin(
            tracer,
            &partition.topic,
            partition.number,
            record,
            may_begin,
            traced,
        )
    }

    fn seal_full(&self, partition: &Partition, state: &mut Accumulator) {
        if state.is_open() {
            self.shared.seal(partition, state);
            self.shared.announce(partition, state);
        }
    }

    /// Waits for memory.
    async fn space(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SendError> {
        let limit = self.shared.config.delivery_timeout;
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let acquire = self.shared.memory.clone().acquire_many_owned(permits);
        tokio::pin!(acquire);
        let acquired = match timeout(PATIENCE.min(limit), &mut acquire).await {
            Ok(acquired) => acquired,
            Err(_) => {
                // Under a long linger the memory may lie in open batches only.
                self.shared.hurry();
                timeout(limit, acquire)
                    .await
                    .map_err(|_| SendError::NoRoom { bytes, waited: limit })?
            }
        };
        acquired.map_err(|_| SendError::Closed)
    }

    async fn topic(&self, name: &str) -> Result<Arc<Topic>, SendError> {
        match self.shared.topic(name) {
            Some(topic) => Ok(topic),
            // Boxed, for the sake of the path on which the topic is known.
            None => Box::pin(self.look_up(name)).await,
        }
    }

    async fn look_up(&self, name: &str) -> Result<Arc<Topic>, SendError> {
        let _one = self.lookup.lock().await;
        if let Some(topic) = self.shared.topic(name) {
            return Ok(topic);
        }
        if self.shared.is_closed() {
            return Err(SendError::Closed);
        }
        if self.shared.topic_count() >= TOPICS_MAX {
            return Err(SendError::TooManyTopics { max: TOPICS_MAX });
        }
        let refused = |refusal| SendError::Topic {
            topic: name.to_owned(),
            refusal,
        };
        let answer = metadata(&self.link, vec![name.to_owned()])
            .await
            .map_err(refused)?;
        let found = answer.topics.into_iter().find(|topic| topic.name == name);
        let topic = found.ok_or_else(|| {
            refused(Refusal::new(
                ErrorCode::UnknownTopic,
                "the service does not mention it",
            ))
        })?;
        if let Some(error) = topic.error {
            return Err(refused(error.into()));
        }
        let facts = facts_of(&topic)
            .ok_or_else(|| refused(Refusal::new(ErrorCode::Internal, "it has no partitions")))?;
        Ok(self.shared.learn(name, facts, Spread::seeded().next()))
    }

    /// Asks for all known topics again: more partitions and other limits are taken up, and one that
    /// is gone is looked up by the next record.
    async fn refresh(&self) {
        for names in self.shared.topic_names().chunks(TOPICS_ASKED_MAX) {
            let answer = match metadata(&self.link, names.to_vec()).await {
                Ok(answer) => answer,
                Err(refusal) => {
                    tracing::debug!(%refusal, "topics are not known anew");
                    return;
                }
            };
            let _one = self.lookup.lock().await;
            for topic in answer.topics {
                match (&topic.error, facts_of(&topic)) {
                    (None, Some(facts)) => {
                        self.shared.learn(&topic.name, facts, Spread::seeded().next());
                    }
                    (Some(error), _) if error.code() == ErrorCode::UnknownTopic => {
                        self.shared.doubt(&topic.name);
                    }
                    _ => tracing::debug!(topic = topic.name, error = ?topic.error, "topic is not known anew"),
                }
            }
        }
    }
}

fn facts_of(topic: &v1::TopicMetadata) -> Option<Facts> {
    Some(Facts {
        id: topic.id.clone(),
        count: NonZeroU32::new(topic.partitions)?,
        batch_bytes_max: topic.batch_bytes_max as usize,
    })
}

/// Asks for topics again and again, as long as somebody holds the producer.
async fn refresh_every(interval: Duration, producer: Weak<Inner>) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(inner) = producer.upgrade() else { return };
        inner.refresh().await;
    }
}

fn missing(topic: &Topic, partition: u32) -> SendError {
    SendError::UnknownPartition {
        topic: topic.name.clone(),
        partition,
        partitions: topic.count.get(),
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
