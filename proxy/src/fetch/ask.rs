//! One owner's part of a fetch: its tail, and around it what the tail no longer holds.

use std::time::Duration;

use forebay_proto::data::front::{Fetch, FetchPartition, Fetched, FromBroker, Position, ToBroker};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::Offset;
use forebay_runtime::clock;
use futures_util::StreamExt;
use futures_util::stream;

use super::{Bounds, Fetcher, Found, Want, out_of_range, unexpected};
use crate::routes::Owner;

/// How much longer than asked an owner is waited for.
const GRACE: Duration = Duration::from_secs(3);
/// Catch-up reads of one owner's partitions at once.
const READS_MAX: usize = 16;

impl Fetcher {
    /// Asks one owner for its partitions; never fails as a whole.
    pub(crate) async fn ask_owner(
        &self,
        bounds: Bounds,
        wants: Vec<Want>,
    ) -> Vec<(usize, Result<Found, Failure>)> {
        // A plan that is still fresh leads to the storage nodes without asking.
        let (mut behind, asked): (Vec<_>, Vec<_>) = wants
            .into_iter()
            .partition(|want| self.catch_up.covers(want.id, want.offset));
        let mut results = Vec::with_capacity(asked.len() + behind.len());
        let bounds = if behind.is_empty() {
            bounds
        } else {
            Bounds {
                wait: Duration::ZERO,
                min_bytes: 0,
                ..bounds
            }
        };
        let answers = self.ask_tail(bounds, &asked).await;
        let mut left = bounds.max_bytes;
        for (want, answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(fetched) if fetched.behind => behind.push(want),
                Ok(fetched) => {
                    let found = self.found(&want, fetched).await;
                    let bytes = found.as_ref().map_or(0, Found::bytes);
                    left = left.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
                    results.push((want.index, found));
                }
                Err(failure) if failure.code == ErrorCode::OffsetOutOfRange => {
                    let judged = self.judge_range(&want).await;
                    results.push((want.index, judged));
                }
                Err(failure) => results.push((want.index, Err(failure))),
            }
        }
        let share = (left / u32::try_from(behind.len().max(1)).unwrap_or(u32::MAX)).max(1);
        let mut reads = stream::iter(behind)
            .map(|want| self.read_behind(want, share))
            .buffer_unordered(READS_MAX);
        while let Some(read) = reads.next().await {
            results.push(read);
        }
        results
    }

    async fn read_behind(&self, want: Want, share: u32) -> (usize, Result<Found, Failure>) {
        let caught = self
            .catch_up
            .read(&want.owner, want.id, want.offset, want.max_bytes.min(share))
            .await;
        let found = caught.map(|caught| Found {
            high_watermark: caught.high_watermark,
            log_start: caught.log_start,
            batches: if caught.batches.is_empty() {
                Vec::new()
            } else {
                vec![caught.batches]
            },
            skip_to: caught.skip_to,
        });
        (want.index, found)
    }

    /// One answer for each partition, in order.
    async fn ask_tail(&self, bounds: Bounds, wants: &[Want]) -> Vec<Result<Fetched, Failure>> {
        let Some(first) = wants.first() else {
            return Vec::new();
        };
        let broker = first.owner.broker;
        let asking = async {
            let session = self.fronts.session(broker, &first.owner.address).await?;
            session
                .request(|request| ToBroker::Fetch(message(request, bounds, wants)))
                .await
        };
        let outcome = match clock::timeout(&*self.clock, bounds.wait.saturating_add(GRACE), asking).await {
            Ok(Ok(FromBroker::Fetched { partitions, .. })) if partitions.len() == wants.len() => {
                return partitions;
            }
            Ok(Ok(_)) => unexpected("broker", broker),
            Ok(Err(failure)) => failure,
            Err(elapsed) => Failure::new(
                ErrorCode::Unavailable,
                format!("broker {broker} did not answer a fetch: {elapsed}"),
            ),
        };
        vec![Err(outcome); wants.len()]
    }

    /// An offset beyond what the owner believes is the end is out of range only once the owner
    /// has confirmed its end with the storage nodes: it may have been deposed.
    async fn found(&self, want: &Want, fetched: Fetched) -> Result<Found, Failure> {
        if want.offset > fetched.high_watermark {
            return self.judge_range(want).await;
        }
        let Fetched {
            high_watermark,
            log_start,
            batches,
            ..
        } = fetched;
        Ok(Found {
            high_watermark,
            log_start,
            batches,
            skip_to: None,
        })
    }

    async fn judge_range(&self, want: &Want) -> Result<Found, Failure> {
        let log_start = self
            .position(&want.owner, want.id, Position::Earliest)
            .await?
            .unwrap_or_default();
        let end = self
            .position(&want.owner, want.id, Position::Latest)
            .await?
            .unwrap_or_default();
        if want.offset < log_start || want.offset > end {
            return Err(out_of_range(want.id, want.offset, log_start, end));
        }
        Ok(Found {
            high_watermark: end,
            log_start,
            batches: Vec::new(),
            skip_to: None,
        })
    }

    /// Asks the owner for a position.
    pub(crate) async fn position(
        &self,
        owner: &Owner,
        partition: forebay_record::PartitionId,
        position: Position,
    ) -> Result<Option<Offset>, Failure> {
        let asking = async {
            let session = self.fronts.session(owner.broker, &owner.address).await?;
            let epoch = owner.epoch;
            session
                .request(|request| ToBroker::Offsets {
                    request,
                    partition,
                    epoch,
                    position,
                })
                .await
        };
        match clock::timeout(&*self.clock, GRACE, asking).await {
            Ok(Ok(FromBroker::Offsets { result, .. })) => result,
            Ok(Ok(_)) => Err(unexpected("broker", owner.broker)),
            Ok(Err(failure)) => Err(failure),
            Err(elapsed) => {
                let what = format!("broker {} did not tell a position: {elapsed}", owner.broker);
                Err(Failure::new(ErrorCode::Unavailable, what))
            }
        }
    }
}

fn message(request: u64, bounds: Bounds, wants: &[Want]) -> Fetch {
    Fetch {
        request,
        min_bytes: bounds.min_bytes,
        max_bytes: bounds.max_bytes,
        max_wait_ms: u32::try_from(bounds.wait.as_millis()).unwrap_or(u32::MAX),
        partitions: wants
            .iter()
            .map(|want| FetchPartition {
                partition: want.id,
                epoch: want.owner.epoch,
                offset: want.offset,
                max_bytes: want.max_bytes.min(bounds.max_bytes),
            })
            .collect(),
    }
}
