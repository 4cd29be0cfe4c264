//! Ending a segment and beginning the next: roll, ensemble change, and the record's change.
//!
//! Every end of a segment is the same step: a new segment is prepared, and one compare-and-swap
//! seals the old one and links the new one. Until that is confirmed nothing is acknowledged from
//! the new segment (I6), and frames of it carry no committed offset beyond its base. In an
//! ensemble change the old segment's committed offset is frozen first: a late acknowledgement
//! above it would answer a produce that the sealed chain does not contain.
//!
//! At most one change of a record is on its way. A change whose outcome is unknown comes back as
//! a conflict with the record as it stands: its nonce tells whether the change landed.

use std::collections::BTreeSet;

use bytes::Bytes;
use forebay_meta::model::{CHAIN_MAX, Partition, Sealed, Segment};
use forebay_record::frame::{Frame, FrameKind};
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{Offset, SegmentId, Token};
use forebay_runtime::mutant::{self, Mutant};

use super::action::{Action, Context, Stored};
use super::owner::{Next, Owner, Phase, Plan};
use super::placement;
use super::takeover::Recovery;
use super::writer::Writer;

/// Slower replicas of a sealed segment get its rest for this long.
const TRAILING_MS: u64 = 2_000;
/// An ensemble is changed for comfort at most this often.
pub(super) const COMFORT_MS: u64 = 10_000;

impl Owner {
    /// Stores the link of the prepared segment as soon as its plan allows.
    pub(super) fn store(&mut self, ctx: &mut Context<'_>) {
        if self.storing.is_some() || self.is_released() {
            return;
        }
        let Some(next) = &self.next else { return };
        let ready = match next.plan {
            Plan::First | Plan::Change { .. } => true,
            Plan::Roll { .. } if mutant::is(Mutant::SealedUncommitted) => true,
            Plan::Roll { end } => self.linked.as_ref().is_some_and(|writer| writer.committed >= end),
            Plan::Takeover { .. } => next.writer.quorum_has_all() || mutant::is(Mutant::LinkBeforeDurable),
        };
        if !ready {
            return;
        }
        let segment = next.writer.segment.clone();
        let bytes = self.linked.as_ref().map_or(0, |writer| writer.bytes);
        let changed = match next.plan {
            Plan::First => self.record.open_first(segment, ctx.nonce),
            Plan::Takeover { end } if self.record.open().is_none() => {
                debug_assert_eq!(end, self.record.sealed_end());
                self.record.open_first(segment, ctx.nonce)
            }
            Plan::Roll { end } | Plan::Change { end } | Plan::Takeover { end } => {
                self.record
                    .seal(end, sealed(bytes, ctx), Some(segment), ctx.nonce)
            }
        };
        self.submit(changed, ctx);
    }

    /// Sends a change of the record on its way.
    pub(super) fn submit(
        &mut self,
        changed: Result<Partition, forebay_meta::model::Refused>,
        ctx: &mut Context<'_>,
    ) {
        match changed {
            Ok(changed) => {
                let changed = Box::new(changed);
                self.storing = Some(changed.clone());
                ctx.out.push(Action::Store(changed));
            }
            Err(refused) => self.release(format!("its record cannot be changed: {refused}"), ctx),
        }
    }

    /// Takes the outcome of the change on its way.
    pub fn on_stored(&mut self, stored: Stored, ctx: &mut Context<'_>) {
        let Some(sent) = self.storing.take() else { return };
        match stored {
            Stored::Done(revision) => self.on_changed(*sent, revision, ctx),
            Stored::Conflict(found, revision) if found.op == sent.op => self.on_changed(*sent, revision, ctx),
            Stored::Conflict(found, revision) => {
                let mine =
                    found.epoch == self.record.epoch && found.session == self.session && !found.deleted;
                let mine = mine || mutant::is(Mutant::EpochIgnored);
                if !mine {
                    let owner = found
                        .owner
                        .map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
                    return self.release(format!("{owner} took it at {}", found.epoch), ctx);
                }
                // An earlier attempt of unknown outcome may have landed in the meantime.
                let prepared = self.next.as_ref().map(|next| next.writer.segment.id);
                if found.open().map(|segment| segment.id) == prepared {
                    return self.on_changed(*found, revision, ctx);
                }
                self.record = *found;
                self.revision = revision;
                self.again(ctx);
            }
            Stored::Gone => self.release("its record or this broker's session is gone".to_owned(), ctx),
        }
    }

    /// Does once more what a lost compare-and-swap undid.
    fn again(&mut self, ctx: &mut Context<'_>) {
        if self.next.is_some() {
            self.store(ctx);
            self.mend(ctx);
        } else if matches!(self.phase, Phase::Recovering(_)) {
            self.seal_recovered(ctx);
        } else {
            self.on_tick(ctx);
        }
    }

    fn on_changed(&mut self, record: Partition, revision: u64, ctx: &mut Context<'_>) {
        self.record = record;
        self.revision = revision;
        let linked = self.record.open().map(|segment| segment.id);
        let next = self.next.take_if(|next| Some(next.writer.segment.id) == linked);
        let old = match next {
            Some(next) => self.linked.replace(next.writer),
            None if linked.is_none() => self.linked.take(),
            None => None,
        };
        if let Some(writer) = old
            && !writer.is_complete()
        {
            self.trailing.push((writer, ctx.now_ms + TRAILING_MS));
        }
        if matches!(self.phase, Phase::Recovering(_)) {
            self.phase = Phase::Serving;
            self.forced = None;
        }
        // With a linked segment its committed offset says what is visible: after a takeover the carry
        // is durable on a quorum by now, and nothing short of its end was ever shown.
        if self.linked.is_none() {
            self.show(self.record.sealed_end(), ctx);
        }
        self.advance(ctx);
        // A segment that begins where the log ended shows what lay before it without a commit.
        if let Some(committed) = self.linked.as_ref().map(|writer| writer.committed)
            && Some(committed) > self.high_watermark()
        {
            self.show(committed, ctx);
        }
        self.mend(ctx);
        self.pump(ctx);
        self.flush(ctx);
        self.on_resign_progress(ctx);
        self.tend_past(ctx);
        self.tend_repairs(ctx);
        self.tend_losses(ctx);
    }

    fn on_resign_progress(&mut self, ctx: &mut Context<'_>) {
        if matches!(self.phase, Phase::Resigning) && self.linked.is_none() && self.next.is_none() {
            self.release("resigned".to_owned(), ctx);
        }
    }

    /// Leaves segments that too few replicas can take: what is undecided goes, at the same offsets
    /// and with the same bytes, into a new segment on healthy nodes.
    pub(super) fn mend(&mut self, ctx: &mut Context<'_>) {
        if self.storing.is_some() || !self.is_mendable() {
            return;
        }
        let stuck = |writer: &Writer| writer.is_stuck(ctx.nodes);
        let troubled = self.linked.as_ref().is_some_and(stuck)
            || self.next.as_ref().is_some_and(|next| stuck(&next.writer));
        if !troubled {
            return;
        }
        self.flush(ctx);
        let plan = match (&self.linked, self.next.as_ref().map(|next| next.plan)) {
            (_, Some(plan @ Plan::Takeover { .. })) => plan,
            (Some(writer), _) => Plan::Change {
                end: writer.committed,
            },
            (None, _) => Plan::First,
        };
        let linked = self.linked.iter().flat_map(Writer::undecided);
        let prepared = self.next.iter().flat_map(|next| next.writer.undecided());
        let carried = linked.chain(prepared).map(carry).collect();
        // Where too few nodes are healthy everything stays as it is until the view changes.
        self.prepare(plan, carried, ctx);
    }

    const fn is_mendable(&self) -> bool {
        matches!(
            self.phase,
            Phase::Serving | Phase::Resigning | Phase::Recovering(Recovery::Linking)
        )
    }

    /// Begins a planned roll where the segment is large enough.
    pub(super) fn roll_if_full(&mut self, ctx: &mut Context<'_>) {
        let full = self
            .linked
            .as_ref()
            .is_some_and(|writer| writer.bytes >= self.config.segment_bytes);
        if full {
            self.roll(ctx);
        }
    }

    /// Begins a planned roll for age, or to get away from a replica that is out.
    pub(super) fn roll_for_comfort(&mut self, ctx: &mut Context<'_>) {
        let Some(writer) = &self.linked else { return };
        let holds_something = writer.tail > writer.segment.base;
        let old = holds_something && ctx.now_ms.saturating_sub(writer.opened_ms) >= self.config.segment_ms;
        let usable = ctx
            .nodes
            .iter()
            .filter(|(id, node)| node.usable && node.connected && !self.avoid.contains_key(id))
            .count();
        let degraded = writer.is_degraded()
            && usable >= writer.segment.replicas.len()
            && ctx.now_ms >= self.next_comfort_ms;
        if old || degraded {
            self.next_comfort_ms = ctx.now_ms + COMFORT_MS;
            self.roll(ctx);
        }
    }

    /// New frames go to a new segment from here on; the old one drains, and then one
    /// compare-and-swap seals it and links the new one. Held back while the metadata store does not
    /// answer or the chain is full: then the open segment just grows.
    pub(super) fn roll(&mut self, ctx: &mut Context<'_>) {
        if self.record.chain.len() < CHAIN_MAX {
            self.roll_even_if_full(ctx);
        }
    }

    /// As [`Owner::roll`], for what must not wait for a shorter chain.
    pub(super) fn roll_even_if_full(&mut self, ctx: &mut Context<'_>) {
        let idle = self.storing.is_none() && self.next.is_none() && matches!(self.phase, Phase::Serving);
        if !idle || !ctx.meta_healthy {
            return;
        }
        self.flush(ctx);
        let Some(end) = self.linked.as_ref().map(|writer| writer.tail) else {
            return;
        };
        self.prepare(Plan::Roll { end }, Vec::new(), ctx);
    }

    /// The token of a segment that is prepared now: the newest revision known, not only that of the
    /// record, which may not have changed for long. Nodes close unknown segments up to the newest
    /// token of all that they trimmed.
    pub(super) fn fresh_token(&self, ctx: &Context<'_>) -> Token {
        Token(self.revision.max(ctx.meta_revision))
    }

    /// Prepares a segment on healthy nodes: sends OPEN with the state at its base, and `carried`
    /// frames' payloads after it. False where too few nodes are healthy.
    pub(super) fn prepare(&mut self, plan: Plan, carried: Vec<Carried>, ctx: &mut Context<'_>) -> bool {
        let base = match plan {
            Plan::First => self.record.sealed_end(),
            Plan::Roll { end } | Plan::Change { end } | Plan::Takeover { end } => end,
        };
        let id = SegmentId {
            partition: self.record.id,
            epoch: self.record.epoch,
            seq: self.seq + 1,
        };
        self.avoid.retain(|_, until| *until > ctx.now_ms);
        let mut avoid: BTreeSet<_> = self.avoid.keys().copied().collect();
        // What is carried was taken by larger nodes, and is sent as it is.
        let largest = carried.iter().map(Carried::bytes).max().unwrap_or_default();
        avoid.extend(placement::too_small_for(largest, ctx.nodes));
        let quorum = usize::from(self.config.ack_quorum);
        let Some(replicas) = placement::choose(id, ctx.nodes, &avoid, self.config.replicas, quorum) else {
            return false;
        };
        self.seq += 1;
        let before = self.linked.as_ref();
        let before = before.map(|writer| writer.standing(ctx.now_ms));
        tracing::debug!(segment = %id, ?plan, ?replicas, ?avoid, ?before, "prepares a segment");
        let segment = Segment {
            id,
            token: self.fresh_token(ctx),
            base,
            end: None,
            ack_quorum: self.config.ack_quorum,
            replicas: replicas.clone(),
            bytes: 0,
            sealed_ms: 0,
        };
        let open = OpenPayload {
            base,
            created_ms: ctx.wall_ms,
            ack_quorum: self.config.ack_quorum,
            replicas,
            state: PartitionState {
                epochs: self
                    .epochs
                    .iter()
                    .filter(|(_, start)| *start < base)
                    .copied()
                    .collect(),
                producers: self.producers.snapshot_below(base),
            },
        };
        let mut writer = Writer::new(segment, ctx.now_ms);
        let payload = vec![Bytes::from(open.encode())];
        let mut result = writer.append(FrameKind::Open, 0, base, payload, ctx.now_ms, ctx.out);
        for one in carried {
            result = result.and(writer.append(
                FrameKind::Data,
                one.batches,
                one.end,
                one.payload,
                ctx.now_ms,
                ctx.out,
            ));
        }
        if let Err(error) = result {
            self.release(format!("{id} cannot be opened: {error}"), ctx);
            return false;
        }
        self.next = Some(Next { writer, plan });
        self.store(ctx);
        true
    }
}

/// What is known of a segment that is sealed now.
pub(super) const fn sealed(bytes: u64, ctx: &Context<'_>) -> Sealed {
    Sealed {
        bytes,
        at_ms: ctx.wall_ms,
    }
}

/// A frame's content on its way into another segment: same offsets, same bytes.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) end: Offset,
    pub(super) batches: u32,
    pub(super) payload: Vec<Bytes>,
}

impl Carried {
    fn bytes(&self) -> u64 {
        self.payload.iter().map(|chunk| chunk.len() as u64).sum()
    }
}

/// A frame's content for another segment.
pub(super) fn carry(frame: &Frame) -> Carried {
    Carried {
        end: frame.header.end,
        batches: frame.header.batches,
        payload: frame.payload.clone(),
    }
}
