//! One partition's record: who owns it, and the chain of segments not offloaded yet.

use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use forebay_runtime::mutant::{self, Mutant};
use uuid::Uuid;

mod gaps;
#[cfg(test)]
mod tests;

/// Segments in a chain before planned rolls are held back.
pub const CHAIN_MAX: usize = 16;
/// Offloaded ranges that a record lists before they must be folded into the manifest.
pub const RECENT_MAX: usize = 16;

/// One segment of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The segment.
    pub id: SegmentId,
    /// Orders it against floors (I17).
    pub token: Token,
    /// First offset.
    pub base: Offset,
    /// Sealed end, exclusive; none while open.
    pub end: Option<Offset>,
    /// Replicas that must have synced an entry before it is committed.
    pub ack_quorum: u8,
    /// The replica set; fixed while the segment is open (I2).
    pub replicas: Vec<(NodeId, Generation)>,
    /// Bytes of frames when it was sealed; 0 where its last owner did not seal it itself.
    pub bytes: u64,
    /// When it was sealed, milliseconds since 1970 on its owner's clock; 0 while open. Only
    /// retention without an object store goes by it.
    pub sealed_ms: i64,
}

impl Segment {
    /// Closed replicas that any recovery needs, so that one of them holds every acknowledged
    /// entry: n − a + 1.
    #[must_use]
    pub fn close_quorum(&self) -> usize {
        if mutant::is(Mutant::CloseQuorumOfOne) {
            return 1;
        }
        self.replicas.len() + 1 - usize::from(self.ack_quorum).min(self.replicas.len())
    }

    /// The generation that the record names for a node, none where it is no replica.
    #[must_use]
    pub fn generation_of(&self, node: NodeId) -> Option<Generation> {
        self.replicas
            .iter()
            .find(|(id, _)| *id == node)
            .map(|(_, generation)| *generation)
    }
}

/// What is known of a segment when it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    /// Bytes of its frames, 0 where unknown.
    pub bytes: u64,
    /// Milliseconds since 1970 on the owner's clock.
    pub at_ms: i64,
}

/// Where the immutable manifest of the offloaded past is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRef {
    /// Name of its root object.
    pub object: String,
    /// Counts its versions.
    pub generation: u64,
    /// End of what it covers, exclusive.
    pub end: Offset,
    /// Bytes of the object.
    pub len: u64,
    /// CRC-32C of the object.
    pub crc32c: u32,
}

/// An offloaded range that is not folded into the manifest yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// Object's name.
    pub object: String,
    /// Where the run starts in the object.
    pub position: u64,
    /// Bytes of the run.
    pub len: u64,
    /// CRC-32C of the run.
    pub crc32c: u32,
    /// Largest timestamp of its records, milliseconds since 1970; what retention by time goes by.
    pub max_timestamp_ms: i64,
}

/// Offsets declared lost or skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// First offset.
    pub base: Offset,
    /// End, exclusive.
    pub end: Offset,
    /// Why.
    pub reason: String,
}

/// The record of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The partition.
    pub id: PartitionId,
    /// Its topic.
    pub topic: Uuid,
    /// Its number within the topic.
    pub number: u32,
    /// Raised by each grant.
    pub epoch: Epoch,
    /// Broker of the newest grant, none before the first.
    pub owner: Option<BrokerId>,
    /// Session of that broker.
    pub session: SessionId,
    /// Sequence of the newest segment that this epoch has linked; 0 before the first.
    pub last_seq: u32,
    /// First offset kept.
    pub log_start: Offset,
    /// The offloaded past.
    pub manifest: Option<ManifestRef>,
    /// Offloaded ranges after the manifest.
    pub recent: Vec<Run>,
    /// Segments after those.
    pub chain: Vec<Segment>,
    /// Nonce of the newest change.
    pub op: u64,
    /// Declared gaps.
    pub gaps: Vec<Gap>,
    /// The topic is gone.
    pub deleted: bool,
}

/// Why a change may not be made to a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The topic is gone.
    #[error("{0} is deleted")]
    Deleted(PartitionId),
    /// The end lies before the segment's base.
    #[error("{segment} cannot end at {end}, it begins at {base}")]
    End {
        /// The segment.
        segment: SegmentId,
        /// Its base.
        base: Offset,
        /// The end asked for.
        end: Offset,
    },
    /// There is no open segment to seal, or one is open already.
    #[error("{0} has {1}")]
    Open(PartitionId, &'static str),
    /// The new segment does not continue the chain.
    #[error("{segment} cannot follow: {what} is {found}, {expected} expected")]
    Link {
        /// The new segment.
        segment: SegmentId,
        /// Which property.
        what: &'static str,
        /// As given.
        found: u64,
        /// As needed.
        expected: u64,
    },
    /// A replica cannot be replaced.
    #[error("{node} of {segment} cannot be replaced or taken: {what}")]
    Replica {
        /// The segment.
        segment: SegmentId,
        /// The node.
        node: NodeId,
        /// Why not.
        what: &'static str,
    },
    /// The epochs are used up.
    #[error("{0} has no epochs left")]
    Epochs(PartitionId),
    /// The offloaded past does not fit what the record says.
    #[error("the offloaded past of {partition} cannot change: {what} is {found}, {expected} expected")]
    Past {
        /// The partition.
        partition: PartitionId,
        /// Which property.
        what: &'static str,
        /// As given.
        found: u64,
        /// As needed.
        expected: u64,
    },
}

impl Partition {
    /// A partition that nothing was ever written to.
    #[must_use]
    pub const fn new(id: PartitionId, topic: Uuid, number: u32) -> Self {
        Self {
            id,
            topic,
            number,
            epoch: Epoch(0),
            owner: None,
            session: SessionId(0),
            last_seq: 0,
            log_start: Offset(0),
            manifest: None,
            recent: Vec::new(),
            chain: Vec::new(),
            op: 0,
            gaps: Vec::new(),
            deleted: false,
        }
    }

    /// The open segment, if there is one: always the last.
    #[must_use]
    pub fn open(&self) -> Option<&Segment> {
        self.chain.last().filter(|segment| segment.end.is_none())
    }

    /// First offset that no sealed segment, run, manifest or declared gap at their end covers.
    #[must_use]
    pub fn sealed_end(&self) -> Offset {
        if let Some(open) = self.open() {
            return open.base.max(self.log_start);
        }
        let end = self
            .chain
            .last()
            .and_then(|segment| segment.end)
            .or_else(|| self.recent.last().map(|run| run.end))
            .or_else(|| self.manifest.as_ref().map(|manifest| manifest.end))
            .unwrap_or(self.log_start)
            .max(self.log_start);
        self.after_gap(end)
    }

    /// Whether a storage node may delete what it holds of a segment (I16): the partition is gone, or
    /// the segment has left the chain or can never enter it. Once true it stays true: what is linked
    /// later has a higher epoch and sequence than anything linked before.
    ///
    /// Being absent from the chain is not enough: a segment that is newer than all that was linked
    /// may be the copy of a recovery in progress.
    #[must_use]
    pub fn is_deletable(&self, segment: SegmentId) -> bool {
        if segment.partition != self.id {
            return false;
        }
        let needed = |one: &Segment| !mutant::is(Mutant::TrimBeforeLink) || one.end.is_none();
        let linked = self.chain.iter().any(|one| one.id == segment && needed(one));
        let passed = (segment.epoch, segment.seq) <= (self.epoch, self.last_seq)
            || mutant::is(Mutant::AbsentIsDeletable);
        self.deleted || (!linked && passed)
    }

    /// First offset that lies in no run and no manifest: from here on only segments hold the log.
    #[must_use]
    pub fn offloaded_end(&self) -> Offset {
        self.chain
            .first()
            .map_or_else(|| self.sealed_end(), |oldest| oldest.base)
    }

    /// Takes the partition for a broker's session: every older owner's change fails from here.
    ///
    /// # Errors
    /// Where the partition is deleted.
    pub fn grant(&self, owner: BrokerId, session: SessionId, op: u64) -> Result<Self, Refused> {
        self.alive()?;
        let kept = mutant::is(Mutant::EpochKept) && self.owner == Some(owner);
        let step = u32::from(!kept);
        let epoch = self.epoch.0.checked_add(step).ok_or(Refused::Epochs(self.id))?;
        Ok(Self {
            epoch: Epoch(epoch),
            owner: Some(owner),
            session,
            last_seq: 0,
            op,
            ..self.clone()
        })
    }

    /// Links the first segment after a sealed end.
    ///
    /// # Errors
    /// Where a segment is open, or the new one does not continue the log.
    pub fn open_first(&self, segment: Segment, op: u64) -> Result<Self, Refused> {
        self.alive()?;
        if self.open().is_some() {
            return Err(Refused::Open(self.id, "an open segment already"));
        }
        let mut next = Self { op, ..self.clone() };
        next.link(segment)?;
        Ok(next)
    }

    /// Seals the open segment at `end`, or drops it where that leaves it empty, and links `follow`.
    /// Roll, ensemble change and takeover are all this.
    ///
    /// # Errors
    /// Where no segment is open, the end lies before its base, or `follow` does not continue it.
    pub fn seal(
        &self,
        end: Offset,
        sealed: Sealed,
        follow: Option<Segment>,
        op: u64,
    ) -> Result<Self, Refused> {
        self.alive()?;
        let mut next = Self { op, ..self.clone() };
        let Some(open) = next.chain.last_mut().filter(|segment| segment.end.is_none()) else {
            return Err(Refused::Open(self.id, "no open segment"));
        };
        if end < open.base {
            return Err(Refused::End {
                segment: open.id,
                base: open.base,
                end,
            });
        }
        open.end = Some(end);
        open.bytes = sealed.bytes;
        open.sealed_ms = sealed.at_ms;
        if end == open.base {
            next.chain.pop();
        }
        if let Some(segment) = follow {
            next.link_at(segment, end)?;
        }
        Ok(next)
    }

    /// Moves the oldest segment of the chain into the object store (T5): from here on its replicas
    /// may forget it. The objects must have been verified (I19). There is one run for each piece of
    /// the segment that was not declared lost.
    ///
    /// # Errors
    /// Where the segment is not the oldest, not sealed, or the runs are not exactly its pieces; where
    /// they find no room below [`RECENT_MAX`] ranges.
    pub fn offload(&self, segment: SegmentId, runs: &[Run], op: u64) -> Result<Self, Refused> {
        self.alive()?;
        let refuse = |what, found, expected| {
            Err(Refused::Past {
                partition: self.id,
                what,
                found,
                expected,
            })
        };
        let Some(oldest) = self.chain.first().filter(|oldest| oldest.id == segment) else {
            return Err(Refused::Open(self.id, "another oldest segment"));
        };
        let Some(end) = oldest.end else {
            return Err(Refused::Open(self.id, "that segment open"));
        };
        let pieces = self.pieces(oldest.base, end);
        if runs.len() != pieces.len() {
            return refuse("number of runs", runs.len() as u64, pieces.len() as u64);
        }
        for (run, (base, end)) in runs.iter().zip(pieces) {
            if run.base != base {
                return refuse("base of the run", run.base.0, base.0);
            }
            if run.end != end {
                return refuse("end of the run", run.end.0, end.0);
            }
        }
        if !self.has_room_for(runs.len()) {
            return refuse(
                "number of ranges",
                self.recent.len() as u64,
                RECENT_MAX as u64 - 1,
            );
        }
        let mut next = Self { op, ..self.clone() };
        next.chain.remove(0);
        let kept = runs.iter().filter(|run| run.end > self.log_start);
        next.recent.extend(kept.cloned());
        Ok(next)
    }

    /// Whether so many more ranges may be listed. A segment in more pieces than the list is long gets
    /// an empty list.
    #[must_use]
    pub fn has_room_for(&self, runs: usize) -> bool {
        self.recent.len() + runs <= RECENT_MAX.max(runs)
    }

    /// Takes a new manifest and a new log start (T6, T7): ranges that the manifest covers leave the
    /// record, and so does all that ends at or below the log start. The manifest must have been
    /// written and read back.
    ///
    /// # Errors
    /// Where the manifest is older than the record's, ends inside a range or beyond them all, or
    /// the log start falls or lies beyond the sealed end.
    pub fn fold(&self, manifest: Option<ManifestRef>, log_start: Offset, op: u64) -> Result<Self, Refused> {
        self.alive()?;
        let refuse = |what, found, expected| {
            Err(Refused::Past {
                partition: self.id,
                what,
                found,
                expected,
            })
        };
        if log_start < self.log_start {
            return refuse("log start", log_start.0, self.log_start.0);
        }
        if log_start > self.sealed_end() {
            return refuse("log start", log_start.0, self.sealed_end().0);
        }
        if let (Some(new), Some(old)) = (&manifest, &self.manifest)
            && new != old
            && new.generation <= old.generation
        {
            return refuse("manifest generation", new.generation, old.generation + 1);
        }
        let kept = manifest.as_ref().map_or(log_start, |new| new.end);
        if let Some(old) = &self.manifest
            && kept < old.end
        {
            return refuse("manifest end", kept.0, old.end.0);
        }
        let covered = manifest
            .as_ref()
            .map_or(log_start, |manifest| manifest.end.max(log_start));
        let ends = |end: Offset| self.recent.iter().any(|run| run.end == end);
        if let Some(new) = &manifest
            && Some(new.end) != self.manifest.as_ref().map(|old| old.end)
            && !ends(new.end)
        {
            return refuse(
                "manifest end",
                new.end.0,
                self.recent.last().map_or(0, |run| run.end.0),
            );
        }
        let mut next = Self { op, ..self.clone() };
        next.gaps.retain(|gap| gap.end > log_start);
        next.manifest = manifest.filter(|manifest| manifest.end > log_start);
        next.recent.retain(|run| run.end > covered);
        next.chain
            .retain(|segment| segment.end.is_none_or(|end| end > log_start));
        next.log_start = log_start;
        Ok(next)
    }

    /// Puts another replica in the place of one that is lost (T8). Only a sealed segment may change so
    /// (I2), and nothing else of the record does. The new replica must hold all of `[base, end)`.
    ///
    /// # Errors
    /// Where the segment is not in the chain or open, the lost one is none of its replicas, or the new
    /// one's node is one of the others.
    pub fn replace_replica(
        &self,
        segment: SegmentId,
        lost: (NodeId, Generation),
        by: (NodeId, Generation),
        op: u64,
    ) -> Result<Self, Refused> {
        self.alive()?;
        let refuse = |what, node: NodeId| Err(Refused::Replica { segment, node, what });
        let mut next = Self { op, ..self.clone() };
        let Some(found) = next.chain.iter_mut().find(|one| one.id == segment) else {
            return refuse("its segment is not in the chain", lost.0);
        };
        if found.end.is_none() {
            return refuse("its segment is open", lost.0);
        }
        if found.replicas.iter().any(|one| *one != lost && one.0 == by.0) {
            return refuse("that node is a replica already", by.0);
        }
        let Some(place) = found.replicas.iter_mut().find(|one| **one == lost) else {
            return refuse("it is no replica in that generation", lost.0);
        };
        *place = by;
        Ok(next)
    }

    /// Whether a node that holds a segment under a generation may give it up because other nodes have
    /// taken its place (T8): the segment is sealed, in the chain, and the node not one of its replicas.
    /// A node that is about to take somebody's place looks the same until the record names it, so
    /// what was copied under the record's epoch or a later one is kept.
    #[must_use]
    pub fn is_replaced(
        &self,
        segment: SegmentId,
        node: NodeId,
        generation: Generation,
        copied_by: Option<Epoch>,
    ) -> bool {
        let pending = copied_by.is_some_and(|by| by >= self.epoch);
        let sealed = self
            .chain
            .iter()
            .find(|one| one.id == segment && one.end.is_some());
        sealed.is_some_and(|one| one.generation_of(node) != Some(generation)) && !pending
    }

    /// Whether the chain names a node, under a generation, as a replica of a segment.
    #[must_use]
    pub fn is_replica(&self, segment: SegmentId, node: NodeId, generation: Generation) -> bool {
        let linked = self.chain.iter().find(|one| one.id == segment);
        linked.is_some_and(|one| one.generation_of(node) == Some(generation))
    }

    fn link(&mut self, segment: Segment) -> Result<(), Refused> {
        let end = self.sealed_end();
        self.link_at(segment, end)
    }

    fn link_at(&mut self, segment: Segment, end: Offset) -> Result<(), Refused> {
        let refuse = |what, found, expected| {
            Err(Refused::Link {
                segment: segment.id,
                what,
                found,
                expected,
            })
        };
        if segment.id.partition != self.id {
            return refuse("partition", segment.id.partition.0, self.id.0);
        }
        if segment.id.epoch != self.epoch {
            return refuse("epoch", u64::from(segment.id.epoch.0), u64::from(self.epoch.0));
        }
        if segment.id.seq <= self.last_seq {
            return refuse(
                "sequence",
                u64::from(segment.id.seq),
                u64::from(self.last_seq) + 1,
            );
        }
        if segment.base != end {
            return refuse("base", segment.base.0, end.0);
        }
        if let Some(last) = self.chain.last()
            && segment.token <= last.token
        {
            return refuse("token", segment.token.0, last.token.0 + 1);
        }
        self.last_seq = segment.id.seq;
        self.chain.push(segment);
        Ok(())
    }

    const fn alive(&self) -> Result<(), Refused> {
        if self.deleted {
            Err(Refused::Deleted(self.id))
        } else {
            Ok(())
        }
    }

    /// Marks the partition as deleted; the record stays as proof for those who trim (I16).
    #[must_use]
    pub fn delete(&self, op: u64) -> Self {
        Self {
            deleted: true,
            op,
            ..self.clone()
        }
    }
}
