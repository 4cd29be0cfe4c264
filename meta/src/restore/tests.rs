#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use forebay_record::{BrokerId, PartitionId};
use uuid::Uuid;

use super::*;
use crate::faults::World;
use crate::model::{Run, Sealed};

const PARTITION: PartitionId = PartitionId(7);

fn id(epoch: u32, seq: u32) -> SegmentId {
    SegmentId {
        partition: PARTITION,
        epoch: Epoch(epoch),
        seq,
    }
}

fn segment(id: SegmentId, token: u64, base: u64) -> Segment {
    held(id, token, base, 0, 0).1.linked()
}

/// On three nodes, the last of which lags by one.
fn held(id: SegmentId, token: u64, base: u64, committed: u64, tail: u64) -> (SegmentId, Held) {
    let copy = |tail: u64| Copy {
        generation: Generation(1),
        tail: Offset(tail),
        committed: Offset(committed),
        limbo: false,
    };
    let held = Held {
        id,
        token: Token(token),
        base: Offset(base),
        ack_quorum: 2,
        replicas: (1..=3).map(|node| (NodeId(node), Generation(1))).collect(),
        bytes: 10,
        copies: BTreeMap::from([
            (NodeId(1), copy(tail)),
            (NodeId(2), copy(tail)),
            (NodeId(3), copy(tail.saturating_sub(1))),
        ]),
    };
    (id, held)
}

/// Sealed 0..10, open from 10.
fn backup() -> Partition {
    Partition::new(PARTITION, Uuid::nil(), 0)
        .grant(BrokerId(1), SessionId(5), 1)
        .unwrap()
        .open_first(segment(id(1, 1), 10, 0), 2)
        .unwrap()
        .seal(Offset(10), Sealed::default(), Some(segment(id(1, 2), 11, 10)), 3)
        .unwrap()
}

fn planned(found: impl IntoIterator<Item = (SegmentId, Held)>) -> Planned {
    let planned = plan(&backup(), &found.into_iter().collect(), &[], 99, 42);
    // Whatever it is, it is a record.
    let decoded = Partition::decode(&planned.record.encode()).unwrap();
    assert_eq!(decoded, planned.record);
    assert!(planned.record.epoch > Epoch(EPOCHS_SKIPPED));
    planned
}

fn chain(planned: &Planned) -> Vec<(u32, u32, u64, Option<u64>)> {
    let of = |one: &Segment| (one.id.epoch.0, one.id.seq, one.base.0, one.end.map(Offset::get));
    planned.record.chain.iter().map(of).collect()
}

fn old() -> [(SegmentId, Held); 2] {
    [held(id(1, 1), 10, 0, 10, 10), held(id(1, 2), 11, 10, 18, 20)]
}

#[test]
fn nothing_written_since_leaves_the_chain_as_it_is() {
    let planned = planned(old());
    assert_eq!(chain(&planned), [(1, 1, 0, Some(10)), (1, 2, 10, None)]);
    assert!(planned.adopted.is_empty() && planned.lost.is_empty() && planned.left.is_empty());
    assert_eq!(
        (planned.record.owner, planned.record.last_seq, planned.record.op),
        (None, 0, 42)
    );
}

#[test]
fn rolls_and_a_takeover_since_are_taken_back_into_the_chain() {
    let since = [
        held(id(1, 3), 12, 20, 30, 30),
        // A takeover that carried from the committed offset.
        held(id(2, 1), 15, 28, 40, 40),
        held(id(2, 2), 16, 40, 44, 47),
        // Prepared by the old owner, never linked.
        held(id(1, 4), 13, 30, 30, 31),
    ];
    let planned = planned(old().into_iter().chain(since));
    let expected = [
        (1, 1, 0, Some(10)),
        (1, 2, 10, Some(20)),
        (1, 3, 20, Some(28)),
        (2, 1, 28, Some(40)),
        (2, 2, 40, None),
    ];
    // The takeover was not told that 30 was committed, and carried it.
    assert_eq!(chain(&planned), expected);
    assert!(planned.lost.is_empty(), "{:?}", planned.lost);
}

#[test]
fn a_takeover_since_is_followed_where_it_carried() {
    let since = [
        held(id(1, 3), 12, 20, 28, 30),
        held(id(2, 1), 15, 28, 40, 40),
        held(id(2, 2), 16, 40, 44, 47),
        held(id(1, 4), 13, 30, 30, 31),
    ];
    let planned = planned(old().into_iter().chain(since));
    let expected = [
        (1, 1, 0, Some(10)),
        (1, 2, 10, Some(20)),
        (1, 3, 20, Some(28)),
        (2, 1, 28, Some(40)),
        (2, 2, 40, None),
    ];
    assert_eq!(chain(&planned), expected);
    assert_eq!(planned.left, [id(1, 4)]);
    assert!(planned.lost.is_empty());
    assert_eq!(planned.record.epoch, Epoch(2 + EPOCHS_SKIPPED));
}

#[test]
fn the_newest_segment_is_taken_though_no_node_was_told_of_a_commit_in_it() {
    let planned = planned(old().into_iter().chain([held(id(1, 3), 12, 20, 20, 25)]));
    assert_eq!(chain(&planned).last(), Some(&(1, 3, 20, None)));
}

#[test]
fn what_was_offloaded_since_is_a_declared_gap_and_the_rest_is_kept() {
    // The first two went into the object store and were trimmed; the third is there.
    let planned = planned([held(id(1, 3), 12, 20, 30, 30)]);
    assert_eq!(chain(&planned), [(1, 3, 20, None)]);
    assert_eq!(planned.record.after_gap(Offset(0)), Offset(20));
    assert_eq!(
        planned.lost.iter().map(|gap| gap.end.0 - gap.base.0).sum::<u64>(),
        20
    );
}

#[test]
fn a_hole_between_what_is_held_is_a_declared_gap() {
    let planned = planned(old().into_iter().chain([held(id(2, 4), 30, 50, 60, 60)]));
    let expected = [(1, 1, 0, Some(10)), (1, 2, 10, Some(20)), (2, 4, 50, None)];
    assert_eq!(chain(&planned), expected);
    assert_eq!(planned.record.after_gap(Offset(20)), Offset(50));
    assert_eq!(planned.record.after_gap(Offset(19)), Offset(19));
}

#[test]
fn where_no_node_holds_the_open_segment_the_log_goes_on_far_above_it() {
    let planned = planned([held(id(1, 1), 10, 0, 10, 10)]);
    assert_eq!(chain(&planned), [(1, 1, 0, Some(10))]);
    assert_eq!(planned.record.sealed_end(), Offset(10 + OFFSETS_SKIPPED));
}

/// The same on one node that was no replica, or was one under another generation: a copy made later.
fn copied(one: (SegmentId, Held), nodes: &[(u32, u32)], end: u64, limbo: bool) -> (SegmentId, Held) {
    let (id, mut held) = one;
    held.copies = nodes
        .iter()
        .map(|(node, generation)| {
            let copy = Copy {
                generation: Generation(*generation),
                tail: Offset(end),
                committed: held.base,
                limbo,
            };
            (NodeId(*node), copy)
        })
        .collect();
    (id, held)
}

fn replicas(planned: &Planned, at: usize) -> Vec<(u32, u32)> {
    let of = |(node, generation): &(NodeId, Generation)| (node.0, generation.0);
    planned.record.chain[at].replicas.iter().map(of).collect()
}

#[test]
fn what_only_copies_of_later_hold_is_kept_and_they_are_named() {
    let [first, second] = old();
    // The first was sealed before the backup; node 2 lost its disk, and nodes 4 and 5 came in.
    let first = copied(first, &[(2, 2), (4, 1), (5, 3)], 10, false);
    let planned = planned([first, second]);
    assert_eq!(chain(&planned), [(1, 1, 0, Some(10)), (1, 2, 10, None)]);
    assert!(planned.lost.is_empty(), "{:?}", planned.lost);
    let mut named = replicas(&planned, 0);
    named.sort_unstable();
    assert_eq!(named, [(2, 2), (4, 1), (5, 3)]);
    assert_eq!(replicas(&planned, 1), [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_segment_that_was_open_in_the_backup_ends_where_its_copy_ends() {
    let [first, second] = old();
    let second = copied(second, &[(4, 1)], 20, false);
    let followed = held(id(1, 3), 12, 20, 20, 25);
    let alone = planned([first.clone(), second.clone()]);
    assert_eq!(chain(&alone), [(1, 1, 0, Some(10)), (1, 2, 10, Some(20))]);
    assert_eq!(alone.record.sealed_end(), Offset(20));
    assert!(replicas(&alone, 1).contains(&(4, 1)));
    let planned = planned([first, second, followed]);
    assert_eq!(chain(&planned)[1..], [(1, 2, 10, Some(20)), (1, 3, 20, None)]);
    assert!(planned.lost.is_empty());
}

#[test]
fn what_originals_hold_beyond_the_end_of_a_copy_was_never_committed() {
    let [first, (_, mut second)] = old();
    // Nodes 1 to 3 have it up to 20 and 19; it was sealed at 18, and then copied.
    let copy = Copy {
        generation: Generation(1),
        tail: Offset(18),
        committed: Offset(10),
        limbo: false,
    };
    second.copies.insert(NodeId(4), copy);
    let planned = planned([first, (second.id, second)]);
    assert_eq!(chain(&planned)[1], (1, 2, 10, Some(18)));
    assert_eq!(
        replicas(&planned, 1),
        [(1, 1), (2, 1), (3, 1)],
        "all have it up to there"
    );
}

#[test]
fn a_copy_that_is_not_whole_is_no_copy() {
    let [first, second] = old();
    let first = copied(first, &[(4, 1)], 6, true);
    let planned = planned([first, second]);
    assert_eq!(chain(&planned), [(1, 2, 10, None)]);
    assert_eq!(planned.record.after_gap(Offset(0)), Offset(10));
    assert_eq!(planned.lost.len(), 1);
}

#[test]
fn a_copy_that_the_record_names_is_kept_though_it_is_damaged() {
    let [first, second] = old();
    let mut record = backup();
    record.chain[0].replicas[1] = (NodeId(4), Generation(1));
    let first = copied(first, &[(4, 1)], 6, true);
    let found: BTreeMap<_, _> = [first, second].into_iter().collect();
    let planned = plan(&record, &found, &[], 99, 42);
    assert_eq!(chain(&planned), [(1, 1, 0, Some(10)), (1, 2, 10, None)]);
    assert!(planned.lost.is_empty());
}

#[test]
fn a_deleted_partition_stays_deleted() {
    let found: BTreeMap<_, _> = old().into_iter().collect();
    let planned = plan(&backup().delete(9), &found, &[], 99, 42);
    assert!(planned.record.deleted && planned.adopted.is_empty());
}

#[tokio::test]
async fn the_incarnation_is_raised_once_and_sessions_are_gone() {
    let world = World::new().await;
    let random = forebay_runtime::random::SeededRandom::new(1);
    let settings = cluster::ClusterSettings {
        cluster_id: None,
        replicas: 3,
        ack_quorum: 2,
    };
    assert!(raise(&*world.store).await.is_err(), "there is no cluster");
    cluster::join(&*world.store, &settings, &random).await.unwrap();
    let session = Txn::new().then(Op::put(keys::broker(BrokerId(1)), "x"));
    world.store.txn(session).await.unwrap();
    for _ in 0..2 {
        let raised = raise(&*world.store).await.unwrap();
        assert_eq!((raised.incarnation, raised.restoring), (2, true));
    }
    assert_eq!(world.store.get(&keys::broker(BrokerId(1))).await.unwrap().0, None);
    let joined = cluster::join(&*world.store, &settings, &random).await.unwrap();
    assert!(joined.restoring);
    finish(&*world.store).await.unwrap();
    assert_eq!(raise(&*world.store).await.unwrap().incarnation, 3);
}

#[tokio::test]
async fn ids_that_a_node_has_seen_are_not_given_out_again() {
    let world = World::new().await;
    skip_ids(&*world.store, Some(PartitionId(70))).await.unwrap();
    let next = crate::counter::allocate(&*world.store, keys::PARTITION_IDS, 1)
        .await
        .unwrap();
    assert!(next.start > 70, "{next:?}");
}

fn run(id: SegmentId, base: u64, end: u64) -> FoundRun {
    let run = Run {
        base: Offset(base),
        end: Offset(end),
        object: format!("d/{id}/{base}"),
        position: 0,
        len: end - base,
        crc32c: 0,
        max_timestamp_ms: 0,
    };
    FoundRun { segment: id, run }
}

#[test]
fn objects_that_were_written_after_the_backup_are_listed_again_and_nothing_is_lost() {
    // Both segments of the backup and the one after them are in objects, one of them twice; one is still
    // on the nodes, and one after it only there.
    let found = [
        run(id(1, 1), 0, 10),
        run(id(1, 1), 0, 10),
        run(id(1, 2), 10, 30),
        run(id(2, 1), 30, 50),
    ];
    let held = BTreeMap::from([held(id(2, 1), 20, 30, 50, 50), held(id(2, 2), 21, 50, 60, 61)]);
    let planned = plan(&backup(), &held, &found, 99, 42);
    assert_eq!(planned.offloaded, [id(1, 1), id(1, 2), id(2, 1)]);
    assert_eq!(planned.adopted, [id(2, 2)]);
    assert!(planned.lost.is_empty() && planned.left.is_empty(), "{planned:?}");
    let ends: Vec<_> = planned.record.recent.iter().map(|run| run.end.0).collect();
    assert_eq!(ends, [10, 30, 50]);
    assert_eq!(planned.record.chain.len(), 1);
    assert_eq!(planned.record.undeclared(), None);
    assert!(planned.record.epoch.0 > 1_000);
    let record = Partition::decode(&planned.record.encode()).unwrap();
    assert!(record.is_deletable(id(2, 1)), "it is in an object");
    assert!(!record.is_deletable(id(2, 2)));
    // With nothing on the nodes the log goes on where the last object ends.
    let planned = plan(&backup(), &BTreeMap::new(), &found, 99, 42);
    assert!(planned.lost.is_empty() && planned.record.chain.is_empty());
    assert_eq!(planned.record.sealed_end(), Offset(50));
}

#[test]
fn what_no_object_and_no_node_has_is_declared_with_its_offsets() {
    // The second segment's object is missing; of the first one a piece was declared lost.
    let found = [run(id(1, 1), 0, 4), run(id(1, 1), 6, 9), run(id(2, 1), 30, 50)];
    let on_nodes = BTreeMap::from([held(id(2, 2), 21, 50, 60, 61)]);
    let planned = plan(&backup(), &on_nodes, &found, 99, 42);
    assert_eq!(planned.offloaded, [id(1, 1), id(2, 1)]);
    let lost: Vec<_> = planned.lost.iter().map(|gap| (gap.base.0, gap.end.0)).collect();
    assert_eq!(lost, [(4, 6), (9, 10), (10, 30)]);
    assert_eq!(planned.adopted, [id(2, 2)]);
    assert_eq!(planned.record.undeclared(), None);
    assert_eq!(
        Partition::decode(&planned.record.encode()).unwrap(),
        planned.record
    );
    // What a node still has is not jumped over.
    let on_nodes = BTreeMap::from([held(id(1, 2), 11, 10, 30, 30)]);
    let planned = plan(&backup(), &on_nodes, &found, 99, 42);
    assert_eq!(planned.offloaded, [id(1, 1)]);
    assert_eq!(planned.record.chain[0].id, id(1, 2));
}

#[test]
fn brokers_that_ran_on_the_restored_store_hide_nothing() {
    let since = [held(id(1, 3), 12, 20, 30, 30), held(id(2, 1), 15, 30, 40, 41)];
    let held: BTreeMap<_, _> = old().into_iter().chain(since).collect();
    // As far as they come: a grant, again and again, and nothing that storage nodes would have to answer.
    let taken = backup()
        .grant(BrokerId(2), SessionId(6), 7)
        .and_then(|record| record.grant(BrokerId(3), SessionId(7), 8))
        .unwrap();
    let planned = plan(&taken, &held, &[], 99, 42);
    let expected = [
        (1, 1, 0, Some(10)),
        (1, 2, 10, Some(20)),
        (1, 3, 20, Some(30)),
        (2, 1, 30, None),
    ];
    assert_eq!(chain(&planned), expected);
    assert!(planned.lost.is_empty(), "{:?}", planned.lost);
}

#[test]
fn an_open_segment_that_held_nothing_is_followed_by_one_that_stated_nothing_as_committed() {
    // The open one of the backup was replaced before it held a record, and nodes have forgotten it.
    let since = [
        held(id(1, 1), 10, 0, 10, 10),
        held(id(1, 3), 12, 10, 10, 24),
        held(id(2, 1), 15, 24, 40, 41),
    ];
    let planned = planned(since);
    let expected = [(1, 1, 0, Some(10)), (1, 3, 10, Some(24)), (2, 1, 24, None)];
    assert_eq!(chain(&planned), expected);
    assert!(planned.lost.is_empty(), "{:?}", planned.lost);
}
