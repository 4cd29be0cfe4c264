#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::Arc;

use forebay_proto::stored::NodeRecord;
use forebay_record::{BrokerId, NodeId, SessionId};
use forebay_runtime::clock::SystemClock;
use forebay_runtime::random::OsRandom;
use parking_lot::Mutex;

use super::*;
use crate::faults::{Fault, UNKNOWNS, World, eventually};
use crate::store::{Revision, scan};
use crate::topics::{TopicChange, create, delete, follow, get, partitions};

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

async fn topic(world: &World, partitions: u32) -> Topic {
    let config = settings(&[("segment.bytes", "1048576"), ("retention.ms", "5")]);
    create(&*world.store, &OsRandom, "t", partitions, config)
        .await
        .unwrap()
}

#[tokio::test]
async fn keys_are_set_and_unset_and_all_others_stay() {
    let world = World::new().await;
    let before = topic(&world, 2).await;
    let set = settings(&[("retention.bytes", "7"), ("segment.bytes", "2097152")]);
    let after = alter_config(&*world.store, "t", &set, &["retention.ms".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        after.raw_config,
        settings(&[("retention.bytes", "7"), ("segment.bytes", "2097152")])
    );
    assert_eq!(after.config.retention_ms, Some(604_800_000), "the default again");
    assert_eq!(
        (after.id, &after.partition_ids),
        (before.id, &before.partition_ids)
    );
    assert_eq!(get(&*world.store, "t").await.unwrap(), after);
}

#[tokio::test]
async fn a_change_that_cannot_be_is_refused_by_name_and_nothing_is_written() {
    let world = World::new().await;
    let before = topic(&world, 1).await;
    for (set, unset, words) in [
        (settings(&[("retention.bites", "1")]), vec![], "retention.bites"),
        (settings(&[("segment.bytes", "few")]), vec![], "segment.bytes"),
        (settings(&[]), vec!["segment.bite"], "segment.bite"),
        (settings(&[("retention.ms", "1")]), vec!["retention.ms"], "both"),
        (settings(&[]), vec![], "no configuration key"),
    ] {
        let unset: Vec<String> = unset.into_iter().map(str::to_owned).collect();
        let failure = alter_config(&*world.store, "t", &set, &unset).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
    let failure = alter_config(&*world.store, "t", &settings(&[("a", "1")]), &[])
        .await
        .unwrap_err();
    assert!(
        failure.message.contains("retention.ms"),
        "the known keys are listed: {failure}"
    );
    assert_eq!(get(&*world.store, "t").await.unwrap(), before);
    let unknown = alter_config(&*world.store, "u", &settings(&[("retention.ms", "1")]), &[]).await;
    assert_eq!(unknown.unwrap_err().code, ErrorCode::UnknownTopic);
}

#[tokio::test]
async fn a_largest_batch_that_some_node_has_no_room_for_is_not_set() {
    let world = World::new().await;
    // Nothing is known to be too much where no node says what it takes.
    topic(&world, 1).await;
    let set = |bytes| settings(&[("max.message.bytes", bytes)]);
    alter_config(&*world.store, "t", &set("655273"), &[])
        .await
        .unwrap();
    let node = NodeRecord {
        id: 3,
        frame_bytes_max: 655_272,
        ..NodeRecord::default()
    };
    let put = Op::put(keys::node(NodeId(3)), encode(&node));
    world.store.txn(Txn::new().then(put)).await.unwrap();

    let altered = alter_config(&*world.store, "t", &set("655273"), &[]).await;
    let made = create(&*world.store, &OsRandom, "u", 1, set("655273")).await;
    for failure in [altered.unwrap_err(), made.unwrap_err()] {
        assert_eq!(failure.code, ErrorCode::InvalidRequest, "{failure}");
        for part in [
            "max.message.bytes = 655273",
            "at most 655272",
            "storage node 3",
            "storage.journal_file_bytes",
        ] {
            assert!(failure.message.contains(part), "{part}: {failure}");
        }
    }
    let unknown = get(&*world.store, "u").await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::UnknownTopic);
    // What fits, what is said of other keys, and the default are taken.
    alter_config(&*world.store, "t", &settings(&[("retention.ms", "6")]), &[])
        .await
        .unwrap();
    alter_config(&*world.store, "t", &set("655272"), &[])
        .await
        .unwrap();
    create(&*world.store, &OsRandom, "u", 1, BTreeMap::new())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_all_land() {
    let world = World::new().await;
    topic(&world, 1).await;
    let keys = [
        "retention.ms",
        "retention.bytes",
        "segment.ms",
        "max.message.bytes",
    ];
    let racers = keys.map(|key| {
        let store = Arc::clone(&world.store);
        tokio::spawn(async move { alter_config(&*store, "t", &settings(&[(key, "5000")]), &[]).await })
    });
    for outcome in futures_util::future::join_all(racers).await {
        outcome.unwrap().unwrap();
    }
    let config = get(&*world.store, "t").await.unwrap().raw_config;
    assert!(keys.iter().all(|key| config[*key] == "5000"), "{config:?}");
}

#[tokio::test]
async fn a_change_of_unknown_outcome_is_made_sure_of() {
    for fault in UNKNOWNS {
        let world = World::new().await;
        topic(&world, 1).await;
        let altered = alter_config(
            &*world.faulty([fault]),
            "t",
            &settings(&[("retention.ms", "9")]),
            &[],
        )
        .await
        .unwrap_or_else(|failure| panic!("{fault:?}: {failure}"));
        assert_eq!(altered.config.retention_ms, Some(9));
        assert_eq!(get(&*world.store, "t").await.unwrap(), altered);
    }
    let world = World::new().await;
    topic(&world, 1).await;
    let lost = world.faulty(std::iter::repeat_n(Fault::RequestLost, 100));
    let failure = alter_config(&*lost, "t", &settings(&[("retention.ms", "9")]), &[])
        .await
        .unwrap_err();
    assert_eq!(failure.code, ErrorCode::OutcomeUnknown);
}

#[tokio::test]
async fn a_topic_grows_behind_the_partitions_it_has() {
    let world = World::new().await;
    let before = topic(&world, 3).await;
    let after = add_partitions(&*world.store, "t", 130).await.unwrap();
    assert_eq!(after.partition_ids[..3], before.partition_ids[..]);
    assert_eq!((after.id, after.partition_ids.len()), (before.id, 130));
    let records = partitions(&*world.store, &after).await.unwrap();
    for (number, record) in records.iter().enumerate() {
        let expected = Partition::new(after.partition_ids[number], after.id, number as u32);
        assert_eq!(*record, expected);
    }
}

#[tokio::test]
async fn a_topic_never_shrinks_and_has_a_bound() {
    let world = World::new().await;
    let before = topic(&world, 3).await;
    for count in [0, 2, 3, PARTITIONS_MAX + 1] {
        let failure = add_partitions(&*world.store, "t", count).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidPartitionCount, "{failure}");
        assert!(failure.message.contains(&count.to_string()), "{failure}");
    }
    assert_eq!(get(&*world.store, "t").await.unwrap(), before);
    let unknown = add_partitions(&*world.store, "u", 5).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::UnknownTopic);
}

#[tokio::test]
async fn growth_whose_outcomes_are_unknown_still_ends_well() {
    // Transactions: the counter, two chunks of partitions, the topic.
    for at in 0..4 {
        for fault in UNKNOWNS {
            let world = World::new().await;
            topic(&world, 1).await;
            let faulty = world.faulty(std::iter::repeat_n(Fault::Pass, at).chain([fault]));
            let grown = add_partitions(&*faulty, "t", 71)
                .await
                .unwrap_or_else(|failure| panic!("{at} {fault:?}: {failure}"));
            assert_eq!(get(&*world.store, "t").await.unwrap(), grown);
            assert_eq!(partitions(&*world.store, &grown).await.unwrap().len(), 71);
        }
    }
}

#[tokio::test]
async fn growth_that_breaks_off_shows_no_new_partition_and_can_be_asked_for_again() {
    for at in 0..4 {
        let world = World::new().await;
        let before = topic(&world, 1).await;
        let faulty = world.faulty(std::iter::repeat_n(Fault::Pass, at).chain([Fault::NotSent]));
        let failure = add_partitions(&*faulty, "t", 71).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
        assert_eq!(get(&*world.store, "t").await.unwrap(), before);
        let grown = add_partitions(&*world.store, "t", 71).await.unwrap();
        assert_eq!(partitions(&*world.store, &grown).await.unwrap().len(), 71);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_give_a_topic_more_partitions_each_sees_a_whole_one() {
    let world = World::new().await;
    topic(&world, 1).await;
    let racers = (2..=9).map(|count| {
        let store = Arc::clone(&world.store);
        tokio::spawn(async move { (count, add_partitions(&*store, "t", count).await) })
    });
    let mut most = 0;
    for outcome in futures_util::future::join_all(racers).await {
        match outcome.unwrap() {
            (count, Ok(topic)) => {
                assert_eq!(topic.partition_ids.len(), count as usize);
                most = most.max(count);
            }
            (_, Err(failure)) => assert_eq!(failure.code, ErrorCode::InvalidPartitionCount, "{failure}"),
        }
    }
    let topic = get(&*world.store, "t").await.unwrap();
    assert_eq!(topic.partition_ids.len(), most as usize);
    assert_eq!(
        partitions(&*world.store, &topic).await.unwrap().len(),
        most as usize
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_and_a_change_of_the_configuration_at_the_same_time_both_land() {
    let world = World::new().await;
    topic(&world, 1).await;
    let (grow, alter) = (Arc::clone(&world.store), Arc::clone(&world.store));
    let (grown, altered) = tokio::join!(
        tokio::spawn(async move { add_partitions(&*grow, "t", 4).await }),
        tokio::spawn(
            async move { alter_config(&*alter, "t", &settings(&[("retention.ms", "9")]), &[]).await }
        )
    );
    grown.unwrap().unwrap();
    altered.unwrap().unwrap();
    let topic = get(&*world.store, "t").await.unwrap();
    assert_eq!(
        (topic.partition_ids.len(), topic.config.retention_ms),
        (4, Some(9))
    );
}

#[tokio::test]
async fn growth_whose_records_were_removed_lists_nothing() {
    let world = World::new().await;
    let before = topic(&world, 1).await;
    let found = find(&*world.store, "t").await.unwrap();
    let added = Partition::new(PartitionId(99), before.id, 1);
    create_partitions(&*world.store, std::slice::from_ref(&added))
        .await
        .unwrap();
    // As the controller does it: the topic's record is put again with the removal.
    let key = keys::partition(added.id);
    let sweep = Txn::new()
        .then(Op::delete(key.clone()))
        .then(Op::put(found.entry.key.clone(), found.entry.value.clone()));
    world.store.txn(sweep).await.unwrap();
    let mut record = found.record.clone();
    record.partition_ids.push(99);
    let late = put(&*world.store, &found, record, None).await.unwrap();
    assert_eq!(late, None);
    assert!(
        !are_untouched(&*world.store, std::slice::from_ref(&added))
            .await
            .unwrap()
    );
    let granted = added.grant(BrokerId(1), SessionId(1), 1).unwrap();
    let put = Op::put(key, granted.encode());
    world.store.txn(Txn::new().then(put)).await.unwrap();
    assert!(!are_untouched(&*world.store, &[added]).await.unwrap());
}

#[tokio::test]
async fn a_follower_is_told_of_every_change_and_of_all_topics_where_history_is_lost() {
    let world = World::new().await;
    let (_, start) = world.store.get(keys::CLUSTER).await.unwrap();
    let told: Arc<Mutex<Vec<TopicChange>>> = Arc::default();
    let faulty = world.faulty([]);
    let following = |after: Revision| {
        let (store, told) = (Arc::<crate::faults::Faulty>::clone(&faulty), Arc::clone(&told));
        tokio::spawn(follow(
            store,
            Arc::new(SystemClock::new()),
            after,
            move |change| {
                told.lock().push(change);
                std::future::ready(())
            },
        ))
    };
    let task = following(start);
    let topic = topic(&world, 1).await;
    alter_config(&*world.store, "t", &settings(&[("retention.ms", "9")]), &[])
        .await
        .unwrap();
    delete(&*world.store, "t").await.unwrap();
    eventually("three changes", || async { told.lock().len() == 3 }).await;
    task.abort();
    let changes = std::mem::take(&mut *told.lock());
    assert!(changes.iter().all(|one| one.id == topic.id && one.name == "t"));
    assert_eq!(
        changes.iter().map(|one| one.is_new).collect::<Vec<_>>(),
        [true, false, false]
    );
    let retention = |change: &TopicChange| change.config.as_ref().map(|config| config.retention_ms);
    assert_eq!(
        changes.iter().map(retention).collect::<Vec<_>>(),
        [Some(Some(5)), Some(Some(9)), None]
    );
    assert!(changes.is_sorted_by_key(|one| one.revision));
    // A watch from before all history: everything is told as it is now.
    let world = world.reopen().await;
    let store = Arc::clone(&world.store);
    let all = Arc::clone(&told);
    let task = tokio::spawn(follow(
        store,
        Arc::new(SystemClock::new()),
        Revision(0),
        move |change| {
            all.lock().push(change);
            std::future::ready(())
        },
    ));
    eventually("all are told", || async { !told.lock().is_empty() }).await;
    assert_eq!(told.lock()[0].config, None);
    assert_eq!(scan(&*world.store, keys::TOPICS, 10).await.unwrap().0.len(), 1);
    task.abort();
}
