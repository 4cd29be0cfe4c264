//! What one storage node holds, as a state machine: takes messages, returns what to write and
//! what to answer. No disk, no clock, no task; a simulator drives it as the node does.
//!
//! 1. [`Replica::append`] decides on a frame (`append.rs`), [`Replica::fence`] closes a segment
//!    (`fence.rs`). What a driver must write next is the frame it just passed, where told to
//!    stage it, and then all of [`Replica::take_notes`], in that order.
//! 2. Once everything written is durable the driver calls [`Replica::synced`] and sends what that
//!    returns. Nothing that claims durability leaves by any other way (I4).
//! 3. [`Replica::snapshot`] describes the durable state; [`rebuild`] makes it again from a
//!    snapshot and the frames after it.
//!
//! Keeps I3 (a segment is contiguous from its base and hash-chained) and I5 (closed is forever).

mod append;
mod copy;
mod damage;
mod fence;
pub mod rebuild;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use forebay_proto::data::replica::{Ack, FromNode, NodeFailure};
use forebay_record::frame::{ChainHash, FrameHeader};
use forebay_record::{Epoch, Generation, NodeId, Offset, SegmentId, Token};
use forebay_runtime::mutant::{self, Mutant};

pub use append::Appended;

use crate::journal::format::{SegmentState, Snapshot};
use crate::journal::note::{COMMITTED_MAX, Note};

/// Names a connection, for its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u64);

/// What a node takes for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Admission {
    /// Everything.
    #[default]
    All,
    /// Frames of segments it has.
    NoNewSegments,
    /// Only fences.
    NoData,
}

/// Bounds of a replica's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Segments held, fenced ones included. Beyond, a fence of an unknown segment raises the
    /// floor, which closes it as well.
    pub segments_max: usize,
    /// Frames held over all segments.
    pub frames_max: u64,
    /// Largest frame, in bytes of content.
    pub frame_bytes_max: usize,
}

/// How far a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    tail: Offset,
    frames: u32,
    hash: ChainHash,
}

#[derive(Debug)]
struct Segment {
    token: Token,
    base: Offset,
    staged: Progress,
    durable: Progress,
    committed: Offset,
    fenced: Option<Epoch>,
    limbo: bool,
    /// It came as a copy, and no record is known to name it.
    copied: bool,
    /// Checksum of each frame, to tell a repetition from an overlap.
    checksums: Vec<u32>,
    /// In limbo: checksums of the frames that are here, and lack one before them, by number.
    loose: BTreeMap<u32, u32>,
}

impl Segment {
    fn new(segment: SegmentId, token: Token, base: Offset) -> Self {
        let progress = Progress {
            tail: base,
            frames: 0,
            hash: ChainHash::seed(segment),
        };
        Self {
            token,
            base,
            staged: progress,
            durable: progress,
            committed: base,
            fenced: None,
            limbo: false,
            copied: false,
            checksums: Vec::new(),
            loose: BTreeMap::new(),
        }
    }

    /// Frames that are here.
    fn held(&self) -> u64 {
        (self.checksums.len() + self.loose.len()) as u64
    }

    fn state(&self, segment: SegmentId, progress: Progress) -> SegmentState {
        SegmentState {
            segment,
            token: self.token,
            base: self.base,
            tail: progress.tail,
            committed: self.committed,
            hash: progress.hash,
            frames: progress.frames,
            fenced: self.fenced,
            limbo: self.limbo,
            copied: self.copied,
        }
    }
}

/// What waits for the journal.
#[derive(Debug)]
enum Waiting {
    Ack(Peer, SegmentId),
    Reply(Peer, FromNode),
}

/// What may be said once all that was written is durable.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Acknowledgements, one for each segment and peer.
    pub acks: BTreeMap<Peer, Vec<Ack>>,
    /// Other answers.
    pub replies: Vec<(Peer, FromNode)>,
}

/// How many segments there are, by standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Taking frames.
    pub open: u64,
    /// Closed.
    pub fenced: u64,
    /// With bytes missing, maybe.
    pub limbo: u64,
}

/// What one storage node holds.
#[derive(Debug)]
pub struct Replica {
    node: NodeId,
    generation: Generation,
    limits: Limits,
    floor: Token,
    segments: BTreeMap<SegmentId, Segment>,
    frames: u64,
    admission: Admission,
    notes: VecDeque<Note>,
    waiting: Vec<Waiting>,
    staged: BTreeSet<SegmentId>,
    /// Segments whose committed offset is not in the journal yet.
    uncommitted: BTreeSet<SegmentId>,
    /// Copies under way, and whose they are.
    copies: BTreeMap<SegmentId, Peer>,
}

impl Replica {
    /// A replica that holds nothing.
    #[must_use]
    pub fn new(node: NodeId, generation: Generation, limits: Limits) -> Self {
        Self {
            node,
            generation,
            limits,
            floor: Token::default(),
            segments: BTreeMap::new(),
            frames: 0,
            admission: Admission::default(),
            notes: VecDeque::new(),
            waiting: Vec::new(),
            staged: BTreeSet::new(),
            uncommitted: BTreeSet::new(),
            copies: BTreeMap::new(),
        }
    }

    /// A replica that holds what a journal was found to hold; all of it must be durable.
    #[must_use]
    pub fn restore(node: NodeId, generation: Generation, limits: Limits, held: &rebuild::Held) -> Self {
        let mut replica = Self::new(node, generation, limits);
        replica.floor = held.floor;
        for (id, found) in &held.segments {
            let state = &found.state;
            let progress = Progress {
                tail: state.tail,
                frames: state.frames,
                hash: state.hash,
            };
            let loose = found.loose.iter().map(|(number, one)| (*number, one.checksum));
            let segment = Segment {
                staged: progress,
                durable: progress,
                committed: state.committed,
                fenced: state.fenced,
                limbo: state.limbo,
                copied: state.copied,
                checksums: found.checksums.clone(),
                loose: loose.collect(),
                ..Segment::new(*id, state.token, state.base)
            };
            replica.frames += segment.held();
            replica.segments.insert(*id, segment);
        }
        replica
    }

    /// The node's generation.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Tokens up to this one are closed where the segment is unknown.
    #[must_use]
    pub const fn floor(&self) -> Token {
        self.floor
    }

    /// Sets what is taken from now on.
    pub const fn admit(&mut self, admission: Admission) {
        self.admission = admission;
    }

    /// What is taken: the driver's word, or less where memory runs out.
    #[must_use]
    pub fn admission(&self) -> Admission {
        let own = if self.frames >= self.limits.frames_max {
            Admission::NoData
        } else if self.frames >= self.limits.frames_max / 20 * 17
            || self.segments.len() >= self.limits.segments_max / 20 * 17
        {
            Admission::NoNewSegments
        } else {
            Admission::All
        };
        own.max(self.admission)
    }

    /// Notes to write now, oldest first.
    pub fn take_notes(&mut self) -> impl Iterator<Item = Note> + '_ {
        self.notes.drain(..)
    }

    /// Whether answers wait for the journal.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes committed offsets that owners stated. They reach the journal with the next block,
    /// since losing one only makes readers wait for its repetition.
    pub fn commit(&mut self, segment: SegmentId, committed: Offset) -> bool {
        match self.segments.get_mut(&segment) {
            Some(held) if held.committed < committed => {
                held.committed = committed;
                self.uncommitted.insert(segment);
                true
            }
            _ => false,
        }
    }

    /// Committed offsets that wait to be written.
    #[must_use]
    pub fn uncommitted(&self) -> usize {
        self.uncommitted.len()
    }

    /// Whether a frame is small enough to be taken.
    #[must_use]
    pub const fn is_small_enough(&self, header: &FrameHeader) -> bool {
        header.payload_len as usize <= self.limits.frame_bytes_max
    }

    /// The same for a frame of a copy.
    ///
    /// # Errors
    /// Says what would be taken.
    pub fn check_size(&self, header: &FrameHeader) -> Result<(), NodeFailure> {
        if self.is_small_enough(header) {
            return Ok(());
        }
        tracing::warn!(segment = %header.segment, bytes = header.payload_len,
            frame_bytes_max = self.limits.frame_bytes_max,
            "a copy is refused: the journal files are too small for its frames (storage.journal_file_bytes)");
        Err(NodeFailure::TooLarge(self.limits.frame_bytes_max as u64))
    }

    /// A note of committed offsets that are not in the journal yet, at most [`COMMITTED_MAX`].
    pub fn take_committed(&mut self) -> Option<Note> {
        let mut items = Vec::new();
        while items.len() < COMMITTED_MAX
            && let Some(id) = self.uncommitted.pop_first()
        {
            if let Some(held) = self.segments.get(&id) {
                items.push((id, held.committed));
            }
        }
        (!items.is_empty()).then_some(Note::Committed(items))
    }

    /// Whether a segment takes frames here, now. What is unknown is not known to be open.
    #[must_use]
    pub fn confirm(&self, segment: SegmentId, generation: Generation) -> bool {
        generation == self.generation
            && self
                .segments
                .get(&segment)
                .is_some_and(|held| held.fenced.is_none() && !held.limbo)
    }

    /// Everything staged so far is durable now: what may be said because of that.
    pub fn synced(&mut self) -> Synced {
        for id in std::mem::take(&mut self.staged) {
            if let Some(held) = self.segments.get_mut(&id) {
                held.durable = held.staged;
            }
        }
        let mut acked = BTreeSet::new();
        let mut synced = Synced::default();
        for waiting in self.waiting.drain(..) {
            match waiting {
                Waiting::Reply(peer, reply) => synced.replies.push((peer, reply)),
                Waiting::Ack(peer, segment) => {
                    // In limbo it is no longer known how far that is.
                    if let Some(held) = self.segments.get(&segment).filter(|held| !held.limbo)
                        && acked.insert((peer, segment))
                    {
                        let Progress { tail, frames, .. } = held.durable;
                        synced.acks.entry(peer).or_default().push(Ack {
                            segment,
                            tail,
                            frames,
                        });
                    }
                }
            }
        }
        synced
    }

    /// The journal failed: nothing that waits will ever be durable. Who waits, with the segment
    /// and the frames it durably has.
    pub fn failed(&mut self) -> Vec<(Peer, SegmentId, u32)> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut told = BTreeSet::new();
        waiting
            .into_iter()
            .filter_map(|waiting| match waiting {
                Waiting::Ack(peer, segment) => {
                    let held = self.segments.get(&segment)?;
                    told.insert((peer, segment))
                        .then_some((peer, segment, held.durable.frames))
                }
                Waiting::Reply(..) => None,
            })
            .collect()
    }

    /// Raises the floor: unknown segments with a token up to `token` are closed.
    pub fn raise_floor(&mut self, token: Token) {
        if self.floor < token {
            self.floor = token;
            self.notes.push_back(Note::Floor(token));
        }
    }

    /// Whether bytes of a segment may be missing here; nothing more is taken for it then.
    #[must_use]
    pub fn is_in_limbo(&self, segment: SegmentId) -> bool {
        self.segments.get(&segment).is_some_and(|held| held.limbo)
    }

    /// Forgets a segment whose record says that nobody needs it any more. The floor rises first
    /// (I17), so it stays closed. False where it is unknown.
    pub fn trim(&mut self, segment: SegmentId) -> bool {
        let Some(held) = self.segments.remove(&segment) else {
            return false;
        };
        self.frames -= held.held();
        self.staged.remove(&segment);
        self.uncommitted.remove(&segment);
        self.copies.remove(&segment);
        if !mutant::is(Mutant::FloorNotRaised) {
            self.raise_floor(held.token);
        }
        self.notes.push_back(Note::Trim(segment, held.token));
        true
    }

    /// The durable state. Only complete where nothing is staged.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        debug_assert!(self.staged.is_empty() && self.notes.is_empty());
        let segments = self
            .segments
            .iter()
            .map(|(id, held)| held.state(*id, held.durable))
            .collect();
        Snapshot {
            floor: self.floor,
            segments,
        }
    }

    /// What is durable of a segment.
    #[must_use]
    pub fn segment(&self, segment: SegmentId) -> Option<SegmentState> {
        self.segments
            .get(&segment)
            .map(|held| held.state(segment, held.durable))
    }

    /// Segments by standing.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for held in self.segments.values() {
            match held {
                Segment { limbo: true, .. } => counts.limbo += 1,
                Segment { fenced: Some(_), .. } => counts.fenced += 1,
                Segment { fenced: None, .. } => counts.open += 1,
            }
        }
        counts
    }
}
