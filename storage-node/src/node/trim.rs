//! Keeps the disk bounded: compares all that is held with the partitions' records, and lets go.
//!
//! 1. A round reads the records that are due, at most 64 with one linearizable read and with pauses
//!    between the reads, and asks the journal thread to forget what they let go (I16).
//! 2. Once floor and trims are durable (I17), files in which no segment has a frame any more become
//!    spares or are removed.
//! 3. Where the disk fills up all the same, brokers hear which segments pin the oldest files, and the
//!    records of those are read again at once.
//!
//! Never deletes on any other evidence than a record that was read here. A store that went back in
//! time ends all writing (I24).

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use forebay_meta::model::Partition;
use forebay_meta::store::{MetaStore, READ_KEYS_MAX, ReadError, Revision};
use forebay_meta::{cluster, keys};
use forebay_record::{PartitionId, SegmentId};
use forebay_runtime::clock::Clock;
use forebay_runtime::random::Random;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::queue::{Message, Queue};
use super::shared::Shared;
use crate::index::{HeldFacts, Survey};
use crate::metrics::TrimMetrics;
use crate::pressure::{Level, URGE_DOWN_TO};
use crate::trim::{Ledger, Seen};

/// Time between rounds, where the grace is not shorter.
const ROUND: Duration = Duration::from_secs(5);
const ROUND_MIN: Duration = Duration::from_millis(50);
/// Time between looks at how full the disk is.
const LOOK: Duration = Duration::from_secs(1);
/// The same under pressure, where each look is a round.
const LOOK_PRESSED: Duration = Duration::from_millis(250);
/// Pause between two reads of records.
const PACE: Duration = Duration::from_millis(10);
/// Under pressure trims are not put off until all records are read.
const READS_BETWEEN_TRIMS: usize = 32;
/// Segments in one message to the journal thread.
const TRIM_MAX: usize = 512;
/// Time between two messages to brokers.
const URGE_EVERY: Duration = Duration::from_secs(3);
/// Segments in one of them.
pub(super) const URGED_MAX: usize = 256;
/// Partitions without a record that are told one by one in a round.
const TOLD_MAX: usize = 8;

/// Why the task ended.
#[derive(Debug)]
enum Stop {
    /// The node is stopping, or the journal is dead.
    Node,
    /// The store contradicts what it said before.
    Store(String),
}

/// See the module.
pub(super) struct Trimmer {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    meta: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: TrimMetrics,
    ledger: Ledger,
    round: Duration,
    level: Level,
    /// Newest revision that the store answered with.
    revision: Revision,
    /// Records are as old as a backup, and prove nothing.
    restoring: bool,
    next_round: Duration,
    next_urge: Duration,
    /// Partitions that owners were last asked to offload.
    urged: BTreeSet<PartitionId>,
    /// There may be files without frames.
    reclaim_due: bool,
    store_failing: bool,
}

/// What a trimmer works with.
pub(super) struct Parts {
    pub shared: Arc<Shared>,
    pub queue: Arc<Queue>,
    pub meta: Arc<dyn MetaStore>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub metrics: TrimMetrics,
    pub grace: Duration,
    /// As of the node's start.
    pub revision: Revision,
    /// Nothing is trimmed before the cluster's record says that this is over.
    pub restoring: bool,
}

/// How files are used.
struct Files {
    ranges: Vec<Range<u64>>,
    survey: Survey,
    recycled: io::Result<usize>,
    /// Somebody reads a file that is free otherwise.
    busy: bool,
}

impl Trimmer {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            shared,
            queue,
            meta,
            clock,
            random,
            metrics,
            grace,
            revision,
            restoring,
        } = parts;
        let round = ROUND.min(grace).max(ROUND_MIN);
        let now = clock.monotonic();
        let ledger = Ledger::new((shared.node, shared.generation), grace, round);
        Self {
            shared,
            queue,
            meta,
            clock,
            random,
            metrics,
            ledger,
            round,
            level: Level::Calm,
            revision,
            restoring,
            next_round: now,
            next_urge: now,
            urged: BTreeSet::new(),
            reclaim_due: true,
            store_failing: false,
        }
    }

    /// Runs until the node stops.
    pub(super) async fn run(mut self, cancelled: CancellationToken) {
        let stopping = self.shared.stopping.clone();
        loop {
            let pause = if self.haste() >= Level::Urged {
                LOOK_PRESSED
            } else {
                LOOK
            };
            let pause = self.jittered(pause.min(self.round));
            let look = async {
                // Cancel safety: both only wait.
                tokio::select! {
                    () = self.clock.sleep(pause) => {}
                    () = self.shared.pressed.notified() => {}
                }
                self.look().await
            };
            let looked = tokio::select! {
                looked = look => looked,
                () = cancelled.cancelled() => return,
                () = stopping.cancelled() => return,
            };
            match looked {
                Ok(()) => {}
                Err(Stop::Node) => return,
                Err(Stop::Store(reason)) => {
                    if self.queue.push_own(Message::StopWriting(reason)).is_err() {
                        tracing::debug!("the node is stopping");
                    }
                    return;
                }
            }
        }
    }

    /// How soon things go: on a node that is to be emptied as if it were short of space.
    fn haste(&self) -> Level {
        if self.shared.is_draining() {
            self.level.max(Level::Urged)
        } else {
            self.level
        }
    }

    /// So that the nodes of a cluster do not read in step.
    fn jittered(&self, around: Duration) -> Duration {
        around * u32::try_from(self.random.range(80, 121)).unwrap_or(100) / 100
    }

    /// Cancel safety: the ledger may lack what was read or trimmed; the next look finds it again.
    async fn look(&mut self) -> Result<(), Stop> {
        if self.shared.failure().is_some() {
            return Err(Stop::Node);
        }
        let held = self.measure().await?;
        let now = self.clock.monotonic();
        if self.restoring {
            self.restoring = self.is_restoring().await;
        } else if now >= self.next_round || self.haste() >= Level::Urged {
            self.next_round = now + self.jittered(self.round);
            self.read_records(&held).await?;
            self.trim().await?;
        }
        let urge = self.level >= Level::Urged && now >= self.next_urge;
        if self.level < Level::Urged {
            self.urged.clear();
        }
        if self.reclaim_due || urge {
            let files = self.files().await?;
            if urge {
                self.next_urge = now + self.jittered(URGE_EVERY);
                self.urge(&files)?;
            }
        }
        let adopted = self.ledger.take_adopted();
        if !adopted.is_empty() {
            self.queue
                .push_own(Message::Adopt(adopted))
                .map_err(|_| Stop::Node)?;
        }
        self.show(&self.shared.index.held());
        Ok(())
    }

    /// Whether the operator's command still compares records with what nodes hold.
    async fn is_restoring(&self) -> bool {
        match cluster::stored(&*self.meta).await {
            Ok(Some((_, record))) => record.restoring,
            Ok(None) => true,
            Err(error) => {
                tracing::debug!(%error, "cannot read the cluster's record");
                true
            }
        }
    }

    /// Learns how full the node is, and what it holds.
    async fn measure(&mut self) -> Result<Vec<HeldFacts>, Stop> {
        let shared = Arc::clone(&self.shared);
        let measure = move || (shared.disk.space(), shared.index.held());
        let measured = self.shared.execution.run(&*self.clock, measure).await;
        let (space, held) = measured.map_err(|_| Stop::Node)?;
        match space {
            Ok(space) => self.shared.pool.note_free(space.free),
            Err(error) => tracing::warn!(%error, "cannot ask how much room the disk has"),
        }
        let limits = self.shared.limits;
        let frames = held.iter().map(|one| one.frames).sum();
        let before = self.level;
        self.level = Level::of(self.shared.used_bytes(), self.shared.pool.data_bytes_max())
            .max(Level::of(frames, limits.frames_max))
            .max(Level::of(held.len() as u64, limits.segments_max as u64));
        if self.level > before {
            self.next_urge = self.clock.monotonic();
        }
        if self.level != before {
            let used = self.shared.used_bytes();
            let room = self.shared.pool.data_bytes_max();
            if self.level >= Level::Urged && self.level > before {
                tracing::warn!(level = ?self.level, used, room, "storage fills up");
            } else {
                tracing::info!(level = ?self.level, used, room, "storage pressure changed");
            }
        }
        Ok(held)
    }

    async fn read_records(&mut self, held: &[HeldFacts]) -> Result<(), Stop> {
        let due = self
            .ledger
            .due(held, &self.urged, self.haste(), self.clock.monotonic());
        let mut told = 0;
        for (count, chunk) in due.chunks(READ_KEYS_MAX).enumerate() {
            if count > 0 {
                self.clock.sleep(PACE).await;
                if self.level >= Level::Urged && count % READS_BETWEEN_TRIMS == 0 {
                    self.trim().await?;
                }
            }
            if !self.read_chunk(chunk, held, &mut told).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads some records; false where the store does not answer.
    async fn read_chunk(
        &mut self,
        chunk: &[PartitionId],
        held: &[HeldFacts],
        told: &mut usize,
    ) -> Result<bool, Stop> {
        let wanted: Vec<String> = chunk.iter().map(|id| keys::partition(*id)).collect();
        let (entries, revision) = match self.meta.get_many(&wanted).await {
            Ok(read) => read,
            Err(ReadError::Regressed(regressed)) => return Err(Stop::Store(regressed.to_string())),
            Err(error) => {
                // Without the store nothing is trimmed; it is told once.
                if !std::mem::replace(&mut self.store_failing, true) {
                    tracing::warn!(%error, "cannot read partition records: nothing is trimmed");
                }
                return Ok(false);
            }
        };
        self.store_failing = false;
        if revision < self.revision {
            let reason = format!(
                "metadata store went back in time: revision {revision} after {}",
                self.revision
            );
            return Err(Stop::Store(reason));
        }
        self.revision = revision;
        self.metrics.reads.inc();
        let now = self.clock.monotonic();
        for (partition, entry) in chunk.iter().zip(entries) {
            let decoded = entry.as_ref().map(|entry| Partition::decode(&entry.value));
            let seen = match &decoded {
                Some(Ok(record)) => Seen::Record(record),
                Some(Err(_)) | None => Seen::Nothing,
            };
            if self.ledger.on_record(*partition, &seen, held, now) {
                if *told < TOLD_MAX {
                    let why = match decoded {
                        Some(Err(error)) => error.to_string(),
                        _ => "there is none".to_owned(),
                    };
                    tracing::warn!(%partition, why, "no record says whether segments held of a partition are needed: they stay");
                }
                *told += 1;
            }
        }
        Ok(true)
    }

    /// Has everything forgotten that may go now.
    async fn trim(&mut self) -> Result<(), Stop> {
        let ready = self.ledger.ready(self.haste(), self.clock.monotonic());
        for segments in ready.chunks(TRIM_MAX) {
            let (done, trimmed) = oneshot::channel();
            let message = Message::Trim {
                segments: segments.to_vec(),
                done,
            };
            self.queue.push_own(message).map_err(|_| Stop::Node)?;
            // Dropped where the journal is dead.
            let count = trimmed.await.map_err(|_| Stop::Node)?;
            self.metrics.segments.inc_by(count);
            self.reclaim_due |= count > 0;
        }
        Ok(())
    }

    /// Looks who uses which files, and takes those out of use that nobody does.
    async fn files(&mut self) -> Result<Files, Stop> {
        let shared = Arc::clone(&self.shared);
        let work = move || reclaim(&shared);
        let worked = self.shared.execution.run(&*self.clock, work).await;
        let files = worked.map_err(|_| Stop::Node)?;
        self.reclaim_due = files.busy;
        match &files.recycled {
            Ok(count) => {
                self.metrics.files.inc_by(*count as u64);
            }
            Err(error) => {
                self.reclaim_due = true;
                tracing::warn!(%error, "cannot put away journal files that are out of use");
            }
        }
        Ok(files)
    }

    /// Tells brokers which segments hold the oldest files.
    fn urge(&mut self, files: &Files) -> Result<(), Stop> {
        let room = self.shared.pool.data_bytes_max();
        let surplus = self.shared.used_bytes().saturating_sub(room / 100 * URGE_DOWN_TO);
        let urged = choose_urged(files, surplus, |segment| self.ledger.is_released(segment));
        if urged.is_empty() {
            return Ok(());
        }
        self.urged = urged.iter().map(|segment| segment.partition).collect();
        self.metrics.urges.inc();
        tracing::info!(
            segments = urged.len(),
            surplus,
            "asks brokers to offload what holds the oldest files"
        );
        self.queue.push_own(Message::Urge(urged)).map_err(|_| Stop::Node)
    }

    fn show(&self, held: &[HeldFacts]) {
        let figures = self.ledger.figures(held);
        self.metrics.show(&figures, &self.shared, self.level);
        self.shared.set_figures(figures);
    }
}

/// Segments that use the oldest files, so many that `surplus` bytes of files become free.
fn choose_urged(files: &Files, surplus: u64, is_released: impl Fn(SegmentId) -> bool) -> Vec<SegmentId> {
    let mut freed = 0_u64;
    // At least the oldest file: the pressure may be one of frames or segments.
    let count = files
        .ranges
        .iter()
        .take_while(|range| {
            let more = freed == 0 || freed < surplus;
            freed += range.end.saturating_sub(range.start);
            more
        })
        .count();
    let mut urged: Vec<(usize, SegmentId)> = files
        .survey
        .first
        .iter()
        .filter(|(segment, first)| *first < count && !is_released(*segment))
        .map(|(segment, first)| (*first, *segment))
        .collect();
    urged.sort_unstable();
    urged.truncate(URGED_MAX);
    urged.into_iter().map(|(_, segment)| segment).collect()
}

/// Takes files out of use in which no segment has a frame. Blocks.
fn reclaim(shared: &Shared) -> Files {
    let ranges = shared.table.closed_ranges();
    let survey = shared.index.survey(&ranges);
    let free: Vec<u64> = ranges
        .iter()
        .zip(&survey.used)
        .filter(|(_, used)| !**used)
        .map(|(range, _)| range.start)
        .collect();
    let taken = shared.table.take_out(&free);
    let (count, busy) = (taken.len(), taken.len() < free.len());
    let recycled = if taken.is_empty() {
        Ok(0)
    } else {
        shared.pool.recycle(taken).map(|()| count)
    };
    Files {
        ranges,
        survey,
        recycled,
        busy,
    }
}
