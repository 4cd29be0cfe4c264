//! Fetch: the owners' tails first, storage nodes for what is older.
//!
//! 1. Bytes are taken from the pool of answers, then every owner is asked once without waiting.
//! 2. Where that is not enough, all but a little is given back and the owners are asked to wait;
//!    an idle consumer holds [`WAITING_BYTES`], and so much ends its wait however much more it
//!    asked for. Enough from some withdraws the rest.
//! 3. What an owner no longer has in memory is read by [`catch_up`].
//! 4. A partition whose owner moves is asked for again until the request's deadline.
//!
//! An answer larger than what is held loses partitions until it fits, but for the first: beyond
//! the pool there is at most one batch per answer, since owners and nodes return the first whole. Dropping a fetch withdraws all it has asked.

mod ask;
pub(crate) mod catch_up;
pub(crate) mod cold;
pub(crate) mod lookup;
pub(crate) mod plan;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::data::endpoint::FrontProtocol;
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, FetchRequest, PartitionFetch, RetryClass};
use forebay_record::{BrokerId, Offset, PartitionId};
use forebay_runtime::clock::{self, Clock};
use forebay_runtime::permits::BytePermits;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::front::Admitted;
use crate::metrics::ProxyMetrics;
use crate::peer::Pool;
use crate::routes::{Owner, Routes};
use catch_up::CatchUp;

/// Largest answer.
pub const ANSWER_BYTES_MAX: u32 = 32 << 20;
/// Partitions in one request.
pub(crate) const PARTITIONS_MAX: usize = forebay_proto::data::front::FETCH_PARTITIONS_MAX;
/// Held by a fetch that waits, and about as much as it is answered then.
const WAITING_BYTES: u32 = 128 << 10;
/// Longest wait that is granted.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for room in the pool.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// A moving partition is asked for this often even where the request does not wait.
const TRIES_MIN: u32 = 3;
const REST: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// One partition of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionAnswer {
    pub topic: String,
    pub partition: u32,
    pub high_watermark: Offset,
    pub log_start: Offset,
    pub batches: Vec<Bytes>,
    /// The offset was declared lost; the log goes on there.
    pub skip_to: Option<Offset>,
    pub failure: Option<Failure>,
}

/// An answer, with the bytes it holds until it is sent.
#[derive(Debug)]
pub(crate) struct FetchAnswer {
    pub partitions: Vec<PartitionAnswer>,
    pub admitted: Option<Admitted>,
}

/// What was found for one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    pub high_watermark: Offset,
    pub log_start: Offset,
    pub batches: Vec<Bytes>,
    /// The offset was declared lost; the log goes on there.
    pub skip_to: Option<Offset>,
}

impl Found {
    fn bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }
}

/// One partition to ask an owner for.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// Its place in the request.
    pub index: usize,
    pub id: PartitionId,
    pub owner: Owner,
    pub offset: Offset,
    pub max_bytes: u32,
}

/// The bounds of one round of questions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub min_bytes: u32,
    pub max_bytes: u32,
    pub wait: Duration,
}

pub(crate) struct Fetcher {
    pub routes: Routes,
    pub fronts: Pool<FrontProtocol>,
    pub catch_up: CatchUp,
    pub permits: BytePermits,
    pub clock: Arc<dyn Clock>,
    pub metrics: ProxyMetrics,
}

type Slots = Vec<Option<Result<Found, Failure>>>;

impl Fetcher {
    /// Answers a request.
    ///
    /// Cancel safety: may be dropped at any await; what was asked is withdrawn.
    pub(crate) async fn fetch(&self, request: FetchRequest) -> Result<FetchAnswer, Failure> {
        let FetchRequest {
            partitions,
            min_bytes,
            max_bytes,
            max_wait_ms,
        } = request;
        if partitions.len() > PARTITIONS_MAX {
            let what = format!(
                "{} partitions in one fetch, {PARTITIONS_MAX} are allowed",
                partitions.len()
            );
            return Err(Failure::new(ErrorCode::InvalidRequest, what));
        }
        let max_bytes = if max_bytes == 0 {
            ANSWER_BYTES_MAX
        } else {
            max_bytes.min(ANSWER_BYTES_MAX)
        };
        let started = self.clock.monotonic();
        let deadline = started.saturating_add(Duration::from_millis(max_wait_ms.into()).min(WAIT_MAX));
        let mut admitted = self.admit(max_bytes).await?;
        let min_bytes = min_bytes.min(max_bytes) as usize;
        let mut slots: Slots = vec![None; partitions.len()];
        let mut tries = 0;
        loop {
            let waiting = tries > 0;
            let left = deadline.saturating_sub(self.clock.monotonic());
            let bounds = Bounds {
                min_bytes: if waiting {
                    u32::try_from(min_bytes)
                        .unwrap_or(u32::MAX)
                        .clamp(1, WAITING_BYTES)
                } else {
                    0
                },
                max_bytes: if waiting {
                    max_bytes.min(WAITING_BYTES)
                } else {
                    max_bytes
                },
                wait: if waiting { left } else { Duration::ZERO },
            };
            // Settled are failures that no retry changes; all else is asked for again.
            let open: Vec<_> = (0..slots.len())
                .filter(|at| !is_final(slots.get(*at).and_then(Option::as_ref)))
                .collect();
            self.round(&partitions, &open, bounds, &mut slots).await;
            tries += 1;
            let moving = slots
                .iter()
                .flatten()
                .any(|slot| matches!(slot, Err(failure) if may_move(failure)));
            let refused = slots
                .iter()
                .flatten()
                .any(|slot| matches!(slot, Err(failure) if !may_move(failure)));
            let bytes: usize = slots.iter().flatten().flatten().map(Found::bytes).sum();
            let timely = self.clock.monotonic() < deadline;
            // News of a gap are as good as records.
            let led = slots
                .iter()
                .flatten()
                .flatten()
                .any(|found| found.skip_to.is_some());
            let enough = led || (bytes > 0 && bytes >= min_bytes);
            if enough || refused || partitions.is_empty() || (!timely && (!moving || tries >= TRIES_MIN)) {
                break;
            }
            // A quiet end of a wait; the deadline was just not reached by this clock's measure.
            if waiting && !moving && (bytes > 0 || left.is_zero()) {
                break;
            }
            // What is held and what is kept stay the same while others are waited for.
            for found in slots.iter_mut().flatten().flatten() {
                found.batches.clear();
            }
            admitted.shrink_to(WAITING_BYTES.into());
            // A pause also where an owner answers a wait at once: it is asked again, but not in a rush.
            if moving || waiting {
                let rest = REST
                    .0
                    .saturating_mul(2_u32.saturating_pow(tries.min(8)))
                    .min(REST.1);
                self.clock.sleep(rest).await;
            }
        }
        let mut answers = assemble(partitions, slots);
        self.fit(&mut answers, &mut admitted);
        Ok(FetchAnswer {
            partitions: answers,
            admitted: Some(admitted),
        })
    }

    pub(crate) async fn admit(&self, bytes: u32) -> Result<Admitted, Failure> {
        let bytes = u64::from(bytes).min(self.permits.request_bytes_max());
        let granted = clock::timeout(&*self.clock, ROOM_TIMEOUT, self.permits.acquire(bytes)).await;
        match granted {
            Ok(Ok(permit)) => Ok(Admitted::new(permit, &self.metrics.answer_bytes_held)),
            Ok(Err(closed)) => Err(Failure::new(ErrorCode::ShuttingDown, closed.to_string())),
            Err(_elapsed) => {
                let (free, max) = (self.permits.available(), self.permits.bytes_max());
                let what = format!(
                    "no room for an answer of {bytes} bytes within {ROOM_TIMEOUT:?}: {free} of {max} are free"
                );
                Err(Failure::new(ErrorCode::Overloaded, what))
            }
        }
    }

    /// Asks for the partitions at these places of the request and fills their slots.
    async fn round(&self, partitions: &[PartitionFetch], open: &[usize], bounds: Bounds, slots: &mut Slots) {
        let mut owners: BTreeMap<BrokerId, Vec<Want>> = BTreeMap::new();
        let mut count = 0;
        for &index in open {
            let Some(asked) = partitions.get(index) else {
                continue;
            };
            let again = matches!(slots.get(index), Some(Some(Err(failure))) if may_move(failure));
            match self.want(index, asked, again).await {
                Ok(want) => {
                    owners.entry(want.owner.broker).or_default().push(want);
                    count += 1;
                }
                Err(failure) => set(slots, index, Err(failure)),
            }
        }
        let share = |total: u32, wants: &Vec<Want>| plan::share(total, wants.len(), count);
        let mut asking: FuturesUnordered<_> = owners
            .into_values()
            .map(|wants| {
                let min_bytes = if bounds.min_bytes == 0 {
                    0
                } else {
                    share(bounds.min_bytes, &wants)
                };
                self.ask_owner(
                    Bounds {
                        min_bytes,
                        max_bytes: share(bounds.max_bytes, &wants),
                        ..bounds
                    },
                    wants,
                )
            })
            .collect();
        let mut bytes = 0;
        while let Some(results) = asking.next().await {
            for (index, result) in results {
                bytes += result.as_ref().map_or(0, Found::bytes);
                set(slots, index, result);
            }
            // Enough: dropping the other questions withdraws them.
            if bounds.min_bytes > 0 && bytes >= bounds.min_bytes as usize {
                break;
            }
        }
    }

    async fn want(&self, index: usize, asked: &PartitionFetch, again: bool) -> Result<Want, Failure> {
        let route = if again {
            self.routes.refresh(&asked.topic).await?
        } else {
            self.routes.get(&asked.topic).await?
        };
        let partition = route.partition(asked.partition)?;
        let owner = partition.owner.clone().ok_or_else(|| {
            let what = format!(
                "topic {} partition {} has no owner now",
                asked.topic, asked.partition
            );
            Failure::new(ErrorCode::NotOwner, what)
        })?;
        let max_bytes = if asked.max_bytes == 0 {
            ANSWER_BYTES_MAX
        } else {
            asked.max_bytes.min(ANSWER_BYTES_MAX)
        };
        Ok(Want {
            index,
            id: partition.id,
            owner,
            offset: Offset(asked.offset),
            max_bytes,
        })
    }

    /// Makes the answer and what is held for it the same.
    fn fit(&self, answers: &mut [PartitionAnswer], admitted: &mut Admitted) {
        let size = |answers: &[PartitionAnswer]| -> u64 {
            answers
                .iter()
                .flat_map(|one| &one.batches)
                .map(|batch| batch.len() as u64)
                .sum()
        };
        let bytes = size(answers);
        if bytes > admitted.bytes()
            && let Ok(more) = self.permits.try_acquire(bytes - admitted.bytes())
        {
            admitted.add(more);
        }
        // A partition's batches go or stay together: they may be cut into pieces anywhere.
        let mut left = admitted.bytes();
        let mut first = true;
        for one in answers.iter_mut().filter(|one| !one.batches.is_empty()) {
            let bytes: u64 = one.batches.iter().map(|batch| batch.len() as u64).sum();
            if std::mem::take(&mut first) || bytes <= left {
                left = left.saturating_sub(bytes);
            } else {
                one.batches.clear();
            }
        }
        let bytes = size(answers);
        admitted.shrink_to(bytes);
        self.metrics.bytes_out.inc_by(bytes);
    }
}

fn set(slots: &mut Slots, index: usize, result: Result<Found, Failure>) {
    if let Some(slot) = slots.get_mut(index) {
        *slot = Some(result);
    }
}

/// Whether a partition's owner may be another one in a moment.
fn may_move(failure: &Failure) -> bool {
    failure.retry() == RetryClass::Elsewhere
        || matches!(
            failure.code,
            ErrorCode::UnknownEpoch | ErrorCode::Unavailable | ErrorCode::ShuttingDown
        )
}

fn is_final(slot: Option<&Result<Found, Failure>>) -> bool {
    matches!(slot, Some(Err(failure)) if !may_move(failure))
}

fn assemble(partitions: Vec<PartitionFetch>, slots: Slots) -> Vec<PartitionAnswer> {
    let unasked = || Ok(Found::default());
    partitions
        .into_iter()
        .zip(slots)
        .map(|(asked, slot)| {
            let (found, failure) = match slot.unwrap_or_else(unasked) {
                Ok(found) => (found, None),
                Err(failure) => (Found::default(), Some(failure)),
            };
            PartitionAnswer {
                topic: asked.topic,
                partition: asked.partition,
                high_watermark: found.high_watermark,
                log_start: found.log_start,
                batches: found.batches,
                skip_to: found.skip_to,
                failure,
            }
        })
        .collect()
}

pub(crate) fn out_of_range(
    partition: PartitionId,
    offset: Offset,
    log_start: Offset,
    end: Offset,
) -> Failure {
    let what = if offset < log_start {
        format!("partition {partition}: offset {offset} is below the log start {log_start}")
    } else {
        format!("partition {partition}: offset {offset} is beyond the end {end}")
    };
    Failure::new(ErrorCode::OffsetOutOfRange, what)
}

pub(crate) fn unexpected(what: &str, peer: impl std::fmt::Display) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("{what} {peer} answered something else than was asked"),
    )
}
