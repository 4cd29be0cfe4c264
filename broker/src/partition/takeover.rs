//! Takeover: from a record that another owner left to one that serves.
//!
//! 1. *Fence* the open segment on its replicas, forever, and wait for as many authoritative
//!    answers as close it (n − a + 1): each says how far it has the segment and which committed
//!    offset it was told. Whatever was acknowledged is on at least one of them (I7).
//! 2. *Carry*: read the frames between the highest committed offset and the longest end. They are
//!    undecided: some may have been acknowledged, so none may be dropped (I8).
//! 3. *Load* duplicate detection from the last state and the batch headers after it.
//! 4. *Link*: write the carry to a new segment on healthy nodes; once a quorum has all of it (I9),
//!    one compare-and-swap seals the old segment and links the new one. Where nothing is carried
//!    and nobody waits, the old segment is only sealed.
//!
//! Each step may be repeated: fences and reads change nothing that a second one would not. A node
//! that does not answer is asked again; what it holds is unknown, never absent (I15).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use forebay_meta::model::Segment;
use forebay_proto::data::replica::{
    FenceItem, FencedState, FramesRequest, Headers, HeadersRequest, NodeFailure,
};
use forebay_record::batch::{HEADER_LEN, Header};
use forebay_record::frame::{ChainHash, Frame, FrameKind};
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{NodeId, Offset, SegmentId};

use super::action::{Action, Context};
use super::change::{carry, sealed};
use super::owner::{Owner, Phase, Plan};
use forebay_record::producers::Producers;
use forebay_runtime::mutant::{self, Mutant};

/// A silent node is asked again after this long.
const RETRY_MS: u64 = 500;
/// The object store is given this much longer than a node.
const OBJECT_RETRY_MS: u64 = 4_500;
/// That nodes are silent is told after so many questions, and again after every so many.
const TOLD_AFTER: u32 = 10;
const TOLD_EVERY: u32 = 120;
/// After so many pauses without an answer a takeover that an operator forces goes on without the state.
const FORCED_PAUSES: u32 = 10;
/// Bytes asked for at a time while carrying.
const CARRY_BYTES: u32 = 8 << 20;

/// Where a takeover is.
#[derive(Debug)]
pub enum Recovery {
    /// Step 1.
    Fencing(Fencing),
    /// Step 2.
    Carrying(Carrying),
    /// Step 3.
    Loading(Loading),
    /// Before step 4: too few nodes are healthy to take the carry.
    Placing {
        /// Highest committed offset known.
        committed: Offset,
        /// The carry.
        frames: Vec<Frame>,
    },
    /// Step 4.
    Linking,
    /// Replicas contradict each other, in this way: nothing is served until an operator has looked.
    Halted(String),
}

/// Waiting for closed replicas.
#[derive(Debug)]
pub struct Fencing {
    pub(super) segment: Segment,
    pub(super) replies: BTreeMap<NodeId, FencedState>,
    asked_ms: u64,
    /// How often silent nodes were asked.
    pub(super) asked: u32,
}

/// Reading the undecided tail.
#[derive(Debug)]
pub struct Carrying {
    pub(super) segment: Segment,
    pub(super) replies: BTreeMap<NodeId, FencedState>,
    committed: Offset,
    end: Offset,
    frames: Vec<Frame>,
    /// Number of the frame that would follow, and the hash expected before it.
    expected: Option<(u32, ChainHash)>,
    source: NodeId,
    tried: BTreeSet<NodeId>,
    /// Nodes whose copy of the next entry is damaged.
    pub(super) corrupt: BTreeSet<NodeId>,
    asked_ms: u64,
}

/// Reading state and headers.
#[derive(Debug)]
pub struct Loading {
    /// Segments and nodes that may have the state, with the offset up to which it is wanted.
    pub(super) candidates: VecDeque<(SegmentId, NodeId, HeadersRequest)>,
    /// No node has it: it is at the end of the newest object.
    pub(super) offloaded: bool,
    /// How many failed since the last pause.
    failed: usize,
    /// Pauses.
    pauses: u32,
    /// Sealed end of what is taken over.
    committed: Offset,
    end: Offset,
    frames: Vec<Frame>,
    asked_ms: u64,
}

impl Owner {
    /// Begins the takeover of what the record says.
    pub(super) fn recover(&mut self, ctx: &mut Context<'_>) {
        if let Some(segment) = self.record.open().cloned() {
            self.phase = Phase::Recovering(Recovery::Fencing(Fencing {
                segment,
                replies: BTreeMap::new(),
                asked_ms: ctx.now_ms,
                asked: 0,
            }));
            self.send_fences(ctx);
        } else {
            let end = self.record.sealed_end();
            self.load(VecDeque::new(), end, end, Vec::new(), ctx);
        }
    }

    /// Fences on the replicas that have not answered; also while the carry is read, where a copy that is
    /// damaged everywhere else may be on a silent one.
    fn send_fences(&mut self, ctx: &mut Context<'_>) {
        let by = self.record.epoch;
        let (segment, replies) = match &mut self.phase {
            Phase::Recovering(Recovery::Fencing(fencing)) => {
                fencing.asked_ms = ctx.now_ms;
                fencing.asked = fencing.asked.saturating_add(1);
                if fencing.asked == TOLD_AFTER || fencing.asked.is_multiple_of(TOLD_EVERY) {
                    let waits = Fencing::waits_for(&fencing.segment, &fencing.replies);
                    tracing::warn!(partition = %self.record.id, segment = %fencing.segment.id, waits,
                        "partition recovering: waits for storage nodes");
                }
                (&fencing.segment, &fencing.replies)
            }
            Phase::Recovering(Recovery::Carrying(carrying)) => (&carrying.segment, &carrying.replies),
            _ => return,
        };
        for (node, generation) in segment
            .replicas
            .iter()
            .filter(|(node, _)| !replies.contains_key(node))
        {
            let item = FenceItem {
                segment: segment.id,
                generation: *generation,
                token: segment.token,
                base: segment.base,
                by,
            };
            ctx.out.push(Action::Fence { node: *node, item });
        }
    }

    /// A node closed a segment.
    pub fn on_fenced(&mut self, node: NodeId, state: FencedState, ctx: &mut Context<'_>) {
        if let Phase::Recovering(Recovery::Carrying(carrying)) = &mut self.phase {
            // What is decided stays decided; the late one is one more copy, or says that it has none.
            if state.segment == carrying.segment.id && carrying.segment.generation_of(node).is_some() {
                carrying.replies.entry(node).or_insert(state);
            }
            return;
        }
        let Phase::Recovering(Recovery::Fencing(fencing)) = &mut self.phase else {
            return;
        };
        let is_replica = fencing.segment.generation_of(node).is_some();
        if state.segment != fencing.segment.id || !is_replica {
            return;
        }
        fencing.replies.insert(node, state);
        let authoritative: Vec<_> = fencing
            .replies
            .values()
            .filter(|state| state.authoritative)
            .collect();
        if authoritative.len() < fencing.segment.close_quorum() {
            return;
        }
        let base = fencing.segment.base;
        let committed = authoritative
            .iter()
            .map(|state| state.committed)
            .max()
            .unwrap_or(base)
            .max(base);
        let longest = fencing
            .replies
            .iter()
            .filter(|(_, state)| state.authoritative)
            .max_by_key(|(_, s)| (s.tail, s.frames));
        let Some((source, end)) = longest.map(|(node, state)| (*node, state.tail)) else {
            return;
        };
        let shortest = authoritative.iter().map(|state| state.tail).min();
        let end = match shortest {
            _ if mutant::is(Mutant::TailDropped) => committed,
            Some(shortest) if mutant::is(Mutant::ShortestCarried) => shortest.max(committed),
            _ => end,
        };
        let (segment, replies) = (fencing.segment.clone(), std::mem::take(&mut fencing.replies));
        if committed > end {
            return self.halt(format!(
                "{} is committed up to {committed} but ends at {end}",
                segment.id
            ));
        }
        if committed == end {
            let candidates = self.state_candidates(&segment, &replies, committed);
            return self.load(candidates, committed, end, Vec::new(), ctx);
        }
        self.phase = Phase::Recovering(Recovery::Carrying(Carrying {
            segment,
            replies,
            committed,
            end,
            frames: Vec::new(),
            expected: None,
            source,
            tried: BTreeSet::new(),
            corrupt: BTreeSet::new(),
            asked_ms: ctx.now_ms,
        }));
        self.ask_for_frames(ctx);
    }

    fn ask_for_frames(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(Recovery::Carrying(carrying)) = &mut self.phase else {
            return;
        };
        carrying.asked_ms = ctx.now_ms;
        let from = carrying
            .frames
            .last()
            .map_or(carrying.committed, |frame| frame.header.end);
        let Some(generation) = carrying.segment.generation_of(carrying.source) else {
            return;
        };
        let request = FramesRequest {
            segment: carrying.segment.id,
            generation,
            from,
            max_bytes: CARRY_BYTES,
        };
        ctx.out.push(Action::ReadFrames {
            node: carrying.source,
            request,
        });
    }

    /// Frames of the segment being taken over arrived, or did not.
    pub fn on_frames(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        result: Result<Vec<Frame>, NodeFailure>,
        ctx: &mut Context<'_>,
    ) {
        let Phase::Recovering(Recovery::Carrying(carrying)) = &mut self.phase else {
            return;
        };
        if carrying.source != node || carrying.segment.id != segment {
            return;
        }
        let progressed = match result {
            Ok(frames) => match carrying.take(frames) {
                Ok(progressed) => progressed,
                Err(contradiction) => return self.halt(contradiction),
            },
            Err(failure) => {
                if failure == NodeFailure::Corrupt {
                    carrying.corrupt.insert(node);
                }
                false
            }
        };
        let have = carrying
            .frames
            .last()
            .map_or(carrying.committed, |frame| frame.header.end);
        if !progressed && have < carrying.end && carrying.was_never_acknowledged(have) {
            tracing::warn!(partition = %self.record.id, segment = %carrying.segment.id, end = %have,
                told = %carrying.end, "an entry is damaged on its only copies, too few to have been acknowledged: the log ends before it");
            carrying.end = have;
        }
        if have >= carrying.end {
            let (committed, end) = (carrying.committed, carrying.end);
            let segment = carrying.segment.clone();
            let frames = std::mem::take(&mut carrying.frames);
            let replies = std::mem::take(&mut carrying.replies);
            let candidates = self.state_candidates(&segment, &replies, committed);
            return self.load(candidates, committed, end, frames, ctx);
        }
        if progressed {
            carrying.corrupt.clear();
            return self.ask_for_frames(ctx);
        }
        carrying.tried.insert(node);
        let other = carrying
            .replies
            .iter()
            .find(|(id, state)| state.tail > have && !carrying.tried.contains(id));
        match other.map(|(id, _)| *id) {
            Some(other) => {
                carrying.source = other;
                self.ask_for_frames(ctx);
            }
            // Unknown is not absent: all are asked again after a pause.
            None => carrying.tried.clear(),
        }
    }

    /// Nodes and segments that may have the state at `committed`: replicas of the open segment
    /// that reach so far, then those of the segment sealed before it.
    pub(super) fn state_candidates(
        &self,
        segment: &Segment,
        replies: &BTreeMap<NodeId, FencedState>,
        until: Offset,
    ) -> VecDeque<(SegmentId, NodeId, HeadersRequest)> {
        // What is forced goes by whatever is left.
        let counts = |state: &FencedState| state.authoritative || self.forced.is_some();
        let holds = |state: &FencedState| counts(state) && state.frames > 0 && state.tail >= until;
        replies
            .iter()
            .filter(|(_, state)| holds(state))
            .filter_map(|(node, _)| {
                let generation = segment.generation_of(*node)?;
                Some((
                    segment.id,
                    *node,
                    HeadersRequest {
                        segment: segment.id,
                        generation,
                        until,
                    },
                ))
            })
            .collect()
    }

    pub(super) fn load(
        &mut self,
        mut candidates: VecDeque<(SegmentId, NodeId, HeadersRequest)>,
        committed: Offset,
        end: Offset,
        frames: Vec<Frame>,
        ctx: &mut Context<'_>,
    ) {
        if candidates.is_empty()
            && let Some(sealed) = self
                .record
                .chain
                .iter()
                .rev()
                .find(|segment| segment.end.is_some())
            && let Some(until) = sealed.end
        {
            candidates.extend(sealed.replicas.iter().map(|(node, generation)| {
                let request = HeadersRequest {
                    segment: sealed.id,
                    generation: *generation,
                    until,
                };
                (sealed.id, *node, request)
            }));
        }
        let offloaded =
            candidates.is_empty() && (self.record.manifest.is_some() || !self.record.recent.is_empty());
        let nothing_to_load = candidates.is_empty() && !offloaded;
        self.phase = Phase::Recovering(Recovery::Loading(Loading {
            candidates,
            offloaded,
            failed: 0,
            pauses: 0,
            committed,
            end,
            frames,
            asked_ms: ctx.now_ms,
        }));
        if nothing_to_load {
            self.on_loaded(ctx);
        } else {
            self.ask_for_headers(ctx);
        }
    }

    fn ask_for_headers(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(Recovery::Loading(loading)) = &mut self.phase else {
            return;
        };
        loading.asked_ms = ctx.now_ms;
        if loading.offloaded {
            ctx.out.push(Action::ReadState);
        } else if let Some((_, node, request)) = loading.candidates.front() {
            ctx.out.push(Action::ReadHeaders {
                node: *node,
                request: *request,
            });
        }
    }

    /// State and headers arrived, or did not.
    pub fn on_headers(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        result: Result<Headers, NodeFailure>,
        ctx: &mut Context<'_>,
    ) {
        let Phase::Recovering(Recovery::Loading(loading)) = &mut self.phase else {
            return;
        };
        let asked = loading
            .candidates
            .front()
            .is_some_and(|(id, from, _)| *id == segment && *from == node);
        if !asked {
            return;
        }
        match result.ok().and_then(|headers| state_of(&headers)) {
            Some((state, headers)) => self.on_state(state, &headers, ctx),
            None => {
                loading.candidates.rotate_left(1);
                loading.failed += 1;
                // After one round the rest waits for the next tick, so that a cluster without
                // answers is not asked in a loop.
                if loading.failed < loading.candidates.len() {
                    self.ask_for_headers(ctx);
                }
            }
        }
    }

    /// The state at the end of the offloaded past arrived. Where it did not, it is asked for again
    /// after a while: without it repetitions would be taken for new batches.
    pub fn on_object_state(&mut self, state: Option<PartitionState>, ctx: &mut Context<'_>) {
        let waits = matches!(
            &self.phase,
            Phase::Recovering(Recovery::Loading(Loading { offloaded: true, .. }))
        );
        if waits && let Some(state) = state {
            self.on_state(state, &[], ctx);
        }
    }

    fn on_state(&mut self, state: PartitionState, headers: &[Header], ctx: &mut Context<'_>) {
        self.producers = Producers::from_entries(state.producers);
        self.epochs = state.epochs;
        for header in headers {
            self.note(header);
        }
        self.on_loaded(ctx);
    }

    /// Remembers a batch that another owner wrote.
    fn note(&mut self, header: &Header) {
        self.producers.record(header, header.base_offset());
        if let Some(epoch) = header.leader_epoch()
            && self.epochs.last().is_none_or(|(last, _)| *last < epoch)
        {
            self.epochs.push((epoch, header.base_offset()));
        }
    }

    fn on_loaded(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(Recovery::Loading(loading)) = &mut self.phase else {
            return;
        };
        let (committed, end) = (loading.committed, loading.end);
        let frames = std::mem::take(&mut loading.frames);
        for frame in &frames {
            batch_headers(frame).iter().for_each(|header| self.note(header));
            self.cache_frame(frame);
        }
        self.tail = end;
        if let Some(forced) = &self.forced {
            self.tail = forced.next;
            self.phase = Phase::Recovering(Recovery::Linking);
            return self.seal_recovered(ctx);
        }
        self.phase = Phase::Recovering(Recovery::Placing { committed, frames });
        self.place_carry(ctx);
    }

    /// Writes the carry to a new segment, or seals where there is none and nobody waits.
    fn place_carry(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(Recovery::Placing { committed, frames }) = &mut self.phase else {
            return;
        };
        let (committed, frames) = (*committed, std::mem::take(frames));
        self.phase = Phase::Recovering(Recovery::Linking);
        if frames.is_empty() && !self.has_waiting() {
            return self.seal_recovered(ctx);
        }
        let carried = frames.iter().map(carry).collect();
        if !self.prepare(Plan::Takeover { end: committed }, carried, ctx) && !self.is_released() {
            self.phase = Phase::Recovering(Recovery::Placing { committed, frames });
        }
    }

    /// Seals what was taken over without opening anything; nothing open needs no change at all.
    pub(super) fn seal_recovered(&mut self, ctx: &mut Context<'_>) {
        if self.record.open().is_some() {
            let sealed = match &self.forced {
                Some(forced) => forced.apply(&self.record, sealed(0, ctx), ctx.nonce),
                None => self.record.seal(self.tail, sealed(0, ctx), None, ctx.nonce),
            };
            return self.submit(sealed, ctx);
        }
        self.phase = Phase::Serving;
        let end = self.record.sealed_end();
        self.tail = end;
        self.show(end, ctx);
        self.pump(ctx);
        self.flush(ctx);
    }

    fn cache_frame(&mut self, frame: &Frame) {
        let mut rest = frame.payload_bytes();
        while let Ok(header) = Header::parse(&rest) {
            let len = header.len_bytes();
            if len > rest.len() || len < HEADER_LEN {
                break;
            }
            let batch = rest.split_to(len);
            let chunks = [batch.slice(..HEADER_LEN), batch.slice(HEADER_LEN..)];
            self.cache.push(header.base_offset(), header.end_offset(), chunks);
        }
    }

    /// Asks again where an answer is overdue.
    pub(super) fn retry_recovery(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(recovery) = &mut self.phase else {
            return;
        };
        let asked_ms = match recovery {
            Recovery::Fencing(fencing) => fencing.asked_ms,
            Recovery::Carrying(carrying) => carrying.asked_ms,
            Recovery::Loading(loading) if loading.offloaded => loading.asked_ms + OBJECT_RETRY_MS,
            Recovery::Loading(loading) => loading.asked_ms,
            Recovery::Placing { .. } => return self.place_carry(ctx),
            Recovery::Linking => return,
            Recovery::Halted(contradiction) => {
                tracing::trace!(partition = %self.record.id, contradiction, "takeover stays halted");
                return;
            }
        };
        if ctx.now_ms.saturating_sub(asked_ms) < RETRY_MS {
            return;
        }
        if let Recovery::Loading(loading) = recovery {
            loading.pauses = loading.pauses.saturating_add(1);
            if self.forced.is_some() && !loading.offloaded && loading.pauses > FORCED_PAUSES {
                tracing::warn!(partition = %self.record.id,
                    "no storage node has the producers' state: a batch that is sent again is written again");
                return self.on_loaded(ctx);
            }
        }
        match recovery {
            Recovery::Fencing(_) => self.send_fences(ctx),
            Recovery::Carrying(_) => {
                self.send_fences(ctx);
                self.ask_for_frames(ctx);
            }
            Recovery::Loading(loading) => {
                loading.failed = 0;
                loading.candidates.rotate_left(loading.candidates.len().min(1));
                self.ask_for_headers(ctx);
            }
            Recovery::Placing { .. } | Recovery::Linking | Recovery::Halted(_) => {}
        }
    }

    fn halt(&mut self, contradiction: String) {
        tracing::error!(partition = %self.record.id, contradiction, "takeover halted: replicas contradict each other");
        self.phase = Phase::Recovering(Recovery::Halted(contradiction));
    }
}

impl Fencing {
    /// The replicas whose word is missing, for people.
    pub(super) fn waits_for(segment: &Segment, replies: &BTreeMap<NodeId, FencedState>) -> String {
        let missing = segment
            .replicas
            .iter()
            .filter_map(|(node, _)| match replies.get(node) {
                None => Some(format!("{node}")),
                Some(state) if !state.authoritative => Some(format!("{node} (may have lost bytes)")),
                Some(_) => None,
            });
        missing.collect::<Vec<_>>().join(", ")
    }
}

impl Carrying {
    /// Up to where the undecided tail was read.
    pub(super) fn read_to(&self) -> Offset {
        self.frames
            .last()
            .map_or(self.committed, |frame| frame.header.end)
    }

    /// Whether the entry at `have` cannot have been acknowledged: every copy that there may be is known
    /// to be damaged, and with so many closed replicas that never had it, there are fewer copies than
    /// the quorum needed (I15: only those count that would know).
    fn was_never_acknowledged(&self, have: Offset) -> bool {
        let absent = self
            .replies
            .values()
            .filter(|state| state.authoritative && state.tail <= have)
            .count();
        let holders = self.replies.iter().filter(|(_, state)| state.tail > have);
        let mut damaged = holders.map(|(node, _)| self.corrupt.contains(node));
        let copies = self.segment.replicas.len().saturating_sub(absent);
        copies < usize::from(self.segment.ack_quorum) && damaged.all(|damaged| damaged)
    }

    /// Takes frames that continue what is there; true where there were any.
    ///
    /// Every frame's hash ties it to its history, and where another closed replica ends at the same
    /// frame its hash must agree: the common prefix of all replicas is one writer's sequence (I3).
    fn take(&mut self, frames: Vec<Frame>) -> Result<bool, String> {
        let mut progressed = false;
        for frame in frames {
            let header = frame.header;
            if header.segment != self.segment.id || header.verify(&frame.payload).is_err() {
                return Ok(progressed);
            }
            // Frames without records may be left out of an answer; offsets then still have no gap.
            let broken = |(number, hash)| number == header.number && hash != header.prev_hash;
            if self.expected.is_some_and(broken) {
                return Err(format!(
                    "{} frame {} does not continue the chain",
                    header.segment, header.number
                ));
            }
            for (node, state) in self.replies.iter().filter(|(_, state)| state.authoritative) {
                let ends_here = state.frames == header.number + 1;
                if ends_here && state.hash != header.hash() {
                    return Err(format!(
                        "{node} has another history of {} at frame {}",
                        header.segment, header.number
                    ));
                }
            }
            self.expected = Some((header.number.saturating_add(1), header.hash()));
            if header.kind == FrameKind::Data && header.end > self.committed && header.end <= self.end {
                // A question that was asked twice is answered twice.
                let have = self.frames.last().map_or(self.committed, |last| last.header.end);
                if header.first == have {
                    self.frames.push(frame);
                    progressed = true;
                } else if header.first < have && header.end > have {
                    return Err(format!(
                        "{} frame {} overlaps {have}",
                        header.segment, header.number
                    ));
                }
            }
        }
        Ok(progressed)
    }
}

/// The state and the headers of an answer, none where they do not parse.
pub(super) fn state_of(headers: &Headers) -> Option<(PartitionState, Vec<Header>)> {
    let state = match FrameKind::from_u8(headers.state_kind).ok()? {
        FrameKind::Open => OpenPayload::decode(&headers.state).ok()?.state,
        FrameKind::State => PartitionState::decode(&headers.state).ok()?,
        _ => return None,
    };
    let parsed = headers
        .headers
        .chunks(HEADER_LEN)
        .map(|raw| Header::parse_prefix(raw).ok())
        .collect::<Option<Vec<_>>>()?;
    Some((state, parsed))
}

/// Headers of the batches in a frame.
fn batch_headers(frame: &Frame) -> Vec<Header> {
    let mut rest: Bytes = frame.payload_bytes();
    let mut headers = Vec::new();
    while let Ok(header) = Header::parse(&rest) {
        let len = header.len_bytes().max(HEADER_LEN).min(rest.len());
        bytes::Buf::advance(&mut rest, len);
        headers.push(header);
    }
    headers
}
