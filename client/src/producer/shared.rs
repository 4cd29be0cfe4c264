//! What callers and the sender have in common: topics, memory, and the inbox.
//!
//! Callers append under the lock of one partition and touch the inbox only when a batch is opened
//! or sealed. Locks are taken in the order partition, then inbox or builders; the sender empties
//! the inbox before it takes any partition. No lock is held across a wait.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use forebay_record::batch::{Builder, HEADER_LEN};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Identity;
use super::accumulate::{Accumulator, Material};
use super::config::ProducerConfig;
use super::partition::Cursor;
use super::settlement::{Ledger, Settlement};
use crate::trace::Tracer;

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
    pub numbers: Numbers,
    cursor: Arc<Cursor>,
    /// Size at which its batches are sealed.
    batch_bytes: AtomicUsize,
    /// Partitions that the topic has; never 0.
    partitions: AtomicU32,
    pub state: Mutex<Accumulator>,
}

impl Partition {
    /// Size at which its batches are sealed.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.batch_bytes.load(Ordering::Relaxed)
    }

    fn partitions(&self) -> NonZeroU32 {
        NonZeroU32::new(self.partitions.load(Ordering::Relaxed)).unwrap_or(NonZeroU32::MIN)
    }

    /// The topic has another number of partitions, or another limit.
    fn adapt(&self, partitions: NonZeroU32, batch_bytes: usize) {
        self.partitions.store(partitions.get(), Ordering::Relaxed);
        self.batch_bytes.store(batch_bytes, Ordering::Relaxed);
        self.state.lock().resize(batch_bytes);
    }
}

/// What the service says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub id: Bytes,
    pub count: NonZeroU32,
    pub batch_bytes_max: usize,
}

/// One topic, as callers see it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub name: Arc<str>,
    /// Names the topic among all that ever had its name.
    id: Bytes,
    /// Largest batch that the service takes.
    pub batch_bytes_max: usize,
    pub count: NonZeroU32,
    pub cursor: Arc<Cursor>,
    /// By number. More than there are, where a topic of this name had more before: the numbers of
    /// their batches go on where they were, should it grow again.
    lanes: Vec<Arc<Partition>>,
    /// Whether the service said that it is not what it was.
    stale: AtomicBool,
    /// What it has become.
    successor: OnceLock<Arc<Topic>>,
}

impl Topic {
    /// A partition by its number.
    pub(crate) fn partition(&self, number: u32) -> Option<&Arc<Partition>> {
        let number = Some(number).filter(|number| *number < self.count.get())?;
        self.lanes.get(number as usize)
    }

    /// The same topic as it is known by now.
    pub(crate) fn newest(&self) -> &Self {
        let mut topic = self;
        while let Some(next) = topic.successor.get() {
            topic = next;
        }
        topic
    }
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
    pub tracer: Tracer,
    builders: Mutex<Vec<Builder>>,
    inbox: Mutex<Inbox>,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
}

impl Shared {
    pub(crate) fn new(config: ProducerConfig, identity: Option<Identity>, tracer: Tracer) -> Self {
        Self {
            memory: Arc::new(Semaphore::new(config.buffer_bytes_max)),
            config,
            retries: Mutex::default(),
            ledger: Arc::new(Ledger::default()),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            tracer,
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

    /// Names of all topics that are known.
    pub(crate) fn topic_names(&self) -> Vec<String> {
        self.topics.read().keys().map(|name| name.to_string()).collect()
    }

    /// Makes a topic known. One that was in doubt and has not changed is trusted again, so that
    /// doubts do not add lanes. One that has grown, or has another limit, keeps the lanes it has:
    /// the numbers of its batches go on, and what is in them stays in its order. One caller at a
    /// time.
    pub(crate) fn learn(&self, name: &str, facts: Facts, random: u32) -> Arc<Topic> {
        let known = self.topics.read().get(name).cloned();
        if let Some(known) = &known {
            let same = known.id == facts.id;
            let unchanged = known.count == facts.count && known.batch_bytes_max == facts.batch_bytes_max;
            // A topic never shrinks: that answer was long on its way.
            if same && (unchanged || facts.count < known.count) {
                known.stale.store(false, Ordering::Relaxed);
                return known.clone();
            }
        }
        let Facts {
            id,
            count,
            batch_bytes_max,
        } = facts;
        let batch_bytes = self.config.batch_bytes.min(batch_bytes_max);
        let (name, cursor, mut lanes) = match &known {
            Some(known) => (known.name.clone(), known.cursor.clone(), known.lanes.clone()),
            None => (name.into(), Arc::new(Cursor::starting(random)), Vec::new()),
        };
        lanes.iter().for_each(|lane| lane.adapt(count, batch_bytes));
        {
            let mut inbox = self.inbox.lock();
            let identity = inbox.identity;
            for number in (0..count.get()).skip(lanes.len()) {
                let next = identity.map(|identity| identity.stamp(0));
                let partition = Arc::new(Partition {
                    topic: name.clone(),
                    number,
                    lane: inbox.lanes,
                    numbers: Numbers::Own(identity),
                    cursor: cursor.clone(),
                    batch_bytes: AtomicUsize::new(batch_bytes),
                    partitions: AtomicU32::new(count.get()),
                    state: Mutex::new(Accumulator::new(batch_bytes, next)),
                });
                inbox.lanes += 1;
                inbox.partitions.push(partition.clone());
                lanes.push(partition);
            }
        }
        let topic = Arc::new(Topic {
            name: name.clone(),
            id,
            batch_bytes_max,
            count,
            cursor,
            lanes,
            stale: AtomicBool::new(false),
            successor: OnceLock::new(),
        });
        self.topics.write().insert(name, topic.clone());
        if let Some(known) = known {
            // Set once: a topic is replaced by the one caller that learns of its change.
            let _ = known.successor.set(topic.clone());
        }
        topic
    }

    /// A lane of its own in a partition, for batches that are numbered already.
    pub(crate) fn lane(&self, topic: &Topic, number: u32) -> Arc<Partition> {
        let mut inbox = self.inbox.lock();
        let partition = Arc::new(Partition {
            topic: topic.name.clone(),
            number,
            lane: inbox.lanes,
            batch_bytes: AtomicUsize::new(topic.batch_bytes_max),
            numbers: Numbers::Given,
            cursor: topic.cursor.clone(),
            partitions: AtomicU32::new(topic.count.get()),
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
        partition.cursor.leave(partition.number, partition.partitions());
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
        for partition in topics.iter().flat_map(|topic| &topic.lanes) {
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
        partition.batch_bytes().max(most.saturating_add(HEADER_LEN))
    }
}
