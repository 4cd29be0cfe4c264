//! The first step of a takeover: closing the open segment on its replicas, and what their answers decide.
//!
//! A node that does not answer is asked again; what it holds is unknown, never absent (I15).

use std::collections::{BTreeMap, BTreeSet};

use forebay_meta::model::Segment;
use forebay_proto::data::replica::{FenceItem, FencedState};
use forebay_record::NodeId;
use forebay_runtime::mutant::{self, Mutant};

use super::{Carrying, Fencing, Halted, Recovery};
use crate::partition::action::{Action, Context};
use crate::partition::owner::{Owner, Phase};

/// That nodes are silent is told after so many questions, and again after every so many.
const TOLD_AFTER: u32 = 10;
const TOLD_EVERY: u32 = 120;

impl Owner {
    /// Fences on the replicas that have not answered; also while the carry is read, where a copy that is
    /// damaged everywhere else may be on a silent one.
    pub(super) fn send_fences(&mut self, ctx: &mut Context<'_>) {
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
            let contradiction = format!("{} is committed up to {committed} but ends at {end}", segment.id);
            return self.halt(Halted {
                segment,
                replies,
                contradiction,
                disputed: false,
            });
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
            busy: false,
            asked_ms: ctx.now_ms,
        }));
        self.ask_for_frames(ctx);
    }
}

impl Fencing {
    /// The replicas whose word is missing, for people.
    pub(in crate::partition) fn waits_for(
        segment: &Segment,
        replies: &BTreeMap<NodeId, FencedState>,
    ) -> String {
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
