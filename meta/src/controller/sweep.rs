//! Finds partition records that no topic will ever claim: what an interrupted creation leaves, or
//! an interrupted attempt to give a topic more partitions.
//!
//! A pass reads all partition records, one page per step, and notes those that were never granted
//! and whose topic is not known, or does not list them. What was noted [`ORPHAN_AGE`] ago and is
//! still so goes:
//! - Where the topic is not known it is claimed: a deleted `/t/<uuid>` is put where there is none,
//!   and from then on the creation can only fail and the records go the way of every deleted topic.
//! - Where the topic is known the records are removed, and its own record is put again as it is, so
//!   that whoever meant to list them loses the comparison and finds that they are gone.
//!
//! The age is courtesy to those who are slow, not what makes it right: a creation publishes its
//! topic only if there is no `/t/<uuid>` and its first record is untouched, and the claim goes
//! only after the records are gone; a topic grows only if its record has not been put since its new
//! partitions were seen. So whoever comes second loses, however late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_proto::stored::TopicRecord;
use forebay_record::PartitionId;
use uuid::Uuid;

use super::Stop;
use super::leader::Leader;
use super::view::View;
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::model::Partition;
use crate::record::encode;
use crate::store::{Compare, Entry, Op, Range};
use crate::topics::CHUNK;

/// Time from the beginning of a pass to that of the next.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long a record must have been without a topic.
pub(super) const ORPHAN_AGE: Duration = Duration::from_secs(300);
/// Records read by one step: about half a megabyte.
const PAGE_RECORDS: usize = 1000;
/// Most topics, and partitions of all of them, that are noted in a pass; more wait for a later one.
const SUSPECTS_MAX: usize = 1000;
const SUSPECT_PARTITIONS_MAX: usize = 100_000;

/// Partition records whose topic is not known.
#[derive(Debug)]
struct Suspect {
    since: Duration,
    /// As seen in this pass.
    partitions: Vec<PartitionId>,
}

/// How far the pass has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// When the newest pass began.
    began: Option<Duration>,
    /// Last key read; none between passes.
    cursor: Option<String>,
    suspects: BTreeMap<Uuid, Suspect>,
    noted: usize,
}

impl Sweep {
    fn due(&self, now: Duration) -> bool {
        self.cursor.is_some()
            || self
                .began
                .is_none_or(|began| now.saturating_sub(began) >= SWEEP_EVERY)
    }

    fn begin(&mut self, now: Duration) {
        self.began = Some(now);
        self.noted = 0;
        for suspect in self.suspects.values_mut() {
            suspect.partitions.clear();
        }
    }

    fn note(&mut self, now: Duration, view: &View, entry: &Entry) {
        let partition = match Partition::decode(&entry.value) {
            Ok(partition) => partition,
            Err(error) => {
                tracing::error!(key = entry.key, %error, "partition record cannot be read");
                return;
            }
        };
        if partition.epoch.0 != 0 || partition.deleted || !is_orphan(view, partition.topic, partition.id) {
            return;
        }
        let known = self.suspects.contains_key(&partition.topic);
        if self.noted >= SUSPECT_PARTITIONS_MAX || (!known && self.suspects.len() >= SUSPECTS_MAX) {
            return;
        }
        let suspect = self.suspects.entry(partition.topic).or_insert_with(|| Suspect {
            since: now,
            partitions: Vec::new(),
        });
        suspect.partitions.push(partition.id);
        self.noted += 1;
    }

    /// Ends a pass; returns what is to be claimed.
    fn end(&mut self, now: Duration, view: &View) -> Vec<(Uuid, Vec<PartitionId>)> {
        self.cursor = None;
        self.suspects.retain(|topic, suspect| {
            suspect.partitions.retain(|id| is_orphan(view, *topic, *id));
            !suspect.partitions.is_empty()
        });
        let old = |suspect: &Suspect| now.saturating_sub(suspect.since) >= ORPHAN_AGE;
        let claims = self.suspects.iter_mut().filter(|(_, suspect)| old(suspect));
        claims
            .map(|(topic, suspect)| (*topic, std::mem::take(&mut suspect.partitions)))
            .collect()
    }
}

/// Whether no topic that is known lists a partition of this topic.
fn is_orphan(view: &View, topic: Uuid, partition: PartitionId) -> bool {
    !view.knows_topic(topic) || view.is_stray(topic, partition)
}

impl Leader {
    /// Reads one page of the pass that is due, if one is.
    pub(super) async fn sweep(&self, view: &View, sweep: &mut Sweep) -> Result<(), Stop> {
        let now = self.clock.monotonic();
        if !sweep.due(now) {
            return Ok(());
        }
        let mut range = Range::new(keys::PARTITIONS).limit(PAGE_RECORDS);
        match &sweep.cursor {
            Some(cursor) => range = range.start_after(cursor.clone()),
            None => sweep.begin(now),
        }
        let page = self.store.range(range).await.map_err(MetaFailure::from)?;
        for entry in &page.entries {
            sweep.note(now, view, entry);
        }
        if page.more {
            sweep.cursor = page.entries.last().map(|entry| entry.key.clone());
            return Ok(());
        }
        for (topic, partitions) in sweep.end(now, view) {
            if view.knows_topic(topic) {
                self.remove_strays(topic, &partitions).await?;
            } else {
                self.claim(topic, &partitions).await?;
            }
        }
        Ok(())
    }

    /// Removes records that a topic does not list. What changes meanwhile is left to a later pass.
    async fn remove_strays(&self, topic: Uuid, partitions: &[PartitionId]) -> Result<(), Stop> {
        for chunk in partitions.chunks(CHUNK) {
            let (entry, _) = self
                .store
                .get(&keys::topic(topic))
                .await
                .map_err(MetaFailure::from)?;
            let Some(entry) = entry else { return Ok(()) };
            let record: TopicRecord = decode(&entry)?;
            if record.deleted {
                return Ok(());
            }
            let listed: BTreeSet<u64> = record.partition_ids.iter().copied().collect();
            let record_keys: Vec<String> = chunk.iter().map(|id| keys::partition(*id)).collect();
            let (found, _) = self
                .store
                .get_many(&record_keys)
                .await
                .map_err(MetaFailure::from)?;
            let mut txn = self
                .guarded()
                .when(Compare::unchanged(&entry))
                .then(Op::put(entry.key.clone(), entry.value.clone()));
            let mut removed = 0_u64;
            for found in found.iter().flatten() {
                let untouched = Partition::decode(&found.value).is_ok_and(|partition| {
                    partition.epoch.0 == 0
                        && !partition.deleted
                        && partition.topic == topic
                        && !listed.contains(&partition.id.0)
                });
                if untouched {
                    txn = txn
                        .when(Compare::unchanged(found))
                        .then(Op::delete(found.key.clone()));
                    removed += 1;
                }
            }
            if removed == 0 {
                continue;
            }
            let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
            if !reply.succeeded {
                return self.still_leads(&reply);
            }
            self.metrics.records_removed.inc_by(removed);
            tracing::info!(%topic, partitions = removed, "removed partitions that an interrupted growth left");
        }
        Ok(())
    }

    async fn claim(&self, topic: Uuid, partitions: &[PartitionId]) -> Result<(), Stop> {
        let record = TopicRecord {
            id: topic.as_bytes().to_vec().into(),
            partition_ids: partitions.iter().map(|id| id.0).collect(),
            deleted: true,
            ..TopicRecord::default()
        };
        let key = keys::topic(topic);
        let txn = self
            .guarded()
            .when(Compare::absent(key.clone()))
            .then(Op::put(key, encode(&record)));
        let reply = self.store.txn(txn).await.map_err(MetaFailure::from)?;
        if !reply.succeeded {
            // The creation was only slow and is through.
            return self.still_leads(&reply);
        }
        tracing::info!(%topic, partitions = partitions.len(), "removing what an interrupted creation left");
        Ok(())
    }
}
