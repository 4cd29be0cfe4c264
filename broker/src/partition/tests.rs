//! Owners, replicas and a record under every order of events that a seed can think of.
//!
//! The replicas here follow the rules that a storage node promises (contiguity, fence, duplicates,
//! durable before acknowledged); messages to them are delayed, dropped with their session, and
//! delivered after their sender has died. Sealed segments are copied into objects by whoever still
//! has them, and replicas trim what the record proves deletable, at any time. Checked at the end of
//! each run, by reading what record, objects and replicas say: nothing acknowledged is missing, no
//! offset has two values, every part of the log is where its record says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use forebay_meta::model::{ManifestRef, Partition, Run, Segment};
use forebay_proto::data::front::Acks;
use forebay_proto::data::replica::{Ack, FencedState, Headers, NodeFailure, Refusal, Surveyed};
use forebay_proto::error::Failure;
use forebay_proto::v1::{ErrorCode, RetryClass};
use forebay_record::batch::{self, Builder, Codec, Header, ProducerStamp};
use forebay_record::frame::{ChainHash, Frame, FrameKind};
use forebay_record::producers::Producers;
use forebay_record::state::PartitionState;
use forebay_record::{
    BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, ProducerId, SegmentId, SessionId, Token,
};
use forebay_runtime::random::{Random, SeededRandom};
use uuid::Uuid;

use super::{
    Action, Config, Context, Folded, NodeView, Nodes, Owner, Produce, Repair, Retention, Stored, Ticket,
};

mod objects;
mod repairs;
mod replica;

use objects::Object;
use replica::{Copy, Replica, batches};

const PARTITION: PartitionId = PartitionId(1);

/// Work for the object store that an owner asked for.
enum Errand {
    Copy(Box<Segment>),
    Fold(Retention),
    State,
    Survey(NodeId, SegmentId, Generation),
    Repair(Box<Repair>),
}

/// A message on its way to a replica, from one incarnation of a broker over one session.
struct InFlight {
    owner: u32,
    session: u32,
    action: Action,
}

struct World {
    random: SeededRandom,
    now_ms: u64,
    record: Partition,
    /// Of the record's newest change.
    revision: u64,
    /// Of the store's newest change, also of other keys; and as far as the broker has heard.
    newest: u64,
    heard: u64,
    replicas: BTreeMap<NodeId, Replica>,
    sessions: BTreeMap<NodeId, u32>,
    wires: BTreeMap<NodeId, VecDeque<InFlight>>,
    owner: Owner,
    incarnation: u32,
    store: Option<(u32, u64, Box<Partition>)>,
    nonce: u64,
    next_ticket: u64,
    sequence: i32,
    unanswered: BTreeMap<Ticket, (Bytes, i32)>,
    resend: VecDeque<(Bytes, i32)>,
    acknowledged: BTreeMap<Offset, Bytes>,
    idempotent: bool,
    visible: Offset,
    errands: VecDeque<(u32, Errand)>,
    objects: HashMap<String, Object>,
    manifests: HashMap<String, Vec<Run>>,
    trimmed: usize,
    repaired: usize,
    /// Replicas that were damaged.
    rotted: usize,
}

fn nodes_of(replicas: &BTreeMap<NodeId, Replica>) -> Nodes {
    replicas
        .iter()
        .map(|(id, replica)| {
            let view = NodeView {
                generation: replica.generation(),
                zone: String::new(),
                usable: !replica.leaving,
                connected: replica.up,
                leaving: replica.leaving,
                frame_bytes_max: None,
                heard_ms: 0,
            };
            (*id, view)
        })
        .collect()
}

fn config(replicas: usize, ack_quorum: u8) -> Config {
    Config {
        replicas,
        ack_quorum,
        window_bytes: 4_000,
        waiting_bytes_max: 1 << 20,
        segment_bytes: 3_000,
        segment_ms: 5_000,
        offload: true,
        ..Config::default()
    }
}

impl World {
    fn new(seed: u64, node_count: u32, replicas: usize, ack_quorum: u8, idempotent: bool) -> Self {
        let random = SeededRandom::new(seed);
        let replicas_map: BTreeMap<_, _> = (1..=node_count)
            .map(|id| {
                (
                    NodeId(id),
                    Replica {
                        up: true,
                        ..Replica::default()
                    },
                )
            })
            .collect();
        let record = Partition::new(PARTITION, Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(1), 1)
            .unwrap();
        let mut out = Vec::new();
        let nodes = nodes_of(&replicas_map);
        let mut ctx = Context {
            now_ms: 0,
            wall_ms: 0,
            nodes: &nodes,
            least_frame: None,
            meta_healthy: true,
            meta_revision: 10,
            steady_ms: 0,
            nonce: 7,
            out: &mut out,
        };
        let owner = Owner::new(
            config(replicas, ack_quorum),
            BrokerId(1),
            record.clone(),
            10,
            &mut ctx,
        );
        let mut world = Self {
            random,
            now_ms: 0,
            record,
            revision: 10,
            newest: 10,
            heard: 10,
            sessions: replicas_map.keys().map(|id| (*id, 0)).collect(),
            wires: replicas_map.keys().map(|id| (*id, VecDeque::new())).collect(),
            replicas: replicas_map,
            owner,
            incarnation: 1,
            store: None,
            nonce: 100,
            next_ticket: 0,
            sequence: 0,
            unanswered: BTreeMap::new(),
            resend: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            idempotent,
            visible: Offset(0),
            errands: VecDeque::new(),
            objects: HashMap::new(),
            manifests: HashMap::new(),
            trimmed: 0,
            repaired: 0,
            rotted: 0,
        };
        world.carry_out(out);
        world
    }

    fn act(&mut self, act: impl FnOnce(&mut Owner, &mut Context<'_>)) {
        let nodes = nodes_of(&self.replicas);
        let mut out = Vec::new();
        self.nonce += 1;
        let mut ctx = Context {
            now_ms: self.now_ms,
            wall_ms: 0,
            nodes: &nodes,
            least_frame: None,
            meta_healthy: true,
            meta_revision: self.heard,
            steady_ms: 0,
            nonce: self.nonce,
            out: &mut out,
        };
        act(&mut self.owner, &mut ctx);
        self.carry_out(out);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Append { node, .. }
                | Action::Commit { node, .. }
                | Action::Fence { node, .. }
                | Action::ReadFrames { node, .. }
                | Action::ReadHeaders { node, .. } => {
                    if self.replicas[&node].up {
                        let in_flight = InFlight {
                            owner: self.incarnation,
                            session: self.sessions[&node],
                            action,
                        };
                        self.wires.get_mut(&node).unwrap().push_back(in_flight);
                    }
                }
                Action::Store(next) => {
                    assert!(self.store.is_none(), "two changes of one record at a time");
                    self.store = Some((self.incarnation, self.owner_revision(), next));
                }
                Action::Answer { ticket, result } => self.on_answer(ticket, result),
                Action::Visible(offset) => {
                    assert!(
                        offset >= self.visible,
                        "{offset} is visible after {}",
                        self.visible
                    );
                    self.visible = offset;
                }
                Action::Released { .. } | Action::Placed { .. } => {}
                Action::Offload { segment, .. } => self.send_out(Errand::Copy(segment)),
                Action::Fold(retention) => self.send_out(Errand::Fold(retention)),
                Action::ReadState => self.send_out(Errand::State),
                Action::Survey {
                    node,
                    segment,
                    generation,
                } => self.send_out(Errand::Survey(node, segment, generation)),
                Action::Repair(repair) => self.send_out(Errand::Repair(repair)),
                Action::ForgetCopy { node, segment, by } => {
                    if self.replicas[&node].up {
                        self.forget_copy(node, segment, by);
                    }
                }
                Action::Repaired(_) => self.repaired += 1,
                // Only told to an operator, and there is none here.
                Action::FindMissing { .. } => {}
            }
        }
    }

    fn send_out(&mut self, errand: Errand) {
        self.errands.push_back((self.incarnation, errand));
    }

    /// The record changes.
    fn change_store(&mut self) {
        self.newest += 1;
        self.revision = self.newest;
    }

    fn owner_revision(&self) -> u64 {
        self.owner.revision()
    }

    fn on_answer(&mut self, ticket: Ticket, result: Result<Offset, Failure>) {
        let (batch, sequence) = self.unanswered.remove(&ticket).expect("answered once");
        match result {
            Ok(base) => {
                let header = Header::parse(&batch).unwrap();
                let value = batch.slice(batch::HEADER_LEN..);
                if let Some(other) = self.acknowledged.insert(base, value.clone()) {
                    assert!(
                        self.idempotent && other == value,
                        "two batches acknowledged at {base}"
                    );
                }
                assert!(header.record_count() > 0);
            }
            Err(failure) => {
                let again = failure.retry() != RetryClass::Reject;
                assert!(again, "refused: {failure:?}");
                if self.idempotent {
                    self.resend.push_back((batch, sequence));
                } else {
                    assert_ne!(failure.code, ErrorCode::OutOfOrderSequence);
                }
            }
        }
    }

    fn produce(&mut self) {
        // An idempotent producer has five batches open at most, and repeats what failed, oldest
        // first, before anything new.
        if self.idempotent && self.unanswered.len() >= 5 {
            return;
        }
        let (batch, sequence) = if self.resend.is_empty() {
            let mut builder = Builder::new(Codec::None, 256);
            let records = 1 + i32::try_from(self.random.range(0, 3)).unwrap();
            for record in 0..records {
                let value = format!("{}-{record}-{}", self.sequence, self.random.u64());
                builder
                    .append(5, None, Some(value.as_bytes()), &[] as &[(&str, Option<&[u8]>)])
                    .unwrap();
            }
            let stamp = self.idempotent.then_some(ProducerStamp {
                id: ProducerId(9),
                epoch: 0,
                sequence: self.sequence,
            });
            let sequence = self.sequence;
            self.sequence += records;
            (builder.finish(stamp).unwrap(), sequence)
        } else if self.unanswered.is_empty() {
            self.resend
                .make_contiguous()
                .sort_by_key(|(_, sequence)| *sequence);
            self.resend.pop_front().unwrap()
        } else {
            return;
        };
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.unanswered.insert(ticket, (batch.clone(), sequence));
        let deadline_ms = self.now_ms + 3_000;
        let produce = Produce {
            ticket,
            epoch: Epoch(0),
            acks: Acks::All,
            deadline_ms,
            batch,
            traced: false,
        };
        self.act(|owner, ctx| {
            owner.on_produce(produce, ctx);
            owner.flush(ctx);
        });
    }

    /// Lets the metadata store apply the change on its way, and tells the outcome, or loses it.
    fn settle_store(&mut self) {
        let Some((owner, seen, next)) = self.store.take() else {
            return;
        };
        let applied = seen == self.revision && next.session == self.record.session;
        if applied {
            check_chain(&self.record, &next);
            self.record = *next;
            self.change_store();
        }
        if owner != self.incarnation {
            return;
        }
        let lost_reply = self.random.range(0, 4) == 0;
        let stored = if applied && !lost_reply {
            Stored::Done(self.revision)
        } else {
            Stored::Conflict(Box::new(self.record.clone()), self.revision)
        };
        self.act(|owner, ctx| owner.on_stored(stored, ctx));
    }

    /// The owner dies; another session takes the partition.
    fn take_over(&mut self) {
        self.incarnation += 1;
        let session = SessionId(u64::from(self.incarnation));
        self.record = self
            .record
            .grant(BrokerId(self.incarnation), session, self.nonce)
            .unwrap();
        self.change_store();
        // A change that was on its way may still arrive, and must fail.
        let zombie = self.store.take();
        let nodes = nodes_of(&self.replicas);
        let mut out = Vec::new();
        self.nonce += 1;
        let mut ctx = Context {
            now_ms: self.now_ms,
            wall_ms: 0,
            nodes: &nodes,
            least_frame: None,
            meta_healthy: true,
            meta_revision: self.heard,
            steady_ms: 0,
            nonce: self.nonce,
            out: &mut out,
        };
        let config = self.owner.config.clone();
        self.owner = Owner::new(
            config,
            BrokerId(self.incarnation),
            self.record.clone(),
            self.revision,
            &mut ctx,
        );
        if let Some((_, seen, _)) = zombie {
            assert_ne!(seen, self.revision);
        }
        for (_, (batch, sequence)) in std::mem::take(&mut self.unanswered) {
            if self.idempotent {
                self.resend.push_back((batch, sequence));
            }
        }
        self.carry_out(out);
    }

    fn toggle(&mut self, node: NodeId) {
        let replica = self.replicas.get_mut(&node).unwrap();
        replica.up = !replica.up;
        if replica.up {
            *self.sessions.get_mut(&node).unwrap() += 1;
            let generation = replica.generation();
            self.act(|owner, ctx| owner.on_connected(node, generation, ctx));
        } else {
            // What was on the way is lost with the session; a dead owner's bytes may linger.
            let incarnation = self.incarnation;
            self.wires
                .get_mut(&node)
                .unwrap()
                .retain(|one| one.owner != incarnation);
            self.act(|owner, ctx| owner.on_nodes_changed(ctx));
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.act(|owner, ctx| owner.on_tick(ctx));
    }

    /// A node's calls fail where nobody answers them.
    fn step(&mut self) {
        let nodes: Vec<_> = self.replicas.keys().copied().collect();
        let node = nodes[usize::try_from(self.random.range(0, nodes.len() as u64)).unwrap()];
        match self.random.range(0, 108) {
            0..30 => self.produce(),
            100..104 => self.run_errand(),
            104..106 => self.trim(node),
            106 => self.trim_others(node),
            107 => self.heard = self.newest,
            30..75 => self.deliver(node),
            75..88 => self.settle_store(),
            88..96 => self.pass(20),
            96..98 => {
                let down = self.replicas.values().filter(|replica| !replica.up).count();
                if self.replicas[&node].up && down >= 1 {
                    return;
                }
                self.toggle(node);
            }
            98 => self.take_over(),
            _ => self.pass(2_500),
        }
    }

    /// Brings everything up and lets it come to rest.
    fn quiesce(&mut self) {
        let down: Vec<_> = self
            .replicas
            .iter()
            .filter(|(_, replica)| !replica.up)
            .map(|(id, _)| *id)
            .collect();
        for node in down {
            self.toggle(node);
        }
        // The broker asks for the newest revision from time to time, and it rises.
        self.newest += 1;
        self.heard = self.newest;
        for round in 0..20_000 {
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                self.deliver(node);
            }
            self.settle_store();
            self.run_errand();
            if round % 10 == 0 {
                self.pass(20);
            }
            if self.unanswered.is_empty() && !self.resend.is_empty() {
                self.produce();
            }
            if self.owner.is_released() {
                self.take_over();
            }
            let quiet = self.wires.values().all(VecDeque::is_empty) && self.store.is_none();
            if quiet && self.unanswered.is_empty() && self.resend.is_empty() && self.owner.is_serving() {
                return;
            }
        }
        panic!(
            "it never comes to rest: {} unanswered, {:?}",
            self.unanswered.len(),
            self.owner.phase
        );
    }

    /// Reads the log as a client would, by the record and the replicas it names.
    fn read_log(&self) -> BTreeMap<Offset, Bytes> {
        let visible = self.owner.high_watermark().unwrap();
        let mut log = BTreeMap::new();
        let mut expected = Offset(0);
        for run in self.runs() {
            assert_eq!(run.base, expected, "the offloaded past has a gap");
            log.extend(self.objects[&run.object].log.clone());
            expected = run.end;
        }
        for segment in &self.record.chain {
            let end = segment.end.unwrap_or(visible);
            let copies: Vec<_> = segment
                .replicas
                .iter()
                .filter_map(|replica| self.held(*replica, segment.id))
                .filter(|copy| copy.tail() >= end)
                .collect();
            assert!(
                copies.len() >= usize::from(segment.ack_quorum) || end == segment.base,
                "{} has {} copies up to {end}",
                segment.id,
                copies.len()
            );
            for copy in copies {
                for frame in copy
                    .frames
                    .iter()
                    .filter(|frame| frame.header.kind == FrameKind::Data)
                {
                    for (header, batch) in batches(frame) {
                        if header.end_offset() > end {
                            continue;
                        }
                        let value = batch.slice(batch::HEADER_LEN..);
                        let old = log.insert(header.base_offset(), value.clone());
                        assert!(
                            old.is_none_or(|old| old == value),
                            "two values at {}",
                            header.base_offset()
                        );
                    }
                }
            }
            assert_eq!(segment.base, expected);
            expected = end;
        }
        assert_eq!(expected, visible);
        log
    }
}

/// I11: what was sealed stays as it was, tokens rise, the chain has no gap.
fn check_chain(old: &Partition, new: &Partition) {
    assert_eq!(Partition::decode(&new.encode()).unwrap(), *new);
    for before in old.chain.iter().filter(|segment| segment.end.is_some()) {
        match new.chain.iter().find(|after| after.id == before.id) {
            Some(after) => {
                let changed = Segment {
                    replicas: before.replicas.clone(),
                    ..after.clone()
                };
                assert_eq!(*before, changed, "a sealed segment changed");
                let replaced = before.replicas.iter().zip(&after.replicas);
                let replaced = replaced.filter(|(before, after)| before != after).count();
                assert!(replaced <= 1, "more than one replica was replaced at once");
                assert!(
                    replaced == 0 || old.epoch == new.epoch,
                    "replaced by another owner"
                );
            }
            None => assert_eq!(
                new.recent.last().map(|run| (run.base, Some(run.end))),
                Some((before.base, before.end)),
                "a segment left the chain without a copy"
            ),
        }
    }
}

fn run(seed: u64, node_count: u32, replicas: usize, ack_quorum: u8, idempotent: bool) -> usize {
    let mut world = World::new(seed, node_count, replicas, ack_quorum, idempotent);
    for _ in 0..1_500 {
        world.step();
        if world.owner.is_released() {
            world.take_over();
        }
    }
    world.quiesce();
    let log = world.read_log();
    for (offset, value) in &world.acknowledged {
        assert_eq!(
            log.get(offset),
            Some(value),
            "seed {seed}: acknowledged at {offset} and lost"
        );
    }
    if idempotent {
        assert_eq!(
            log.len(),
            world.acknowledged.len(),
            "seed {seed}: something was written twice"
        );
    }
    TRIMMED.fetch_add(world.trimmed, Ordering::Relaxed);
    world.acknowledged.len()
}

/// Trims over all runs: without them the runs would prove nothing about trimming.
static TRIMMED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn nothing_acknowledged_is_lost_with_three_replicas() {
    let acknowledged: usize = (0..300).map(|seed| run(seed, 4, 3, 2, false)).sum();
    assert!(
        acknowledged > 10_000,
        "only {acknowledged} batches were acknowledged: the runs prove little"
    );
    let trimmed = TRIMMED.load(Ordering::Relaxed);
    assert!(trimmed > 1_000, "only {trimmed} segments were trimmed");
}

#[test]
fn an_idempotent_producer_writes_each_batch_once_through_every_takeover() {
    let acknowledged: usize = (1_000..1_300).map(|seed| run(seed, 4, 3, 2, true)).sum();
    assert!(
        acknowledged > 5_000,
        "only {acknowledged} batches were acknowledged: the runs prove little"
    );
}

#[test]
fn an_owner_that_hears_of_a_newer_epoch_lets_go_and_of_its_own_stays() {
    let mut world = World::new(7, 3, 3, 2, true);
    world.pass(100);
    let epoch = world.owner.record().epoch;
    world.act(|owner, ctx| owner.on_epoch_seen(epoch, ctx));
    assert!(!world.owner.is_released());
    world.act(|owner, ctx| owner.on_epoch_seen(Epoch(epoch.0 + 1), ctx));
    assert!(world.owner.is_released());
}

#[test]
fn standalone_survives_the_same_with_one_replica() {
    let acknowledged: usize = (2_000..2_200).map(|seed| run(seed, 1, 1, 1, true)).sum();
    assert!(
        acknowledged > 1_000,
        "only {acknowledged} batches were acknowledged: the runs prove little"
    );
}

/// The story: an idle partition is offloaded whole, trimmed everywhere, and its owner dies. The
/// producer, who never got the answer to its last batch, repeats it to the next owner.
#[test]
fn a_repetition_is_recognised_when_only_objects_remember_the_original() {
    let mut world = World::new(77, 4, 3, 2, true);
    while world.acknowledged.len() < 3 {
        world.produce();
        world.quiesce();
    }
    let (offset, value) = world.acknowledged.last_key_value().unwrap();
    let (offset, value) = (*offset, value.clone());
    let batch = world.owner.cache().read(offset, Offset(u64::MAX), 1);
    let super::Found::Batches(mut chunks, _) = batch else {
        panic!("the newest batch is cached");
    };
    let original: Bytes = chunks.drain(..).flat_map(|chunk| chunk.to_vec()).collect();
    world.act(Owner::on_resign);
    for _ in 0..100 {
        for node in world.replicas.keys().copied().collect::<Vec<_>>() {
            world.deliver(node);
        }
        world.settle_store();
    }
    world.take_over();
    for _ in 0..1_000 {
        for node in world.replicas.keys().copied().collect::<Vec<_>>() {
            world.deliver(node);
        }
        world.run_errand();
        world.settle_store();
        world.pass(1_000);
    }
    assert!(world.record.chain.is_empty(), "not offloaded");
    for node in world.replicas.keys().copied().collect::<Vec<_>>() {
        world.trim(node);
        assert!(
            world.replicas[&node].segments.is_empty(),
            "{node} still holds something"
        );
    }
    world.take_over();
    world.quiesce();
    world.acknowledged.clear();
    let header = Header::parse(&original).unwrap();
    let sequence = header.base_sequence();
    world.resend.push_back((original, sequence));
    world.produce();
    world.quiesce();
    assert_eq!(world.acknowledged.get(&offset), Some(&value));
    assert_eq!(world.owner.tail(), header.end_offset(), "it was written twice");
}
