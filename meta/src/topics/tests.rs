#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;

use forebay_record::{BrokerId, Epoch, SessionId};
use forebay_runtime::random::{OsRandom, SeededRandom};

use super::*;
use crate::faults::{Fault, UNKNOWNS, World};
use crate::locate::locate;
use crate::store::scan;

async fn make(store: &dyn MetaStore, name: &str, partitions: u32) -> Result<Topic, Failure> {
    create(store, &OsRandom, name, partitions, BTreeMap::new()).await
}

async fn count(world: &World, prefix: &str) -> usize {
    scan(&*world.store, prefix, 100_000).await.unwrap().0.len()
}

#[tokio::test]
async fn a_topic_is_found_with_its_partitions_in_order() {
    let world = World::new().await;
    let config = BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]);
    let topic = create(&*world.store, &OsRandom, "orders", 130, config)
        .await
        .unwrap();
    assert_eq!(topic.config.segment_bytes, 1 << 20);
    assert_eq!(get(&*world.store, "orders").await.unwrap(), topic);
    let records = partitions(&*world.store, &topic).await.unwrap();
    assert_eq!(records.len(), 130);
    for (number, record) in records.iter().enumerate() {
        assert_eq!(
            *record,
            Partition::new(topic.partition_ids[number], topic.id, number as u32)
        );
    }
}

#[test]
fn a_bad_name_is_refused_with_the_rule() {
    for (name, rule) in [
        ("", "empty"),
        (".", "cannot be"),
        ("..", "cannot be"),
        ("a b", "contains ' '"),
        ("größe", "contains 'ö'"),
        ("a/b", "contains '/'"),
        ("\0", "contains"),
        (&"x".repeat(250), "250 characters"),
    ] {
        let failure = check_name(name).unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidTopicName);
        assert!(failure.message.contains(rule), "{failure}");
    }
    for name in ["a", "A.b_c-9", "...", &"x".repeat(249)] {
        check_name(name).unwrap();
    }
}

#[tokio::test]
async fn bad_counts_and_configurations_are_refused_before_anything_is_written() {
    let world = World::new().await;
    for partitions in [0, PARTITIONS_MAX + 1] {
        let failure = make(&*world.store, "t", partitions).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidPartitionCount);
        assert!(failure.message.contains(&partitions.to_string()), "{failure}");
    }
    let config = BTreeMap::from([("retention.bites".to_owned(), "1".to_owned())]);
    let failure = create(&*world.store, &OsRandom, "t", 1, config)
        .await
        .unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
    assert!(failure.message.contains("retention.bites"), "{failure}");
    let config = BTreeMap::from([("k".to_owned(), "v".repeat(2000))]);
    let failure = create(&*world.store, &OsRandom, "t", 1, config)
        .await
        .unwrap_err();
    assert!(failure.message.len() < 200, "{failure}");
    assert_eq!(count(&world, "/").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creators_of_one_name_one_wins() {
    let world = World::new().await;
    let racers = (1..=8).map(|partitions| {
        let store = Arc::clone(&world.store);
        tokio::spawn(async move { make(&*store, "race", partitions).await })
    });
    let mut won = Vec::new();
    for outcome in futures_util::future::join_all(racers).await {
        match outcome.unwrap() {
            Ok(topic) => won.push(topic),
            Err(failure) => assert_eq!(failure.code, ErrorCode::TopicExists, "{failure}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(get(&*world.store, "race").await.unwrap(), won[0]);
    assert_eq!(
        partitions(&*world.store, &won[0]).await.unwrap().len(),
        won[0].partition_ids.len()
    );
}

#[tokio::test]
async fn a_creation_whose_outcomes_are_unknown_still_ends_well() {
    // Transactions: the counter, two chunks of partitions, the topic.
    for at in 0..4 {
        for fault in UNKNOWNS {
            let world = World::new().await;
            let faulty = world.faulty(std::iter::repeat_n(Fault::Pass, at).chain([fault]));
            let topic = make(&*faulty, "t", 70)
                .await
                .unwrap_or_else(|failure| panic!("{at} {fault:?}: {failure}"));
            assert_eq!(get(&*world.store, "t").await.unwrap(), topic);
            assert_eq!(partitions(&*world.store, &topic).await.unwrap().len(), 70);
            assert_eq!(count(&world, keys::TOPICS).await, 1);
        }
    }
}

#[tokio::test]
async fn a_creation_that_breaks_off_shows_no_topic() {
    for at in 0..4 {
        let world = World::new().await;
        let faulty = world.faulty(std::iter::repeat_n(Fault::Pass, at).chain([Fault::NotSent]));
        let failure = make(&*faulty, "t", 70).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert_eq!(
            get(&*world.store, "t").await.unwrap_err().code,
            ErrorCode::UnknownTopic
        );
        make(&*world.store, "t", 70).await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_reported_as_unknown() {
    let world = World::new().await;
    let passes = std::iter::repeat_n(Fault::Pass, 2);
    let faulty = world.faulty(passes.chain(std::iter::repeat_n(Fault::RequestLost, 100)));
    assert_eq!(
        make(&*faulty, "t", 1).await.unwrap_err().code,
        ErrorCode::OutcomeUnknown
    );
    let faulty = world.faulty([Fault::Pass, Fault::Pass, Fault::Late, Fault::NotSent]);
    assert_eq!(
        make(&*faulty, "t", 1).await.unwrap_err().code,
        ErrorCode::OutcomeUnknown
    );
    get(&*world.store, "t").await.expect("landed late");
}

#[tokio::test]
async fn a_creation_whose_records_were_removed_shows_no_topic() {
    let world = World::new().await;
    let topic = Topic {
        id: Uuid::from_u128(7),
        name: "late".to_owned(),
        partition_ids: vec![PartitionId(1)],
        config: TopicConfig::default(),
        raw_config: BTreeMap::new(),
    };
    let record = Partition::new(PartitionId(1), topic.id, 0);
    let revision = create_partitions(&*world.store, &[record]).await.unwrap();
    let key = keys::partition(PartitionId(1));
    let intact = Compare::CreateRevision(key.clone(), revision);
    world.store.txn(Txn::new().then(Op::delete(key))).await.unwrap();
    let failure = publish(&*world.store, &topic, intact.clone()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
    let claim = TopicRecord {
        id: topic.id.as_bytes().to_vec().into(),
        deleted: true,
        ..Default::default()
    };
    world
        .store
        .txn(Txn::new().then(Op::put(keys::topic(topic.id), encode(&claim))))
        .await
        .unwrap();
    let failure = publish(&*world.store, &topic, intact).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
    assert_eq!(
        get(&*world.store, "late").await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );
}

#[tokio::test]
async fn topics_are_listed_by_name_in_pages() {
    let world = World::new().await;
    for name in ["c", "a", "e", "b", "d"] {
        make(&*world.store, name, 1).await.unwrap();
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = list(&*world.store, &after, 2).await.unwrap();
        assert!(page.topics.len() <= 2);
        names.extend(page.topics.into_iter().map(|topic| topic.name));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(list(&*world.store, "", 0).await.unwrap().topics.len(), 5);
    assert_eq!(list(&*world.store, "d", 0).await.unwrap().topics.len(), 1);
}

#[tokio::test]
async fn a_deleted_topic_is_unknown_and_its_name_is_free() {
    let world = World::new().await;
    let first = make(&*world.store, "t", 1).await.unwrap();
    delete(&*world.store, "t").await.unwrap();
    assert_eq!(
        get(&*world.store, "t").await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );
    assert_eq!(
        delete(&*world.store, "t").await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );
    assert!(list(&*world.store, "", 0).await.unwrap().topics.is_empty());
    let second = make(&*world.store, "t", 1).await.unwrap();
    assert_ne!(
        (first.id, &first.partition_ids),
        (second.id, &second.partition_ids)
    );
}

#[tokio::test]
async fn a_deletion_of_unknown_outcome_is_made_sure_of() {
    for fault in UNKNOWNS {
        let world = World::new().await;
        make(&*world.store, "t", 1).await.unwrap();
        delete(&*world.faulty([fault]), "t").await.unwrap();
        assert_eq!(
            get(&*world.store, "t").await.unwrap_err().code,
            ErrorCode::UnknownTopic,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn partitions_of_a_topic_that_went_away_are_unknown_not_broken() {
    let world = World::new().await;
    let topic = make(&*world.store, "t", 1).await.unwrap();
    let key = keys::partition(topic.partition_ids[0]);
    world
        .store
        .txn(Txn::new().then(Op::delete(key.clone())))
        .await
        .unwrap();
    let failure = partitions(&*world.store, &topic).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains(&key), "{failure}");
    delete(&*world.store, "t").await.unwrap();
    assert_eq!(
        partitions(&*world.store, &topic).await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );
}

#[tokio::test]
async fn a_damaged_topic_record_is_an_internal_failure_that_names_its_key() {
    let world = World::new().await;
    let topic = make(&*world.store, "t", 1).await.unwrap();
    let key = keys::topic(topic.id);
    world
        .store
        .txn(Txn::new().then(Op::put(key.clone(), "garbage")))
        .await
        .unwrap();
    let failure = get(&*world.store, "t").await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains(&key), "{failure}");
}

#[tokio::test]
async fn locating_a_topic_tells_its_grants_and_the_revision() {
    let world = World::new().await;
    let topic = create(&*world.store, &SeededRandom::new(3), "t", 100, BTreeMap::new())
        .await
        .unwrap();
    let before = locate(&*world.store, "t").await.unwrap();
    assert_eq!(before.topic, topic);
    assert!(
        before
            .partitions
            .iter()
            .all(|grant| grant.owner.is_none() && grant.epoch == Epoch(0))
    );
    let records = partitions(&*world.store, &topic).await.unwrap();
    let granted = records[64].grant(BrokerId(2), SessionId(9), 1).unwrap();
    let put = Op::put(keys::partition(granted.id), granted.encode());
    let reply = world.store.txn(Txn::new().then(put)).await.unwrap();
    let after = locate(&*world.store, "t").await.unwrap();
    assert!(after.revision >= reply.revision && before.revision < reply.revision);
    let grant = after.partitions[64];
    assert_eq!(
        (grant.number, grant.owner, grant.session),
        (64, Some(BrokerId(2)), SessionId(9))
    );
    assert_eq!(
        locate(&*world.store, "none").await.unwrap_err().code,
        ErrorCode::UnknownTopic
    );
}
