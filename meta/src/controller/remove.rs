//! Removes what belongs to deleted topics, a chunk of partitions at a time.
//!
//! For each chunk, in one transaction: the wishes go; a partition record that was never granted
//! goes as well, because no storage node can hold anything of it; any other is marked deleted and
//! stays as the proof that lets storage nodes trim (I16), for [`super::drain`] to remove. Once no
//! record is left, the topic's own record goes.
//!
//! Idempotent: it reads what is there and writes what is missing, so an unknown outcome, a lost
//! race or a new leader only mean to look again.

use forebay_record::PartitionId;
use uuid::Uuid;

use super::Stop;
use super::drain::Drain;
use super::leader::Leader;
use super::view::View;
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::model::Partition;
use crate::store::{Compare, Entry, Op, Txn};
use crate::topics::CHUNK;
use forebay_proto::stored::TopicRecord;

/// How far the removal of one topic has come.
#[derive(Debug)]
pub(super) struct Removal {
    partitions: Vec<PartitionId>,
    /// Partitions before this one are dealt with.
    next: usize,
    /// Some record stays.
    kept: bool,
}

impl Removal {
    pub(super) fn new(partitions: Vec<PartitionId>) -> Self {
        Self {
            partitions,
            next: 0,
            kept: false,
        }
    }
}

/// What one step has done.
enum Step {
    /// The chunk is as it should be; whether a record of it stays.
    Chunk { kept: bool },
    /// Somebody changed a record in between.
    Lost,
}

impl Leader {
    /// Takes deleted topics further by up to `steps` chunks; returns the chunks left undone for
    /// want of steps.
    pub(super) async fn remove(&self, view: &mut View, steps: usize) -> Result<bool, Stop> {
        let mut after: Option<Uuid> = None;
        for _ in 0..steps {
            let next = match after {
                None => view.removals.iter().next(),
                Some(after) => view
                    .removals
                    .range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
                    .next(),
            };
            let Some((topic, removal)) = next else {
                return Ok(false);
            };
            let topic = *topic;
            let chunk: Vec<PartitionId> = removal
                .partitions
                .iter()
                .skip(removal.next)
                .take(CHUNK)
                .copied()
                .collect();
            if chunk.is_empty() {
                let kept = removal.kept;
                if !kept && !self.remove_record(topic).await? {
                    after = Some(topic);
                    continue;
                }
                if let Some(removal) = view.removals.remove(&topic).filter(|_| kept) {
                    let drain = Drain::new(removal.partitions, self.clock.monotonic());
                    view.draining.insert(topic, drain);
                }
                continue;
            }
            match self.remove_chunk(view, &chunk).await? {
                Step::Chunk { kept } => {
                    if let Some(removal) = view.removals.get_mut(&topic) {
                        removal.next += chunk.len();
                        removal.kept |= kept;
                    }
                }
                // An owner is busy with it: the next tick tries again.
                Step::Lost => after = Some(topic),
            }
        }
        Ok(!view.removals.is_empty())
    }

    async fn remove_chunk(&self, view: &mut View, chunk: &[PartitionId]) -> Result<Step, Stop> {
        let record_keys: Vec<String> = chunk.iter().map(|id| keys::partition(*id)).collect();
        let (entries, _) = self
            .store
            .get_many(&record_keys)
            .await
            .map_err(MetaFailure::from)?;
        let mut txn = self.guarded();
        let (mut kept, mut removed) = (false, 0_u64);
        for entry in entries.iter().flatten() {
            match Partition::decode(&entry.value) {
                Ok(partition) if partition.epoch.0 == 0 => {
                    txn = txn
                        .when(Compare::unchanged(entry))
                        .then(Op::delete(entry.key.clone()));
                    removed += 1;
                }
                Ok(partition) => {
                    kept = true;
                    if !partition.deleted {
                        let next = partition.delete(self.random.u64());
                        txn = txn
                            .when(Compare::unchanged(entry))
                            .then(Op::put(entry.key.clone(), next.encode()));
                    }
                }
                Err(error) => {
                    kept = true;
                    tracing::error!(key = entry.key, %error, "partition record of a deleted topic cannot be read");
                }
            }
        }
        for id in chunk.iter().filter(|id| view.wish_revision(**id).0 != 0) {
            txn = txn.then(Op::delete(keys::wish(*id)));
        }
        if txn.then.is_empty() {
            return Ok(Step::Chunk { kept });
        }
        let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
        if !reply.succeeded {
            self.still_leads(&reply)?;
            return Ok(Step::Lost);
        }
        for id in chunk {
            view.clear_wish(*id, reply.revision);
        }
        self.metrics.records_removed.inc_by(removed);
        Ok(Step::Chunk { kept })
    }

    /// Removes the record of a deleted topic that has no partition records; false where it has
    /// changed in between.
    pub(super) async fn remove_record(&self, topic: Uuid) -> Result<bool, Stop> {
        let (entry, _) = self
            .store
            .get(&keys::topic(topic))
            .await
            .map_err(MetaFailure::from)?;
        let Some(entry) = entry.filter(is_deleted) else {
            return Ok(true);
        };
        let txn: Txn = self
            .guarded()
            .when(Compare::unchanged(&entry))
            .then(Op::delete(entry.key));
        let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
        if !reply.succeeded {
            self.still_leads(&reply)?;
        } else {
            tracing::info!(%topic, "deleted topic is gone");
        }
        Ok(reply.succeeded)
    }
}

fn is_deleted(entry: &Entry) -> bool {
    decode::<TopicRecord>(entry).is_ok_and(|record| record.deleted)
}
