//! Sealed segments keep their copies: replicas that are lost, lack something, or lie on a node that is
//! to be emptied are replaced.
//!
//! 1. [`Owner::tend_repairs`] looks at every sealed segment of the chain once a second. What a
//!    connected replica has is found by a survey; one that is away counts as lost after a while, at once
//!    where no more copies than the last are left.
//! 2. A topic that is offloaded repairs itself by that: the segment leaves the chain. Only where the
//!    object store does not take it the driver is asked for a copy, one at a time for each
//!    partition, the most endangered first.
//! 3. A copy is whole once the new node says so, durably. Then, if it is still wanted, one
//!    compare-and-swap names the new node in the lost one's place (T8). A replica that the record names
//!    already and that lacks the end of a segment, or bytes that were damaged, is completed where it is;
//!    but not on a node that shows damage again and again, where another can take the replica.
//! 4. An open segment that lost a replica, or has one that is damaged, or on a node that is to be
//!    emptied, is rolled.
//!
//! Never copies more than `[base, end)`, and never touches an open segment. Where no copy is left there
//! is nothing to repeat: the loss stays visible until somebody comes back with the bytes.

use std::collections::{BTreeMap, BTreeSet};

use forebay_meta::model::Segment;
use forebay_proto::data::replica::Surveyed;
use forebay_record::{Generation, NodeId, Offset, SegmentId};

use super::action::{Action, Context, Repair, Urgency};
use super::owner::{Owner, Phase};
use super::placement;

/// Time between two looks at a partition.
const LOOK_MS: u64 = 1_000;
/// A replica may lack the end of a segment for so long after it was sealed, and a survey that
/// found so is repeated.
const SETTLE_MS: u64 = 5_000;
/// Pauses after failures: from here, doubling, up to the second.
const PAUSE_MS: (u64, u64) = (1_000, 60_000);
/// A node that took no copy is passed over for so long.
const AVOID_MS: u64 = 30_000;
/// Where offloading has failed for so long, segments are copied between nodes instead.
pub(super) const OFFLOAD_PATIENCE_MS: u64 = 120_000;
/// Failed copies of a segment without a sound replica, after which it is lost as far as anybody can
/// tell.
const ATTEMPTS_MAX: u32 = 3;

/// Damage on a node within so long of the last counts as the same incident.
const INCIDENT_MS: u64 = 600_000;
/// After so many incidents replicas go to another node, where there is one.
const INCIDENTS_MAX: u32 = 3;

/// How often a node's replicas were found to be damaged.
#[derive(Debug, Clone, Copy)]
struct Incidents {
    count: u32,
    last_ms: u64,
}

/// What is known of one replica of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not surveyed since it connected.
    Unknown,
    /// It has all of the segment.
    Whole,
    /// Its end is missing.
    Short,
    /// Bytes may be missing anywhere.
    Damaged,
}

#[derive(Debug)]
struct Watched {
    generation: Generation,
    standing: Standing,
    /// When it was first seen in this chain.
    since_ms: u64,
    /// Since when it is not what it should be, none while it is.
    bad_since_ms: Option<u64>,
    asked_ms: Option<u64>,
}

/// How a replica is, by the view of the nodes and by its survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Its node is gone, or has another generation: what it had does not come back.
    Gone,
    /// No session.
    Away,
    /// There, and as surveyed; on a node that is to be emptied or not.
    Here(Standing, bool),
}

/// Sealed segments of a partition that are not as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Endangered {
    /// With fewer sound copies than they should have, whether or not they are being repaired.
    pub under_replicated: usize,
    /// Of these, with a single copy left.
    pub last_copy: usize,
    /// Without any copy, here or in the object store.
    pub lost: usize,
    /// Bytes of replicas that are to be made.
    pub bytes: u64,
}

/// What an owner knows of its sealed segments' replicas.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    replicas: BTreeMap<(SegmentId, NodeId), Watched>,
    /// Asked of the driver.
    job: Option<Repair>,
    /// Copied whole, to be named in the record.
    copied: Option<Repair>,
    /// Failed copies by segment.
    attempts: BTreeMap<SegmentId, u32>,
    avoid: BTreeMap<NodeId, u64>,
    /// Copies of this ownership's that nobody needs. Their nodes were told so, and are again when they
    /// come back: they may have been away.
    unwanted: BTreeSet<(NodeId, SegmentId)>,
    /// By node, for as long as the partition is owned here.
    incidents: BTreeMap<NodeId, Incidents>,
    failures: u32,
    next_ms: u64,
    next_look_ms: u64,
    /// Losses that were told.
    told: BTreeSet<SegmentId>,
    endangered: Endangered,
}

impl Repairs {
    fn count_incident(&mut self, node: NodeId, now_ms: u64) {
        let known = self.incidents.entry(node).or_insert(Incidents {
            count: 1,
            last_ms: now_ms,
        });
        if now_ms.saturating_sub(known.last_ms) >= INCIDENT_MS {
            known.count = known.count.saturating_add(1);
        }
        known.last_ms = now_ms;
    }
}

impl Owner {
    /// Sealed segments that are not as they should be, as of the last look.
    #[must_use]
    pub const fn endangered(&self) -> Endangered {
        self.repairs.endangered
    }

    /// A node found that bytes of a replica are damaged. It takes nothing more for an open segment, which
    /// is ended as with any replica that refuses for good; then it is repaired like every sealed one.
    pub fn on_damaged(&mut self, segment: SegmentId, node: NodeId, ctx: &mut Context<'_>) {
        if let Some(writer) = self.writer_mut(segment) {
            if writer.give_up(node) {
                tracing::warn!(%segment, %node, "a replica of an open segment is damaged: it is ended");
                self.mend(ctx);
            }
            return;
        }
        let damaged = Surveyed {
            sound: false,
            tail: Offset(0),
        };
        self.on_surveyed(node, segment, Some(damaged), ctx);
        self.repairs.next_look_ms = ctx.now_ms;
    }

    /// A node said what it has of a segment.
    pub fn on_surveyed(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        found: Option<Surveyed>,
        ctx: &mut Context<'_>,
    ) {
        let linked = self.record.chain.iter().find(|one| one.id == segment);
        let Some(end) = linked.and_then(|one| one.end) else {
            return;
        };
        let Some(watched) = self.repairs.replicas.get_mut(&(segment, node)) else {
            return;
        };
        watched.asked_ms = Some(ctx.now_ms);
        watched.standing = match found {
            Some(found) if !found.sound => Standing::Damaged,
            Some(found) if found.tail >= end => Standing::Whole,
            Some(_) | None => Standing::Short,
        };
    }

    /// Whether a connected replica of a sealed segment was found to lack something, or bytes of it may be
    /// damaged.
    pub(super) fn is_suspect(&self, segment: SegmentId, node: NodeId) -> bool {
        let watched = self.repairs.replicas.get(&(segment, node));
        watched.is_some_and(|one| matches!(one.standing, Standing::Short | Standing::Damaged))
    }

    /// A node came back: what it has is not known any more.
    pub(super) fn survey_again(&mut self, node: NodeId, now_ms: u64) {
        for ((_, of), watched) in &mut self.repairs.replicas {
            if *of == node {
                watched.standing = Standing::Unknown;
                watched.asked_ms = None;
            }
        }
        self.repairs.attempts.clear();
        self.repairs.avoid.remove(&node);
        self.repairs.next_look_ms = now_ms;
    }

    /// Does what is due for the copies of sealed segments.
    pub(super) fn tend_repairs(&mut self, ctx: &mut Context<'_>) {
        if self.storing.is_some() || !matches!(self.phase, Phase::Serving) {
            return;
        }
        if self.repairs.copied.is_some() {
            return self.name_copy(ctx);
        }
        if ctx.now_ms < self.repairs.next_look_ms {
            return;
        }
        self.repairs.next_look_ms = ctx.now_ms + LOOK_MS;
        self.roll_away(ctx);
        if self
            .record
            .chain
            .first()
            .is_none_or(|oldest| oldest.end.is_none())
        {
            self.repairs.told.clear();
            self.repairs.unwanted.clear();
            self.repairs.replicas.clear();
            self.repairs.attempts.clear();
            self.repairs.endangered = Endangered::default();
            return;
        }
        self.watch(ctx);
        let jobs = self.judge(ctx);
        let due = ctx.now_ms >= self.repairs.next_ms && self.repairs.job.is_none() && ctx.meta_healthy;
        if let Some(job) = jobs.into_iter().min_by_key(|job| job.urgency)
            && due
        {
            self.repairs.job = Some(job.clone());
            self.repairs.unwanted.remove(&(job.to.0, job.segment.id));
            ctx.out.push(Action::Repair(Box::new(job)));
        }
    }

    /// Learns what can be learnt about every replica of a sealed segment.
    fn watch(&mut self, ctx: &mut Context<'_>) {
        let chain = &self.record.chain;
        let sealed = || chain.iter().filter(|one| one.end.is_some());
        let listed: BTreeSet<_> = sealed()
            .flat_map(|one| one.replicas.iter().map(|(node, _)| (one.id, *node)))
            .collect();
        self.repairs.replicas.retain(|key, _| listed.contains(key));
        self.repairs
            .attempts
            .retain(|id, _| chain.iter().any(|one| one.id == *id));
        self.repairs
            .told
            .retain(|id| chain.iter().any(|one| one.id == *id));
        self.repairs
            .unwanted
            .retain(|(_, id)| chain.iter().any(|one| one.id == *id));
        self.repairs.avoid.retain(|_, until| *until > ctx.now_ms);
        for segment in sealed() {
            for (node, generation) in &segment.replicas {
                let fresh = || Watched {
                    generation: *generation,
                    standing: Standing::Unknown,
                    since_ms: ctx.now_ms,
                    bad_since_ms: None,
                    asked_ms: None,
                };
                let watched = self
                    .repairs
                    .replicas
                    .entry((segment.id, *node))
                    .or_insert_with(fresh);
                if watched.generation != *generation {
                    *watched = fresh();
                }
                let presence = presence_of(watched, *node, ctx);
                let good = matches!(
                    presence,
                    Presence::Here(Standing::Whole | Standing::Unknown, false)
                );
                watched.bad_since_ms = match (good, watched.bad_since_ms) {
                    (true, _) => None,
                    (false, since) => since.or(Some(ctx.now_ms)),
                };
                let ask = match presence {
                    Presence::Here(Standing::Unknown | Standing::Short, _) => true,
                    Presence::Here(Standing::Whole | Standing::Damaged, _)
                    | Presence::Gone
                    | Presence::Away => false,
                };
                let settled = ctx.now_ms.saturating_sub(watched.since_ms) >= SETTLE_MS;
                let again = watched
                    .asked_ms
                    .is_none_or(|asked| ctx.now_ms.saturating_sub(asked) >= SETTLE_MS);
                if ask && settled && again {
                    watched.asked_ms = Some(ctx.now_ms);
                    ctx.out.push(Action::Survey {
                        node: *node,
                        segment: segment.id,
                        generation: *generation,
                    });
                }
            }
        }
    }

    /// Counts what is endangered, and says what could be copied now.
    fn judge(&mut self, ctx: &mut Context<'_>) -> Vec<Repair> {
        let mut endangered = Endangered::default();
        let (mut jobs, mut by_offload) = (Vec::new(), false);
        let mut told = Vec::new();
        for segment in self.record.chain.iter().filter(|one| one.end.is_some()) {
            let of: Vec<_> = segment
                .replicas
                .iter()
                .filter_map(|(node, generation)| {
                    let watched = self.repairs.replicas.get(&(segment.id, *node))?;
                    Some(((*node, *generation), watched, presence_of(watched, *node, ctx)))
                })
                .collect();
            let whole = of
                .iter()
                .filter(|(.., presence)| matches!(presence, Presence::Here(Standing::Whole, _)))
                .count();
            let open_question = of.iter().any(|(.., presence)| {
                matches!(presence, Presence::Away | Presence::Here(Standing::Unknown, _))
            });
            let readable = of
                .iter()
                .any(|(.., presence)| matches!(presence, Presence::Here(..)));
            let bad: Vec<_> = of
                .iter()
                .filter_map(|(replica, watched, presence)| Some((*replica, *presence, watched.bad_since_ms?)))
                .collect();
            if bad.is_empty() {
                continue;
            }
            let tried = self
                .repairs
                .attempts
                .get(&segment.id)
                .copied()
                .unwrap_or_default();
            let hopeless = whole == 0 && !open_question && (!readable || tried >= ATTEMPTS_MAX);
            if hopeless {
                endangered.lost += 1;
                told.push(segment.id);
                continue;
            }
            endangered.under_replicated += 1;
            endangered.last_copy += usize::from(whole == 1 && segment.replicas.len() > 1);
            endangered.bytes += segment.bytes * bad.len() as u64;
            let unknown = of
                .iter()
                .any(|(.., presence)| matches!(presence, Presence::Here(Standing::Unknown, _)));
            let thin = whole < usize::from(segment.ack_quorum) && whole > 0 && !unknown;
            let due = bad.into_iter().filter(|(_, presence, since)| {
                let waited = ctx.now_ms.saturating_sub(*since);
                match presence {
                    Presence::Away => thin || waited >= self.config.repair_after_ms,
                    Presence::Here(Standing::Short, false) => waited >= SETTLE_MS,
                    Presence::Gone | Presence::Here(..) => true,
                }
            });
            for (lost, presence, since_ms) in due {
                if self.is_offload_working(ctx) {
                    by_offload = true;
                    continue;
                }
                let urgency = Urgency {
                    copies: whole,
                    since_ms,
                    bytes: segment.bytes,
                };
                jobs.extend(self.plan_repair(segment, lost, presence, urgency, ctx));
            }
        }
        for id in told {
            if self.repairs.told.insert(id) {
                tracing::error!(segment = %id, "no replica of a sealed segment is left, and it is not in the object store: data loss");
            }
        }
        if by_offload {
            self.past.urge();
        }
        self.repairs.endangered = endangered;
        jobs
    }

    fn plan_repair(
        &self,
        segment: &Segment,
        lost: (NodeId, Generation),
        presence: Presence,
        urgency: Urgency,
        ctx: &Context<'_>,
    ) -> Option<Repair> {
        let elsewhere = || {
            let avoid = self.repairs.avoid.keys().copied().collect();
            placement::replace(segment, lost, ctx.nodes, &avoid)
        };
        let here = Some(lost).filter(|(node, _)| !self.repairs.avoid.contains_key(node));
        let to = match presence {
            Presence::Here(Standing::Short, false) => here,
            Presence::Here(Standing::Damaged, false) => {
                let incidents = self.repairs.incidents.get(&lost.0);
                let others = segment.replicas.iter().filter(|replica| **replica != lost);
                // Nobody can heal from itself; another node may save what is left.
                let here = here.filter(|_| {
                    others
                        .clone()
                        .any(|replica| self.is_there(segment.id, *replica, ctx))
                });
                if incidents.is_some_and(|incidents| incidents.count >= INCIDENTS_MAX) {
                    elsewhere().or(here)
                } else {
                    here.or_else(elsewhere)
                }
            }
            _ => elsewhere(),
        }?;
        let listed = to == lost;
        let zone = |node: &NodeId| ctx.nodes.get(node).map(|view| view.zone.as_str());
        let mut sources: Vec<_> = segment
            .replicas
            .iter()
            .filter(|replica| **replica != to)
            .filter_map(|(node, generation)| {
                let watched = self.repairs.replicas.get(&(segment.id, *node))?;
                let rank = match presence_of(watched, *node, ctx) {
                    Presence::Here(Standing::Whole, _) => 0,
                    Presence::Here(Standing::Unknown, _) => 1,
                    // Frames are checked one by one: what can be read of these is right.
                    Presence::Here(Standing::Short, _) => 2,
                    Presence::Here(Standing::Damaged, _) => 3,
                    Presence::Gone | Presence::Away => return None,
                };
                let elsewhere = zone(node) != zone(&to.0);
                Some(((rank, elsewhere, *node), (*node, *generation)))
            })
            .collect();
        sources.sort_unstable();
        let sources: Vec<_> = sources.into_iter().map(|(_, replica)| replica).collect();
        (!sources.is_empty()).then(|| Repair {
            segment: segment.clone(),
            lost,
            to,
            listed,
            sources,
            by: self.record.epoch,
            urgency,
        })
    }

    /// Whether a replica's node is connected, under the generation that the record names.
    fn is_there(&self, segment: SegmentId, (node, _): (NodeId, Generation), ctx: &Context<'_>) -> bool {
        let watched = self.repairs.replicas.get(&(segment, node));
        watched.is_some_and(|watched| matches!(presence_of(watched, node, ctx), Presence::Here(..)))
    }

    /// Whether a copy that was asked for is still wanted: the driver asks before it begins.
    #[must_use]
    pub fn wants_repair(&self, repair: &Repair, ctx: &Context<'_>) -> bool {
        self.repairs.job.as_ref() == Some(repair) && self.is_wanted(repair, ctx)
    }

    fn is_wanted(&self, repair: &Repair, ctx: &Context<'_>) -> bool {
        let (node, generation) = repair.lost;
        let linked = self.record.is_replica(repair.segment.id, node, generation);
        let watched = self.repairs.replicas.get(&(repair.segment.id, node));
        let good = watched.is_some_and(|watched| {
            matches!(
                presence_of(watched, node, ctx),
                Presence::Here(Standing::Whole, false)
            )
        });
        linked && !good
    }

    /// A copy is whole, or failed for a reason that the driver has logged.
    pub fn on_repaired(&mut self, segment: SegmentId, whole: bool, ctx: &mut Context<'_>) {
        let Some(job) = self.repairs.job.take_if(|job| job.segment.id == segment) else {
            return;
        };
        if !whole {
            let (first, most) = PAUSE_MS;
            let pause = first.saturating_mul(1 << self.repairs.failures.min(6)).min(most);
            self.repairs.failures = self.repairs.failures.saturating_add(1);
            self.repairs.next_ms = ctx.now_ms + pause;
            self.repairs.avoid.insert(job.to.0, ctx.now_ms + AVOID_MS);
            *self.repairs.attempts.entry(segment).or_default() += 1;
            self.forget_copy(&job, ctx);
            return;
        }
        self.repairs.failures = 0;
        self.repairs.attempts.remove(&segment);
        self.repairs.next_look_ms = ctx.now_ms;
        if job.listed {
            if let Some(watched) = self.repairs.replicas.get_mut(&(segment, job.to.0)) {
                let was = std::mem::replace(&mut watched.standing, Standing::Whole);
                if was == Standing::Damaged {
                    self.repairs.count_incident(job.to.0, ctx.now_ms);
                }
            }
            ctx.out.push(Action::Repaired(Box::new(job)));
        } else {
            self.repairs.copied = Some(job);
        }
        self.tend_repairs(ctx);
    }

    /// Names a whole copy in the record, if it is still wanted (T8). What another change overtook is
    /// decided again on the record as it is then.
    fn name_copy(&mut self, ctx: &mut Context<'_>) {
        let Some(job) = self.repairs.copied.take() else {
            return;
        };
        let id = job.segment.id;
        if self.record.is_replica(id, job.to.0, job.to.1) {
            self.forget_replaced(&job, ctx);
            ctx.out.push(Action::Repaired(Box::new(job)));
            return;
        }
        if !self.is_wanted(&job, ctx) {
            return self.forget_copy(&job, ctx);
        }
        match self.record.replace_replica(id, job.lost, job.to, ctx.nonce) {
            Ok(changed) => {
                self.repairs.copied = Some(job);
                self.submit(Ok(changed), ctx);
            }
            Err(refused) => {
                tracing::info!(segment = %id, %refused, "a copy is not needed any more");
                self.forget_copy(&job, ctx);
            }
        }
    }

    /// Where the replica that was replaced is itself a copy of this ownership's, its node may not have seen
    /// that the record named it, and would keep it to be named yet.
    fn forget_replaced(&mut self, job: &Repair, ctx: &mut Context<'_>) {
        let (node, id) = (job.lost.0, job.segment.id);
        let linked = self.record.chain.iter().find(|one| one.id == id);
        if linked.is_some_and(|one| one.generation_of(node).is_none()) {
            self.forget(node, id, ctx);
        }
    }

    fn forget_copy(&mut self, job: &Repair, ctx: &mut Context<'_>) {
        if !job.listed {
            self.forget(job.to.0, job.segment.id, ctx);
        }
    }

    fn forget(&mut self, node: NodeId, segment: SegmentId, ctx: &mut Context<'_>) {
        self.repairs.unwanted.insert((node, segment));
        let by = self.record.epoch;
        ctx.out.push(Action::ForgetCopy { node, segment, by });
    }

    /// A node that may have been away is told again.
    pub(super) fn forget_again(&self, node: NodeId, ctx: &mut Context<'_>) {
        let by = self.record.epoch;
        let named = |id| {
            let mut chain = self.record.chain.iter();
            chain.any(|one| one.id == id && one.generation_of(node).is_some())
        };
        for (on, segment) in &self.repairs.unwanted {
            let segment = *segment;
            if *on == node && !named(segment) {
                ctx.out.push(Action::ForgetCopy { node, segment, by });
            }
        }
    }

    /// Ends an open segment with a replica that is lost, or away for long, or on a node that is to be
    /// emptied, as soon as there are enough other nodes.
    fn roll_away(&mut self, ctx: &mut Context<'_>) {
        let Some(writer) = &self.linked else {
            self.repairs_open_since(None);
            return;
        };
        let (mut leave, mut away) = (false, false);
        for (node, generation) in &writer.segment.replicas {
            match ctx.nodes.get(node) {
                None => leave = true,
                Some(view) if view.generation != *generation || view.leaving => leave = true,
                Some(view) => away |= !view.connected,
            }
        }
        let id = writer.segment.id;
        let since = self.repairs_open_since(away.then_some((id, ctx.now_ms)));
        let long = since.is_some_and(|since| ctx.now_ms.saturating_sub(since) >= self.config.repair_after_ms);
        let usable = ctx
            .nodes
            .iter()
            .filter(|(id, view)| view.usable && view.connected && !self.avoid.contains_key(id))
            .count();
        let replicas = self.config.replicas;
        if (leave || long) && usable >= replicas && ctx.now_ms >= self.next_comfort_ms {
            self.next_comfort_ms = ctx.now_ms + super::change::COMFORT_MS;
            self.roll_even_if_full(ctx);
        }
    }

    /// Notes that the open segment has a replica that is away, and says since when.
    fn repairs_open_since(&mut self, away: Option<(SegmentId, u64)>) -> Option<u64> {
        self.open_away = match (away, self.open_away) {
            (None, _) => None,
            (Some((id, _)), Some((known, since))) if id == known => Some((id, since)),
            (Some(now), _) => Some(now),
        };
        self.open_away.map(|(_, since)| since)
    }
}

fn presence_of(watched: &Watched, node: NodeId, ctx: &Context<'_>) -> Presence {
    // Who begins to own a partition may not have heard of all nodes yet.
    let fresh = ctx.now_ms.saturating_sub(watched.since_ms) < SETTLE_MS;
    match ctx.nodes.get(&node) {
        None if fresh => Presence::Away,
        None => Presence::Gone,
        Some(view) if view.generation != watched.generation => Presence::Gone,
        Some(view) if !view.connected => Presence::Away,
        Some(view) => Presence::Here(watched.standing, view.leaving),
    }
}
