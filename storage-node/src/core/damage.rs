//! Marking what was found to be damaged.

use super::{Core, For, NOTE_LEN_MAX, NoRoom};
use crate::index::Entry;
use forebay_record::SegmentId;

impl Core {
    /// Puts the segments of damaged frames into limbo, durably with the next [`Core::flush`]. Where a
    /// frame lies in the newest file the next one is begun: its snapshot says what is whole in spite of
    /// the damage, so that a start, which sees damage before it, suspects nothing else.
    pub(crate) fn damage(&mut self, found: &[(SegmentId, Entry)]) {
        let mut in_newest = false;
        for (segment, bad) in found {
            if self.failed.is_some() {
                return;
            }
            // Without room the mark is only in memory; the next snapshot says it.
            if let Err(reason) = self.make_room(NOTE_LEN_MAX, For::Note) {
                self.no_room_for_note(&reason);
            }
            in_newest |= bad.position >= self.parts.writer.file().header.start;
            if self.parts.replica.damage(*segment, bad.number, bad.first) {
                self.changed.insert(*segment);
                self.write_notes(For::Note);
            } else if !self.parts.replica.is_in_limbo(*segment) {
                self.parts.index.clear_damage(*segment);
            }
        }
        if in_newest && self.failed.is_none() {
            self.begin_next_file();
        }
    }

    fn begin_next_file(&mut self) {
        if !self.parts.writer.is_empty()
            && let Err(failure) = self.commit_block()
        {
            return self.fail(&failure);
        }
        match self.spare(For::Data) {
            Ok(spare) => {
                if let Err(failure) = self.roll(spare) {
                    self.fail(&failure);
                }
            }
            Err(NoRoom::Full) => tracing::debug!("no file to begin after damage"),
            Err(NoRoom::Failed(failure)) => self.fail(&failure),
        }
    }
}
