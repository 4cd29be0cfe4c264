//! Positions: earliest, latest, and the first record at or after a time.
//!
//! The owner says where the partition begins and ends. A time is searched for around it: the
//! owner's plan names the pieces of the partition, each piece is asked for the first batch that
//! reaches the time, and the record is found here by reading that batch. Timestamps need not rise
//! with offsets; the answer is the lowest offset whose timestamp is at or after the time.

use bytes::Bytes;
use forebay_proto::data::front::{Position, ReadPlan};
use forebay_proto::error::Failure;
use forebay_proto::v1::partition_position::Position as Asked;
use forebay_proto::v1::{Error, ErrorCode, PartitionOffset, PartitionPosition, RetryClass};
use forebay_record::batch::{BatchError, Limits, decode, split_first};
use forebay_record::{Offset, PartitionId};
use forebay_runtime::backoff::{Backoff, Policy};
use futures_util::StreamExt;
use futures_util::stream;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;
use crate::fetch::lookup::pieces;
use crate::routes::Owner;

/// Positions in one request.
const PARTITIONS_MAX: usize = 10_000;
/// Positions asked for at once.
const AT_ONCE: usize = 32;
/// Plans that one search by time goes through, each for what was written during the one before.
const PLANS_MAX: usize = 8;
const RETRIES: Policy = Policy {
    base: Duration::from_millis(10),
    ceiling: Duration::from_millis(500),
    retries_max: 20,
    deadline: Duration::from_secs(8),
};

impl Core {
    /// Resolves positions, each on its own.
    pub(crate) async fn list_offsets(
        &self,
        asked: Vec<PartitionPosition>,
    ) -> Result<Vec<PartitionOffset>, Failure> {
        if asked.len() > PARTITIONS_MAX {
            let what = format!(
                "{} positions in one request, {PARTITIONS_MAX} are allowed",
                asked.len()
            );
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        let resolved = stream::iter(asked).map(|one| self.resolve(one)).buffered(AT_ONCE);
        Ok(resolved.collect().await)
    }

    async fn resolve(&self, asked: PartitionPosition) -> PartitionOffset {
        let found = match asked.position {
            Some(position) => self.position(&asked.topic, asked.partition, position).await,
            None => Err(Failure::new(ErrorCode::InvalidRequest, "no position is given")),
        };
        let mut answer = PartitionOffset {
            topic: asked.topic,
            partition: asked.partition,
            ..PartitionOffset::default()
        };
        match found {
            Ok(found) => {
                answer.offset = found.map(|found| found.offset.0);
                answer.timestamp_ms = found.and_then(|found| found.timestamp_ms);
            }
            Err(failure) => {
                self.metrics.failure(failure.code);
                answer.error = Some(Error::from(failure));
            }
        }
        answer
    }

    async fn position(&self, topic: &str, number: u32, asked: Asked) -> Result<Option<Found>, Failure> {
        let mut backoff = Backoff::new(RETRIES, Arc::clone(&self.clock), Arc::clone(&self.random));
        loop {
            let tried = self
                .try_position(topic, number, &asked, backoff.retries() > 0)
                .await;
            match tried {
                Err(failure) if matches!(failure.retry(), RetryClass::Elsewhere | RetryClass::Here) => {
                    if backoff.wait().await.is_err() {
                        return Err(failure);
                    }
                }
                done => return done,
            }
        }
    }

    async fn try_position(
        &self,
        topic: &str,
        number: u32,
        asked: &Asked,
        again: bool,
    ) -> Result<Option<Found>, Failure> {
        let route = if again {
            self.routes.refresh(topic).await?
        } else {
            self.routes.get(topic).await?
        };
        let partition = route.partition(number)?;
        let owner = partition.owner.clone().ok_or_else(|| {
            Failure::new(
                ErrorCode::NotOwner,
                format!("topic {topic} partition {number} has no owner now"),
            )
        })?;
        let position = match asked {
            Asked::Earliest(_) => Position::Earliest,
            Asked::Latest(_) => Position::Latest,
            Asked::TimestampMs(time) => return self.first_at(&owner, partition.id, *time).await,
        };
        let offset = self.fetcher.position(&owner, partition.id, position).await?;
        Ok(offset.map(|offset| Found {
            offset,
            timestamp_ms: None,
        }))
    }

    /// The first record at or after a time.
    ///
    /// That there is none is said only once the owner has confirmed its end: it may have been
    /// deposed, or have more by now.
    async fn first_at(&self, owner: &Owner, id: PartitionId, time_ms: i64) -> Result<Option<Found>, Failure> {
        let mut from = Offset(0);
        for _ in 0..PLANS_MAX {
            let plan = self.fetcher.catch_up.plan(owner, id).await?;
            if let Some(found) = self.first_in(id, &plan, from, time_ms).await? {
                return Ok(Some(found));
            }
            let end = self.fetcher.position(owner, id, Position::Latest).await?;
            if end.unwrap_or_default() <= plan.high_watermark {
                return Ok(None);
            }
            from = plan.high_watermark;
        }
        let what = format!("partition {id} grows faster than it can be searched for a time");
        Err(Failure::new(ErrorCode::Unavailable, what))
    }

    /// The first record at or after a time among those of a plan that are not below `from`: its
    /// pieces one after the other, the oldest first.
    async fn first_in(
        &self,
        id: PartitionId,
        plan: &ReadPlan,
        from: Offset,
        time_ms: i64,
    ) -> Result<Option<Found>, Failure> {
        let mut from = from.max(plan.log_start);
        for piece in pieces(plan) {
            let end = piece.end();
            // A batch may reach the time by a record that lies below; the next one is asked for then.
            while from < end {
                let batch = self
                    .fetcher
                    .catch_up
                    .batch_reaching(id, piece, from, time_ms)
                    .await?;
                let Some(batch) = batch else { break };
                match self.first_in_batch(id, &batch, from..end, time_ms).await? {
                    Ok(found) => return Ok(Some(found)),
                    // What holds an offset ends behind it.
                    Err(batch_end) => from = batch_end.max(Offset(from.0 + 1)),
                }
            }
            from = from.max(end);
        }
        Ok(None)
    }

    /// The first record of a batch that lies in a range of offsets at or after a time; where there
    /// is none, the end of the batch.
    async fn first_in_batch(
        &self,
        id: PartitionId,
        bytes: &Bytes,
        range: Range<Offset>,
        time_ms: i64,
    ) -> Result<Result<Found, Offset>, Failure> {
        // Decompressed records are the larger part of what this takes.
        let room = u32::try_from(self.config.decompressed_bytes_max).unwrap_or(u32::MAX);
        let _admitted = self.fetcher.admit(room).await?;
        let limits = Limits {
            // It was taken under the topic's limit of its time, whatever that is now.
            batch_bytes_max: bytes.len(),
            decompressed_bytes_max: self.config.decompressed_bytes_max,
            allow_control: false,
        };
        let from = range.start;
        search(bytes, range, time_ms, &limits).map_err(|error| {
            let what = format!("batch of partition {id} from {from} on cannot be read: {error}");
            Failure::new(ErrorCode::CorruptLog, what)
        })
    }
}

/// A record, or the place where the next one will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    offset: Offset,
    /// Of the record, where it was sought by time.
    timestamp_ms: Option<i64>,
}

/// As [`Core::first_in_batch`].
fn search(
    bytes: &Bytes,
    range: Range<Offset>,
    time_ms: i64,
    limits: &Limits,
) -> Result<Result<Found, Offset>, BatchError> {
    let (header, batch, _) = split_first(bytes)?;
    for record in decode(&batch, limits)?.records() {
        let record = record?;
        let (offset, timestamp_ms) = (record.offset(&header), record.timestamp_ms(&header));
        if range.contains(&offset) && timestamp_ms >= time_ms {
            return Ok(Ok(Found {
                offset,
                timestamp_ms: Some(timestamp_ms),
            }));
        }
    }
    Ok(Err(header.end_offset()))
}
