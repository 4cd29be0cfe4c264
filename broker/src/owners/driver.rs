//! The owners' loop: messages in, state machines, actions out.
//!
//! What arrived together is handled together: every batch gets its offset first, then each
//! partition that was touched makes one frame. Actions are carried out before the next messages
//! are taken, so a state machine never sees its own effects out of order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_proto::data::front::{Fetch, Fetched, FromBroker, Produce as ProduceMessage};
use forebay_proto::data::replica::{FenceItem, FromNode, NodeFailure, ToNode};
use forebay_proto::error::Failure;
use forebay_proto::stored::{NodeRecord, NodeState};
use forebay_proto::v1::ErrorCode;
use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId};
use forebay_runtime::clock::Clock;
use forebay_runtime::tasks::Tasks;
use forebay_runtime::trace::{Span, Tracer};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::calls::{Call, Calls, Sent};
use super::fetches::{Fetches, Waiting};
use super::flows::Flows;
use super::forces::Forces;
use super::message::{Command, Outbox};
use super::offloads::Offloads;
use super::refusals::Refusals;
use super::repairs::Repairs;
use super::topics::Topics;
use super::traces::Traces;
use crate::metrics::{BrokerMetrics, Request};
use crate::nodes::{NodeEvent, NodeSession};
use crate::objects::Objects;
use crate::partition::{Action, Config, Context, Found, NodeView, Nodes, Owner, Produce, Stored, Ticket};
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

/// A storage node as the driver knows it.
struct Node {
    view: NodeView,
    session: Option<NodeSession>,
}

/// The owners' task.
pub struct Driver {
    pub(super) settings: Settings,
    pub(super) owners: HashMap<PartitionId, Owner>,
    pub(super) calls: Calls,
    pub(super) offloads: Offloads,
    pub(super) repairs: Repairs,
    pub(super) now_ms: u64,
    nodes: HashMap<NodeId, Node>,
    pub(super) views: Nodes,
    refusals: Refusals,
    waiters: HashMap<Ticket, Waiter>,
    pub(super) fetches: Fetches,
    traces: Traces,
    next_ticket: u64,
    nonce: u64,
    actions: Vec<Action>,
    touched: HashSet<PartitionId>,
    visible: HashSet<PartitionId>,
    fences: HashMap<NodeId, Vec<FenceItem>>,
    pub(super) cached_bytes: u64,
    /// When the next census is due.
    pub(super) census_at_ms: u64,
    /// Partitions granted and not served yet, and since when.
    pub(super) taking: HashMap<PartitionId, Duration>,
    meta_answered_ms: u64,
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
            refusals: Refusals::default(),
            waiters: HashMap::new(),
            fetches: Fetches::default(),
            next_ticket: 0,
            actions: Vec::new(),
            touched: HashSet::new(),
            visible: HashSet::new(),
            fences: HashMap::new(),
            cached_bytes: 0,
            census_at_ms: 0,
            taking: HashMap::new(),
            meta_answered_ms: 0,
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
            meta_healthy: self.now_ms.saturating_sub(self.meta_answered_ms) < META_HEALTHY_MS,
            meta_revision: self.offloads.revision(),
            nonce: self.nonce,
            out: &mut out,
        };
        act(owner, &mut ctx);
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
        let partitions: Vec<_> = self.owners.keys().copied().collect();
        for partition in partitions {
            self.with_owner(partition, |owner, ctx| owner.on_tick(ctx));
        }
        for sent in self.calls.fail(None, self.now_ms) {
            self.on_call_failed(sent);
        }
        self.tick_repairs();
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
            Action::Offload { segment, urged } => self.on_offload(partition, *segment, urged),
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
            meta_healthy: true,
            meta_revision: self.offloads.revision(),
            nonce: self.nonce,
            out: &mut out,
        };
        let topic = self.topics.newest(record.topic, topic, topic_revision);
        let config = self.config_of(&topic);
        let owner = Owner::new(config, self.settings.records.me, record, revision, &mut ctx);
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

    // ---- storage nodes -----------------------------------------------------------------------

    pub(super) fn is_connected(&self, node: NodeId, generation: Generation) -> bool {
        self.views
            .get(&node)
            .is_some_and(|view| view.connected && view.generation == generation)
    }

    fn append(&self, node: NodeId, message: ToNode) {
        if let Some(session) = self.nodes.get(&node).and_then(|node| node.session.as_ref()) {
            // A session that just ended loses it; the next one gets it again.
            let _ = session.append.send(message);
        }
    }

    pub(super) fn request(&self, node: NodeId, message: ToNode) {
        if let Some(session) = self.nodes.get(&node).and_then(|node| node.session.as_ref()) {
            // As above: the call times out and is made again.
            let _ = session.request.send(message);
        }
    }

    fn on_node(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Known(record) => self.on_node_known(&record),
            NodeEvent::Forgotten(node) => self.on_node_forgotten(node),
            NodeEvent::Up {
                node,
                generation,
                session,
            } => {
                if let Some(known) = self.nodes.get_mut(&node) {
                    known.session = Some(session);
                    known.view.connected = true;
                    known.view.generation = generation;
                    self.views.insert(node, known.view.clone());
                }
                self.each_owner(|owner, ctx| owner.on_connected(node, generation, ctx));
            }
            NodeEvent::Down(node) => {
                if let Some(known) = self.nodes.get_mut(&node) {
                    known.session = None;
                    known.view.connected = false;
                    self.views.insert(node, known.view.clone());
                }
                for sent in self.calls.fail(Some(node), self.now_ms) {
                    self.on_call_failed(sent);
                }
                self.each_owner(|owner, ctx| owner.on_nodes_changed(ctx));
            }
            NodeEvent::Said(node, message) => self.on_said(node, message),
        }
    }

    fn on_node_forgotten(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        if self.views.remove(&node).is_some() {
            for sent in self.calls.fail(Some(node), self.now_ms) {
                self.on_call_failed(sent);
            }
            self.each_owner(|owner, ctx| owner.on_nodes_changed(ctx));
        }
    }

    fn on_node_known(&mut self, record: &NodeRecord) {
        let id = NodeId(record.id);
        if record.state() == NodeState::Gone {
            // An operator said so: nothing that it had comes back.
            return self.on_node_forgotten(id);
        }
        let known = self.nodes.entry(id).or_insert_with(|| Node {
            view: NodeView {
                generation: Generation(record.generation),
                zone: String::new(),
                usable: false,
                connected: false,
                leaving: false,
            },
            session: None,
        });
        known.view.zone.clone_from(&record.zone);
        known.view.usable = record.state() == NodeState::Active;
        known.view.leaving = record.state() == NodeState::Draining;
        if known.session.is_none() {
            known.view.generation = Generation(record.generation);
        }
        self.views.insert(id, known.view.clone());
    }

    fn each_owner(&mut self, act: impl Fn(&mut Owner, &mut Context<'_>)) {
        let partitions: Vec<_> = self.owners.keys().copied().collect();
        for partition in partitions {
            self.with_owner(partition, &act);
        }
    }

    fn on_said(&mut self, node: NodeId, message: FromNode) {
        match message {
            FromNode::Acks { acks, queue_delay_us } => {
                self.settings
                    .metrics
                    .node_queue_delay
                    .observe(f64::from(queue_delay_us) / 1e6);
                for ack in acks {
                    self.with_owner(ack.segment.partition, |owner, ctx| owner.on_ack(node, ack, ctx));
                    self.touched.insert(ack.segment.partition);
                }
            }
            FromNode::NotTaken {
                segment,
                number,
                refusal,
            } => {
                self.refusals.tell(node, segment, number, refusal, self.now_ms);
                self.settings.metrics.refused(refusal);
                self.with_owner(segment.partition, |owner, ctx| {
                    owner.on_not_taken(node, segment, refusal, ctx)
                });
                self.touched.insert(segment.partition);
            }
            FromNode::Fenced { request, states } => {
                self.calls.end(request);
                for state in states {
                    self.with_owner(state.segment.partition, |owner, ctx| {
                        owner.on_fenced(node, state, ctx)
                    });
                }
            }
            FromNode::Frames { request, result } => match self.calls.end(request) {
                Some(Sent {
                    call: Call::Frames(partition, segment),
                    ..
                }) => {
                    self.with_owner(partition, |owner, ctx| {
                        owner.on_frames(node, segment, result, ctx)
                    });
                }
                Some(Sent {
                    call: Call::Sealed(key),
                    ..
                }) => self.on_sealed(key, node, result),
                _ => {}
            },
            FromNode::Surveyed { request, found } => {
                if let Some(Sent {
                    call: Call::Survey(segments),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_surveyed(node, segments, found);
                }
            }
            FromNode::Copied { request, result } => {
                if let Some(Sent {
                    call: Call::Copy(key),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_copied(key, node, result);
                }
            }
            FromNode::Headers { request, result } => {
                if let Some(Sent {
                    call: Call::Headers(partition, segment),
                    ..
                }) = self.calls.end(request)
                {
                    self.with_owner(partition, |owner, ctx| {
                        owner.on_headers(node, segment, result, ctx)
                    });
                }
            }
            FromNode::Confirm { request, open } => {
                if let Some(Sent {
                    call: Call::Confirm(question),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_confirm(question, node, open.first().copied().unwrap_or(false));
                }
            }
            FromNode::Uploaded { request, result } => {
                if let Some(Sent {
                    call: Call::Upload(key),
                    ..
                }) = self.calls.end(request)
                {
                    self.on_uploaded(key, node, result);
                }
            }
            FromNode::Urge(segments) => {
                for segment in segments {
                    self.with_owner(segment.partition, |owner, ctx| owner.on_urged(segment, ctx));
                }
            }
            FromNode::Welcome { .. }
            | FromNode::Refused(_)
            | FromNode::Read { .. }
            | FromNode::Lookup { .. } => {
                tracing::warn!(%node, "storage node sent what nobody asked for");
            }
        }
    }

    fn on_call_failed(&mut self, sent: Sent) {
        let node = sent.node;
        match sent.call {
            // The partitions' own timers repeat fences.
            Call::Fence => {}
            Call::Frames(partition, segment) => self.fail_frames(partition, node, segment),
            Call::Headers(partition, segment) => {
                self.with_owner(partition, |owner, ctx| {
                    owner.on_headers(node, segment, Err(NodeFailure::Failed), ctx)
                });
            }
            Call::Confirm(question) => self.on_confirm(question, node, false),
            Call::Upload(key) => self.on_uploaded(key, node, Err(NodeFailure::Failed)),
            // Asked again by the partitions' own timers.
            Call::Survey(_) => {}
            Call::Sealed(key) => self.on_sealed(key, node, Err(NodeFailure::Failed)),
            Call::Copy(key) => self.on_copied(key, node, Err(NodeFailure::Failed)),
        }
    }

    fn fail_frames(&mut self, partition: PartitionId, node: NodeId, segment: SegmentId) {
        self.with_owner(partition, |owner, ctx| {
            owner.on_frames(node, segment, Err(NodeFailure::Failed), ctx)
        });
    }

    // ---- fetch -------------------------------------------------------------------------------

    fn on_fetch(&mut self, fetch: Fetch, outbox: Outbox, permit: OwnedSemaphorePermit, span: Span) {
        let deadline_ms = self.now_ms + u64::from(fetch.max_wait_ms);
        self.settings.metrics.request(Request::Fetch);
        if fetch.max_wait_ms == 0 || self.is_enough(&fetch) {
            return self.serve(&fetch, &outbox, span);
        }
        self.fetches.add(Waiting {
            fetch,
            outbox,
            deadline_ms,
            _permit: permit,
            span,
        });
    }

    fn try_fetch(&mut self, key: u64, overdue: bool) {
        let ready = overdue
            || self
                .fetches
                .get(key)
                .is_some_and(|waiting| self.is_enough(&waiting.fetch));
        if ready && let Some(waiting) = self.fetches.take(key) {
            self.serve(&waiting.fetch, &waiting.outbox, waiting.span);
        }
    }

    /// True where a fetch has its minimum, or something to say that waiting does not change.
    fn is_enough(&self, fetch: &Fetch) -> bool {
        let min = fetch.min_bytes as usize;
        let mut bytes = 0;
        for one in &fetch.partitions {
            let Some(owner) = self.owners.get(&one.partition) else {
                return true;
            };
            let Some(visible) = owner.high_watermark() else {
                continue;
            };
            let (start, end) = (owner.record().log_start, owner.tail());
            if one.offset < start
                || one.offset > end
                || (one.epoch != Epoch(0) && one.epoch != owner.record().epoch)
            {
                return true;
            }
            if one.offset < visible && matches!(owner.cache().read(one.offset, visible, 1), Found::Older) {
                return true;
            }
            bytes += owner
                .cache()
                .available(one.offset, visible, min.saturating_sub(bytes));
            if bytes >= min {
                return true;
            }
        }
        min == 0
    }

    fn serve(&mut self, fetch: &Fetch, outbox: &Outbox, mut span: Span) {
        let mut left = fetch.max_bytes as usize;
        let mut first = true;
        let mut partitions = Vec::with_capacity(fetch.partitions.len());
        for one in &fetch.partitions {
            let allowed = if first { left.max(1) } else { left }.min(match one.max_bytes {
                0 => usize::MAX,
                max => max as usize,
            });
            let fetched = self.fetch_one(one.partition, one.epoch, one.offset, allowed);
            if let Ok(fetched) = &fetched {
                let bytes = fetched.batches.iter().map(Bytes::len).sum::<usize>();
                first &= bytes == 0;
                left = left.saturating_sub(bytes);
                self.settings.metrics.fetched_bytes.inc_by(bytes as u64);
                self.flows.add(one.partition, bytes);
            }
            if let Err(failure) = &fetched {
                self.settings.metrics.failure(Request::Fetch, failure.code);
            }
            partitions.push(fetched);
        }
        if span.is_some() {
            let served = (fetch.max_bytes as usize).saturating_sub(left);
            span.set_number("forebay.broker", self.settings.records.me.0.into());
            span.set_number("messaging.message.body.size", served as u64);
        }
        outbox.send(FromBroker::Fetched {
            request: fetch.request,
            partitions,
        });
    }

    fn fetch_one(
        &self,
        id: PartitionId,
        epoch: Epoch,
        offset: Offset,
        max: usize,
    ) -> Result<Fetched, Failure> {
        let owner = self.serving(id, epoch)?;
        let (log_start, high_watermark) = (
            owner.record().log_start,
            owner.high_watermark().unwrap_or_default(),
        );
        if offset < log_start || offset > owner.tail() {
            let message = format!(
                "offset {offset} of {id} is out of range: it holds {log_start} up to {high_watermark}"
            );
            return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let mut fetched = Fetched {
            high_watermark,
            log_start,
            batches: Vec::new(),
            behind: false,
        };
        if max > 0 {
            match owner.cache().read(offset, high_watermark, max) {
                Found::Batches(chunks, _) => fetched.batches = chunks,
                Found::Older => fetched.behind = true,
                Found::Nothing => {}
            }
        }
        Ok(fetched)
    }

    /// The owner of a partition that serves reads, under the epoch that a request names.
    pub(super) fn serving(&self, id: PartitionId, epoch: Epoch) -> Result<&Owner, Failure> {
        let me = self.settings.records.me;
        let owner = self.owners.get(&id).ok_or_else(|| not_owner(id, me))?;
        let current = owner.record().epoch;
        if epoch != Epoch(0) && epoch != current {
            let code = if epoch < current {
                ErrorCode::StaleEpoch
            } else {
                ErrorCode::UnknownEpoch
            };
            return Err(Failure::new(
                code,
                format!("{id} is at {current}, the request names {epoch}"),
            ));
        }
        if owner.high_watermark().is_none() {
            return Err(Failure::new(
                ErrorCode::Unavailable,
                format!("{id} is being taken over by {me}"),
            ));
        }
        Ok(owner)
    }
}

pub(super) fn not_owner(partition: PartitionId, me: BrokerId) -> Failure {
    Failure::new(ErrorCode::NotOwner, format!("{me} does not own {partition}"))
}
