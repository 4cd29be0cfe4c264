//! Copies of sealed segments that other nodes lost: frames from their new owner, and their end.

use forebay_proto::data::replica::{Copied, CopyRequest, FromNode, NodeFailure};
use forebay_record::{Epoch, SegmentId};

use super::{Core, For, NOTE_LEN_MAX, NoRoom};
use crate::content::CheckedFrame;
use crate::index::Entry;
use crate::replica::Peer;

impl Core {
    /// Takes frames of a sealed segment that another node lost. The answer says how far the copy
    /// is once that is durable.
    pub(crate) fn copy(&mut self, peer: Peer, request: u64, copy: &CopyRequest, frames: &[CheckedFrame]) {
        match self.try_copy(peer, copy, frames) {
            Ok(copied) => self.parts.replica.copied(peer, request, copied),
            Err(failure) => {
                let result = Err(failure);
                self.out.push((peer, FromNode::Copied { request, result }));
            }
        }
    }

    fn try_copy(
        &mut self,
        peer: Peer,
        copy: &CopyRequest,
        frames: &[CheckedFrame],
    ) -> Result<Copied, NodeFailure> {
        if self.full && self.parts.pool.is_ready() {
            self.full = false;
        }
        self.admit();
        self.make_room_to_copy(NOTE_LEN_MAX)?;
        self.parts.replica.open_copy(peer, copy)?;
        self.changed.insert(copy.segment);
        self.write_notes(For::Note);
        for frame in frames {
            let header = frame.header();
            self.parts.replica.check_size(header)?;
            self.make_room_to_copy(header.frame_len().max(NOTE_LEN_MAX))?;
            if self.parts.replica.copy_frame(copy, frame)? {
                let position = self.parts.writer.push(header, frame.payload());
                self.staged
                    .entry(header.segment)
                    .or_default()
                    .push(Entry::new(frame, position));
            }
        }
        self.make_room_to_copy(NOTE_LEN_MAX)?;
        let copied = self.parts.replica.close_copy(copy)?;
        self.changed.insert(copy.segment);
        self.write_notes(For::Note);
        match self.failed {
            Some(_) => Err(NodeFailure::Failed),
            None => Ok(copied),
        }
    }

    fn make_room_to_copy(&mut self, frame_len: usize) -> Result<(), NodeFailure> {
        if self.failed.is_some() {
            return Err(NodeFailure::Failed);
        }
        match self.make_room(frame_len, For::Data) {
            Ok(()) => Ok(()),
            Err(NoRoom::Full) => {
                self.full = true;
                self.admit();
                Err(NodeFailure::Overloaded)
            }
            Err(NoRoom::Failed(failure)) => {
                self.fail(&failure);
                Err(NodeFailure::Failed)
            }
        }
    }

    /// Copies that will not be named by a record, and those that will never be whole.
    pub(crate) fn forget_copy(&mut self, segment: SegmentId, by: Epoch) {
        if self.failed.is_some() || self.make_room(NOTE_LEN_MAX, For::Note).is_err() {
            return;
        }
        if self.parts.replica.forget_copy(segment, by) {
            self.parts.index.copying(segment, false);
            self.changed.insert(segment);
        }
        self.write_notes(For::Note);
    }

    /// A peer is gone: nobody goes on with its copies.
    pub(crate) fn leave(&mut self, peer: Peer) {
        for segment in self.parts.replica.leave_copies(peer) {
            self.parts.index.copying(segment, false);
        }
    }

    /// Copies that records name now.
    pub(crate) fn adopt(&mut self, segments: &[SegmentId]) {
        for segment in segments {
            if self.failed.is_some() || self.make_room(NOTE_LEN_MAX, For::Note).is_err() {
                return;
            }
            self.parts.replica.adopt(*segment);
            self.changed.insert(*segment);
            self.write_notes(For::Note);
        }
    }
}
