//! The embedded store on a failing disk, and its memory of the past against a plain model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_runtime::clock::ManualClock;
use forebay_runtime::tasks::Tasks;
use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::file::MetaFile;
use super::plan::Plan;
use super::state::{Found, State};
use super::*;
use crate::store::error::WatchError;
use crate::store::types::{Compare, Op, WatchKind};

/// A disk whose syncs fail once told to.
#[derive(Debug)]
struct FailingDisk {
    memory: InMemoryBackend,
    failing: Arc<AtomicBool>,
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write(offset, data)
    }
}

/// A commit whose sync failed may be on the disk or not. Nothing may be read as if it were known.
#[tokio::test]
async fn a_failed_sync_leaves_an_unknown_outcome_and_ends_the_store() {
    let failing = Arc::new(AtomicBool::new(false));
    let disk = FailingDisk {
        memory: InMemoryBackend::new(),
        failing: Arc::clone(&failing),
    };
    let clock = Arc::new(ManualClock::new(0));
    let open = move |_: &Path| Ok(MetaFile::on(disk).unwrap());
    let tasks = Tasks::new("test");
    let store = EmbeddedStore::open_with(Path::new("meta"), clock, &tasks, open)
        .await
        .unwrap();
    let put = |value: &'static str| store.txn(Txn::new().then(Op::put("/k", value)));
    let first = put("1").await.unwrap().revision;
    let keeper = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = store.watch("/", first);

    failing.store(true, Ordering::SeqCst);
    let outcome = put("2").await;
    assert!(matches!(outcome, Err(TxnError::Unknown(_))), "{outcome:?}");
    let read = store.get("/k").await;
    assert!(matches!(read, Err(ReadError::Unavailable(_))), "{read:?}");
    assert!(read.unwrap_err().to_string().contains("the disk is gone"));
    failing.store(false, Ordering::SeqCst);
    let later = put("3").await;
    assert!(matches!(later, Err(TxnError::Unavailable(_))), "{later:?}");
    assert_eq!(watch.next().await, Some(Err(WatchError::Closed)));
    assert!(keeper.is_lost());
    store.close().await;
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    /// Puts the first where the second is absent, else deletes the second.
    Either(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12_u8;
    prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        key.clone().prop_map(Step::Delete),
        (key.clone(), key).prop_map(|(one, two)| Step::Either(one, two)),
    ]
}

fn name(key: u8) -> String {
    // Two prefixes, so that every read has something to leave out.
    format!("/{}/{key:02}", if key.is_multiple_of(3) { "a" } else { "b" })
}

fn txn(step: &Step) -> Txn {
    match *step {
        Step::Put(key, value) => Txn::new().then(Op::put(name(key), vec![value])),
        Step::Delete(key) => Txn::new().then(Op::delete(name(key))),
        Step::Either(one, two) => Txn::new()
            .when(Compare::absent(name(two)))
            .then(Op::put(name(one), "either"))
            .otherwise(Op::delete(name(two))),
    }
}

type Model = BTreeMap<String, Vec<u8>>;

fn under(model: &Model, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let kept = model.iter().filter(|(key, _)| key.starts_with(prefix));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn apply(model: &mut Model, step: &Step) {
    match *step {
        Step::Put(key, value) => {
            model.insert(name(key), vec![value]);
        }
        Step::Delete(key) => {
            model.remove(&name(key));
        }
        Step::Either(one, two) if !model.contains_key(&name(two)) => {
            model.insert(name(one), b"either".to_vec());
        }
        Step::Either(_, two) => {
            model.remove(&name(two));
        }
    }
}

proptest! {
    /// Groups of any size give what one after the other gives; every past revision reads as it
    /// was, by pages of any size; and the events since any of them lead to the present.
    #[test]
    fn the_past_and_the_events_since_agree_with_a_plain_model(
        groups in prop::collection::vec(prop::collection::vec(step(), 1..5), 1..15),
        limit in 1..6_usize,
    ) {
        let mut state = State::new(BTreeMap::new(), Revision(7));
        let mut model = Model::new();
        let mut snapshots = BTreeMap::from([(state.revision(), model.clone())]);
        for group in &groups {
            let mut plan = Plan::new(&state);
            for step in group {
                let reply = plan.txn(&txn(step)).unwrap();
                apply(&mut model, step);
                snapshots.insert(reply.revision, model.clone());
            }
            let done = plan.finish();
            state.advance(done.revision, done.changes, &done.ended);
        }
        for (at, snapshot) in &snapshots {
            let mut read = Vec::new();
            let mut range = Range::new("/b/").limit(limit).at(*at);
            loop {
                let page = state.range(&range).unwrap();
                prop_assert!(page.entries.len() == limit || !page.more);
                prop_assert!(page.entries.iter().all(|entry| entry.mod_revision <= *at));
                read.extend(page.entries.into_iter().map(|entry| (entry.key, entry.value.to_vec())));
                if !page.more {
                    break;
                }
                range = range.start_after(read.last().unwrap().0.clone());
            }
            prop_assert_eq!(&read, &under(snapshot, "/b/"));

            let Found::Events(events, upto) = state.events("/b/", *at) else {
                panic!("nothing is forgotten");
            };
            prop_assert_eq!(upto, state.revision());
            let mut replayed: Model = read.into_iter().collect();
            for event in events {
                prop_assert!(event.revision > *at);
                match event.kind {
                    WatchKind::Put(entry) => replayed.insert(entry.key, entry.value.to_vec()),
                    WatchKind::Delete { key } => replayed.remove(&key),
                };
            }
            prop_assert_eq!(replayed.into_iter().collect::<Vec<_>>(), under(&model, "/b/"));
        }
    }
}
