//! Puts changes of partition records into the metadata store, and finds out what became of them.
//!
//! A change is a compare on the revision its owner saw and on the broker's own session (I10). Changes
//! that wait together go in one transaction, which is sent once; each keeps an outcome of its own.
//! Where the outcome is unknown, the records are read again until the store answers: a record's nonce
//! then tells its owner whether the change landed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_meta::model::{Partition, TopicConfig};
use forebay_meta::store::{Compare, Entry, MetaStore, Op, ReadError, Revision, Txn, TxnError};
use forebay_meta::{keys, record};
use forebay_proto::stored::TopicRecord;
use forebay_record::{BrokerId, PartitionId, SessionId};
use forebay_runtime::clock::Clock;
use forebay_runtime::mutant::{self, Mutant};
use uuid::Uuid;

use crate::partition::Stored;

/// Records changed by one transaction: with the session's key no more than may be read together.
pub const BATCH_MAX: usize = 60;
/// Bytes of records in one transaction, unless a single one is larger: below what the store takes.
const BATCH_BYTES_MAX: usize = 512 << 10;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Changes records for one broker session.
#[derive(Debug, Clone)]
pub struct Records {
    /// Where they are.
    pub store: Arc<dyn MetaStore>,
    /// This broker.
    pub me: BrokerId,
    /// Its session.
    pub session: SessionId,
}

/// A partition that was granted to this session.
#[derive(Debug, Clone)]
pub struct Granted {
    /// Its record, with the grant in it.
    pub record: Partition,
    /// Revision at which the record was last changed.
    pub revision: u64,
    /// Configuration of its topic.
    pub topic: TopicConfig,
    /// Revision at which the topic's record was last changed.
    pub topic_revision: Revision,
}

/// A record to be stored in place of the one that was last changed at `seen`.
#[derive(Debug, Clone)]
pub struct Change {
    /// Revision of what it replaces.
    pub seen: u64,
    /// The new record.
    pub next: Box<Partition>,
}

/// What a transaction did to one record.
enum Applied {
    /// It is stored, at this revision.
    Done(u64),
    /// It is not: this is the entry as it stands.
    Found(Option<Entry>),
    /// This broker's session is gone, and nothing was stored.
    NoSession,
}

impl Records {
    fn transaction(&self, changes: &[(u64, PartitionId, Bytes)]) -> Txn {
        let session = keys::broker(self.me);
        let mut txn = Txn::new().otherwise(Op::get(session.clone()));
        if !mutant::is(Mutant::EpochIgnored) {
            txn = txn.when(Compare::CreateRevision(session, Revision(self.session.0)));
        }
        for (seen, id, value) in changes {
            let key = keys::partition(*id);
            txn = txn
                .when(Compare::ModRevision(key.clone(), Revision(*seen)))
                .then(Op::put(key.clone(), value.clone()))
                .otherwise(Op::get(key));
        }
        txn
    }

    fn is_mine(&self, session: Option<&Entry>) -> bool {
        mutant::is(Mutant::EpochIgnored)
            || session.is_some_and(|entry| entry.create_revision.0 == self.session.0)
    }

    /// Stores up to [`BATCH_MAX`] records, as many of them together as nobody else has changed: a
    /// compare that fails leaves out its own record and no other one.
    async fn apply(&self, changes: &[(u64, &Partition)]) -> Result<Vec<Applied>, TxnError> {
        let mut outcome: Vec<Option<Applied>> = changes.iter().map(|_| None).collect();
        loop {
            let (mut left, mut these, mut bytes) = (Vec::new(), Vec::new(), 0);
            for (at, (seen, next)) in changes.iter().enumerate() {
                let value = next.encode();
                let fits = these.is_empty() || bytes + value.len() <= BATCH_BYTES_MAX;
                if fits && outcome.get(at).is_some_and(Option::is_none) {
                    bytes += value.len();
                    left.push(at);
                    these.push((*seen, next.id, value));
                }
            }
            if these.is_empty() {
                return Ok(outcome.into_iter().flatten().collect());
            }
            let reply = self.store.txn(self.transaction(&these)).await?;
            let mut reads = reply.reads.into_iter();
            let alive = reply.succeeded || self.is_mine(reads.next().flatten().as_ref());
            let read: Vec<Option<Entry>> = reads.collect();
            // Where all that was compared is as expected after all, each is told what it found: a
            // transaction is never sent twice for no reason that can be seen.
            let unchanged = |(seen, entry): (&u64, &Option<Entry>)| {
                entry.as_ref().is_some_and(|entry| entry.mod_revision.0 == *seen)
            };
            let all_unchanged = these.iter().map(|(seen, ..)| seen).zip(&read).all(unchanged);
            let mut read = read.into_iter();
            for (at, (seen, ..)) in left.iter().zip(&these) {
                let found = read.next().flatten();
                let unchanged = unchanged((seen, &found));
                let Some(slot) = outcome.get_mut(*at) else {
                    continue;
                };
                if reply.succeeded {
                    *slot = Some(Applied::Done(reply.revision.0));
                } else if !alive {
                    *slot = Some(Applied::NoSession);
                } else if all_unchanged || !unchanged {
                    *slot = Some(Applied::Found(found));
                }
            }
        }
    }

    /// Stores records, each in place of the one that its change has seen; returns once the outcome of
    /// all is known, in their order. At most [`BATCH_MAX`].
    pub async fn change(&self, changes: &[Change], clock: &dyn Clock) -> Vec<Stored> {
        let pairs: Vec<_> = changes
            .iter()
            .map(|change| (change.seen, &*change.next))
            .collect();
        match self.apply(&pairs).await {
            Ok(applied) => (pairs.iter().zip(applied))
                .map(|((_, next), applied)| match applied {
                    Applied::Done(revision) => Stored::Done(revision),
                    Applied::Found(entry) => judge(next.id, entry),
                    Applied::NoSession => Stored::Gone,
                })
                .collect(),
            Err(error @ TxnError::Refused(_)) if changes.len() > 1 => {
                tracing::warn!(records = changes.len(), %error, "changes of records are sent one by one");
                let mut outcome = Vec::with_capacity(changes.len());
                for change in changes {
                    outcome.extend(Box::pin(self.change(std::slice::from_ref(change), clock)).await);
                }
                outcome
            }
            Err(error @ (TxnError::Refused(_) | TxnError::Regressed(_))) => {
                tracing::error!(records = changes.len(), %error, "changes of records are refused by the store");
                changes.iter().map(|_| Stored::Gone).collect()
            }
            Err(error) => {
                tracing::warn!(records = changes.len(), %error, "outcome of records' changes is unknown, reading them again");
                let ids: Vec<_> = pairs.iter().map(|(_, next)| next.id).collect();
                self.read_again(&ids, clock).await
            }
        }
    }

    async fn read_again(&self, partitions: &[PartitionId], clock: &dyn Clock) -> Vec<Stored> {
        let wanted: Vec<_> = std::iter::once(keys::broker(self.me))
            .chain(partitions.iter().map(|id| keys::partition(*id)))
            .collect();
        let mut pause = PAUSE_MIN;
        loop {
            clock.sleep(pause).await;
            match self.store.get_many(&wanted).await {
                Ok((entries, _)) => {
                    let mut entries = entries.into_iter();
                    let alive = self.is_mine(entries.next().flatten().as_ref());
                    return (partitions.iter().zip(entries))
                        .map(|(id, entry)| judge(*id, entry.filter(|_| alive)))
                        .collect();
                }
                Err(error @ (ReadError::Refused(_) | ReadError::Regressed(_))) => {
                    tracing::error!(records = partitions.len(), %error, "records are refused by the store");
                    return partitions.iter().map(|_| Stored::Gone).collect();
                }
                Err(error) => {
                    tracing::debug!(records = partitions.len(), %error, "records still cannot be read");
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Takes partitions for this session, at most [`BATCH_MAX`]: reads their records and raises the
    /// epochs (T1). None where a partition does not exist or is deleted.
    ///
    /// # Errors
    /// For each on its own: where the store does not answer, or somebody else changed the record at
    /// the same time. The caller tries again while it still should own the partition.
    pub async fn grant(&self, wanted: &[(PartitionId, u64)]) -> Vec<Result<Option<Granted>, String>> {
        match self.read_for_grant(wanted).await {
            Ok(candidates) => self.take(wanted, candidates).await,
            Err(error) => wanted.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    /// What each partition's record would be with the grant in it, none where there is nothing to take.
    async fn read_for_grant(
        &self,
        wanted: &[(PartitionId, u64)],
    ) -> Result<Vec<Result<Option<Granted>, String>>, String> {
        let keys: Vec<_> = wanted.iter().map(|(id, _)| keys::partition(*id)).collect();
        let (entries, _) = self
            .store
            .get_many(&keys)
            .await
            .map_err(|error| error.to_string())?;
        let found: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let read = |entry: Entry| {
                    let record = Partition::decode(&entry.value).map_err(|error| error.to_string())?;
                    Ok((record, entry.mod_revision.0))
                };
                entry.map(read).transpose()
            })
            .collect();
        let topics = found
            .iter()
            .filter_map(|one: &Result<Option<(Partition, u64)>, String>| {
                Some(one.as_ref().ok()?.as_ref()?.0.topic)
            });
        let topics = self.topics(topics.collect()).await?;
        let candidates = found.into_iter().zip(wanted).map(|(one, (id, nonce))| {
            let Some((record, seen)) = one? else {
                return Ok(None);
            };
            let Some((topic, topic_revision)) = topics.get(&record.topic).cloned().transpose()?.flatten()
            else {
                return Ok(None);
            };
            match record.grant(self.me, self.session, *nonce) {
                Ok(record) => Ok(Some(Granted {
                    record,
                    revision: seen,
                    topic,
                    topic_revision,
                })),
                Err(refused) => {
                    tracing::debug!(partition = %id, %refused, "no grant");
                    Ok(None)
                }
            }
        });
        Ok(candidates.collect())
    }

    /// Stores grants whose `revision` is still that of the record before.
    async fn take(
        &self,
        wanted: &[(PartitionId, u64)],
        mut candidates: Vec<Result<Option<Granted>, String>>,
    ) -> Vec<Result<Option<Granted>, String>> {
        let pairs: Vec<_> = candidates
            .iter()
            .filter_map(|one| one.as_ref().ok()?.as_ref())
            .map(|granted| (granted.revision, &granted.record))
            .collect();
        // A grant that landed after all is overtaken by the next one, which raises the epoch again.
        let applied = self.apply(&pairs).await.map_err(|error| error.to_string());
        let mut applied = applied.map(Vec::into_iter);
        for (one, (id, _)) in candidates.iter_mut().zip(wanted) {
            let Ok(Some(granted)) = one else { continue };
            match applied.as_mut().map(Iterator::next) {
                Ok(Some(Applied::Done(revision))) => granted.revision = revision,
                Ok(_) => {
                    *one = Err(format!(
                        "{id} was changed by somebody else, or this session is gone"
                    ))
                }
                Err(error) => *one = Err(error.clone()),
            }
        }
        candidates
    }

    /// Configurations of topics and when they were changed, none where a topic is gone.
    async fn topics(
        &self,
        ids: BTreeSet<Uuid>,
    ) -> Result<BTreeMap<Uuid, Result<Option<(TopicConfig, Revision)>, String>>, String> {
        let ids: Vec<_> = ids.into_iter().collect();
        let keys: Vec<_> = ids.iter().map(|id| keys::topic(*id)).collect();
        let (entries, _) = self
            .store
            .get_many(&keys)
            .await
            .map_err(|error| error.to_string())?;
        let read = |entry: Entry| {
            let topic: TopicRecord = record::decode(&entry.value).map_err(|error| error.to_string())?;
            if topic.deleted {
                return Ok(None);
            }
            let config = TopicConfig::parse(&topic.config).map_err(|error| error.to_string())?;
            Ok(Some((config, entry.mod_revision)))
        };
        let read = |entry: Option<Entry>| entry.map_or(Ok(None), read);
        Ok(ids.into_iter().zip(entries.into_iter().map(read)).collect())
    }
}

fn judge(id: PartitionId, entry: Option<Entry>) -> Stored {
    let Some(entry) = entry else { return Stored::Gone };
    match Partition::decode(&entry.value) {
        Ok(found) => Stored::Conflict(Box::new(found), entry.mod_revision.0),
        Err(error) => {
            tracing::error!(partition = %id, %error, "a partition's record is damaged");
            Stored::Gone
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use forebay_meta::session::{Session, register_broker};
    use forebay_meta::store::EmbeddedStore;
    use forebay_meta::topics;
    use forebay_proto::stored::BrokerRecord;
    use forebay_runtime::clock::SystemClock;
    use forebay_runtime::random::OsRandom;
    use forebay_runtime::tasks::Tasks;

    use super::*;

    struct World {
        records: Records,
        session: Session,
        partitions: Vec<PartitionId>,
        _folder: tempfile::TempDir,
    }

    async fn world() -> World {
        let folder = tempfile::tempdir().unwrap();
        let (clock, tasks) = (Arc::new(SystemClock::new()), Tasks::new("test"));
        let file = folder.path().join("meta.redb");
        let store: Arc<dyn MetaStore> = Arc::new(EmbeddedStore::open(&file, clock, &tasks).await.unwrap());
        let record = BrokerRecord {
            id: 1,
            ..BrokerRecord::default()
        };
        let session = register_broker(Arc::clone(&store), &record, Duration::from_secs(30))
            .await
            .unwrap();
        let topic = topics::create(store.as_ref(), &OsRandom, "t", 5, BTreeMap::new())
            .await
            .unwrap();
        let records = Records {
            store,
            me: BrokerId(1),
            session: session.id(),
        };
        World {
            records,
            session,
            partitions: topic.partition_ids,
            _folder: folder,
        }
    }

    impl World {
        async fn granted(&self) -> Vec<Granted> {
            let wanted: Vec<_> = self.partitions.iter().map(|id| (*id, id.0)).collect();
            let granted = self.records.grant(&wanted).await;
            granted.into_iter().map(|one| one.unwrap().unwrap()).collect()
        }

        /// Changes of all partitions that do nothing but name their nonce.
        fn changes(granted: &[Granted], nonce: u64) -> Vec<Change> {
            granted
                .iter()
                .map(|one| Change {
                    seen: one.revision,
                    next: Box::new(Partition {
                        op: nonce,
                        ..one.record.clone()
                    }),
                })
                .collect()
        }
    }

    #[tokio::test]
    async fn grants_go_together_and_a_partition_that_does_not_exist_holds_up_no_other() {
        let world = world().await;
        let mut wanted: Vec<_> = world.partitions.iter().map(|id| (*id, id.0)).collect();
        wanted.insert(2, (PartitionId(999), 7));
        let granted = world.records.grant(&wanted).await;
        assert_eq!(granted.len(), 6);
        assert!(matches!(granted.get(2), Some(Ok(None))));
        let mut revisions = BTreeSet::new();
        for one in granted.into_iter().filter_map(|one| one.unwrap()) {
            assert_eq!((one.record.epoch.0, one.record.owner), (1, Some(BrokerId(1))));
            revisions.insert(one.revision);
        }
        assert_eq!(revisions.len(), 1, "one transaction");
    }

    #[tokio::test]
    async fn a_record_that_somebody_changed_is_left_out_of_a_batch_and_the_others_are_stored() {
        let world = world().await;
        let granted = world.granted().await;
        let one = granted.get(1).unwrap();
        let other = Partition {
            op: 77,
            ..one.record.clone()
        };
        let put = Txn::new().then(Op::put(keys::partition(other.id), other.encode()));
        world.records.store.txn(put).await.unwrap();
        let stored = world
            .records
            .change(&World::changes(&granted, 5), &SystemClock::new())
            .await;
        assert_eq!(stored.len(), 5);
        for (at, outcome) in stored.iter().enumerate() {
            match outcome {
                Stored::Done(_) => assert_ne!(at, 1),
                Stored::Conflict(found, _) => assert_eq!((at, found.op), (1, 77)),
                Stored::Gone => panic!("{at} is gone"),
            }
        }
    }

    #[tokio::test]
    async fn without_its_session_a_broker_changes_and_takes_nothing() {
        let world = world().await;
        let granted = world.granted().await;
        world.session.close().await.unwrap();
        let stored = world
            .records
            .change(&World::changes(&granted, 5), &SystemClock::new())
            .await;
        assert_eq!(stored.len(), 5);
        assert!(stored.iter().all(|one| matches!(one, Stored::Gone)), "{stored:?}");
        let wanted: Vec<_> = world.partitions.iter().map(|id| (*id, id.0)).collect();
        assert!(world.records.grant(&wanted).await.iter().all(Result::is_err));
    }
}
