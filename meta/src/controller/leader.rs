//! What the leader does: one idempotent tick, whatever woke it.
//!
//! 1. Load the view; follow topics, sessions, wishes and the election itself from there on.
//! 2. Woken by a change, by the prober or by the timer: place what has no live broker, take
//!    deleted topics further, sweep for orphans; each by a bounded step. Whether something is left
//!    of deleted partitions is asked beside that.
//! 3. History lost to compaction leads back to 1; a lost election ends it.
//!
//! Nothing here is remembered between leaders: what one leaves undone, the next one sees.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::stored::{MovesRecord, PlacementRecord};
use forebay_record::{BrokerId, PartitionId, SessionId};
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::stream::{BoxStream, SelectAll};
use tokio::sync::watch;

use super::drain::{Asked, Holders};
use super::moves::{Balancing, WEIGH_EVERY, Weights};
use super::place::plan_placement;
use super::probe::Sick;
use super::status::{BrokerStatus, ControllerMetrics, Status};
use super::sweep::Sweep;
use super::view::{View, Wish};
use super::{Patients, Stop};
use crate::failure::MetaFailure;
use crate::keys;
use crate::record::encode;
use crate::store::{
    Compare, Entry, MetaStore, Op, Revision, Txn, TxnError, TxnReply, WatchBatch, WatchError, WatchEvent,
    WatchKind,
};
use crate::topics::CHUNK;

/// The timer's period.
const TICK: Duration = Duration::from_secs(1);
/// Transactions of wishes, and chunks of deleted topics, in one tick.
const CHUNKS_PER_TICK: usize = 32;
/// After the first broker was seen, how long a new leader leaves wishes alone whose brokers it has
/// never seen: a cluster that starts as a whole comes up broker by broker, and the first one
/// should not be given everything.
const SETTLE: Duration = Duration::from_secs(2);
/// Failures in a row after which they are logged as warnings.
const FAILURES_QUIET: u32 = 3;

pub(super) struct Leader {
    pub(super) store: Arc<dyn MetaStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) metrics: ControllerMetrics,
    pub(super) holders: Holders,
    pub(super) balancing: Balancing,
    /// Create revision of `/controller`.
    pub(super) election: Revision,
    pub(super) patients: watch::Sender<Patients>,
    pub(super) sick: watch::Receiver<Sick>,
    pub(super) status: watch::Sender<Status>,
}

/// What is kept from one tick to the next.
#[derive(Default)]
pub(super) struct Progress {
    sweep: Sweep,
    /// When wishes of brokers never seen are up for replacement; unknown before the first broker.
    settles_at: Option<Duration>,
    pub(super) settled: bool,
    /// When balance is looked at next.
    pub(super) balance_at: Duration,
    /// The last moves for balance were as many as might be: more are to follow.
    pub(super) resumes: bool,
    /// When brokers are asked next how much their partitions have.
    weigh_at: Duration,
    /// What was moved lately; none before it was read.
    pub(super) moves: Option<MovesRecord>,
    failures: u32,
    last_failure: Option<String>,
}

/// A change of one wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) partition: PartitionId,
    /// Where it was wished to be.
    pub(super) from: Option<BrokerId>,
    /// Where it is to be.
    pub(super) to: BrokerId,
    /// The session that hands it over first; zero where there is none to wait for.
    pub(super) hands_over: SessionId,
    /// For log and status; empty where nothing is moved.
    pub(super) why: String,
}

type Watches = SelectAll<BoxStream<'static, Result<WatchBatch, WatchError>>>;

impl Leader {
    /// A transaction that only the leader can make. Its first read on failure is the election,
    /// for [`Leader::still_leads`].
    pub(super) fn guarded(&self) -> Txn {
        Txn::new()
            .when(Compare::CreateRevision(
                keys::CONTROLLER.to_owned(),
                self.election,
            ))
            .otherwise(Op::get(keys::CONTROLLER))
    }

    /// Whether a guarded transaction failed for another reason than a lost election.
    pub(super) fn still_leads(&self, failed: &TxnReply) -> Result<(), Stop> {
        match failed.reads.first() {
            Some(Some(entry)) if entry.create_revision == self.election => Ok(()),
            _ => Err(Stop::Deposed),
        }
    }

    /// Leads until that ends.
    pub(super) async fn lead(self) -> Result<Infallible, Stop> {
        let mut progress = Progress::default();
        loop {
            match View::load(&*self.store).await {
                Ok((view, revision)) => {
                    tracing::info!(%revision, brokers = view.brokers().len(), topics = view.topics_live(), "controller has read the metadata");
                    self.follow(view, revision, &mut progress).await?;
                }
                Err(failure) => {
                    self.failed(&mut progress, failure.into())?;
                    self.clock.sleep(TICK).await;
                }
            }
        }
    }

    /// Keeps a view and acts on it until history is lost.
    async fn follow(&self, mut view: View, revision: Revision, progress: &mut Progress) -> Result<(), Stop> {
        let mut watches = self.watch(revision);
        let mut sick = self.sick.clone();
        let mut timer = self.clock.sleep(Duration::ZERO);
        let mut more = false;
        let mut question: OptionFuture<BoxFuture<'static, Asked>> = None.into();
        let mut asking = false;
        let mut weighing: OptionFuture<BoxFuture<'static, Weights>> = None.into();
        let mut weighs = false;
        loop {
            tokio::select! {
                // Cancel safety: a question that is dropped with this loop changes nothing.
                Some(asked) = &mut question, if asking => {
                    asking = false;
                    if let Err(stop) = self.on_asked(&mut view, asked).await {
                        self.failed(progress, stop)?;
                    }
                }
                // Cancel safety: as above.
                Some(weights) = &mut weighing, if weighs => {
                    weighs = false;
                    weights.into_iter().for_each(|(id, bytes)| view.weigh(id, bytes));
                }
                batch = watches.next() => match batch {
                    Some(Ok(batch)) => self.on_events(&mut view, &batch.events)?,
                    Some(Err(WatchError::Compacted { at })) => {
                        tracing::info!(%at, "controller missed changes and reads everything again");
                        return Ok(());
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(Stop::Closed),
                },
                changed = sick.changed() => {
                    if changed.is_err() {
                        return Err(Stop::Closed);
                    }
                    view.dirty = true;
                }
                () = std::future::ready(()), if more => {}
                () = &mut timer => {
                    timer = self.clock.sleep(TICK);
                    if let Err(stop) = self.sweep(&view, &mut progress.sweep).await {
                        self.failed(progress, stop)?;
                    }
                    self.settle(&mut view, progress);
                }
            }
            let now = self.clock.monotonic();
            if !weighs && self.balancing.rebalance && now >= progress.weigh_at {
                progress.weigh_at = now.saturating_add(WEIGH_EVERY);
                weighing = Some(self.weigh(&view)).into();
                weighs = true;
            }
            if !asking && let Some(next) = self.next_question(&view) {
                question = Some(next).into();
                asking = true;
            }
            let started = self.clock.monotonic();
            more = match self.tick(&mut view, progress).await {
                Ok(more) => {
                    progress.failures = 0;
                    more
                }
                Err(stop) => {
                    self.failed(progress, stop)?;
                    false
                }
            };
            self.metrics
                .tick_seconds
                .observe(self.clock.monotonic().saturating_sub(started).as_secs_f64());
            self.report(&view, progress);
        }
    }

    fn watch(&self, after: Revision) -> Watches {
        let prefixes = [keys::TOPICS, keys::BROKERS, keys::WISHES, keys::CONTROLLER];
        let stream = |prefix| {
            let watch = self.store.watch(prefix, after);
            futures_util::stream::unfold(
                watch,
                |mut watch| async move { Some((watch.next().await?, watch)) },
            )
            .boxed()
        };
        futures_util::stream::select_all(prefixes.map(stream))
    }

    fn on_events(&self, view: &mut View, events: &[WatchEvent]) -> Result<(), Stop> {
        for event in events {
            if event.key() != keys::CONTROLLER {
                view.apply(event);
                continue;
            }
            match &event.kind {
                WatchKind::Put(entry) if entry.create_revision <= self.election => {}
                WatchKind::Delete { .. } if event.revision <= self.election => {}
                WatchKind::Put(_) | WatchKind::Delete { .. } => return Err(Stop::Deposed),
            }
        }
        Ok(())
    }

    fn settle(&self, view: &mut View, progress: &mut Progress) {
        let now = self.clock.monotonic();
        if progress.settles_at.is_none() && !view.brokers().is_empty() {
            progress.settles_at = Some(now.saturating_add(SETTLE));
        }
        if !progress.settled && progress.settles_at.is_some_and(|at| now >= at) {
            progress.settled = true;
            view.dirty = true;
        }
    }

    /// One step of everything; true where there is more to do at once.
    async fn tick(&self, view: &mut View, progress: &mut Progress) -> Result<bool, Stop> {
        if std::mem::take(&mut view.brokers_changed) {
            self.patients.send_replace(view.patients());
        }
        let more_wishes = view.dirty && self.place(view, progress).await?;
        let moves = self.plan_moves(view, progress);
        if !moves.is_empty() {
            self.carry_out(view, &moves, progress).await?;
            let now = self.clock.monotonic();
            moves.iter().for_each(|step| view.moved(step.partition, now));
        }
        let more_removals = !view.removals.is_empty() && self.remove(view, CHUNKS_PER_TICK).await?;
        Ok(more_wishes || more_removals)
    }

    /// Brokers that have a session and do not count as dead.
    pub(super) fn live(&self, view: &View) -> BTreeSet<BrokerId> {
        let sick = self.sick.borrow();
        let well = |id: &BrokerId, session| sick.get(id).is_none_or(|(dead, _)| *dead != session);
        view.brokers()
            .iter()
            .filter(|(id, broker)| well(id, broker.session))
            .map(|(id, _)| *id)
            .collect()
    }

    async fn place(&self, view: &mut View, progress: &mut Progress) -> Result<bool, Stop> {
        let live = self.live(view);
        // Brokers that are drained get nothing, unless there is nobody else.
        let drained = |id: &BrokerId| view.brokers().get(id).is_some_and(|broker| broker.draining);
        let takers: BTreeSet<_> = live.iter().filter(|id| !drained(id)).copied().collect();
        let takers = if takers.is_empty() { live.clone() } else { takers };
        let settled = progress.settled;
        let gone = |broker| !live.contains(&broker) && (settled || view.has_seen(broker));
        let placed = plan_placement(view.wanted(), &takers, gone);
        let mut plan: Vec<_> = placed
            .into_iter()
            .map(|one| Step {
                partition: one.partition,
                from: one.from,
                to: one.to,
                // Whoever was to hand over still does, if it lives; the next step sees to that.
                hands_over: view.wish(one.partition).map_or(SessionId(0), |wish| wish.from),
                why: one
                    .from
                    .map(|from| format!("broker {} is gone", from.0))
                    .unwrap_or_default(),
            })
            .collect();
        if plan.is_empty() && view.moving() > 0 {
            plan = self.plan_unwaited(view);
        }
        view.dirty = false;
        if !plan.is_empty() {
            let moved = plan.iter().filter(|step| step.from.is_some()).count();
            tracing::info!(
                partitions = plan.len(),
                moved,
                brokers = live.len(),
                "placing partitions"
            );
        }
        self.carry_out(view, &plan, progress).await
    }

    /// Writes the wishes of a plan, as many as one tick takes; true where some are left.
    async fn carry_out(&self, view: &mut View, plan: &[Step], progress: &mut Progress) -> Result<bool, Stop> {
        let mut lost = false;
        for chunk in plan.chunks(CHUNK).take(CHUNKS_PER_TICK) {
            match self.wish(view, chunk).await {
                Ok(written) => lost |= !written,
                Err(stop) => {
                    view.dirty = true;
                    return Err(stop);
                }
            }
        }
        let more = lost || plan.len() > CHUNK * CHUNKS_PER_TICK || view.moving() > 0 && !plan.is_empty();
        view.dirty |= more;
        let written = plan
            .get(..plan.len().min(CHUNK * CHUNKS_PER_TICK))
            .unwrap_or(plan);
        self.remember(written, progress).await?;
        Ok(more)
    }

    /// Writes the wishes of one chunk, all or none; false where one was not as the view has it.
    async fn wish(&self, view: &mut View, chunk: &[Step]) -> Result<bool, Stop> {
        let mut txn = self.guarded();
        for step in chunk {
            let key = keys::wish(step.partition);
            let value = encode(&PlacementRecord {
                broker: step.to.0,
                from_session: step.hands_over.0,
            });
            txn = txn
                .when(Compare::ModRevision(
                    key.clone(),
                    view.wish_revision(step.partition),
                ))
                .then(Op::put(key.clone(), value))
                .otherwise(Op::get(key));
        }
        let reply = match self.store.txn(txn).await {
            Ok(reply) => reply,
            Err(error) => {
                if matches!(error, TxnError::Unknown(_)) {
                    self.read_wishes(view, chunk).await?;
                }
                return Err(MetaFailure::from(error).into());
            }
        };
        if reply.succeeded {
            for step in chunk {
                let (partition, from, to) = (step.partition.0, step.from.map(BrokerId::get), step.to.0);
                tracing::debug!(partition, from, to, "partition placed");
                view.set_wish(
                    step.partition,
                    Wish {
                        broker: Some(step.to),
                        from: step.hands_over,
                        revision: reply.revision,
                    },
                );
            }
            // What was just written needs no further plan, the rest of this one is still to come.
            view.dirty = false;
            self.metrics.wishes_written.inc_by(chunk.len() as u64);
            return Ok(true);
        }
        self.still_leads(&reply)?;
        take_wishes(view, chunk, reply.reads.into_iter().skip(1), reply.revision);
        Ok(false)
    }

    /// Learns what became of a transaction of unknown outcome. If it is still on its way, the next
    /// one excludes it or is excluded by it, through the revisions that both compare.
    async fn read_wishes(&self, view: &mut View, chunk: &[Step]) -> Result<(), Stop> {
        let wish_keys: Vec<String> = chunk.iter().map(|step| keys::wish(step.partition)).collect();
        let (entries, revision) = self.store.get_many(&wish_keys).await.map_err(MetaFailure::from)?;
        take_wishes(view, chunk, entries.into_iter(), revision);
        Ok(())
    }

    /// Notes a failure that the next tick makes up for; hands on one that ends the leadership.
    fn failed(&self, progress: &mut Progress, stop: Stop) -> Result<(), Stop> {
        if stop.is_final() || matches!(stop, Stop::Deposed) {
            return Err(stop);
        }
        progress.failures = progress.failures.saturating_add(1);
        progress.last_failure = Some(stop.to_string());
        self.metrics.failures.inc();
        if progress.failures > FAILURES_QUIET {
            tracing::warn!(failures = progress.failures, %stop, "controller cannot work");
        } else {
            tracing::debug!(failures = progress.failures, %stop, "controller tick failed");
        }
        Ok(())
    }

    fn report(&self, view: &View, progress: &Progress) {
        let sick = self.sick.borrow().clone();
        let mut status = Status {
            leader: true,
            election: Some(self.election),
            topics: view.topics_live(),
            topics_deleting: view.removals.len(),
            topics_draining: view.draining.len(),
            last_failure: progress.last_failure.clone(),
            ..Status::default()
        };
        let mut placed = 0;
        for (id, broker) in view.brokers() {
            let illness = sick.get(id).filter(|(session, _)| *session == broker.session);
            let partitions = view.wished_at(*id);
            placed += if illness.is_none() { partitions } else { 0 };
            let broker = BrokerStatus {
                session: broker.session,
                control_address: broker.control_address.clone(),
                illness: illness.map(|(_, illness)| *illness),
                draining: broker.draining,
                partitions,
            };
            status.brokers.insert(*id, broker);
        }
        status.partitions = view.wanted_count();
        status.unplaced = status.partitions.saturating_sub(placed);
        self.metrics.show(&status);
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
    }
}

fn take_wishes(
    view: &mut View,
    chunk: &[Step],
    entries: impl Iterator<Item = Option<Entry>>,
    revision: Revision,
) {
    for (step, entry) in chunk.iter().zip(entries) {
        match entry {
            Some(entry) => view.set_wish(step.partition, Wish::of(&entry)),
            None => view.clear_wish(step.partition, revision),
        }
    }
}
