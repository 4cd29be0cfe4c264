//! One partition's record: who owns it, and the chain of segments not offloaded yet.

use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, PartitionId, SegmentId, SessionId, Token};
use forebay_runtime::mutant::{self, Mutant};
use uuid::Uuid;

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

    /// Where the log goes on from an offset: behind a declared gap that holds it, else there.
    #[must_use]
    pub fn after_gap(&self, offset: Offset) -> Offset {
        self.gaps.iter().fold(offset, |at, gap| {
            if gap.base <= at && at < gap.end {
                gap.end
            } else {
                at
            }
        })
    }

    /// Declares offsets lost. Gaps that touch become one.
    pub fn declare(&mut self, gap: Gap) {
        if gap.end <= gap.base {
            return;
        }
        self.gaps.push(gap);
        self.gaps.sort_by_key(|gap| (gap.base, gap.end));
        let mut merged: Vec<Gap> = Vec::with_capacity(self.gaps.len());
        for gap in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if gap.base <= last.end && (last.reason == gap.reason || gap.base < last.end) => {
                    last.end = last.end.max(gap.end);
                }
                _ => merged.push(gap),
            }
        }
        self.gaps = merged;
    }

    /// What of `[base, end)` was not declared lost, in order.
    #[must_use]
    pub fn pieces(&self, base: Offset, end: Offset) -> Vec<(Offset, Offset)> {
        let mut pieces = Vec::new();
        let mut from = base;
        for gap in self.gaps.iter().filter(|gap| gap.end > base && gap.base < end) {
            if gap.base > from {
                pieces.push((from, gap.base));
            }
            from = from.max(gap.end);
        }
        if from < end {
            pieces.push((from, end));
        }
        pieces
    }

    /// Declares what no copy of a sealed segment has any more. A segment of which nothing is left
    /// leaves the chain.
    ///
    /// # Errors
    /// Where the segment is not in the chain or open, or a range is empty or not of the segment.
    pub fn declare_lost(
        &self,
        segment: SegmentId,
        ranges: &[(Offset, Offset)],
        reason: &str,
        op: u64,
    ) -> Result<Self, Refused> {
        self.alive()?;
        let mut next = Self { op, ..self.clone() };
        let found = next.chain.iter().position(|one| one.id == segment);
        let sealed = found.and_then(|at| Some((at, next.chain.get(at)?.base, next.chain.get(at)?.end?)));
        let Some((at, base, end)) = sealed else {
            return Err(Refused::Open(self.id, "no such sealed segment"));
        };
        for (from, until) in ranges.iter().copied() {
            if from < base || until > end || from >= until {
                return Err(Refused::End {
                    segment,
                    base: from,
                    end: until,
                });
            }
            next.declare(Gap {
                base: from,
                end: until,
                reason: reason.to_owned(),
            });
        }
        if next.pieces(base, end).is_empty() {
            next.chain.remove(at);
        }
        Ok(next)
    }

    /// Takes replicas of a sealed segment whose copy is not to be used out of it: under generation 0,
    /// which no node ever has, they count as lost and are replaced.
    pub fn disown(&mut self, segment: SegmentId, is_disowned: impl Fn(NodeId) -> bool) {
        let found = self
            .chain
            .iter_mut()
            .find(|one| one.id == segment && one.end.is_some());
        for (node, generation) in found.into_iter().flat_map(|one| &mut one.replicas) {
            if is_disowned(*node) {
                *generation = Generation(0);
            }
        }
    }

    /// Gives up what nobody can say of the open segment, or of the end of the log: the segment ends
    /// at `end`, everything from there to `next` is declared lost, and the log goes on at `next`,
    /// which must lie above every offset that anybody may have seen.
    ///
    /// # Errors
    /// Where no segment is open, or the offsets do not rise.
    pub fn force_seal(
        &self,
        end: Offset,
        next: Offset,
        sealed: Sealed,
        reason: &str,
        op: u64,
    ) -> Result<Self, Refused> {
        if let Some(open) = self.open()
            && next <= end
        {
            return Err(Refused::End {
                segment: open.id,
                base: end,
                end: next,
            });
        }
        let mut forced = self.seal(end, sealed, None, op)?;
        forced.declare(Gap {
            base: end,
            end: next,
            reason: reason.to_owned(),
        });
        Ok(forced)
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

    /// The first range of the offloaded past that neither is listed nor was declared lost: the record
    /// contradicts itself there. The manifest counts as whole.
    #[must_use]
    pub fn undeclared(&self) -> Option<(Offset, Offset)> {
        let start = self.manifest.as_ref().map(|manifest| manifest.end);
        let mut at = start.or_else(|| self.recent.first().map(|run| run.base))?;
        for run in &self.recent {
            if let Some(range) = self.pieces(at, run.base).first() {
                return Some(*range);
            }
            at = run.end;
        }
        None
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn segment(epoch: u32, seq: u32, token: u64, base: u64) -> Segment {
        Segment {
            id: SegmentId {
                partition: PartitionId(1),
                epoch: Epoch(epoch),
                seq,
            },
            token: Token(token),
            base: Offset(base),
            end: None,
            ack_quorum: 2,
            replicas: (1..=3).map(|node| (NodeId(node), Generation(1))).collect(),
            bytes: 0,
            sealed_ms: 0,
        }
    }

    fn sealed(bytes: u64) -> Sealed {
        Sealed { bytes, at_ms: 0 }
    }

    fn granted() -> Partition {
        Partition::new(PartitionId(1), Uuid::nil(), 0)
            .grant(BrokerId(1), SessionId(5), 1)
            .unwrap()
    }

    #[test]
    fn a_chain_grows_without_gaps_and_tokens_rise() {
        let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
        assert!(
            record.open_first(segment(1, 2, 11, 0), 3).is_err(),
            "one segment is open already"
        );
        assert!(
            record
                .seal(Offset(7), sealed(0), Some(segment(1, 2, 11, 8)), 3)
                .is_err(),
            "gap"
        );
        assert!(
            record
                .seal(Offset(7), sealed(0), Some(segment(1, 2, 10, 7)), 3)
                .is_err(),
            "token does not rise"
        );
        assert!(
            record
                .seal(Offset(7), sealed(0), Some(segment(2, 2, 11, 7)), 3)
                .is_err(),
            "another epoch"
        );
        let rolled = record
            .seal(Offset(7), sealed(99), Some(segment(1, 2, 11, 7)), 3)
            .unwrap();
        assert_eq!(rolled.chain.len(), 2);
        assert_eq!(rolled.chain[0].end, Some(Offset(7)));
        assert_eq!(rolled.last_seq, 2);
    }

    #[test]
    fn an_empty_open_segment_is_dropped_not_sealed() {
        let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
        let next = record
            .seal(Offset(0), sealed(0), Some(segment(1, 2, 11, 0)), 3)
            .unwrap();
        assert_eq!(next.chain.len(), 1);
        assert_eq!(next.open().unwrap().id.seq, 2);
    }

    #[test]
    fn a_grant_restarts_the_sequence_and_keeps_the_chain() {
        let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
        let next = record.grant(BrokerId(2), SessionId(9), 3).unwrap();
        assert_eq!((next.epoch, next.last_seq, next.chain.len()), (Epoch(2), 0, 1));
        assert!(record.delete(4).grant(BrokerId(2), SessionId(9), 5).is_err());
    }

    #[test]
    fn two_of_three_close_what_two_of_three_commit() {
        let mut one = segment(1, 1, 1, 0);
        assert_eq!(one.close_quorum(), 2);
        one.replicas.truncate(1);
        one.ack_quorum = 1;
        assert_eq!(one.close_quorum(), 1);
    }

    fn id(epoch: u32, seq: u32) -> SegmentId {
        segment(epoch, seq, 0, 0).id
    }

    #[test]
    fn a_segment_of_the_chain_is_never_deletable() {
        let record = rolled_twice();
        for one in &record.chain {
            assert!(!record.is_deletable(one.id), "{}", one.id);
        }
        // A later grant changes nothing about that.
        let record = record.grant(BrokerId(2), SessionId(9), 9).unwrap();
        assert!(record.chain.iter().all(|one| !record.is_deletable(one.id)));
    }

    #[test]
    fn the_copy_of_a_recovery_in_progress_is_not_deletable() {
        // Epoch 2 was granted and has linked nothing: its carry is in nobody's chain yet.
        let record = rolled_twice().grant(BrokerId(2), SessionId(9), 9).unwrap();
        assert_eq!((record.epoch, record.last_seq), (Epoch(2), 0));
        assert!(!record.is_deletable(id(2, 1)));
        // Nor is what a broker prepares of which this record knows nothing.
        assert!(!record.is_deletable(id(3, 1)));
        // And the next segment of the epoch that linked the newest one.
        assert!(!rolled_twice().is_deletable(id(1, 4)));
    }

    #[test]
    fn what_left_the_chain_and_what_can_never_enter_it_is_deletable() {
        let record = rolled_twice();
        let first = record.chain[0].id;
        let offloaded = record.offload(first, &[run(0, 7)], 5).unwrap();
        assert!(offloaded.is_deletable(first));
        assert!(!offloaded.is_deletable(record.chain[1].id));
        // A deposed owner's orphan: an older epoch, and a higher sequence than this one's.
        let granted = record.grant(BrokerId(2), SessionId(9), 9).unwrap();
        assert!(granted.is_deletable(id(1, 77)));
        // One that this epoch gave up before it linked a later one.
        let dropped = granted_orphan();
        assert!(dropped.is_deletable(id(1, 1)) && !dropped.is_deletable(id(1, 2)));
    }

    /// Epoch 1 prepared segment 1, gave it up, and linked segment 2.
    fn granted_orphan() -> Partition {
        granted().open_first(segment(1, 2, 10, 0), 2).unwrap()
    }

    #[test]
    fn of_a_deleted_partition_everything_is_deletable_and_of_another_nothing() {
        let record = rolled_twice();
        let deleted = record.delete(9);
        assert!(deleted.is_deletable(id(1, 1)) && deleted.is_deletable(id(7, 7)));
        let foreign = SegmentId {
            partition: PartitionId(2),
            ..id(1, 1)
        };
        assert!(!deleted.is_deletable(foreign) && !record.is_deletable(foreign));
    }

    #[test]
    fn the_offloaded_part_ends_where_the_chain_begins() {
        let record = rolled_twice();
        assert_eq!(record.offloaded_end(), Offset(0));
        let record = record.offload(id(1, 1), &[run(0, 7)], 5).unwrap();
        assert_eq!(record.offloaded_end(), Offset(7));
        let record = record.seal(Offset(12), sealed(0), None, 6).unwrap();
        let record = record.offload(id(1, 2), &[run(7, 9)], 7).unwrap();
        let record = record.offload(id(1, 3), &[run(9, 12)], 8).unwrap();
        assert_eq!((record.chain.len(), record.offloaded_end()), (0, Offset(12)));
    }

    fn run(base: u64, end: u64) -> Run {
        Run {
            base: Offset(base),
            end: Offset(end),
            object: format!("d/{base}"),
            position: 0,
            len: end - base,
            crc32c: 0,
            max_timestamp_ms: 0,
        }
    }

    fn manifest(generation: u64, end: u64) -> Option<ManifestRef> {
        Some(ManifestRef {
            object: format!("m/{generation}"),
            generation,
            end: Offset(end),
            len: 1,
            crc32c: 0,
        })
    }

    /// Sealed segments 0..7 and 7..9, an open one from 9.
    fn rolled_twice() -> Partition {
        let record = granted().open_first(segment(1, 1, 10, 0), 2).unwrap();
        let record = record
            .seal(Offset(7), sealed(70), Some(segment(1, 2, 11, 7)), 3)
            .unwrap();
        record
            .seal(Offset(9), sealed(20), Some(segment(1, 3, 12, 9)), 4)
            .unwrap()
    }

    #[test]
    fn only_the_oldest_sealed_segment_is_offloaded_and_only_whole() {
        let record = rolled_twice();
        let (first, second, open) = (record.chain[0].id, record.chain[1].id, record.chain[2].id);
        assert!(
            record.offload(second, &[run(7, 9)], 5).is_err(),
            "an older one is left"
        );
        assert!(record.offload(first, &[run(0, 6)], 5).is_err(), "not all of it");
        assert!(record.offload(first, &[run(1, 7)], 5).is_err(), "not all of it");
        let record = record.offload(first, &[run(0, 7)], 5).unwrap();
        assert_eq!((record.chain.len(), record.recent.len()), (2, 1));
        let record = record.offload(second, &[run(7, 9)], 6).unwrap();
        assert!(record.offload(open, &[run(9, 12)], 7).is_err(), "it is open");
        assert_eq!(record.sealed_end(), Offset(9));
    }

    #[test]
    fn what_is_lost_of_a_sealed_segment_is_a_gap_and_the_rest_is_offloaded_in_pieces() {
        let record = rolled_twice();
        let (first, second) = (record.chain[0].id, record.chain[1].id);
        let lost = |record: &Partition, id, ranges: &[(u64, u64)]| {
            let ranges: Vec<_> = ranges.iter().map(|(a, b)| (Offset(*a), Offset(*b))).collect();
            record.declare_lost(id, &ranges, "lost", 5)
        };
        let holed = lost(&record, first, &[(2, 3), (6, 7)]).unwrap();
        assert_eq!(holed.chain.len(), 3);
        assert_eq!(Partition::decode(&holed.encode()).unwrap(), holed);
        assert_eq!(
            holed.pieces(Offset(0), Offset(7)),
            [(Offset(0), Offset(2)), (Offset(3), Offset(6))]
        );
        assert!(holed.offload(first, &[run(0, 7)], 6).is_err());
        let off = holed.offload(first, &[run(0, 2), run(3, 6)], 6).unwrap();
        assert_eq!(
            (off.recent.len(), off.chain.len(), off.sealed_end()),
            (2, 2, Offset(9))
        );
        // What is lost of both sides of a border is one gap, and the chain stays readable.
        let both = lost(&lost(&record, first, &[(5, 7)]).unwrap(), second, &[(7, 8)]).unwrap();
        assert_eq!(both.gaps.len(), 1);
        assert_eq!(Partition::decode(&both.encode()).unwrap(), both);
        // A middle segment without any copy leaves the chain, and the oldest one goes on.
        let gone = lost(&record, second, &[(7, 9)]).unwrap();
        assert_eq!((gone.chain.len(), gone.after_gap(Offset(7))), (2, Offset(9)));
        assert!(gone.is_deletable(second));
        assert_eq!(Partition::decode(&gone.encode()).unwrap(), gone);
        let off = gone.offload(first, &[run(0, 7)], 6).unwrap();
        let folded = off.fold(manifest(1, 7), Offset(0), 7).unwrap();
        assert!(folded.recent.is_empty());
        // So does the newest one.
        let end = record.seal(Offset(12), sealed(0), None, 6).unwrap();
        let end = lost(&end, end.chain[2].id, &[(9, 12)]).unwrap();
        assert_eq!((end.chain.len(), end.sealed_end()), (2, Offset(12)));
        for (id, ranges) in [
            (record.chain[2].id, (9, 10)),
            (first, (6, 8)),
            (first, (3, 3)),
            (SegmentId { seq: 9, ..first }, (0, 1)),
        ] {
            assert!(lost(&record, id, &[ranges]).is_err(), "{id} {ranges:?}");
        }
    }

    #[test]
    fn a_full_list_of_ranges_holds_offload_back_until_it_is_folded() {
        let mut record = rolled_twice();
        record.recent = (0..RECENT_MAX as u64).map(|_| run(0, 0)).collect();
        let first = record.chain[0].id;
        assert!(record.offload(first, &[run(0, 7)], 5).is_err());
    }

    #[test]
    fn a_fold_takes_ranges_into_the_manifest_and_never_goes_back() {
        let record = rolled_twice();
        let (first, second) = (record.chain[0].id, record.chain[1].id);
        let record = record.offload(first, &[run(0, 7)], 5).unwrap();
        let record = record.offload(second, &[run(7, 9)], 6).unwrap();
        assert!(
            record.fold(manifest(1, 8), Offset(0), 7).is_err(),
            "inside a range"
        );
        assert!(
            record.fold(manifest(1, 10), Offset(0), 7).is_err(),
            "beyond all ranges"
        );
        let folded = record.fold(manifest(1, 7), Offset(0), 7).unwrap();
        assert_eq!((folded.recent.len(), folded.recent[0].base), (1, Offset(7)));
        assert!(folded.fold(manifest(1, 9), Offset(0), 8).is_err(), "generation");
        let folded = folded.fold(manifest(2, 9), Offset(3), 8).unwrap();
        assert_eq!((folded.recent.len(), folded.log_start), (0, Offset(3)));
        assert!(
            folded.fold(manifest(3, 9), Offset(2), 9).is_err(),
            "log start falls"
        );
        assert!(
            folded.fold(None, Offset(3), 9).is_err(),
            "the manifest still lists what is kept"
        );
        assert!(
            folded.fold(manifest(3, 9), Offset(10), 9).is_err(),
            "log start in the open segment"
        );
    }

    #[test]
    fn retention_drops_what_ends_below_the_log_start() {
        let record = rolled_twice();
        let kept = record.fold(None, Offset(7), 5).unwrap();
        assert_eq!((kept.chain.len(), kept.log_start), (2, Offset(7)));
        let all = kept.fold(None, Offset(9), 6).unwrap();
        assert_eq!((all.chain.len(), all.sealed_end()), (1, Offset(9)));
    }

    #[test]
    fn a_replica_of_a_sealed_segment_is_replaced_and_nothing_else_changes() {
        let (lost, new) = ((NodeId(2), Generation(1)), (NodeId(4), Generation(3)));
        let record = granted()
            .open_first(segment(1, 1, 10, 0), 2)
            .unwrap()
            .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
            .unwrap();
        let id = record.chain[0].id;
        let next = record.replace_replica(id, lost, new, 4).unwrap();
        let mut expected = record.clone();
        expected.op = 4;
        expected.chain[0].replicas[1] = new;
        assert_eq!(next, expected);
        assert!(next.replace_replica(id, lost, new, 5).is_err(), "done already");
        // The same node under another generation lost everything it had.
        let reborn = (NodeId(2), Generation(2));
        assert!(record.replace_replica(id, lost, reborn, 4).is_ok());
    }

    #[test]
    fn open_segments_strangers_and_doubled_nodes_are_not_replaced() {
        let (lost, new) = ((NodeId(2), Generation(1)), (NodeId(4), Generation(1)));
        let record = granted()
            .open_first(segment(1, 1, 10, 0), 2)
            .unwrap()
            .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
            .unwrap();
        let (first, open) = (record.chain[0].id, record.chain[1].id);
        for (segment, lost, new) in [
            (open, lost, new),
            (first, (NodeId(2), Generation(2)), new),
            (first, lost, (NodeId(3), Generation(9))),
            (SegmentId { seq: 9, ..first }, lost, new),
        ] {
            let refused = record.replace_replica(segment, lost, new, 4);
            assert!(matches!(refused, Err(Refused::Replica { .. })), "{refused:?}");
        }
        let deleted = record.delete(5);
        assert!(deleted.replace_replica(first, lost, new, 6).is_err());
    }

    #[test]
    fn a_replaced_node_gives_up_and_a_copy_that_may_be_linked_stays() {
        let record = granted()
            .open_first(segment(1, 1, 10, 0), 2)
            .unwrap()
            .seal(Offset(7), sealed(5), Some(segment(1, 2, 11, 7)), 3)
            .unwrap();
        let (id, open) = (record.chain[0].id, record.chain[1].id);
        let one = Generation(1);
        assert!(!record.is_replaced(id, NodeId(2), one, None), "a replica");
        assert!(record.is_replaced(id, NodeId(2), Generation(2), None));
        assert!(record.is_replaced(id, NodeId(4), one, None));
        assert!(!record.is_replaced(open, NodeId(4), one, None), "open");
        assert!(!record.is_replaced(id, NodeId(4), one, Some(record.epoch)));
        let later = record.grant(BrokerId(2), SessionId(6), 4).unwrap();
        assert!(later.is_replaced(id, NodeId(4), one, Some(record.epoch)));
        assert!(!record.is_replaced(SegmentId { seq: 9, ..id }, NodeId(4), one, None));
    }
}
