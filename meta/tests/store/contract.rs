//! What every metadata store promises, each fact with keys of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_meta::store::{
    BadRequest, Compare, LEASE_TTL, LeaseError, LeaseId, MetaStore, OPS_MAX, Op, PUTS_MAX, READ_KEYS_MAX,
    Range, ReadError, Revision, TXN_BYTES_MAX, Txn, TxnError, VALUE_BYTES_MAX, WatchError, scan,
};

use crate::support::{DEADLINE, World, events, eventually, gone, put, value};

/// Makes one test of each fact, in a world of its own.
macro_rules! contract {
    ($world:path) => {
        contract!(@each $world;
            a_key_is_created_once,
            an_absent_key_reads_as_none,
            a_compare_and_swap_applies_on_the_revision_it_saw_and_on_no_other,
            a_recreated_key_has_a_new_create_revision,
            values_are_compared_byte_for_byte,
            an_empty_value_is_not_an_absent_key,
            a_transaction_applies_all_of_its_branch_or_none,
            the_branch_that_is_done_answers_its_reads,
            revisions_rise_with_changes_and_only_then,
            versions_count_puts_since_creation,
            many_keys_are_read_at_one_revision,
            a_range_is_read_by_pages_in_key_order,
            pages_at_a_pinned_revision_fit_together,
            a_range_keeps_to_its_prefix,
            a_scan_reads_everything_at_one_revision,
            a_revision_in_the_future_is_refused,
            a_watch_delivers_later_changes_once_and_in_order,
            a_watch_keeps_to_its_prefix,
            a_watch_reports_every_key_of_a_transaction_together,
            a_dropped_next_loses_no_event,
            a_lease_that_is_kept_does_not_expire,
            a_lease_without_its_keeper_expires_with_its_keys,
            a_revoked_lease_takes_its_keys_at_once,
            a_lease_revoked_by_another_is_lost,
            a_put_on_an_ended_lease_is_refused_with_all_of_its_transaction,
            a_put_without_a_lease_takes_the_key_off_it,
            a_malformed_request_is_refused_with_its_reason,
            the_largest_transaction_is_applied,
            concurrent_increments_are_counted_exactly,
            a_closed_store_answers_that_it_is_closed,
        );
    };
    (@each $world:path; $($fact:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let world = $world().await;
                crate::contract::$fact(&world).await;
                world.store.close().await;
            }
        )*
    };
}
pub(crate) use contract;

fn create(key: &str, value: &'static str) -> Txn {
    Txn::new()
        .when(Compare::absent(key))
        .then(Op::put(key, value))
        .otherwise(Op::get(key))
}

pub async fn a_key_is_created_once(world: &World) {
    let store = &*world.store;
    let first = store.txn(create("/k", "one")).await.unwrap();
    assert!(first.succeeded && first.reads.is_empty());
    let second = store.txn(create("/k", "two")).await.unwrap();
    assert!(!second.succeeded);
    let there = second.reads[0].clone().unwrap();
    assert_eq!((there.key.as_str(), &there.value[..]), ("/k", &b"one"[..]));
    assert_eq!(
        (there.create_revision, there.mod_revision),
        (first.revision, first.revision)
    );
    assert_eq!((there.version, there.lease), (1, None));
    assert_eq!(store.get("/k").await.unwrap().0, Some(there));
}

pub async fn an_absent_key_reads_as_none(world: &World) {
    let store = &*world.store;
    assert_eq!(store.get("/none").await.unwrap().0, None);
    let read = store.txn(Txn::new().then(Op::get("/none"))).await.unwrap();
    assert!(read.succeeded);
    assert_eq!(read.reads, [None]);
    store.txn(Txn::new().then(Op::delete("/none"))).await.unwrap();
}

pub async fn a_compare_and_swap_applies_on_the_revision_it_saw_and_on_no_other(world: &World) {
    let store = &*world.store;
    let created = put(store, "/k", "1").await;
    let swap = |at, to: &'static str| {
        let compare = Compare::ModRevision("/k".to_owned(), at);
        store.txn(Txn::new().when(compare).then(Op::put("/k", to)))
    };
    let swapped = swap(created.revision, "2").await.unwrap();
    assert!(swapped.succeeded);
    assert!(!swap(created.revision, "3").await.unwrap().succeeded);
    assert!(!swap(Revision(0), "3").await.unwrap().succeeded);
    assert!(!swap(Revision(u64::MAX), "3").await.unwrap().succeeded);
    let (entry, _) = store.get("/k").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(&entry.value[..], b"2");
    assert_eq!(
        (entry.create_revision, entry.mod_revision),
        (created.revision, swapped.revision)
    );
    let unchanged = Txn::new()
        .when(Compare::unchanged(&entry))
        .then(Op::put("/k", "4"));
    assert!(store.txn(unchanged).await.unwrap().succeeded);
}

pub async fn a_recreated_key_has_a_new_create_revision(world: &World) {
    let store = &*world.store;
    let first = put(store, "/b/1", "session").await.revision;
    let guarded = |session: Revision| {
        let compare = Compare::CreateRevision("/b/1".to_owned(), session);
        store.txn(Txn::new().when(compare).then(Op::put("/p/1", "mine")))
    };
    put(store, "/b/1", "refreshed").await;
    assert!(
        guarded(first).await.unwrap().succeeded,
        "a refresh keeps the session"
    );
    store.txn(Txn::new().then(Op::delete("/b/1"))).await.unwrap();
    assert!(!guarded(first).await.unwrap().succeeded, "the session is gone");
    let second = put(store, "/b/1", "session").await.revision;
    assert!(second > first);
    assert!(
        !guarded(first).await.unwrap().succeeded,
        "another session has the key"
    );
    assert!(guarded(second).await.unwrap().succeeded);
}

pub async fn values_are_compared_byte_for_byte(world: &World) {
    let store = &*world.store;
    put(store, "/k", "one").await;
    let compare = |key: &str, bytes: &'static [u8]| {
        let compare = Compare::Value(key.to_owned(), Bytes::from_static(bytes));
        store.txn(Txn::new().when(compare))
    };
    assert!(compare("/k", b"one").await.unwrap().succeeded);
    assert!(!compare("/k", b"on").await.unwrap().succeeded);
    assert!(!compare("/absent", b"").await.unwrap().succeeded);
}

pub async fn an_empty_value_is_not_an_absent_key(world: &World) {
    let store = &*world.store;
    put(store, "/k", "").await;
    assert_eq!(value(store, "/k").await.unwrap().as_deref(), Some(""));
    assert!(!store.txn(create("/k", "x")).await.unwrap().succeeded);
}

pub async fn a_transaction_applies_all_of_its_branch_or_none(world: &World) {
    let store = &*world.store;
    put(store, "/a", "1").await;
    let failing = Txn::new()
        .when(Compare::absent("/b"))
        .when(Compare::absent("/a"))
        .then(Op::put("/b", "x"))
        .then(Op::delete("/a"))
        .otherwise(Op::put("/c", "otherwise"));
    let reply = store.txn(failing).await.unwrap();
    assert!(!reply.succeeded);
    assert_eq!(value(store, "/a").await.unwrap().as_deref(), Some("1"));
    assert_eq!(value(store, "/b").await.unwrap(), None);
    assert_eq!(value(store, "/c").await.unwrap().as_deref(), Some("otherwise"));

    let holding = Txn::new()
        .when(Compare::absent("/b"))
        .then(Op::put("/b", "2"))
        .then(Op::delete("/a"))
        .then(Op::put("/d", "3"));
    let reply = store.txn(holding).await.unwrap();
    assert!(reply.succeeded);
    let keys = ["/a", "/b", "/d"].map(str::to_owned);
    let (entries, revision) = store.get_many(&keys).await.unwrap();
    assert_eq!(revision, reply.revision);
    assert_eq!(entries[0], None);
    for entry in &entries[1..] {
        assert_eq!(entry.as_ref().unwrap().mod_revision, reply.revision);
    }
}

pub async fn the_branch_that_is_done_answers_its_reads(world: &World) {
    let store = &*world.store;
    put(store, "/a", "1").await;
    put(store, "/b", "2").await;
    let txn = Txn::new()
        .when(Compare::absent("/a"))
        .then(Op::get("/b"))
        .otherwise(Op::get("/b"))
        .otherwise(Op::put("/x", "x"))
        .otherwise(Op::get("/none"))
        .otherwise(Op::get("/a"));
    let reply = store.txn(txn).await.unwrap();
    let read: Vec<Option<&[u8]>> = reply
        .reads
        .iter()
        .map(|read| read.as_ref().map(|entry| &entry.value[..]))
        .collect();
    assert_eq!(read, [Some(&b"2"[..]), None, Some(&b"1"[..])]);
}

pub async fn revisions_rise_with_changes_and_only_then(world: &World) {
    let store = &*world.store;
    let mut last = store.get("/k").await.unwrap().1;
    for n in 0..5 {
        let revision = put(store, "/k", &n.to_string()).await.revision;
        assert!(revision > last, "{revision} after {last}");
        last = revision;
    }
    let deleted = store
        .txn(Txn::new().then(Op::delete("/k")))
        .await
        .unwrap()
        .revision;
    assert!(deleted > last);
    let unchanged = [
        store
            .txn(Txn::new().then(Op::delete("/k")))
            .await
            .unwrap()
            .revision,
        store.txn(Txn::new().then(Op::get("/k"))).await.unwrap().revision,
        store
            .txn(create("/k", "x").when(Compare::CreateRevision("/k".into(), last)))
            .await
            .unwrap()
            .revision,
        store.get("/k").await.unwrap().1,
        store.range(Range::new("/k")).await.unwrap().revision,
    ];
    assert_eq!(unchanged, [deleted; 5]);
}

pub async fn versions_count_puts_since_creation(world: &World) {
    let store = &*world.store;
    for expected in 1..=3 {
        put(store, "/k", "v").await;
        assert_eq!(store.get("/k").await.unwrap().0.unwrap().version, expected);
    }
    store.txn(Txn::new().then(Op::delete("/k"))).await.unwrap();
    put(store, "/k", "v").await;
    assert_eq!(store.get("/k").await.unwrap().0.unwrap().version, 1);
}

pub async fn many_keys_are_read_at_one_revision(world: &World) {
    let store = Arc::clone(&world.store);
    let keys: Vec<String> = (0..READ_KEYS_MAX).map(|n| format!("/m/{n:02}")).collect();
    let writer = tokio::spawn({
        let (store, keys) = (Arc::clone(&store), keys.clone());
        async move {
            for round in 0..30 {
                let put_all = keys.iter().fold(Txn::new(), |txn, key| {
                    txn.then(Op::put(key.clone(), format!("{round}")))
                });
                store.txn(put_all).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let (entries, revision) = store.get_many(&keys).await.unwrap();
        let first = entries[0].as_ref().map(|entry| entry.mod_revision);
        assert!(first.is_none_or(|first| first <= revision));
        for entry in &entries {
            assert_eq!(
                entry.as_ref().map(|entry| entry.mod_revision),
                first,
                "a torn read"
            );
        }
    }
    writer.await.unwrap();
    let mixed = ["/m/05".to_owned(), "/none".to_owned(), "/m/01".to_owned()];
    let (entries, _) = store.get_many(&mixed).await.unwrap();
    let found: Vec<Option<&str>> = entries
        .iter()
        .map(|entry| entry.as_ref().map(|entry| entry.key.as_str()))
        .collect();
    assert_eq!(found, [Some("/m/05"), None, Some("/m/01")]);
    assert!(store.get_many(&[]).await.unwrap().0.is_empty());
}

async fn fill(store: &dyn MetaStore, prefix: &str, count: usize) {
    for chunk in (0..count).collect::<Vec<_>>().chunks(PUTS_MAX) {
        let txn = chunk.iter().fold(Txn::new(), |txn, n| {
            txn.then(Op::put(format!("{prefix}{n:04}"), format!("{n}")))
        });
        store.txn(txn).await.unwrap();
    }
}

pub async fn a_range_is_read_by_pages_in_key_order(world: &World) {
    let store = &*world.store;
    fill(store, "/r/", 25).await;
    let mut keys = Vec::new();
    let mut range = Range::new("/r/").limit(10);
    let mut sizes = Vec::new();
    loop {
        let page = store.range(range.clone()).await.unwrap();
        sizes.push(page.entries.len());
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            break;
        }
        range = range.start_after(keys.last().unwrap().clone());
    }
    assert_eq!(sizes, [10, 10, 5]);
    let expected: Vec<String> = (0..25).map(|n| format!("/r/{n:04}")).collect();
    assert_eq!(keys, expected);
    let exact = store.range(Range::new("/r/").limit(25)).await.unwrap();
    assert!(!exact.more && exact.entries.len() == 25);
    let behind = store
        .range(Range::new("/r/").start_after("/r/0024"))
        .await
        .unwrap();
    assert!(!behind.more && behind.entries.is_empty());
}

pub async fn pages_at_a_pinned_revision_fit_together(world: &World) {
    let store = &*world.store;
    fill(store, "/r/", 20).await;
    let first = store.range(Range::new("/r/").limit(7)).await.unwrap();
    assert!(first.more);
    let disturb = Txn::new()
        .then(Op::delete("/r/0003"))
        .then(Op::delete("/r/0009"))
        .then(Op::put("/r/0010", "changed"))
        .then(Op::put("/r/0010a", "new"))
        .then(Op::put("/r/9999", "new"));
    store.txn(disturb).await.unwrap();
    put(store, "/r/0010", "again").await;
    put(store, "/r/0009", "back").await;

    let mut entries = first.entries.clone();
    let mut more = true;
    while more {
        let range = Range::new("/r/").limit(7).at(first.revision);
        let page = store
            .range(range.start_after(entries.last().unwrap().key.clone()))
            .await
            .unwrap();
        assert_eq!(page.revision, first.revision);
        entries.extend(page.entries);
        more = page.more;
    }
    let read: Vec<(String, Bytes)> = entries
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.clone()))
        .collect();
    let expected: Vec<(String, Bytes)> = (0..20)
        .map(|n| (format!("/r/{n:04}"), Bytes::from(n.to_string())))
        .collect();
    assert_eq!(read, expected);
    assert!(entries.iter().all(|entry| entry.mod_revision <= first.revision));
    let now = store.range(Range::new("/r/")).await.unwrap();
    assert_eq!(now.entries.len(), 21);
}

pub async fn a_range_keeps_to_its_prefix(world: &World) {
    let store = &*world.store;
    for key in ["/r", "/r/a", "/r/b", "/r0", "/ra", "/q/z", "/s"] {
        put(store, key, "x").await;
    }
    let keys = async |prefix: &str| {
        let page = store.range(Range::new(prefix)).await.unwrap();
        page.entries
            .into_iter()
            .map(|entry| entry.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(keys("/r/").await, ["/r/a", "/r/b"]);
    assert_eq!(keys("/r").await, ["/r", "/r/a", "/r/b", "/r0", "/ra"]);
    assert_eq!(keys("/").await.len(), 7);
    assert!(keys("/t").await.is_empty());
}

pub async fn a_scan_reads_everything_at_one_revision(world: &World) {
    let store = &*world.store;
    fill(store, "/s/", 1500).await;
    let (entries, revision) = scan(store, "/s/", 2000).await.unwrap();
    assert_eq!(entries.len(), 1500);
    assert!(entries.is_sorted_by_key(|entry| entry.key.clone()));
    assert_eq!(revision, store.get("/s/0000").await.unwrap().1);
    let refused = scan(store, "/s/", 1499).await.unwrap_err();
    assert_eq!(refused.to_string(), "more than 1499 entries under \"/s/\"");
    assert!(scan(store, "/none/", 0).await.unwrap().0.is_empty());
}

pub async fn a_revision_in_the_future_is_refused(world: &World) {
    let store = &*world.store;
    let now = put(store, "/k", "v").await.revision;
    let future = store.range(Range::new("/k").at(Revision(now.0 + 1000))).await;
    assert_eq!(
        future,
        Err(ReadError::Refused(BadRequest::FutureRevision { current: now }))
    );
}

pub async fn a_watch_delivers_later_changes_once_and_in_order(world: &World) {
    let store = &*world.store;
    let before = put(store, "/w/a", "0").await.revision;
    let mut expected = Vec::new();
    for n in 1..=50 {
        expected.push((
            put(store, "/w/a", &n.to_string()).await.revision,
            format!("/w/a={n}"),
        ));
    }
    let deleted = store.txn(Txn::new().then(Op::delete("/w/a"))).await.unwrap();
    expected.push((deleted.revision, "/w/a-".to_owned()));
    let mut watch = store.watch("/w/", before);
    let mut seen = events(&mut watch, expected.len()).await;
    for n in 51..=60 {
        expected.push((
            put(store, "/w/b", &n.to_string()).await.revision,
            format!("/w/b={n}"),
        ));
    }
    seen.extend(events(&mut watch, 10).await);
    assert_eq!(seen, expected);

    let middle = expected[30].0;
    let mut later = store.watch("/w/", middle);
    assert_eq!(events(&mut later, expected.len() - 31).await, expected[31..]);
}

pub async fn a_watch_keeps_to_its_prefix(world: &World) {
    let store = &*world.store;
    let before = put(store, "/w/a", "0").await.revision;
    let mut watch = store.watch("/w/", before);
    put(store, "/w", "no").await;
    put(store, "/w0", "no").await;
    put(store, "/v/z", "no").await;
    let wanted = put(store, "/w/b", "yes").await.revision;
    assert_eq!(events(&mut watch, 1).await, [(wanted, "/w/b=yes".to_owned())]);
}

pub async fn a_watch_reports_every_key_of_a_transaction_together(world: &World) {
    let store = &*world.store;
    let before = put(store, "/w/0", "0").await.revision;
    let mut watch = store.watch("/w/", before);
    let txn = (0..PUTS_MAX).fold(Txn::new().then(Op::delete("/w/0")), |txn, n| {
        txn.then(Op::put(format!("/w/x{n:02}"), "v"))
    });
    let reply = store.txn(txn).await.unwrap();
    let batch = tokio::time::timeout(DEADLINE, watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (batch.revision, batch.events.len()),
        (reply.revision, PUTS_MAX + 1)
    );
    assert!(batch.events.iter().all(|event| event.revision == reply.revision));
}

pub async fn a_dropped_next_loses_no_event(world: &World) {
    let store = &*world.store;
    let before = put(store, "/w/0", "0").await.revision;
    let mut watch = store.watch("/w/", before);
    let mut expected = Vec::new();
    for n in 0..20 {
        let waited = tokio::time::timeout(Duration::from_millis(1), watch.next()).await;
        assert!(waited.is_err(), "nothing has happened since: {waited:?}");
        expected.push((
            put(store, "/w/k", &n.to_string()).await.revision,
            format!("/w/k={n}"),
        ));
        assert_eq!(events(&mut watch, 1).await, expected[n..]);
    }
}

pub async fn a_lease_that_is_kept_does_not_expire(world: &World) {
    let store = &*world.store;
    let (ttl, _) = LEASE_TTL;
    let keeper = store.lease_grant(ttl).await.unwrap();
    let put = Op::put_leased("/b/1", "alive", keeper.id());
    store.txn(Txn::new().then(put)).await.unwrap();
    for _ in 0..8 {
        (world.pass)(keeper.ttl() / 2);
        let lost = tokio::time::timeout(keeper.ttl() / 2, keeper.lost()).await;
        assert!(lost.is_err() && !keeper.is_lost());
    }
    let (entry, _) = store.get("/b/1").await.unwrap();
    assert_eq!(entry.unwrap().lease, Some(keeper.id()));
}

pub async fn a_lease_without_its_keeper_expires_with_its_keys(world: &World) {
    let store = &*world.store;
    let keeper = store.lease_grant(Duration::from_secs(1)).await.unwrap();
    let other = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let txn = Txn::new()
        .then(Op::put_leased("/b/1", "mine", keeper.id()))
        .then(Op::put_leased("/b/2", "mine", keeper.id()))
        .then(Op::put_leased("/b/3", "another's", other.id()))
        .then(Op::put("/b/4", "nobody's"));
    let created = store.txn(txn).await.unwrap().revision;
    let mut watch = store.watch("/b/", created);
    let ttl = keeper.ttl();
    drop(keeper);
    (world.pass)(ttl);
    let deleted = events(&mut watch, 2).await;
    let keys: Vec<&str> = deleted.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(keys, ["/b/1-", "/b/2-"]);
    assert!(deleted[0].0 > created);
    assert_eq!(deleted[0].0, deleted[1].0, "they go in one transaction");
    let left = store.range(Range::new("/b/")).await.unwrap().entries;
    assert_eq!(
        left.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(),
        ["/b/3", "/b/4"]
    );
    assert!(!other.is_lost());
}

pub async fn a_revoked_lease_takes_its_keys_at_once(world: &World) {
    let store = &*world.store;
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let lost = keeper.ended_token();
    store
        .txn(Txn::new().then(Op::put_leased("/b/1", "v", keeper.id())))
        .await
        .unwrap();
    keeper.revoke().await.unwrap();
    assert!(lost.is_cancelled());
    assert_eq!(value(store, "/b/1").await.unwrap(), None);
}

pub async fn a_lease_revoked_by_another_is_lost(world: &World) {
    let store = &*world.store;
    let keeper = store.lease_grant(Duration::from_secs(2)).await.unwrap();
    store
        .txn(Txn::new().then(Op::put_leased("/b/1", "v", keeper.id())))
        .await
        .unwrap();
    store.lease_revoke(keeper.id()).await.unwrap();
    assert_eq!(value(store, "/b/1").await.unwrap(), None);
    tokio::time::timeout(DEADLINE, keeper.lost()).await.unwrap();
    store.lease_revoke(keeper.id()).await.unwrap();
    keeper.revoke().await.unwrap();
}

pub async fn a_put_on_an_ended_lease_is_refused_with_all_of_its_transaction(world: &World) {
    let store = &*world.store;
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let ended = keeper.id();
    keeper.revoke().await.unwrap();
    for lease in [ended, LeaseId(0x7fff_1234_5678)] {
        let txn = Txn::new()
            .then(Op::put("/a", "1"))
            .then(Op::put_leased("/b/1", "v", lease));
        let refused = store.txn(txn).await.unwrap_err();
        let reason = BadRequest::LeaseNotFound { lease: Some(lease) };
        assert_eq!(refused, TxnError::Refused(reason));
    }
    assert_eq!(value(store, "/a").await.unwrap(), None);
    assert_eq!(value(store, "/b/1").await.unwrap(), None);
}

pub async fn a_put_without_a_lease_takes_the_key_off_it(world: &World) {
    let store = &*world.store;
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let leased = |key| Op::put_leased(key, "v", keeper.id());
    store
        .txn(Txn::new().then(leased("/b/1")).then(leased("/b/2")))
        .await
        .unwrap();
    put(store, "/b/1", "stays").await;
    keeper.revoke().await.unwrap();
    assert_eq!(value(store, "/b/1").await.unwrap().as_deref(), Some("stays"));
    gone(store, "/b/2").await;
}

pub async fn a_malformed_request_is_refused_with_its_reason(world: &World) {
    let store = &*world.store;
    let before = put(store, "/k", "v").await.revision;
    let refusal = async |txn: Txn| match store.txn(txn).await {
        Err(TxnError::Refused(reason)) => reason.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    let puts = |count: usize| (0..count).fold(Txn::new(), |txn, n| txn.then(Op::put(format!("/n/{n}"), "v")));
    let gets = |count: usize| (0..count).fold(Txn::new(), |txn, n| txn.then(Op::get(format!("/n/{n}"))));
    assert_eq!(
        refusal(puts(PUTS_MAX + 1)).await,
        "65 puts in one request, 64 allowed"
    );
    assert_eq!(
        refusal(gets(OPS_MAX + 1)).await,
        "129 operations in one request, 128 allowed"
    );
    let compares = (0..=OPS_MAX).fold(Txn::new(), |txn, n| txn.when(Compare::absent(format!("/n/{n}"))));
    assert_eq!(
        refusal(compares).await,
        "129 compares in one request, 128 allowed"
    );
    let large = Txn::new().then(Op::put("/n/1", vec![0; VALUE_BYTES_MAX + 1]));
    assert_eq!(
        refusal(large).await,
        "value of \"/n/1\" has 1048577 bytes, 1048576 allowed"
    );
    let half = vec![0; TXN_BYTES_MAX / 2];
    let sum = Txn::new()
        .then(Op::put("/n/1", half.clone()))
        .then(Op::put("/n/2", half));
    assert_eq!(
        refusal(sum).await,
        "transaction of 1310728 bytes, 1310720 allowed"
    );
    let twice = Txn::new().then(Op::put("/n/1", "v")).then(Op::delete("/n/1"));
    assert_eq!(refusal(twice).await, "key \"/n/1\" appears twice in one branch");
    let relative = Txn::new().then(Op::put("n/1", "v"));
    assert_eq!(refusal(relative).await, "key \"n/1\" does not begin with /");
    let long = Txn::new().then(Op::put(format!("/{}", "x".repeat(1024)), "v"));
    assert_eq!(refusal(long).await, "key of 1025 bytes, 1024 allowed");

    let keys: Vec<String> = (0..=READ_KEYS_MAX).map(|n| format!("/n/{n}")).collect();
    assert!(matches!(store.get_many(&keys).await, Err(ReadError::Refused(_))));
    assert!(matches!(store.get("").await, Err(ReadError::Refused(_))));
    assert!(matches!(
        store.range(Range::new("/n").limit(0)).await,
        Err(ReadError::Refused(_))
    ));
    let outside = Range::new("/n/").start_after("/m/1");
    assert!(matches!(store.range(outside).await, Err(ReadError::Refused(_))));
    let ttl = store.lease_grant(Duration::from_millis(999)).await;
    assert!(matches!(ttl, Err(LeaseError::Refused(BadRequest::Ttl { .. }))));
    let mut watch = store.watch("w", before);
    assert!(matches!(watch.next().await, Some(Err(WatchError::Refused(_)))));
    assert!(watch.next().await.is_none());
    assert_eq!(store.get("/k").await.unwrap().1, before, "nothing was applied");
}

pub async fn the_largest_transaction_is_applied(world: &World) {
    let store = &*world.store;
    let mut txn = Txn::new().then(Op::put("/l/00", vec![1; VALUE_BYTES_MAX]));
    let rest = (TXN_BYTES_MAX - VALUE_BYTES_MAX) / PUTS_MAX - 32;
    for n in 1..PUTS_MAX {
        txn = txn.then(Op::put(format!("/l/{n:02}"), vec![2; rest]));
    }
    for n in PUTS_MAX..OPS_MAX {
        txn = txn.then(Op::get(format!("/l/{n:03}")));
    }
    let before = store.get("/l/00").await.unwrap().1;
    let reply = store.txn(txn).await.unwrap();
    assert_eq!(reply.reads.len(), OPS_MAX - PUTS_MAX);
    let page = store.range(Range::new("/l/")).await.unwrap();
    assert_eq!(page.entries.len(), PUTS_MAX);
    assert_eq!(page.entries[0].value.len(), VALUE_BYTES_MAX);
    let mut watch = store.watch("/l/", before);
    assert_eq!(watch.next().await.unwrap().unwrap().events.len(), PUTS_MAX);
}

pub async fn concurrent_increments_are_counted_exactly(world: &World) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    let start = put(&*world.store, "/id/partition", "0").await.revision;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&world.store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let entry = store.get("/id/partition").await.unwrap().0.unwrap();
                    let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let txn = Txn::new()
                        .when(Compare::unchanged(&entry))
                        .then(Op::put("/id/partition", (count + 1).to_string()));
                    done += u64::from(store.txn(txn).await.unwrap().succeeded);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let total = TASKS * EACH;
    let counted = value(&*world.store, "/id/partition").await.unwrap();
    assert_eq!(counted, Some(total.to_string()));
    let mut watch = world.store.watch("/id/", start);
    let seen = events(&mut watch, usize::try_from(total).unwrap()).await;
    let expected: Vec<String> = (1..=total).map(|n| format!("/id/partition={n}")).collect();
    assert_eq!(
        seen.into_iter().map(|(_, line)| line).collect::<Vec<_>>(),
        expected
    );
}

pub async fn a_closed_store_answers_that_it_is_closed(world: &World) {
    let store = &*world.store;
    let now = put(store, "/k", "v").await.revision;
    let mut watch = store.watch("/k", now);
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    store.close().await;
    store.close().await;
    assert!(matches!(store.get("/k").await, Err(ReadError::Unavailable(_))));
    let txn = store.txn(Txn::new().then(Op::put("/k", "w"))).await;
    assert!(matches!(txn, Err(TxnError::Unavailable(_))), "{txn:?}");
    assert_eq!(watch.next().await, Some(Err(WatchError::Closed)));
    assert!(watch.next().await.is_none());
    eventually("the lease is lost", || async { keeper.is_lost().then_some(()) }).await;
}
