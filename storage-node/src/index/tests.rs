#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::testing::{Writer, checked};

#[test]
fn an_entry_stays_small() {
    assert_eq!(size_of::<Entry>(), 48);
}

#[test]
fn entries_are_found_by_offset_and_from_the_last_state() {
    let mut writer = Writer::new(1, 10);
    let frames = [
        writer.open(),
        writer.data(3),
        writer.data(2),
        writer.state(),
        writer.data(5),
    ];
    let entries: Vec<Entry> = frames
        .into_iter()
        .zip(1..)
        .map(|(frame, at)| Entry::new(&checked(frame), at * 1000))
        .collect();
    let state = SegmentState {
        segment: writer.segment,
        token: writer.token,
        base: Offset(10),
        tail: writer.next,
        committed: Offset(15),
        hash: writer.hash,
        frames: 5,
        fenced: None,
        limbo: false,
        copied: false,
    };
    let index = Index::default();
    index.publish(&state, &entries);
    let segment = index.get(writer.segment).unwrap();
    let numbers = |entries: Vec<Entry>| entries.iter().map(|entry| entry.number).collect::<Vec<_>>();
    let from = |from, until| numbers(segment.entries_from(Offset(from), Offset(until), |_| true));
    assert_eq!(from(10, 20), [1, 2, 3, 4]);
    assert_eq!(from(12, 15), [1, 2]);
    assert_eq!(from(13, 16), [2, 3, 4]);
    assert_eq!(from(20, 30), Vec::<u32>::new());
    let state = |until| numbers(segment.entries_from_state(Offset(until), 100));
    assert_eq!(state(20), [3, 4]);
    assert_eq!(state(15), [3, 4]);
    assert_eq!(state(14), [0, 1, 2]);
    assert_eq!(state(10), [0, 1]);
    let of_range = |range| {
        index
            .within(&range)
            .iter()
            .map(|(_, one)| one.number)
            .collect::<Vec<_>>()
    };
    assert_eq!(of_range(1500..4000), [1, 2]);
    let used = |range| index.survey(&[range]).used[0];
    assert!(used(4500..5001) && !used(5001..9000) && !used(0..1000));
    let survey = index.survey(&[0..900, 1500..2500, 2500..2600, 2600..4000, 4000..4001]);
    assert_eq!(survey.used, [false, true, false, true, true]);
    assert_eq!(survey.first, [(writer.segment, 1)]);
    let bytes = entries.iter().map(Entry::frame_len).sum();
    let facts = HeldFacts {
        segment: writer.segment,
        base: Offset(10),
        tail: writer.next,
        committed: Offset(15),
        bytes,
        frames: 5,
        copied_by: None,
    };
    assert_eq!(index.held(), [facts]);
    let other = PartitionId(writer.segment.partition.0 + 1);
    assert!(index.holds(writer.segment.partition) && !index.holds(other));
    index.forget(writer.segment);
    assert!(!index.holds(writer.segment.partition) && index.held().is_empty());
}

#[test]
fn a_damaged_frame_leaves_a_hole_until_it_is_held_in_another_place() {
    let mut writer = Writer::new(1, 10);
    let frames = [writer.open(), writer.data(3), writer.data(2), writer.data(5)];
    let entries: Vec<Entry> = frames
        .into_iter()
        .zip(1..)
        .map(|(frame, at)| Entry::new(&checked(frame), at * 1000))
        .collect();
    let state = |limbo| SegmentState {
        segment: writer.segment,
        token: writer.token,
        base: Offset(10),
        tail: writer.next,
        committed: Offset(20),
        hash: writer.hash,
        frames: 4,
        fenced: None,
        limbo,
        copied: false,
    };
    let index = Index::default();
    index.publish(&state(false), &entries);
    let segment = index.get(writer.segment).unwrap();
    let whole = segment.bytes();
    assert!(index.damage(writer.segment, &entries[2]));
    assert!(!index.damage(writer.segment, &entries[2]), "found twice");
    assert!(segment.is_limbo() && !index.has(writer.segment, &entries[2]));
    assert_eq!(segment.holes(9), [(Offset(13), Offset(15))]);
    assert_eq!(segment.bytes(), whole - entries[2].frame_len());
    // What the journal thread did not hear of yet changes nothing.
    index.publish(&state(false), &[]);
    assert!(segment.is_limbo());
    index.publish(&state(true), &[]);
    assert_eq!(index.damaged(9).len(), 1);
    let again = Entry {
        position: 9000,
        ..entries[2]
    };
    index.publish(&state(false), &[again]);
    assert!(!segment.is_limbo() && segment.holes(9).is_empty());
    assert_eq!(
        (segment.bytes(), index.has(writer.segment, &again)),
        (whole, true)
    );
    let survey = index.survey(&[0..1000, 1000..2500, 2500..3500, 3500..5000, 8999..9001]);
    assert_eq!(survey.used, [false, true, false, true, true]);
    assert_eq!(survey.first, [(writer.segment, 1)]);
    let found = index.within(&(3500..10_000));
    assert_eq!(found, [(writer.segment, entries[3]), (writer.segment, again)]);
}
