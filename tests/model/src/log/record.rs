//! What changes the partition's record besides takeovers: offload and repair; and the store's side
//! of a transaction.

use super::state::{Entries, Link, NODES, OPEN, Phase, Repair, State, Txn, members};
use super::{Log, Mutant, Step, Steps};

impl Log {
    /// The store compares and, if all is as the sender saw it, seals one segment and links the next.
    pub(super) fn decide(&self, state: &mut State, txn: &Txn) -> bool {
        let as_seen = txn.seen == state.record.revision && txn.epoch == state.record.epoch;
        if !as_seen && !self.breaks(Mutant::NoEpochCompare) {
            return false;
        }
        // The new record is what the sender saw, changed: links up to the sealed one, and the new one.
        let segment = state.segments[usize::from(txn.linked)];
        let sealed = Link {
            segment: txn.sealed,
            base: state.segments[usize::from(txn.sealed)].base,
            end: txn.sealed_end,
            replicas: state.replicas_of(txn.sealed),
        };
        let record = &mut state.record;
        record.truncate(
            record
                .chain()
                .iter()
                .filter(|link| link.segment < txn.sealed)
                .count(),
        );
        if sealed.base < sealed.end {
            record.push(sealed);
        }
        record.push(Link {
            segment: txn.linked,
            base: segment.base,
            end: OPEN,
            replicas: segment.replicas,
        });
        record.revision += 1;
        record.last_seq = segment.seq;
        true
    }

    /// T5: the oldest sealed segment moves to the object store, up to its end.
    pub(super) fn offload(&self, state: &State, index: usize, out: &mut Steps) {
        let Some(link) = state.record.chain().first().filter(|link| link.end != OPEN) else {
            return;
        };
        let size = link.end - link.base;
        // A copy that is long enough is right: the bytes below a sealed end are the same everywhere.
        let Some(node) = self.copies(state, link, size).next() else {
            return;
        };
        let held = state.replica(node, link.segment).entries;
        let beyond = self.breaks(Mutant::OffloadBeyondEnd);
        let taken = if beyond { held.len() } else { size };
        let mut next = *state;
        let room = super::state::ENTRIES as u8 - next.record.archived.len();
        for &value in held.as_slice().iter().take(usize::from(taken.min(room))) {
            next.record.archived.push(value);
        }
        let segment = link.segment;
        next.record.drop_first();
        next.record.revision += 1;
        self.emit(
            out,
            Step::Offload {
                broker: index,
                segment,
                node,
            },
            next,
        );
    }

    /// Replicas of a link that hold its first `size` entries.
    fn copies<'a>(&self, state: &'a State, link: &'a Link, size: u8) -> impl Iterator<Item = usize> + 'a {
        members(&link.replicas).filter(move |&node| {
            let held = state.replica(node, link.segment);
            state.nodes[node].generation == link.replicas[node] && held.present && held.synced >= size
        })
    }

    /// T8: a worker that suspects a replica copies the sealed segment to the node that has none,
    /// closed from the start, and replaces the one by the other; the record must be as it was read.
    pub(super) fn repair(&self, state: &State, out: &mut Steps) {
        match &state.repair {
            None if state.repairs < self.scope.repairs => self.begin_repair(state, out),
            None => {}
            Some(repair) if !repair.copied => self.copy(state, repair, out),
            Some(repair) => self.replace(state, repair, out),
        }
    }

    fn begin_repair(&self, state: &State, out: &mut Steps) {
        for link in state.record.chain() {
            if link.end == OPEN && !self.breaks(Mutant::OpenSegmentRepaired) {
                continue;
            }
            let Some(to) = (0..NODES).find(|&node| link.replicas[node] == 0) else {
                continue;
            };
            for from in members(&link.replicas) {
                let mut next = *state;
                next.repairs += 1;
                next.repair = Some(Repair {
                    record: state.record,
                    segment: link.segment,
                    from: from as u8,
                    to: to as u8,
                    copied: false,
                });
                self.emit(
                    out,
                    Step::BeginRepair {
                        segment: link.segment,
                        from,
                        to,
                    },
                    next,
                );
            }
        }
    }

    fn copy(&self, state: &State, repair: &Repair, out: &mut Steps) {
        let Some(at) = repair.record.position(repair.segment) else {
            return;
        };
        let link = repair.record.links[at];
        let wanted = match link.end {
            OPEN => 0,
            end => end - link.base,
        };
        let Some(source) = self.copies(state, &link, wanted).next() else {
            // Nothing to copy from any more: offloaded and trimmed, or all disks are gone.
            let mut next = *state;
            next.repair = None;
            self.emit(out, Step::AbandonRepair, next);
            return;
        };
        let held = state.replica(source, repair.segment).entries;
        let mut next = *state;
        let copied = match link.end {
            OPEN => held,
            _ => Entries::from_slice(&held.as_slice()[..usize::from(wanted)]),
        };
        let replica = next.replica_mut(usize::from(repair.to), repair.segment);
        replica.present = true;
        replica.fenced = true;
        replica.limbo = false;
        replica.entries = copied;
        replica.synced = copied.len();
        replica.committed = link.base + wanted;
        next.repair = Some(Repair {
            copied: true,
            ..*repair
        });
        let step = Step::Copy {
            segment: repair.segment,
            to: usize::from(repair.to),
        };
        self.emit(out, step, next);
    }

    fn replace(&self, state: &State, repair: &Repair, out: &mut Steps) {
        let mut next = *state;
        next.repair = None;
        let (from, to) = (usize::from(repair.from), usize::from(repair.to));
        let as_seen = state.record.revision == repair.record.revision;
        let mut done = false;
        if as_seen || self.breaks(Mutant::RepairWithoutCompare) {
            let mut record = repair.record;
            if let Some(at) = record.position(repair.segment) {
                record.links[at].replicas[from] = 0;
                record.links[at].replicas[to] = state.nodes[to].generation;
                record.revision = state.record.revision + 1;
                next.record = record;
                done = true;
            }
        }
        let segment = repair.segment;
        self.emit(
            out,
            Step::Replace {
                segment,
                from,
                to,
                done,
            },
            next,
        );
    }

    /// Whether a node may delete a segment, by the record as the node reads it.
    pub(super) fn is_deletable(&self, state: &State, segment: u8) -> bool {
        let of = &state.segments[usize::from(segment)];
        let record = &state.record;
        let not_above = (of.epoch, of.seq) <= (record.epoch, record.last_seq);
        record.position(segment).is_none() && (not_above || self.breaks(Mutant::AbsentFromChainIsEnough))
    }

    /// Whether some broker may still write a segment, for traces that are about live ones.
    pub(super) fn has_writer(state: &State, segment: u8) -> bool {
        let writes = |phase: Phase| !matches!(phase, Phase::Idle | Phase::Deposed | Phase::Fencing);
        state
            .brokers
            .iter()
            .any(|broker| broker.segment == segment && writes(broker.phase))
    }
}
