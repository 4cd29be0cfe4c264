//! Every change of a record, one after the other, and what is refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;

fn segment(epoch: u32, seq: u32, token: u64, base: u64) -> Segment {
    Segment {
        id: SegmentId {
            partition: PartitionId(1),
            epoch: Epoch(epoch),
            seq,
        },
        token: Token(token),
        base: Offset(base),
        end: None,
        ack_quorum: 2,
        replicas: (1..=3).map(|node| (NodeId(node), Generation(1))).collect(),
        bytes: 0,
        sealed_ms: 0,
    }
}

fn sealed(bytes: u64) -> Sealed {
    Sealed { bytes, at_ms: 0 }
}

fn granted() -> Partition {
    Partition::new(PartitionId(1), Uuid::nil(), 0)
        .grant(BrokerId(1), SessionId(5), 1)
        .unwrap()
}

#[test]
fn a_chain_grows_without_gaps_and_tokens_rise() {
    let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
    assert!(
        record.open_first(segment(1, 2, 11, 0), 3).is_err(),
        "one segment is open already"
    );
    assert!(
        record
            .seal(Offset(7), sealed(0), Some(segment(1, 2, 11, 8)), 3)
            .is_err(),
        "gap"
    );
    assert!(
        record
            .seal(Offset(7), sealed(0), Some(segment(1, 2, 10, 7)), 3)
            .is_err(),
        "token does not rise"
    );
    assert!(
        record
            .seal(Offset(7), sealed(0), Some(segment(2, 2, 11, 7)), 3)
            .is_err(),
        "another epoch"
    );
    let rolled = record
        .seal(Offset(7), sealed(99), Some(segment(1, 2, 11, 7)), 3)
        .unwrap();
    assert_eq!(rolled.chain.len(), 2);
    assert_eq!(rolled.chain[0].end, Some(Offset(7)));
    assert_eq!(rolled.last_seq, 2);
}

#[test]
fn an_empty_open_segment_is_dropped_not_sealed() {
    let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
    let next = record
        .seal(Offset(0), sealed(0), Some(segment(1, 2, 11, 0)), 3)
        .unwrap();
    assert_eq!(next.chain.len(), 1);
    assert_eq!(next.open().unwrap().id.seq, 2);
}

#[test]
fn a_grant_restarts_the_sequence_and_keeps_the_chain() {
    let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
    let next = record.grant(BrokerId(2), SessionId(9), 3).unwrap();
    assert_eq!((next.epoch, next.last_seq, next.chain.len()), (Epoch(2), 0, 1));
    assert!(record.delete(4).grant(BrokerId(2), SessionId(9), 5).is_err());
}

#[test]
fn two_of_three_close_what_two_of_three_commit() {
    let mut one = segment(1, 1, 1, 0);
    assert_eq!(one.close_quorum(), 2);
    one.replicas.truncate(1);
    one.ack_quorum = 1;
    assert_eq!(one.close_quorum(), 1);
}

fn id(epoch: u32, seq: u32) -> SegmentId {
    segment(epoch, seq, 0, 0).id
}

#[test]
fn a_segment_of_the_chain_is_never_deletable() {
    let record = rolled_twice();
    for one in &record.chain {
        assert!(!record.is_deletable(one.id), "{}", one.id);
    }
    // A later grant changes nothing about that.
    let record = record.grant(BrokerId(2), SessionId(9), 9).unwrap();
    assert!(record.chain.iter().all(|one| !record.is_deletable(one.id)));
}

#[test]
fn the_copy_of_a_recovery_in_progress_is_not_deletable() {
    // Epoch 2 was granted and has linked nothing: its carry is in nobody's chain yet.
    let record = rolled_twice().grant(BrokerId(2), SessionId(9), 9).unwrap();
    assert_eq!((record.epoch, record.last_seq), (Epoch(2), 0));
    assert!(!record.is_deletable(id(2, 1)));
    // Nor is what a broker prepares of which this record knows nothing.
    assert!(!record.is_deletable(id(3, 1)));
    // And the next segment of the epoch that linked the newest one.
    assert!(!rolled_twice().is_deletable(id(1, 4)));
}

#[test]
fn what_left_the_chain_and_what_can_never_enter_it_is_deletable() {
    let record = rolled_twice();
    let first = record.chain[0].id;
    let offloaded = record.offload(first, &[run(0, 7)], 5).unwrap();
    assert!(offloaded.is_deletable(first));
    assert!(!offloaded.is_deletable(record.chain[1].id));
    // A deposed owner's orphan: an older epoch, and a higher sequence than this one's.
    let granted = record.grant(BrokerId(2), SessionId(9), 9).unwrap();
    assert!(granted.is_deletable(id(1, 77)));
    // One that this epoch gave up before it linked a later one.
    let dropped = granted_orphan();
    assert!(dropped.is_deletable(id(1, 1)) && !dropped.is_deletable(id(1, 2)));
}

/// Epoch 1 prepared segment 1, gave it up, and linked segment 2.
fn granted_orphan() -> Partition {
    granted().open_first(segment(1, 2, 10, 0), 2).unwrap()
}

#[test]
fn of_a_deleted_partition_everything_is_deletable_and_of_another_nothing() {
    let record = rolled_twice();
    let deleted = record.delete(9);
    assert!(deleted.is_deletable(id(1, 1)) && deleted.is_deletable(id(7, 7)));
    let foreign = SegmentId {
        partition: PartitionId(2),
        ..id(1, 1)
    };
    assert!(!deleted.is_deletable(foreign) && !record.is_deletable(foreign));
}

#[test]
fn the_offloaded_part_ends_where_the_chain_begins() {
    let record = rolled_twice();
    assert_eq!(record.offloaded_end(), Offset(0));
    let record = record.offload(id(1, 1), &[run(0, 7)], 5).unwrap();
    assert_eq!(record.offloaded_end(), Offset(7));
    let record = record.seal(Offset(12), sealed(0), None, 6).unwrap();
    let record = record.offload(id(1, 2), &[run(7, 9)], 7).unwrap();
    let record = record.offload(id(1, 3), &[run(9, 12)], 8).unwrap();
    assert_eq!((record.chain.len(), record.offloaded_end()), (0, Offset(12)));
}

fn run(base: u64, end: u64) -> Run {
    Run {
        base: Offset(base),
        end: Offset(end),
        object: format!("d/{base}"),
        position: 0,
        len: end - base,
        crc32c: 0,
        max_timestamp_ms: 0,
    }
}

fn manifest(generation: u64, end: u64) -> Option<ManifestRef> {
    Some(ManifestRef {
        object: format!("m/{generation}"),
        generation,
        end: Offset(end),
        len: 1,
        crc32c: 0,
    })
}

/// Sealed segments 0..7 and 7..9, an open one from 9.
fn rolled_twice() -> Partition {
    let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
    let record = record
        .seal(Offset(7), sealed(70), Some(segment(1, 2, 11, 7)), 3)
        .unwrap();
    record
        .seal(Offset(9), sealed(20), Some(segment(1, 3, 12, 9)), 4)
        .unwrap()
}

#[test]
fn only_the_oldest_sealed_segment_is_offloaded_and_only_whole() {
    let record = rolled_twice();
    let (first, second, open) = (record.chain[0].id, record.chain[1].id, record.chain[2].id);
    assert!(
        record.offload(second, &[run(7, 9)], 5).is_err(),
        "an older one is left"
    );
    assert!(record.offload(first, &[run(0, 6)], 5).is_err(), "not all of it");
    assert!(record.offload(first, &[run(1, 7)], 5).is_err(), "not all of it");
    let record = record.offload(first, &[run(0, 7)], 5).unwrap();
    assert_eq!((record.chain.len(), record.recent.len()), (2, 1));
    let record = record.offload(second, &[run(7, 9)], 6).unwrap();
    assert!(record.offload(open, &[run(9, 12)], 7).is_err(), "it is open");
    assert_eq!(record.sealed_end(), Offset(9));
}

#[test]
fn what_is_lost_of_a_sealed_segment_is_a_gap_and_the_rest_is_offloaded_in_pieces() {
    let record = rolled_twice();
    let (first, second) = (record.chain[0].id, record.chain[1].id);
    let lost = |record: &Partition, id, ranges: &[(u64, u64)]| {
        let ranges: Vec<_> = ranges.iter().map(|(a, b)| (Offset(*a), Offset(*b))).collect();
        record.declare_lost(id, &ranges, "lost", 5)
    };
    let holed = lost(&record, first, &[(2, 3), (6, 7)]).unwrap();
    assert_eq!(holed.chain.len(), 3);
    assert_eq!(Partition::decode(&holed.encode()).unwrap(), holed);
    assert_eq!(
        holed.pieces(Offset(0), Offset(7)),
        [(Offset(0), Offset(2)), (Offset(3), Offset(6))]
    );
    assert!(holed.offload(first, &[run(0, 7)], 6).is_err());
    let off = holed.offload(first, &[run(0, 2), run(3, 6)], 6).unwrap();
    assert_eq!(
        (off.recent.len(), off.chain.len(), off.sealed_end()),
        (2, 2, Offset(9))
    );
    // What is lost of both sides of a border is one gap, and the chain stays readable.
    let both = lost(&lost(&record, first, &[(5, 7)]).unwrap(), second, &[(7, 8)]).unwrap();
    assert_eq!(both.gaps.len(), 1);
    assert_eq!(Partition::decode(&both.encode()).unwrap(), both);
    // A middle segment without any copy leaves the chain, and the oldest one goes on.
    let gone = lost(&record, second, &[(7, 9)]).unwrap();
    assert_eq!((gone.chain.len(), gone.after_gap(Offset(7))), (2, Offset(9)));
    assert!(gone.is_deletable(second));
    assert_eq!(Partition::decode(&gone.encode()).unwrap(), gone);
    let off = gone.offload(first, &[run(0, 7)], 6).unwrap();
    let folded = off.fold(manifest(1, 7), Offset(0), 7).unwrap();
    assert!(folded.recent.is_empty());
    // So does the newest one.
    let end = record.seal(Offset(12), sealed(0), None, 6).unwrap();
    let end = lost(&end, end.chain[2].id, &[(9, 12)]).unwrap();
    assert_eq!((end.chain.len(), end.sealed_end()), (2, Offset(12)));
    for (id, ranges) in [
        (record.chain[2].id, (9, 10)),
        (first, (6, 8)),
        (first, (3, 3)),
        (SegmentId { seq: 9, ..first }, (0, 1)),
    ] {
        assert!(lost(&record, id, &[ranges]).is_err(), "{id} {ranges:?}");
    }
}

#[test]
fn a_full_list_of_ranges_holds_offload_back_until_it_is_folded() {
    let mut record = rolled_twice();
    record.recent = (0..RECENT_MAX as u64).map(|_| run(0, 0)).collect();
    let first = record.chain[0].id;
    assert!(record.offload(first, &[run(0, 7)], 5).is_err());
}

#[test]
fn a_fold_takes_ranges_into_the_manifest_and_never_goes_back() {
    let record = rolled_twice();
    let (first, second) = (record.chain[0].id, record.chain[1].id);
    let record = record.offload(first, &[run(0, 7)], 5).unwrap();
    let record = record.offload(second, &[run(7, 9)], 6).unwrap();
    assert!(
        record.fold(manifest(1, 8), Offset(0), 7).is_err(),
        "inside a range"
    );
    assert!(
        record.fold(manifest(1, 10), Offset(0), 7).is_err(),
        "beyond all ranges"
    );
    let folded = record.fold(manifest(1, 7), Offset(0), 7).unwrap();
    assert_eq!((folded.recent.len(), folded.recent[0].base), (1, Offset(7)));
    assert!(folded.fold(manifest(1, 9), Offset(0), 8).is_err(), "generation");
    let folded = folded.fold(manifest(2, 9), Offset(3), 8).unwrap();
    assert_eq!((folded.recent.len(), folded.log_start), (0, Offset(3)));
    assert!(
        folded.fold(manifest(3, 9), Offset(2), 9).is_err(),
        "log start falls"
    );
    assert!(
        folded.fold(None, Offset(3), 9).is_err(),
        "the manifest still lists what is kept"
    );
    assert!(
        folded.fold(manifest(3, 9), Offset(10), 9).is_err(),
        "log start in the open segment"
    );
}

#[test]
fn retention_drops_what_ends_below_the_log_start() {
    let record = rolled_twice();
    let kept = record.fold(None, Offset(7), 5).unwrap();
    assert_eq!((kept.chain.len(), kept.log_start), (2, Offset(7)));
    let all = kept.fold(None, Offset(9), 6).unwrap();
    assert_eq!((all.chain.len(), all.sealed_end()), (1, Offset(9)));
}

#[test]
fn a_replica_of_a_sealed_segment_is_replaced_and_nothing_else_changes() {
    let (lost, new) = ((NodeId(2), Generation(1)), (NodeId(4), Generation(3)));
    let record = granted()
        .open_first(segment(1, 1, 10, 0), 2)
        .unwrap()
        .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
        .unwrap();
    let id = record.chain[0].id;
    let next = record.replace_replica(id, lost, new, 4).unwrap();
    let mut expected = record.clone();
    expected.op = 4;
    expected.chain[0].replicas[1] = new;
    assert_eq!(next, expected);
    assert!(next.replace_replica(id, lost, new, 5).is_err(), "done already");
    // The same node under another generation lost everything it had.
    let reborn = (NodeId(2), Generation(2));
    assert!(record.replace_replica(id, lost, reborn, 4).is_ok());
}

#[test]
fn open_segments_strangers_and_doubled_nodes_are_not_replaced() {
    let (lost, new) = ((NodeId(2), Generation(1)), (NodeId(4), Generation(1)));
    let record = granted()
        .open_first(segment(1, 1, 10, 0), 2)
        .unwrap()
        .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
        .unwrap();
    let (first, open) = (record.chain[0].id, record.chain[1].id);
    for (segment, lost, new) in [
        (open, lost, new),
        (first, (NodeId(2), Generation(2)), new),
        (first, lost, (NodeId(3), Generation(9))),
        (SegmentId { seq: 9, ..first }, lost, new),
    ] {
        let refused = record.replace_replica(segment, lost, new, 4);
        assert!(matches!(refused, Err(Refused::Replica { .. })), "{refused:?}");
    }
    let deleted = record.delete(5);
    assert!(deleted.replace_replica(first, lost, new, 6).is_err());
}

#[test]
fn a_replaced_node_gives_up_and_a_copy_that_may_be_linked_stays() {
    let record = granted()
        .open_first(segment(1, 1, 10, 0), 2)
        .unwrap()
        .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
        .unwrap();
    let (id, open) = (record.chain[0].id, record.chain[1].id);
    let one = Generation(1);
    assert!(!record.is_replaced(id, NodeId(2), one, None), "a replica");
    assert!(record.is_replaced(id, NodeId(2), Generation(2), None));
    assert!(record.is_replaced(id, NodeId(4), one, None));
    assert!(!record.is_replaced(open, NodeId(4), one, None), "open");
    assert!(!record.is_replaced(id, NodeId(4), one, Some(record.epoch)));
    let later = record.grant(BrokerId(2), SessionId(6), 4).unwrap();
    assert!(later.is_replaced(id, NodeId(4), one, Some(record.epoch)));
    assert!(!record.is_replaced(SegmentId { seq: 9, ..id }, NodeId(4), one, None));
}
