//! Deciding on a frame: stage it, absorb a repetition, or say why not.
//!
//! A frame is staged only where its number, first offset and chain hash continue what is held,
//! so what a node holds is a prefix of what one writer wrote (I3). A refusal concerns one frame;
//! the connection goes on. A repetition of a frame is acknowledged when what it repeats is
//! durable and is not written again.

use forebay_proto::data::replica::Refusal;
use forebay_record::Generation;
use forebay_record::frame::{ChainHash, FrameHeader, FrameKind};
use forebay_runtime::mutant::{self, Mutant};

use super::{Admission, Peer, Progress, Replica, Segment, Waiting};
use crate::content::CheckedFrame;
use crate::journal::note::Note;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Write it next; it is acknowledged by [`Replica::synced`].
    Stage,
    /// It is held already; it is acknowledged by [`Replica::synced`].
    Known,
    /// It is not taken.
    Refused(Refusal),
}

impl Replica {
    /// Decides on a frame.
    pub fn append(&mut self, peer: Peer, generation: Generation, frame: &CheckedFrame) -> Appended {
        match self.decide(generation, frame) {
            Ok(()) => {
                self.stage(frame.header());
                self.waiting.push(Waiting::Ack(peer, frame.header().segment));
                Appended::Stage
            }
            Err(Appended::Known) => {
                self.waiting.push(Waiting::Ack(peer, frame.header().segment));
                Appended::Known
            }
            Err(other) => other,
        }
    }

    fn decide(&mut self, generation: Generation, frame: &CheckedFrame) -> Result<(), Appended> {
        let header = frame.header();
        let refuse = |refusal| Err(Appended::Refused(refusal));
        if generation != self.generation && !mutant::is(Mutant::GenerationIgnored) {
            return refuse(Refusal::WrongGeneration(self.generation));
        }
        let is_small_enough = self.is_small_enough(header);
        let admission = self.admission();
        let Some(held) = self.segments.get_mut(&header.segment) else {
            return self.decide_first(frame, admission).map_err(Appended::Refused);
        };
        if let Some(by) = held.fenced {
            return refuse(Refusal::Fenced(by));
        }
        if held.limbo {
            return refuse(Refusal::Diverged);
        }
        if header.number < held.staged.frames {
            let known = held.checksums.get(header.number as usize) == Some(&header.checksum);
            return if known {
                Err(Appended::Known)
            } else {
                refuse(contradicts(header, Refusal::Overlap))
            };
        }
        if mutant::is(Mutant::GapStored) && header.number > held.staged.frames {
            held.staged = Progress {
                tail: header.first,
                frames: header.number,
                hash: header.prev_hash,
            };
        }
        if header.number > held.staged.frames {
            return refuse(Refusal::Gap(held.staged.frames));
        }
        if header.prev_hash != held.staged.hash {
            held.limbo = true;
            let state = held.state(header.segment, held.staged);
            self.notes.push_back(Note::Standing(state));
            return refuse(contradicts(header, Refusal::Diverged));
        }
        let continues =
            header.token == held.token && header.first == held.staged.tail && header.kind != FrameKind::Open;
        if !continues {
            return refuse(contradicts(header, Refusal::Malformed));
        }
        if !is_small_enough {
            return refuse(self.too_large(header));
        }
        if admission == Admission::NoData {
            return refuse(Refusal::DiskFull);
        }
        Ok(())
    }

    fn decide_first(&self, frame: &CheckedFrame, admission: Admission) -> Result<(), Refusal> {
        let header = frame.header();
        if header.token <= self.floor {
            return Err(Refusal::Closed);
        }
        if header.kind != FrameKind::Open {
            return Err(Refusal::UnknownSegment);
        }
        let begins = header.prev_hash == ChainHash::seed(header.segment)
            && frame.replicas().contains(&(self.node, self.generation));
        if !begins {
            return Err(contradicts(header, Refusal::Malformed));
        }
        if !self.is_small_enough(header) {
            return Err(self.too_large(header));
        }
        if admission >= Admission::NoNewSegments {
            return Err(Refusal::NoNewSegments);
        }
        Ok(())
    }

    /// Says that no journal file here has room for a frame. An owner that knew this node's record
    /// would not have sent it.
    fn too_large(&self, header: &FrameHeader) -> Refusal {
        tracing::error!(segment = %header.segment, number = header.number,
            bytes = header.payload_len, frame_bytes_max = self.limits.frame_bytes_max,
            "a frame is too large for this node's journal files (storage.journal_file_bytes)");
        Refusal::Malformed
    }

    pub(super) fn stage(&mut self, header: &FrameHeader) {
        let held = self
            .segments
            .entry(header.segment)
            .or_insert_with(|| Segment::new(header.segment, header.token, header.first));
        assert!(
            header.number == held.staged.frames && header.prev_hash == held.staged.hash,
            "staged frame does not continue its segment"
        );
        held.staged = Progress {
            tail: header.end,
            frames: header.number + 1,
            hash: header.hash(),
        };
        held.checksums.push(header.checksum);
        let was_loose = held.loose.remove(&header.number).is_some();
        if held.committed < header.committed {
            held.committed = header.committed;
            self.uncommitted.remove(&header.segment);
        }
        self.frames += u64::from(!was_loose);
        self.staged.insert(header.segment);
    }
}

/// Says that a frame is none that the segment's writer may have made.
fn contradicts(header: &FrameHeader, refusal: Refusal) -> Refusal {
    tracing::error!(segment = %header.segment, number = header.number, ?refusal,
        "a frame contradicts its segment");
    refusal
}
