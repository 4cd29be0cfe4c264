//! How an owner goes on to other replicas: at once, where a replica gives trouble, or by a roll.
//!
//! An ensemble change freezes the old segment's end at what is committed; what lies beyond moves to the
//! new segment, and acknowledgements of the old one commit nothing any more. A roll sends new entries to
//! the successor early and lets the old segment drain to the switch point before the record changes;
//! trouble on the way turns it into an ensemble change.

use super::state::{Entries, NODES, Phase, State, members};
use super::{Log, Mutant, Step, Steps};

impl Log {
    pub(super) fn move_on(&self, state: &State, index: usize, out: &mut Steps) {
        if state.segment_count == self.scope.segments {
            return;
        }
        if self.scope.changes {
            self.change(state, index, out);
        }
        if self.scope.rolls {
            self.roll(state, index, out);
        }
    }

    /// Ends the segment at what is committed; the rest of the log goes to other replicas.
    fn change(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let old = if broker.draining {
            broker.sealed
        } else {
            broker.segment
        };
        let carried = if broker.draining {
            self.undecided(state, index)
        } else {
            broker
                .log
                .since(broker.committed - state.segments[usize::from(old)].base)
        };
        let mut next = *state;
        let segment = self.new_segment(&mut next, index, old, broker.committed);
        let successor = &mut next.brokers[index];
        successor.phase = Phase::Preparing;
        successor.draining = false;
        successor.sealed = old;
        successor.sealed_end = broker.committed;
        successor.segment = segment;
        successor.log = carried;
        successor.acks = [0; NODES];
        successor.old_acks = match self.mutant {
            Some(mutant) if mutant.keeps_old_acks() && !broker.draining => broker.acks,
            _ => [0; NODES],
        };
        self.send(&mut next, index, 0);
        let step = Step::Change {
            broker: index,
            sealed: old,
            end: broker.committed,
            segment,
            carried,
        };
        self.emit(out, step, next);
    }

    /// What a draining owner has not committed: the rest of the old segment, then the successor's log.
    fn undecided(&self, state: &State, index: usize) -> Entries {
        let broker = &state.brokers[index];
        let mut undecided = Entries::default();
        for offset in broker.committed..broker.sealed_end {
            if let Some(value) = Self::sent(state, broker.sealed, offset) {
                undecided.push(value);
            }
        }
        for &value in broker.log.as_slice() {
            undecided.push(value);
        }
        undecided
    }

    /// What a segment's writer sent at an offset.
    fn sent(state: &State, segment: u8, offset: u8) -> Option<u8> {
        let segment = &state.segments[usize::from(segment)];
        let mut sends = segment.sends[..usize::from(segment.sent)].iter();
        sends.find(|send| send.offset == offset).map(|send| send.value)
    }

    /// Prepares a successor for what is accepted from now on.
    fn roll(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = state.brokers[index];
        let end = state.segments[usize::from(broker.segment)].base + broker.log.len();
        if broker.committed == end {
            return;
        }
        let mut next = *state;
        let segment = self.new_segment(&mut next, index, broker.segment, end);
        let successor = &mut next.brokers[index];
        successor.phase = Phase::Preparing;
        successor.draining = true;
        successor.sealed = broker.segment;
        successor.sealed_end = end;
        successor.segment = segment;
        successor.log = Entries::default();
        successor.acks = [0; NODES];
        successor.old_acks = broker.acks;
        let step = Step::Roll {
            broker: index,
            sealed: broker.segment,
            end,
            segment,
        };
        self.emit(out, step, next);
    }

    /// The old segment drains, the successor fills; trouble freezes the end where it is.
    pub(super) fn drain(&self, state: &State, index: usize, out: &mut Steps) {
        self.accept(state, index, out);
        self.commit_in_old(state, index, out);
        if self.scope.changes && state.segment_count < self.scope.segments {
            self.change(state, index, out);
        }
    }

    /// Commits what the old segment's replicas acknowledge, up to the switch point of a roll. Beyond a
    /// frozen end only a mutant does this.
    pub(super) fn commit_in_old(&self, state: &State, index: usize, out: &mut Steps) {
        let broker = &state.brokers[index];
        let old = &state.segments[usize::from(broker.sealed)];
        let at = broker.committed - old.base;
        let Some(value) = Self::sent(state, broker.sealed, broker.committed) else {
            return;
        };
        let holders = members(&old.replicas).filter(|&node| broker.old_acks[node] > at);
        if broker.recovering || !self.is_quorum(holders.count()) {
            return;
        }
        let mut next = *state;
        let writer = &mut next.brokers[index];
        writer.committed += 1;
        if writer.draining && writer.committed == writer.sealed_end {
            writer.draining = false;
            writer.old_acks = [0; NODES];
        }
        self.show(&mut next, broker.committed, value);
        let step = Step::Commit {
            broker: index,
            value,
            offset: broker.committed,
            segment: broker.sealed,
        };
        self.emit(out, step, next);
    }

    /// Whether the record may change before the old segment has drained; it may not.
    pub(super) fn waits_for_drain(&self, state: &State, index: usize) -> bool {
        state.brokers[index].draining && !self.breaks(Mutant::SealedBeforeDrained)
    }
}
