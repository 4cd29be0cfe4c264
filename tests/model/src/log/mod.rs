//! One partition: append, fence, carry, link, ensemble change, offload, trim, repair, and what
//! crashes, lost disks, damaged disks and lost answers do to them.
//!
//! 1. `owner`: accepts, sends, commits; `change`: goes on to other replicas.
//! 2. `takeover`: closes the last segment, carries, links; also how unknown outcomes are resolved.
//! 3. `node`: what storage nodes do with what arrives, trim, and their faults.
//! 4. `record`: the record's changes, offload and repair.
//! 5. `properties`: what must hold in every state.
//!
//! Messages are never lost on purpose: one that is never delivered is lost. They arrive in any order.
//! A node's answer is there at once, but its effect, a commit or a decision, is a step of its own.

mod change;
mod mutant;
mod node;
mod owner;
mod properties;
mod record;
mod state;
mod step;
mod takeover;

pub use mutant::Mutant;
pub use state::State;
pub use step::Step;

use crate::search::Model;
use state::{BROKERS, Broker, Link, NODES, OPEN, Phase, Record, SEGMENTS, Segment, TXNS, Txn, TxnState};

/// How far a run may go, and what may go wrong in it.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Values that clients write.
    pub values: u8,
    /// Broker incarnations, the first owner among them.
    pub brokers: usize,
    /// Segments that may be created.
    pub segments: u8,
    /// Entries that an owner keeps uncommitted at most.
    pub window: u8,
    /// Owners change the replica set of their segment.
    pub changes: bool,
    /// Owners roll: the old segment drains while its successor fills.
    pub rolls: bool,
    /// Owners offload, nodes trim.
    pub trim: bool,
    /// Nodes acknowledge later than they store, and lose the difference in a crash.
    pub unsynced: bool,
    /// Disks that are lost with all they held.
    pub wipes: u8,
    /// Replicas of which the end rots.
    pub rots: u8,
    /// Crashes of storage nodes or, for a mutant, of brokers.
    pub crashes: u8,
    /// Answers of the metadata store that are lost; above 0, transactions travel.
    pub unanswered: u8,
    /// Copies to a node that takes the place of another.
    pub repairs: u8,
}

impl Scope {
    /// Two owners, two values, nothing fails but owners.
    pub const BASE: Self = Self {
        values: 2,
        brokers: 2,
        segments: 4,
        window: 4,
        changes: false,
        rolls: false,
        trim: false,
        unsynced: false,
        wipes: 0,
        rots: 0,
        crashes: 0,
        unanswered: 0,
        repairs: 0,
    };
}

/// The model of one partition.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// How far runs go.
    pub scope: Scope,
    /// The rule that is broken.
    pub mutant: Option<Mutant>,
    /// Whether rules are checked too, beside what users see.
    pub rules: bool,
}

/// Steps found so far.
pub(crate) type Steps = Vec<(Step, State)>;

impl Log {
    fn breaks(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Takes a step, unless it leads nowhere else.
    fn emit(&self, out: &mut Steps, step: Step, mut next: State) {
        if next.broken.is_none() {
            self.leave_stale(&mut next);
            self.forget_futile(&mut next);
        }
        out.push((step, next));
    }

    /// A broker whose grant is older than the record's can only fail: it stops here. One that owns a
    /// linked segment stays, as long as it likes.
    fn leave_stale(&self, state: &mut State) {
        if self.breaks(Mutant::NoEpochCompare) || self.breaks(Mutant::AckBeforeLink) {
            return;
        }
        for index in 0..BROKERS {
            let broker = &state.brokers[index];
            let busy = matches!(
                broker.phase,
                Phase::Fencing | Phase::Preparing | Phase::Linking | Phase::Unsure
            );
            if busy && !broker.draining && broker.epoch < state.record.epoch {
                self.depose(state, index);
            }
        }
    }

    fn depose(&self, state: &mut State, index: usize) {
        let broker = state.brokers[index];
        if !matches!(broker.phase, Phase::Fencing) && state.record.position(broker.segment).is_none() {
            state.segments[usize::from(broker.segment)].in_flight = [0; NODES];
        }
        let txns = broker.txns.map(|txn| match txn.state {
            TxnState::InFlight if txn.seen == state.record.revision => txn,
            _ => Txn::default(),
        });
        state.brokers[index] = Broker {
            phase: Phase::Deposed,
            epoch: broker.epoch,
            txns,
            ..Broker::default()
        };
    }

    /// Messages that can have no effect any more are as good as lost.
    fn forget_futile(&self, state: &mut State) {
        if self.mutant.is_some_and(Mutant::revives_messages) {
            return;
        }
        let State {
            segments,
            nodes,
            segment_count,
            ..
        } = state;
        for (id, segment) in segments[..usize::from(*segment_count)].iter_mut().enumerate() {
            for (node, at) in nodes.iter().enumerate() {
                if segment.in_flight[node] == 0 {
                    continue;
                }
                let held = &at.held[id];
                let refused = at.generation != segment.replicas[node]
                    || held.fenced
                    || held.limbo
                    || (!held.present && segment.token <= at.floor);
                for (index, send) in segment.sends[..usize::from(segment.sent)].iter().enumerate() {
                    if refused || send.offset < segment.base + held.synced {
                        segment.in_flight[node] &= !(1 << index);
                    }
                }
            }
        }
    }

    /// Prepares a segment on three nodes that are not those of the one before.
    fn new_segment(&self, state: &mut State, index: usize, after: u8, base: u8) -> u8 {
        let skipped = if state.replicas_of(after)[0] != 0 {
            0
        } else {
            NODES - 1
        };
        let mut replicas = [0; NODES];
        for (node, generation) in replicas.iter_mut().enumerate() {
            if node != skipped {
                *generation = state.nodes[node].generation;
            }
        }
        let broker = &mut state.brokers[index];
        broker.seq += 1;
        let id = state.segment_count;
        state.segments[usize::from(id)] = Segment {
            epoch: broker.epoch,
            seq: broker.seq,
            token: if self.breaks(Mutant::TokensDoNotRise) {
                1
            } else {
                state.record.revision
            },
            base,
            replicas,
            ..Segment::default()
        };
        state.segment_count += 1;
        id
    }
}

impl Model for Log {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        let mut state = State {
            record: Record {
                epoch: 1,
                revision: 2,
                last_seq: 1,
                ..Record::default()
            },
            segments: [Segment::default(); SEGMENTS],
            segment_count: 1,
            nodes: [state::Node {
                generation: 1,
                ..state::Node::default()
            }; NODES],
            brokers: [Broker::default(); BROKERS],
            repair: None,
            visible: state::Entries::default(),
            next_value: 1,
            losses: 0,
            crashes: 0,
            unanswered: 0,
            repairs: 0,
            broken: None,
        };
        let replicas = [1, 1, 1, 0];
        state.segments[0] = Segment {
            epoch: 1,
            seq: 1,
            token: 1,
            replicas,
            ..Segment::default()
        };
        state.record.push(Link {
            segment: 0,
            base: 0,
            end: OPEN,
            replicas,
        });
        state.brokers[0] = Broker {
            phase: Phase::Active,
            epoch: 1,
            seq: 1,
            txns: [Txn::default(); TXNS],
            ..Broker::default()
        };
        state
    }

    fn steps(&self, state: &State, out: &mut Steps) {
        if state.broken.is_some() {
            return;
        }
        for index in 0..self.scope.brokers {
            match state.brokers[index].phase {
                Phase::Idle => self.grant(state, index, out),
                Phase::Fencing => self.recover(state, index, out),
                Phase::Preparing => self.prepared(state, index, out),
                Phase::Linking => self.linking(state, index, out),
                Phase::Unsure => self.unsure(state, index, out),
                Phase::Active => self.own(state, index, out),
                Phase::Deposed => {}
            }
            self.store_decides(state, index, out);
        }
        self.deliver(state, out);
        self.sync(state, out);
        self.trim(state, out);
        self.repair(state, out);
        self.fail(state, out);
    }

    fn fingerprint(&self, state: &State) -> u64 {
        let swapped = state.fingerprint_as([0, 2, 1, 3]);
        state.fingerprint_as([0, 1, 2, 3]).min(swapped)
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        self.broken_property(state)
    }

    /// The newest grant's owner serves, and has committed all that it accepted.
    fn is_goal(&self, state: &State) -> bool {
        let open = state.record.last().map(|link| link.segment);
        let owner = |broker: &Broker| {
            let end = state.segments[usize::from(broker.segment)].base + broker.log.len();
            let serves = matches!(broker.phase, Phase::Active) && broker.epoch == state.record.epoch;
            serves && open == Some(broker.segment) && broker.committed == end
        };
        state.brokers.iter().any(owner)
    }
}
