//! The embedded store: the contract, and what restarts and damage do to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{
    Compare, EmbeddedStore, MetaStore, Op, OpenError, Range, ReadError, Revision, Txn, WatchError,
};
use forebay_runtime::clock::ManualClock;
use forebay_runtime::tasks::Tasks;

use crate::contract::contract;
use crate::support::{World, events, put, value};

async fn open(path: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(path, Arc::new(ManualClock::new(0)), &Tasks::new("test")).await
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(0);
    let path = dir.path().join("meta");
    let store = EmbeddedStore::open(&path, Arc::new(clock.clone()), &Tasks::new("test"))
        .await
        .unwrap();
    World {
        store: Arc::new(store),
        pass: Box::new(move |time| clock.advance(time)),
        _keep: Box::new(dir),
    }
}

contract!(world);

#[tokio::test]
async fn a_reopened_file_has_its_data_and_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    let store = open(&path).await.unwrap();
    put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    put(&store, "/b", "3").await;
    let last = store
        .txn(Txn::new().then(Op::delete("/b")))
        .await
        .unwrap()
        .revision;
    let (before, _) = store.get("/a").await.unwrap();
    store.close().await;

    let store = open(&path).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap(), (before.clone(), last));
    assert_eq!(value(&store, "/b").await.unwrap(), None);
    let swap = Txn::new()
        .when(Compare::unchanged(&before.unwrap()))
        .then(Op::put("/a", "4"));
    let swapped = store.txn(swap).await.unwrap();
    assert!(swapped.succeeded && swapped.revision == Revision(last.0 + 1));
    store.close().await;
}

#[tokio::test]
async fn opening_voids_all_sessions_and_earlier_watches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    let store = open(&path).await.unwrap();
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let session = Op::put_leased("/b/1", "session", keeper.id());
    let last = store
        .txn(Txn::new().then(session).then(Op::put("/p/1", "mine")))
        .await
        .unwrap();
    store.close().await;
    assert!(keeper.is_lost());
    let earlier_lease = keeper.id();
    drop((keeper, store));

    let store = open(&path).await.unwrap();
    let (session, now) = store.get("/b/1").await.unwrap();
    assert_eq!(session, None);
    assert!(now > last.revision, "the deletion has a revision of its own");
    assert_eq!(value(&store, "/p/1").await.unwrap().as_deref(), Some("mine"));
    let fenced = Compare::CreateRevision("/b/1".to_owned(), last.revision);
    let zombie = store
        .txn(Txn::new().when(fenced).then(Op::put("/p/1", "zombie")))
        .await
        .unwrap();
    assert!(!zombie.succeeded);

    let compacted = WatchError::Compacted {
        at: Revision(now.0 + 1),
    };
    assert_eq!(store.watch("/", last.revision).next().await, Some(Err(compacted)));
    let pinned = store.range(Range::new("/").at(last.revision)).await;
    assert_eq!(pinned, Err(ReadError::Compacted { at: now }));
    let mut watch = store.watch("/", now);
    let next = put(&store, "/p/1", "later").await.revision;
    assert_eq!(events(&mut watch, 1).await, [(next, "/p/1=later".to_owned())]);

    let later = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(later.id(), earlier_lease);
    store.close().await;
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    let store = open(&path).await.unwrap();
    let refused = open(&path).await.unwrap_err();
    let expected = format!(
        "metadata file {} is in use by process {}",
        path.display(),
        std::process::id()
    );
    assert_eq!(refused.to_string(), expected);
    assert!(matches!(refused, OpenError::Locked { .. }));
    put(&store, "/k", "still works").await;
    store.close().await;
    open(&path).await.unwrap().close().await;
}

#[tokio::test]
async fn dropping_the_store_gives_the_file_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    drop(open(&path).await.unwrap());
    let store = crate::support::eventually("the file is free", || async { open(&path).await.ok() }).await;
    store.close().await;
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent/meta");
    let refused = open(&path).await.unwrap_err();
    assert!(matches!(refused, OpenError::Io { .. }));
    assert!(refused.to_string().contains(&path.display().to_string()));
}

#[tokio::test]
async fn a_file_that_is_empty_or_foreign_or_cut_is_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    let store = open(&path).await.unwrap();
    put(&store, "/k", "v").await;
    store.close().await;
    let whole = std::fs::read(&path).unwrap();
    let cut = &whole[..whole.len() / 2];
    let page = &whole[..4096];
    for content in [&b""[..], b"not a metadata file", &[0_u8; 100_000], cut, page] {
        std::fs::write(&path, content).unwrap();
        let refused = open(&path).await.unwrap_err();
        assert!(
            matches!(refused, OpenError::Corrupt { .. }),
            "{} bytes: {refused:?}",
            content.len()
        );
        assert!(
            refused
                .to_string()
                .starts_with(&format!("metadata file {} ", path.display()))
        );
        assert_eq!(std::fs::read(&path).unwrap(), content, "the evidence is kept");
    }
    std::fs::write(&path, &whole).unwrap();
    let store = open(&path).await.unwrap();
    assert_eq!(value(&store, "/k").await.unwrap().as_deref(), Some("v"));
    store.close().await;
}

/// A flipped byte either lies in unused space, and then everything is there, or the file does not
/// open. It never yields older or other data.
#[tokio::test]
async fn a_flipped_byte_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta");
    let store = open(&path).await.unwrap();
    for n in 0..200 {
        put(&store, &format!("/k/{n:03}"), &format!("value {n}")).await;
    }
    let (expected, revision) = forebay_meta::store::scan(&store, "/k/", 1000).await.unwrap();
    store.close().await;
    let whole = std::fs::read(&path).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let (mut noticed, mut harmless) = (0, 0);
    for at in used.iter().step_by((used.len() / 150).max(1)) {
        let mut flipped = whole.clone();
        flipped[*at] ^= 0x41;
        std::fs::write(&path, &flipped).unwrap();
        match open(&path).await {
            Err(OpenError::Corrupt { .. } | OpenError::Format { .. }) => noticed += 1,
            Err(other) => panic!("byte {at}: {other}"),
            Ok(store) => {
                let read = forebay_meta::store::scan(&store, "/k/", 1000).await.unwrap();
                assert!(read == (expected.clone(), revision), "byte {at} changed the data");
                store.close().await;
                harmless += 1;
            }
        }
    }
    assert!(noticed > 0, "{noticed} noticed, {harmless} harmless");
}

/// After a kill the newest commit is looked at first. Damage in it must not pass for a commit that
/// was cut short, to be rolled back without a word: it was answered.
#[tokio::test]
async fn damage_to_the_newest_commit_is_not_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("meta"), dir.path().join("copy"));
    let store = open(&path).await.unwrap();
    for n in 0..20 {
        put(&store, &format!("/k/{n:03}"), &format!("value {n}")).await;
    }
    let newest = b"the newest value of all";
    put(&store, "/k/010", std::str::from_utf8(newest).unwrap()).await;
    let whole = std::fs::read(&path).unwrap();
    store.close().await;
    let places: Vec<usize> = (0..whole.len() - newest.len())
        .filter(|at| whole[*at..].starts_with(newest))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x41;
        std::fs::write(&copy, &flipped).unwrap();
        let refused = open(&copy).await;
        assert!(
            matches!(refused, Err(OpenError::Corrupt { .. })),
            "byte {at}: {refused:?}"
        );
    }
}

/// The copy is what a kill at that moment leaves: nothing was closed.
#[tokio::test]
async fn a_killed_process_leaves_every_answered_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("meta"), dir.path().join("copy"));
    let store = Arc::new(open(&path).await.unwrap());
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..50 {
                    put(&*store, &format!("/k/{task}/{n:02}"), "v").await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    std::fs::copy(&path, &copy).unwrap();
    let killed = open(&copy).await.unwrap();
    let (entries, revision) = forebay_meta::store::scan(&killed, "/k/", 1000).await.unwrap();
    assert_eq!(
        (entries.len(), revision),
        (200, store.get("/k/0/00").await.unwrap().1)
    );
    killed.close().await;
    store.close().await;
}
