//! The second step of a takeover: reading what is undecided, from the highest committed offset to the
//! longest end.
//!
//! Every frame's hash ties it to its history; where replicas contradict each other nothing is decided.

use forebay_proto::data::replica::{FramesRequest, NodeFailure};
use forebay_record::frame::{Frame, FrameKind};
use forebay_record::{NodeId, Offset, SegmentId};

use super::{Carrying, Halted, Recovery};
use crate::partition::action::{Action, Context};
use crate::partition::owner::{Owner, Phase};

/// Bytes asked for at a time while carrying.
const CARRY_BYTES: u32 = 8 << 20;

impl Owner {
    pub(super) fn ask_for_frames(&mut self, ctx: &mut Context<'_>) {
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
                Err(contradiction) => {
                    let halted = Halted {
                        segment: carrying.segment.clone(),
                        replies: std::mem::take(&mut carrying.replies),
                        contradiction,
                        disputed: true,
                    };
                    return self.halt(halted);
                }
            },
            Err(failure) => {
                if failure == NodeFailure::Corrupt {
                    carrying.corrupt.insert(node);
                }
                carrying.busy |= failure == NodeFailure::Overloaded;
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
}

impl Carrying {
    /// Up to where the undecided tail was read.
    pub(in crate::partition) fn read_to(&self) -> Offset {
        self.frames
            .last()
            .map_or(self.committed, |frame| frame.header.end)
    }

    /// Whether the entry at `have` cannot have been acknowledged: every copy that there may be is known
    /// to be damaged, and with so many closed replicas that never had it, there are fewer copies than
    /// the quorum needed (I15: only those count that would know).
    pub(super) fn was_never_acknowledged(&self, have: Offset) -> bool {
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
    pub(super) fn take(&mut self, frames: Vec<Frame>) -> Result<bool, String> {
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
