//! Waiting for facts, and the world that a fact of the contract is checked in.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{
    MetaStore, Op, ReadError, Revision, Txn, TxnReply, WatchEvent, WatchKind, WatchStream,
};

/// Nothing that a test waits for takes longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A store, and how time passes for its leases.
pub struct World {
    pub store: Arc<dyn MetaStore>,
    pub pass: Box<dyn Fn(Duration) + Send + Sync>,
    /// Dropped after the store.
    pub _keep: Box<dyn Any + Send + Sync>,
}

/// Waits until a check holds, with a deadline.
pub async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let give_up = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < give_up,
            "not within {DEADLINE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Puts without conditions; the reply's revision is the put's.
pub async fn put(store: &dyn MetaStore, key: &str, value: &str) -> TxnReply {
    store
        .txn(Txn::new().then(Op::put(key, value.to_owned())))
        .await
        .unwrap()
}

pub async fn value(store: &dyn MetaStore, key: &str) -> Result<Option<String>, ReadError> {
    let (entry, _) = store.get(key).await?;
    Ok(entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap()))
}

/// Waits until a key is gone.
pub async fn gone(store: &dyn MetaStore, key: &str) {
    eventually(&format!("{key} is gone"), || async {
        store.get(key).await.unwrap().0.is_none().then_some(())
    })
    .await;
}

/// An event as one line: revision, key and value, or a dash for a deletion.
pub fn line(event: &WatchEvent) -> (Revision, String) {
    match &event.kind {
        WatchKind::Put(entry) => {
            assert_eq!(entry.mod_revision, event.revision);
            let value = String::from_utf8(entry.value.to_vec()).unwrap();
            (event.revision, format!("{}={value}", entry.key))
        }
        WatchKind::Delete { key } => (event.revision, format!("{key}-")),
    }
}

/// The next events of a watch, as many as asked for; their batches must be in order.
pub async fn events(watch: &mut WatchStream, count: usize) -> Vec<(Revision, String)> {
    let mut seen: Vec<(Revision, String)> = Vec::new();
    let mut upto = Revision(0);
    while seen.len() < count {
        let batch = tokio::time::timeout(DEADLINE, watch.next())
            .await
            .unwrap_or_else(|_| panic!("{} of {count} events came: {seen:?}", seen.len()))
            .expect("the watch goes on")
            .expect("the watch does not fail");
        assert!(batch.revision > upto, "batch {} after {upto}", batch.revision);
        for event in &batch.events {
            assert!(event.revision > upto && event.revision <= batch.revision);
        }
        upto = batch.revision;
        seen.extend(batch.events.iter().map(line));
    }
    assert!(seen.is_sorted_by_key(|(revision, _)| *revision));
    seen
}
