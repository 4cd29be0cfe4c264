//! Closing a segment on this node, forever.
//!
//! A fence stands behind everything staged before it and is answered only when it and all of
//! that are durable. A segment that was never seen is closed too, by a tombstone, or by the floor
//! where there is no room for one: a late first frame must find it closed (I5). Fencing again is
//! harmless. The answer counts as evidence only from a replica of the right generation that is
//! not in limbo (I15).

use forebay_proto::data::replica::{FenceItem, FencedState, FromNode};
use forebay_record::frame::ChainHash;
use forebay_runtime::mutant::{self, Mutant};

use super::{Peer, Replica, Segment, Waiting};
use crate::journal::note::Note;

impl Replica {
    /// Closes one segment. Write the notes, then pass all states of a request to
    /// [`Replica::fenced`].
    pub fn fence(&mut self, item: &FenceItem) -> FencedState {
        if item.generation != self.generation && !mutant::is(Mutant::GenerationIgnored) {
            return nothing_held(item, false);
        }
        if !self.segments.contains_key(&item.segment) && self.segments.len() >= self.limits.segments_max {
            self.raise_floor(item.token);
            return nothing_held(item, true);
        }
        if mutant::is(Mutant::UnknownNotFenced) && !self.segments.contains_key(&item.segment) {
            return nothing_held(item, true);
        }
        let held = self
            .segments
            .entry(item.segment)
            .or_insert_with(|| Segment::new(item.segment, item.token, item.base));
        if held.fenced.is_none_or(|by| by < item.by) {
            held.fenced = Some(item.by);
            if !mutant::is(Mutant::FenceForgotten) {
                self.notes
                    .push_back(Note::Standing(held.state(item.segment, held.staged)));
            }
            self.uncommitted.remove(&item.segment);
        }
        FencedState {
            segment: item.segment,
            // A token is a segment's own: another one means that one of the two is mistaken about
            // which segment this is.
            authoritative: (!held.limbo || mutant::is(Mutant::LimboIsEvidence)) && held.token == item.token,
            tail: held.staged.tail,
            committed: held.committed,
            frames: held.staged.frames,
            hash: held.staged.hash,
        }
    }

    /// Answers a request once its notes are durable.
    pub fn fenced(&mut self, peer: Peer, request: u64, states: Vec<FencedState>) {
        self.waiting
            .push(Waiting::Reply(peer, FromNode::Fenced { request, states }));
    }
}

/// The state of a segment of which this node has nothing.
fn nothing_held(item: &FenceItem, authoritative: bool) -> FencedState {
    FencedState {
        segment: item.segment,
        authoritative,
        tail: item.base,
        committed: item.base,
        frames: 0,
        hash: ChainHash::seed(item.segment),
    }
}
