//! The owner of an open segment: accept, send, commit; and what owners must not do with a segment.

use super::state::{Broker, ENTRIES, Entries, NODES, SENDS, Send, State, members};
use super::{Log, Mutant, Step, Steps};

/// Replicas that must have an entry before it is committed.
const ACK_QUORUM: usize = 2;

impl Log {
    pub(super) fn own(&self, state: &State, index: usize, out: &mut Steps) {
        self.accept(state, index, out);
        self.commit(state, index, out);
        self.spread_committed(state, index, out);
        self.move_on(state, index, out);
        if self.scope.trim && state.brokers[index].epoch == state.record.epoch {
            self.offload(state, index, out);
        }
        if self.breaks(Mutant::RestartContinues) && state.crashes < self.scope.crashes {
            self.restart_and_continue(state, index, out);
        }
        if self.breaks(Mutant::ReplicaReplacedWhileOpen) {
            self.replace_replica(state, index, out);
        }
    }

    /// Takes a client's next value; while a roll drains, into the successor.
    pub(super) fn accept(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        let segment = &state.segments[usize::from(broker.segment)];
        let waiting = segment.base + broker.log.len() - broker.committed;
        let room =
            usize::from(segment.base + broker.log.len()) < ENTRIES && usize::from(segment.sent) < SENDS;
        let full = waiting >= self.scope.window && !self.breaks(Mutant::NoWindow);
        if state.next_value > self.scope.values || !room || full {
            return;
        }
        let mut next = *state;
        let value = next.next_value;
        next.next_value += 1;
        next.brokers[index].log.push(value);
        let offset = segment.base + broker.log.len();
        self.send(&mut next, index, broker.log.len());
        let step = Step::Accept {
            broker: index,
            value,
            offset,
            segment: broker.segment,
        };
        self.emit(out, step, next);
    }

    /// Sends the log from an index on to the replicas.
    pub(super) fn send(&self, state: &mut State, index: usize, from: u8) {
        let Broker {
            segment,
            log,
            committed,
            ..
        } = state.brokers[index];
        let segment = &mut state.segments[usize::from(segment)];
        for (at, &value) in log.as_slice().iter().enumerate().skip(usize::from(from)) {
            segment.sends[usize::from(segment.sent)] = Send {
                offset: segment.base + at as u8,
                value,
                // Nothing of a segment that is not linked may be served.
                committed: committed.max(segment.base),
            };
            for node in members(&segment.replicas) {
                segment.in_flight[node] |= 1 << segment.sent;
            }
            segment.sent += 1;
        }
    }

    /// Whether as many replicas as commit reported the first `count` entries.
    pub(super) fn is_durable(&self, state: &State, index: usize, count: u8) -> bool {
        let broker = &state.brokers[index];
        let replicas = &state.segments[usize::from(broker.segment)].replicas;
        self.is_quorum(
            members(replicas)
                .filter(|&node| broker.acks[node] >= count)
                .count(),
        )
    }

    pub(super) fn is_quorum(&self, count: usize) -> bool {
        count
            >= if self.breaks(Mutant::AckQuorumOfOne) {
                1
            } else {
                ACK_QUORUM
            }
    }

    /// Commits the next entry: it is acknowledged and shown.
    pub(super) fn commit(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        let at = broker.committed - state.segments[usize::from(broker.segment)].base;
        let Some(value) = broker.log.get(at) else { return };
        if !self.is_durable(state, index, at + 1) {
            return;
        }
        let mut next = *state;
        next.brokers[index].committed += 1;
        self.show(&mut next, broker.committed, value);
        let step = Step::Commit {
            broker: index,
            value,
            offset: broker.committed,
            segment: broker.segment,
        };
        self.emit(out, step, next);
    }

    /// Lets a client or a reader see a value.
    pub(super) fn show(&self, state: &mut State, offset: u8, value: u8) {
        match state.visible.get(offset) {
            Some(seen) if seen == value => {}
            Some(_) => state.broken = Some(super::properties::TWO_VALUES),
            None if offset == state.visible.len() => state.visible.push(value),
            None => state.broken = Some(super::properties::GAP_SHOWN),
        }
    }

    fn spread_committed(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        let learn = |segment: u8, out: &mut Steps| {
            let replicas = state.segments[usize::from(segment)].replicas;
            for node in members(&replicas) {
                let held = state.replica(node, segment);
                let known = state.nodes[node].generation == replicas[node] && held.present;
                if known && held.committed < broker.committed {
                    let mut next = *state;
                    next.replica_mut(node, segment).committed = broker.committed;
                    let step = Step::Learn {
                        node,
                        committed: broker.committed,
                        segment,
                    };
                    self.emit(out, step, next);
                }
            }
        };
        learn(broker.segment, out);
        if self.breaks(Mutant::CommittedOfAnotherSegment) {
            (0..broker.segment).for_each(|older| learn(older, out));
        }
    }

    /// What a mutant does after a crash: reads the end of its segment from two replicas, closes
    /// nothing, and goes on.
    fn restart_and_continue(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let replicas = state.segments[usize::from(broker.segment)].replicas;
        for silent in members(&replicas) {
            let mut next = *state;
            next.crashes += 1;
            let restarted = &mut next.brokers[index];
            restarted.log = Entries::default();
            restarted.acks = [0; NODES];
            for node in members(&replicas).filter(|&node| node != silent) {
                let held = state.replica(node, broker.segment);
                restarted.acks[node] = held.synced;
                restarted.committed = restarted.committed.max(held.committed);
                if held.entries.len() > restarted.log.len() {
                    restarted.log = held.entries;
                }
            }
            self.emit(out, Step::RestartBroker { broker: index }, next);
        }
    }

    /// What a mutant does with a replica that is slow: another takes its place in the open segment.
    fn replace_replica(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let replicas = state.segments[usize::from(broker.segment)].replicas;
        let Some(to) = (0..NODES).find(|&node| replicas[node] == 0) else {
            return;
        };
        if replicas != state.replicas_of(broker.segment) {
            return;
        }
        for from in members(&replicas) {
            let mut next = *state;
            let generation = next.nodes[to].generation;
            let segment = &mut next.segments[usize::from(broker.segment)];
            segment.replicas[from] = 0;
            segment.replicas[to] = generation;
            segment.in_flight[to] = (1 << segment.sent) - 1;
            self.emit(out, Step::ReplaceReplica { from, to }, next);
        }
    }
}
