//! A frame that was durable here is not what it was any more.
//!
//! Its segment goes into limbo, durably: it takes no frames, is evidence for nothing (I15), and
//! acknowledges nothing (I18). What is known of it is what a start would find: the frames before the
//! damaged one are contiguous, those after it are loose. Their bytes stay and can be read. It comes
//! out of limbo only as `copy.rs` says.

use forebay_record::frame::ChainHash;
use forebay_record::{Offset, SegmentId};

use super::{Progress, Replica};
use crate::journal::note::Note;

impl Replica {
    /// Frame `number` of a segment, which begins at offset `first`, is damaged. Write the notes. False
    /// where that is known, or the segment is not held.
    pub fn damage(&mut self, segment: SegmentId, number: u32, first: Offset) -> bool {
        let Some(held) = self.segments.get_mut(&segment) else {
            return false;
        };
        let at = number as usize;
        if at < held.checksums.len() {
            let mut after = held.checksums.split_off(at).into_iter();
            // The damaged one.
            after.next();
            held.loose.extend((number.saturating_add(1)..).zip(after));
            let hash = held
                .checksums
                .iter()
                .fold(ChainHash::seed(segment), |hash, checksum| hash.then(*checksum));
            let progress = Progress {
                tail: first,
                frames: number,
                hash,
            };
            (held.staged, held.durable) = (progress, progress);
        } else if held.loose.remove(&number).is_none() {
            return false;
        }
        self.frames = self.frames.saturating_sub(1);
        held.limbo = true;
        self.uncommitted.remove(&segment);
        self.notes
            .push_back(Note::Standing(held.state(segment, held.staged)));
        true
    }
}
