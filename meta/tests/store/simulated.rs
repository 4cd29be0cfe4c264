//! The simulated store: the contract over a network that loses nothing, and what one that does means.

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{MetaStore, Op, ReadError, SimulatedStore, Txn, TxnError, Wire};
use forebay_runtime::clock::SystemClock;
use forebay_runtime::tasks::Tasks;
use parking_lot::Mutex;

use crate::contract::contract;
use crate::support::{World, put, value};

/// How long messages take in either direction, none where they are lost.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<(Option<Duration>, Option<Duration>)>>);

impl Line {
    fn set(&self, there_ms: Option<u64>, back_ms: Option<u64>) {
        let time = |ms: Option<u64>| ms.map(Duration::from_millis);
        *self.0.lock() = (time(there_ms), time(back_ms));
    }
}

impl Wire for Line {
    fn there(&self) -> Option<Duration> {
        self.0.lock().0
    }

    fn back(&self) -> Option<Duration> {
        self.0.lock().1
    }
}

async fn world() -> World {
    let tasks = Tasks::new("test");
    let store = SimulatedStore::new(Arc::new(SystemClock::new()), tasks.group("store"));
    let line = Line::default();
    line.set(Some(0), Some(0));
    World {
        store: store.client(Arc::new(line), tasks.group("client")),
        pass: Box::new(|_| {}),
        _keep: Box::new(store),
    }
}

contract!(world);

fn remote() -> (SimulatedStore, Line, Arc<dyn MetaStore>) {
    let tasks = Tasks::new("test");
    let store = SimulatedStore::new(Arc::new(SystemClock::new()), tasks.group("store"));
    let line = Line::default();
    line.set(Some(1), Some(1));
    let client = store.client(Arc::new(line.clone()), tasks.group("client"));
    (store, line, client)
}

fn set(key: &str, text: &str) -> Txn {
    Txn::new().then(Op::put(key, text.to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_the_outcome_unknown_and_the_change_made() {
    let (_, line, client) = remote();
    line.set(Some(1), None);
    assert!(matches!(
        client.txn(set("/a", "1")).await,
        Err(TxnError::Unknown(_))
    ));
    line.set(Some(1), Some(1));
    assert_eq!(value(&*client, "/a").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_changes_nothing_and_a_late_one_does() {
    let (_, line, client) = remote();
    line.set(None, Some(1));
    assert!(matches!(
        client.txn(set("/a", "1")).await,
        Err(TxnError::Unknown(_))
    ));
    line.set(Some(10_000), Some(1));
    assert!(matches!(
        client.txn(set("/b", "1")).await,
        Err(TxnError::Unknown(_))
    ));
    line.set(Some(1), Some(1));
    assert_eq!(value(&*client, "/a").await.unwrap(), None);
    assert_eq!(value(&*client, "/b").await.unwrap(), None, "not yet");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(value(&*client, "/b").await.unwrap().as_deref(), Some("1"));
    assert_eq!(value(&*client, "/a").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_through_a_short_loss_and_lost_in_a_long_one() {
    let (store, line, client) = remote();
    let keeper = client.lease_grant(Duration::from_secs(9)).await.unwrap();
    let session = Op::put_leased("/s", "x", keeper.id());
    client.txn(Txn::new().then(session)).await.unwrap();
    line.set(None, None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    line.set(Some(1), Some(1));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!keeper.is_lost());
    line.set(None, None);
    keeper.lost().await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(store.entries("/s"), []);
    assert!(!keeper.ended_token().is_cancelled(), "nobody has said so");
    line.set(Some(1), Some(1));
    keeper.ended_token().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_notices_a_store_that_was_restored() {
    let (store, _, client) = remote();
    put(&*client, "/a", "1").await;
    let before = store.image();
    put(&*client, "/a", "2").await;
    store.restore(before);
    assert!(matches!(client.get("/a").await, Err(ReadError::Regressed(_))));
}
