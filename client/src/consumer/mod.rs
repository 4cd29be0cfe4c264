//! Consuming: partitions read from where the caller says, each in its order.
//!
//! 1. [`assignment`]: where the consumer is in each partition, and what to ask for next.
//! 2. A fetch of all partitions runs in a task of its own, so that the next one is on its way
//!    while the last is consumed; never more than one.
//! 3. Its batches are handed out one by one, as they are or with their records ([`batch`]).
//!
//! Positions are the caller's to keep: a consumer starts where it is told. Memory is bounded by
//! what two fetches bring.

mod assignment;
mod batch;
mod config;

use std::collections::VecDeque;
use std::sync::Arc;

use forebay_proto::v1::data_client::DataClient;
use forebay_proto::v1::{ErrorCode, FetchRequest, FetchResponse};
use forebay_record::Offset;
use forebay_record::batch::{BatchError, Limits, Scratch, decode_with};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use self::assignment::{Assignment, Item, Ticket};
pub use self::batch::{ConsumedBatch, ConsumedRecords, ConsumerRecord, RawBatch};
pub use self::config::{ConsumerConfig, OnOutOfRange};
use crate::backoff::{Backoff, Spread};
use crate::config::ConfigError;
use crate::error::Refusal;
use crate::link::{Link, MESSAGE_BYTES_MAX};
use crate::offsets::{self, OffsetsError, StartPosition};
use crate::trace::{Receive, Span, SpanKind, TraceContext, Tracer, name_in};

/// Partitions of one consumer.
const PARTITIONS_MAX: usize = 100_000;

/// Why there is no next batch. The consumer can be used on: asking again tries again, from the
/// same position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeError {
    /// No partition is assigned, so nothing would ever come.
    #[error("no partition is assigned")]
    NothingAssigned,
    /// The partition is not one of this consumer's.
    #[error("{topic}/{partition} is not assigned")]
    NotAssigned {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// Too many partitions for one consumer.
    #[error("{max} partitions are assigned already")]
    TooManyPartitions {
        /// Limit.
        max: usize,
    },
    /// A start position cannot be found.
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    /// The position lies below the first offset kept, or beyond the end.
    #[error(
        "offset {offset} of {topic}/{partition} is out of range: {log_start} to {high_watermark} are there"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What was asked for.
        offset: Offset,
        /// First offset that is kept.
        log_start: Offset,
        /// First offset that is not committed.
        high_watermark: Offset,
    },
    /// The partition cannot be read.
    #[error("{topic}/{partition} cannot be read: {refusal}")]
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What the service says.
        refusal: Refusal,
    },
    /// The service cannot be reached, or fails all fetches.
    #[error("fetch failed: {0}")]
    Unavailable(Refusal),
    /// What was fetched is damaged.
    #[error("{topic}/{partition} is damaged at {offset}: {source}")]
    Corrupt {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// Where the damage begins at the latest.
        offset: Offset,
        /// What is wrong.
        source: BatchError,
    },
    /// Batches came in the wrong order.
    #[error("{topic}/{partition} brought offset {found} after {offset}")]
    OutOfOrder {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// Where the batches before it ended.
        offset: Offset,
        /// Where the next one begins.
        found: Offset,
    },
}

struct Fetch {
    task: AbortOnDropHandle<Result<FetchResponse, Refusal>>,
    tickets: Vec<Ticket>,
    span: Span,
}

/// Reads partitions. Dropping it ends its fetch.
pub struct Consumer {
    link: Arc<Link>,
    config: ConsumerConfig,
    assignment: Assignment,
    fetched: VecDeque<Item>,
    fetch: Option<Fetch>,
    /// Fetches that failed as a whole: since when, how many, and when to try again.
    failing: Option<(Instant, u32, Instant)>,
    scratch: Scratch,
    spread: Spread,
    tracer: Tracer,
    /// How the batches that are handed out now were fetched.
    receive: Receive,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("assignment", &self.assignment)
            .field("fetched", &self.fetched.len())
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub(crate) fn new(link: Link, config: ConsumerConfig, tracer: Tracer) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            link: Arc::new(link),
            config,
            assignment: Assignment::default(),
            fetched: VecDeque::new(),
            fetch: None,
            failing: None,
            scratch: Scratch::new(),
            spread: Spread::seeded(),
            receive: Receive::off(),
            tracer,
        })
    }

    /// Reads a partition too, from `start` on; one that is read already is sought.
    ///
    /// # Errors
    /// The position cannot be found, or there are too many partitions.
    pub async fn assign(
        &mut self,
        topic: &str,
        partition: u32,
        start: StartPosition,
    ) -> Result<(), ConsumeError> {
        if self.assignment.len() >= PARTITIONS_MAX && self.assignment.get(topic, partition).is_none() {
            return Err(ConsumeError::TooManyPartitions { max: PARTITIONS_MAX });
        }
        let offset = self.find(topic, partition, start).await?;
        self.assignment.put(topic, partition, offset);
        // The fetch under way does not ask for it, and may wait long for the others.
        // It brought nothing yet, so positions have not moved.
        self.fetch = None;
        Ok(())
    }

    /// Reads a partition no longer; says whether it was read.
    pub fn unassign(&mut self, topic: &str, partition: u32) -> bool {
        self.assignment.remove(topic, partition)
    }

    /// Goes elsewhere in a partition.
    ///
    /// # Errors
    /// It is not assigned, or the position cannot be found.
    pub async fn seek(&mut self, topic: &str, partition: u32, to: StartPosition) -> Result<(), ConsumeError> {
        if self.assignment.get(topic, partition).is_none() {
            return Err(ConsumeError::NotAssigned {
                topic: topic.to_owned(),
                partition,
            });
        }
        self.assign(topic, partition, to).await
    }

    /// The offset after what was handed out of a partition; none where it is not assigned.
    #[must_use]
    pub fn position(&self, topic: &str, partition: u32) -> Option<Offset> {
        self.assignment
            .get(topic, partition)
            .map(|assigned| assigned.position)
    }

    /// First offset that was not committed when the partition was last fetched; none before.
    #[must_use]
    pub fn high_watermark(&self, topic: &str, partition: u32) -> Option<Offset> {
        self.assignment.get(topic, partition)?.high_watermark
    }

    /// The next batch of any partition, its checksum checked. Waits as long as there is none.
    ///
    /// Cancel safety: when this is dropped before it is ready, nothing is lost.
    ///
    /// # Errors
    /// Nothing is assigned, or a partition cannot be read; asking again tries again.
    pub async fn next_batch(&mut self) -> Result<ConsumedBatch, ConsumeError> {
        loop {
            let raw = self.next(false).await?.ok_or(ConsumeError::NothingAssigned)?;
            if let Some(batch) = self.decoded(raw)? {
                return Ok(batch);
            }
        }
    }

    /// The next batch of any partition as it is stored: no record is looked at and no checksum
    /// checked, and batches of the system itself come too. Waits as long as there is none.
    ///
    /// Cancel safety: when this is dropped before it is ready, nothing is lost.
    ///
    /// # Errors
    /// As [`Consumer::next_batch`].
    pub async fn next_raw(&mut self) -> Result<RawBatch, ConsumeError> {
        self.next(false).await?.ok_or(ConsumeError::NothingAssigned)
    }

    /// Reads all partitions up to where they end now, and no further.
    ///
    /// # Errors
    /// The ends cannot be found.
    pub async fn until_end(&mut self) -> Result<UntilEnd<'_>, ConsumeError> {
        let wanted: Vec<_> = self
            .assignment
            .iter()
            .map(|assigned| {
                (
                    assigned.topic.to_string(),
                    assigned.partition,
                    StartPosition::Latest,
                )
            })
            .collect();
        for end in offsets::list(&self.link, wanted).await? {
            if let Some(assigned) = self.assignment.get_mut(&end.topic, end.partition) {
                assigned.stop_at = Some(end.offset.unwrap_or_default());
            }
        }
        Ok(UntilEnd { consumer: self })
    }

    async fn find(&self, topic: &str, partition: u32, start: StartPosition) -> Result<Offset, ConsumeError> {
        let found = offsets::list(&self.link, vec![(topic.to_owned(), partition, start)]).await?;
        if let Some(offset) = found.first().and_then(|found| found.offset) {
            return Ok(offset);
        }
        // No record is that young: the end.
        let found = offsets::list(
            &self.link,
            vec![(topic.to_owned(), partition, StartPosition::Latest)],
        )
        .await?;
        Ok(found.first().and_then(|found| found.offset).unwrap_or_default())
    }

    /// The next batch; none where there is nothing left to wait for.
    async fn next(&mut self, ends: bool) -> Result<Option<RawBatch>, ConsumeError> {
        if self.assignment.len() == 0 {
            return Ok(None);
        }
        loop {
            while let Some(item) = self.fetched.pop_front() {
                if let Some(raw) = self.hand_out(item)? {
                    return Ok(Some(raw));
                }
            }
            if ends && self.assignment.iter().all(assignment::Assigned::is_done) {
                return Ok(None);
            }
            self.start_fetch(Instant::now());
            match &mut self.fetch {
                Some(fetch) => {
                    let answer = (&mut fetch.task).await;
                    let (tickets, span) = match self.fetch.take() {
                        Some(Fetch { tickets, span, .. }) => (tickets, span),
                        None => (Vec::new(), Span::none()),
                    };
                    let answer = answer.unwrap_or_else(|error| {
                        Err(Refusal::new(ErrorCode::Internal, format!("fetch task: {error}")))
                    });
                    self.receive = Receive::after(&self.tracer, span, answer.as_ref());
                    self.on_fetched(tickets, answer)?;
                    if self.config.prefetch {
                        self.start_fetch(Instant::now());
                    }
                }
                None => {
                    let all = self.failing.map(|(_, _, at)| at);
                    // All partitions are done or fail; the latter have a time.
                    match [all, self.assignment.next_retry()].into_iter().flatten().max() {
                        Some(at) => sleep_until(at).await,
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// A batch to hand out, unless the partition was left or sought since it was fetched.
    fn hand_out(&mut self, item: Item) -> Result<Option<RawBatch>, ConsumeError> {
        match item {
            Item::Failed { ticket, error } => match self.assignment.current(ticket) {
                Some(assigned) => {
                    assigned.rewind();
                    Err(error)
                }
                None => Ok(None),
            },
            Item::Batch {
                ticket,
                header,
                bytes,
            } => {
                let Some(assigned) = self.assignment.current(ticket) else {
                    return Ok(None);
                };
                if assigned.is_done() || header.end_offset() <= assigned.position {
                    return Ok(None);
                }
                let from = assigned.position;
                assigned.position = header.end_offset();
                let raw = RawBatch {
                    topic: assigned.topic.clone(),
                    partition: assigned.partition,
                    header: *header,
                    bytes,
                    from,
                    high_watermark: assigned.high_watermark.unwrap_or_default(),
                };
                Ok(Some(raw))
            }
        }
    }

    /// Reads a batch; none where it is one of the system itself.
    fn decoded(&mut self, raw: RawBatch) -> Result<Option<ConsumedBatch>, ConsumeError> {
        if raw.header.is_control() {
            return Ok(None);
        }
        let limits = Limits {
            batch_bytes_max: raw.bytes.len(),
            decompressed_bytes_max: self.config.decompressed_bytes_max,
            allow_control: true,
        };
        let assigned = self.assignment.get_mut(&raw.topic, raw.partition);
        let until = assigned
            .as_ref()
            .and_then(|assigned| assigned.stop_at)
            .unwrap_or(Offset(u64::MAX));
        match decode_with(&raw.bytes, &limits, &mut self.scratch) {
            Ok(decoded) => Ok(Some(ConsumedBatch {
                topic: raw.topic,
                partition: raw.partition,
                high_watermark: raw.high_watermark,
                from: raw.from,
                until,
                decoded,
                receive: self.receive.clone(),
            })),
            Err(source) => {
                if let Some(assigned) = assigned {
                    assigned.seek(raw.from);
                }
                let offset = raw.header.base_offset();
                Err(ConsumeError::Corrupt {
                    topic: raw.topic,
                    partition: raw.partition,
                    offset,
                    source,
                })
            }
        }
    }

    fn start_fetch(&mut self, now: Instant) {
        if self.fetch.is_some() || self.failing.is_some_and(|(_, _, at)| at > now) {
            return;
        }
        let Some((request, tickets)) = self.assignment.next_request(&self.config, now) else {
            return;
        };
        let link = self.link.clone();
        let limit = self.config.max_wait + self.config.request_timeout;
        let span = self.tracer.root(SpanKind::Client, || "fetch");
        let context = span.context().cloned();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            fetch(&link, limit, request, context.as_ref()).await
        }));
        self.fetch = Some(Fetch { task, tickets, span });
    }

    fn on_fetched(
        &mut self,
        tickets: Vec<Ticket>,
        answer: Result<FetchResponse, Refusal>,
    ) -> Result<(), ConsumeError> {
        let now = Instant::now();
        let (asked, answered) = (
            tickets.len(),
            answer.as_ref().map_or(0, |answer| answer.partitions.len()),
        );
        let answer = answer.and_then(|answer| {
            if asked == answered {
                return Ok(answer);
            }
            let message = format!("{answered} partitions answered, {asked} asked for");
            Err(Refusal::new(ErrorCode::Internal, message))
        });
        match answer {
            Ok(answer) => {
                self.failing = None;
                for (ticket, fetched) in tickets.into_iter().zip(answer.partitions) {
                    let random = self.spread.next();
                    let (config, items) = (&self.config, &mut self.fetched);
                    self.assignment
                        .on_fetched(ticket, fetched, config, now, random, items);
                }
                Ok(())
            }
            Err(refusal) => {
                let (since, failures) = self
                    .failing
                    .map_or((now, 1), |(since, failures, _)| (since, failures + 1));
                debug!(%refusal, failures, "fetch failed");
                let delay = Backoff::DEFAULT.delay(failures, self.spread.next());
                let repeatable = refusal.is_retriable() || refusal.is_unknown();
                let report = !repeatable || now.duration_since(since) >= self.config.retry_timeout;
                self.failing = Some((if report { now } else { since }, failures, now + delay));
                if report {
                    Err(ConsumeError::Unavailable(refusal))
                } else {
                    Ok(())
                }
            }
        }
    }
}

async fn fetch(
    link: &Link,
    limit: std::time::Duration,
    request: FetchRequest,
    context: Option<&TraceContext>,
) -> Result<FetchResponse, Refusal> {
    link.call_once(limit, &|channel| {
        let mut request = tonic::Request::new(request.clone());
        name_in(request.metadata_mut(), context);
        async move {
            DataClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .fetch(request)
                .await
        }
    })
    .await
}

/// Reads up to where the partitions ended when it was made. Dropping it lets the consumer go on
/// beyond.
#[derive(Debug)]
pub struct UntilEnd<'a> {
    consumer: &'a mut Consumer,
}

impl UntilEnd<'_> {
    /// As [`Consumer::next_batch`]; none once all partitions are at their ends.
    ///
    /// # Errors
    /// A partition cannot be read; asking again tries again.
    pub async fn next_batch(&mut self) -> Result<Option<ConsumedBatch>, ConsumeError> {
        while let Some(raw) = self.consumer.next(true).await? {
            if let Some(batch) = self.consumer.decoded(raw)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// As [`Consumer::next_raw`]; none once all partitions are at their ends.
    ///
    /// # Errors
    /// A partition cannot be read; asking again tries again.
    pub async fn next_raw(&mut self) -> Result<Option<RawBatch>, ConsumeError> {
        self.consumer.next(true).await
    }
}

impl Drop for UntilEnd<'_> {
    fn drop(&mut self) {
        for assigned in self.consumer.assignment.iter_mut() {
            assigned.stop_at = None;
        }
    }
}
