//! One segment being written: its frames, and how far each replica has them.
//!
//! Frames are kept until every replica that is still counted on has them, and in any case until
//! they are committed: an ensemble change and a reconnect send them again, byte for byte.

use std::collections::VecDeque;

use bytes::Bytes;
use forebay_meta::model::Segment;
use forebay_proto::data::replica::Ack;
use forebay_record::frame::{ChainHash, Frame, FrameError, FrameKind, FrameSpec};
use forebay_record::{Generation, NodeId, Offset};
use forebay_runtime::mutant::{self, Mutant};

use super::action::{Action, Nodes};

/// How far one replica is.
#[derive(Debug, Clone)]
struct Cursor {
    node: NodeId,
    generation: Generation,
    /// It will never get the rest: it refused, or was cut off.
    out: bool,
    /// Frames that it has durably.
    frames: u32,
    /// First offset that it does not have durably.
    tail: Offset,
    /// Since when it has been behind, none while it has everything.
    behind_since_ms: Option<u64>,
}

/// A segment being written.
#[derive(Debug)]
pub struct Writer {
    /// The segment as it is, or will be, in the record.
    pub segment: Segment,
    cursors: Vec<Cursor>,
    /// Frames from number `first_kept` on.
    frames: VecDeque<Frame>,
    kept_bytes: u64,
    first_kept: u32,
    next_number: u32,
    hash: ChainHash,
    /// Next offset to write.
    pub tail: Offset,
    /// Everything below is committed in this segment.
    pub committed: Offset,
    /// Payload bytes since the last state.
    pub bytes_since_state: u64,
    /// Batches since the last state.
    pub batches_since_state: u32,
    /// Bytes of frames.
    pub bytes: u64,
    /// When it was created, on the driver's monotonic clock.
    pub opened_ms: u64,
}

impl Writer {
    /// A segment about to be written; its first frame follows by [`Writer::append`].
    #[must_use]
    pub fn new(segment: Segment, now_ms: u64) -> Self {
        let cursors = segment
            .replicas
            .iter()
            .map(|(node, generation)| Cursor {
                node: *node,
                generation: *generation,
                out: false,
                frames: 0,
                tail: segment.base,
                behind_since_ms: None,
            })
            .collect();
        Self {
            cursors,
            frames: VecDeque::new(),
            kept_bytes: 0,
            first_kept: 0,
            next_number: 0,
            hash: ChainHash::seed(segment.id),
            tail: segment.base,
            committed: segment.base,
            bytes_since_state: 0,
            batches_since_state: 0,
            bytes: 0,
            opened_ms: now_ms,
            segment,
        }
    }

    /// Adds a frame that ends at `end` and sends it to every replica that is counted on.
    ///
    /// # Errors
    /// Where the payload is too large for a frame.
    pub fn append(
        &mut self,
        kind: FrameKind,
        batches: u32,
        end: Offset,
        payload: Vec<Bytes>,
        now_ms: u64,
        out: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        let frame = Frame::new(
            FrameSpec {
                kind,
                batches,
                segment: self.segment.id,
                token: self.segment.token,
                first: self.tail,
                end,
                prev_hash: self.hash,
                number: self.next_number,
                committed: self.committed,
            },
            payload,
        )?;
        self.hash = frame.header.hash();
        self.next_number += 1;
        self.tail = end;
        self.bytes += frame.header.frame_len() as u64;
        if matches!(kind, FrameKind::Open | FrameKind::State) {
            self.bytes_since_state = 0;
            self.batches_since_state = 0;
        } else {
            self.bytes_since_state += u64::from(frame.header.payload_len);
            self.batches_since_state += batches;
        }
        for cursor in self.cursors.iter_mut().filter(|cursor| !cursor.out) {
            cursor.behind_since_ms.get_or_insert(now_ms);
            out.push(Action::Append {
                node: cursor.node,
                generation: cursor.generation,
                frame: frame.clone(),
            });
        }
        self.kept_bytes += frame.header.frame_len() as u64;
        self.frames.push_back(frame);
        Ok(())
    }

    /// Takes an acknowledgement; true where it brought something new.
    pub fn on_ack(&mut self, node: NodeId, ack: Ack, now_ms: u64) -> bool {
        let (next_number, tail) = (self.next_number, self.tail);
        let Some(cursor) = self.cursors.iter_mut().find(|cursor| cursor.node == node) else {
            return false;
        };
        // A replica cannot have what was never written; such an answer is another segment's.
        if ack.frames > next_number || ack.tail > tail || ack.frames <= cursor.frames {
            return false;
        }
        cursor.frames = ack.frames;
        cursor.tail = cursor.tail.max(ack.tail);
        cursor.behind_since_ms = (ack.frames < next_number).then_some(now_ms);
        self.forget();
        true
    }

    /// First offset that a quorum does not have durably.
    #[must_use]
    pub fn quorum_tail(&self) -> Offset {
        let mut tails: Vec<_> = self
            .cursors
            .iter()
            .filter(|cursor| cursor.frames > 0)
            .map(|cursor| cursor.tail)
            .collect();
        tails.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = if mutant::is(Mutant::AckQuorumOfOne) {
            1
        } else {
            usize::from(self.segment.ack_quorum)
        };
        let at = quorum.saturating_sub(1);
        tails.get(at).copied().unwrap_or(self.segment.base)
    }

    /// True once a quorum has every frame, those without records included.
    #[must_use]
    pub fn quorum_has_all(&self) -> bool {
        let all = self
            .cursors
            .iter()
            .filter(|cursor| cursor.frames == self.next_number)
            .count();
        all >= usize::from(self.segment.ack_quorum)
    }

    /// First offset that no replica has durably.
    #[must_use]
    pub fn first_tail(&self) -> Offset {
        self.cursors
            .iter()
            .map(|cursor| cursor.tail)
            .max()
            .unwrap_or(self.segment.base)
    }

    /// Moves the committed offset up to what a quorum has, but not beyond `limit`; true where it moved.
    pub fn commit(&mut self, limit: Offset) -> bool {
        let next = self.quorum_tail().min(limit);
        assert!(
            next <= self.tail,
            "{} commits {next} beyond its tail {}",
            self.segment.id,
            self.tail
        );
        if next <= self.committed {
            return false;
        }
        self.committed = next;
        self.forget();
        true
    }

    /// Drops frames that are committed and that no replica needs again.
    fn forget(&mut self) {
        let needed = self
            .cursors
            .iter()
            .filter(|cursor| !cursor.out)
            .map(|cursor| cursor.frames)
            .min()
            .unwrap_or(self.next_number);
        while let Some(frame) = self.frames.front()
            && frame.header.end <= self.committed
            && self.first_kept < needed
        {
            self.kept_bytes -= frame.header.frame_len() as u64;
            self.frames.pop_front();
            self.first_kept += 1;
        }
    }

    /// Replicas that can still take frames: not out, and their node has a session.
    #[must_use]
    pub fn healthy(&self, nodes: &Nodes) -> usize {
        self.cursors
            .iter()
            .filter(|cursor| !cursor.out && is_up(cursor, nodes))
            .count()
    }

    /// True where fewer replicas than the quorum can still take frames.
    #[must_use]
    pub fn is_stuck(&self, nodes: &Nodes) -> bool {
        self.healthy(nodes) < usize::from(self.segment.ack_quorum)
    }

    /// True where a replica is out: the segment should end when convenient.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.cursors.iter().any(|cursor| cursor.out)
    }

    /// True where every replica that is counted on has everything.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.cursors
            .iter()
            .filter(|cursor| !cursor.out)
            .all(|cursor| cursor.frames == self.next_number)
    }

    /// Gives a replica up for this segment.
    pub fn give_up(&mut self, node: NodeId) -> bool {
        let Some(cursor) = self
            .cursors
            .iter_mut()
            .find(|cursor| cursor.node == node && !cursor.out)
        else {
            return false;
        };
        cursor.out = true;
        self.forget();
        true
    }

    /// Gives up replicas that made no progress since before `since_ms`, or whose backlog keeps more
    /// than `kept_bytes_max` here, as long as a quorum keeps up without them.
    pub fn give_up_stragglers(&mut self, since_ms: u64, kept_bytes_max: u64) -> Vec<NodeId> {
        let overweight = self.kept_bytes > kept_bytes_max;
        let newest = self
            .cursors
            .iter()
            .map(|cursor| cursor.frames)
            .max()
            .unwrap_or_default();
        let is_late = |cursor: &Cursor| {
            cursor.behind_since_ms.is_some_and(|since| since < since_ms)
                || (overweight && cursor.frames < newest && cursor.tail < self.committed)
        };
        let live = self.cursors.iter().filter(|cursor| !cursor.out);
        let (late, in_time): (Vec<_>, Vec<_>) = live.partition(|cursor| is_late(cursor));
        if in_time.len() < usize::from(self.segment.ack_quorum) {
            return Vec::new();
        }
        let late: Vec<_> = late.into_iter().map(|cursor| cursor.node).collect();
        late.into_iter().filter(|node| self.give_up(*node)).collect()
    }

    /// Replicas without progress since before `since_ms` that a quorum waits for: without them too few are
    /// in time.
    pub fn awaited(&self, since_ms: u64) -> Vec<NodeId> {
        let is_late = |cursor: &&Cursor| cursor.behind_since_ms.is_some_and(|since| since < since_ms);
        let live = || self.cursors.iter().filter(|cursor| !cursor.out);
        let in_time = live().filter(|cursor| !is_late(cursor)).count();
        if in_time >= usize::from(self.segment.ack_quorum) {
            return Vec::new();
        }
        live().filter(is_late).map(|cursor| cursor.node).collect()
    }

    /// How far each replica is, for logs: node, frames, whether it is out, and for how long it is behind, ms.
    pub fn standing(&self, now_ms: u64) -> Vec<(u32, u32, bool, Option<u64>)> {
        let of = |cursor: &Cursor| {
            let behind = cursor.behind_since_ms.map(|since| now_ms.saturating_sub(since));
            (cursor.node.0, cursor.frames, cursor.out, behind)
        };
        self.cursors.iter().map(of).collect()
    }

    /// Sends a replica everything from a frame number on, or gives it up where that is forgotten.
    pub fn resend(&mut self, node: NodeId, from: u32, out: &mut Vec<Action>) {
        let Some(cursor) = self
            .cursors
            .iter()
            .find(|cursor| cursor.node == node && !cursor.out)
        else {
            return;
        };
        let (generation, from) = (cursor.generation, from.max(cursor.frames));
        if from < self.first_kept {
            self.give_up(node);
            return;
        }
        let skip = (from - self.first_kept) as usize;
        out.extend(self.frames.iter().skip(skip).map(|frame| Action::Append {
            node,
            generation,
            frame: frame.clone(),
        }));
    }

    /// A node has a session again: it gets what it has not acknowledged. A node that came back
    /// with another generation is another node (I2).
    pub fn on_connected(&mut self, node: NodeId, generation: Generation, out: &mut Vec<Action>) {
        let Some(cursor) = self
            .cursors
            .iter()
            .find(|cursor| cursor.node == node && !cursor.out)
        else {
            return;
        };
        if cursor.generation == generation {
            let from = cursor.frames;
            self.resend(node, from, out);
        } else {
            self.give_up(node);
        }
    }

    /// Replicas that should be told the committed offset.
    pub fn announce(&self, out: &mut Vec<Action>) {
        out.extend(
            self.cursors
                .iter()
                .filter(|cursor| !cursor.out)
                .map(|cursor| Action::Commit {
                    node: cursor.node,
                    segment: self.segment.id,
                    committed: self.committed,
                }),
        );
    }

    /// Record-carrying frames that are not committed, oldest first.
    pub fn undecided(&self) -> impl Iterator<Item = &Frame> {
        self.frames
            .iter()
            .filter(|frame| frame.header.kind == FrameKind::Data && frame.header.end > self.committed)
    }
}

fn is_up(cursor: &Cursor, nodes: &Nodes) -> bool {
    nodes
        .get(&cursor.node)
        .is_some_and(|node| node.connected && node.generation == cursor.generation)
}
