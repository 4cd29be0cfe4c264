//! The etcd store: the contract against a real etcd, and what etcd's failures do to it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_meta::store::{
    ConnectError, EtcdOptions, EtcdStore, MetaStore, Op, Range, ReadError, Regressed, Revision, Txn,
    TxnError, WatchError,
};
use forebay_runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::contract::contract;
use crate::etcd_process::{Etcd, copy_dir};
use crate::support::{DEADLINE, World, events, eventually, line, put, value};

fn options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        call_timeout: Duration::from_secs(2),
        ..EtcdOptions::new(endpoints, "c1")
    }
}

async fn connect(etcd: &Etcd) -> EtcdStore {
    within(options(vec![etcd.endpoint()])).await
}

async fn within(options: EtcdOptions) -> EtcdStore {
    EtcdStore::connect_within(options, &Tasks::new("test"), DEADLINE)
        .await
        .unwrap()
}

async fn world() -> World {
    let etcd = Etcd::start();
    let store = connect(&etcd).await;
    World {
        store: Arc::new(store),
        pass: Box::new(|_| {}),
        _keep: Box::new(etcd),
    }
}

contract!(world);

#[tokio::test]
async fn an_etcd_that_is_away_at_start_is_named() {
    let etcd = Etcd::start();
    let gone = {
        let mut other = Etcd::start();
        other.kill();
        other.endpoint()
    };
    let started = Instant::now();
    let error = EtcdStore::connect(options(vec![gone.clone()]), &Tasks::new("test"))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }));
    assert!(
        error
            .to_string()
            .starts_with(&format!("no answer from etcd at {gone}: ")),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(5));

    let store = within(options(vec![gone, etcd.endpoint()])).await;
    put(&store, "/k", "one of two endpoints is enough").await;
    store.close().await;
}

#[tokio::test]
async fn a_wrong_option_is_named() {
    let error = EtcdStore::connect(EtcdOptions::new(Vec::new(), "c1"), &Tasks::new("test")).await;
    assert_eq!(error.unwrap_err().to_string(), "etcd endpoints \"\": none given");
    let mut wrong = options(vec!["http://127.0.0.1:1".to_owned()]);
    wrong.prefix = "/forebay/".to_owned();
    let error = EtcdStore::connect(wrong, &Tasks::new("test")).await.unwrap_err();
    let expected = "etcd prefix \"/forebay/\": must begin with / and not end with it";
    assert_eq!(error.to_string(), expected);
    let wrong = options(vec!["http://not a host".to_owned()]);
    let error = EtcdStore::connect(wrong, &Tasks::new("test")).await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("etcd endpoint \"http://not a host\": "),
        "{error}"
    );
}

#[tokio::test]
async fn clusters_do_not_see_each_others_keys() {
    let etcd = Etcd::start();
    let one = connect(&etcd).await;
    let mut other = options(vec![etcd.endpoint()]);
    other.prefix = "/forebay/c10".to_owned();
    let other = within(other).await;
    put(&one, "/k", "one").await;
    let before = put(&other, "/k", "other").await.revision;
    let mut watch = one.watch("/", Revision(0));
    assert_eq!(value(&one, "/k").await.unwrap().as_deref(), Some("one"));
    assert_eq!(one.range(Range::new("/")).await.unwrap().entries.len(), 1);
    let next = put(&one, "/l", "later").await.revision;
    let seen = events(&mut watch, 2).await;
    assert_eq!(seen[1], (next, "/l=later".to_owned()));
    assert!(next > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_without_gaps_through_kills_of_etcd() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let before = put(&store, "/w/start", "0").await.revision;
    let mut watch = store.watch("/w/", before);
    let (mut expected, mut seen) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for n in 0..10 {
            let value = format!("{round}.{n}");
            let reply = put(&store, "/w/k", &value).await;
            expected.push((reply.revision, format!("/w/k={value}")));
            if n < 5 {
                seen.extend(events(&mut watch, 1).await);
            }
        }
        etcd.kill();
        let started = Instant::now();
        let read = store.get("/w/k").await;
        assert!(matches!(read, Err(ReadError::Unavailable(_))), "{read:?}");
        let txn = store.txn(Txn::new().then(Op::put("/w/k", "lost"))).await;
        assert!(
            matches!(txn, Err(TxnError::Unavailable(_))),
            "nothing listens: {txn:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "{:?}",
            started.elapsed()
        );
        etcd.run();
        eventually("etcd is back", || async { store.get("/w/k").await.ok() }).await;
        seen.extend(events(&mut watch, 5).await);
    }
    assert_eq!(seen, expected);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_leaves_an_etcd_that_hangs() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let before = put(&store, "/w/start", "0").await.revision;
    let mut watch = store.watch("/w/", before);
    put(&store, "/w/k", "1").await;
    events(&mut watch, 1).await;
    let waiting = tokio::spawn(async move { events(&mut watch, 1).await });
    etcd.signal("-STOP");
    let read = store.get("/w/k").await;
    assert!(matches!(read, Err(ReadError::Unavailable(_))), "{read:?}");
    etcd.kill();
    etcd.run();
    eventually("etcd is back", || async { store.get("/w/k").await.ok() }).await;
    let revision = put(&store, "/w/k", "2").await.revision;
    assert_eq!(waiting.await.unwrap(), [(revision, "/w/k=2".to_owned())]);
}

#[tokio::test]
async fn a_transaction_without_an_answer_in_time_is_unknown() {
    let etcd = Etcd::start();
    let store = connect(&etcd).await;
    put(&store, "/k", "before").await;
    etcd.signal("-STOP");
    let started = Instant::now();
    let txn = store.txn(Txn::new().then(Op::put("/k", "after"))).await;
    assert!(matches!(txn, Err(TxnError::Unknown(_))), "{txn:?}");
    assert!(started.elapsed() < Duration::from_secs(4));
    etcd.signal("-CONT");
    eventually("the outcome can be read", || async {
        value(&store, "/k").await.ok()
    })
    .await;
}

/// Forwards to etcd and, once told to, cuts a connection at the first byte that comes back.
async fn cutting_proxy(to: u16, cut: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let cut = Arc::clone(&cut);
            tokio::spawn(async move {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let forth = async { tokio::io::copy(&mut from_client, &mut to_server).await.is_ok() };
                let back = async {
                    let mut buffer = vec![0; 16 << 10];
                    loop {
                        let count = from_server.read(&mut buffer).await.unwrap_or(0);
                        if count == 0 || cut.load(Ordering::SeqCst) {
                            return false;
                        }
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            return false;
                        }
                    }
                };
                tokio::select! { _ = forth => {}, _ = back => {} }
            });
        }
    });
    port
}

/// etcd applies a transaction that is sent twice twice, and a client that resends after a lost
/// answer then reports the second one's result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_answer_is_lost_is_unknown_and_not_sent_again() {
    let etcd = Etcd::start();
    let direct = connect(&etcd).await;
    let cut = Arc::new(AtomicBool::new(false));
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let port = cutting_proxy(etcd.port(), Arc::clone(&cut)).await;
        endpoints.push(format!("http://127.0.0.1:{port}"));
    }
    let store = within(options(endpoints)).await;
    for round in 0..20 {
        // Connected before the cut, so that the transaction is sent for sure.
        store.get("/k").await.unwrap();
        cut.store(true, Ordering::SeqCst);
        let txn = store
            .txn(Txn::new().then(Op::put(format!("/k/{round:02}"), "once")))
            .await;
        assert!(matches!(txn, Err(TxnError::Unknown(_))), "{txn:?}");
        cut.store(false, Ordering::SeqCst);
    }
    let applied = direct.range(Range::new("/k/")).await.unwrap().entries;
    assert!(!applied.is_empty(), "the answers were lost, not the transactions");
    for entry in applied {
        assert_eq!(entry.version, 1, "{} was sent more than once", entry.key);
    }
}

#[tokio::test]
async fn a_compacted_revision_is_reported_to_watches_and_pinned_reads() {
    let etcd = Etcd::start();
    let store = connect(&etcd).await;
    let first = put(&store, "/k", "1").await.revision;
    put(&store, "/k", "2").await;
    let third = put(&store, "/k", "3").await.revision;
    let mut live = store.watch("/k", first);
    events(&mut live, 2).await;
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    client
        .compact(i64::try_from(third.0).unwrap(), None)
        .await
        .unwrap();
    let compacted = Some(Err(WatchError::Compacted { at: third }));
    let mut late = store.watch("/k", first);
    assert_eq!(late.next().await, compacted);
    assert!(late.next().await.is_none());
    let pinned = store.range(Range::new("/k").at(first)).await;
    assert!(matches!(pinned, Err(ReadError::Compacted { .. })), "{pinned:?}");
    let fourth = put(&store, "/k", "4").await.revision;
    assert_eq!(
        events(&mut live, 1).await,
        [(fourth, "/k=4".to_owned())],
        "it had caught up"
    );
}

/// After the notice of progress the watch starts above the compacted revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_watch_moves_on_with_etcds_progress_notices() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let before = put(&store, "/w/k", "1").await.revision;
    let mut watch = store.watch("/w/", before);
    let elsewhere = put(&store, "/elsewhere", "1").await.revision;
    let batch = tokio::time::timeout(DEADLINE, watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(batch.events.is_empty() && batch.revision >= elsewhere);
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    client
        .compact(i64::try_from(elsewhere.0).unwrap(), None)
        .await
        .unwrap();
    etcd.kill();
    etcd.run();
    eventually("etcd is back", || async { store.get("/w/k").await.ok() }).await;
    let later = put(&store, "/w/k", "2").await.revision;
    assert_eq!(events(&mut watch, 1).await, [(later, "/w/k=2".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_a_backup_is_refused_for_good() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    put(&store, "/k", "in the backup").await;
    etcd.kill();
    let backup = etcd.scratch().join("backup");
    copy_dir(&etcd.data(), &backup);
    etcd.run();
    eventually("etcd is back", || async { store.get("/k").await.ok() }).await;
    let mut seen = Revision(0);
    for n in 0..5 {
        seen = put(&store, "/k", &n.to_string()).await.revision;
    }
    assert_eq!(store.seen(), seen);
    let mut watch = store.watch("/k", seen);
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    etcd.kill();
    std::fs::remove_dir_all(etcd.data()).unwrap();
    copy_dir(&backup, &etcd.data());
    etcd.run();

    // The watch finds out by itself.
    let ended = loop {
        match tokio::time::timeout(DEADLINE, watch.next())
            .await
            .unwrap()
            .unwrap()
        {
            Ok(batch) => assert!(batch.events.is_empty(), "{:?}", line(&batch.events[0])),
            Err(error) => break error,
        }
    };
    let WatchError::Regressed(regressed) = ended else {
        panic!("{ended:?}")
    };
    let Regressed::Revision { seen: told, got } = regressed else {
        panic!("{regressed:?}")
    };
    assert!(told == seen && got < seen, "{regressed}");
    assert_eq!(store.get("/k").await, Err(ReadError::Regressed(regressed)));
    let txn = store.txn(Txn::new().then(Op::put("/k", "x"))).await;
    assert_eq!(txn, Err(TxnError::Regressed(regressed)));
    tokio::time::timeout(DEADLINE, keeper.lost()).await.unwrap();

    // Another process that remembers the revision refuses it at once.
    let remembering = EtcdOptions {
        seen,
        ..options(vec![etcd.endpoint()])
    };
    let error = EtcdStore::connect(remembering, &Tasks::new("test"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("went back in time"), "{error}");
    let fresh = connect(&etcd).await;
    assert_eq!(
        value(&fresh, "/k").await.unwrap().as_deref(),
        Some("in the backup")
    );
}

#[tokio::test]
async fn another_etcd_at_the_same_address_is_refused() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    put(&store, "/k", "v").await;
    etcd.wipe();
    etcd.run();
    let error = eventually("etcd is back", || async {
        match store.get("/k").await {
            Err(ReadError::Unavailable(_)) => None,
            other => Some(other),
        }
    })
    .await;
    let replaced = matches!(error, Err(ReadError::Regressed(Regressed::Cluster { .. })));
    assert!(replaced, "{error:?}");
}

/// Writes until one is acknowledged, whatever is down at the moment.
async fn put_somehow(store: &dyn MetaStore, key: &str, value: &str) {
    eventually("a write is acknowledged", || async {
        store
            .txn(Txn::new().then(Op::put(key, value.to_owned())))
            .await
            .ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_watch_and_lease_outlive_every_member_of_a_cluster_in_turn() {
    let mut members = Etcd::start_cluster(3);
    let endpoints = members.iter().map(Etcd::endpoint).collect();
    let store = within(options(endpoints)).await;
    let before = put(&store, "/w/start", "0").await.revision;
    let keeper = store.lease_grant(Duration::from_secs(10)).await.unwrap();
    let leased = Op::put_leased("/b/1", "alive", keeper.id());
    store.txn(Txn::new().then(leased)).await.unwrap();
    let mut watch = store.watch("/w/", before);
    let mut seen = Vec::new();
    let mut last = String::new();
    for (round, hang) in [false, true, false].into_iter().enumerate() {
        // One of the three rounds meets the leader.
        if hang {
            members[round].signal("-STOP");
        } else {
            members[round].kill();
        }
        for n in 0..5 {
            last = format!("{round}.{n}");
            put_somehow(&store, "/w/k", &last).await;
        }
        while !seen.iter().any(|(_, event)| *event == format!("/w/k={last}")) {
            seen.extend(events(&mut watch, 1).await);
        }
        members[round].kill();
        members[round].run();
    }
    let (entry, now) = store.get("/w/k").await.unwrap();
    let newest = entry.unwrap().mod_revision;
    while seen.last().is_none_or(|(revision, _)| *revision < newest) {
        seen.extend(events(&mut watch, 1).await);
    }
    // A write of unknown outcome may be there once more: history says which ones are.
    let mut fresh = store.watch("/w/", before);
    assert_eq!(events(&mut fresh, seen.len()).await, seen);
    assert!(newest <= now);
    assert!(!keeper.is_lost());
    assert_eq!(value(&store, "/b/1").await.unwrap().as_deref(), Some("alive"));
    store.close().await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_is_lost_in_its_time() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let keeper = store.lease_grant(Duration::from_secs(2)).await.unwrap();
    etcd.kill();
    let killed = Instant::now();
    tokio::time::timeout(DEADLINE, keeper.lost()).await.unwrap();
    assert!(killed.elapsed() <= keeper.ttl() + Duration::from_millis(500));
    etcd.run();
    eventually("etcd is back", || async { store.get("/k").await.ok() }).await;
    assert!(keeper.is_lost(), "it stays lost");
}

#[tokio::test]
async fn a_lease_ends_in_no_absence_of_etcd_and_is_renewed_after_it() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let keeper = store.lease_grant(Duration::from_secs(2)).await.unwrap();
    store
        .txn(Txn::new().then(Op::put_leased("/b/1", "v", keeper.id())))
        .await
        .unwrap();
    etcd.kill();
    tokio::time::sleep(keeper.ttl() * 3).await;
    assert!(keeper.is_lost());
    etcd.run();
    eventually("etcd is back", || async { store.get("/b/1").await.ok() }).await;
    let ended = keeper.ended_token();
    let over = tokio::time::timeout(keeper.ttl() * 2, ended.cancelled()).await;
    assert!(over.is_err(), "renewed again");
    assert_eq!(value(&store, "/b/1").await.unwrap().as_deref(), Some("v"));
    // Somebody else ends it: this is told.
    store.lease_revoke(keeper.id()).await.unwrap();
    tokio::time::timeout(DEADLINE, ended.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_lease_survives_a_short_absence_of_etcd() {
    let mut etcd = Etcd::start();
    let store = connect(&etcd).await;
    let keeper = store.lease_grant(Duration::from_secs(6)).await.unwrap();
    store
        .txn(Txn::new().then(Op::put_leased("/b/1", "v", keeper.id())))
        .await
        .unwrap();
    etcd.kill();
    etcd.run();
    eventually("etcd is back", || async { store.get("/b/1").await.ok() }).await;
    let over = tokio::time::timeout(keeper.ttl() + Duration::from_secs(2), keeper.lost()).await;
    assert!(over.is_err(), "renewed again");
    assert_eq!(value(&store, "/b/1").await.unwrap().as_deref(), Some("v"));
}
