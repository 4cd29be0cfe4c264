//! What callers and the sender have in common: topics, memory, and the inbox.
//!
//! Callers append under the lock of one partition and touch the inbox only when a batch is opened
//! or sealed. Locks are taken in the order partition, then inbox or builders; the sender empties
//! the inbox before it takes any partition. No lock is held across a wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_record::batch::{Builder, HEADER_LEN};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Identity;
use super::accumulate::{Accumulator, Material};
use super::config::ProducerConfig;
use super::partition::Cursor;
use super::settlement::{Ledger, Settlement};

/// Memory of the builders kept for the next batch, beside `buffer_bytes_max`; at least one is.
const BUILDERS_KEPT_BYTES_MAX: usize = 4 << 20;
/// Topics that one producer writes to.
pub(crate) const TOPICS_MAX: usize = 10_000;

/// Who numbers the batches of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// The producer, under its identity if it has one.
    Own(Option<Identity>),
    /// Whoever built them.
    Given,
}

/// One partition, as callers see it. A partition has one for records, and one for each writer of
/// ready batches.
#[derive(Debug)]
pub(crate) struct Partition {
    pub topic: Arc<str>,
    pub number: u32,
    /// Its place in the sender.
    pub lane: usize,
    /// Size at which its batches are sealed.
    pub batch_bytes: usize,
    pub numbers: Numbers,
    cursor: Arc<Cursor>,
    partitions: NonZeroU32,
    pub state: Mutex<Accumulator>,
}

/// One topic, as callers see it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub name: Arc<str>,
    /// Largest batch that the service takes.
    pub batch_bytes_max: usize,
    pub count: NonZeroU32,
    pub cursor: Arc<Cursor>,
    pub partitions: Vec<Arc<Partition>>,
    /// Whether the service said that it is not what it was.
    stale: AtomicBool,
}

/// What callers leave for the sender.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Partitions that the sender has not seen, in the order of their lanes.
    pub partitions: Vec<Arc<Partition>>,
    /// Lanes that have something to be taken; each at most once.
    pub ready: Vec<usize>,
    /// Lanes whose open batch is due at a time; each at most once.
    pub timers: Vec<(Instant, usize)>,
    lanes: usize,
    identity: Option<Identity>,
}

/// What did not work so far and was, or is, tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retries {
    /// Batches refused, and connections that were lost or not to be had.
    pub count: u64,
    /// What was said the last time; none where something was delivered since.
    pub last: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub config: ProducerConfig,
    pub retries: Mutex<Retries>,
    pub ledger: Arc<Ledger>,
    pub memory: Arc<Semaphore>,
    pub wake: Notify,
    pub closed: AtomicBool,
    builders: Mutex<Vec<Builder>>,
    inbox: Mutex<Inbox>,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
}

impl Shared {
    pub(crate) fn new(config: ProducerConfig, identity: Option<Identity>) -> Self {
        Self {
            memory: Arc::new(Semaphore::new(config.buffer_bytes_max)),
            config,
            retries: Mutex::default(),
            ledger: Arc::new(Ledger::default()),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            builders: Mutex::new(Vec::new()),
            inbox: Mutex::new(Inbox {
                identity,
                ..Inbox::default()
            }),
            topics: RwLock::new(HashMap::new()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics
            .read()
            .get(name)
            .filter(|topic| !topic.stale.load(Ordering::Relaxed))
            .cloned()
    }

    pub(crate) fn topic_count(&self) -> usize {
        self.topics.read().len()
    }

    /// Doubts a topic, so that the next record asks for it again.
    pub(crate) fn doubt(&self, name: &str) {
        if let Some(topic) = self.topics.read().get(name) {
            topic.stale.store(true, Ordering::Relaxed);
        }
    }

    /// Makes a topic known. One that was in doubt and has not changed is trusted again, so that
    /// doubts do not add lanes.
    pub(crate) fn learn(
        &self,
        name: &str,
        count: NonZeroU32,
        batch_bytes_max: usize,
        random: u32,
    ) -> Arc<Topic> {
        if let Some(known) = self.topics.read().get(name)
            && known.count == count
            && known.batch_bytes_max == batch_bytes_max
        {
            known.stale.store(false, Ordering::Relaxed);
            return known.clone();
        }
        let name: Arc<str> = name.into();
        let cursor = Arc::new(Cursor::starting(random));
        let batch_bytes = self.config.batch_bytes.min(batch_bytes_max);
        let partitions = {
            let mut inbox = self.inbox.lock();
            let identity = inbox.identity;
            let first = inbox.lanes;
            inbox.lanes += count.get() as usize;
            let partitions: Vec<_> = (0..count.get())
                .zip(first..)
                .map(|(number, lane)| {
                    let next = identity.map(|identity| identity.stamp(0));
                    Arc::new(Partition {
                        topic: name.clone(),
                        number,
                        lane,
                        batch_bytes,
                        numbers: Numbers::Own(identity),
                        cursor: cursor.clone(),
                        partitions: count,
                        state: Mutex::new(Accumulator::new(batch_bytes, next)),
                    })
                })
                .collect();
            inbox.partitions.extend(partitions.iter().cloned());
            partitions
        };
        let topic = Topic {
            name: name.clone(),
            batch_bytes_max,
            count,
            cursor,
            partitions,
            stale: AtomicBool::new(false),
        };
        let topic = Arc::new(topic);
        self.topics.write().insert(name, topic.clone());
        topic
    }

    /// A lane of its own in a partition, for batches that are numbered already.
    pub(crate) fn lane(&self, topic: &Topic, number: u32) -> Arc<Partition> {
        let mut inbox = self.inbox.lock();
        let partition = Arc::new(Partition {
            topic: topic.name.clone(),
            number,
            lane: inbox.lanes,
            batch_bytes: topic.batch_bytes_max,
            numbers: Numbers::Given,
            cursor: topic.cursor.clone(),
            partitions: topic.count,
            state: Mutex::new(Accumulator::new(topic.batch_bytes_max, None)),
        });
        inbox.lanes += 1;
        inbox.partitions.push(partition.clone());
        partition
    }

    /// Notes that something is tried again.
    pub(crate) fn on_setback(&self, why: &dyn std::fmt::Display) {
        let mut retries = self.retries.lock();
        retries.count += 1;
        retries.last = Some(why.to_string());
    }

    /// Opens a batch in a partition that has none open.
    pub(crate) fn begin(&self, partition: &Partition, state: &mut Accumulator, space: OwnedSemaphorePermit) {
        let pooled = self.builders.lock().pop();
        let builder =
            pooled.unwrap_or_else(|| Builder::new(self.config.compression, self.config.batch_bytes));
        let settlement = Settlement::new(partition.topic.clone(), partition.number, self.ledger.clone());
        let now = Instant::now();
        let due = now + self.config.linger;
        state.begin(
            Material {
                builder,
                settlement,
                space,
            },
            now,
            due,
        );
        if !std::mem::replace(&mut state.timed, true) {
            self.inbox.lock().timers.push((due, partition.lane));
            self.wake.notify_one();
        }
    }

    /// Seals the open batch of a partition.
    pub(crate) fn seal(&self, partition: &Partition, state: &mut Accumulator) {
        let Some(emptied) = state.seal() else { return };
        partition.cursor.leave(partition.number, partition.partitions);
        match emptied.failure {
            // The records are still in the builder, which is of no more use.
            Some((settlement, error)) => settlement.unbuilt(error),
            None => {
                let mut builders = self.builders.lock();
                if builders.len() < (BUILDERS_KEPT_BYTES_MAX / self.config.batch_bytes).max(1) {
                    builders.push(emptied.builder);
                }
            }
        }
    }

    /// Tells the sender that a partition has something to be taken.
    pub(crate) fn announce(&self, partition: &Partition, state: &mut Accumulator) {
        if !std::mem::replace(&mut state.announced, true) {
            self.inbox.lock().ready.push(partition.lane);
            self.wake.notify_one();
        }
    }

    /// Makes every open batch due at once.
    pub(crate) fn hurry(&self) {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            let mut state = partition.state.lock();
            if state.is_open() {
                state.hurry(Instant::now());
                self.announce(partition, &mut state);
            }
        }
    }

    /// Takes what callers have left.
    pub(crate) fn take_inbox(&self, into: &mut Inbox) {
        let mut inbox = self.inbox.lock();
        std::mem::swap(&mut inbox.partitions, &mut into.partitions);
        std::mem::swap(&mut inbox.ready, &mut into.ready);
        std::mem::swap(&mut inbox.timers, &mut into.timers);
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.inbox.lock().identity
    }

    pub(crate) fn set_identity(&self, identity: Identity) {
        self.inbox.lock().identity = Some(identity);
    }

    /// Permits for a new batch that has at least one record of at most `most` bytes.
    pub(crate) fn batch_space(partition: &Partition, most: usize) -> usize {
        partition.batch_bytes.max(most.saturating_add(HEADER_LEN))
    }
}
