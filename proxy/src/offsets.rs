//! Positions: earliest, latest, and the first record at or after a time.
//!
//! The owner answers a time with the batch that holds the record; the record itself is found
//! here, by reading that batch.

use bytes::{Bytes, BytesMut};
use forebay_proto::data::front::Position;
use forebay_proto::error::Failure;
use forebay_proto::v1::partition_position::Position as Asked;
use forebay_proto::v1::{Error, ErrorCode, PartitionOffset, PartitionPosition, RetryClass};
use forebay_record::Offset;
use forebay_record::batch::{BatchError, Limits, decode, split_first};
use forebay_runtime::backoff::{Backoff, Policy};
use futures_util::StreamExt;
use futures_util::stream;
use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;
use crate::fetch::{Bounds, Want};
use crate::routes::Owner;

/// Positions in one request.
const PARTITIONS_MAX: usize = 10_000;
/// Positions asked for at once.
const AT_ONCE: usize = 32;
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
        let position = match asked.position {
            Some(Asked::Earliest(_)) => Ok(Position::Earliest),
            Some(Asked::Latest(_)) => Ok(Position::Latest),
            Some(Asked::TimestampMs(time)) => Ok(Position::Timestamp(time)),
            None => Err(Failure::new(ErrorCode::InvalidRequest, "no position is given")),
        };
        let found = match position {
            Ok(position) => self.position(&asked.topic, asked.partition, position).await,
            Err(failure) => Err(failure),
        };
        let mut answer = PartitionOffset {
            topic: asked.topic,
            partition: asked.partition,
            ..PartitionOffset::default()
        };
        match found {
            Ok(found) => {
                answer.offset = found.map(|(offset, _)| offset.0);
                answer.timestamp_ms = found.and_then(|(_, timestamp)| timestamp);
            }
            Err(failure) => {
                self.metrics.failure(failure.code);
                answer.error = Some(Error::from(failure));
            }
        }
        answer
    }

    async fn position(
        &self,
        topic: &str,
        number: u32,
        position: Position,
    ) -> Result<Option<(Offset, Option<i64>)>, Failure> {
        let mut backoff = Backoff::new(RETRIES, Arc::clone(&self.clock), Arc::clone(&self.random));
        loop {
            let tried = self
                .try_position(topic, number, position, backoff.retries() > 0)
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
        position: Position,
        again: bool,
    ) -> Result<Option<(Offset, Option<i64>)>, Failure> {
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
        let Some(offset) = self.fetcher.position(&owner, partition.id, position).await? else {
            return Ok(None);
        };
        match position {
            Position::Earliest | Position::Latest => Ok(Some((offset, None))),
            Position::Timestamp(time) => self.first_at(owner, partition.id, offset, time).await,
        }
    }

    /// The first record at or after a time, in the batch at `base` or in one after it.
    async fn first_at(
        &self,
        owner: Owner,
        id: forebay_record::PartitionId,
        base: Offset,
        time: i64,
    ) -> Result<Option<(Offset, Option<i64>)>, Failure> {
        // Decompressed records are the larger part of what this takes.
        let room = u32::try_from(self.config.decompressed_bytes_max).unwrap_or(u32::MAX);
        let _admitted = self.fetcher.admit(room).await?;
        let want = Want {
            index: 0,
            id,
            owner,
            offset: base,
            max_bytes: 1,
        };
        let bounds = Bounds {
            min_bytes: 0,
            max_bytes: 1,
            wait: Duration::ZERO,
        };
        let found = self.fetcher.ask_owner(bounds, vec![want]).await.pop();
        let Some((_, found)) = found else {
            return Ok(Some((base, None)));
        };
        let found = found?;
        let bytes = joined(found.batches);
        if bytes.is_empty() {
            return Ok(Some((base, None)));
        }
        let unreadable = |error: BatchError| {
            Failure::new(
                ErrorCode::CorruptLog,
                format!("batch at {base} of partition {id} cannot be read: {error}"),
            )
        };
        let limits = Limits {
            decompressed_bytes_max: self.config.decompressed_bytes_max,
            ..Limits::default()
        };
        let (header, batch, _) = split_first(&bytes).map_err(unreadable)?;
        for record in decode(&batch, &limits).map_err(unreadable)?.records() {
            let record = record.map_err(unreadable)?;
            let at = record.timestamp_ms(&header);
            if at >= time {
                return Ok(Some((record.offset(&header), Some(at))));
            }
        }
        Ok(Some((base, None)))
    }
}

fn joined(pieces: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([only]) => only,
        Err(pieces) => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}
