//! Storage nodes: what they do with entries that arrive, when they report them, what they trim, and
//! how they fail.

use super::state::{Entries, NODES, Node, Phase, Replica, SEGMENTS, State};
use super::{Log, Mutant, Step, Steps};

impl Log {
    /// An entry arrives at a replica that takes it.
    pub(super) fn deliver(&self, state: &State, out: &mut Steps) {
        for id in 0..state.segment_count {
            for node in 0..NODES {
                let on_way = state.segments[usize::from(id)].in_flight[node];
                for send in (0..state.segments[usize::from(id)].sent).filter(|send| on_way & 1 << send != 0) {
                    self.arrive(state, id, node, send, out);
                }
            }
        }
    }

    fn arrive(&self, state: &State, id: u8, node: usize, send: u8, out: &mut Steps) {
        let segment = &state.segments[usize::from(id)];
        let entry = segment.sends[usize::from(send)];
        let held = state.replica(node, id);
        let closed = held.fenced || held.limbo || (!held.present && segment.token <= state.nodes[node].floor);
        if closed || state.nodes[node].generation != segment.replicas[node] {
            return;
        }
        let expected = segment.base + held.entries.len();
        let gaps = self.breaks(Mutant::GapStored);
        let fills = gaps && held.entries.get(entry.offset - segment.base) == Some(0);
        if entry.offset != expected && !fills && (entry.offset < expected || !gaps) {
            return;
        }
        let mut next = *state;
        let replica = next.replica_mut(node, id);
        if !replica.present {
            replica.present = true;
            replica.committed = segment.base;
        }
        replica.committed = replica.committed.max(entry.committed);
        if fills {
            let at = usize::from(entry.offset - segment.base);
            let mut values = held.entries.as_slice().to_vec();
            values[at] = entry.value;
            replica.entries = Entries::from_slice(&values);
        } else {
            while segment.base + replica.entries.len() < entry.offset {
                replica.entries.push(0);
            }
            replica.entries.push(entry.value);
        }
        if !self.scope.unsynced {
            replica.synced = replica.entries.len();
        }
        next.nodes[node].forgotten &= !(1 << id);
        self.report(&mut next, node);
        let step = Step::Store {
            node,
            offset: entry.offset,
            value: entry.value,
            segment: id,
        };
        if self.breaks(Mutant::LocalTailServed) {
            self.show(&mut next, entry.offset, entry.value);
        }
        self.emit(out, step, next);
    }

    /// The node tells the writers of its segments how far these are durable.
    pub(super) fn report(&self, state: &mut State, node: usize) {
        let early = self.breaks(Mutant::AckBeforeSync);
        let durable = |held: &Replica| if early { held.entries.len() } else { held.synced };
        for index in 0..self.scope.brokers {
            let broker = state.brokers[index];
            let preparing = matches!(broker.phase, Phase::Preparing | Phase::Linking | Phase::Unsure);
            if !preparing && !matches!(broker.phase, Phase::Active) {
                continue;
            }
            // Acknowledgements count by node and generation.
            let written = &state.segments[usize::from(broker.segment)];
            let generation = state.nodes[node].generation;
            if written.replicas[node] == generation {
                let count = durable(state.replica(node, broker.segment));
                let ack = &mut state.brokers[index].acks[node];
                *ack = (*ack).max(count);
            }
            let counts_old = broker.draining || self.mutant.is_some_and(Mutant::keeps_old_acks);
            if preparing
                && counts_old
                && state.segments[usize::from(broker.sealed)].replicas[node] == generation
            {
                let count = durable(state.replica(node, broker.sealed));
                let ack = &mut state.brokers[index].old_acks[node];
                *ack = (*ack).max(count);
            }
        }
    }

    /// One fsync covers everything staged at a node.
    pub(super) fn sync(&self, state: &State, out: &mut Steps) {
        for node in 0..NODES {
            let staged = |held: &Replica| held.synced < held.entries.len();
            if !state.nodes[node].held.iter().any(staged) {
                continue;
            }
            let mut next = *state;
            for held in &mut next.nodes[node].held {
                held.synced = held.entries.len();
            }
            self.report(&mut next, node);
            self.emit(out, Step::Sync { node }, next);
        }
    }

    /// A node reads the record and forgets what that no longer needs; the floor goes up first.
    pub(super) fn trim(&self, state: &State, out: &mut Steps) {
        if !self.scope.trim {
            return;
        }
        for node in 0..NODES {
            for id in 0..state.segment_count {
                if !state.replica(node, id).present || !self.is_deletable(state, id) {
                    continue;
                }
                let mut next = *state;
                let token = state.segments[usize::from(id)].token;
                let at = &mut next.nodes[node];
                at.held[usize::from(id)] = Replica::default();
                at.forgotten |= 1 << id;
                if !self.breaks(Mutant::NoFloor) {
                    at.floor = at.floor.max(token);
                }
                let live = Self::has_writer(state, id);
                self.emit(
                    out,
                    Step::Trim {
                        node,
                        segment: id,
                        live,
                    },
                    next,
                );
            }
        }
    }

    /// Faults, each within its budget.
    pub(super) fn fail(&self, state: &State, out: &mut Steps) {
        let budget = self.scope.wipes + self.scope.rots;
        for node in 0..NODES {
            if state.losses < budget && self.scope.wipes > 0 {
                self.wipe(state, node, out);
            }
            if state.losses < budget && self.scope.rots > 0 {
                self.rot(state, node, out);
            }
            let brokers_crash = self.breaks(Mutant::RestartContinues);
            if state.crashes < self.scope.crashes && !brokers_crash {
                self.crash(state, node, out);
            }
        }
    }

    /// The disk is gone; the node comes back empty, under a new generation.
    fn wipe(&self, state: &State, node: usize, out: &mut Steps) {
        let mut next = *state;
        next.losses += 1;
        let kept = self.breaks(Mutant::GenerationKept);
        next.nodes[node] = Node {
            generation: state.nodes[node].generation + u8::from(!kept),
            ..Node::default()
        };
        self.emit(out, Step::Wipe { node }, next);
    }

    /// Synced entries turn out unreadable at a restart; the segment is marked.
    fn rot(&self, state: &State, node: usize, out: &mut Steps) {
        for id in 0..state.segment_count {
            let held = state.replica(node, id);
            for keep in 0..held.entries.len() {
                let mut next = *state;
                next.losses += 1;
                let replica = next.replica_mut(node, id);
                replica.entries.truncate(keep);
                replica.synced = keep;
                replica.limbo = !self.breaks(Mutant::RotCutAsTorn);
                self.emit(
                    out,
                    Step::Rot {
                        node,
                        segment: id,
                        keep,
                    },
                    next,
                );
            }
        }
    }

    /// The process dies: what was not synced is gone, and so is the part of a torn write.
    fn crash(&self, state: &State, node: usize, out: &mut Steps) {
        let mut next = *state;
        next.crashes += 1;
        for id in 0..SEGMENTS as u8 {
            let segment = state.segments[usize::from(id)];
            let volatile_fence = self.breaks(Mutant::FenceNotSynced);
            let held = next.replica_mut(node, id);
            held.entries.truncate(held.synced);
            // Committed offsets come with entries; what was learnt apart from them is not synced.
            let sends = &segment.sends[..usize::from(segment.sent)];
            let stated = sends
                .iter()
                .filter(|send| held.entries.get(send.offset - segment.base) == Some(send.value));
            if held.present && self.scope.unsynced {
                held.committed = stated.fold(segment.base, |most, send| most.max(send.committed));
            }
            held.fenced &= !volatile_fence;
            if held.entries.len() == 0 && !held.fenced && !held.limbo {
                *held = Replica::default();
            }
        }
        if self.breaks(Mutant::FloorLostAtRestart) {
            next.nodes[node].floor = 0;
        }
        self.emit(out, Step::Crash { node }, next);
    }
}
