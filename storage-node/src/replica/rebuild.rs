//! Making a replica's state again from what its journal holds.
//!
//! Each file begins with a snapshot of what was durable then, so what the files before it gave is
//! compared with it: a segment that lacks frames which the snapshot counts has lost them. Where
//! bytes are damaged, every open segment is suspected of having lost frames there, until a later
//! frame, fence or snapshot proves that it continues without a hole. What stays suspected goes
//! into limbo: it takes no frames and is no evidence, but its good frames can be read (I15, I18).
//!
//! Frames after a hole are *loose*. A frame that comes again later, because a peer gave it in the
//! place of a damaged one, closes the hole, and what is loose and continues the chain joins. Only a
//! later word of the node that the segment is sound, with just these frames, ends limbo.

use std::collections::{BTreeMap, BTreeSet};

use forebay_record::frame::{ChainHash, FrameKind};
use forebay_record::{Offset, SegmentId, Token};

use crate::content::CheckedFrame;
use crate::index::{Entry, place};
use crate::journal::format::{SegmentState, Snapshot};
use crate::journal::note::Note;

/// What was found of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSegment {
    /// Its state; of a segment in limbo, as far as it is contiguous.
    pub state: SegmentState,
    /// Checksum of each frame of the contiguous part.
    pub checksums: Vec<u32>,
    /// Where its frames are, also those after a hole.
    pub entries: Vec<Entry>,
    /// Frames after a hole, by number.
    pub loose: BTreeMap<u32, Loose>,
}

/// A frame whose predecessor is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loose {
    /// Of the frame.
    pub checksum: u32,
    prev_hash: ChainHash,
    token: Token,
    first: Offset,
    end: Offset,
}

impl HeldSegment {
    /// Nothing but its state.
    const fn of(state: SegmentState) -> Self {
        Self {
            state,
            checksums: Vec::new(),
            entries: Vec::new(),
            loose: BTreeMap::new(),
        }
    }

    /// Takes a frame of the segment.
    fn take(&mut self, frame: &CheckedFrame, position: u64) -> Taken {
        let header = frame.header();
        let entry = Entry::new(frame, position);
        self.state.committed = self.state.committed.max(header.committed);
        if header.number < self.state.frames {
            // A frame that was written again is better where it is now.
            let same = self.checksums.get(header.number as usize) == Some(&header.checksum);
            if same {
                place(&mut self.entries, entry);
                return Taken::Again;
            }
            self.state.limbo = true;
            return Taken::Contradicts;
        }
        let loose = Loose {
            checksum: header.checksum,
            prev_hash: header.prev_hash,
            token: header.token,
            first: header.first,
            end: header.end,
        };
        if self.join(header.number, &loose) {
            self.loose.remove(&header.number);
            place(&mut self.entries, entry);
            while let Some(next) = self.loose.get(&self.state.frames).copied()
                && self.join(self.state.frames, &next)
            {
                self.loose.remove(&(self.state.frames - 1));
            }
            return Taken::Continues;
        }
        self.state.limbo = true;
        if self.lies_between(&entry) {
            place(&mut self.entries, entry);
            self.loose.insert(header.number, loose);
        }
        Taken::Loose
    }

    /// Adds a frame to the contiguous part, if it continues it.
    fn join(&mut self, number: u32, frame: &Loose) -> bool {
        let state = &mut self.state;
        let continues = number == state.frames
            && frame.prev_hash == state.hash
            && frame.first == state.tail
            && frame.token == state.token;
        if continues {
            state.frames += 1;
            state.tail = frame.end;
            state.hash = frame.prev_hash.then(frame.checksum);
            self.checksums.push(frame.checksum);
        }
        continues
    }

    /// Whether its offsets go with its number.
    fn lies_between(&self, entry: &Entry) -> bool {
        let at = self.entries.partition_point(|one| one.number < entry.number);
        let rest = self.entries.get(at..).unwrap_or_default();
        let after = rest.iter().find(|one| one.number > entry.number);
        let before = at.checked_sub(1).and_then(|before| self.entries.get(before));
        before.is_none_or(|before| before.end <= entry.first)
            && after.is_none_or(|after| entry.end <= after.first)
    }

    /// Joins what was found with what the node once knew.
    fn meet(&mut self, known: &SegmentState) {
        self.state.meet(known);
        if !self.state.limbo {
            // What lies beyond was of no use any more.
            self.loose.clear();
            let kept = self.checksums.len();
            self.entries.retain(|entry| (entry.number as usize) < kept);
        }
    }
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Continues,
    Again,
    Loose,
    Contradicts,
}

/// What a journal was found to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Tokens up to this one are closed where the segment is unknown.
    pub floor: Token,
    /// Live segments.
    pub segments: BTreeMap<SegmentId, HeldSegment>,
    /// A fence of an unknown segment, or a floor, may have been lost. The node must raise its
    /// floor to the newest token there can be before it answers anything (I5).
    pub floor_uncertain: bool,
}

/// Takes snapshots, frames and notes in the journal's order.
#[derive(Debug, Default)]
pub struct Rebuild {
    held: Held,
    suspects: BTreeSet<SegmentId>,
}

impl Rebuild {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file begins, with what was durable then.
    pub fn file(&mut self, snapshot: &Snapshot) {
        let mut found = std::mem::take(&mut self.held.segments);
        for state in &snapshot.segments {
            let mut held = found.remove(&state.segment).unwrap_or_else(|| {
                HeldSegment::of(SegmentState {
                    tail: state.base,
                    frames: 0,
                    hash: ChainHash::seed(state.segment),
                    ..*state
                })
            });
            held.meet(state);
            self.held.segments.insert(state.segment, held);
        }
        // What is left was trimmed before the snapshot.
        self.held.floor = self.held.floor.max(snapshot.floor);
        self.held.floor_uncertain = false;
        self.suspects.clear();
    }

    /// Bytes are missing here, of any segment.
    pub fn damaged(&mut self) {
        self.held.floor_uncertain = true;
        let open = self
            .held
            .segments
            .iter()
            .filter(|(_, held)| held.state.fenced.is_none());
        self.suspects.extend(open.map(|(id, _)| *id));
    }

    /// A frame of a segment, at a position of the journal.
    pub fn frame(&mut self, frame: &CheckedFrame, position: u64) {
        let header = frame.header();
        let held = self.held.segments.entry(header.segment).or_insert_with(|| {
            let begins = header.kind == FrameKind::Open && header.number == 0;
            HeldSegment::of(SegmentState {
                segment: header.segment,
                token: header.token,
                base: header.first,
                tail: header.first,
                committed: header.first,
                hash: ChainHash::seed(header.segment),
                frames: 0,
                fenced: None,
                // Its first frame was lost.
                limbo: !begins,
                copied: false,
            })
        });
        // Limbo does not end by that: a copy stays there until it is whole, and so does what was damaged.
        if held.take(frame, position) == Taken::Continues {
            self.suspects.remove(&header.segment);
        }
    }

    /// A note of the node.
    pub fn note(&mut self, note: Note) {
        match note {
            Note::Floor(token) => self.held.floor = self.held.floor.max(token),
            Note::Trim(segment, _) => {
                self.held.segments.remove(&segment);
                self.suspects.remove(&segment);
            }
            Note::Committed(items) => {
                for (segment, committed) in items {
                    self.committed(segment, committed);
                }
            }
            Note::Standing(state) => {
                let held = self.held.segments.entry(state.segment).or_insert_with(|| {
                    HeldSegment::of(SegmentState {
                        tail: state.base,
                        frames: 0,
                        hash: ChainHash::seed(state.segment),
                        ..state
                    })
                });
                held.meet(&state);
                self.suspects.remove(&state.segment);
            }
        }
    }

    fn committed(&mut self, segment: SegmentId, committed: Offset) {
        if let Some(held) = self.held.segments.get_mut(&segment) {
            held.state.committed = held.state.committed.max(committed);
        }
    }

    /// What there is.
    #[must_use]
    pub fn finish(mut self) -> Held {
        for suspect in self.suspects {
            if let Some(held) = self.held.segments.get_mut(&suspect) {
                held.state.limbo = true;
            }
        }
        self.held
    }
}

impl SegmentState {
    /// Joins what was found of a segment with what the node once knew of it: a difference means
    /// that frames were lost. Without one, a segment that the node knew to be sound is: a copy was whole
    /// by then, and what had been damaged was here again.
    fn meet(&mut self, known: &Self) {
        let same = self.frames == known.frames
            && self.hash == known.hash
            && self.tail == known.tail
            && self.token == known.token;
        self.limbo = known.limbo || !same;
        self.copied = known.copied;
        self.committed = self.committed.max(known.committed);
        self.fenced = self.fenced.max(known.fenced);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_record::Epoch;

    use super::*;
    use crate::testing::{Writer, checked};

    fn feed(rebuild: &mut Rebuild, writer: &mut Writer, frames: u32) {
        for _ in 0..frames {
            let frame = if writer.number == 0 {
                writer.open()
            } else {
                writer.data(3)
            };
            rebuild.frame(&checked(frame), u64::from(writer.number) * 1000);
        }
    }

    fn standing(writer: &Writer, fenced: Option<Epoch>) -> SegmentState {
        SegmentState {
            segment: writer.segment,
            token: writer.token,
            base: Offset(10),
            tail: writer.next,
            committed: writer.committed,
            hash: writer.hash,
            frames: writer.number,
            fenced,
            limbo: false,
            copied: false,
        }
    }

    #[test]
    fn a_copy_is_in_limbo_until_its_last_note_and_what_is_lost_of_it_keeps_it_there() {
        for (whole, lost) in [(false, false), (true, false), (true, true)] {
            let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
            let state = |writer: &Writer, limbo| SegmentState {
                limbo,
                copied: true,
                ..standing(writer, Some(Epoch(9)))
            };
            rebuild.note(Note::Standing(state(&writer, true)));
            feed(&mut rebuild, &mut writer, 2);
            rebuild.file(&Snapshot {
                floor: Token(500),
                segments: vec![state(&writer, true)],
            });
            feed(&mut rebuild, &mut writer, 1);
            if lost {
                let _lost = writer.data(1);
            }
            if whole {
                rebuild.note(Note::Standing(state(&writer, false)));
            }
            let held = rebuild.finish();
            let found = &held.segments[&writer.segment];
            assert_eq!((found.state.frames, found.state.copied), (3, true));
            assert_eq!(found.state.limbo, !whole || lost, "whole {whole}, lost {lost}");
        }
    }

    #[test]
    fn frames_before_and_after_a_snapshot_make_one_segment() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        feed(&mut rebuild, &mut writer, 3);
        rebuild.file(&Snapshot {
            floor: Token(5),
            segments: vec![standing(&writer, None)],
        });
        feed(&mut rebuild, &mut writer, 2);
        let held = rebuild.finish();
        let segment = &held.segments[&writer.segment];
        assert_eq!(segment.state, standing(&writer, None));
        assert_eq!(
            (segment.entries.len(), segment.checksums.len(), held.floor),
            (5, 5, Token(5))
        );
    }

    #[test]
    fn frames_that_a_snapshot_counts_and_nobody_finds_are_lost() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        feed(&mut rebuild, &mut writer, 2);
        let _lost = writer.data(2);
        rebuild.file(&Snapshot {
            floor: Token(0),
            segments: vec![standing(&writer, None)],
        });
        assert!(rebuild.finish().segments[&writer.segment].state.limbo);
    }

    #[test]
    fn damage_puts_open_segments_into_limbo_and_spares_fenced_ones() {
        let mut rebuild = Rebuild::new();
        let (mut open, mut fenced) = (Writer::new(1, 10), Writer::new(2, 10));
        feed(&mut rebuild, &mut open, 2);
        feed(&mut rebuild, &mut fenced, 2);
        rebuild.note(Note::Standing(standing(&fenced, Some(Epoch(9)))));
        rebuild.damaged();
        let held = rebuild.finish();
        assert!(held.floor_uncertain);
        assert!(held.segments[&open.segment].state.limbo);
        assert!(!held.segments[&fenced.segment].state.limbo);
        assert_eq!(held.segments[&fenced.segment].state.fenced, Some(Epoch(9)));
    }

    #[test]
    fn a_segment_that_continues_after_damage_has_lost_nothing() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        feed(&mut rebuild, &mut writer, 2);
        rebuild.damaged();
        feed(&mut rebuild, &mut writer, 1);
        assert!(!rebuild.finish().segments[&writer.segment].state.limbo);
    }

    #[test]
    fn frames_after_a_hole_are_found_but_not_counted() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        feed(&mut rebuild, &mut writer, 2);
        rebuild.damaged();
        let tail = writer.next;
        let _lost = writer.data(2);
        feed(&mut rebuild, &mut writer, 2);
        let held = rebuild.finish();
        let segment = &held.segments[&writer.segment];
        assert!(segment.state.limbo);
        assert_eq!(
            (segment.state.frames, segment.state.tail, segment.entries.len()),
            (2, tail, 4)
        );
    }

    #[test]
    fn a_segment_without_its_first_frame_is_in_limbo() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        let _lost = writer.open();
        rebuild.damaged();
        feed(&mut rebuild, &mut writer, 1);
        assert!(rebuild.finish().segments[&writer.segment].state.limbo);
    }

    #[test]
    fn a_trimmed_segment_is_gone_and_the_floor_stays() {
        let (mut rebuild, mut writer) = (Rebuild::new(), Writer::new(1, 10));
        feed(&mut rebuild, &mut writer, 2);
        rebuild.note(Note::Floor(writer.token));
        rebuild.note(Note::Trim(writer.segment, writer.token));
        let held = rebuild.finish();
        assert!(held.segments.is_empty());
        assert_eq!(held.floor, writer.token);
    }
}
