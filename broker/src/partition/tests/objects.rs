//! The object store of the world: copies, manifests, and replicas that trim what lies there.

use super::replica::{headers, state_at};
use super::*;

/// What an object holds: batches by offset, and the state at their end.
pub(super) struct Object {
    pub(super) log: BTreeMap<Offset, Bytes>,
    pub(super) state: PartitionState,
}

impl World {
    /// Does the oldest errand to the object store, and tells who asked, if it still listens.
    pub(super) fn run_errand(&mut self) {
        let Some((owner, errand)) = self.errands.pop_front() else {
            return;
        };
        let fails = self.random.range(0, 5) == 0;
        match errand {
            Errand::Copy(segment) => {
                let run = if fails { None } else { self.copy(&segment) };
                if owner == self.incarnation {
                    self.act(|owner, ctx| owner.on_offloaded(segment.id, run, ctx));
                }
            }
            Errand::Fold(retention) => {
                if owner == self.incarnation {
                    let folded = (!fails).then(|| self.fold(&retention));
                    self.act(|owner, ctx| owner.on_folded(folded, ctx));
                }
            }
            Errand::Survey(node, segment, generation) => {
                if owner == self.incarnation && !fails {
                    let found = self.survey(node, segment, generation);
                    self.act(|owner, ctx| owner.on_surveyed(node, segment, found, ctx));
                }
            }
            Errand::Repair(repair) => self.run_repair(owner, &repair),
            Errand::State => {
                if owner == self.incarnation {
                    let state = (!fails).then(|| self.state());
                    self.act(|owner, ctx| owner.on_object_state(state, ctx));
                }
            }
        }
    }

    /// Copies a sealed segment from a replica that has all of it.
    pub(super) fn copy(&mut self, segment: &Segment) -> Option<Run> {
        let end = segment.end.expect("only sealed segments are copied");
        let replica = segment
            .replicas
            .iter()
            .filter(|(node, generation)| self.replicas[node].generation() == *generation)
            .map(|(node, _)| &self.replicas[node])
            .find(|replica| {
                let copy = replica.segments.get(&segment.id);
                replica.up && copy.is_some_and(|copy| copy.tail() >= end)
            })?;
        let log: BTreeMap<_, _> = replica.segments[&segment.id]
            .frames
            .iter()
            .filter(|frame| frame.header.kind == FrameKind::Data)
            .flat_map(batches)
            .filter(|(header, _)| header.end_offset() <= end)
            .map(|(header, batch)| (header.base_offset(), batch.slice(batch::HEADER_LEN..)))
            .collect();
        let state = state_at(&headers(replica, segment.id, end).unwrap());
        let run = Run {
            base: segment.base,
            end,
            object: format!("object {}", self.objects.len()),
            position: 0,
            len: log.len() as u64,
            crc32c: 0,
            max_timestamp_ms: 5,
        };
        self.objects.insert(run.object.clone(), Object { log, state });
        Some(run)
    }

    pub(super) fn fold(&mut self, retention: &Retention) -> Folded {
        let record = self.owner.record();
        let mut runs = record
            .manifest
            .as_ref()
            .map_or_else(Vec::new, |manifest| self.manifests[&manifest.object].clone());
        runs.extend(record.recent.iter().cloned());
        let object = format!("manifest {}", self.manifests.len());
        let manifest = runs.last().map(|last| ManifestRef {
            object: object.clone(),
            generation: record.manifest.as_ref().map_or(0, |old| old.generation) + 1,
            end: last.end,
            len: 0,
            crc32c: 0,
        });
        self.manifests.insert(object, runs);
        Folded {
            manifest,
            log_start: retention.log_start,
            oldest_ms: 5,
            bytes: 0,
        }
    }

    /// All ranges of the offloaded past.
    pub(super) fn runs(&self) -> Vec<Run> {
        let listed = self.record.manifest.as_ref();
        let listed = listed.map_or_else(Vec::new, |manifest| self.manifests[&manifest.object].clone());
        listed
            .into_iter()
            .chain(self.record.recent.iter().cloned())
            .collect()
    }

    pub(super) fn state(&self) -> PartitionState {
        self.objects[&self.runs().last().unwrap().object].state.clone()
    }

    /// A node forgets what the record proves deletable (I16), and raises its floor first (I17).
    pub(super) fn trim(&mut self, node: NodeId) {
        let record = &self.record;
        let replica = self.replicas.get_mut(&node).unwrap();
        let generation = replica.generation();
        for (id, copy) in &mut replica.segments {
            if !copy.limbo && record.is_replica(*id, node, generation) {
                copy.copied_by = None;
            }
        }
        let deletable: Vec<_> = replica
            .segments
            .iter()
            .filter(|(id, copy)| {
                let pending = copy.copied_by.filter(|_| !copy.limbo);
                let named = record.chain.iter().any(|segment| segment.id == **id);
                (!named && (id.epoch, id.seq) <= (record.epoch, record.last_seq))
                    || record.is_replaced(**id, node, generation, pending)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in deletable {
            let copy = replica.segments.remove(&id).unwrap();
            replica.floor = replica.floor.max(copy.token);
            self.trimmed += 1;
        }
    }

    /// Other partitions change the store, and a node trims what it held of them: its floor passes
    /// tokens that this broker may not have heard of.
    pub(super) fn trim_others(&mut self, node: NodeId) {
        self.newest += self.random.range(1, 20);
        let floor = Token(self.newest - self.random.range(0, 3));
        let replica = self.replicas.get_mut(&node).unwrap();
        replica.floor = replica.floor.max(floor);
    }
}
