//! Removes the records of deleted partitions that were written to, once nobody has anything left of
//! them (T9).
//!
//! A record marked as deleted is the proof by which storage nodes trim (I16), so it stays until its
//! owner has dropped the partition, or its session has ended, and until every storage node that is
//! not gone says, after that, that it holds nothing. Silence is no answer: a node that cannot be
//! asked keeps the records. Partition ids are never used again.
//!
//! The asking runs beside the leader's other work, a chunk of partitions at a time; only the
//! transaction that removes the records is the leader's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_record::{BrokerId, NodeId, PartitionId, SessionId};
use forebay_runtime::clock::{Clock, timeout};
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::Stop;
use super::health::ProbeError;
use super::leader::Leader;
use super::view::View;
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::model::Partition;
use crate::store::{Compare, Entry, MetaStore, Op, ReadError, scan};
use crate::topics::CHUNK;

/// Time between a topic's deletion and the first question: owners and nodes need some to act on it.
pub(super) const DRAIN_AFTER: Duration = Duration::from_secs(2);
/// Time between two passes over a topic's partitions.
pub(super) const DRAIN_EVERY: Duration = Duration::from_secs(10);
/// How long one process may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Storage nodes that a cluster may have.
const NODES_MAX: usize = 65_536;

/// Asks the process at a control address of which of these partitions it has something left.
pub type Ask = Arc<
    dyn Fn(String, Vec<PartitionId>) -> BoxFuture<'static, Result<Vec<PartitionId>, ProbeError>>
        + Send
        + Sync,
>;

/// Who can say that nothing is left of a partition.
#[derive(Clone)]
pub struct Holders {
    /// A broker: whether it owns them.
    pub brokers: Ask,
    /// A storage node: whether it holds segments of them.
    pub nodes: Ask,
}

/// A deleted topic of which records are left.
#[derive(Debug)]
pub(super) struct Drain {
    partitions: Vec<PartitionId>,
    /// Partitions before this one are dealt with in this pass.
    next: usize,
    /// Some record stays.
    kept: bool,
    /// Not before.
    due: Duration,
}

impl Drain {
    pub(super) fn new(partitions: Vec<PartitionId>, now: Duration) -> Self {
        Self {
            partitions,
            next: 0,
            kept: false,
            due: now.saturating_add(DRAIN_AFTER),
        }
    }

    fn chunk(&self) -> Vec<PartitionId> {
        self.partitions
            .iter()
            .skip(self.next)
            .take(CHUNK)
            .copied()
            .collect()
    }
}

/// What was heard about a chunk of partitions.
pub(super) struct Asked {
    topic: Uuid,
    /// Records of which nobody has anything left, as they were before anybody was asked.
    free: Vec<Entry>,
    /// Some record of the chunk stays.
    kept: bool,
}

/// What a question needs; it runs on its own.
struct Question {
    topic: Uuid,
    chunk: Vec<PartitionId>,
    store: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    holders: Holders,
    /// Sessions of brokers, and where to call them.
    brokers: BTreeMap<BrokerId, (SessionId, String)>,
}

impl Leader {
    /// The next question that is due.
    pub(super) fn next_question(&self, view: &View) -> Option<BoxFuture<'static, Asked>> {
        let now = self.clock.monotonic();
        let (topic, drain) = view.draining.iter().find(|(_, drain)| drain.due <= now)?;
        let question = Question {
            topic: *topic,
            chunk: drain.chunk(),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            holders: self.holders.clone(),
            brokers: view.patients(),
        };
        Some(Box::pin(question.ask()))
    }

    /// Removes what nobody has anything left of, and goes on to the next chunk.
    pub(super) async fn on_asked(&self, view: &mut View, asked: Asked) -> Result<(), Stop> {
        let now = self.clock.monotonic();
        let mut kept = asked.kept;
        if !asked.free.is_empty() {
            let count = asked.free.len() as u64;
            let mut txn = self.guarded();
            for entry in &asked.free {
                txn = txn
                    .when(Compare::unchanged(entry))
                    .then(Op::delete(entry.key.clone()));
            }
            let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
            if reply.succeeded {
                self.metrics.records_removed.inc_by(count);
            } else {
                self.still_leads(&reply)?;
                kept = true;
            }
        }
        let Some(drain) = view.draining.get_mut(&asked.topic) else {
            return Ok(());
        };
        drain.next += CHUNK;
        drain.kept |= kept;
        if drain.next < drain.partitions.len() {
            return Ok(());
        }
        (drain.next, drain.due) = (0, now.saturating_add(DRAIN_EVERY));
        let done = !std::mem::take(&mut drain.kept);
        if done && self.remove_record(asked.topic).await? {
            view.draining.remove(&asked.topic);
        }
        Ok(())
    }
}

impl Question {
    /// Cancel safety: nothing is changed by asking.
    async fn ask(self) -> Asked {
        match self.try_ask().await {
            Ok(asked) => asked,
            Err(error) => {
                tracing::debug!(topic = %self.topic, %error, "cannot tell what is left of a deleted topic");
                Asked {
                    topic: self.topic,
                    free: Vec::new(),
                    kept: true,
                }
            }
        }
    }

    async fn try_ask(&self) -> Result<Asked, ReadError> {
        let wanted: Vec<String> = self.chunk.iter().map(|id| keys::partition(*id)).collect();
        let (entries, _) = self.store.get_many(&wanted).await?;
        let mut left: BTreeMap<PartitionId, (Entry, Partition)> = BTreeMap::new();
        let mut kept = false;
        for entry in entries.into_iter().flatten() {
            match Partition::decode(&entry.value) {
                Ok(record) if record.deleted => {
                    left.insert(record.id, (entry, record));
                }
                // Not marked yet, or damaged: not ours to remove.
                Ok(_) | Err(_) => kept = true,
            }
        }
        let before = left.len();
        self.leave_owned(&mut left).await;
        if !left.is_empty() {
            self.leave_held(&mut left).await?;
        }
        Ok(Asked {
            topic: self.topic,
            kept: kept || left.len() < before,
            free: left.into_values().map(|(entry, _)| entry).collect(),
        })
    }

    /// Takes out the partitions whose owner may still write.
    async fn leave_owned(&self, left: &mut BTreeMap<PartitionId, (Entry, Partition)>) {
        let mut owners: BTreeMap<BrokerId, Vec<PartitionId>> = BTreeMap::new();
        for (_, record) in left.values() {
            let live = record.owner.filter(|owner| {
                self.brokers
                    .get(owner)
                    .is_some_and(|(id, _)| *id == record.session)
            });
            if let Some(owner) = live {
                owners.entry(owner).or_default().push(record.id);
            }
        }
        for (owner, partitions) in owners {
            let Some((_, address)) = self.brokers.get(&owner) else {
                continue;
            };
            let owned = self
                .call(&self.holders.brokers, address, partitions.clone())
                .await;
            let owned = owned.unwrap_or_else(|error| {
                tracing::debug!(broker = owner.0, %error, "the owner of deleted partitions does not answer");
                partitions
            });
            for id in owned {
                left.remove(&id);
            }
        }
    }

    /// Takes out the partitions of which a storage node holds something, or may do so.
    async fn leave_held(
        &self,
        left: &mut BTreeMap<PartitionId, (Entry, Partition)>,
    ) -> Result<(), ReadError> {
        let (entries, _) = scan(&*self.store, keys::NODES, NODES_MAX).await?;
        for entry in entries {
            let node = keys::node_of(&entry.key).unwrap_or(NodeId(0));
            let record = match decode::<NodeRecord>(&entry) {
                Ok(record) if record.state() == NodeState::Gone => continue,
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(%node, %error, "record of a storage node cannot be read");
                    left.clear();
                    return Ok(());
                }
            };
            let asked: Vec<PartitionId> = left.keys().copied().collect();
            match self
                .call(&self.holders.nodes, &record.control_address, asked)
                .await
            {
                Ok(held) => {
                    let held: BTreeSet<PartitionId> = held.into_iter().collect();
                    left.retain(|id, _| !held.contains(id));
                }
                Err(error) => {
                    tracing::debug!(%node, %error, "a storage node does not say what it holds of deleted partitions");
                    left.clear();
                }
            }
            if left.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn call(
        &self,
        ask: &Ask,
        address: &str,
        partitions: Vec<PartitionId>,
    ) -> Result<Vec<PartitionId>, ProbeError> {
        let call = ask(address.to_owned(), partitions);
        timeout(&*self.clock, ASK_TIMEOUT, call)
            .await
            .unwrap_or(Err(ProbeError::Timeout))
    }
}
