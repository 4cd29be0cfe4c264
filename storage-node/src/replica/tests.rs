//! Rules one by one, and random orders of messages against a model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_proto::data::replica::{Copied, CopyRequest, FenceItem, FencedState, NodeFailure, Refusal};
use forebay_record::frame::Frame;
use proptest::prelude::*;

use super::rebuild::{Held, Rebuild};
use super::*;
use crate::testing::{GENERATION, NODE, Writer, checked};

const PEER: Peer = Peer(1);
const LIMITS: Limits = Limits {
    segments_max: 64,
    frames_max: 1000,
    frame_bytes_max: 1 << 20,
};

fn replica() -> Replica {
    Replica::new(NODE, GENERATION, LIMITS)
}

fn append(replica: &mut Replica, frame: Frame) -> Appended {
    replica.append(PEER, GENERATION, &checked(frame))
}

fn refused(refusal: Refusal) -> Appended {
    Appended::Refused(refusal)
}

fn fence_of(writer: &Writer, by: u32) -> FenceItem {
    FenceItem {
        segment: writer.segment,
        generation: GENERATION,
        token: writer.token,
        base: Offset(10),
        by: Epoch(by),
    }
}

fn fence(replica: &mut Replica, item: FenceItem) -> FencedState {
    let state = replica.fence(&item);
    replica.fenced(PEER, 1, vec![state]);
    state
}

fn acks(synced: &Synced) -> Vec<(u32, u64)> {
    synced
        .acks
        .values()
        .flatten()
        .map(|ack| (ack.frames, ack.tail.0))
        .collect()
}

#[test]
fn nothing_is_acknowledged_before_it_is_synced_and_then_once_for_all() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    for frame in [writer.open(), writer.data(3), writer.data(2)] {
        assert_eq!(append(&mut replica, frame), Appended::Stage);
    }
    assert_eq!(replica.segment(writer.segment).unwrap().frames, 0);
    assert_eq!(acks(&replica.synced()), [(3, 15)]);
    assert_eq!(replica.segment(writer.segment).unwrap().tail, Offset(15));
    assert_eq!(replica.synced(), Synced::default());
}

#[test]
fn a_repetition_is_acknowledged_and_an_overlap_is_not() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let (open, mut other) = (writer.open(), writer.clone());
    let data = writer.data(3);
    append(&mut replica, open.clone());
    append(&mut replica, data.clone());
    replica.synced();
    assert_eq!(append(&mut replica, open), Appended::Known);
    assert_eq!(append(&mut replica, data), Appended::Known);
    assert_eq!(acks(&replica.synced()), [(2, 13)]);
    assert_eq!(append(&mut replica, other.data(2)), refused(Refusal::Overlap));
    assert_eq!(replica.segment(writer.segment).unwrap().frames, 2);
}

#[test]
fn a_frame_ahead_is_refused_with_the_number_expected() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    let _lost = writer.data(1);
    assert_eq!(append(&mut replica, writer.data(1)), refused(Refusal::Gap(1)));
}

#[test]
fn another_history_puts_the_segment_into_limbo() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    let mut other = writer.clone();
    append(&mut replica, writer.data(3));
    let _theirs = other.data_of_len(3, 999);
    assert_eq!(append(&mut replica, other.data(1)), refused(Refusal::Diverged));
    let notes: Vec<Note> = replica.take_notes().collect();
    assert!(
        matches!(
            notes[..],
            [Note::Standing(SegmentState {
                limbo: true,
                frames: 2,
                ..
            })]
        ),
        "{notes:?}"
    );
    assert_eq!(append(&mut replica, writer.data(1)), refused(Refusal::Diverged));
    let state = fence(&mut replica, fence_of(&writer, 9));
    assert!(!state.authoritative);
    assert!(!replica.confirm(writer.segment, GENERATION));
}

#[test]
fn an_unknown_segment_begins_with_its_first_frame_only() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let open = writer.open();
    assert_eq!(
        append(&mut replica, writer.data(1)),
        refused(Refusal::UnknownSegment)
    );
    assert_eq!(
        replica.append(PEER, Generation(5), &checked(open.clone())),
        refused(Refusal::WrongGeneration(GENERATION))
    );
    assert_eq!(
        Replica::new(NodeId(9), GENERATION, LIMITS).append(PEER, GENERATION, &checked(open.clone())),
        refused(Refusal::Malformed),
        "not one of the replicas"
    );
    assert_eq!(append(&mut replica, open), Appended::Stage);
}

#[test]
fn a_fence_stands_behind_what_is_staged_and_is_answered_when_synced() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    append(&mut replica, writer.data(3));
    let state = fence(&mut replica, fence_of(&writer, 9));
    assert_eq!(
        (state.authoritative, state.tail, state.frames, state.hash),
        (true, writer.next, 2, writer.hash)
    );
    assert_eq!(
        append(&mut replica, writer.data(1)),
        refused(Refusal::Fenced(Epoch(9)))
    );
    assert!(!replica.confirm(writer.segment, GENERATION));
    let notes: Vec<Note> = replica.take_notes().collect();
    assert!(matches!(
        notes[..],
        [Note::Standing(SegmentState {
            fenced: Some(Epoch(9)),
            frames: 2,
            ..
        })]
    ));
    let synced = replica.synced();
    assert_eq!((acks(&synced), synced.replies.len()), (vec![(2, 13)], 1));
    // Again, by an older owner: the same answer, nothing to write.
    assert_eq!(fence(&mut replica, fence_of(&writer, 7)), state);
    assert_eq!(replica.take_notes().count(), 0);
}

#[test]
fn a_fence_of_an_unknown_segment_closes_it_whatever_comes_later() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let state = fence(&mut replica, fence_of(&writer, 9));
    assert_eq!(
        (state.authoritative, state.tail, state.frames),
        (true, Offset(10), 0)
    );
    assert_eq!(
        append(&mut replica, writer.open()),
        refused(Refusal::Fenced(Epoch(9)))
    );
}

#[test]
fn a_fence_for_another_generation_is_no_evidence_and_changes_nothing() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    let state = fence(
        &mut replica,
        FenceItem {
            generation: Generation(4),
            ..fence_of(&writer, 9)
        },
    );
    assert!(!state.authoritative);
    assert_eq!(append(&mut replica, writer.data(1)), Appended::Stage);
}

#[test]
fn a_full_table_closes_unknown_segments_by_the_floor() {
    let mut replica = replica();
    for seq in 0..64 {
        fence(&mut replica, fence_of(&Writer::new(seq, 10), 9));
    }
    let writer = Writer::new(90, 10);
    assert!(fence(&mut replica, fence_of(&writer, 9)).authoritative);
    assert_eq!(replica.floor(), writer.token);
    assert_eq!(
        append(&mut replica, writer.clone().open()),
        refused(Refusal::Closed)
    );
}

#[test]
fn a_trimmed_segment_stays_closed_by_the_floor() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let open = writer.open();
    append(&mut replica, open.clone());
    replica.synced();
    assert!(replica.trim(writer.segment));
    let notes: Vec<Note> = replica.take_notes().collect();
    assert_eq!(
        notes,
        [
            Note::Floor(writer.token),
            Note::Trim(writer.segment, writer.token)
        ]
    );
    assert_eq!(append(&mut replica, open), refused(Refusal::Closed));
    assert!(!replica.trim(writer.segment));
}

#[test]
fn less_is_taken_as_room_runs_out() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    replica.admit(Admission::NoNewSegments);
    assert_eq!(
        append(&mut replica, Writer::new(2, 10).open()),
        refused(Refusal::NoNewSegments)
    );
    assert_eq!(append(&mut replica, writer.data(1)), Appended::Stage);
    replica.admit(Admission::NoData);
    let known = writer.clone();
    assert_eq!(append(&mut replica, writer.data(1)), refused(Refusal::DiskFull));
    assert!(fence(&mut replica, fence_of(&known, 9)).authoritative);
}

#[test]
fn frames_beyond_the_index_are_refused() {
    let limits = Limits {
        frames_max: 20,
        ..LIMITS
    };
    let (mut replica, mut writer) = (Replica::new(NODE, GENERATION, limits), Writer::new(1, 10));
    append(&mut replica, writer.open());
    for _ in 1..20 {
        assert_eq!(append(&mut replica, writer.data(1)), Appended::Stage);
    }
    assert_eq!(append(&mut replica, writer.data(1)), refused(Refusal::DiskFull));
}

#[test]
fn a_frame_is_taken_up_to_the_limit_and_refused_one_byte_above_it() {
    let batch_len = |body: usize| 61 + body;
    let limits = Limits {
        frame_bytes_max: batch_len(5_000),
        ..LIMITS
    };
    let (mut replica, mut writer) = (Replica::new(NODE, GENERATION, limits), Writer::new(1, 10));
    append(&mut replica, writer.open());
    let (large, mut after) = (writer.clone().data_of_len(1, 5_001), writer.clone());
    assert_eq!(append(&mut replica, large), refused(Refusal::Malformed));
    assert_eq!(append(&mut replica, after.data_of_len(1, 5_000)), Appended::Stage);
    assert_eq!(append(&mut replica, after.data(3)), Appended::Stage, "it goes on");
}

#[test]
fn committed_offsets_only_rise_and_wait_for_the_next_note() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    append(&mut replica, writer.open());
    replica.commit(writer.segment, Offset(14));
    replica.commit(writer.segment, Offset(12));
    replica.commit(Writer::new(7, 0).segment, Offset(12));
    assert_eq!(
        replica.take_committed(),
        Some(Note::Committed(vec![(writer.segment, Offset(14))]))
    );
    assert_eq!(replica.take_committed(), None);
    // What a frame carries needs no note.
    replica.commit(writer.segment, Offset(15));
    writer.committed = Offset(16);
    append(&mut replica, writer.data(9));
    assert_eq!(replica.take_committed(), None);
    assert_eq!(replica.segment(writer.segment).unwrap().committed, Offset(16));
}

/// A step of a random run over three writers.
#[derive(Debug, Clone)]
enum Step {
    /// The writer's next frame.
    Next(usize),
    /// A frame it sent before, counted from the newest.
    Repeat(usize, usize),
    /// A frame further on than the next.
    Skip(usize),
    Fence(usize, u32),
    Trim(usize),
    Sync,
    /// What is not synced is lost, and the rest read back.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..3_usize;
    prop_oneof![
        8 => which.clone().prop_map(Step::Next),
        3 => (which.clone(), 0..5_usize).prop_map(|(which, back)| Step::Repeat(which, back)),
        2 => which.clone().prop_map(Step::Skip),
        1 => (which.clone(), 3..9_u32).prop_map(|(which, by)| Step::Fence(which, by)),
        1 => which.prop_map(Step::Trim),
        4 => Just(Step::Sync),
        1 => Just(Step::Crash),
    ]
}

/// A replica with a journal of frames and notes in memory.
struct World {
    replica: Replica,
    journal: Vec<Result<Frame, Note>>,
    synced: usize,
    writers: Vec<Writer>,
    sent: Vec<Vec<Frame>>,
    acked: Vec<u32>,
    closed: Vec<bool>,
}

impl World {
    fn new() -> Self {
        Self {
            replica: replica(),
            journal: Vec::new(),
            synced: 0,
            writers: (0..3).map(|seq| Writer::new(seq, 10)).collect(),
            sent: vec![Vec::new(); 3],
            acked: vec![0; 3],
            closed: vec![false; 3],
        }
    }

    fn notes(&mut self) {
        self.journal.extend(self.replica.take_notes().map(Err));
    }

    fn append(&mut self, which: usize, frame: Frame) -> Appended {
        let appended = append(&mut self.replica, frame.clone());
        if appended == Appended::Stage {
            assert!(!self.closed[which], "a closed segment took a frame (I5)");
            self.journal.push(Ok(frame));
        }
        self.notes();
        appended
    }

    fn sync(&mut self) {
        self.synced = self.journal.len();
        for ack in self.replica.synced().acks.into_values().flatten() {
            let which = self
                .writers
                .iter()
                .position(|writer| writer.segment == ack.segment)
                .unwrap();
            assert!(
                ack.frames >= self.acked[which],
                "an acknowledgement was taken back"
            );
            self.acked[which] = ack.frames;
        }
    }

    fn crash(&mut self) {
        self.journal.truncate(self.synced);
        let mut rebuild = Rebuild::new();
        for (entry, position) in self.journal.iter().zip(0..) {
            match entry {
                Ok(frame) => rebuild.frame(&checked(frame.clone()), position),
                Err(note) => rebuild.note(note.clone()),
            }
        }
        let held: Held = rebuild.finish();
        self.replica = Replica::restore(NODE, GENERATION, LIMITS, &held);
    }

    /// What the writer would send next to a replica that holds so many frames.
    fn rewind(&mut self, which: usize, frames: usize) {
        let writer = &mut self.writers[which];
        let mut fresh = Writer::new(writer.segment.seq, 10);
        self.sent[which].truncate(frames);
        if let Some(last) = self.sent[which].last() {
            fresh.number = last.header.number + 1;
            fresh.next = last.header.end;
            fresh.hash = last.header.hash();
        }
        *writer = fresh;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Next(which) => {
                let before = self.sent[which].len();
                let frame = next(&mut self.writers[which]);
                self.sent[which].push(frame.clone());
                if self.append(which, frame) != Appended::Stage {
                    self.rewind(which, before);
                }
            }
            Step::Repeat(which, back) => {
                let sent = &self.sent[which];
                if let Some(frame) = sent.len().checked_sub(back + 1).map(|at| sent[at].clone()) {
                    let appended = self.append(which, frame);
                    assert!(self.closed[which] || appended == Appended::Known, "{appended:?}");
                }
            }
            Step::Skip(which) => {
                let mut ahead = self.writers[which].clone();
                let _skipped = next(&mut ahead);
                let appended = self.append(which, next(&mut ahead));
                let expected = self.sent[which].len() as u32;
                assert!(
                    self.closed[which]
                        || appended
                            == refused(if expected == 0 {
                                Refusal::UnknownSegment
                            } else {
                                Refusal::Gap(expected)
                            }),
                    "{appended:?} (I3)"
                );
            }
            Step::Fence(which, by) => {
                let state = fence(&mut self.replica, fence_of(&self.writers[which].clone(), by));
                assert!(state.frames >= self.acked[which] || self.closed[which]);
                self.notes();
                self.sync();
                self.closed[which] = true;
            }
            Step::Trim(which) => {
                let known = self.replica.trim(self.writers[which].segment);
                self.notes();
                self.sync();
                self.closed[which] |= known;
            }
            Step::Sync => self.sync(),
            Step::Crash => {
                self.crash();
                for which in 0..3 {
                    let state = self.replica.segment(self.writers[which].segment);
                    let held = state.map_or(0, |state| state.frames) as usize;
                    if !self.closed[which] {
                        assert!(
                            held >= self.acked[which] as usize,
                            "an acknowledged frame is gone"
                        );
                        self.rewind(which, held);
                    }
                }
            }
        }
    }

    /// The floor closes what is not known here, whoever raised it.
    fn close_by_floor(&mut self) {
        for (writer, closed) in self.writers.iter().zip(&mut self.closed) {
            let unknown = self.replica.segment(writer.segment).is_none();
            *closed |= unknown && writer.token <= self.replica.floor();
        }
    }

    /// Each segment is a prefix of what its writer sent (I3).
    fn check(&self) {
        for (writer, sent) in self.writers.iter().zip(&self.sent) {
            let Some(held) = self.replica.segment(writer.segment) else {
                continue;
            };
            assert!(!held.limbo);
            let last = held.frames.checked_sub(1).map(|last| sent[last as usize].header);
            let expected = last.map_or(ChainHash::seed(writer.segment), |last| last.hash());
            assert_eq!(held.hash, expected);
        }
    }
}

fn next(writer: &mut Writer) -> Frame {
    match writer.number {
        0 => writer.open(),
        number if number % 4 == 3 => writer.state(),
        _ => writer.data(2),
    }
}

proptest! {
    #[test]
    fn any_order_of_messages_keeps_prefixes_and_closures(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.close_by_floor();
            world.check();
        }
    }
}

fn copy_of(writer: &Writer, until: u64, by: u32) -> CopyRequest {
    CopyRequest {
        segment: writer.segment,
        generation: GENERATION,
        token: writer.token,
        base: Offset(10),
        until: Offset(until),
        by: Epoch(by),
        listed: false,
        frames: Vec::new(),
    }
}

fn take_copy(
    replica: &mut Replica,
    peer: Peer,
    copy: &CopyRequest,
    frames: &[Frame],
) -> Result<Copied, NodeFailure> {
    replica.open_copy(peer, copy)?;
    for frame in frames {
        replica.copy_frame(copy, &checked(frame.clone()))?;
    }
    replica.close_copy(copy)
}

#[test]
fn a_copy_is_taken_below_the_floor_and_is_evidence_only_once_it_is_whole() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    replica.raise_floor(Token(9_999));
    let frames = [writer.open(), writer.data(3), writer.state(), writer.data(2)];
    let copy = copy_of(&writer, 15, 9);
    let half = take_copy(&mut replica, PEER, &copy, &frames[..2]).unwrap();
    assert_eq!((half.frames, half.tail), (2, Offset(13)));
    replica.synced();
    let state = fence(&mut replica, fence_of(&writer, 9));
    assert!(!state.authoritative, "a part of a copy says nothing");
    // Sent again, and the rest.
    let whole = take_copy(&mut replica, PEER, &copy, &frames[1..]).unwrap();
    assert_eq!((whole.frames, whole.tail), (4, Offset(15)));
    let state = fence(&mut replica, fence_of(&writer, 9));
    assert_eq!((state.authoritative, state.tail), (true, Offset(15)));
    assert_eq!(
        append(&mut replica, writer.data(1)),
        refused(Refusal::Fenced(Epoch(9))),
        "nobody but the copy writes to it"
    );
    assert_eq!(
        take_copy(&mut replica, PEER, &copy, &[]),
        Ok(whole),
        "asked again"
    );
}

#[test]
fn a_copy_takes_nothing_beyond_the_sealed_end_and_no_other_history() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let frames = [writer.open(), writer.data(3), writer.data(2)];
    let copy = copy_of(&writer, 13, 9);
    let beyond = take_copy(&mut replica, PEER, &copy, &frames);
    assert_eq!(beyond, Err(NodeFailure::Corrupt));
    assert_eq!(
        take_copy(&mut replica, PEER, &copy, &[]).unwrap().tail,
        Offset(13)
    );
    let mut other = Writer::new(1, 10);
    let _open = other.open();
    let differs = take_copy(&mut replica, PEER, &copy, &[other.data_of_len(3, 999)]);
    assert_eq!(differs, Err(NodeFailure::Corrupt));
    let ahead = Writer::new(2, 10);
    let gap = take_copy(&mut replica, PEER, &copy_of(&ahead, 20, 9), &frames[1..2]);
    assert_eq!(gap, Err(NodeFailure::NotFound), "a frame of another segment");
}

#[test]
fn a_copy_with_a_frame_that_no_file_takes_is_refused_by_its_size() {
    let limits = Limits {
        frame_bytes_max: 61 + 5_000,
        ..LIMITS
    };
    let (mut replica, mut writer) = (Replica::new(NODE, GENERATION, limits), Writer::new(1, 10));
    let frames = [
        writer.open(),
        writer.data_of_len(3, 5_000),
        writer.data_of_len(2, 5_001),
    ];
    let copy = copy_of(&writer, 15, 9);
    let refused = take_copy(&mut replica, PEER, &copy, &frames);
    assert_eq!(refused, Err(NodeFailure::TooLarge(61 + 5_000)));
    assert_eq!(
        take_copy(&mut replica, PEER, &copy, &[]).unwrap().tail,
        Offset(13)
    );
}

#[test]
fn a_copy_that_was_left_stays_in_limbo_and_is_not_gone_on_with() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let frames = [writer.open(), writer.data(3), writer.data(2)];
    let copy = copy_of(&writer, 15, 9);
    take_copy(&mut replica, PEER, &copy, &frames[..1]).unwrap();
    let other = take_copy(&mut replica, Peer(2), &copy, &frames[1..]);
    assert_eq!(other, Err(NodeFailure::Held), "another session's");
    assert_eq!(replica.leave_copies(PEER), [writer.segment]);
    for (peer, by) in [(PEER, 9), (Peer(2), 10)] {
        let again = take_copy(&mut replica, peer, &copy_of(&writer, 15, by), &frames[1..]);
        assert_eq!(again, Err(NodeFailure::Held));
    }
    replica.synced();
    assert!(replica.segment(writer.segment).unwrap().limbo);
    assert!(replica.trim(writer.segment));
    assert!(take_copy(&mut replica, PEER, &copy, &frames).is_ok(), "anew");
}

#[test]
fn a_copy_that_is_given_up_is_in_limbo_again_and_one_that_is_named_is_a_replica() {
    for named in [true, false] {
        let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
        let frames = [writer.open(), writer.data(3)];
        let copy = copy_of(&writer, 13, 9);
        take_copy(&mut replica, PEER, &copy, &frames).unwrap();
        replica.synced();
        if named {
            replica.adopt(writer.segment);
        }
        assert_eq!(replica.forget_copy(writer.segment, Epoch(9)), !named);
        let state = replica.segment(writer.segment).unwrap();
        assert_eq!((state.limbo, state.copied), (!named, !named));
        assert!(!replica.forget_copy(writer.segment, Epoch(8)));
    }
}

#[test]
fn a_replica_that_the_record_names_completes_what_it_has() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let frames = [writer.open(), writer.data(3), writer.data(2)];
    append(&mut replica, frames[0].clone());
    append(&mut replica, frames[1].clone());
    replica.synced();
    let copy = copy_of(&writer, 15, 9);
    assert_eq!(
        take_copy(&mut replica, PEER, &copy, &frames[2..]),
        Err(NodeFailure::Held),
        "it is no copy"
    );
    let listed = CopyRequest { listed: true, ..copy };
    let whole = take_copy(&mut replica, PEER, &listed, &frames[2..]).unwrap();
    assert_eq!((whole.frames, whole.tail), (3, Offset(15)));
    replica.synced();
    let state = replica.segment(writer.segment).unwrap();
    assert_eq!(
        (state.limbo, state.copied, state.fenced),
        (false, false, Some(Epoch(9)))
    );
}

#[test]
fn a_node_that_takes_no_new_segments_completes_its_own_and_takes_no_copies() {
    let (mut replica, mut writer) = (replica(), Writer::new(1, 10));
    let frames = [writer.open(), writer.data(3)];
    replica.admit(Admission::NoNewSegments);
    let copy = copy_of(&writer, 13, 9);
    assert_eq!(
        take_copy(&mut replica, PEER, &copy, &frames),
        Err(NodeFailure::Overloaded)
    );
    let listed = CopyRequest { listed: true, ..copy };
    assert!(take_copy(&mut replica, PEER, &listed, &frames).is_ok());
}
