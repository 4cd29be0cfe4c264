//! Puts changes of partition records into the metadata store, and finds out what became of them.
//!
//! A change is one transaction on the revision its owner saw and on the broker's own session (I10).
//! It is sent once. Where its outcome is unknown, the record is read again until the store answers:
//! the record's nonce then tells its owner whether the change landed.

use std::sync::Arc;
use std::time::Duration;

use forebay_meta::model::{Partition, TopicConfig};
use forebay_meta::store::{Compare, Entry, MetaStore, Op, ReadError, Revision, Txn, TxnError};
use forebay_meta::{keys, record};
use forebay_proto::stored::TopicRecord;
use forebay_record::{BrokerId, PartitionId, SessionId};
use forebay_runtime::clock::Clock;

use crate::partition::Stored;

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

impl Records {
    fn transaction(&self, seen: u64, next: &Partition) -> Txn {
        let key = keys::partition(next.id);
        let session = keys::broker(self.me);
        Txn::new()
            .when(Compare::ModRevision(key.clone(), Revision(seen)))
            .when(Compare::CreateRevision(session.clone(), Revision(self.session.0)))
            .then(Op::put(key.clone(), next.encode()))
            .otherwise(Op::get(key))
            .otherwise(Op::get(session))
    }

    /// Stores `next` in place of the record last changed at `seen`; returns once the outcome is known.
    pub async fn change(&self, seen: u64, next: &Partition, clock: &dyn Clock) -> Stored {
        match self.store.txn(self.transaction(seen, next)).await {
            Ok(reply) if reply.succeeded => Stored::Done(reply.revision.0),
            Ok(reply) => {
                let mut reads = reply.reads.into_iter();
                let (record, session) = (reads.next().flatten(), reads.next().flatten());
                self.judge(next.id, record, session)
            }
            Err(error @ (TxnError::Refused(_) | TxnError::Regressed(_))) => {
                tracing::error!(partition = %next.id, %error, "a record's change is refused by the store");
                Stored::Gone
            }
            Err(error) => {
                tracing::warn!(partition = %next.id, %error, "outcome of a record's change is unknown, reading it again");
                self.read_again(next.id, clock).await
            }
        }
    }

    async fn read_again(&self, partition: PartitionId, clock: &dyn Clock) -> Stored {
        let wanted = [keys::partition(partition), keys::broker(self.me)];
        let mut pause = PAUSE_MIN;
        loop {
            clock.sleep(pause).await;
            match self.store.get_many(&wanted).await {
                Ok((entries, _)) => {
                    let mut entries = entries.into_iter();
                    let (record, session) = (entries.next().flatten(), entries.next().flatten());
                    return self.judge(partition, record, session);
                }
                Err(error @ (ReadError::Refused(_) | ReadError::Regressed(_))) => {
                    tracing::error!(%partition, %error, "the record is refused by the store");
                    return Stored::Gone;
                }
                Err(error) => {
                    tracing::debug!(%partition, %error, "the record still cannot be read");
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn judge(&self, id: PartitionId, record: Option<Entry>, session: Option<Entry>) -> Stored {
        let alive = session.is_some_and(|entry| entry.create_revision.0 == self.session.0);
        let Some(entry) = record.filter(|_| alive) else {
            return Stored::Gone;
        };
        match Partition::decode(&entry.value) {
            Ok(found) => Stored::Conflict(Box::new(found), entry.mod_revision.0),
            Err(error) => {
                tracing::error!(partition = %id, %error, "a partition's record is damaged");
                Stored::Gone
            }
        }
    }

    /// Takes a partition for this session: reads its record and raises the epoch (T1). None where
    /// the partition does not exist or is deleted.
    ///
    /// # Errors
    /// Where the store does not answer, or somebody else changed the record at the same time: the
    /// caller tries again while it still should own the partition.
    pub async fn grant(&self, id: PartitionId, nonce: u64) -> Result<Option<Granted>, String> {
        let key = keys::partition(id);
        let (entry, _) = self.store.get(&key).await.map_err(|error| error.to_string())?;
        let Some(entry) = entry else { return Ok(None) };
        let record = Partition::decode(&entry.value).map_err(|error| error.to_string())?;
        let Some((topic, topic_revision)) = self.topic(&record).await? else {
            return Ok(None);
        };
        let granted = match record.grant(self.me, self.session, nonce) {
            Ok(granted) => granted,
            Err(refused) => {
                tracing::debug!(partition = %id, %refused, "no grant");
                return Ok(None);
            }
        };
        let reply = self
            .store
            .txn(self.transaction(entry.mod_revision.0, &granted))
            .await;
        match reply {
            Ok(reply) if reply.succeeded => Ok(Some(Granted {
                record: granted,
                revision: reply.revision.0,
                topic,
                topic_revision,
            })),
            Ok(_) => Err(format!(
                "{id} was changed by somebody else, or this session is gone"
            )),
            // A grant that landed after all is overtaken by the next one, which raises the epoch again.
            Err(error) => Err(error.to_string()),
        }
    }

    /// Configuration of a partition's topic and when it was changed, none where the topic is gone.
    async fn topic(&self, record: &Partition) -> Result<Option<(TopicConfig, Revision)>, String> {
        let (entry, _) = self
            .store
            .get(&keys::topic(record.topic))
            .await
            .map_err(|error| error.to_string())?;
        let Some(entry) = entry else { return Ok(None) };
        let topic: TopicRecord = record::decode(&entry.value).map_err(|error| error.to_string())?;
        if topic.deleted {
            return Ok(None);
        }
        TopicConfig::parse(&topic.config)
            .map(|config| Some((config, entry.mod_revision)))
            .map_err(|error| error.to_string())
    }
}
