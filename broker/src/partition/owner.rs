//! The owner of one partition, as a state machine without I/O.
//!
//! 1. [`Owner::new`] takes a record that this broker's grant is in, and recovers: see [`super::takeover`].
//! 2. [`Owner::on_produce`] gives a batch its offset; [`Owner::flush`] makes one frame of all that
//!    arrived together and sends it to the replicas of the open segment.
//! 3. [`Owner::on_ack`] moves the committed offset once a quorum has synced a frame, answers
//!    produces, and makes records visible. Nothing is answered before an fsync, nor before the
//!    segment's link in the chain is confirmed (I6).
//! 4. Size, age or trouble end the segment: see [`super::change`].
//! 5. A fence, a lost compare-and-swap or [`Owner::on_resign`] end the ownership.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use forebay_meta::model::{Partition, Segment};
use forebay_proto::data::front::Acks;
use forebay_proto::data::replica::{Ack, Refusal};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::batch::{self, Header};
use forebay_record::frame::FrameKind;
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, SegmentId, SessionId, Token};

use super::action::{Action, Context, Produce, Ticket};
use super::placement;
use super::producers::{Producers, SequenceError, Verdict};
use super::tail::Tail;
use super::takeover::Recovery;
use super::writer::Writer;

/// Bytes of batches in one frame before the next is begun.
const FRAME_BYTES_MAX: u64 = 4 << 20;
/// A state frame follows at least this many bytes of data.
const STATE_BYTES_MIN: u64 = 4 << 20;
/// A state frame follows at most this many batches.
const STATE_BATCHES_MAX: u32 = 4096;
/// A quiet partition tells its replicas the committed offset this long after it moved.
const ANNOUNCE_MS: u64 = 20;
/// Answers that wait for an original's commit, over all duplicates of a partition.
const ECHOES_MAX: usize = 1024;

/// How partitions are written.
#[derive(Debug, Clone)]
pub struct Config {
    /// Replicas of a segment.
    pub replicas: usize,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// Bytes that may be appended and not committed (I22).
    pub window_bytes: u64,
    /// Bytes that may wait for a place in the window.
    pub waiting_bytes_max: u64,
    /// Largest batch.
    pub batch_bytes_max: usize,
    /// Roll a segment at this size.
    pub segment_bytes: u64,
    /// Roll a segment that holds something at this age.
    pub segment_ms: u64,
    /// A replica without progress for this long is cut off.
    pub straggler_ms: u64,
    /// A replica whose backlog keeps more than this in memory is cut off.
    pub straggler_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            ack_quorum: 2,
            window_bytes: 8 << 20,
            waiting_bytes_max: 16 << 20,
            batch_bytes_max: 8 << 20,
            segment_bytes: 256 << 20,
            segment_ms: 600_000,
            straggler_ms: 2_000,
            straggler_bytes: 16 << 20,
        }
    }
}

/// Where an owner is in its life.
// There is one for each partition, and boxing would put a pointer into every match.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum Phase {
    /// Reading what the last owner left.
    Recovering(Recovery),
    /// Taking writes.
    Serving,
    /// Draining, to leave in order.
    Resigning,
    /// Over.
    Released,
}

/// How the segment being prepared will enter the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// After a sealed end.
    First,
    /// The open segment is sealed at `end` once it has committed that far.
    Roll {
        /// The switch point.
        end: Offset,
    },
    /// The open segment is in trouble and sealed where it was committed; it commits no further.
    Change {
        /// Its committed offset, frozen.
        end: Offset,
    },
    /// A former owner's segment is sealed where it is known to be committed; what lay beyond was
    /// carried and must be durable here first (I9).
    Takeover {
        /// Highest committed offset known.
        end: Offset,
    },
}

/// The segment being prepared.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) writer: Writer,
    pub(super) plan: Plan,
}

/// A batch with its offset, not in a frame yet.
#[derive(Debug)]
struct Staged {
    end: Offset,
    chunks: [Bytes; 2],
}

/// An appended batch whose commit is awaited.
#[derive(Debug)]
struct Pending {
    base: Offset,
    end: Offset,
    bytes: u64,
    answer: Option<(Ticket, Acks)>,
    deadline_ms: u64,
}

/// A repetition that waits for its original's commit.
#[derive(Debug)]
struct Echo {
    base: Offset,
    ticket: Ticket,
    deadline_ms: u64,
}

/// The owner of one partition.
#[derive(Debug)]
pub struct Owner {
    pub(super) config: Config,
    pub(super) me: BrokerId,
    pub(super) session: SessionId,
    pub(super) record: Partition,
    pub(super) revision: u64,
    pub(super) phase: Phase,
    /// The segment that takes writes and whose link is confirmed.
    pub(super) linked: Option<Writer>,
    /// The segment that will follow.
    pub(super) next: Option<Next>,
    /// Sealed segments whose slower replicas still get their frames, and until when.
    pub(super) trailing: Vec<(Writer, u64)>,
    /// The change of the record on its way.
    pub(super) storing: Option<Box<Partition>>,
    /// Newest segment sequence used under this epoch.
    pub(super) seq: u32,
    pub(super) producers: Producers,
    pub(super) epochs: Vec<(Epoch, Offset)>,
    /// Next offset to assign.
    pub(super) tail: Offset,
    pub(super) cache: Tail,
    /// Nodes that refused lately, and until when they are avoided.
    pub(super) avoid: BTreeMap<NodeId, u64>,
    /// No ensemble change for comfort before this time.
    pub(super) next_comfort_ms: u64,
    staged: Vec<Staged>,
    staged_bytes: u64,
    pending: VecDeque<Pending>,
    undecided_bytes: u64,
    waiting: VecDeque<Produce>,
    waiting_bytes: u64,
    echoes: Vec<Echo>,
    announce_at_ms: Option<u64>,
    visible: Offset,
}

impl Owner {
    /// Begins to own a partition whose record names this broker's session, and to recover it.
    #[must_use]
    pub fn new(
        config: Config,
        me: BrokerId,
        record: Partition,
        revision: u64,
        ctx: &mut Context<'_>,
    ) -> Self {
        let session = record.session;
        let start = record.sealed_end();
        let mut owner = Self {
            config,
            me,
            session,
            seq: record.last_seq,
            record,
            revision,
            phase: Phase::Serving,
            linked: None,
            next: None,
            trailing: Vec::new(),
            storing: None,
            producers: Producers::default(),
            epochs: Vec::new(),
            tail: start,
            cache: Tail::default(),
            avoid: BTreeMap::new(),
            next_comfort_ms: 0,
            staged: Vec::new(),
            staged_bytes: 0,
            pending: VecDeque::new(),
            undecided_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            echoes: Vec::new(),
            announce_at_ms: None,
            visible: start,
        };
        owner.recover(ctx);
        owner
    }

    /// The record as this owner knows it.
    #[must_use]
    pub const fn record(&self) -> &Partition {
        &self.record
    }

    /// Revision at which the record was last changed, as this owner knows it.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// True once reads and writes are served; before, there is no high watermark to show.
    #[must_use]
    pub const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Resigning)
    }

    /// True once the ownership is over.
    #[must_use]
    pub const fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Released)
    }

    /// First offset not committed, none while recovering.
    #[must_use]
    pub fn high_watermark(&self) -> Option<Offset> {
        self.is_serving().then_some(self.visible)
    }

    /// Next offset to assign.
    #[must_use]
    pub const fn tail(&self) -> Offset {
        self.tail
    }

    /// The cached end of the log.
    #[must_use]
    pub const fn cache(&self) -> &Tail {
        &self.cache
    }

    /// Lets the cached end of the log keep at most so much.
    pub fn shrink_cache(&mut self, bytes_max: u64) {
        self.cache.shrink(bytes_max, self.visible);
    }

    /// Bytes appended and not committed.
    #[must_use]
    pub const fn undecided_bytes(&self) -> u64 {
        self.undecided_bytes
    }

    /// The open segment and its committed offset, where its link is confirmed.
    #[must_use]
    pub fn open_segment(&self) -> Option<(&Segment, Offset)> {
        self.linked
            .as_ref()
            .map(|writer| (&writer.segment, writer.committed))
    }

    /// Takes a batch: gives it an offset, lets it wait, or refuses it. [`Owner::flush`] sends it.
    pub fn on_produce(&mut self, produce: Produce, ctx: &mut Context<'_>) {
        if let Err(failure) = self.screen(&produce) {
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(failure),
            });
            return;
        }
        let bytes = produce.batch.len() as u64;
        if !self.waiting.is_empty() || !self.may_admit(ctx) {
            if self.waiting_bytes + bytes > self.config.waiting_bytes_max {
                let id = self.record.id;
                let message = format!(
                    "{id} has {} bytes waiting for storage already",
                    self.waiting_bytes
                );
                let result = Err(Failure::new(ErrorCode::Overloaded, message));
                ctx.out.push(Action::Answer {
                    ticket: produce.ticket,
                    result,
                });
                return;
            }
            self.waiting_bytes += bytes;
            self.waiting.push_back(produce);
            return;
        }
        self.admit(produce, ctx);
    }

    /// Refuses what can be refused without looking at the log.
    fn screen(&self, produce: &Produce) -> Result<(), Failure> {
        let id = self.record.id;
        if matches!(self.phase, Phase::Released | Phase::Resigning) {
            return Err(Failure::new(
                ErrorCode::NotOwner,
                format!("{id} is leaving {}", self.me),
            ));
        }
        if produce.epoch != Epoch(0) && produce.epoch != self.record.epoch {
            let code = if produce.epoch < self.record.epoch {
                ErrorCode::StaleEpoch
            } else {
                ErrorCode::UnknownEpoch
            };
            let message = format!(
                "{id} is at {}, the request names {}",
                self.record.epoch, produce.epoch
            );
            return Err(Failure::new(code, message));
        }
        if produce.batch.len() > self.config.batch_bytes_max {
            let (len, max) = (produce.batch.len(), self.config.batch_bytes_max);
            return Err(Failure::new(
                ErrorCode::BatchTooLarge,
                format!("batch of {len} bytes for {id}, at most {max}"),
            ));
        }
        Ok(())
    }

    /// True where a batch may be given an offset now; prepares a segment where there is none.
    fn may_admit(&mut self, ctx: &mut Context<'_>) -> bool {
        matches!(self.phase, Phase::Serving)
            && self.undecided_bytes < self.config.window_bytes
            && (self.linked.is_some() || self.next.is_some() || self.prepare(Plan::First, Vec::new(), ctx))
    }

    fn admit(&mut self, produce: Produce, ctx: &mut Context<'_>) {
        let Produce {
            ticket,
            acks,
            deadline_ms,
            batch,
            ..
        } = produce;
        match self.place(&batch) {
            Ok(Placed::New { base, end, chunks }) => {
                let bytes = batch.len() as u64;
                self.undecided_bytes += bytes;
                self.staged_bytes += bytes;
                self.staged.push(Staged { end, chunks });
                let answer = if acks == Acks::None {
                    ctx.out.push(Action::Answer {
                        ticket,
                        result: Ok(base),
                    });
                    None
                } else {
                    Some((ticket, acks))
                };
                self.pending.push_back(Pending {
                    base,
                    end,
                    bytes,
                    answer,
                    deadline_ms,
                });
            }
            Ok(Placed::Duplicate { base, end }) if end <= self.visible => {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(base),
                });
            }
            Ok(Placed::Duplicate { base, .. }) if self.echoes.len() < ECHOES_MAX => {
                self.echoes.push(Echo {
                    base,
                    ticket,
                    deadline_ms,
                });
            }
            Ok(Placed::Duplicate { .. }) => {
                let message = format!("{ECHOES_MAX} repetitions wait in {} already", self.record.id);
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Err(Failure::new(ErrorCode::Overloaded, message)),
                });
            }
            Err(failure) => ctx.out.push(Action::Answer {
                ticket,
                result: Err(failure),
            }),
        }
    }

    /// Gives a batch its offset and remembers it.
    fn place(&mut self, batch: &Bytes) -> Result<Placed, Failure> {
        let id = self.record.id;
        let header = Header::parse(batch)
            .map_err(|error| Failure::new(ErrorCode::CorruptBatch, format!("batch for {id}: {error}")))?;
        let count = u64::from(header.record_count());
        if header.len_bytes() != batch.len() || count == 0 {
            let message = format!(
                "batch for {id} has {} bytes of {} and {count} records",
                batch.len(),
                header.len_bytes()
            );
            return Err(Failure::new(ErrorCode::InvalidBatch, message));
        }
        match self.producers.check(&header) {
            Ok(Verdict::Duplicate(base)) => {
                return Ok(Placed::Duplicate {
                    base,
                    end: Offset(base.0 + count),
                });
            }
            Ok(Verdict::New) => {}
            Err(error) => return Err(refuse_sequence(&error, id)),
        }
        let base = self.tail;
        let stamped = base
            .checked_add(count)
            .and_then(|end| Some((end, batch::stamped_prefix(batch, base, self.record.epoch).ok()?)));
        let Some((end, prefix)) = stamped else {
            return Err(Failure::new(
                ErrorCode::Internal,
                format!("{id} has no offsets left after {base}"),
            ));
        };
        self.producers.record(&header, base);
        if self
            .epochs
            .last()
            .is_none_or(|(epoch, _)| *epoch != self.record.epoch)
        {
            self.epochs.push((self.record.epoch, base));
        }
        self.tail = end;
        let chunks = [Bytes::copy_from_slice(&prefix), batch.slice(batch::HEADER_LEN..)];
        self.cache.push(base, end, chunks.clone());
        Ok(Placed::New { base, end, chunks })
    }

    /// Sends what was given offsets since the last call, as few frames.
    pub fn flush(&mut self, ctx: &mut Context<'_>) {
        if self.staged.is_empty() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        self.staged_bytes = 0;
        let Some(writer) = self
            .next
            .as_mut()
            .map(|next| &mut next.writer)
            .or(self.linked.as_mut())
        else {
            return self.release("batches were staged without a segment".to_owned(), ctx);
        };
        let mut payload = Vec::with_capacity(staged.len() * 2);
        let (mut batches, mut bytes, mut end) = (0, 0, writer.tail);
        let mut result = Ok(());
        for one in staged {
            let len = one.chunks.iter().map(Bytes::len).sum::<usize>() as u64;
            if batches > 0 && bytes + len > FRAME_BYTES_MAX {
                let full = std::mem::take(&mut payload);
                result = result.and(writer.append(FrameKind::Data, batches, end, full, ctx.now_ms, ctx.out));
                (batches, bytes) = (0, 0);
            }
            batches += 1;
            bytes += len;
            end = one.end;
            payload.extend(one.chunks);
        }
        result = result.and(writer.append(FrameKind::Data, batches, end, payload, ctx.now_ms, ctx.out));
        if let Err(error) = result {
            return self.release(format!("a frame cannot be made: {error}"), ctx);
        }
        self.checkpoint(ctx);
        self.roll_if_full(ctx);
    }

    /// Writes a state frame where enough was written since the last, in proportion to its size.
    fn checkpoint(&mut self, ctx: &mut Context<'_>) {
        let state_len = self.producers.count() as u64 * 64;
        let Some(writer) = self
            .next
            .as_mut()
            .map(|next| &mut next.writer)
            .or(self.linked.as_mut())
        else {
            return;
        };
        if writer.bytes_since_state < STATE_BYTES_MIN.max(16 * state_len)
            && writer.batches_since_state < STATE_BATCHES_MAX
        {
            return;
        }
        let state = PartitionState {
            epochs: self.epochs.clone(),
            producers: self.producers.snapshot_below(writer.tail),
        };
        let end = writer.tail;
        let payload = vec![Bytes::from(state.encode())];
        if let Err(error) = writer.append(FrameKind::State, 0, end, payload, ctx.now_ms, ctx.out) {
            self.release(format!("a state cannot be written: {error}"), ctx);
        }
    }

    /// Takes a replica's acknowledgement.
    pub fn on_ack(&mut self, node: NodeId, ack: Ack, ctx: &mut Context<'_>) {
        if let Some(writer) = self
            .linked
            .as_mut()
            .filter(|writer| writer.segment.id == ack.segment)
        {
            if writer.on_ack(node, ack, ctx.now_ms) {
                let first = writer.first_tail();
                self.answer_first(first, ctx);
                self.advance(ctx);
            }
        } else if let Some(next) = self
            .next
            .as_mut()
            .filter(|next| next.writer.segment.id == ack.segment)
        {
            if next.writer.on_ack(node, ack, ctx.now_ms) {
                self.store(ctx);
            }
        } else if let Some(at) = self
            .trailing
            .iter()
            .position(|(writer, _)| writer.segment.id == ack.segment)
            && let Some((writer, _)) = self.trailing.get_mut(at)
        {
            writer.on_ack(node, ack, ctx.now_ms);
            if writer.is_complete() {
                self.trailing.swap_remove(at);
            }
        }
    }

    /// Takes a replica's refusal of one frame.
    pub fn on_not_taken(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        refusal: Refusal,
        ctx: &mut Context<'_>,
    ) {
        let in_use = self.writer_mut(segment).is_some();
        if let Refusal::Fenced(by) = refusal {
            if in_use {
                self.release(format!("{segment} is fenced by {by} on {node}"), ctx);
            }
            return;
        }
        let Some(writer) = self.writer_mut(segment) else {
            self.trailing.retain(|(writer, _)| writer.segment.id != segment);
            return;
        };
        match refusal {
            Refusal::Gap(expected) => writer.resend(node, expected, ctx.out),
            _ => {
                writer.give_up(node);
                if matches!(
                    refusal,
                    Refusal::NoNewSegments | Refusal::DiskFull | Refusal::Failed
                ) {
                    self.avoid.insert(node, ctx.now_ms + 5_000);
                }
                self.mend(ctx);
            }
        }
    }

    fn writer_mut(&mut self, segment: SegmentId) -> Option<&mut Writer> {
        self.linked
            .as_mut()
            .into_iter()
            .chain(self.next.as_mut().map(|next| &mut next.writer))
            .find(|writer| writer.segment.id == segment)
    }

    /// A node's session came up.
    pub fn on_connected(&mut self, node: NodeId, generation: Generation, ctx: &mut Context<'_>) {
        self.avoid.remove(&node);
        let writers = self
            .linked
            .iter_mut()
            .chain(self.next.as_mut().map(|next| &mut next.writer))
            .chain(self.trailing.iter_mut().map(|(writer, _)| writer));
        for writer in writers {
            writer.on_connected(node, generation, ctx.out);
        }
        self.on_nodes_changed(ctx);
    }

    /// The view of the storage nodes changed.
    pub fn on_nodes_changed(&mut self, ctx: &mut Context<'_>) {
        self.mend(ctx);
        self.pump(ctx);
        self.flush(ctx);
    }

    /// Commits what a quorum has, and shows it.
    pub(super) fn advance(&mut self, ctx: &mut Context<'_>) {
        let limit = match self.next.as_ref().map(|next| next.plan) {
            Some(Plan::Roll { end } | Plan::Change { end }) => end,
            _ => Offset(u64::MAX),
        };
        if let Some(writer) = self.linked.as_mut()
            && writer.commit(limit)
        {
            let committed = writer.committed;
            self.show(committed, ctx);
        }
        self.store(ctx);
    }

    /// Makes everything below an offset visible, and answers those who waited for it.
    pub(super) fn show(&mut self, committed: Offset, ctx: &mut Context<'_>) {
        assert!(
            committed >= self.visible,
            "{} would go back from {} to {committed}",
            self.record.id,
            self.visible
        );
        if committed == self.visible {
            return;
        }
        self.visible = committed;
        self.announce_at_ms = Some(ctx.now_ms + ANNOUNCE_MS);
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.end <= committed) {
            self.undecided_bytes -= pending.bytes;
            if let Some((ticket, _)) = pending.answer {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(pending.base),
                });
            }
        }
        if !self.echoes.is_empty() {
            for echo in self.echoes.extract_if(.., |echo| echo.base < committed) {
                ctx.out.push(Action::Answer {
                    ticket: echo.ticket,
                    result: Ok(echo.base),
                });
            }
        }
        ctx.out.push(Action::Visible(committed));
        self.pump(ctx);
        self.finish_resigning(ctx);
    }

    /// Answers produces that asked for one durable replica only.
    fn answer_first(&mut self, tail: Offset, ctx: &mut Context<'_>) {
        for pending in self.pending.iter_mut().take_while(|pending| pending.end <= tail) {
            if let Some((ticket, _)) = pending.answer.take_if(|(_, acks)| *acks == Acks::One) {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Ok(pending.base),
                });
            }
        }
    }

    /// Gives waiting batches their offsets as far as the window allows. The caller flushes.
    pub(super) fn pump(&mut self, ctx: &mut Context<'_>) {
        while !self.waiting.is_empty() && self.may_admit(ctx) {
            let Some(produce) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= produce.batch.len() as u64;
            self.admit(produce, ctx);
        }
    }

    /// True where produces wait for the partition to be served.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
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
        let avoid: BTreeSet<_> = self.avoid.keys().copied().collect();
        let quorum = usize::from(self.config.ack_quorum);
        let Some(replicas) = placement::choose(id, ctx.nodes, &avoid, self.config.replicas, quorum) else {
            return false;
        };
        self.seq += 1;
        let segment = Segment {
            id,
            token: Token(self.revision),
            base,
            end: None,
            ack_quorum: self.config.ack_quorum,
            replicas: replicas.clone(),
            bytes: 0,
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

    /// Time passes.
    pub fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.expire(ctx);
        self.retry_recovery(ctx);
        let since = ctx.now_ms.saturating_sub(self.config.straggler_ms);
        let kept_max = self.config.straggler_bytes;
        for writer in self
            .linked
            .iter_mut()
            .chain(self.next.as_mut().map(|next| &mut next.writer))
        {
            writer.give_up_stragglers(since, kept_max);
        }
        self.trailing.retain(|(_, until)| *until > ctx.now_ms);
        if self.announce_at_ms.is_some_and(|at| at <= ctx.now_ms) {
            self.announce_at_ms = None;
            if let Some(writer) = &self.linked {
                writer.announce(ctx.out);
            }
        }
        self.mend(ctx);
        self.roll_for_comfort(ctx);
        self.pump(ctx);
        self.flush(ctx);
        self.finish_resigning(ctx);
    }

    /// Answers those whose time is up. What may have been staged is of unknown outcome.
    fn expire(&mut self, ctx: &mut Context<'_>) {
        let (id, now) = (self.record.id, ctx.now_ms);
        let serving = self.is_serving();
        let (code, what) = if serving {
            (
                ErrorCode::NotEnoughReplicas,
                "too few storage nodes took writes in time",
            )
        } else {
            (ErrorCode::Timeout, "its owner was still recovering it")
        };
        let waiting_bytes = &mut self.waiting_bytes;
        // What an idempotent producer sent after a batch that is refused would be out of order.
        let mut refused = BTreeSet::new();
        self.waiting.retain(|produce| {
            let producer = Header::parse_prefix(&produce.batch)
                .ok()
                .and_then(|header| header.producer_id());
            let follows = producer.is_some_and(|producer| refused.contains(&producer));
            if produce.deadline_ms > now && !follows {
                return true;
            }
            refused.extend(producer);
            *waiting_bytes -= produce.batch.len() as u64;
            let failure = Failure::new(code, format!("{id}: {what}"));
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(failure),
            });
            false
        });
        let late = |deadline_ms: u64| deadline_ms <= now;
        let unknown = || {
            Failure::new(
                ErrorCode::OutcomeUnknown,
                format!("{id}: no quorum answered in time"),
            )
        };
        for pending in self
            .pending
            .iter_mut()
            .filter(|pending| late(pending.deadline_ms))
        {
            if let Some((ticket, _)) = pending.answer.take() {
                ctx.out.push(Action::Answer {
                    ticket,
                    result: Err(unknown()),
                });
            }
        }
        for echo in self.echoes.extract_if(.., |echo| late(echo.deadline_ms)) {
            ctx.out.push(Action::Answer {
                ticket: echo.ticket,
                result: Err(unknown()),
            });
        }
    }

    /// Leaves in order: takes nothing new, commits what it has, seals, and is released.
    pub fn on_resign(&mut self, ctx: &mut Context<'_>) {
        match self.phase {
            Phase::Serving => {
                self.flush(ctx);
                self.phase = Phase::Resigning;
                let failure = Failure::new(
                    ErrorCode::NotOwner,
                    format!("{} is leaving {}", self.record.id, self.me),
                );
                for produce in self.waiting.drain(..) {
                    ctx.out.push(Action::Answer {
                        ticket: produce.ticket,
                        result: Err(failure.clone()),
                    });
                }
                self.waiting_bytes = 0;
                self.finish_resigning(ctx);
            }
            Phase::Recovering(_) => self.release("resigned while recovering".to_owned(), ctx),
            Phase::Resigning | Phase::Released => {}
        }
    }

    fn finish_resigning(&mut self, ctx: &mut Context<'_>) {
        if !matches!(self.phase, Phase::Resigning) || self.storing.is_some() || self.next.is_some() {
            return;
        }
        match &self.linked {
            None => self.release("resigned".to_owned(), ctx),
            Some(writer) if writer.committed == self.tail => {
                let sealed = self.record.seal(writer.committed, writer.bytes, None, ctx.nonce);
                self.submit(sealed, ctx);
            }
            Some(_) => {}
        }
    }

    /// Ends the ownership. What waits was never staged; what is pending may be carried by the next
    /// owner, so its outcome is unknown.
    pub(super) fn release(&mut self, why: String, ctx: &mut Context<'_>) {
        if self.is_released() {
            return;
        }
        self.phase = Phase::Released;
        let id = self.record.id;
        let not_owner = Failure::new(
            ErrorCode::NotOwner,
            format!("{} no longer owns {id}: {why}", self.me),
        );
        for produce in self.waiting.drain(..) {
            ctx.out.push(Action::Answer {
                ticket: produce.ticket,
                result: Err(not_owner.clone()),
            });
        }
        let unknown = Failure::new(
            ErrorCode::OutcomeUnknown,
            format!("{} lost {id} before commit: {why}", self.me),
        );
        let pending = self
            .pending
            .drain(..)
            .filter_map(|pending| pending.answer)
            .map(|(ticket, _)| ticket);
        for ticket in pending.chain(self.echoes.drain(..).map(|echo| echo.ticket)) {
            ctx.out.push(Action::Answer {
                ticket,
                result: Err(unknown.clone()),
            });
        }
        self.staged.clear();
        self.next = None;
        self.linked = None;
        self.storing = None;
        ctx.out.push(Action::Released { why });
    }
}

/// What became of a batch.
enum Placed {
    New {
        base: Offset,
        end: Offset,
        chunks: [Bytes; 2],
    },
    Duplicate {
        base: Offset,
        end: Offset,
    },
}

/// A frame's content on its way into another segment: same offsets, same bytes.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) end: Offset,
    pub(super) batches: u32,
    pub(super) payload: Vec<Bytes>,
}

fn refuse_sequence(error: &SequenceError, id: forebay_record::PartitionId) -> Failure {
    let code = match error {
        SequenceError::Fenced { .. } => ErrorCode::FencedProducer,
        SequenceError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
        SequenceError::Repeated { .. } => ErrorCode::DuplicateSequence,
    };
    Failure::new(code, format!("{id}: {error}"))
}
