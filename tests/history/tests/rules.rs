//! For each promise: a history that breaks exactly it, beside one that keeps it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use forebay_history::{
    ChainRecord, ChainSegment, Event, History, HistoryError, Produced, Promise, Range, Retention, Rule,
    Rules, Value, check,
};

const P: u64 = 7;

fn history(events: impl IntoIterator<Item = Event>) -> History {
    let mut history = History::new();
    for (at, event) in (0..).zip(events) {
        history.push(at, event);
    }
    history
}

/// The rules that a history breaks, in order and each once.
fn broken_by(rules: &Rules, events: impl IntoIterator<Item = Event>) -> Vec<Rule> {
    let report = check(&history(events), rules);
    let mut broken: Vec<_> = report.violations.iter().map(|one| one.rule).collect();
    broken.sort_unstable();
    broken.dedup();
    broken
}

fn broken(events: impl IntoIterator<Item = Event>) -> Vec<Rule> {
    broken_by(&Rules::default(), events)
}

fn record(sequence: u64) -> Produced {
    Produced {
        producer: 1,
        partition: P,
        sequence,
    }
}

fn value(sequence: u64) -> Value {
    Value(100 + sequence)
}

fn begun(sequence: u64) -> Event {
    Event::Begun {
        record: record(sequence),
        value: value(sequence),
    }
}

fn acked(sequence: u64, offset: u64) -> Event {
    Event::Acked {
        record: record(sequence),
        offset: Some(offset),
    }
}

fn read(reader: u64, offset: u64, value: Value) -> Event {
    Event::Read {
        reader,
        partition: P,
        offset,
        value,
    }
}

fn scan(reader: u64, from: u64) -> Event {
    Event::ScanBegun {
        reader,
        partition: P,
        from,
    }
}

fn ended(reader: u64, until: u64) -> Event {
    Event::ScanEnded {
        reader,
        partition: P,
        until,
        log_start: Some(0),
        high_watermark: Some(until),
    }
}

/// A scan that is given these values from offset 0 on, and told that the log ends there.
fn whole(reader: u64, values: &[Value]) -> Vec<Event> {
    let mut events = vec![scan(reader, 0)];
    events.extend(
        (0..)
            .zip(values)
            .map(|(offset, value)| read(reader, offset, *value)),
    );
    events.push(ended(reader, values.len() as u64));
    events
}

fn three() -> Vec<Event> {
    let mut events: Vec<_> = (0..3).map(begun).collect();
    events.extend((0..3).map(|number| acked(number, number)));
    events
}

fn with(mut events: Vec<Event>, more: impl IntoIterator<Item = Event>) -> Vec<Event> {
    events.extend(more);
    events
}

#[test]
fn a_log_read_as_it_was_acknowledged_is_clean() {
    let events = with(three(), whole(1, &[value(0), value(1), value(2)]));
    let rules = Rules {
        final_scans_min: 1,
        ..Rules::default()
    };
    let report = check(&history(events), &rules);
    assert!(report.is_clean(), "{:?}", report.violations);
    let counts = report.counts;
    assert_eq!(
        (counts.acked, counts.reads, counts.complete_scans, counts.unknown),
        (3, 3, 1, 0)
    );
}

#[test]
fn h1_an_acknowledged_record_beyond_the_end_that_a_later_scan_is_told_is_lost() {
    assert_eq!(broken(with(three(), whole(1, &[value(0), value(1)]))), [Rule::H1]);
    // A scan that began before the acknowledgement need not have it.
    let mut events = vec![begun(0), scan(1, 0), acked(0, 0)];
    events.push(ended(1, 0));
    assert_eq!(broken(events), []);
}

#[test]
fn h1_another_record_where_one_is_acknowledged_is_told_with_both() {
    let events = [begun(0), begun(1), acked(0, 0), scan(1, 0), read(1, 0, value(1))];
    let report = check(&history(events), &Rules::default());
    let line = report.violations[0].to_string();
    assert_eq!(
        line,
        "H1 partition 7 offset 0: reader 1 was given 0000000000000065 (producer 1 record 1), \
         acknowledged before: 0000000000000064 (producer 1 record 0) (events 3, 5)"
    );
    // The other way round: read first, then acknowledged for another.
    let events = [begun(0), begun(1), scan(1, 0), read(1, 0, value(1)), acked(0, 0)];
    assert_eq!(broken(events), [Rule::H1]);
}

#[test]
fn h1_an_acknowledgement_without_an_offset_must_be_read_somewhere() {
    let unplaced = Event::Acked {
        record: record(1),
        offset: None,
    };
    let sent = vec![begun(0), begun(1), acked(0, 0), unplaced];
    assert_eq!(broken(with(sent.clone(), whole(1, &[value(0), value(1)]))), []);
    assert_eq!(broken(with(sent, whole(1, &[value(0)]))), [Rule::H1]);
}

#[test]
fn h1_too_few_scans_after_the_last_acknowledgement_are_told() {
    let rules = Rules {
        final_scans_min: 2,
        ..Rules::default()
    };
    let values = [value(0), value(1), value(2)];
    let once = with(three(), whole(1, &values));
    assert_eq!(broken_by(&rules, once.clone()), [Rule::H1]);
    assert_eq!(broken_by(&rules, with(once, whole(2, &values))), []);
}

#[test]
fn acknowledgements_of_acks_1_may_be_lost() {
    let mut rules = Rules::default();
    rules.producers.insert(
        1,
        Promise {
            quorum: false,
            repeats: false,
        },
    );
    assert_eq!(
        broken_by(&rules, with(three(), whole(1, &[value(0), value(2)]))),
        []
    );
}

#[test]
fn h2_two_readers_of_one_offset_see_one_value() {
    let both = |second| {
        vec![
            begun(0),
            begun(1),
            scan(1, 0),
            read(1, 0, value(0)),
            scan(2, 0),
            read(2, 0, second),
        ]
    };
    assert_eq!(broken(both(value(1))), [Rule::H2]);
    assert_eq!(broken(both(value(0))), []);
}

#[test]
fn h2_one_offset_is_acknowledged_once() {
    let events = [begun(0), begun(1), acked(0, 4), {
        let mut other = record(0);
        other.producer = 2;
        Event::Begun {
            record: other,
            value: Value(9),
        }
    }];
    let other = Event::Acked {
        record: Produced {
            producer: 2,
            ..record(0)
        },
        offset: Some(4),
    };
    assert_eq!(broken(with(events.to_vec(), [other])), [Rule::H2]);
    assert_eq!(broken(events), []);
}

#[test]
fn h3_a_reader_passes_over_declared_gaps_only() {
    let events = vec![
        begun(0),
        begun(1),
        scan(1, 0),
        read(1, 0, value(0)),
        read(1, 5, value(1)),
    ];
    assert_eq!(broken(events.clone()), [Rule::H3]);
    let gap = |from, until| Event::GapDeclared {
        partition: P,
        range: Range { from, until },
    };
    assert_eq!(broken(with(events.clone(), [gap(2, 5)])), [Rule::H3]);
    assert_eq!(broken(with(events.clone(), [gap(1, 3), gap(3, 5)])), []);
    assert_eq!(broken(with(events, [gap(0, 3)])), [Rule::H3, Rule::H4]);
}

#[test]
fn h3_a_reader_never_goes_back_unless_it_starts_anew() {
    let events = vec![
        begun(0),
        begun(1),
        scan(1, 0),
        read(1, 0, value(0)),
        read(1, 1, value(1)),
    ];
    assert_eq!(broken(with(events.clone(), [read(1, 1, value(1))])), [Rule::H3]);
    assert_eq!(broken(with(events, [scan(1, 1), read(1, 1, value(1))])), []);
}

#[test]
fn h4_what_was_read_does_not_vanish_from_the_end() {
    let events = with(vec![begun(0), begun(1)], whole(1, &[value(0), value(1)]));
    assert_eq!(broken(with(events.clone(), whole(2, &[value(0)]))), [Rule::H4]);
    assert_eq!(broken(with(events, whole(2, &[value(0), value(1)]))), []);
}

#[test]
fn h4_what_was_read_does_not_vanish_from_the_middle() {
    let events = with(
        (0..3).map(begun).collect(),
        whole(1, &[value(0), value(1), value(2)]),
    );
    let skipping = [scan(2, 0), read(2, 0, value(0)), read(2, 2, value(2))];
    assert_eq!(broken(with(events, skipping)), [Rule::H3, Rule::H4]);
}

#[test]
fn h5_offsets_of_one_producer_rise_in_the_order_of_sending() {
    let events = |first, second| vec![begun(0), begun(1), acked(1, second), acked(0, first)];
    assert_eq!(broken(events(3, 2)), [Rule::H5]);
    assert_eq!(broken(events(2, 3)), []);
}

#[test]
fn h5_an_acknowledged_record_stands_once_unless_its_producer_repeats() {
    let events = with(
        vec![begun(0), begun(1), acked(0, 0)],
        whole(1, &[value(0), value(1), value(0)]),
    );
    assert_eq!(broken(events.clone()), [Rule::H5]);
    let rules = Rules {
        promise: Promise {
            quorum: true,
            repeats: true,
        },
        ..Rules::default()
    };
    assert_eq!(broken_by(&rules, events), []);
}

#[test]
fn h6_a_refused_record_is_never_read() {
    let failed = Event::Failed { record: record(0) };
    let seen = [scan(1, 0), read(1, 0, value(0))];
    let before = with(vec![begun(0), failed.clone()], seen.clone());
    let after = with(with(vec![begun(0)], seen.clone()), [failed.clone()]);
    assert_eq!(broken(before), [Rule::H6]);
    assert_eq!(broken(after), [Rule::H6]);
    assert_eq!(broken([begun(0), failed]), []);
    let unknown = Event::Unknown { record: record(0) };
    assert_eq!(broken(with(vec![begun(0), unknown], seen)), []);
}

#[test]
fn h6_an_unknown_record_is_read_at_one_offset_at_most() {
    let unknown = Event::Unknown { record: record(0) };
    let events = with(vec![begun(0), unknown], whole(1, &[value(0), value(0)]));
    assert_eq!(broken(events), [Rule::H6]);
}

#[test]
fn h6_nobody_reads_what_nobody_wrote_or_wrote_elsewhere() {
    let strange = [begun(0), scan(1, 0), read(1, 0, Value(9))];
    assert_eq!(broken(strange), [Rule::H6]);
    let elsewhere = Event::Begun {
        record: Produced {
            partition: 8,
            ..record(0)
        },
        value: value(0),
    };
    assert_eq!(broken([elsewhere, scan(1, 0), read(1, 0, value(0))]), [Rule::H6]);
}

#[test]
fn h7_after_quiescence_every_reader_is_told_the_same_log() {
    let told = |reader, log_start, high_watermark| {
        let end = Event::ScanEnded {
            reader,
            partition: P,
            until: 1,
            log_start: Some(log_start),
            high_watermark: Some(high_watermark),
        };
        vec![scan(reader, 0), read(reader, 0, value(0)), end]
    };
    let quiet = |second: Vec<Event>| with(with(vec![begun(0), Event::Quiesced], told(1, 0, 1)), second);
    assert_eq!(broken(quiet(told(2, 0, 1))), []);
    let rules = Rules {
        retention: Retention::Free,
        ..Rules::default()
    };
    assert_eq!(broken_by(&rules, quiet(told(2, 1, 1))), [Rule::H7]);
    let gap = Event::GapDeclared {
        partition: P,
        range: Range { from: 1, until: 9 },
    };
    assert_eq!(broken(with(quiet(told(2, 0, 9)), [gap])), [Rule::H7]);
}

#[test]
fn h7_copies_hold_what_readers_were_given() {
    let events = with(three(), whole(1, &[value(0), value(1), value(2)]));
    let copy = |from, values: &[Value]| Event::Copy {
        source: "node 3".to_owned(),
        partition: P,
        from,
        values: values.to_vec(),
    };
    assert_eq!(broken(with(events.clone(), [copy(1, &[value(1), value(2)])])), []);
    assert_eq!(broken(with(events.clone(), [copy(1, &[value(2)])])), [Rule::H7]);
    assert_eq!(broken(with(events, [copy(3, &[Value(3)])])), [Rule::H7]);
}

#[test]
fn h8_the_log_starts_no_later_than_retention_allows() {
    let seen = Event::LogStartSeen {
        partition: P,
        offset: 5,
    };
    let allowed = |until| Event::RetentionAllowed { partition: P, until };
    assert_eq!(broken([seen.clone()]), [Rule::H8]);
    assert_eq!(broken([allowed(4), seen.clone()]), [Rule::H8]);
    assert_eq!(broken([seen.clone(), allowed(5)]), [Rule::H8]);
    assert_eq!(broken([allowed(5), seen.clone()]), []);
    let rules = Rules {
        retention: Retention::Free,
        ..Rules::default()
    };
    assert_eq!(broken_by(&rules, [seen]), []);
}

fn segment(seq: u64, base: u64, end: Option<u64>) -> ChainSegment {
    ChainSegment {
        epoch: 1,
        seq,
        token: 10 * seq,
        base,
        end,
    }
}

fn chain(revision: u64, segments: &[ChainSegment]) -> ChainRecord {
    ChainRecord {
        partition: P,
        revision,
        epoch: 1,
        log_start: 0,
        offloaded_end: 0,
        segments: segments.to_vec(),
        gaps: Vec::new(),
    }
}

#[test]
fn h9_a_chain_that_rolls_offloads_and_is_taken_over_is_clean() {
    let mut offloaded = chain(30, &[segment(2, 7, None)]);
    offloaded.offloaded_end = 7;
    let mut taken = offloaded.clone();
    (taken.revision, taken.epoch) = (31, 2);
    let mut carried = taken.clone();
    carried.revision = 32;
    carried.segments = vec![
        segment(2, 7, Some(9)),
        ChainSegment {
            epoch: 2,
            ..segment(3, 9, None)
        },
    ];
    let records = [
        chain(9, &[]),
        chain(10, &[segment(1, 0, None)]),
        chain(20, &[segment(1, 0, Some(7)), segment(2, 7, None)]),
        offloaded,
        taken,
        carried,
    ];
    assert_eq!(broken(records.map(Event::Chain)), []);
}

#[test]
fn h9_each_fault_of_one_version_is_told() {
    let two = |first: ChainSegment, second: ChainSegment| chain(5, &[first, second]);
    let whole = two(segment(1, 0, Some(7)), segment(2, 7, None));
    let mut low_token = whole.clone();
    low_token.segments[1].token = 10;
    let mut overlapping = whole.clone();
    overlapping.offloaded_end = 3;
    let mut early = whole.clone();
    early.segments[1].epoch = 2;
    let faults = [
        two(segment(1, 0, Some(7)), segment(2, 8, None)),
        two(segment(1, 0, Some(7)), segment(2, 6, None)),
        two(segment(1, 0, None), segment(2, 7, None)),
        two(segment(2, 0, Some(7)), segment(1, 7, None)),
        chain(5, &[segment(1, 3, None)]),
        low_token,
        overlapping,
        early,
    ];
    assert_eq!(broken([Event::Chain(whole)]), []);
    for fault in faults {
        assert_eq!(broken([Event::Chain(fault.clone())]), [Rule::H9], "{fault:?}");
    }
    let mut bridged = two(segment(1, 0, Some(7)), segment(2, 90, None));
    bridged.gaps = vec![Range { from: 7, until: 90 }];
    assert_eq!(broken([Event::Chain(bridged)]), []);
}

#[test]
fn h9_each_fault_between_versions_is_told() {
    let before = chain(5, &[segment(1, 0, Some(7)), segment(2, 7, Some(9))]);
    let mut lower_epoch = before.clone();
    (lower_epoch.revision, lower_epoch.epoch) = (6, 0);
    let faults = [
        chain(6, &[segment(1, 0, Some(8)), segment(2, 8, Some(9))]),
        chain(6, &[segment(1, 0, Some(7)), segment(2, 7, None)]),
        chain(6, &[segment(1, 0, Some(7))]),
        chain(6, &[segment(1, 0, Some(7)), segment(3, 7, Some(9))]),
        lower_epoch,
    ];
    for fault in faults {
        assert_eq!(
            broken([Event::Chain(before.clone()), Event::Chain(fault.clone())]),
            [Rule::H9],
            "{fault:?}"
        );
    }
    // The same revision again is a fault of who noted it.
    assert_eq!(
        broken([Event::Chain(before.clone()), Event::Chain(before)]),
        [Rule::History]
    );
}

#[test]
fn h10_disks_shrink_and_objects_are_neither_missing_nor_left_behind() {
    let held = |bytes| Event::NodeHeld {
        node: 2,
        bytes,
        bytes_max: 4096,
    };
    let object = |referenced, present| Event::Object {
        object: "d/00/1".to_owned(),
        referenced,
        present,
    };
    assert_eq!(broken([held(4096), object(true, true), object(false, false)]), []);
    assert_eq!(broken([held(4097)]), [Rule::H10]);
    assert_eq!(broken([object(true, false)]), [Rule::H10]);
    assert_eq!(broken([object(false, true)]), [Rule::H10]);
    let rules = Rules {
        garbage_allowed: true,
        ..Rules::default()
    };
    assert_eq!(broken_by(&rules, [object(false, true)]), []);
}

#[test]
fn a_gap_may_cover_acknowledged_records_only_where_losses_are_allowed() {
    let gap = Event::GapDeclared {
        partition: P,
        range: Range { from: 2, until: 3 },
    };
    assert_eq!(broken(with(three(), [gap.clone()])), [Rule::H1]);
    let rules = Rules {
        losses_allowed: true,
        ..Rules::default()
    };
    assert_eq!(broken_by(&rules, with(three(), [gap])), []);
}

#[test]
fn a_history_that_contradicts_itself_is_told_as_such() {
    let twice = [begun(0), acked(0, 0), Event::Failed { record: record(0) }];
    assert_eq!(broken(twice), [Rule::History]);
    assert_eq!(broken([acked(0, 0)]), [Rule::History]);
    assert_eq!(broken([begun(0), read(1, 0, value(0))]), [Rule::History]);
    let mut same = record(1);
    same.producer = 9;
    let same = Event::Begun {
        record: same,
        value: value(0),
    };
    assert_eq!(broken([begun(0), same]), [Rule::History]);
}

#[test]
fn lines_of_a_file_are_the_history_again_and_a_damaged_line_is_named() {
    let mut events = with(three(), whole(1, &[value(0), Value(u64::MAX)]));
    events.push(Event::Chain(chain(u64::MAX, &[segment(1, 0, None)])));
    events.push(Event::Quiesced);
    let written = history(events);
    let mut bytes = Vec::new();
    written.write_to(&mut bytes).unwrap();
    assert_eq!(
        bytes.iter().filter(|byte| **byte == b'\n').count(),
        written.entries().len()
    );
    assert_eq!(History::read_from(bytes.as_slice()).unwrap(), written);
    bytes.truncate(bytes.len() - 9);
    let error = History::read_from(bytes.as_slice()).unwrap_err();
    assert!(matches!(error, HistoryError::Format { line: 12, .. }), "{error}");
}

#[test]
fn values_tell_keys_from_values() {
    assert_ne!(Value::of(Some(b"a"), b"b"), Value::of(Some(b"ab"), b""));
    assert_ne!(Value::of(None, b"b"), Value::of(Some(b""), b"b"));
    assert_eq!(Value::of(Some(b"k"), b"v"), Value::of(Some(b"k"), b"v"));
}
