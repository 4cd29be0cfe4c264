//! Reading below the owner's tail: a plan from the owner, the bytes from storage nodes or, where a
//! range was offloaded, from the object store ([`super::cold`]).
//!
//! Each segment is read up to the bound that was stated for it and for no other (I13, I14). A
//! replica that does not have the bytes sends the reader to the next one, then for a new plan,
//! a bounded number of times; it never means that the log ends (I15, I23). A place that no plan helps to
//! read rests between two tries ([`super::trouble`]). Plans are kept for
//! [`PLAN_FRESH_FOR`], so that a consumer far behind costs the owner next to nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::data::endpoint::{FrontProtocol, ReplicaProtocol};
use forebay_proto::data::front::{FromBroker, PlanSegment, ReadPlan, ToBroker};
use forebay_proto::data::replica::{FromNode, ReadRequest, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{Generation, NodeId, Offset, PartitionId};
use forebay_runtime::backoff::{Backoff, Policy};
use forebay_runtime::clock::{self, Clock};
use forebay_runtime::random::Random;
use parking_lot::Mutex;

use super::cold::Cold;
use super::plan::{self, Next, Place};
use super::trouble::Troubles;
use crate::membership::Membership;
use crate::metrics::ProxyMetrics;
use crate::peer::Pool;
use crate::routes::Owner;

/// How long a plan is used without asking again.
const PLAN_FRESH_FOR: Duration = Duration::from_secs(5);
const PLANS_MAX: usize = 8192;
/// Further plans tried for one read, none where the last read of the same place failed.
const ROUNDS_MAX: u32 = 4;
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(3);
const OWNER_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF: Policy = Policy {
    base: Duration::from_millis(5),
    ceiling: Duration::from_millis(200),
    retries_max: ROUNDS_MAX,
    deadline: Duration::from_secs(10),
};

/// Bytes read around the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caught {
    pub high_watermark: Offset,
    pub log_start: Offset,
    /// Empty where the plan ends at the offset.
    pub batches: Bytes,
    /// The offset was declared lost; the log goes on there.
    pub skip_to: Option<Offset>,
}

/// Whether a plan says where an offset is.
fn is_covered(plan: &ReadPlan, offset: Offset) -> bool {
    matches!(
        plan::place(plan, offset),
        Place::Segment(_) | Place::Run(_) | Place::Manifest(_) | Place::Gap(_)
    )
}

struct Known {
    plan: Arc<ReadPlan>,
    at: Duration,
}

pub(crate) struct CatchUp {
    pub fronts: Pool<FrontProtocol>,
    pub nodes: Pool<ReplicaProtocol>,
    pub membership: Membership,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: ProxyMetrics,
    cold: Option<Cold>,
    plans: Mutex<HashMap<PartitionId, Known>>,
    troubles: Mutex<Troubles>,
    /// Spreads reads over replicas.
    turn: AtomicUsize,
    /// Replicas here are read first; none where the zone is not known.
    zone: Option<String>,
}

impl CatchUp {
    pub(crate) fn new(
        fronts: Pool<FrontProtocol>,
        nodes: Pool<ReplicaProtocol>,
        membership: Membership,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        metrics: ProxyMetrics,
        cold: Option<Cold>,
    ) -> Self {
        let (plans, troubles, turn) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        Self {
            fronts,
            nodes,
            membership,
            clock,
            random,
            metrics,
            cold,
            plans,
            troubles,
            turn,
            zone: None,
        }
    }

    /// Reads replicas of this zone first; an empty one is not known.
    #[must_use]
    pub(crate) fn in_zone(self, zone: &str) -> Self {
        let zone = (!zone.is_empty()).then(|| zone.to_owned());
        Self { zone, ..self }
    }

    /// Whether a fresh plan says where an offset is: then the owner need not be asked at all.
    pub(crate) fn covers(&self, partition: PartitionId, offset: Offset) -> bool {
        self.fresh(partition)
            .is_some_and(|plan| is_covered(&plan, offset))
    }

    pub(super) fn cold(&self, partition: PartitionId) -> Result<&Cold, Failure> {
        self.cold.as_ref().ok_or_else(|| {
            let what = format!(
                "partition {partition} is partly in the object store, and this proxy has none: object_store.url is empty"
            );
            Failure::new(ErrorCode::Unavailable, what)
        })
    }

    fn fresh(&self, partition: PartitionId) -> Option<Arc<ReadPlan>> {
        let now = self.clock.monotonic();
        let plans = self.plans.lock();
        let known = plans.get(&partition)?;
        (now.saturating_sub(known.at) < PLAN_FRESH_FOR).then(|| Arc::clone(&known.plan))
    }

    /// Reads about `max_bytes` from an offset.
    ///
    /// Cancel safety: may be dropped at any await; requests under way are withdrawn.
    pub(crate) async fn read(
        &self,
        owner: &Owner,
        partition: PartitionId,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Caught, Failure> {
        let place = (partition, from);
        if let Some(failure) = self.troubles.lock().rests(place, self.clock.monotonic()) {
            return Err(failure);
        }
        let read = self.try_read(owner, partition, from, max_bytes).await;
        if read.is_ok() {
            self.troubles.lock().over(place);
        }
        read
    }

    async fn try_read(
        &self,
        owner: &Owner,
        partition: PartitionId,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Caught, Failure> {
        let mut backoff = Backoff::new(BACKOFF, Arc::clone(&self.clock), Arc::clone(&self.random));
        // A plan that does not reach the offset says nothing about it: the log has grown since.
        let reaches = |plan: &Arc<ReadPlan>| is_covered(plan, from);
        let mut known = self.fresh(partition).filter(reaches);
        loop {
            let plan = match known.take() {
                Some(plan) => plan,
                None => self.ask(owner, partition, from).await?,
            };
            let (high_watermark, log_start) = (plan.high_watermark, plan.log_start);
            let read = match plan::place(&plan, from) {
                Place::Segment(segment) => self.read_segment(segment, from, max_bytes).await,
                Place::Run(run) => match self.cold(partition) {
                    Ok(cold) => cold.read_run(partition, run, from, max_bytes).await,
                    Err(failure) => Err(failure),
                },
                Place::Manifest(manifest) => match self.cold(partition) {
                    Ok(cold) => cold.read_manifest(partition, manifest, from, max_bytes).await,
                    Err(failure) => Err(failure),
                },
                Place::BelowStart => {
                    return Err(super::out_of_range(partition, from, log_start, high_watermark));
                }
                Place::Gap(end) => {
                    tracing::warn!(%partition, %from, %end, "a reader is led over a range that was declared lost");
                    return Ok(Caught {
                        high_watermark,
                        log_start,
                        batches: Bytes::new(),
                        skip_to: Some(end),
                    });
                }
                Place::Beyond => {
                    return Ok(Caught {
                        high_watermark,
                        log_start,
                        batches: Bytes::new(),
                        skip_to: None,
                    });
                }
                Place::Missing => Err(Failure::new(
                    ErrorCode::Unavailable,
                    format!("partition {partition} offset {from} lies in no segment of the owner's plan"),
                )),
            };
            let failure = match read {
                Ok(batches) => {
                    self.metrics.bytes_out_catch_up.inc_by(batches.len() as u64);
                    return Ok(Caught {
                        high_watermark,
                        log_start,
                        batches,
                        skip_to: None,
                    });
                }
                Err(failure) => failure,
            };
            // Whatever the plan said did not help: forget it.
            self.plans.lock().remove(&partition);
            let place = (partition, from);
            if self.troubles.lock().knows(place) || backoff.wait().await.is_err() {
                let now = self.clock.monotonic();
                self.troubles.lock().failed(place, failure.clone(), now);
                return Err(failure);
            }
            tracing::debug!(%partition, %from, %failure, "reading with a new plan");
        }
    }

    pub(super) async fn ask(
        &self,
        owner: &Owner,
        partition: PartitionId,
        from: Offset,
    ) -> Result<Arc<ReadPlan>, Failure> {
        let session = self.fronts.session(owner.broker, &owner.address).await?;
        let epoch = owner.epoch;
        let asking = session.request(|request| ToBroker::Plan {
            request,
            partition,
            epoch,
            from,
        });
        let answer = clock::timeout(&*self.clock, OWNER_TIMEOUT, asking).await;
        let answer = answer.map_err(|elapsed| {
            Failure::new(
                ErrorCode::Unavailable,
                format!("broker {} gave no plan: {elapsed}", owner.broker),
            )
        })??;
        let FromBroker::Plan { result, .. } = answer else {
            return Err(super::unexpected("broker", owner.broker));
        };
        let plan = Arc::new(result?);
        let mut plans = self.plans.lock();
        if plans.len() >= PLANS_MAX && !plans.contains_key(&partition) {
            plans.clear();
        }
        plans.insert(
            partition,
            Known {
                plan: Arc::clone(&plan),
                at: self.clock.monotonic(),
            },
        );
        Ok(plan)
    }

    /// Tries each replica once: those of this zone first, and starting with another one each time.
    pub(super) async fn read_segment(
        &self,
        segment: &PlanSegment,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, Failure> {
        let count = segment.replicas.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let view = self.membership.now();
        let is_near = |node| {
            let zone = view.nodes.get(&node).map(|record| record.zone.as_str());
            self.zone.is_some() && zone == self.zone.as_deref()
        };
        let mut damaged = 0;
        let mut reasons = String::new();
        for (node, generation) in plan::order(&segment.replicas, turn, is_near) {
            let why = match self
                .read_replica(segment, node, generation, from, max_bytes)
                .await
            {
                Ok(batches) => return Ok(batches),
                Err((next, why)) => {
                    damaged += usize::from(next == Next::Damaged);
                    why
                }
            };
            reasons.push_str(&format!("; storage node {node}: {why}"));
        }
        let code = if count > 0 && damaged == count {
            ErrorCode::CorruptLog
        } else {
            ErrorCode::Unavailable
        };
        let what = format!(
            "segment {} offset {from} cannot be read from {count} replicas{reasons}",
            segment.segment
        );
        Err(Failure::new(code, what))
    }

    async fn read_replica(
        &self,
        segment: &PlanSegment,
        node: NodeId,
        generation: Generation,
        from: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, (Next, String)> {
        let address = self
            .membership
            .now()
            .nodes
            .get(&node)
            .map(|record| Arc::from(record.data_address.as_str()));
        let address: Arc<str> = address.ok_or_else(|| (Next::Elsewhere, "not registered".to_owned()))?;
        let read = ReadRequest {
            segment: segment.segment,
            generation,
            from,
            until: segment.until,
            max_bytes,
        };
        let asking = async {
            let session = self.nodes.session(node, &address).await?;
            session.request(|request| ToNode::Read { request, read }).await
        };
        let answer = clock::timeout(&*self.clock, NODE_TIMEOUT, asking).await;
        let answer = answer.map_err(|elapsed| (Next::Elsewhere, elapsed.to_string()))?;
        match answer.map_err(|failure| (Next::Elsewhere, failure.message))? {
            FromNode::Read {
                result: Ok(bytes), ..
            } => {
                let answered = bytes.len();
                plan::visible(bytes, from, segment).ok_or_else(|| {
                    (
                        Next::Elsewhere,
                        format!("{answered} bytes without a batch that holds {from}"),
                    )
                })
            }
            FromNode::Read {
                result: Err(failure), ..
            } => Err((plan::after(failure), format!("{failure:?}"))),
            _ => Err((Next::Elsewhere, "answered something else".to_owned())),
        }
    }
}
