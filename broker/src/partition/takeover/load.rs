//! The third step of a takeover: duplicate detection and leader epochs, from the last state and the
//! batch headers after it.
//!
//! Without them repetitions would be taken for new batches, so they are asked for again and again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use forebay_meta::model::Segment;
use forebay_proto::data::replica::{FencedState, Headers, HeadersRequest, NodeFailure};
use forebay_record::batch::{HEADER_LEN, Header};
use forebay_record::frame::{Frame, FrameKind};
use forebay_record::producers::Producers;
use forebay_record::state::{OpenPayload, PartitionState};
use forebay_record::{NodeId, Offset, SegmentId};

use super::{Loading, Recovery};
use crate::partition::action::{Action, Context};
use crate::partition::owner::{Owner, Phase};

impl Owner {
    /// Nodes and segments that may have the state at `committed`: replicas of the open segment
    /// that reach so far, then those of the segment sealed before it.
    pub(in crate::partition) fn state_candidates(
        &self,
        segment: &Segment,
        replies: &BTreeMap<NodeId, FencedState>,
        until: Offset,
    ) -> VecDeque<(SegmentId, NodeId, HeadersRequest)> {
        // What is forced goes by whatever is left: the longest first, as far as it is in one piece.
        let forced = self.forced.is_some();
        let holds = |state: &FencedState| {
            let counts = state.authoritative && state.tail >= until;
            state.frames > 0 && (counts || forced)
        };
        let mut holders: Vec<_> = replies.iter().filter(|(_, state)| holds(state)).collect();
        holders.sort_by_key(|(_, state)| std::cmp::Reverse(state.tail.min(until)));
        holders
            .into_iter()
            .filter(|(node, _)| self.forced.as_ref().is_none_or(|forced| forced.counts(**node)))
            .filter_map(|(node, state)| {
                let request = HeadersRequest {
                    segment: segment.id,
                    generation: segment.generation_of(*node)?,
                    until: until.min(state.tail),
                };
                Some((segment.id, *node, request))
            })
            .collect()
    }

    pub(in crate::partition) fn load(
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
            && let Some(end) = sealed.end
        {
            // Behind what was lost of it nobody knows them all.
            let pieces = self.record.pieces(sealed.base, end);
            let first = pieces.first().filter(|(base, _)| *base == sealed.base);
            let until = first.map_or(sealed.base, |(_, until)| *until);
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
            busy: false,
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

    pub(super) fn ask_for_headers(&mut self, ctx: &mut Context<'_>) {
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
        loading.busy |= matches!(&result, Err(NodeFailure::Overloaded));
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

    pub(super) fn on_state(&mut self, state: PartitionState, headers: &[Header], ctx: &mut Context<'_>) {
        self.producers = Producers::from_entries(state.producers);
        self.epochs = state.epochs;
        for header in headers {
            self.note(header);
        }
        self.on_loaded(ctx);
    }

    /// Remembers a batch that another owner wrote.
    pub(super) fn note(&mut self, header: &Header) {
        self.producers.record(header, header.base_offset());
        if let Some(epoch) = header.leader_epoch()
            && self.epochs.last().is_none_or(|(last, _)| *last < epoch)
        {
            self.epochs.push((epoch, header.base_offset()));
        }
    }

    pub(super) fn on_loaded(&mut self, ctx: &mut Context<'_>) {
        self.stateless = false;
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

    pub(super) fn cache_frame(&mut self, frame: &Frame) {
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
}

/// The state and the headers of an answer, none where they do not parse.
pub(in crate::partition) fn state_of(headers: &Headers) -> Option<(PartitionState, Vec<Header>)> {
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
