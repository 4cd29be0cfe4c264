//! Who is alive: broker sessions and storage nodes, followed in the metadata store.
//!
//! The two prefixes are small and are watched; partition records never are. A view may be stale:
//! it says where to ask, never what is true. When the watch ends the prefix is read again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::store::{self, Entry, MetaStore, ReadError, Regressed, WatchError, WatchKind};
use forebay_meta::{keys, record};
use forebay_proto::stored::{BrokerRecord, NodeRecord};
use forebay_record::{BrokerId, NodeId, SessionId};
use forebay_runtime::backoff::{Backoff, Policy};
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use tokio::sync::watch;

/// Sessions or nodes that a cluster may have.
const MEMBERS_MAX: usize = 20_000;

/// A broker with a live session.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LiveBroker {
    pub record: BrokerRecord,
    pub session: SessionId,
}

/// What was last known.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct View {
    pub brokers: BTreeMap<BrokerId, LiveBroker>,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
}

/// A handle to the view; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    view: watch::Receiver<Arc<View>>,
}

impl Membership {
    /// Follows the store until the group is cancelled. Returns once both prefixes were read.
    pub(crate) async fn follow(
        meta: &Arc<dyn MetaStore>,
        clock: &Arc<dyn Clock>,
        random: &Arc<dyn Random>,
        tasks: &Tasks,
    ) -> Result<Self, ReadError> {
        let (publish, view) = watch::channel(Arc::new(View::default()));
        let publish = Arc::new(publish);
        for prefix in [keys::BROKERS, keys::NODES] {
            let revision = read(meta, prefix, &publish).await?;
            let (meta, publish, token) = (Arc::clone(meta), Arc::clone(&publish), tasks.token());
            let backoff = Backoff::new(
                Policy {
                    deadline: Duration::MAX,
                    ..Policy::default()
                },
                Arc::clone(clock),
                Arc::clone(random),
            );
            tasks.spawn_critical(format!("watch {prefix}"), async move {
                tokio::select! {
                    () = token.cancelled() => Ok(()),
                    ended = watch(meta, prefix, publish, revision, backoff) => ended,
                }
            });
        }
        Ok(Self { view })
    }

    /// The newest view.
    pub(crate) fn now(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }
}

async fn read(
    meta: &Arc<dyn MetaStore>,
    prefix: &'static str,
    publish: &watch::Sender<Arc<View>>,
) -> Result<store::Revision, ReadError> {
    let (entries, revision) = store::scan(&**meta, prefix, MEMBERS_MAX).await?;
    publish.send_modify(|view| {
        let view = Arc::make_mut(view);
        if prefix == keys::BROKERS {
            view.brokers.clear();
        } else {
            view.nodes.clear();
        }
        for entry in &entries {
            put(view, entry);
        }
    });
    Ok(revision)
}

/// Ends only where the store went back in time: then nothing believed so far can be trusted.
async fn watch(
    meta: Arc<dyn MetaStore>,
    prefix: &'static str,
    publish: Arc<watch::Sender<Arc<View>>>,
    mut revision: store::Revision,
    mut backoff: Backoff,
) -> Result<(), Regressed> {
    loop {
        let mut changes = meta.watch(prefix, revision);
        while let Some(batch) = changes.next().await {
            match batch {
                Ok(batch) => {
                    backoff.reset();
                    if !batch.events.is_empty() {
                        publish.send_modify(|view| {
                            let view = Arc::make_mut(view);
                            batch.events.iter().for_each(|event| apply(view, &event.kind));
                        });
                    }
                }
                Err(WatchError::Regressed(regressed)) => return Err(regressed),
                Err(WatchError::Closed) => return Ok(()),
                Err(error @ (WatchError::Compacted { .. } | WatchError::Refused(_))) => {
                    tracing::debug!(prefix, %error, "watch ended, reading anew");
                }
            }
        }
        loop {
            if let Err(exhausted) = backoff.wait().await {
                tracing::debug!(prefix, %exhausted, "backoff starts over");
                backoff.reset();
            }
            match read(&meta, prefix, &publish).await {
                Ok(read) => {
                    revision = read;
                    break;
                }
                Err(ReadError::Regressed(regressed)) => return Err(regressed),
                Err(error) if backoff.retries() < 8 => {
                    tracing::debug!(prefix, %error, "members cannot be read");
                }
                Err(error) => tracing::warn!(prefix, %error, "members cannot be read"),
            }
        }
    }
}

fn apply(view: &mut View, change: &WatchKind) {
    match change {
        WatchKind::Put(entry) => put(view, entry),
        WatchKind::Delete { key } => {
            if let Some(broker) = keys::broker_of(key) {
                view.brokers.remove(&broker);
            } else if let Some(node) = keys::node_of(key) {
                view.nodes.remove(&node);
            }
        }
    }
}

fn put(view: &mut View, entry: &Entry) {
    if let Some(broker) = keys::broker_of(&entry.key) {
        match record::decode::<BrokerRecord>(&entry.value) {
            Ok(record) => {
                let session = SessionId(entry.create_revision.get());
                view.brokers.insert(broker, LiveBroker { record, session });
            }
            Err(error) => tracing::warn!(key = entry.key, %error, "broker record cannot be read"),
        }
    } else if let Some(node) = keys::node_of(&entry.key) {
        match record::decode::<NodeRecord>(&entry.value) {
            Ok(record) => {
                view.nodes.insert(node, record);
            }
            Err(error) => tracing::warn!(key = entry.key, %error, "storage node record cannot be read"),
        }
    }
}
