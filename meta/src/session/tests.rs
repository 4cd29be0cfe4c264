#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::failure::decode;
use crate::faults::{DEADLINE, UNKNOWNS, World};

const TTL: Duration = Duration::from_secs(5);

fn broker(address: &str) -> BrokerRecord {
    BrokerRecord {
        id: 7,
        data_address: address.to_owned(),
        ..Default::default()
    }
}

async fn stored(world: &World) -> Option<(BrokerRecord, SessionId)> {
    let (entry, _) = world.store.get(&keys::broker(BrokerId(7))).await.unwrap();
    entry.map(|entry| (decode(&entry).unwrap(), SessionId(entry.create_revision.0)))
}

async fn over(session: &Session) {
    tokio::time::timeout(DEADLINE, session.lost())
        .await
        .expect("session is over");
}

#[tokio::test]
async fn a_session_is_known_by_the_create_revision_of_its_key() {
    let world = World::new().await;
    let session = register_broker(Arc::clone(&world.store), &broker("a"), TTL)
        .await
        .unwrap();
    assert_eq!(stored(&world).await, Some((broker("a"), session.id())));
    session.update_broker(&broker("b")).await.unwrap();
    assert_eq!(stored(&world).await, Some((broker("b"), session.id())));
    session.close().await.unwrap();
    assert_eq!(stored(&world).await, None);
}

#[tokio::test]
async fn a_newer_incarnation_takes_the_key_and_the_older_one_notices() {
    let world = World::new().await;
    let old = register_broker(Arc::clone(&world.store), &broker("a"), TTL)
        .await
        .unwrap();
    let new = register_broker(Arc::clone(&world.store), &broker("b"), TTL)
        .await
        .unwrap();
    assert!(new.id() > old.id());
    over(&old).await;
    let error = old.update_broker(&broker("c")).await.unwrap_err();
    assert_eq!(
        error,
        SessionError::Over {
            key: old.key().to_owned(),
            id: old.id()
        }
    );
    drop(old);
    assert_eq!(stored(&world).await, Some((broker("b"), new.id())));
}

#[tokio::test]
async fn a_revoked_lease_ends_the_session() {
    let world = World::new().await;
    let session = register_broker(Arc::clone(&world.store), &broker("a"), TTL)
        .await
        .unwrap();
    let (entry, _) = world.store.get(session.key()).await.unwrap();
    world
        .store
        .lease_revoke(entry.unwrap().lease.unwrap())
        .await
        .unwrap();
    over(&session).await;
    assert_eq!(stored(&world).await, None);
}

#[tokio::test]
async fn a_live_session_is_not_lost_by_updates_or_by_keys_that_begin_alike() {
    let world = World::new().await;
    let record = |id: &str| ProxyRecord {
        id: id.to_owned(),
        ..Default::default()
    };
    let one = register_proxy(Arc::clone(&world.store), &record("p1"), TTL)
        .await
        .unwrap();
    let lost = tokio::spawn(one.lost());
    let ten = register_proxy(Arc::clone(&world.store), &record("p10"), TTL)
        .await
        .unwrap();
    one.update_proxy(&record("p1")).await.unwrap();
    ten.close().await.unwrap();
    assert!(!lost.is_finished());
    world
        .store
        .txn(Txn::new().then(Op::delete(one.key())))
        .await
        .unwrap();
    tokio::time::timeout(DEADLINE, lost)
        .await
        .expect("session is over")
        .unwrap();
    assert!(matches!(
        one.update_broker(&broker("x")).await,
        Err(SessionError::OtherKey { .. })
    ));
    for bad in ["", "a/b", "ü"] {
        let error = register_proxy(Arc::clone(&world.store), &record(bad), TTL)
            .await
            .unwrap_err();
        assert_eq!(error, SessionError::ProxyId(bad.to_owned()));
    }
}

#[tokio::test]
async fn unknown_outcomes_leave_one_session_that_is_ours() {
    for first in UNKNOWNS {
        for second in UNKNOWNS {
            let world = World::new().await;
            let old = register_broker(Arc::clone(&world.store), &broker("old"), TTL)
                .await
                .unwrap();
            let session = register_broker(world.faulty([first, second]), &broker("a"), TTL)
                .await
                .unwrap();
            assert_eq!(
                stored(&world).await,
                Some((broker("a"), session.id())),
                "{first:?} {second:?}"
            );
            assert_ne!(old.id(), session.id());
        }
        let world = World::new().await;
        let faulty = world.faulty([crate::faults::Fault::Pass, first]);
        let session = register_broker(faulty, &broker("a"), TTL).await.unwrap();
        session.update_broker(&broker("b")).await.unwrap();
        session.update_broker(&broker("c")).await.unwrap();
        assert_eq!(
            stored(&world).await,
            Some((broker("c"), session.id())),
            "{first:?}"
        );
    }
}

#[tokio::test]
async fn ids_that_are_handed_out_lie_above_those_of_operators_and_end() {
    let world = World::new().await;
    assert_eq!(
        allocate_broker_id(&*world.store).await,
        Ok(BrokerId(CONFIGURED_BROKER_ID_MAX + 1))
    );
    assert_eq!(
        allocate_broker_id(&*world.store).await,
        Ok(BrokerId(CONFIGURED_BROKER_ID_MAX + 2))
    );
    let left = BROKER_ID_MAX - u64::from(CONFIGURED_BROKER_ID_MAX) - 2;
    crate::counter::allocate(&*world.store, keys::BROKER_IDS, left - 1)
        .await
        .unwrap();
    assert_eq!(
        allocate_broker_id(&*world.store).await,
        Ok(BrokerId(i32::MAX.cast_unsigned()))
    );
    let error = allocate_broker_id(&*world.store).await.unwrap_err();
    assert!(matches!(error, MetaFailure::Exhausted { .. }), "{error}");
}
