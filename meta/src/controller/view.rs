//! What the leader knows of the cluster: topics, broker sessions and wishes, as small as possible.
//!
//! 1. [`View::load`] reads all three at one revision, page by page.
//! 2. [`View::apply`] takes the changes after it, in any order between keys, in order for a key.
//! 3. What the leader itself has written is put in at once; the watch tells it a second time.
//!
//! Never acts. A value that cannot be read is logged and treated as not there, so that one damaged
//! record does not stop the placement of all others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_proto::stored::{BrokerRecord, PlacementRecord, TopicRecord};
use forebay_record::{BrokerId, PartitionId, SessionId};
use uuid::Uuid;

use super::balance::Held;
use super::drain::Drain;
use super::probe::Patients;
use super::remove::Removal;
use crate::failure::{MetaFailure, decode};
use crate::keys;
use crate::store::{Entry, MetaStore, Range, Revision, WatchEvent, WatchKind};

/// A broker that has a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broker {
    pub(super) session: SessionId,
    pub(super) control_address: String,
    /// It is to be emptied.
    pub(super) draining: bool,
}

/// Where a partition is wished to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// None where the stored wish cannot be read.
    pub(super) broker: Option<BrokerId>,
    /// The session that hands the partition over first; zero where there is none to wait for.
    pub(super) from: SessionId,
    /// When it was last put.
    pub(super) revision: Revision,
}

impl Wish {
    /// As stored; one that cannot be read names nobody.
    pub(super) fn of(entry: &Entry) -> Self {
        let record = readable::<PlacementRecord>(entry);
        Self {
            from: SessionId(record.as_ref().map_or(0, |record| record.from_session)),
            broker: record.map(|record| BrokerId(record.broker)),
            revision: entry.mod_revision,
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Belongs to a topic that is not deleted.
    wanted: bool,
    wish: Option<Wish>,
    /// Bytes a second that come and go, as last told.
    bytes_per_s: u64,
    /// When it was last moved on purpose.
    moved_at: Option<Duration>,
}

impl Slot {
    /// The broker whose load it counts for.
    fn counted(&self) -> Option<BrokerId> {
        self.wish.filter(|_| self.wanted).and_then(|wish| wish.broker)
    }

    /// A planned move of it is under way.
    fn is_moving(&self) -> bool {
        self.wanted && self.wish.is_some_and(|wish| wish.from != SessionId(0))
    }
}

/// A topic, as far as placement is concerned.
#[derive(Debug)]
enum Known {
    Live(Vec<PartitionId>),
    /// Deleted; its removal is queued, or done as far as it goes.
    Deleted,
}

#[derive(Debug, Default)]
pub(super) struct View {
    topics: BTreeMap<Uuid, Known>,
    partitions: BTreeMap<PartitionId, Slot>,
    brokers: BTreeMap<BrokerId, Broker>,
    /// Brokers that had a session at any time in this view's life.
    seen: BTreeSet<BrokerId>,
    /// Topics that are not deleted.
    topics_live: usize,
    /// Partitions that want a broker, and how many of them are wished to be at each.
    wanted: usize,
    load: BTreeMap<BrokerId, usize>,
    /// Planned moves under way.
    moving: usize,
    /// Sessions or addresses have changed since the prober was told.
    pub(super) brokers_changed: bool,
    /// Deleted topics with work left.
    pub(super) removals: BTreeMap<Uuid, Removal>,
    /// Deleted topics whose records stay as long as somebody has something of them.
    pub(super) draining: BTreeMap<Uuid, Drain>,
    /// A plan may be needed.
    pub(super) dirty: bool,
}

impl View {
    /// Reads everything at one revision.
    ///
    /// # Errors
    /// As the store fails; compacted where the pages took longer than history is kept.
    pub(super) async fn load(store: &dyn MetaStore) -> Result<(Self, Revision), MetaFailure> {
        let mut view = Self {
            dirty: true,
            brokers_changed: true,
            ..Self::default()
        };
        let mut at = None;
        for prefix in [keys::TOPICS, keys::BROKERS, keys::WISHES] {
            let mut range = Range::new(prefix);
            range.at = at;
            loop {
                let page = store.range(range.clone()).await?;
                let pinned = *at.get_or_insert(page.revision);
                let last = page.entries.last().map(|entry| entry.key.clone());
                for entry in page.entries {
                    view.put(&entry);
                }
                match last {
                    Some(last) if page.more => range = Range::new(prefix).start_after(last).at(pinned),
                    _ => break,
                }
            }
        }
        Ok((view, at.unwrap_or_default()))
    }

    pub(super) fn apply(&mut self, event: &WatchEvent) {
        match &event.kind {
            WatchKind::Put(entry) => self.put(entry),
            WatchKind::Delete { key } => self.delete(key, event.revision),
        }
    }

    fn put(&mut self, entry: &Entry) {
        if let Some(id) = keys::topic_of(&entry.key) {
            self.put_topic(id, entry);
        } else if let Some(id) = keys::broker_of(&entry.key) {
            self.put_broker(id, entry);
        } else if let Some(id) = keys::partition_of(&entry.key) {
            self.put_wish(id, entry);
        }
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        if let Some(id) = keys::topic_of(key) {
            self.set_topic(id, None);
            self.removals.remove(&id);
            self.draining.remove(&id);
        } else if let Some(id) = keys::broker_of(key) {
            if let Some(broker) = self.brokers.remove(&id) {
                tracing::info!(broker = id.0, session = broker.session.0, "broker session ended");
                self.brokers_changed = true;
                self.dirty = true;
            }
        } else if let Some(id) = keys::partition_of(key) {
            self.clear_wish(id, revision);
        }
    }

    fn put_topic(&mut self, id: Uuid, entry: &Entry) {
        let Some(record) = readable::<TopicRecord>(entry) else {
            return;
        };
        let partitions: Vec<PartitionId> = record.partition_ids.into_iter().map(PartitionId).collect();
        if !record.deleted {
            self.set_topic(id, Some(Known::Live(partitions)));
        } else if !matches!(self.topics.get(&id), Some(Known::Deleted)) {
            self.set_topic(id, Some(Known::Deleted));
            self.removals.insert(id, Removal::new(partitions));
        }
    }

    fn set_topic(&mut self, id: Uuid, known: Option<Known>) {
        if let Some(Known::Live(partitions)) = self.topics.remove(&id) {
            self.topics_live -= 1;
            for partition in partitions {
                self.change(partition, |slot| slot.wanted = false);
            }
        }
        let Some(known) = known else { return };
        if let Known::Live(partitions) = &known {
            self.topics_live += 1;
            for partition in partitions {
                self.change(*partition, |slot| slot.wanted = true);
            }
            self.dirty = true;
        }
        self.topics.insert(id, known);
    }

    fn put_broker(&mut self, id: BrokerId, entry: &Entry) {
        let Some(record) = readable::<BrokerRecord>(entry) else {
            return;
        };
        let session = SessionId(entry.create_revision.0);
        let broker = Broker {
            session,
            control_address: record.control_address,
            draining: record.draining,
        };
        self.seen.insert(id);
        self.brokers_changed = true;
        let before = self.brokers.insert(id, broker);
        if before
            .as_ref()
            .is_some_and(|before| before.draining != record.draining)
        {
            tracing::info!(
                broker = id.0,
                draining = record.draining,
                "broker is drained, or is not any more"
            );
            self.dirty = true;
        }
        if before.is_none_or(|before| before.session != session) {
            tracing::info!(broker = id.0, session = session.0, "broker session began");
            self.dirty = true;
        }
    }

    /// Changes a partition's slot, keeps the sums right and forgets a slot that says nothing.
    fn change(&mut self, id: PartitionId, change: impl FnOnce(&mut Slot)) {
        let slot = self.partitions.entry(id).or_default();
        let before = slot.counted();
        let (wanted, moving) = (slot.wanted, slot.is_moving());
        change(slot);
        let after = slot.counted();
        self.moving = self.moving + usize::from(slot.is_moving()) - usize::from(moving);
        self.wanted = self.wanted + usize::from(slot.wanted) - usize::from(wanted);
        if !slot.wanted && slot.wish.is_none() {
            self.partitions.remove(&id);
        }
        if before == after {
            return;
        }
        if let Some(count) = before.and_then(|broker| self.load.get_mut(&broker)) {
            *count -= 1;
        }
        if let Some(broker) = after {
            *self.load.entry(broker).or_default() += 1;
        }
    }

    fn put_wish(&mut self, id: PartitionId, entry: &Entry) {
        self.set_wish(id, Wish::of(entry));
    }

    /// Takes a wish as the store has it, unless a newer one is known.
    pub(super) fn set_wish(&mut self, id: PartitionId, wish: Wish) {
        let known = self.wish(id);
        if known.is_none_or(|known| known.revision < wish.revision) {
            self.dirty |= known.is_none_or(|known| known.broker != wish.broker);
            self.change(id, |slot| slot.wish = Some(wish));
        }
    }

    /// Takes that a partition has no wish as of a revision, unless a newer one is known.
    pub(super) fn clear_wish(&mut self, id: PartitionId, revision: Revision) {
        if self.wish(id).is_some_and(|wish| wish.revision <= revision) {
            self.change(id, |slot| slot.wish = None);
            // A slot that is left without a wish is there because it is wanted.
            self.dirty |= self.partitions.contains_key(&id);
        }
    }

    pub(super) fn wish(&self, id: PartitionId) -> Option<Wish> {
        self.partitions.get(&id).and_then(|slot| slot.wish)
    }

    /// Partitions that want a broker, with the one that is wished for them.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (PartitionId, Option<BrokerId>)> {
        let wanted = self.partitions.iter().filter(|(_, slot)| slot.wanted);
        wanted.map(|(id, slot)| (*id, slot.wish.and_then(|wish| wish.broker)))
    }

    /// Partitions that want a broker and have one wished for them, and which may be moved at `now`:
    /// those of which no move was begun within `rest`.
    pub(super) fn held(&self, now: Duration, rest: Duration) -> impl Iterator<Item = Held> {
        self.partitions.iter().filter_map(move |(id, slot)| {
            Some(Held {
                partition: *id,
                broker: slot.counted()?,
                bytes_per_s: slot.bytes_per_s,
                movable: !slot.is_moving() && slot.moved_at.is_none_or(|at| now.saturating_sub(at) >= rest),
            })
        })
    }

    /// Planned moves under way.
    pub(super) fn moving(&self) -> usize {
        self.moving
    }

    /// Partitions whose wish names a session to wait for, with the wish.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (PartitionId, Wish)> {
        let moving = self.partitions.iter().filter(|(_, slot)| slot.is_moving());
        moving.filter_map(|(id, slot)| Some((*id, slot.wish?)))
    }

    /// A move of the partition was begun.
    pub(super) fn moved(&mut self, id: PartitionId, now: Duration) {
        self.change(id, |slot| slot.moved_at = Some(now));
    }

    /// Takes the bytes a second of a partition.
    pub(super) fn weigh(&mut self, id: PartitionId, bytes_per_s: u64) {
        if let Some(slot) = self.partitions.get_mut(&id) {
            // Half the old value: one loud moment is no reason to move anything.
            slot.bytes_per_s = match slot.bytes_per_s {
                0 => bytes_per_s,
                before => before / 2 + bytes_per_s / 2,
            };
        }
    }

    /// When the partition's wish was last put; zero where there is none.
    pub(super) fn wish_revision(&self, id: PartitionId) -> Revision {
        self.wish(id).map_or(Revision(0), |wish| wish.revision)
    }

    pub(super) fn brokers(&self) -> &BTreeMap<BrokerId, Broker> {
        &self.brokers
    }

    /// Whether the broker had a session while this view was kept.
    pub(super) fn has_seen(&self, broker: BrokerId) -> bool {
        self.seen.contains(&broker)
    }

    pub(super) fn patients(&self) -> Patients {
        let patient =
            |(id, broker): (&BrokerId, &Broker)| (*id, (broker.session, broker.control_address.clone()));
        self.brokers.iter().map(patient).collect()
    }

    /// Whether there is a record of the topic, deleted or not.
    pub(super) fn knows_topic(&self, id: Uuid) -> bool {
        self.topics.contains_key(&id)
    }

    /// Whether a topic that is not deleted does not list a partition that says it is of this topic.
    pub(super) fn is_stray(&self, topic: Uuid, partition: PartitionId) -> bool {
        matches!(self.topics.get(&topic), Some(Known::Live(_)))
            && !self.partitions.get(&partition).is_some_and(|slot| slot.wanted)
    }

    /// Topics that are not deleted.
    pub(super) fn topics_live(&self) -> usize {
        self.topics_live
    }

    /// Partitions that want a broker.
    pub(super) fn wanted_count(&self) -> usize {
        self.wanted
    }

    /// Partitions that are wished to be at a broker.
    pub(super) fn wished_at(&self, broker: BrokerId) -> usize {
        self.load.get(&broker).copied().unwrap_or(0)
    }
}

fn readable<M: prost::Message + Default>(entry: &Entry) -> Option<M> {
    decode(entry)
        .inspect_err(|failure| tracing::error!(key = entry.key, %failure, "metadata cannot be read"))
        .ok()
}
