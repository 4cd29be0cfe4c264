//! Takeover: grant, fences, carry, and the transaction that seals one segment and links the next,
//! which an ensemble change ends with as well.
//!
//! Where answers can be lost (`Scope::unanswered`), a transaction is sent, decided by the store, and
//! its answer received in three steps; a broker that gives up waiting reads the record again.

use super::state::{Entries, NODES, Phase, State, TXNS, Txn, TxnState, members};
use super::{Log, Mutant, Step, Steps};

/// Closed replicas that a recovery needs.
const CLOSE_QUORUM: u32 = 2;

impl Log {
    /// T1: a new incarnation takes the partition. They come one after the other.
    pub(super) fn grant(&self, state: &State, index: usize, out: &mut Steps) {
        if index > 0 && matches!(state.brokers[index - 1].phase, Phase::Idle) {
            return;
        }
        let Some(link) = state.record.last().copied() else {
            return;
        };
        let mut next = *state;
        next.record.epoch += 1;
        next.record.revision += 1;
        next.record.last_seq = 0;
        let broker = &mut next.brokers[index];
        broker.phase = Phase::Fencing;
        broker.epoch = next.record.epoch;
        broker.segment = link.segment;
        broker.committed_seen = link.base;
        broker.recovering = true;
        self.emit(
            out,
            Step::Grant {
                broker: index,
                epoch: next.record.epoch,
                segment: link.segment,
            },
            next,
        );
    }

    pub(super) fn recover(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        for node in members(&state.replicas_of(broker.segment)) {
            if self.breaks(Mutant::AnswerBeforeFence) {
                self.ask_then_fence(state, index, node, out);
            } else if broker.closed & 1 << node == 0 {
                self.fence(state, index, node, out);
            }
        }
        let needed = if self.breaks(Mutant::CloseQuorumOfOne) {
            1
        } else {
            CLOSE_QUORUM
        };
        let closed = (broker.evidence & broker.closed).count_ones() >= needed;
        if closed && state.segment_count < self.scope.segments {
            self.carry(state, index, out);
        }
    }

    fn fence(&self, state: &State, index: usize, node: usize, out: &mut Steps) {
        let segment = state.brokers[index].segment;
        let mut next = *state;
        let authoritative = if self.close_replica(&mut next, segment, node) {
            let held = *next.replica(node, segment);
            self.take_evidence(&mut next, index, node);
            !held.limbo || self.breaks(Mutant::LimboSaysAbsent)
        } else {
            if self.breaks(Mutant::WrongGenerationSaysAbsent) {
                next.brokers[index].shortest = Some(Entries::default());
            }
            self.breaks(Mutant::WrongGenerationSaysAbsent)
        };
        let broker = &mut next.brokers[index];
        broker.closed |= 1 << node;
        if authoritative {
            broker.evidence |= 1 << node;
        }
        self.emit(
            out,
            Step::Fence {
                broker: index,
                node,
                segment,
                tail: next.replica(node, segment).entries,
                authoritative,
            },
            next,
        );
    }

    /// What a mutant does: the answer is taken first, the fence follows.
    fn ask_then_fence(&self, state: &State, index: usize, node: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        let mut next = *state;
        if broker.evidence & 1 << node == 0 {
            self.take_evidence(&mut next, index, node);
            next.brokers[index].evidence |= 1 << node;
            self.emit(out, Step::Ask { broker: index, node }, next);
        } else if broker.closed & 1 << node == 0 {
            self.close_replica(&mut next, broker.segment, node);
            next.brokers[index].closed |= 1 << node;
            let tail = next.replica(node, broker.segment).entries;
            let step = Step::Fence {
                broker: index,
                node,
                segment: broker.segment,
                tail,
                authoritative: false,
            };
            self.emit(out, step, next);
        }
    }

    /// The node's part: durable, behind all that was staged. False if the generation is another.
    fn close_replica(&self, state: &mut State, segment: u8, node: usize) -> bool {
        let base = state.segments[usize::from(segment)].base;
        if state.nodes[node].generation != state.replicas_of(segment)[node] {
            return false;
        }
        let held = state.replica_mut(node, segment);
        if !held.present && self.breaks(Mutant::FenceOfUnknownNotRecorded) {
            return true;
        }
        if !held.present {
            held.present = true;
            held.committed = base;
        }
        held.fenced = true;
        held.synced = held.entries.len();
        self.report(state, node);
        true
    }

    fn take_evidence(&self, state: &mut State, index: usize, node: usize) {
        let held = *state.replica(node, state.brokers[index].segment);
        let broker = &mut state.brokers[index];
        broker.committed_seen = broker.committed_seen.max(held.committed);
        if held.entries.len() > broker.longest.len() {
            broker.longest = held.entries;
        }
        if self.breaks(Mutant::ShortestTailCarried) {
            let shortest = broker.shortest.unwrap_or(held.entries);
            let shorter = shortest.len() > held.entries.len();
            broker.shortest = Some(if shorter { held.entries } else { shortest });
        }
    }

    /// The undecided tail goes into a new segment.
    fn carry(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let old_base = state.segments[usize::from(broker.segment)].base;
        let seen = match broker.shortest {
            Some(shortest) if self.breaks(Mutant::ShortestTailCarried) => shortest,
            _ => broker.longest,
        };
        let mut end = broker.committed_seen;
        let mut tail = seen.since(end - old_base);
        if self.breaks(Mutant::TailDropped) {
            tail = Entries::default();
        }
        if self.breaks(Mutant::SealedAtLongestTail) {
            end = end.max(old_base + seen.len());
            tail = Entries::default();
        }
        let mut base = end;
        if self.breaks(Mutant::BaseBeyondSealedEnd) {
            base = end.max(old_base + seen.len());
            tail = Entries::default();
        }
        let mut next = *state;
        let segment = self.new_segment(&mut next, index, broker.segment, base);
        let successor = &mut next.brokers[index];
        successor.phase = Phase::Preparing;
        successor.segment = segment;
        successor.log = tail;
        successor.acks = [0; NODES];
        successor.committed = base;
        successor.sealed = broker.segment;
        successor.sealed_end = end;
        (successor.evidence, successor.closed, successor.committed_seen) = (0, 0, 0);
        (successor.longest, successor.shortest) = (Entries::default(), None);
        self.send(&mut next, index, 0);
        let step = Step::Carry {
            broker: index,
            carried: tail,
            base,
            segment,
        };
        self.emit(out, step, next);
    }

    /// A new segment is filled; once it may be linked, the transaction goes out.
    pub(super) fn prepared(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        if broker.draining {
            self.drain(state, index, out);
        }
        if self.waits_for_drain(state, index) {
            return;
        }
        if self.breaks(Mutant::AckBeforeLink) && !broker.recovering {
            self.commit(state, index, out);
        }
        if self.breaks(Mutant::CommitBeyondFrozenEnd) {
            self.commit_in_old(state, index, out);
        }
        let durable = self.is_durable(state, index, broker.log.len());
        if self.breaks(Mutant::CarryShownBeforeLink) && broker.recovering && durable {
            let mut next = *state;
            self.show_log(&mut next, index);
            self.emit(out, Step::ShowCarry { broker: index }, next);
        }
        if broker.recovering && !durable && !self.breaks(Mutant::LinkBeforeCarryDurable) {
            return;
        }
        let mut next = *state;
        if state.record.position(broker.segment).is_some() {
            // An earlier attempt landed after the record was read.
            self.read_again(&mut next, index);
            self.emit(out, Step::Resolve { broker: index }, next);
            return;
        }
        let open = state.record.last().map(|link| link.segment);
        if open != Some(broker.sealed) && !self.breaks(Mutant::NoEpochCompare) {
            // The record is not the one that this change is about.
            self.depose(&mut next, index);
            self.emit(out, Step::NotLinked { broker: index }, next);
            return;
        }
        let txn = Txn {
            state: TxnState::InFlight,
            seen: state.record.revision,
            epoch: broker.epoch,
            sealed: broker.sealed,
            sealed_end: broker.sealed_end,
            linked: broker.segment,
        };
        if self.scope.unanswered == 0 {
            let done = self.decide(&mut next, &txn);
            if done {
                self.serve(&mut next, index);
            } else {
                self.depose(&mut next, index);
            }
            self.emit(out, Step::link(index, &txn, done), next);
            return;
        }
        let Some(slot) = next.brokers[index]
            .txns
            .iter_mut()
            .find(|slot| matches!(slot.state, TxnState::None))
        else {
            return;
        };
        *slot = txn;
        next.brokers[index].phase = Phase::Linking;
        self.emit(out, Step::SendTxn { broker: index, txn }, next);
    }

    /// The metadata store takes a transaction, however late.
    pub(super) fn store_decides(&self, state: &State, index: usize, out: &mut Steps) {
        for slot in 0..TXNS {
            let txn = state.brokers[index].txns[slot];
            if !matches!(txn.state, TxnState::InFlight) {
                continue;
            }
            let mut next = *state;
            let done = self.decide(&mut next, &txn);
            let waits = matches!(state.brokers[index].phase, Phase::Linking | Phase::Unsure);
            next.brokers[index].txns[slot] = match (waits, done) {
                (false, _) => Txn::default(),
                (true, true) => Txn {
                    state: TxnState::Applied,
                    ..txn
                },
                (true, false) => Txn {
                    state: TxnState::Refused,
                    ..txn
                },
            };
            self.emit(out, Step::StoreDecides { broker: index, done }, next);
        }
    }

    /// Waits for the answer, or for the patience to end.
    pub(super) fn linking(&self, state: &State, index: usize, out: &mut Steps) {
        if self.breaks(Mutant::CommitBeyondFrozenEnd) {
            self.commit_in_old(state, index, out);
        }
        let answered = state.brokers[index]
            .txns
            .iter()
            .any(|txn| matches!(txn.state, TxnState::Applied | TxnState::Refused));
        if answered {
            let mut next = *state;
            self.read_again(&mut next, index);
            self.emit(out, Step::Answer { broker: index }, next);
        }
        if state.unanswered < self.scope.unanswered {
            let mut next = *state;
            next.unanswered += 1;
            next.brokers[index].phase = Phase::Unsure;
            self.emit(out, Step::GiveUp { broker: index }, next);
        }
    }

    /// The outcome is unknown: the record tells, and nothing happens before it was read.
    pub(super) fn unsure(&self, state: &State, index: usize, out: &mut Steps) {
        let mut next = *state;
        if self.breaks(Mutant::UnknownTakenAsSuccess) {
            self.serve(&mut next, index);
        } else if self.breaks(Mutant::UnknownTakenAsFailure) && !state.brokers[index].recovering {
            self.go_back(&mut next, index);
        } else {
            self.read_again(&mut next, index);
        }
        self.emit(out, Step::Resolve { broker: index }, next);
    }

    /// What the record says after an answer or without one. A transaction that is still on its way
    /// excludes, and is excluded by, the one that is sent now: both compare the same revision.
    fn read_again(&self, state: &mut State, index: usize) {
        let broker = state.brokers[index];
        let linked = state
            .record
            .last()
            .is_some_and(|link| link.segment == broker.segment);
        let revision = state.record.revision;
        for txn in &mut state.brokers[index].txns {
            let can_apply = matches!(txn.state, TxnState::InFlight) && txn.seen == revision;
            if !can_apply && !self.breaks(Mutant::NoEpochCompare) {
                *txn = Txn::default();
            }
        }
        if linked {
            self.serve(state, index);
        } else if broker.epoch == state.record.epoch {
            state.brokers[index].phase = Phase::Preparing;
        } else {
            self.depose(state, index);
        }
    }

    /// What a mutant does: taken as failed, the old segment goes on.
    fn go_back(&self, state: &mut State, index: usize) {
        let broker = state.brokers[index];
        let old = state.segments[usize::from(broker.sealed)];
        let mut log = Entries::default();
        for send in &old.sends[..usize::from(old.sent)] {
            log.push(send.value);
        }
        let writer = &mut state.brokers[index];
        writer.phase = Phase::Active;
        writer.segment = broker.sealed;
        writer.log = log;
        writer.acks = broker.old_acks;
        writer.old_acks = [0; NODES];
    }

    /// The segment is linked: what was carried is shown, and writes go on.
    fn serve(&self, state: &mut State, index: usize) {
        if state.brokers[index].recovering {
            self.show_log(state, index);
        }
        let broker = &mut state.brokers[index];
        if broker.recovering {
            broker.committed = state.segments[usize::from(broker.segment)].base + broker.log.len();
        }
        broker.phase = Phase::Active;
        broker.recovering = false;
        broker.draining = false;
        (broker.sealed, broker.sealed_end) = (0, 0);
        broker.old_acks = [0; NODES];
        if self.breaks(Mutant::CommitBeyondFrozenEnd) {
            broker.committed = state.segments[usize::from(broker.segment)]
                .base
                .max(broker.committed);
        }
    }

    fn show_log(&self, state: &mut State, index: usize) {
        let broker = state.brokers[index];
        let base = state.segments[usize::from(broker.segment)].base;
        for (at, &value) in broker.log.as_slice().iter().enumerate() {
            self.show(state, base + at as u8, value);
        }
    }
}
