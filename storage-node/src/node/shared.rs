//! What all parts of a running node look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use forebay_proto::v1;
use forebay_record::{Generation, NodeId, Offset, Token};
use forebay_runtime::execution::Execution;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::damage::Damages;
use crate::disk::Disk;
use crate::index::Index;
use crate::journal::files::FileTable;
use crate::journal::pool::Pool;
use crate::read::Reader;
use crate::replica::Limits;
use crate::trim::Figures;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub node: NodeId,
    pub generation: Generation,
    pub boot: u64,
    pub cluster: String,
    pub incarnation: u32,
    pub disk: Arc<dyn Disk>,
    pub index: Arc<Index>,
    pub table: Arc<FileTable>,
    pub pool: Arc<Pool>,
    pub limits: Limits,
    /// Where work that blocks is done.
    pub execution: Execution,
    /// Ends the sessions.
    pub stopping: CancellationToken,
    /// The journal writes no more.
    pub failed: CancellationToken,
    /// The disk has just become fuller by a level.
    pub pressed: Notify,
    durable: AtomicU64,
    floor: AtomicU64,
    failure: Mutex<Option<String>>,
    killed: AtomicBool,
    /// An operator wants the node empty: what is not needed goes at once.
    draining: AtomicBool,
    figures: Mutex<Figures>,
    damages: Arc<Damages>,
    /// When the last whole pass of the scrub ended, milliseconds since 1970, 0 where none did.
    scrubbed_ms: AtomicU64,
}

/// Ranges of what is damaged that are shown.
const DAMAGED_SHOWN_MAX: usize = 100;

/// What [`Shared`] is made of.
pub(crate) struct Facts {
    pub node: NodeId,
    pub generation: Generation,
    pub boot: u64,
    pub cluster: String,
    pub incarnation: u32,
    pub disk: Arc<dyn Disk>,
    pub index: Arc<Index>,
    pub table: Arc<FileTable>,
    pub pool: Arc<Pool>,
    pub limits: Limits,
    pub execution: Execution,
    pub durable: u64,
    pub floor: Token,
    pub damages: Arc<Damages>,
}

impl Shared {
    /// Reads what is durable here.
    pub(crate) fn reader(&self) -> Reader {
        Reader {
            generation: self.generation,
            index: Arc::clone(&self.index),
            table: Arc::clone(&self.table),
            damages: Arc::clone(&self.damages),
        }
    }

    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            node: facts.node,
            generation: facts.generation,
            boot: facts.boot,
            cluster: facts.cluster,
            incarnation: facts.incarnation,
            disk: facts.disk,
            index: facts.index,
            table: facts.table,
            pool: facts.pool,
            limits: facts.limits,
            execution: facts.execution,
            stopping: CancellationToken::new(),
            failed: CancellationToken::new(),
            pressed: Notify::new(),
            durable: AtomicU64::new(facts.durable),
            floor: AtomicU64::new(facts.floor.0),
            failure: Mutex::new(None),
            killed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            figures: Mutex::default(),
            damages: facts.damages,
            scrubbed_ms: AtomicU64::new(0),
        }
    }

    /// Everything below this position of the journal is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn advance_durable(&self, position: u64) {
        self.durable.fetch_max(position, Ordering::AcqRel);
    }

    pub(crate) fn set_floor(&self, floor: Token) {
        self.floor.fetch_max(floor.0, Ordering::AcqRel);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Keeps the first reason; true where this is it.
    pub(crate) fn set_failure(&self, reason: &str) -> bool {
        let mut failure = self.failure.lock();
        let first = failure.is_none();
        failure.get_or_insert_with(|| reason.to_owned());
        drop(failure);
        self.failed.cancel();
        first
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Bytes of the journal that hold something.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.table.written_bytes(self.durable())
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
        if draining {
            self.pressed.notify_one();
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn set_figures(&self, figures: Figures) {
        *self.figures.lock() = figures;
    }

    pub(crate) fn set_scrubbed(&self, ended_ms: u64) {
        self.scrubbed_ms.store(ended_ms, Ordering::Relaxed);
    }

    /// What may be missing here, the first ranges of it.
    fn damaged(&self) -> Vec<v1::DamagedRange> {
        let mut ranges = Vec::new();
        for (id, segment) in self.index.damaged(DAMAGED_SHOWN_MAX) {
            let range = |first: Offset, end: Option<Offset>| v1::DamagedRange {
                partition_id: id.partition.0,
                epoch: id.epoch.0,
                seq: id.seq,
                first: first.0,
                end: end.map(|end| end.0),
            };
            let holes = segment.holes(DAMAGED_SHOWN_MAX);
            if holes.is_empty() {
                // Whatever it lacks was at its end.
                ranges.push(range(segment.tail(), None));
            }
            ranges.extend(holes.into_iter().map(|(first, end)| range(first, Some(end))));
        }
        ranges.truncate(DAMAGED_SHOWN_MAX);
        ranges
    }

    pub(crate) fn status(&self) -> v1::StorageNodeStatus {
        let counts = self.index.counts();
        let files = self.table.len() as u64;
        let figures = *self.figures.lock();
        v1::StorageNodeStatus {
            id: self.node.0,
            generation: self.generation.0,
            boot: self.boot,
            segments_open: counts.open,
            segments_fenced: counts.fenced,
            segments_limbo: counts.limbo,
            journal_files: files,
            journal_bytes: self.table.bytes(),
            disk_free_bytes: self.disk.space().map_or(0, |space| space.free),
            floor: self.floor.load(Ordering::Acquire),
            failure: self.failure().unwrap_or_default(),
            direct_io: self.disk.is_direct(),
            disk_used_bytes: self.pool.bytes(),
            disk_budget_bytes: self.pool.budget_bytes(),
            spare_files: self.pool.ready() as u64,
            segments_sealed: figures.sealed,
            bytes_held: self.index.bytes(),
            bytes_trimmable: figures.released_bytes,
            bytes_unrecorded: figures.unrecorded_bytes,
            incarnation: self.incarnation,
            scrubbed_ms: self.scrubbed_ms.load(Ordering::Relaxed),
            damaged: self.damaged(),
        }
    }
}
