//! How a producer gathers, sends and retries.

use std::time::Duration;

use forebay_proto::v1;
use forebay_record::batch::Codec;

use crate::backoff::Backoff;
use crate::config::ConfigError;

/// Batches of one partition that an idempotent producer may have unanswered: as many as a
/// broker remembers of it.
const IDEMPOTENT_IN_FLIGHT_MAX: usize = 5;
const IN_FLIGHT_MAX: usize = 1024;
const BATCH_BYTES_LEAST: usize = 1 << 10;
const BATCH_BYTES_MOST: usize = 8 << 20;
const BUFFER_BYTES_MOST: usize = 2 << 30;

/// When a batch counts as delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// Synced to disk on a quorum.
    #[default]
    All,
    /// Synced to disk on the first replica; may be lost when the partition's owner fails.
    One,
    /// Handed to the connection. Offsets are not known, and nothing is retried.
    None,
}

impl Acks {
    pub(crate) const fn wire(self) -> v1::Acks {
        match self {
            Self::All => v1::Acks::All,
            Self::One => v1::Acks::One,
            Self::None => v1::Acks::None,
        }
    }
}

/// Where records go that name no partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partitioner {
    /// By the key's hash, as Kafka's clients do; without a key as [`Partitioner::Sticky`].
    #[default]
    ByKey,
    /// One partition until its batch is full, then the next; keys do not matter.
    Sticky,
}

/// How a producer gathers, sends and retries.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// How long a batch waits for more records. At most 60 s.
    pub linger: Duration,
    /// Size at which a batch is sent, before compression; 1 KiB to 8 MiB, and never more than the
    /// topic allows. A single record may be larger, up to the topic's limit.
    pub batch_bytes: usize,
    /// How batches are compressed.
    pub compression: Codec,
    /// When a batch counts as delivered.
    pub acks: Acks,
    /// Whether retries can neither duplicate nor reorder. Takes effect with [`Acks::All`] only.
    pub idempotent: bool,
    /// Batches of one partition that may be unanswered; at most 5 where the producer is
    /// idempotent. Without idempotence, more than one lets a retried batch land behind a later
    /// one.
    pub max_in_flight: usize,
    /// Memory for batches, open, queued and unanswered. Sending waits when it is used up. At most
    /// 2 GiB; at least two batches.
    pub buffer_bytes_max: usize,
    /// How long a batch is tried, from its first record on. A request that is under way then is
    /// still waited for, so the last word may come `request_timeout` later.
    pub delivery_timeout: Duration,
    /// How long the service may take to answer one request.
    pub request_timeout: Duration,
    /// The first wait before a retry; doubles up to `retry_backoff_max`.
    pub retry_backoff: Duration,
    /// The longest wait before a retry.
    pub retry_backoff_max: Duration,
    /// Where records go that name no partition.
    pub partitioner: Partitioner,
    /// How often topics are asked for again, so that more partitions and other limits are taken
    /// up; 100 ms to 1 day.
    pub topic_refresh: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(5),
            batch_bytes: 256 << 10,
            compression: Codec::None,
            acks: Acks::All,
            idempotent: true,
            max_in_flight: IDEMPOTENT_IN_FLIGHT_MAX,
            buffer_bytes_max: 64 << 20,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
            partitioner: Partitioner::ByKey,
            topic_refresh: Duration::from_secs(10),
        }
    }
}

impl ProducerConfig {
    /// Whether batches are numbered.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotent && self.acks == Acks::All
    }

    pub(crate) const fn backoff(&self) -> Backoff {
        Backoff {
            least: self.retry_backoff,
            most: self.retry_backoff_max,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let (least, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        ConfigError::check("linger", &self.linger, &Duration::ZERO, &Duration::from_secs(60))?;
        ConfigError::check(
            "batch_bytes",
            &self.batch_bytes,
            &BATCH_BYTES_LEAST,
            &BATCH_BYTES_MOST,
        )?;
        let two = self.batch_bytes * 2;
        ConfigError::check(
            "buffer_bytes_max",
            &self.buffer_bytes_max,
            &two,
            &BUFFER_BYTES_MOST,
        )?;
        let in_flight = if self.is_idempotent() {
            IDEMPOTENT_IN_FLIGHT_MAX
        } else {
            IN_FLIGHT_MAX
        };
        ConfigError::check("max_in_flight", &self.max_in_flight, &1, &in_flight)?;
        ConfigError::check("request_timeout", &self.request_timeout, &least, &hour)?;
        ConfigError::check("delivery_timeout", &self.delivery_timeout, &least, &(hour * 24))?;
        ConfigError::check(
            "topic_refresh",
            &self.topic_refresh,
            &Duration::from_millis(100),
            &(hour * 24),
        )?;
        ConfigError::check("retry_backoff", &self.retry_backoff, &least, &hour)?;
        ConfigError::check(
            "retry_backoff_max",
            &self.retry_backoff_max,
            &self.retry_backoff,
            &hour,
        )
    }
}
