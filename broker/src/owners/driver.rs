//! The owners' loop: messages in, state machines, actions out.
//!
//! What arrived together is handled together: every batch gets its offset first, then each
//! partition that was touched makes one frame. Actions are carried out before the next messages
//! are taken, so a state machine never sees its own effects out of order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_proto::data::front::{FromBroker, Produce as ProduceMessage};
use forebay_proto::data::replica::{FenceItem, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::v1::ErrorCode;
use forebay_record::{NodeId, Offset, PartitionId};
use forebay_runtime::clock::Clock;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::{Span, Tracer};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::calls::{Call, Calls};
use super::fetches::Fetches;
use super::flows::Flows;
use super::forces::Forces;
use super::message::{Command, Outbox};
use super::offloads::Offloads;
use super::refusals::Refusals;
use super::repairs::Repairs;
use super::replicas::Node;
use super::serve::not_owner;
use super::silence::Silence;
use super::topics::Topics;
use super::traces::Traces;
use super::turns::Turns;
use crate::metrics::{BrokerMetrics, Request};
use crate::objects::Objects;
use crate::partition::{Action, Config, Context, Nodes, Owner, Produce, Stored, Ticket};
use crate::store::{Change, Granted, Records};

/// Messages handled before frames are made.
const BURST: usize = 512;
const TICK: Duration = Duration::from_millis(10);
/// The metadata store counts as healthy this long after it last answered.
const META_HEALTHY_MS: u64 = 8_000;

/// What the owners' task needs besides its mailbox.
pub struct Settings {
    /// How partitions are written.
    pub partition: Config,
    /// Bytes of recent batches kept for readers, over all partitions.
    pub tail_cache_bytes: u64,
    /// Reads records; says who this broker is.
    pub records: Records,
    /// Where changes of records are sent from.
    pub changes: mpsc::UnboundedSender<(PartitionId, Change)>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// First of the nonces; random, so that no two sessions share one.
    pub nonce: u64,
    /// Where changes of records run.
    pub tasks: Tasks,
    /// Where their outcomes go: this task's own mailbox.
    pub mailbox: mpsc::Sender<Command>,
    /// Told of partitions that are no longer owned here.
    pub released: mpsc::UnboundedSender<PartitionId>,
    /// The object store, where there is one.
    pub objects: Option<Objects>,
    /// Where the oldest revision is published that a new object's name may have.
    pub floor: watch::Sender<u64>,
    /// How long the metadata store may be silent before what is owned must be confirmed otherwise, ms.
    pub silence_max_ms: u64,
    /// Bytes a second that copies between storage nodes may send; 0 for no bound.
    pub repair_bytes_per_second: u64,
    /// Counters.
    pub metrics: BrokerMetrics,
    /// Begins spans.
    pub tracer: Tracer,
}

struct Waiter {
    request: u64,
    outbox: Outbox,
    silent: bool,
    /// When it came, monotonic.
    started: Duration,
    _permit: OwnedSemaphorePermit,
}

/// The owners' task.
pub struct Driver {
    pub(super) settings: Settings,
    pub(super) owners: HashMap<PartitionId, Owner>,
    pub(super) calls: Calls,
    pub(super) offloads: Offloads,
    pub(super) repairs: Repairs,
    pub(super) now_ms: u64,
    pub(super) nodes: HashMap<NodeId, Node>,
    pub(super) views: Nodes,
    /// Of these, by [`crate::partition::least_frame`].
    pub(super) least_frame: Option<(u64, NodeId)>,
    pub(super) refusals: Refusals,
    waiters: HashMap<Ticket, Waiter>,
    pub(super) fetches: Fetches,
    traces: Traces,
    next_ticket: u64,
    nonce: u64,
    actions: Vec<Action>,
    pub(super) touched: HashSet<PartitionId>,
    visible: HashSet<PartitionId>,
    fences: HashMap<NodeId, Vec<FenceItem>>,
    pub(super) turns: Turns,
    pub(super) cached_bytes: u64,
    /// When the next census is due.
    pub(super) census_at_ms: u64,
    /// Partitions granted and not served yet, and since when.
    pub(super) taking: HashMap<PartitionId, Duration>,
    pub(super) meta_answered_ms: u64,
    pub(super) silence: Silence,
    leaving: Option<oneshot::Sender<()>>,
    pub(super) topics: Topics,
    pub(super) flows: Flows,
    pub(super) forces: Forces,
}

impl Driver {
    /// A task that owns nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            nonce: settings.nonce,
            offloads: Offloads::new(settings.objects.clone(), settings.records.session),
            repairs: Repairs::new(settings.repair_bytes_per_second),
            traces: Traces::new(settings.tracer.clone()),
            settings,
            owners: HashMap::new(),
            calls: Calls::default(),
            now_ms: 0,
            nodes: HashMap::new(),
            views: Nodes::new(),
            least_frame: None,
            refusals: Refusals::default(),
            waiters: HashMap::new(),
            fetches: Fetches::default(),
            next_ticket: 0,
            actions: Vec::new(),
            touched: HashSet::new(),
            visible: HashSet::new(),
            fences: HashMap::new(),
            turns: Turns::default(),
            cached_bytes: 0,
            census_at_ms: 0,
            taking: HashMap::new(),
            meta_answered_ms: 0,
            silence: Silence::default(),
            leaving: None,
            topics: Topics::default(),
            flows: Flows::default(),
            forces: Forces::default(),
        }
    }

    /// Runs until the mailbox closes.
    pub async fn run(mut self, mut mailbox: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(BURST);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.now_ms = self.monotonic_ms();
        self.meta_answered_ms = self.now_ms;
        loop {
            // Cancel safety: both sources keep what was not taken.
            tokio::select! {
                biased;
                count = mailbox.recv_many(&mut commands, BURST) => {
                    if count == 0 {
                        return;
                    }
                    self.now_ms = self.monotonic_ms();
                    for command in commands.drain(..) {
                        self.on_command(command);
                    }
                    self.settle();
                    // A stream of messages must not hold the timer back.
                    if futures_util::FutureExt::now_or_never(tick.tick()).is_some() {
                        self.on_tick();
                    }
                }
                _ = tick.tick() => {
                    self.now_ms = self.monotonic_ms();
                    self.on_tick();
                }
            }
        }
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.settings.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets one owner act, and carries out what it asks for.
    pub(super) fn with_owner(
        &mut self,
        partition: PartitionId,
        act: impl FnOnce(&mut Owner, &mut Context<'_>),
    ) -> bool {
        let Some(owner) = self.owners.get_mut(&partition) else {
            return false;
        };
        let cached = owner.cache().bytes();
        let mut out = std::mem::take(&mut self.actions);
        self.nonce = self.nonce.wrapping_add(1);
        let mut ctx = Context {
            now_ms: self.now_ms,
            wall_ms: self.settings.clock.now_unix_ms(),
            nodes: &self.views,
            least_frame: self.least_frame,
            meta_healthy: self.now_ms.saturating_sub(self.meta_answered_ms) < META_HEALTHY_MS,
            meta_revision: self.offloads.revision(),
            steady_ms: self.turns.steady_ms(),
            nonce: self.nonce,
            out: &mut out,
        };
        act(owner, &mut ctx);
        if !std::mem::replace(&mut owner.awake, true) {
            self.turns.wake(partition);
        }
        self.cached_bytes = self.cached_bytes + owner.cache().bytes() - cached;
        for action in out.drain(..) {
            self.carry_out(partition, action);
        }
        self.actions = out;
        if !self.taking.is_empty() {
            self.took_over(partition);
        }
        true
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Produce {
                produce,
                outbox,
                permit,
                span,
            } => self.on_produce(produce, outbox, permit, span),
            Command::Fetch {
                fetch,
                outbox,
                permit,
                span,
            } => self.on_fetch(fetch, outbox, permit, span),
            Command::CancelFetch { connection, request } => self.fetches.forget(connection, Some(request)),
            Command::Disconnected(connection) => self.fetches.forget(connection, None),
            Command::Offsets {
                request,
                partition,
                epoch,
                position,
                outbox,
            } => {
                self.settings.metrics.request(Request::Offsets);
                self.on_offsets(request, partition, epoch, position, outbox);
            }
            Command::Plan {
                request,
                partition,
                epoch,
                from,
                outbox,
            } => {
                self.settings.metrics.request(Request::Plan);
                let result = self.plan(partition, epoch, from);
                if let Err(failure) = &result {
                    self.settings.metrics.failure(Request::Plan, failure.code);
                }
                outbox.send(FromBroker::Plan { request, result });
            }
            Command::Node(event) => self.on_node(event),
            Command::Granted(granted) => granted.into_iter().for_each(|one| self.on_granted(one)),
            Command::Resign(partition) => {
                self.with_owner(partition, |owner, ctx| owner.on_resign(ctx));
            }
            Command::Stored(partition, stored) => {
                self.meta_answered_ms = self.now_ms;
                if let Stored::Done(revision) | Stored::Conflict(_, revision) = &stored {
                    self.offloads.saw(*revision);
                }
                let newest = |this: &Self| {
                    let record = this.owners.get(&partition).map(Owner::record);
                    record
                        .and_then(|record| record.chain.last())
                        .map(|segment| segment.id)
                };
                let before = newest(self);
                self.with_owner(partition, |owner, ctx| owner.on_stored(stored, ctx));
                if newest(self).is_some_and(|after| before != Some(after)) {
                    self.settings.metrics.segments_opened.inc();
                }
                self.tell_declared(partition);
            }
            Command::Confirmed { call, mine } => self.on_record_confirmed(call, mine),
            Command::MetadataAnswered(revision) => {
                self.meta_answered_ms = self.now_ms;
                self.offloads.saw(revision);
                self.publish_floor();
            }
            Command::Verified(key, verified) => self.on_verified(key, verified),
            Command::Folded(partition, folded) => {
                self.with_owner(partition, |owner, ctx| {
                    owner.on_folded(folded.map(|one| *one), ctx)
                });
            }
            Command::ObjectState(partition, state) => {
                self.with_owner(partition, |owner, ctx| {
                    owner.on_object_state(state.map(|one| *one), ctx)
                });
            }
            Command::TopicChanged(change) => self.on_topic_changed(change),
            Command::EpochsSeen(seen) => {
                for (partition, epoch) in seen {
                    self.with_owner(partition, |owner, ctx| owner.on_epoch_seen(epoch, ctx));
                }
            }
            Command::Describe { partitions, reply } => {
                // A caller that went away needs no answer.
                let _ = reply.send(self.describe(&partitions));
            }
            Command::Summarize(reply) => {
                // As above.
                let _ = reply.send(self.summarize());
            }
            Command::ForceSeal {
                partition,
                forcing,
                reply,
            } => self.on_force_seal(partition, &forcing, reply),
            Command::DeclareLost {
                partition,
                declaring,
                reply,
            } => self.on_declare_lost(partition, &declaring, reply),
            Command::ResignAll(done) => {
                self.leaving = Some(done);
                let all: Vec<_> = self.owners.keys().copied().collect();
                for partition in all {
                    self.with_owner(partition, |owner, ctx| owner.on_resign(ctx));
                }
            }
        }
    }

    /// Makes frames of what was staged, sends fences together, and answers fetches that have enough.
    fn settle(&mut self) {
        for partition in std::mem::take(&mut self.touched) {
            self.with_owner(partition, |owner, ctx| owner.flush(ctx));
        }
        for (node, items) in std::mem::take(&mut self.fences) {
            let request = self.calls.begin(node, Call::Fence, self.now_ms);
            self.request(node, ToNode::Fence { request, items });
        }
        self.send_surveys();
        let visible = std::mem::take(&mut self.visible);
        if !visible.is_empty() {
            for key in self.fetches.on(&visible) {
                self.try_fetch(key, false);
            }
        }
        if self.cached_bytes > self.settings.tail_cache_bytes {
            self.shrink_caches();
        }
        if self.owners.is_empty()
            && let Some(done) = self.leaving.take()
        {
            // Whoever asked may have given up waiting.
            let _ = done.send(());
        }
    }

    fn on_tick(&mut self) {
        self.tick_owners();
        for sent in self.calls.fail(None, self.now_ms) {
            self.on_call_failed(sent);
        }
        self.tick_repairs();
        self.tend_silence();
        for question in self.calls.overdue_questions(self.now_ms) {
            let message = format!("{}: the storage nodes did not answer in time", question.partition);
            let result = Err(Failure::new(ErrorCode::Unavailable, message));
            question.outbox.send(FromBroker::Offsets {
                request: question.request,
                result,
            });
        }
        for key in self.fetches.overdue(self.now_ms) {
            self.try_fetch(key, true);
        }
        self.settle();
        self.census();
    }

    fn shrink_caches(&mut self) {
        // Three quarters, so that it does not happen with every batch.
        let share = self.settings.tail_cache_bytes / 4 * 3 / (self.owners.len() as u64).max(1);
        self.cached_bytes = 0;
        for owner in self.owners.values_mut() {
            owner.shrink_cache(share);
            self.cached_bytes += owner.cache().bytes();
        }
    }

    // ---- produce -----------------------------------------------------------------------------

    fn on_produce(
        &mut self,
        produce: ProduceMessage,
        outbox: Outbox,
        permit: OwnedSemaphorePermit,
        mut span: Span,
    ) {
        let ProduceMessage {
            request,
            partition,
            epoch,
            acks,
            deadline_ms,
            batch,
        } = produce;
        self.settings.metrics.request(Request::Produce);
        if !self.owners.contains_key(&partition) {
            let failure = not_owner(partition, self.settings.records.me);
            span.fail(&failure);
            self.settings.metrics.failure(Request::Produce, failure.code);
            let result = Err(failure);
            outbox.send(FromBroker::Produced { request, result });
            return;
        }
        self.settings.metrics.produced_bytes.inc_by(batch.len() as u64);
        self.settings.metrics.produced_batches.inc();
        self.flows.add(partition, batch.len());
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let silent = acks == forebay_proto::data::front::Acks::None;
        let waiter = Waiter {
            request,
            outbox,
            silent,
            started: self.settings.clock.monotonic(),
            _permit: permit,
        };
        self.waiters.insert(ticket, waiter);
        let traced = span.is_some();
        if traced {
            let to = (partition, epoch, self.settings.records.me);
            self.traces.begin(to, ticket, &batch, span);
        }
        let deadline_ms = self.now_ms + u64::from(deadline_ms);
        let produce = Produce {
            ticket,
            epoch,
            acks,
            deadline_ms,
            batch,
            traced,
        };
        self.with_owner(partition, |owner, ctx| owner.on_produce(produce, ctx));
        self.touched.insert(partition);
    }

    fn answer(&mut self, partition: PartitionId, ticket: Ticket, result: Result<Offset, Failure>) {
        self.traces.answered(partition, ticket, &result);
        let Some(waiter) = self.waiters.remove(&ticket) else {
            return;
        };
        let waited = self.settings.clock.monotonic().saturating_sub(waiter.started);
        self.settings
            .metrics
            .produce_latency
            .observe(waited.as_secs_f64());
        if let Err(failure) = &result {
            self.settings.metrics.failure(Request::Produce, failure.code);
        }
        if !waiter.silent {
            waiter.outbox.send(FromBroker::Produced {
                request: waiter.request,
                result,
            });
        }
    }

    fn carry_out(&mut self, partition: PartitionId, action: Action) {
        match action {
            Action::Append {
                node,
                generation,
                frame,
            } => {
                let trace = self.traces.on_append(partition, &frame.header);
                let append = ToNode::Append { generation, frame };
                let message = match trace {
                    Some(context) => ToNode::Traced(Box::new((context, append))),
                    None => append,
                };
                self.append(node, message);
            }
            Action::Commit {
                node,
                segment,
                committed,
            } => {
                self.append(node, ToNode::Commit(vec![(segment, committed)]));
            }
            Action::Fence { node, item } => self.fences.entry(node).or_default().push(item),
            Action::ReadFrames {
                node,
                request: frames,
            } => {
                let request = self
                    .calls
                    .begin(node, Call::Frames(partition, frames.segment), self.now_ms);
                self.request(node, ToNode::Frames { request, frames });
            }
            Action::ReadHeaders {
                node,
                request: headers,
            } => {
                let request = self
                    .calls
                    .begin(node, Call::Headers(partition, headers.segment), self.now_ms);
                self.request(node, ToNode::Headers { request, headers });
            }
            Action::ReadState => self.on_read_state(partition),
            Action::Offload {
                segment,
                piece,
                urged,
            } => self.on_offload(partition, *segment, piece, urged),
            Action::FindMissing { node, request } => self.on_find_missing(partition, node, request),
            Action::Survey {
                node,
                segment,
                generation,
            } => self.on_survey(node, segment, generation),
            Action::Repair(repair) => self.on_repair(*repair),
            Action::ForgetCopy { node, segment, by } => {
                self.request(node, ToNode::ForgetCopy { segment, by });
            }
            Action::Repaired(repair) => self.on_repair_done(&repair),
            Action::Fold(retention) => self.on_fold(partition, retention),
            Action::Store(next) => self.store(partition, next),
            Action::Answer { ticket, result } => self.answer(partition, ticket, result),
            Action::Placed { ticket, base, end } => self.traces.placed(partition, ticket, base, end),
            Action::Visible(_) => {
                self.visible.insert(partition);
            }
            Action::Released { why } => self.on_released(partition, &why),
        }
    }

    fn store(&self, partition: PartitionId, next: Box<forebay_meta::model::Partition>) {
        let Some(seen) = self.owners.get(&partition).map(Owner::revision) else {
            return;
        };
        // The other side ends with the broker.
        let _ = self.settings.changes.send((partition, Change { seen, next }));
    }

    fn on_granted(&mut self, granted: Granted) {
        let Granted {
            record,
            revision,
            topic,
            topic_revision,
        } = granted;
        let partition = record.id;
        self.meta_answered_ms = self.now_ms;
        self.offloads.saw(revision);
        if self.leaving.is_some() {
            return;
        }
        tracing::info!(%partition, epoch = %record.epoch, "takes partition");
        self.takes_over(partition);
        self.flows.begin(partition, self.now_ms);
        let mut out = std::mem::take(&mut self.actions);
        self.nonce = self.nonce.wrapping_add(1);
        let mut ctx = Context {
            now_ms: self.now_ms,
            wall_ms: self.settings.clock.now_unix_ms(),
            nodes: &self.views,
            least_frame: self.least_frame,
            meta_healthy: true,
            meta_revision: self.offloads.revision(),
            steady_ms: self.turns.steady_ms(),
            nonce: self.nonce,
            out: &mut out,
        };
        let topic = self.topics.newest(record.topic, topic, topic_revision);
        let config = self.config_of(&topic);
        let mut owner = Owner::new(config, self.settings.records.me, record, revision, &mut ctx);
        owner.awake = true;
        self.turns.wake(partition);
        if let Some(older) = self.owners.insert(partition, owner) {
            self.cached_bytes -= older.cache().bytes();
        }
        for action in out.drain(..) {
            self.carry_out(partition, action);
        }
        self.actions = out;
        self.settings
            .metrics
            .partitions
            .set(i64::try_from(self.owners.len()).unwrap_or(i64::MAX));
        // One that has nothing to recover serves at once.
        self.took_over(partition);
    }

    fn on_released(&mut self, partition: PartitionId, why: &str) {
        tracing::info!(%partition, why, "releases partition");
        self.taking.remove(&partition);
        self.forces.released(partition);
        self.flows.end(partition);
        self.settings.metrics.released.inc();
        if let Some(owner) = self.owners.remove(&partition) {
            self.cached_bytes -= owner.cache().bytes();
        }
        self.visible.insert(partition);
        self.forget_repairs();
        self.settings
            .metrics
            .partitions
            .set(i64::try_from(self.owners.len()).unwrap_or(i64::MAX));
        // The other side is gone only when the broker is.
        let _ = self.settings.released.send(partition);
    }
}
