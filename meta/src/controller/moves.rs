//! Planned moves: away from brokers that are drained, and between brokers that are unequally loaded.
//!
//! A planned move is a wish that names the session of the broker that has the partition. That broker
//! hands over in order and takes its session out of the wish; at most [`MOVING_MAX`] moves are under
//! way, and to balance at most [`BALANCING_MAX`]. A broker that ends before it has handed over is waited for no longer.
//!
//! What was moved, when and why is logged and kept under one key, the newest [`REMEMBERED`] of it, so
//! that it outlives this leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::stored::{MoveRecord, MovesRecord};
use forebay_record::{BrokerId, PartitionId, SessionId};
use forebay_runtime::clock::timeout;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Stop;
use super::balance::{Limits, plan_moves};
use super::health::ProbeError;
use super::leader::{Leader, Progress, Step};
use super::view::View;
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::record::encode;
use crate::store::Op;

/// Planned moves under way at a time.
const MOVING_MAX: usize = 64;
/// The same where only balance is the reason.
const BALANCING_MAX: usize = 16;
/// A partition that was moved stays at least this long, unless its broker is lost or drained.
const REST: Duration = Duration::from_secs(60);
/// Time between two looks at who has how much.
pub(super) const BALANCE_EVERY: Duration = Duration::from_secs(5);
/// Time between two questions about loads.
pub(super) const WEIGH_EVERY: Duration = Duration::from_secs(10);
const WEIGH_TIMEOUT: Duration = Duration::from_secs(3);
/// Entries kept of what was moved.
const REMEMBERED: usize = 32;

/// Asks the broker at a control address for the bytes a second of each partition it owns.
pub type Weigh =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<Vec<(PartitionId, u64)>, ProbeError>> + Send + Sync>;

/// How partitions are spread over brokers that live.
#[derive(Clone)]
pub struct Balancing {
    /// Knows what each broker has.
    pub weigh: Weigh,
    /// Whether partitions are moved for balance at all.
    pub rebalance: bool,
}

/// What brokers have said of their partitions.
pub(super) type Weights = Vec<(PartitionId, u64)>;

impl Leader {
    /// Asks all brokers that live how much each partition has.
    pub(super) fn weigh(&self, view: &View) -> BoxFuture<'static, Weights> {
        let live = self.live(view);
        let brokers = view.brokers().iter().filter(|(id, _)| live.contains(id));
        let answers: FuturesUnordered<_> = brokers
            .map(|(id, broker)| {
                let (id, clock) = (*id, Arc::clone(&self.clock));
                let answer = (self.balancing.weigh)(broker.control_address.clone());
                async move {
                    match timeout(&*clock, WEIGH_TIMEOUT, answer).await {
                        Ok(Ok(weights)) => weights,
                        Ok(Err(error)) => {
                            tracing::debug!(broker = id.0, %error, "loads are not known");
                            Vec::new()
                        }
                        Err(elapsed) => {
                            tracing::debug!(broker = id.0, %elapsed, "loads are not known");
                            Vec::new()
                        }
                    }
                }
            })
            .collect();
        Box::pin(answers.concat())
    }

    /// Wishes of sessions that have ended: nobody is waited for any more.
    pub(super) fn plan_unwaited(&self, view: &View) -> Vec<Step> {
        let live = self.live(view);
        let sessions: BTreeSet<SessionId> = (view.brokers().iter())
            .filter(|(id, _)| live.contains(id))
            .map(|(_, broker)| broker.session)
            .collect();
        view.waiting()
            .filter(|(_, wish)| !sessions.contains(&wish.from))
            .filter_map(|(partition, wish)| {
                Some(Step {
                    partition,
                    from: wish.broker,
                    to: wish.broker?,
                    hands_over: SessionId(0),
                    why: String::new(),
                })
            })
            .collect()
    }

    /// Moves that are due now.
    pub(super) fn plan_moves(&self, view: &View, progress: &mut Progress) -> Vec<Step> {
        let now = self.clock.monotonic();
        let live = self.live(view);
        let (draining, targets): (BTreeSet<_>, BTreeSet<_>) = live
            .into_iter()
            .partition(|id| view.brokers().get(id).is_some_and(|broker| broker.draining));
        let drains = draining.iter().any(|id| view.wished_at(*id) > 0);
        let balances = self.balancing.rebalance && now >= progress.balance_at;
        // Half of the moves are let go before more are planned: each look is at all partitions.
        if !progress.settled || !(drains && view.moving() <= MOVING_MAX / 2 || balances) {
            return Vec::new();
        }
        if balances {
            progress.balance_at = now.saturating_add(BALANCE_EVERY);
        }
        let limits = Limits {
            drain: MOVING_MAX.saturating_sub(view.moving()),
            balance: if balances {
                BALANCING_MAX.saturating_sub(view.moving())
            } else {
                0
            },
            resumes: progress.resumes,
        };
        // What is being drained need not rest.
        let rest = if drains { Duration::ZERO } else { REST };
        let plan = plan_moves(view.held(now, rest), &targets, &draining, limits);
        if limits.balance > 0 {
            progress.resumes = !drains && plan.len() == limits.balance;
        }
        plan.into_iter()
            .filter_map(|one| {
                Some(Step {
                    partition: one.partition,
                    from: Some(one.from),
                    to: one.to,
                    hands_over: view.brokers().get(&one.from)?.session,
                    why: one.why,
                })
            })
            .collect()
    }

    /// Logs what was moved, and remembers it. Steps without a reason are no moves.
    pub(super) async fn remember(&self, steps: &[Step], progress: &mut Progress) -> Result<(), Stop> {
        let mut groups: BTreeMap<(u32, u32, &str), MoveRecord> = BTreeMap::new();
        for step in steps.iter().filter(|step| !step.why.is_empty()) {
            let from = step.from.map_or(0, BrokerId::get);
            let group = groups
                .entry((from, step.to.0, &step.why))
                .or_insert_with(|| MoveRecord {
                    at_ms: self.clock.now_unix_ms(),
                    partitions: 0,
                    partition_id: step.partition.0,
                    from,
                    to: step.to.0,
                    why: step.why.clone(),
                });
            group.partitions += 1;
        }
        if groups.is_empty() {
            return Ok(());
        }
        for one in groups.values() {
            let MoveRecord {
                partitions,
                from,
                to,
                why,
                ..
            } = one;
            tracing::info!(partitions, from, to, why, "moves partitions");
        }
        let moves = match progress.moves.take() {
            Some(moves) => moves,
            None => {
                let (entry, _) = self.store.get(keys::MOVES).await.map_err(MetaFailure::from)?;
                entry
                    .as_ref()
                    .and_then(|entry| decode::<MovesRecord>(entry).ok())
                    .unwrap_or_default()
            }
        };
        let mut moves = moves.moves;
        moves.extend(groups.into_values());
        let old = moves.len().saturating_sub(REMEMBERED);
        let record = MovesRecord {
            moves: moves.split_off(old),
        };
        let txn = self.guarded().then(Op::put(keys::MOVES, encode(&record)));
        let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
        if !reply.succeeded {
            self.still_leads(&reply)?;
        }
        progress.moves = Some(record);
        Ok(())
    }
}
