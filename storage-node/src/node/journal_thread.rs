//! The one thread that owns the replica and the journal.
//!
//! Takes everything that is queued, puts it into blocks, commits, sends the answers, and begins
//! again at once: under load a block holds what came while the one before was written, and no
//! timer is involved. Where nothing comes for a moment the last block is marked as synced.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::replica::FromNode;
use forebay_runtime::admin_http::Component;
use forebay_runtime::clock::Clock;
use forebay_runtime::execution::Execution;
use tokio::sync::oneshot;

use super::outbox::Outbox;
use super::queue::{Item, Message, Popped, Queue};
use super::shared::Shared;
use super::slice::ask_for_short_slices;
use super::traces::Traces;
use crate::core::{Core, Written};
use crate::metrics::NodeMetrics;
use crate::pressure::Level;
use crate::replica::Peer;

/// After this long without a message the last block is marked.
const MARK_AFTER: Duration = Duration::from_millis(5);
/// Counting segments takes time in proportion to them.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Damaged segments in one message; the others follow when these are healed.
const DAMAGED_TOLD_MAX: usize = 256;

/// What the thread owns.
pub(crate) struct JournalThread {
    pub core: Core,
    pub queue: Arc<Queue>,
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub metrics: NodeMetrics,
    pub health: Component,
    /// Given back when the thread ends: nobody writes the folder after that.
    pub lock: Box<dyn Any + Send>,
    pub peers: BTreeMap<Peer, Arc<Outbox>>,
    pub counted_at: Option<Duration>,
    pub zeroed_bytes: u64,
    /// As it was last told.
    pub level: Level,
    /// Trims whose notes are not durable yet, with the number of segments.
    pub trims: Vec<(oneshot::Sender<u64>, u64)>,
    pub traces: Traces,
}

/// Says that the journal thread is gone where it ends by a panic: a broken invariant of the node
/// itself, after which nothing more may be written.
struct Alarm {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    health: Component,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the journal thread panicked";
            tracing::error!(reason, "the journal is dead: this node only reads from now on");
            self.shared.set_failure(reason);
            self.health.dead(reason);
            self.shared.stopping.cancel();
            self.queue.abort();
        }
    }
}

impl JournalThread {
    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _alarm = self.alarm();
        ask_for_short_slices();
        self.begin();
        let mut items = VecDeque::new();
        loop {
            let popped = self.queue.pop_all(self.patience(), &mut items);
            if !self.turn(popped, &mut items) {
                break;
            }
        }
        self.end();
    }

    /// The same as a task, where a simulation has no threads.
    ///
    /// Cancel safety: dropped as in a crash, what is queued is forgotten.
    pub(crate) async fn run_as_task(mut self, execution: Execution) {
        let _alarm = self.alarm();
        self.begin();
        let mut items = VecDeque::new();
        loop {
            let clock = Arc::clone(&self.clock);
            let popped = self
                .queue
                .wait_and_pop_all(self.patience(), &*clock, &mut items)
                .await;
            if popped == Popped::Items {
                execution.pause(&*clock).await;
            }
            if !self.turn(popped, &mut items) {
                break;
            }
        }
        self.end();
    }

    fn alarm(&self) -> Alarm {
        Alarm {
            queue: Arc::clone(&self.queue),
            shared: Arc::clone(&self.shared),
            health: self.health.clone(),
        }
    }

    fn begin(&mut self) {
        self.core.time(Arc::clone(&self.clock));
        self.report();
    }

    fn patience(&self) -> Option<Duration> {
        self.core.needs_mark().then_some(MARK_AFTER)
    }

    /// Does what there is to do; false once there will be nothing any more.
    fn turn(&mut self, popped: Popped, items: &mut VecDeque<Item>) -> bool {
        match popped {
            Popped::Items => {
                for item in items.drain(..) {
                    self.take(item);
                }
                self.timed(Core::flush);
                self.answer_trims();
            }
            Popped::Idle => {
                self.timed(Core::idle);
                self.traces.clear();
            }
            Popped::Closed => return false,
        }
        self.report();
        true
    }

    fn end(mut self) {
        if !self.shared.is_killed() {
            self.timed(Core::flush);
            self.timed(Core::idle);
            self.report();
        }
        drop(self.lock);
    }

    fn take(&mut self, item: Item) {
        match item.message {
            Message::Append {
                peer,
                generation,
                frame,
            } => {
                let waited = self.clock.monotonic().saturating_sub(item.at);
                self.metrics.queue_seconds.observe(waited.as_secs_f64());
                self.core
                    .waited(u32::try_from(waited.as_micros()).unwrap_or(u32::MAX));
                self.timed(|core| core.append(peer, generation, &frame));
            }
            Message::Fence { peer, request, items } => self.timed(|core| core.fence(peer, request, &items)),
            Message::Commit(items) => self.core.commit(&items),
            Message::Confirm { peer, request, items } => {
                self.core.confirm(peer, request, &items);
                self.deliver();
            }
            Message::Connected(peer, outbox) => {
                self.peers.insert(peer, outbox);
            }
            Message::Gone(peer) => {
                self.peers.remove(&peer);
                self.core.leave(peer);
            }
            Message::Copy {
                peer,
                request,
                copy,
                frames,
            } => {
                let before = frames.iter().map(|frame| frame.header().frame_len() as u64).sum();
                self.metrics.copied_bytes.inc_by(before);
                self.timed(|core| core.copy(peer, request, &copy, &frames));
            }
            Message::ForgetCopy(segment, by) => self.timed(|core| core.forget_copy(segment, by)),
            Message::Adopt(segments) => self.timed(|core| core.adopt(&segments)),
            Message::Trim { segments, done } => {
                let mut count = 0;
                self.timed(|core| count = core.trim(&segments));
                self.trims.push((done, count));
            }
            Message::Urge(segments) => {
                for outbox in self.peers.values() {
                    outbox.push(FromNode::Urge(segments.clone()), None);
                }
            }
            Message::Damaged(found) => {
                self.timed(|core| core.damage(&found));
                self.tell_damaged();
            }
            Message::Trace(trace) => self.traces.take(*trace, self.clock.monotonic()),
            Message::Want(admission) => self.core.want(admission),
            Message::Remember(revision, record_revision) => self.core.remember(revision, record_revision),
            Message::StopWriting(reason) => {
                tracing::error!(reason, "this node writes no more");
                self.core.stop_writing(&reason);
            }
        }
    }

    /// Tells brokers which segments are damaged, so that their owners act.
    fn tell_damaged(&self) {
        let damaged = self.shared.index.damaged(DAMAGED_TOLD_MAX);
        let damaged: Vec<_> = damaged.into_iter().map(|(segment, _)| segment).collect();
        if damaged.is_empty() {
            return;
        }
        for outbox in self.peers.values() {
            outbox.push(FromNode::Damaged(damaged.clone()), None);
        }
    }

    /// Says that trims are durable. Where the journal died with them, whoever waits learns it.
    fn answer_trims(&mut self) {
        let alive = self.core.failure().is_none();
        for (done, count) in self.trims.drain(..).filter(|_| alive) {
            if done.send(count).is_err() {
                tracing::debug!("nobody waits for a trim");
            }
        }
    }

    /// Does something that may commit, and sends what may be said because of it.
    fn timed(&mut self, work: impl FnOnce(&mut Core)) {
        let before = self.clock.monotonic();
        work(&mut self.core);
        let Written {
            body,
            overhead,
            fsyncs,
        } = self.core.take_written();
        if fsyncs > 0 {
            let took = self.clock.monotonic().saturating_sub(before);
            self.metrics.commit_seconds.observe(took.as_secs_f64());
            let times = self.core.last_commit();
            self.metrics.write_seconds.observe(times.write.as_secs_f64());
            self.metrics.fsync_seconds.observe(times.sync.as_secs_f64());
            self.metrics
                .commit_bytes
                .observe(self.core.last_commit_bytes() as f64);
            self.metrics.data_bytes.inc_by(body);
            self.metrics.overhead_bytes.inc_by(overhead);
            self.metrics.fsyncs.inc_by(fsyncs);
            self.metrics.healed_segments.inc_by(self.core.take_healed());
            self.shared.pool.note_commit();
            self.shared.advance_durable(self.core.durable());
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        if !self.core.has_out() {
            return;
        }
        let times = self.core.last_commit();
        for (peer, message) in self.core.take_out() {
            if let FromNode::NotTaken { refusal, .. } = &message {
                self.metrics.refused(*refusal);
            }
            if !self.traces.is_empty() {
                self.traces.on_answer(&message, &times, self.clock.monotonic());
            }
            if let Some(outbox) = self.peers.get(&peer) {
                outbox.push(message, None);
            }
        }
    }

    fn report(&mut self) {
        if let Some(reason) = self.core.failure()
            && self.shared.set_failure(reason)
        {
            self.metrics.failed.set(1);
            self.health.dead(reason);
        }
        let level = self.core.level();
        if level > std::mem::replace(&mut self.level, level) {
            self.shared.pressed.notify_one();
        }
        let now = self.clock.monotonic();
        if self
            .counted_at
            .is_none_or(|at| now.saturating_sub(at) >= COUNT_EVERY)
        {
            self.counted_at = Some(now);
            let counts = self.core.counts();
            self.metrics.segments_open.set(gauge(counts.open));
            self.metrics.segments_fenced.set(gauge(counts.fenced));
            self.metrics.segments_limbo.set(gauge(counts.limbo));
            self.metrics.files.set(gauge(self.shared.table.len() as u64));
            self.metrics.spares.set(gauge(self.shared.pool.ready() as u64));
            self.metrics.queue_bytes.set(gauge(self.queue.bytes()));
            let zeroed = self.shared.pool.zeroed_bytes();
            self.metrics
                .zeroed_bytes
                .inc_by(zeroed - std::mem::replace(&mut self.zeroed_bytes, zeroed));
        }
        self.shared.set_floor(self.core.floor());
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
