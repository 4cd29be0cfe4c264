//! Deleting objects that no record names and no live session may still name (I21). No clock decides
//! what is garbage.
//!
//! A round:
//!
//! 1. *Floor*: all broker sessions are read first, at revision R1. A session that is not among them
//!    can commit nothing any more (I10); one that is promises by its `l0_floor` not to commit a first
//!    reference to an object whose name has a lower revision. The floor is the least of R1, these
//!    promises, and the lowest revision that any segment of a chain may refer to.
//! 2. *Marks*: all partition records, read after that, and the manifests they name.
//! 3. *Garbage*: objects in the listing whose revision is below the floor and that are not marked.
//! 4. What was garbage in every round for longer than the grace is deleted, a bounded number per round.
//!    The grace protects against operators, not against the protocol.
//!
//! Any error before the fourth step ends the round and nothing is deleted: what could not be read
//! might name anything. Why it is right: a first reference to an object below the floor would need a
//! session alive at R1 to break its promise, or was committed before R1 and is in the records, which
//! are read later. References move only within one record, which is one read. Objects of sessions and
//! partitions that began after R1 have a revision above it.
//!
//! A session that promises nothing (0) holds everything: nothing is deleted while it lives.

mod marks;
mod metrics;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::keys;
use forebay_meta::model::Partition;
use forebay_meta::record::{self, RecordError};
use forebay_meta::store::{MetaStore, Range, ReadError, Revision, scan};
use forebay_proto::stored::{BrokerRecord, PartitionRecord};
use forebay_runtime::clock::Clock;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::mutant::{self, Mutant};
use futures_util::{StreamExt, TryStreamExt, stream};

use self::marks::Marks;
use self::metrics::GcMetrics;
use crate::bucket::{Bucket, DELETE_NAMES_MAX};
use crate::error::{OpenError, StoreError};
use crate::manifest::{load_page, load_root};
use crate::names::{ObjectKind, ObjectName, PROBES};

/// Broker sessions in one cluster.
const SESSIONS_MAX: usize = 100_000;
/// Records read at a time.
const RECORDS_PAGE: usize = 500;
/// Partitions whose manifests are read at a time.
const MANIFESTS_AT_ONCE: usize = 8;

/// How garbage is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    /// How long an object must have been garbage.
    pub grace: Duration,
    /// Deletes of one round.
    pub deletes_max: usize,
    /// Marks held at a time, 8 bytes each. Where there are more, a round looks only at a part of
    /// all objects, the next one at another.
    pub marks_max: usize,
    /// Garbage that waits for the end of its grace, about 64 bytes each; more waits unseen.
    pub waiting_max: usize,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 3600),
            deletes_max: 10_000,
            marks_max: 8 << 20,
            waiting_max: 1 << 20,
        }
    }
}

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Nothing with this revision or a later one was looked at.
    pub floor: Revision,
    /// Objects that records and manifests name, of the part looked at.
    pub marked: u64,
    /// Objects listed.
    pub listed: u64,
    /// Garbage found, deleted or not.
    pub garbage: u64,
    /// Garbage deleted.
    pub deleted: u64,
    /// The store refused to delete.
    pub refused: bool,
    /// Marks did not fit: the next rounds look at smaller parts. Nothing was deleted.
    pub split: bool,
}

/// Why a round ended without an outcome.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Sessions or records could not be read.
    #[error("metadata could not be read")]
    Metadata(#[from] ReadError),
    /// A record cannot be understood, so what it names is not known.
    #[error("value of {key} cannot be used")]
    Record {
        /// Where it is.
        key: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A manifest could not be read, or the list of objects is not complete.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The place is not this cluster's.
    #[error(transparent)]
    Place(#[from] OpenError),
}

/// Collects the garbage of one bucket. Two at a time do no harm.
pub struct Collector {
    bucket: Bucket,
    store: Arc<dyn MetaStore>,
    cluster: String,
    options: GcOptions,
    clock: Arc<dyn Clock>,
    metrics: GcMetrics,
    /// By hash of the name: since when it has been garbage, on the monotonic clock.
    waiting: BTreeMap<u64, Duration>,
    /// Objects are split by hash into this many parts, a power of two; a round looks at one.
    parts: u64,
    part: u64,
}

/// What a listing showed to be garbage.
#[derive(Default)]
struct Garbage {
    round: Round,
    /// As [`Collector::waiting`], for this round's part.
    waiting: BTreeMap<u64, Duration>,
    due: Vec<String>,
}

impl Collector {
    /// A collector for the bucket of a cluster.
    #[must_use]
    pub fn new(
        bucket: Bucket,
        store: Arc<dyn MetaStore>,
        cluster: String,
        options: GcOptions,
        clock: Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            bucket,
            store,
            cluster,
            options,
            clock,
            metrics: GcMetrics::new(metrics),
            waiting: BTreeMap::new(),
            parts: 1,
            part: 0,
        }
    }

    /// One round, to be repeated every now and then. Dropping it between two awaits is safe.
    ///
    /// # Errors
    /// Where anything that might name an object could not be read; nothing was deleted then.
    pub async fn round(&mut self) -> Result<Round, GcError> {
        let result = self.try_round().await;
        self.metrics.done(&result);
        result
    }

    async fn try_round(&mut self) -> Result<Round, GcError> {
        self.bucket.claim(&self.cluster).await?;
        let mut floor = self.sessions_floor().await?;
        let Some(marks) = self.marks(&mut floor).await? else {
            self.parts *= 2;
            self.part = 0;
            return Ok(Round {
                floor,
                split: true,
                ..Round::default()
            });
        };
        let garbage = self.garbage(floor, &marks).await?;
        let mut round = garbage.round;
        // A round that saw everything knows what is garbage; the other parts keep what they know.
        let (parts, part) = (self.parts, self.part);
        self.waiting.retain(|hash, _| hash % parts != part);
        self.waiting.extend(garbage.waiting);
        self.part = (self.part + 1) % self.parts;
        self.delete(garbage.due, &mut round).await?;
        Ok(round)
    }

    /// The first read of a round, see above. Linearizable.
    async fn sessions_floor(&self) -> Result<Revision, GcError> {
        let (sessions, revision) = scan(&*self.store, keys::BROKERS, SESSIONS_MAX).await?;
        let mut floor = revision;
        if mutant::is(Mutant::PromisesIgnored) {
            return Ok(floor);
        }
        for session in &sessions {
            let broker: BrokerRecord = record::decode(&session.value).map_err(|source| GcError::Record {
                key: session.key.clone(),
                source,
            })?;
            if broker.l0_floor == 0 {
                tracing::debug!(
                    broker = broker.id,
                    "a session promises nothing: nothing is garbage"
                );
            }
            floor = floor.min(Revision(broker.l0_floor));
        }
        Ok(floor)
    }

    /// All that records name; none where it does not fit. Lowers the floor to what chains refer to.
    async fn marks(&self, floor: &mut Revision) -> Result<Option<Marks>, GcError> {
        let mut marks = Marks::new(self.options.marks_max, self.parts, self.part);
        let mut range = Range::new(keys::PARTITIONS).limit(RECORDS_PAGE);
        loop {
            // Not pinned: each record must only be read after the sessions, and a key that exists all
            // the while is on some page.
            let page = self.store.range(range.clone()).await?;
            let mut partitions = Vec::new();
            for entry in &page.entries {
                let bad = |source| GcError::Record {
                    key: entry.key.clone(),
                    source,
                };
                let stored: PartitionRecord = record::decode(&entry.value).map_err(bad)?;
                let referred = stored.chain.iter().filter_map(|segment| segment.l0_min_rev).min();
                let partition = Partition::try_from(stored).map_err(bad)?;
                // Deleted for good: nobody reads it or writes to it again.
                if !partition.deleted {
                    *floor = referred.map_or(*floor, |least| (*floor).min(Revision(least)));
                    partitions.push(partition);
                }
            }
            for partition in &partitions {
                partition.recent.iter().for_each(|run| marks.add(&run.object));
            }
            // Made here rather than by a closure, whose borrow the compiler could not name.
            let mut manifests = Vec::with_capacity(partitions.len());
            for partition in &partitions {
                manifests.push(self.manifest_names(partition));
            }
            let mut named = stream::iter(manifests).buffer_unordered(MANIFESTS_AT_ONCE);
            while let Some(names) = named.try_next().await? {
                names.iter().for_each(|name| marks.add(name));
                if marks.are_full() {
                    return Ok(None);
                }
            }
            match page.entries.last() {
                Some(last) if page.more => range = range.start_after(last.key.clone()),
                _ => return Ok(Some(marks.sorted())),
            }
        }
    }

    /// The manifest of a partition with all that it names. Not cached: this is read once per round.
    async fn manifest_names(&self, partition: &Partition) -> Result<Vec<String>, StoreError> {
        let Some(manifest) = &partition.manifest else {
            return Ok(Vec::new());
        };
        let root = load_root(&self.bucket, partition.id, manifest).await?;
        let mut names = vec![manifest.object.clone()];
        for page in &root.pages {
            let loaded = load_page(&self.bucket, partition.id, page).await?;
            names.push(page.object.clone());
            names.extend(loaded.runs.into_iter().map(|run| run.object));
        }
        names.dedup();
        Ok(names)
    }

    /// Lists all objects. Fails where the list is not complete.
    async fn garbage(&self, floor: Revision, marks: &Marks) -> Result<Garbage, GcError> {
        let mut found = Garbage::default();
        found.round.floor = floor;
        found.round.marked = marks.len();
        for kind in ObjectKind::ALL {
            self.bucket
                .list(kind.prefix(), |object| {
                    found.round.listed += 1;
                    let parsed = ObjectName::parse(&object.name);
                    // What is not named as we name objects is not ours to delete.
                    if parsed.is_some_and(|name| name.kind == kind && name.revision < floor) {
                        self.judge(object.name, marks, &mut found);
                    }
                })
                .await?;
        }
        // What a start tries the store with, and a crash leaves; nothing ever refers to it.
        self.bucket
            .list(PROBES, |object| {
                self.judge(object.name, &Marks::none(marks), &mut found)
            })
            .await?;
        Ok(found)
    }

    fn judge(&self, name: String, marks: &Marks, found: &mut Garbage) {
        let hash = marks::hash(&name);
        if !marks.covers(hash) || marks.contains(hash) {
            return;
        }
        found.round.garbage += 1;
        let now = self.clock.monotonic();
        let since = match self.waiting.get(&hash) {
            Some(since) => *since,
            None if self.waiting.len() + found.waiting.len() >= self.options.waiting_max => return,
            None => now,
        };
        found.waiting.insert(hash, since);
        if now.saturating_sub(since) >= self.options.grace && found.due.len() < self.options.deletes_max {
            found.due.push(name);
        }
    }

    async fn delete(&mut self, due: Vec<String>, round: &mut Round) -> Result<(), GcError> {
        for names in due.chunks(DELETE_NAMES_MAX) {
            match self.bucket.delete(names).await {
                Ok(()) => {
                    round.deleted += names.len() as u64;
                    for name in names {
                        self.waiting.remove(&marks::hash(name));
                    }
                }
                Err(error @ StoreError::Refused { .. }) => {
                    tracing::warn!(%error, garbage = round.garbage, "the object store refuses deletes: it grows");
                    round.refused = true;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector")
            .field("bucket", &self.bucket)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
