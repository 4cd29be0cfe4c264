#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};

use forebay_proto::stored::{
    BrokerRecord, ControllerRecord, NodeRecord, NodeState, PlacementRecord, TopicRecord,
};
use forebay_record::{BrokerId, NodeId, PartitionId, SessionId};
use forebay_runtime::clock::{ManualClock, SystemClock};
use forebay_runtime::random::OsRandom;
use futures_util::FutureExt;
use parking_lot::Mutex;
use uuid::Uuid;

use super::sweep::{ORPHAN_AGE, SWEEP_EVERY};
use super::*;
use crate::failure::decode;
use crate::faults::{DEADLINE, Fault, UNKNOWNS, World, eventually};
use crate::keys;
use crate::model::Partition;
use crate::record::encode;
use crate::session::{Session, register_broker};
use crate::store::{Op, Txn, scan};
use crate::topics::{self, Topic};

/// Answers to pings: brokers that are not in here answer well.
type Ill = Arc<Mutex<BTreeMap<BrokerId, ProbeError>>>;

fn probe(ill: &Ill) -> Probe {
    let ill = Arc::clone(ill);
    Arc::new(move |broker, _| {
        let outcome = ill.lock().get(&broker).map_or(Ok(()), |error| Err(*error));
        std::future::ready(outcome).boxed()
    })
}

/// What is left at each control address, none where it does not answer, and how often it was asked.
type Left = Arc<Mutex<BTreeMap<String, (Option<BTreeSet<PartitionId>>, usize)>>>;

fn ask(left: &Left) -> Ask {
    let left = Arc::clone(left);
    Arc::new(move |address, partitions| {
        let mut left = left.lock();
        let (here, asked) = left.entry(address).or_default();
        *asked += 1;
        let answer = here.as_ref().map(|here| {
            let partitions = partitions.into_iter();
            partitions.filter(|id| here.contains(id)).collect()
        });
        std::future::ready(answer.ok_or(ProbeError::Refused)).boxed()
    })
}

fn controller(
    world: &World,
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    ill: &Ill,
    id: &str,
) -> Controller {
    let left = Left::default();
    let holders = Holders {
        brokers: ask(&left),
        nodes: ask(&left),
    };
    controller_with(world, store, clock, probes(ill), holders, id)
}

/// Pings of brokers as in `ill`, and of leaders that are always there.
fn probes(ill: &Ill) -> Probes {
    Probes {
        broker: probe(ill),
        leader: Arc::new(|_| std::future::ready(Ok(())).boxed()),
    }
}

fn controller_with(
    world: &World,
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    probes: Probes,
    holders: Holders,
    id: &str,
) -> Controller {
    let tasks = world.tasks.group(id);
    Controller::start(
        store,
        id.to_owned(),
        clock,
        Arc::new(OsRandom),
        probes,
        holders,
        balancing(),
        &tasks,
        &Metrics::new(),
    )
}

/// Brokers of which no loads are known, and no moves for balance.
fn balancing() -> Balancing {
    Balancing {
        weigh: Arc::new(|_| std::future::ready(Ok(Vec::new())).boxed()),
        rebalance: false,
    }
}

fn lead(world: &World, id: &str) -> Controller {
    controller(
        world,
        Arc::clone(&world.store),
        Arc::new(SystemClock::new()),
        &Ill::default(),
        id,
    )
}

async fn broker(world: &World, id: u32) -> Session {
    let record = BrokerRecord {
        id,
        control_address: format!("b{id}:1"),
        ..Default::default()
    };
    register_broker(Arc::clone(&world.store), &record, Duration::from_secs(30))
        .await
        .unwrap()
}

async fn topic(world: &World, name: &str, partitions: u32) -> Topic {
    topics::create(&*world.store, &OsRandom, name, partitions, BTreeMap::new())
        .await
        .unwrap()
}

/// Waits until the controller shows what is asked for.
async fn shows(controller: &Controller, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
    let mut status = controller.subscribe();
    let found = tokio::time::timeout(DEADLINE, status.wait_for(|status| holds(status))).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("{what}: {:?}", controller.status()),
    }
}

async fn placed(controller: &Controller, partitions: usize) -> Status {
    shows(controller, "all partitions are placed", |status| {
        status.leader && status.partitions == partitions && status.unplaced == 0
    })
    .await
}

async fn wishes(world: &World) -> BTreeMap<PartitionId, BrokerId> {
    let (entries, _) = scan(&*world.store, keys::WISHES, 100_000).await.unwrap();
    let wish = |entry| BrokerId(decode::<PlacementRecord>(entry).unwrap().broker);
    entries
        .iter()
        .map(|entry| (keys::partition_of(&entry.key).unwrap(), wish(entry)))
        .collect()
}

async fn records(world: &World) -> Vec<Partition> {
    let (entries, _) = scan(&*world.store, keys::PARTITIONS, 100_000).await.unwrap();
    entries
        .iter()
        .map(|entry| Partition::decode(&entry.value).unwrap())
        .collect()
}

fn load(wishes: &BTreeMap<PartitionId, BrokerId>, broker: u32) -> usize {
    wishes.values().filter(|wished| wished.0 == broker).count()
}

#[tokio::test]
async fn new_topics_are_spread_over_the_brokers() {
    let world = World::new().await;
    let sessions = [
        broker(&world, 1).await,
        broker(&world, 2).await,
        broker(&world, 3).await,
    ];
    let controller = lead(&world, "c");
    topic(&world, "a", 100).await;
    topic(&world, "b", 31).await;
    let status = placed(&controller, 131).await;
    let wishes = wishes(&world).await;
    assert_eq!(wishes.len(), 131);
    for (session, id) in sessions.iter().zip(1..) {
        assert!((43..=44).contains(&load(&wishes, id)), "{wishes:?}");
        let shown = &status.brokers[&BrokerId(id)];
        assert_eq!(
            (shown.session, shown.partitions, shown.illness),
            (session.id(), load(&wishes, id), None)
        );
    }
    controller.shutdown().await;
    assert_eq!(
        world.store.get(keys::CONTROLLER).await.unwrap().0,
        None,
        "resigned"
    );
}

#[tokio::test]
async fn the_partitions_of_a_broker_whose_session_ends_go_to_the_others() {
    let world = World::new().await;
    let (_one, two) = (broker(&world, 1).await, broker(&world, 2).await);
    let controller = lead(&world, "c");
    topic(&world, "a", 20).await;
    placed(&controller, 20).await;
    let before = wishes(&world).await;
    two.close().await.unwrap();
    shows(&controller, "broker 2 is gone", |status| {
        status.brokers.len() == 1 && status.unplaced == 0
    })
    .await;
    assert_eq!(load(&wishes(&world).await, 1), 20);
    let three = broker(&world, 3).await;
    topic(&world, "b", 10).await;
    placed(&controller, 30).await;
    let after = wishes(&world).await;
    assert_eq!(
        (load(&after, 1), load(&after, 3)),
        (20, 10),
        "whoever joins gets what is new"
    );
    assert!(
        before
            .iter()
            .filter(|(_, broker)| broker.0 == 1)
            .all(|(id, broker)| after[id] == *broker)
    );
    drop(three);
    controller.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_refuses_connections_loses_its_partitions_while_its_session_lives() {
    let world = World::new().await;
    let (_one, two) = (broker(&world, 1).await, broker(&world, 2).await);
    let ill = Ill::default();
    let clock = ManualClock::new(0);
    let controller = controller(
        &world,
        Arc::clone(&world.store),
        Arc::new(clock.clone()),
        &ill,
        "c",
    );
    topic(&world, "a", 20).await;
    placed(&controller, 20).await;
    let run = async |what: &str, holds: &dyn Fn(&Status) -> bool| {
        eventually(what, || async {
            clock.advance(Duration::from_millis(20));
            holds(&controller.status())
        })
        .await;
    };
    // Between two sessions the broker is not shown at all.
    let shown = |status: &Status, illness| {
        status
            .brokers
            .get(&BrokerId(2))
            .filter(|shown| shown.illness == illness)
            .map(|shown| shown.session)
    };
    ill.lock().insert(BrokerId(2), ProbeError::Refused);
    run("refused", &|status| {
        shown(status, Some(Illness::Refused)).is_some() && status.unplaced == 0
    })
    .await;
    assert_eq!(load(&wishes(&world).await, 1), 20);
    ill.lock().remove(&BrokerId(2));
    run("well again", &|status| shown(status, None).is_some()).await;
    ill.lock().insert(BrokerId(2), ProbeError::Timeout);
    run("silent", &|status| shown(status, Some(Illness::Silent)).is_some()).await;
    let again = broker(&world, 2).await;
    assert_ne!(again.id(), two.id());
    ill.lock().clear();
    run("another session is well", &|status| {
        shown(status, None) == Some(again.id())
    })
    .await;
    controller.shutdown().await;
}

/// Takes the session out of every wish that names it, as its broker does once it has handed over.
async fn hand_over(world: &World, session: SessionId) -> usize {
    let (entries, _) = scan(&*world.store, keys::WISHES, 100_000).await.unwrap();
    let mut handed = 0;
    for entry in entries {
        let wish: PlacementRecord = decode(&entry).unwrap();
        if wish.from_session == session.0 {
            let next = PlacementRecord {
                from_session: 0,
                ..wish
            };
            let txn = Txn::new()
                .when(crate::store::Compare::unchanged(&entry))
                .then(Op::put(entry.key.clone(), encode(&next)));
            handed += usize::from(world.store.txn(txn).await.unwrap().succeeded);
        }
    }
    handed
}

async fn say_drained(session: &Session, id: u32) {
    let record = BrokerRecord {
        id,
        control_address: format!("b{id}:1"),
        draining: true,
        ..Default::default()
    };
    session.update_broker(&record).await.unwrap();
}

#[tokio::test]
async fn a_drained_broker_hands_over_in_bounded_steps_and_gets_nothing_new() {
    let world = World::new().await;
    let (one, _two) = (broker(&world, 1).await, broker(&world, 2).await);
    let controller = lead(&world, "c");
    topic(&world, "a", 300).await;
    placed(&controller, 300).await;
    shows(&controller, "settled", |status| status.unplaced == 0).await;
    say_drained(&one, 1).await;
    let mut handed = 0;
    let drained = async {
        while handed < 150 {
            let (entries, _) = scan(&*world.store, keys::WISHES, 100_000).await.unwrap();
            let moving = entries.iter().filter(|entry| {
                let wish: PlacementRecord = decode(entry).unwrap();
                wish.from_session != 0
            });
            assert!(moving.count() <= 64);
            handed += hand_over(&world, one.id()).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, drained)
        .await
        .expect("all are handed over");
    assert_eq!((load(&wishes(&world).await, 1), handed), (0, 150));
    topic(&world, "b", 10).await;
    placed(&controller, 310).await;
    assert_eq!(load(&wishes(&world).await, 1), 0);
    let (entry, _) = world.store.get(keys::MOVES).await.unwrap();
    let moves: forebay_proto::stored::MovesRecord = decode(&entry.unwrap()).unwrap();
    let moved: u32 = moves.moves.iter().map(|one| one.partitions).sum();
    assert!(moves.moves.len() <= 32 && moved == 150, "{moves:?}");
    assert!(moves.moves.iter().all(|one| one.why == "broker 1 is drained"));
    controller.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_ends_while_it_is_drained_is_not_waited_for() {
    let world = World::new().await;
    let (one, _two) = (broker(&world, 1).await, broker(&world, 2).await);
    let controller = lead(&world, "c");
    topic(&world, "a", 20).await;
    placed(&controller, 20).await;
    say_drained(&one, 1).await;
    let waits = async || {
        let (entries, _) = scan(&*world.store, keys::WISHES, 100_000).await.unwrap();
        let wishes = entries
            .iter()
            .map(|entry| decode::<PlacementRecord>(entry).unwrap());
        wishes.filter(|wish| wish.from_session != 0).count()
    };
    eventually("moves are under way", || async { waits().await == 10 }).await;
    one.close().await.unwrap();
    eventually("nobody waits", || async { waits().await == 0 }).await;
    assert_eq!(load(&wishes(&world).await, 2), 20);
    controller.shutdown().await;
}

#[tokio::test]
async fn of_two_controllers_one_leads_and_the_other_takes_over() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let first = lead(&world, "c1");
    let before = shows(&first, "c1 leads", |status| status.leader).await;
    let second = lead(&world, "c2");
    topic(&world, "a", 5).await;
    placed(&first, 5).await;
    assert!(!second.status().leader);
    let (entry, _) = world.store.get(keys::CONTROLLER).await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(decode::<ControllerRecord>(&entry).unwrap().id, "c1");
    assert_eq!(before.election, Some(entry.create_revision));
    world.store.lease_revoke(entry.lease.unwrap()).await.unwrap();
    // Either may win the next election; whichever does, there is one, and it is another.
    eventually("a new leader", || async {
        let leaders: Vec<_> = [&first, &second]
            .iter()
            .filter_map(|one| one.status().election)
            .collect();
        leaders.len() == 1 && Some(leaders[0]) > before.election
    })
    .await;
    first.shutdown().await;
    shows(&second, "c2 leads", |status| status.leader).await;
    topic(&world, "b", 5).await;
    placed(&second, 10).await;
    second.shutdown().await;
}

/// Its lease would last for five seconds more.
#[tokio::test]
async fn a_leader_whose_address_refuses_after_it_answered_is_replaced_and_one_that_never_answered_is_not() {
    for (before, after, replaced) in [
        (Ok(()), Err(ProbeError::Refused), true),
        (Ok(()), Err(ProbeError::Timeout), false),
        (Err(ProbeError::Refused), Err(ProbeError::Refused), false),
    ] {
        let world = World::new().await;
        let first = lead(&world, "c1");
        let begun = shows(&first, "c1 leads", |status| status.leader).await;
        let answers = Arc::new(Mutex::new((before, 0)));
        let asked = Arc::clone(&answers);
        let probes = Probes {
            broker: probe(&Ill::default()),
            leader: Arc::new(move |_| {
                let mut answers = asked.lock();
                answers.1 += 1;
                std::future::ready(answers.0).boxed()
            }),
        };
        let clock = ManualClock::new(0);
        let left = Left::default();
        let holders = Holders {
            brokers: ask(&left),
            nodes: ask(&left),
        };
        let store = Arc::clone(&world.store);
        let second = controller_with(&world, store, Arc::new(clock.clone()), probes, holders, "c2");
        let pinged = async |times: u32| {
            eventually("pings", || async {
                clock.advance(Duration::from_millis(100));
                answers.lock().1 >= times
            })
            .await;
        };
        pinged(3).await;
        assert_eq!(first.status().election, begun.election);
        *answers.lock() = (after, 0);
        if replaced {
            eventually("another leadership", || async {
                clock.advance(Duration::from_millis(100));
                let leader = [&first, &second]
                    .into_iter()
                    .find_map(|one| one.status().election);
                leader > begun.election
            })
            .await;
        } else {
            pinged(10).await;
            assert_eq!(first.status().election, begun.election, "{before:?}, {after:?}");
        }
        first.shutdown().await;
        second.shutdown().await;
    }
}

#[tokio::test]
async fn a_leader_whose_key_was_taken_changes_nothing_and_stands_again() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let controller = lead(&world, "c");
    let before = shows(&controller, "leads", |status| status.leader).await;
    let usurper = encode(&ControllerRecord {
        id: "usurper".to_owned(),
    });
    let delete = Txn::new().then(Op::delete(keys::CONTROLLER));
    world.store.txn(delete.clone()).await.unwrap();
    let put = Txn::new()
        .when(crate::store::Compare::absent(keys::CONTROLLER))
        .then(Op::put(keys::CONTROLLER, usurper));
    if world.store.txn(put).await.unwrap().succeeded {
        shows(&controller, "deposed", |status| !status.leader).await;
        let made = topic(&world, "a", 5).await;
        assert_eq!(wishes(&world).await, BTreeMap::new());
        world.store.txn(delete).await.unwrap();
        assert_eq!(made.partition_ids.len(), 5);
    } else {
        topic(&world, "a", 5).await;
    }
    let status = placed(&controller, 5).await;
    assert!(status.election > before.election);
    controller.shutdown().await;
}

#[tokio::test]
async fn partitions_are_placed_whatever_becomes_of_the_transactions() {
    for fault in UNKNOWNS.into_iter().chain([Fault::NotSent]) {
        let world = World::new().await;
        let _one = broker(&world, 1).await;
        topic(&world, "a", 150).await;
        // The election's own transaction passes, then each chunk meets the fault once.
        let faults = [Fault::Pass, fault, fault, Fault::Pass, fault];
        let clock = ManualClock::new(0);
        let controller = controller(
            &world,
            world.faulty(faults),
            Arc::new(clock.clone()),
            &Ill::default(),
            "c",
        );
        eventually("all partitions are placed", || async {
            clock.advance(Duration::from_millis(50));
            let status = controller.status();
            status.partitions == 150 && status.unplaced == 0
        })
        .await;
        assert_eq!(load(&wishes(&world).await, 1), 150, "{fault:?}");
        controller.shutdown().await;
    }
}

#[tokio::test]
async fn an_election_of_unknown_outcome_is_won_or_repeated() {
    for fault in UNKNOWNS {
        let world = World::new().await;
        let clock = Arc::new(SystemClock::new());
        let controller = controller(&world, world.faulty([fault]), clock, &Ill::default(), "c");
        let status = shows(&controller, "leads", |status| status.leader).await;
        let (entry, _) = world.store.get(keys::CONTROLLER).await.unwrap();
        assert_eq!(
            entry.map(|entry| entry.create_revision),
            status.election,
            "{fault:?}"
        );
        controller.shutdown().await;
    }
}

#[tokio::test]
async fn a_new_leader_waits_a_moment_for_brokers_that_it_has_never_seen() {
    let world = World::new().await;
    let (one, two) = (broker(&world, 1).await, broker(&world, 2).await);
    let first = lead(&world, "c1");
    topic(&world, "a", 10).await;
    placed(&first, 10).await;
    let before = wishes(&world).await;
    first.shutdown().await;
    drop((one.close().await, two.close().await));

    let clock = ManualClock::new(0);
    let ill = Ill::default();
    let second = controller(
        &world,
        Arc::clone(&world.store),
        Arc::new(clock.clone()),
        &ill,
        "c2",
    );
    let _one = broker(&world, 1).await;
    topic(&world, "b", 1).await;
    // The new partition is placed, so a plan was made; the old wishes were left alone.
    shows(&second, "b is placed", |status| {
        status.partitions == 11 && status.unplaced == 5
    })
    .await;
    let after = wishes(&world).await;
    assert!(before.iter().all(|(id, broker)| after[id] == *broker));
    eventually("settled", || async {
        clock.advance(Duration::from_millis(50));
        second.status().unplaced == 0
    })
    .await;
    assert_eq!(load(&wishes(&world).await, 1), 11);
    second.shutdown().await;
}

async fn storage_node(world: &World, id: u32, state: NodeState) {
    let record = NodeRecord {
        id,
        control_address: format!("n{id}:1"),
        state: state as i32,
        ..NodeRecord::default()
    };
    let put = Op::put(keys::node(NodeId(id)), encode(&record));
    world.store.txn(Txn::new().then(put)).await.unwrap();
}

#[tokio::test]
async fn a_deleted_record_goes_when_neither_owner_nor_any_storage_node_has_anything_left() {
    let world = World::new().await;
    let one = broker(&world, 1).await;
    for (node, state) in [
        (1, NodeState::Active),
        (2, NodeState::Gone),
        (3, NodeState::Draining),
    ] {
        storage_node(&world, node, state).await;
    }
    let made = topic(&world, "a", 2).await;
    let [owned, other] = made.partition_ids[..] else {
        panic!("{made:?}")
    };
    // One of a broker that lives, one of a session that has ended.
    for (id, number, session) in [(owned, 0, one.id()), (other, 1, SessionId(5))] {
        let record = Partition::new(id, made.id, number);
        let granted = record.grant(BrokerId(1), session, 1).unwrap();
        let put = Op::put(keys::partition(id), granted.encode());
        world.store.txn(Txn::new().then(put)).await.unwrap();
    }
    let left = Left::default();
    let says = |address: &str, here: &[PartitionId]| {
        let here = Some(here.iter().copied().collect());
        left.lock().entry(address.to_owned()).or_default().0 = here;
    };
    says("b1:1", &[owned]);
    says("n1:1", &[other]);
    let clock = ManualClock::new(0);
    let holders = Holders {
        brokers: ask(&left),
        nodes: ask(&left),
    };
    let ill = Ill::default();
    let store = Arc::clone(&world.store);
    let controller = controller_with(&world, store, Arc::new(clock.clone()), probes(&ill), holders, "c");
    topics::delete(&*world.store, "a").await.unwrap();
    // Waits until somebody was asked again, twice: the first answer may be older than the change.
    let asked_again = async |address: &str| {
        let times = || left.lock().get(address).map_or(0, |(_, times)| *times);
        let before = times();
        eventually(address, || async {
            clock.advance(Duration::from_millis(200));
            times() >= before + 2
        })
        .await;
    };
    let ids = async || {
        let records = records(&world).await;
        assert!(records.iter().all(|record| record.deleted));
        records.iter().map(|record| record.id).collect::<Vec<_>>()
    };
    // The broker owns one; node 1 holds the other, so node 3 need not even be asked.
    asked_again("n1:1").await;
    assert_eq!(ids().await, [owned, other]);
    says("n1:1", &[]);
    // Node 3 does not answer.
    asked_again("n3:1").await;
    assert_eq!(ids().await, [owned, other]);
    says("n3:1", &[]);
    eventually("the other is gone", || async {
        clock.advance(Duration::from_millis(200));
        ids().await == [owned]
    })
    .await;
    asked_again("b1:1").await;
    assert_eq!(ids().await, [owned]);
    assert_eq!(controller.status().topics_draining, 1);
    says("b1:1", &[]);
    eventually("the topic is gone", || async {
        clock.advance(Duration::from_millis(200));
        world.store.get(&keys::topic(made.id)).await.unwrap().0.is_none()
    })
    .await;
    assert_eq!(ids().await, []);
    assert!(!left.lock().contains_key("n2:1"), "a node that is gone was asked");
    controller.shutdown().await;
}

#[tokio::test]
async fn a_deleted_topic_leaves_only_records_that_were_granted_and_they_are_marked() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let made = topic(&world, "a", 130).await;
    let kept = topic(&world, "b", 3).await;
    // It never says what it holds.
    storage_node(&world, 1, NodeState::Active).await;
    let controller = lead(&world, "c");
    placed(&controller, 133).await;
    let granted = Partition::new(made.partition_ids[70], made.id, 70)
        .grant(BrokerId(1), SessionId(5), 1)
        .unwrap();
    let put = Op::put(keys::partition(granted.id), granted.encode());
    world.store.txn(Txn::new().then(put)).await.unwrap();
    topics::delete(&*world.store, "a").await.unwrap();
    shows(&controller, "removed", |status| {
        status.topics == 1 && status.topics_deleting == 0
    })
    .await;
    let wished: BTreeSet<PartitionId> = wishes(&world).await.into_keys().collect();
    assert_eq!(wished, kept.partition_ids.iter().copied().collect());
    let left = records(&world).await;
    assert_eq!(left.len(), 4);
    let marked: Vec<PartitionId> = left.iter().filter(|one| one.deleted).map(|one| one.id).collect();
    assert_eq!(marked, [granted.id]);
    assert!(
        world.store.get(&keys::topic(made.id)).await.unwrap().0.is_some(),
        "a record of it is left"
    );

    topics::delete(&*world.store, "b").await.unwrap();
    eventually("b is gone", || async {
        world.store.get(&keys::topic(kept.id)).await.unwrap().0.is_none()
    })
    .await;
    assert_eq!(records(&world).await.len(), 1);
    controller.shutdown().await;
}

#[tokio::test]
async fn what_an_interrupted_creation_leaves_is_removed_after_a_while() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let kept = topic(&world, "kept", 2).await;
    let faulty = world.faulty([Fault::Pass, Fault::Pass, Fault::Pass, Fault::NotSent]);
    topics::create(&*faulty, &OsRandom, "torn", 70, BTreeMap::new())
        .await
        .unwrap_err();
    assert_eq!(records(&world).await.len(), 72);

    let clock = ManualClock::new(0);
    let ill = Ill::default();
    let controller = controller(
        &world,
        Arc::clone(&world.store),
        Arc::new(clock.clone()),
        &ill,
        "c",
    );
    placed(&controller, 2).await;
    let pass = async |time: Duration| {
        let until = clock.monotonic() + time;
        eventually("time passes", || async {
            clock.advance(Duration::from_secs(1));
            clock.monotonic() >= until
        })
        .await;
    };
    assert!(ORPHAN_AGE < SWEEP_EVERY);
    pass(ORPHAN_AGE).await;
    assert_eq!(records(&world).await.len(), 72, "not yet");
    eventually("orphans are removed", || async {
        clock.advance(Duration::from_secs(1));
        records(&world).await.len() == 2
    })
    .await;
    let left: Vec<PartitionId> = records(&world).await.iter().map(|one| one.id).collect();
    assert_eq!(left, kept.partition_ids);
    eventually("the claim is removed", || async {
        scan(&*world.store, keys::TOPICS, 10).await.unwrap().0.len() == 1
    })
    .await;
    controller.shutdown().await;
}

#[tokio::test]
async fn what_an_interrupted_growth_leaves_is_removed_after_a_while() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let kept = topic(&world, "kept", 2).await;
    // The counter, two chunks of records, and then the topic's list is never sent.
    let faulty = world.faulty([Fault::Pass, Fault::Pass, Fault::Pass, Fault::NotSent]);
    topics::add_partitions(&*faulty, "kept", 72).await.unwrap_err();
    assert_eq!(records(&world).await.len(), 72);
    let clock = ManualClock::new(0);
    let controller = controller(
        &world,
        Arc::clone(&world.store),
        Arc::new(clock.clone()),
        &Ill::default(),
        "c",
    );
    placed(&controller, 2).await;
    let grown = topics::add_partitions(&*world.store, "kept", 3).await.unwrap();
    placed(&controller, 3).await;
    eventually("strays are removed", || async {
        clock.advance(Duration::from_secs(1));
        records(&world).await.len() == 3
    })
    .await;
    let left: Vec<PartitionId> = records(&world).await.iter().map(|one| one.id).collect();
    assert_eq!(left, grown.partition_ids);
    assert_eq!(grown.partition_ids[..2], kept.partition_ids[..]);
    assert_eq!(topics::get(&*world.store, "kept").await.unwrap(), grown);
    controller.shutdown().await;
}

#[tokio::test]
async fn history_lost_to_compaction_is_made_up_for_by_reading_everything_again() {
    let world = World::new().await;
    let made = topic(&world, "a", 3).await;
    let world = world.reopen().await;
    let _one = broker(&world, 1).await;
    let faulty = world.faulty([]);
    // The first reading's watches, and those of two more.
    faulty
        .stale_watches
        .store(12, std::sync::atomic::Ordering::Relaxed);
    let clock = Arc::new(SystemClock::new());
    let store: Arc<dyn MetaStore> = Arc::<crate::faults::Faulty>::clone(&faulty);
    let controller = controller(&world, store, clock, &Ill::default(), "c");
    let first = placed(&controller, 3).await;
    topic(&world, "b", 3).await;
    let last = placed(&controller, 6).await;
    assert_eq!(faulty.stale_watches.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(first.election, last.election, "it leads all the while");
    assert!(made.partition_ids.iter().all(|id| id.0 <= 3));
    controller.shutdown().await;
}

#[tokio::test]
async fn damaged_records_do_not_stop_the_placement_of_others() {
    let world = World::new().await;
    let _one = broker(&world, 1).await;
    let made = topic(&world, "a", 3).await;
    let torn = Txn::new()
        .then(Op::put(keys::broker(BrokerId(9)), "garbage"))
        .then(Op::put(keys::topic(Uuid::from_u128(9)), "garbage"))
        .then(Op::put(keys::wish(made.partition_ids[0]), "garbage"))
        .then(Op::put("/t/none", "garbage"));
    world.store.txn(torn).await.unwrap();
    let controller = lead(&world, "c");
    placed(&controller, 3).await;
    assert_eq!(load(&wishes(&world).await, 1), 3);
    controller.shutdown().await;
}

#[tokio::test]
async fn a_closed_store_ends_the_controller_without_an_error() {
    let world = World::new().await;
    let controller = lead(&world, "c");
    shows(&controller, "leads", |status| status.leader).await;
    world.store.close().await;
    tokio::time::timeout(DEADLINE, controller.tasks.wait())
        .await
        .expect("ends");
    assert_eq!(controller.status(), Status::default());
    assert!(world.tasks.shutdown_requested().now_or_never().is_none());
}

#[test]
fn a_view_of_100_000_partitions_is_planned_at_once() {
    let mut view = view::View::default();
    let mut revision = 1;
    let mut put = |view: &mut view::View, key: String, value| {
        revision += 1;
        let entry = crate::store::Entry {
            key,
            value,
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            version: 1,
            lease: None,
        };
        let kind = crate::store::WatchKind::Put(entry);
        view.apply(&crate::store::WatchEvent {
            revision: Revision(revision),
            kind,
        });
    };
    for topic in 0..10_u64 {
        let id = Uuid::from_u128(u128::from(topic));
        let record = TopicRecord {
            id: id.as_bytes().to_vec().into(),
            partition_ids: (topic * 10_000..(topic + 1) * 10_000).collect(),
            ..Default::default()
        };
        put(&mut view, keys::topic(id), encode(&record));
    }
    let live: BTreeSet<BrokerId> = (1..=20).map(BrokerId).collect();
    let plan = plan_placement(view.wanted(), &live, |_| true);
    assert_eq!(plan.len(), 100_000);
    for step in &plan {
        let wish = encode(&PlacementRecord {
            broker: step.to.0,
            from_session: 0,
        });
        put(&mut view, keys::wish(step.partition), wish);
    }
    assert_eq!(view.wanted_count(), 100_000);
    assert!(live.iter().all(|broker| view.wished_at(*broker) == 5_000));
    let left: BTreeSet<BrokerId> = live.into_iter().skip(1).collect();
    assert_eq!(plan_placement(view.wanted(), &left, |_| true).len(), 5_000);
}
