//! Taking frames of a sealed segment that another node lost.
//!
//! A copy is closed from its first moment, by the epoch of the owner that makes it: it takes frames
//! from that owner's copy and from nothing else, whatever the floor is. Until it reaches the sealed end it
//! is in limbo, so it is no evidence for anything (I15); a copy that was interrupted never gets out
//! of limbo and may be trimmed. Once whole it stays until the record names it, or cannot name it any
//! more. A node that the record names already, and that lacks the end of a segment, or frames that
//! were damaged, completes what it has. Frames continue by number, offset and chain hash as everywhere
//! (I3).
//!
//! What was damaged *heals* like this: frames that are missing are taken, those that are here and
//! continue the chain are joined to it. The segment leaves limbo, durably, once it reaches the sealed
//! end without a hole; there is nothing beyond that end to be witness of. Interrupted, it stays in
//! limbo, and keeps what it has.

use forebay_proto::data::replica::{Copied, CopyRequest, FromNode, NodeFailure};
use forebay_record::frame::FrameKind;
use forebay_record::{Epoch, SegmentId};

use super::{Admission, Peer, Replica, Segment, Waiting};
use crate::content::CheckedFrame;
use crate::journal::note::Note;

impl Replica {
    /// Begins a copy, or goes on with it. Write the notes, then pass its frames.
    ///
    /// # Errors
    /// Where the segment is held otherwise, or nothing is taken now.
    pub fn open_copy(&mut self, peer: Peer, copy: &CopyRequest) -> Result<(), NodeFailure> {
        if copy.generation != self.generation {
            return Err(NodeFailure::WrongGeneration(self.generation));
        }
        let admission = self.admission();
        if admission == Admission::NoData {
            return Err(NodeFailure::Overloaded);
        }
        let continues = self.copies.get(&copy.segment) == Some(&peer);
        let count = self.segments.len();
        let Some(held) = self.segments.get_mut(&copy.segment) else {
            // What the record names must be here, whatever else there is no room for.
            let closed = admission != Admission::All && !copy.listed;
            if closed || count >= self.limits.segments_max {
                return Err(NodeFailure::Overloaded);
            }
            let mut held = Segment::new(copy.segment, copy.token, copy.base);
            held.fenced = Some(copy.by);
            held.copied = !copy.listed;
            held.limbo = !copy.listed;
            self.notes
                .push_back(Note::Standing(held.state(copy.segment, held.staged)));
            if held.copied {
                self.copies.insert(copy.segment, peer);
            }
            self.segments.insert(copy.segment, held);
            return Ok(());
        };
        if held.token != copy.token || held.base != copy.base {
            return Err(NodeFailure::Corrupt);
        }
        if held.copied && !copy.listed {
            let whole = !held.limbo && held.staged.tail >= copy.until;
            let same = held.fenced == Some(copy.by) && (whole || continues);
            return if same { Ok(()) } else { Err(NodeFailure::Held) };
        }
        if !copy.listed {
            return Err(NodeFailure::Held);
        }
        if held.fenced.is_none_or(|by| by < copy.by) {
            held.fenced = Some(copy.by);
            self.notes
                .push_back(Note::Standing(held.state(copy.segment, held.staged)));
            self.uncommitted.remove(&copy.segment);
        }
        Ok(())
    }

    /// Decides on one frame of a copy that was opened; true where it must be written next.
    ///
    /// # Errors
    /// [`NodeFailure::Behind`] where frames before it are missing, [`NodeFailure::Corrupt`] where it
    /// contradicts what is held or reaches beyond the sealed end, [`NodeFailure::TooLarge`] where no file
    /// takes it.
    pub fn copy_frame(&mut self, copy: &CopyRequest, frame: &CheckedFrame) -> Result<bool, NodeFailure> {
        let header = frame.header();
        let held = self
            .segments
            .get(&copy.segment)
            .filter(|_| header.segment == copy.segment)
            .ok_or(NodeFailure::NotFound)?;
        if header.number < held.staged.frames {
            let known = held.checksums.get(header.number as usize) == Some(&header.checksum);
            return if known {
                Ok(false)
            } else {
                Err(NodeFailure::Corrupt)
            };
        }
        if header.number > held.staged.frames {
            return Err(NodeFailure::Behind(held.staged.tail));
        }
        self.check_size(header)?;
        let continues = header.prev_hash == held.staged.hash
            && header.token == held.token
            && header.first == held.staged.tail
            && header.end <= copy.until
            && (header.kind == FrameKind::Open) == (header.number == 0);
        if !continues {
            return Err(NodeFailure::Corrupt);
        }
        let is_here = held.loose.get(&header.number) == Some(&header.checksum);
        self.stage(header);
        Ok(!is_here)
    }

    /// Ends a message of frames: what reached the sealed end is whole. Write the notes, then
    /// pass the answer to [`Replica::copied`].
    ///
    /// # Errors
    /// Where the segment is not held.
    pub fn close_copy(&mut self, copy: &CopyRequest) -> Result<Copied, NodeFailure> {
        let held = self
            .segments
            .get_mut(&copy.segment)
            .ok_or(NodeFailure::NotFound)?;
        if held.limbo && held.staged.tail >= copy.until {
            held.limbo = false;
            self.frames -= held.loose.len() as u64;
            held.loose.clear();
            self.copies.remove(&copy.segment);
            self.notes
                .push_back(Note::Standing(held.state(copy.segment, held.staged)));
        }
        Ok(Copied {
            frames: held.staged.frames,
            tail: held.staged.tail,
        })
    }

    /// Answers once everything written is durable.
    pub fn copied(&mut self, peer: Peer, request: u64, copied: Copied) {
        let result = Ok(copied);
        self.waiting
            .push(Waiting::Reply(peer, FromNode::Copied { request, result }));
    }

    /// An owner will not name its copy in the record. True where there was one.
    pub fn forget_copy(&mut self, segment: SegmentId, by: Epoch) -> bool {
        self.copies.remove(&segment);
        let Some(held) = self.segments.get_mut(&segment) else {
            return false;
        };
        if !held.copied || held.fenced != Some(by) {
            return false;
        }
        if !held.limbo {
            held.limbo = true;
            self.notes
                .push_back(Note::Standing(held.state(segment, held.staged)));
        }
        true
    }

    /// Whether a copy of a segment is under way.
    #[must_use]
    pub fn is_copying(&self, segment: SegmentId) -> bool {
        self.copies.contains_key(&segment)
    }

    /// A peer is gone, and with it the copies that it was making: those.
    pub fn leave_copies(&mut self, peer: Peer) -> Vec<SegmentId> {
        let left: Vec<_> = self
            .copies
            .extract_if(.., |_, of| *of == peer)
            .map(|(segment, _)| segment)
            .collect();
        left
    }

    /// The record names the node as a replica of a segment that it holds as a copy: from here on it is
    /// a replica like any other.
    pub fn adopt(&mut self, segment: SegmentId) {
        if let Some(held) = self.segments.get_mut(&segment)
            && held.copied
            && !held.limbo
        {
            held.copied = false;
            self.notes
                .push_back(Note::Standing(held.state(segment, held.staged)));
        }
    }
}
