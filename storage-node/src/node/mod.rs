//! A running storage node, and the handle to it.
//!
//! A frame's way: [`session`] checks it and puts it into [`queue`]; [`journal_thread`] takes it
//! through the replica into the journal and its acknowledgement into the peer's [`outbox`], from
//! where the session sends it. Reads go to [`readers`]. [`trim`] gives up what no record needs any
//! more, [`scrub`] reads back what is held. [`start`] is how a node gets that far.

mod journal_thread;
mod known;
mod outbox;
mod queue;
mod readers;
mod reformat;
mod rival;
mod scrub;
mod session;
mod shared;
mod slice;
mod start;
#[cfg(test)]
mod tests;
mod traces;
mod trim;
mod uploads;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_meta::store::{MetaStore, Revision};
use forebay_proto::data::endpoint::{Dialer, ReplicaProtocol};
use forebay_proto::data::link::Link;
use forebay_proto::data::replica::{FromNode, ToNode};
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_proto::v1;
use forebay_record::{Generation, NodeId};
use forebay_runtime::admin_http::Readiness;
use forebay_runtime::clock::Clock;
use forebay_runtime::config::Validate;
use forebay_runtime::execution::Execution;
use forebay_runtime::metrics::Metrics;
use forebay_runtime::random::Random;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::Tracer;
use forebay_tier::Bucket;
use parking_lot::Mutex;

pub use reformat::Reformat;
pub use start::StartError;

use crate::config::Config;
use crate::damage::Damages;
use crate::disk::Folders;
use crate::metrics::{NodeMetrics, ScrubMetrics, TrimMetrics, UploadMetrics};
use crate::pressure::Level;
use crate::read::Reader;
use crate::register::{self, RegisterError};
use crate::replica::{Admission, Peer};
use crate::resume::Resumed;
use crate::superblock::CLUSTER_LEN_MAX;
use journal_thread::JournalThread;
use queue::{Message, Queue};
use readers::Readers;
use scrub::Scrubber;
use session::{Session, SessionError};
use shared::Facts;
pub(crate) use shared::Shared;
use start::{Context, Opened};
use traces::Traces;
use trim::Trimmer;
use uploads::Uploads;

/// How often the record learns how far the journal is durable: the window in which a folder that
/// was restored from an older image goes unnoticed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

/// Why a process with a storage node must end.
#[derive(Debug, thiserror::Error)]
#[error("the journal is dead: {0}")]
struct JournalDead(String);

/// What a node runs in.
#[derive(Clone)]
pub struct Environment {
    /// The cluster's id.
    pub cluster_id: String,
    /// The cluster's incarnation.
    pub incarnation: u32,
    /// The metadata store was restored and its records are not brought up to date yet.
    pub restoring: bool,
    /// The metadata store.
    pub meta: Arc<dyn MetaStore>,
    /// The object store, where there is one.
    pub bucket: Option<Bucket>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Where to count.
    pub metrics: Metrics,
    /// Begins spans.
    pub tracer: Tracer,
    /// Where to say how it is.
    pub readiness: Readiness,
    /// Runs the node's background tasks.
    pub tasks: Tasks,
    /// Connects to whoever was this node before.
    pub dialer: Dialer<ReplicaProtocol>,
    /// Where its folder comes from.
    pub folders: Arc<dyn Folders>,
    /// Where work that blocks is done.
    pub execution: Execution,
}

/// A handle to a running storage node. Clones are handles to the same node; when the last one is
/// dropped the node stops as in a crash: what is queued is forgotten.
#[derive(Clone)]
pub struct StorageNode {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    uploads: Arc<Uploads>,
    clock: Arc<dyn Clock>,
    metrics: NodeMetrics,
    tracer: Tracer,
    meta: Arc<dyn MetaStore>,
    record: NodeRecord,
    next_peer: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Instead of threads, in a simulation.
    simulated: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.kill();
        self.stop_threads(Queue::abort);
    }
}

impl Inner {
    fn new(
        shared: Shared,
        uploads: impl FnOnce(Reader) -> Uploads,
        clock: Arc<dyn Clock>,
        (metrics, tracer): (NodeMetrics, Tracer),
        meta: Arc<dyn MetaStore>,
        record: NodeRecord,
    ) -> Self {
        Self {
            uploads: Arc::new(uploads(shared.reader())),
            shared: Arc::new(shared),
            queue: Arc::new(Queue::new()),
            readers: Arc::new(Readers::new(metrics.clone(), Arc::clone(&clock))),
            clock,
            metrics,
            tracer,
            meta,
            record,
            next_peer: AtomicU64::new(1),
            threads: Mutex::default(),
            simulated: Mutex::default(),
        }
    }

    fn stop_threads(&self, stop_queue: impl FnOnce(&Queue)) {
        self.shared.stopping.cancel();
        stop_queue(&self.queue);
        self.readers.stop();
        self.shared.pool.stop();
    }

    async fn join_threads(&self) {
        let simulated = std::mem::take(&mut *self.simulated.lock());
        for task in simulated {
            if let Err(error) = task.await
                && !error.is_cancelled()
            {
                tracing::error!(%error, "task panicked");
            }
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                if thread.join().is_err() {
                    tracing::error!(name, "thread panicked");
                }
            }
        });
        if let Err(error) = joined.await {
            tracing::error!(%error, "cannot wait for the node's threads");
        }
    }
}

impl StorageNode {
    /// Starts a node on its data folder.
    ///
    /// # Errors
    /// Where the folder is not the node's, is used by another process, is damaged, or where the
    /// metadata store does not answer or contradicts it.
    pub async fn start(config: Config, environment: Environment) -> Result<Self, StartError> {
        config.validate()?;
        let Environment {
            cluster_id,
            incarnation,
            restoring,
            meta,
            bucket,
            clock,
            random,
            metrics,
            tracer,
            readiness,
            tasks,
            dialer,
            folders,
            execution,
        } = environment;
        if cluster_id.len() > CLUSTER_LEN_MAX {
            return Err(StartError::ClusterId {
                len: cluster_id.len(),
            });
        }
        let health = readiness.component(format!("storage-node-{}", config.node_id));
        let seen = Arc::new(register::read(&*meta, config.node()).await?);
        let before = rival::Before {
            cluster: &cluster_id,
            incarnation,
            config: &config,
            record: seen.record.as_ref(),
        };
        before.refuse_if_it_runs(&dialer, &*clock).await?;
        let context = Context {
            cluster: cluster_id.clone(),
            incarnation,
            random: Arc::clone(&random),
            folders,
        };
        let seen_then = Arc::clone(&seen);
        let opening = config.clone();
        let opened = execution.run(&*clock, move || start::open(&opening, &context, &seen_then));
        let Opened {
            lock,
            resumed,
            capacity,
        } = opened.await.map_err(|_| StartError::Interrupted)??;
        let Resumed {
            core,
            superblock,
            disk,
            index,
            table,
            pool,
            limits,
        } = resumed;
        pool.keep_for_bursts();
        let sizes = (capacity, limits.frame_bytes_max);
        let record = register::record_of(&config, &superblock, &seen, core.durable(), sizes);
        let known = known::Known {
            path: &config.data_dir,
            incarnation,
            revision: seen.revision,
            floor: core.floor(),
            restoring,
        };
        let scrub_metrics = ScrubMetrics::new(&metrics);
        let damages = Arc::new(Damages::new(scrub_metrics.damaged_frames.clone()));
        let reader = Reader {
            generation: superblock.generation,
            index: Arc::clone(&index),
            table: Arc::clone(&table),
            damages: Arc::clone(&damages),
        };
        known::check(&known, &index, &reader, &*meta, (&execution, &*clock)).await?;
        let registered = register::register(&*meta, &seen, &record).await?;
        tracing::info!(node = %superblock.node, generation = %superblock.generation, boot = superblock.boot,
            direct_io = disk.is_direct(), files = table.len(), folder = %config.data_dir.display(),
            "storage node starts");
        start::warn_of_small_files(pool.file_len(), limits.frame_bytes_max);
        let trim_metrics = TrimMetrics::new(&metrics);
        let upload_metrics = UploadMetrics::new(&metrics);
        let metrics = NodeMetrics::new(&metrics);
        let facts = Facts {
            node: superblock.node,
            generation: superblock.generation,
            boot: superblock.boot,
            cluster: cluster_id,
            incarnation,
            disk,
            index,
            table,
            pool,
            limits,
            execution: execution.clone(),
            durable: core.durable(),
            floor: core.floor(),
            damages,
        };
        let inner = Arc::new(Inner::new(
            Shared::new(facts),
            |reader| {
                let source = (reader, execution.clone(), Arc::clone(&clock));
                Uploads::new(bucket, source, upload_metrics, tasks.clone())
            },
            Arc::clone(&clock),
            (metrics, tracer),
            meta,
            record,
        ));
        let journal = JournalThread {
            core,
            queue: Arc::clone(&inner.queue),
            shared: Arc::clone(&inner.shared),
            clock: Arc::clone(&clock),
            metrics: inner.metrics.clone(),
            health: health.clone(),
            lock,
            peers: BTreeMap::new(),
            counted_at: None,
            zeroed_bytes: 0,
            level: Level::Calm,
            trims: Vec::new(),
            traces: Traces::new(inner.tracer.clone()),
        };
        match &execution {
            Execution::Threads => inner.spawn_threads(journal)?,
            Execution::Simulated(_) => inner.spawn_tasks(journal, &execution, &tasks),
        }
        let node = Self { inner };
        node.want(node.inner.record.state());
        remember(&node.inner.queue, registered, registered);
        node.spawn_checkpoints(&tasks);
        let trimmer = Trimmer::new(trim::Parts {
            shared: Arc::clone(&node.inner.shared),
            queue: Arc::clone(&node.inner.queue),
            meta: Arc::clone(&node.inner.meta),
            clock: Arc::clone(&node.inner.clock),
            random,
            metrics: trim_metrics,
            grace: config.trim_grace.get(),
            revision: seen.revision,
            restoring,
        });
        let token = tasks.token();
        tasks.spawn("storage-node-trim", async move { trimmer.run(token).await });
        node.spawn_scrub(&config, &tasks, scrub_metrics);
        node.spawn_verdict(&tasks);
        health.ready();
        Ok(node)
    }

    fn spawn_scrub(&self, config: &Config, tasks: &Tasks, metrics: ScrubMetrics) {
        let inner = &self.inner;
        let scrubber = Scrubber::new(
            Arc::clone(&inner.shared),
            Arc::clone(&inner.queue),
            Arc::clone(&inner.clock),
            metrics,
            (config.scrub_interval.get(), config.scrub_rate.as_u64()),
        );
        let token = tasks.token();
        tasks.spawn("storage-node-scrub", async move { scrubber.run(token).await });
    }

    /// A disk that failed once may have forgotten what it said was written: the process ends, and the
    /// next start reads what is really there (I18).
    fn spawn_verdict(&self, tasks: &Tasks) {
        let (shared, token) = (Arc::clone(&self.inner.shared), tasks.token());
        tasks.spawn_critical("storage-node-journal", async move {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = shared.stopping.cancelled() => {}
                () = shared.failed.cancelled() => {}
            }
            match shared.failure() {
                Some(reason) => Err(JournalDead(reason)),
                None => Ok(()),
            }
        });
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.shared.node
    }

    /// Its generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.inner.shared.generation
    }

    /// Counts its starts.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.inner.shared.boot
    }

    /// Its record, as this start wrote it.
    #[must_use]
    pub fn record(&self) -> &NodeRecord {
        &self.inner.record
    }

    /// Serves one connection until it ends: because the peer closed it, broke the protocol, or
    /// because the node stops.
    pub async fn serve(&self, link: Link<FromNode, ToNode>) {
        let session = Session {
            peer: Peer(self.inner.next_peer.fetch_add(1, Ordering::Relaxed)),
            shared: Arc::clone(&self.inner.shared),
            queue: Arc::clone(&self.inner.queue),
            readers: Arc::clone(&self.inner.readers),
            uploads: Arc::clone(&self.inner.uploads),
            clock: Arc::clone(&self.inner.clock),
            tracer: self.inner.tracer.clone(),
            metrics: self.inner.metrics.clone(),
        };
        let peer = session.peer;
        self.inner.metrics.sessions.inc();
        match session.run(link).await {
            Ok(()) | Err(SessionError::Closed) => tracing::debug!(?peer, "session ended"),
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(?peer, %error, source, "session ended");
            }
        }
        self.inner.metrics.sessions.dec();
    }

    /// The node's control service.
    #[must_use]
    pub fn control(&self) -> crate::control::Control {
        crate::control::Control::new(Arc::downgrade(&self.inner.shared))
    }

    /// What it holds and how it is.
    #[must_use]
    pub fn status(&self) -> v1::StorageNodeStatus {
        self.inner.shared.status()
    }

    /// Ends sessions, makes durable what was queued, and gives the folder back.
    pub async fn shutdown(&self) {
        self.inner.stop_threads(Queue::close);
        self.inner.join_threads().await;
        let durable = self.inner.shared.durable();
        if let Err(error) = register::checkpoint(&*self.inner.meta, &self.inner.record, durable).await {
            tracing::debug!(%error, "the last checkpoint was not stored");
        }
    }

    /// Stops at once as in a crash: nothing that is queued is written or answered. Returns when
    /// the folder is free.
    pub async fn kill(&self) {
        self.inner.shared.kill();
        self.inner.stop_threads(Queue::abort);
        self.inner.join_threads().await;
    }

    fn want(&self, state: NodeState) {
        self.inner.shared.set_draining(state == NodeState::Draining);
        want(&self.inner.queue, state);
    }

    fn spawn_checkpoints(&self, tasks: &Tasks) {
        let (inner, token) = (Arc::downgrade(&self.inner), tasks.token());
        let stopping = self.inner.shared.stopping.clone();
        let clock = Arc::clone(&self.inner.clock);
        tasks.spawn("storage-node-checkpoint", async move {
            loop {
                tokio::select! {
                    () = clock.sleep(CHECKPOINT_EVERY) => {}
                    () = token.cancelled() => return,
                    () = stopping.cancelled() => return,
                }
                // Only for the length of one checkpoint: this task must not keep the node.
                let Some(inner) = inner.upgrade() else { return };
                match register::checkpoint(&*inner.meta, &inner.record, inner.shared.durable()).await {
                    Ok(checkpoint) => {
                        inner.shared.set_draining(checkpoint.state == NodeState::Draining);
                        want(&inner.queue, checkpoint.state);
                        remember(&inner.queue, checkpoint.revision, checkpoint.record_revision);
                    }
                    Err(error @ RegisterError::Changed { .. }) => {
                        // Whoever took the record has this node's identity; two must not write.
                        let reason = Message::StopWriting(error.to_string());
                        if inner.queue.push_own(reason).is_err() {
                            tracing::error!(%error, "the node's record was taken");
                        }
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "cannot store the journal's checkpoint"),
                }
            }
        });
    }
}

impl std::fmt::Debug for StorageNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageNode")
            .field("shared", &self.inner.shared)
            .finish_non_exhaustive()
    }
}

/// Has the superblock learn how far the metadata store has come.
fn remember(queue: &Queue, revision: Revision, record_revision: Revision) {
    if queue
        .push_own(Message::Remember(revision, record_revision))
        .is_err()
    {
        tracing::debug!("the node is stopping");
    }
}

/// Passes an operator's wish on.
fn want(queue: &Queue, state: NodeState) {
    let admission = match state {
        NodeState::Unspecified | NodeState::Active => Admission::All,
        NodeState::Draining | NodeState::Full | NodeState::Gone => Admission::NoNewSegments,
    };
    if queue.push_own(Message::Want(admission)).is_err() {
        tracing::debug!("the node is stopping");
    }
}

impl Inner {
    /// The journal and its readers as tasks; files are made when they are needed.
    fn spawn_tasks(&self, journal: JournalThread, execution: &Execution, tasks: &Tasks) {
        if let Err(error) = self.shared.pool.reserve() {
            tracing::warn!(%error, "cannot reserve files for a full disk");
        }
        let (reader, readers) = (self.shared.reader(), Arc::clone(&self.readers));
        let (journal_execution, execution) = (execution.clone(), execution.clone());
        let mut simulated = self.simulated.lock();
        simulated.push(tasks.spawn("journal", journal.run_as_task(journal_execution)));
        simulated.push(tasks.spawn("journal-reader", async move {
            readers.run_as_task(&reader, &execution).await;
        }));
    }

    fn spawn_threads(&self, journal: JournalThread) -> Result<(), StartError> {
        let mut threads = self.threads.lock();
        threads.push(spawn("journal", move || journal.run())?);
        let pool = Arc::clone(&self.shared.pool);
        threads.push(spawn("journal-files", move || {
            if let Err(error) = pool.reserve() {
                tracing::warn!(%error, "cannot reserve files for a full disk");
            }
            pool.run();
        })?);
        for _ in 0..readers::THREADS {
            let reader = self.shared.reader();
            let readers = Arc::clone(&self.readers);
            threads.push(spawn("journal-reader", move || readers.run(&reader))?);
        }
        Ok(())
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source: io::Error| StartError::Thread { name, source })
}
