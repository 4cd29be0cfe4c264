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
//! Where nothing is open, steps 1 and 2 have nothing to do. Then the takeover is *witnessing* first: it
//! waits until as many storage nodes are connected as step 1 would need answers, since only they would
//! notice that the record is an older one. Nothing is served before.
//!
//! Each step may be repeated: fences and reads change nothing that a second one would not. A node
//! that does not answer is asked again; what it holds is unknown, never absent (I15).

mod carry;
mod fence;
mod load;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use forebay_meta::model::Segment;
use forebay_proto::data::replica::{FencedState, HeadersRequest};
use forebay_record::frame::{ChainHash, Frame};
use forebay_record::{NodeId, Offset, SegmentId};

#[cfg(test)]
pub(super) use self::load::state_of;
use super::action::{Context, Nodes};
use super::change::{carry, sealed};
use super::owner::{Owner, Phase, Plan};

/// A silent node is asked again after this long.
const RETRY_MS: u64 = 500;
/// So is one that had too much to do, where no other is still asked.
const BUSY_RETRY_MS: u64 = 50;
/// The object store is given this much longer than a node.
const OBJECT_RETRY_MS: u64 = 4_500;
/// After so many pauses without an answer a takeover that an operator forces goes on without the state.
pub(super) const PATIENT_PAUSES: u32 = 10;

/// Where a takeover is.
#[derive(Debug)]
pub enum Recovery {
    /// Nothing is open, and too few storage nodes are connected to contradict the record: see
    /// [`Owner::has_witnesses`].
    Witnessing,
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
    /// Replicas contradict each other: nothing is served until an operator has chosen.
    Halted(Halted),
}

/// Replicas that contradict each other.
#[derive(Debug)]
pub struct Halted {
    pub(super) segment: Segment,
    /// What each of them says.
    pub(super) replies: BTreeMap<NodeId, FencedState>,
    /// In which way.
    pub(super) contradiction: String,
    /// They have different histories of the segment: one of them must be chosen.
    pub(super) disputed: bool,
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
    /// A node had too much to do to answer.
    busy: bool,
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
    /// One of them because a node had too much to do.
    busy: bool,
    /// Pauses after which nobody was only busy.
    pub(super) pauses: u32,
    /// Sealed end of what is taken over.
    committed: Offset,
    pub(super) end: Offset,
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
        } else if self.has_witnesses(ctx.nodes) {
            let end = self.record.sealed_end();
            self.load(VecDeque::new(), end, end, Vec::new(), ctx);
        } else {
            self.phase = Phase::Recovering(Recovery::Witnessing);
        }
    }

    /// Whether so many storage nodes are connected as a takeover with an open segment needs. Nodes
    /// remember how far the metadata store was and do not run with one that went back (I24); a broker
    /// remembers nothing, and without them would show the end that a restored record has.
    fn has_witnesses(&self, nodes: &Nodes) -> bool {
        let connected = nodes.values().filter(|node| node.connected).count();
        let close_quorum = (self.config.replicas + 1).saturating_sub(usize::from(self.config.ack_quorum));
        self.record.sealed_end() == Offset(0) || connected >= close_quorum.min(nodes.len()).max(1)
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
        self.forced = None;
        let end = self.record.sealed_end();
        self.tail = end;
        self.show(end, ctx);
        self.pump(ctx);
        self.flush(ctx);
    }

    /// Asks again where an answer is overdue.
    pub(super) fn retry_recovery(&mut self, ctx: &mut Context<'_>) {
        let Phase::Recovering(recovery) = &mut self.phase else {
            return;
        };
        let retry_ms = |busy| if busy { BUSY_RETRY_MS } else { RETRY_MS };
        let again_ms = match recovery {
            Recovery::Fencing(fencing) => fencing.asked_ms + RETRY_MS,
            Recovery::Carrying(carrying) => {
                carrying.asked_ms + retry_ms(carrying.busy && carrying.tried.is_empty())
            }
            Recovery::Loading(loading) if loading.offloaded => loading.asked_ms + RETRY_MS + OBJECT_RETRY_MS,
            Recovery::Loading(loading) => {
                loading.asked_ms + retry_ms(loading.busy && loading.failed >= loading.candidates.len())
            }
            Recovery::Witnessing => {
                if self.has_witnesses(ctx.nodes) {
                    self.recover(ctx);
                }
                return;
            }
            Recovery::Placing { .. } => return self.place_carry(ctx),
            Recovery::Linking => return,
            Recovery::Halted(halted) => {
                tracing::trace!(partition = %self.record.id, halted.contradiction, "takeover stays halted");
                return;
            }
        };
        if ctx.now_ms < again_ms {
            return;
        }
        if let Recovery::Loading(loading) = recovery
            && !loading.busy
        {
            loading.pauses = loading.pauses.saturating_add(1);
            let forced = self.forced.is_some() && !loading.offloaded;
            if (forced || self.stateless) && loading.pauses > PATIENT_PAUSES {
                tracing::warn!(partition = %self.record.id,
                    "the producers' state cannot be read: a batch that is sent again is written again");
                return self.on_loaded(ctx);
            }
        }
        match recovery {
            Recovery::Fencing(_) => self.send_fences(ctx),
            Recovery::Carrying(carrying) => {
                carrying.busy = false;
                self.send_fences(ctx);
                self.ask_for_frames(ctx);
            }
            Recovery::Loading(loading) => {
                loading.failed = 0;
                loading.busy = false;
                loading.candidates.rotate_left(loading.candidates.len().min(1));
                self.ask_for_headers(ctx);
            }
            Recovery::Witnessing | Recovery::Placing { .. } | Recovery::Linking | Recovery::Halted(_) => {}
        }
    }

    fn halt(&mut self, halted: Halted) {
        tracing::error!(partition = %self.record.id, halted.contradiction, "takeover halted: replicas contradict each other");
        self.phase = Phase::Recovering(Recovery::Halted(halted));
    }
}
