//! Which segments may go, and when: the part of trim that knows no clock, store or disk.
//!
//! 1. [`Ledger::due`] says whose records to read now, [`Ledger::on_record`] takes what was read.
//! 2. A segment that its record lets go (I16) is *released*, for good: what a record once lets go it
//!    never needs again. It stays a while for readers that catch up, as long as there is room.
//! 3. [`Ledger::ready`] gives what goes now.
//!
//! A record that is missing or cannot be read releases nothing, ever: it is only counted and told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_meta::model::Partition;
use forebay_record::{Generation, NodeId, PartitionId, SegmentId};

use crate::index::HeldFacts;
use crate::pressure::Level;

/// While the node is calm a released segment stays so many times as long as configured.
const CALM_GRACES: u32 = 5;
/// A partition of which only one segment is held is looked at every so many rounds: that segment is
/// open, or the last one of a partition that nobody writes to.
const LONE_ROUNDS: u32 = 3;
/// Under pressure a round is so many times shorter.
const PRESSED_ROUNDS: u32 = 5;

/// What was last seen of a partition.
#[derive(Debug, Clone, Copy)]
struct Looked {
    held: usize,
    /// Of those held, the ones that the chain names as sealed.
    sealed: u64,
    at: Duration,
}

/// A segment that nobody needs any more.
#[derive(Debug, Clone, Copy)]
struct Released {
    since: Duration,
    bytes: u64,
    /// Somebody may still want to read it.
    useful: bool,
}

/// What a record says about a partition.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    Record(&'a Partition),
    /// There is none, or it cannot be read.
    Nothing,
}

/// Sums, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    pub segments: u64,
    pub frames: u64,
    pub bytes: u64,
    /// Sealed, and still in a chain.
    pub sealed: u64,
    /// Released, and still here.
    pub released: u64,
    pub released_bytes: u64,
    /// Partitions without a record.
    pub unrecorded: u64,
    pub unrecorded_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    grace: Duration,
    round: Duration,
    looked: BTreeMap<PartitionId, Looked>,
    released: BTreeMap<SegmentId, Released>,
    unrecorded: BTreeSet<PartitionId>,
    /// The node and its generation, as records name it.
    me: (NodeId, Generation),
    /// Copies that records name.
    adopted: BTreeSet<SegmentId>,
}

impl Ledger {
    /// Keeps what was released for `grace` where room is short; a record is read again after `round`.
    pub(crate) const fn new(me: (NodeId, Generation), grace: Duration, round: Duration) -> Self {
        Self {
            me,
            adopted: BTreeSet::new(),
            grace,
            round,
            looked: BTreeMap::new(),
            released: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
        }
    }

    /// Forgets what is not held any more, and says whose records must be read: those of `urged`
    /// partitions always. `held` rises.
    pub(crate) fn due(
        &mut self,
        held: &[HeldFacts],
        urged: &BTreeSet<PartitionId>,
        level: Level,
        now: Duration,
    ) -> Vec<PartitionId> {
        let ids: BTreeSet<SegmentId> = held.iter().map(|one| one.segment).collect();
        self.released.retain(|id, _| ids.contains(id));
        let partitions: BTreeSet<PartitionId> = held.iter().map(|one| one.segment.partition).collect();
        self.looked.retain(|id, _| partitions.contains(id));
        self.unrecorded.retain(|id| partitions.contains(id));
        let mut due = Vec::new();
        for of_one in by_partition(held) {
            let Some(first) = of_one.first() else { continue };
            let partition = first.segment.partition;
            if of_one.iter().all(|one| self.released.contains_key(&one.segment)) {
                continue;
            }
            let pause = match (level >= Level::Urged, of_one.len() > 1) {
                (false, false) => self.round * LONE_ROUNDS,
                (false, true) | (true, false) => self.round,
                (true, true) => self.round / PRESSED_ROUNDS,
            };
            let known = self.looked.get(&partition);
            let fresh = known
                .is_some_and(|looked| looked.held == of_one.len() && now.saturating_sub(looked.at) < pause);
            if !fresh || urged.contains(&partition) {
                due.push(partition);
            }
        }
        due
    }

    /// Takes what a partition's record says about the segments held of it; true where it is the first
    /// time that there is no record.
    pub(crate) fn on_record(
        &mut self,
        partition: PartitionId,
        seen: &Seen<'_>,
        held: &[HeldFacts],
        now: Duration,
    ) -> bool {
        let of_one = of_partition(held, partition);
        let mut looked = Looked {
            held: of_one.len(),
            sealed: 0,
            at: now,
        };
        let Seen::Record(record) = seen else {
            self.looked.insert(partition, looked);
            return self.unrecorded.insert(partition);
        };
        self.unrecorded.remove(&partition);
        let (node, generation) = self.me;
        for one in of_one {
            if record.is_replaced(one.segment, node, generation, one.copied_by) {
                // Other nodes have it.
                self.released.entry(one.segment).or_insert(Released {
                    since: now,
                    bytes: one.bytes,
                    useful: false,
                });
            } else if one.copied_by.is_some() && record.is_replica(one.segment, node, generation) {
                self.adopted.insert(one.segment);
            }
            // What was committed is covered for good; a record that does not know of it has gone back in
            // time, and proves nothing (I24).
            let forgotten = !record.deleted
                && one.committed > one.base
                && record.open().is_none()
                && record.sealed_end() < one.committed;
            if record.is_deletable(one.segment) && !forgotten {
                // What lies in the object store is worth keeping for a while; an orphan is not, nor is
                // what its topic took along.
                let useful = !record.deleted && one.base < record.offloaded_end() && one.tail > one.base;
                self.released.entry(one.segment).or_insert(Released {
                    since: now,
                    bytes: one.bytes,
                    useful,
                });
            }
            let sealed = record
                .chain
                .iter()
                .any(|linked| linked.id == one.segment && linked.end.is_some());
            looked.sealed += u64::from(sealed);
        }
        self.looked.insert(partition, looked);
        false
    }

    /// Copies that records name by now.
    pub(crate) fn take_adopted(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.adopted).into_iter().collect()
    }

    /// Whether a segment may go, now or later.
    pub(crate) fn is_released(&self, segment: SegmentId) -> bool {
        self.released.contains_key(&segment)
    }

    /// What goes now, the longest released first.
    pub(crate) fn ready(&self, level: Level, now: Duration) -> Vec<SegmentId> {
        let kept = match level {
            Level::Calm => self.grace * CALM_GRACES,
            Level::Early => self.grace,
            Level::Urged | Level::Closing | Level::Full => Duration::ZERO,
        };
        let mut ready: Vec<(Duration, SegmentId)> = self
            .released
            .iter()
            .filter(|(_, one)| !one.useful || now.saturating_sub(one.since) >= kept)
            .map(|(id, one)| (one.since, *id))
            .collect();
        ready.sort_unstable();
        ready.into_iter().map(|(_, id)| id).collect()
    }

    /// Sums over what is held.
    pub(crate) fn figures(&self, held: &[HeldFacts]) -> Figures {
        Figures {
            segments: held.len() as u64,
            frames: held.iter().map(|one| one.frames).sum(),
            bytes: held.iter().map(|one| one.bytes).sum(),
            sealed: self.looked.values().map(|looked| looked.sealed).sum(),
            released: self.released.len() as u64,
            released_bytes: self.released.values().map(|one| one.bytes).sum(),
            unrecorded: self.unrecorded.len() as u64,
            unrecorded_bytes: held
                .iter()
                .filter(|one| self.unrecorded.contains(&one.segment.partition))
                .map(|one| one.bytes)
                .sum(),
        }
    }
}

fn by_partition(held: &[HeldFacts]) -> impl Iterator<Item = &[HeldFacts]> {
    held.chunk_by(|one, next| one.segment.partition == next.segment.partition)
}

fn of_partition(held: &[HeldFacts], partition: PartitionId) -> &[HeldFacts] {
    let start = held.partition_point(|one| one.segment.partition < partition);
    let end = held.partition_point(|one| one.segment.partition <= partition);
    held.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use forebay_meta::model::{Run, Sealed, Segment};
    use forebay_record::{BrokerId, Epoch, Generation, NodeId, Offset, SessionId, Token};
    use uuid::Uuid;

    use super::*;

    const ME: (NodeId, Generation) = (NodeId(3), Generation(1));
    const GRACE: Duration = Duration::from_secs(120);
    const ROUND: Duration = Duration::from_secs(5);

    fn id(partition: u64, epoch: u32, seq: u32) -> SegmentId {
        SegmentId {
            partition: PartitionId(partition),
            epoch: Epoch(epoch),
            seq,
        }
    }

    fn held(segment: SegmentId, base: u64, tail: u64) -> HeldFacts {
        HeldFacts {
            segment,
            base: Offset(base),
            tail: Offset(tail),
            committed: Offset(base),
            bytes: 100,
            frames: 2,
            copied_by: None,
        }
    }

    fn linked(segment: SegmentId, token: u64, base: u64) -> Segment {
        Segment {
            id: segment,
            token: Token(token),
            base: Offset(base),
            end: None,
            ack_quorum: 1,
            replicas: vec![ME],
            bytes: 0,
            sealed_ms: 0,
        }
    }

    /// Segment 1 of 0..10 is offloaded, segment 2 of 10..20 sealed, segment 3 open.
    fn record() -> Partition {
        let record = Partition::new(PartitionId(7), Uuid::nil(), 0);
        let record = record.grant(BrokerId(1), SessionId(5), 1).unwrap();
        let record = record.open_first(linked(id(7, 1, 1), 10, 0), 2).unwrap();
        let sealed = Sealed::default();
        let record = record
            .seal(Offset(10), sealed, Some(linked(id(7, 1, 2), 11, 10)), 3)
            .unwrap();
        let record = record
            .seal(Offset(20), sealed, Some(linked(id(7, 1, 3), 12, 20)), 4)
            .unwrap();
        let run = Run {
            base: Offset(0),
            end: Offset(10),
            object: "d/1".to_owned(),
            position: 0,
            len: 1,
            crc32c: 0,
            max_timestamp_ms: 0,
        };
        record.offload(id(7, 1, 1), &[run], 5).unwrap()
    }

    fn all() -> Vec<HeldFacts> {
        vec![
            held(id(7, 1, 1), 0, 10),
            held(id(7, 1, 2), 10, 20),
            held(id(7, 1, 3), 20, 23),
        ]
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_was_offloaded_stays_as_long_as_there_is_room_and_no_longer() {
        let mut ledger = Ledger::new(ME, GRACE, ROUND);
        let none = BTreeSet::new();
        assert_eq!(ledger.due(&all(), &none, Level::Calm, secs(0)), [PartitionId(7)]);
        assert!(!ledger.on_record(PartitionId(7), &Seen::Record(&record()), &all(), secs(10)));
        let first = [id(7, 1, 1)];
        assert!(ledger.ready(Level::Calm, secs(609)).is_empty());
        assert_eq!(ledger.ready(Level::Calm, secs(610)), first);
        assert!(ledger.ready(Level::Early, secs(129)).is_empty());
        assert_eq!(ledger.ready(Level::Early, secs(130)), first);
        for level in [Level::Urged, Level::Closing, Level::Full] {
            assert_eq!(ledger.ready(level, secs(10)), first);
        }
        let figures = ledger.figures(&all());
        assert_eq!((figures.segments, figures.bytes, figures.frames), (3, 300, 6));
        assert_eq!(
            (figures.sealed, figures.released, figures.released_bytes),
            (1, 1, 100)
        );
    }

    #[test]
    fn a_second_look_does_not_begin_the_grace_anew() {
        let mut ledger = Ledger::new(ME, GRACE, ROUND);
        for now in [10, 100, 120] {
            ledger.on_record(PartitionId(7), &Seen::Record(&record()), &all(), secs(now));
        }
        assert_eq!(ledger.ready(Level::Early, secs(130)), [id(7, 1, 1)]);
    }

    #[test]
    fn orphans_empty_segments_and_deleted_partitions_go_at_once() {
        let record = record().grant(BrokerId(2), SessionId(8), 9).unwrap();
        let mut held_now = all();
        // Tombstone of what was offloaded, orphan of epoch 1, and the carry of epoch 2.
        held_now[0] = held(id(7, 1, 1), 0, 0);
        held_now.push(held(id(7, 1, 4), 20, 22));
        held_now.push(held(id(7, 2, 1), 20, 23));
        let mut ledger = Ledger::new(ME, GRACE, ROUND);
        ledger.on_record(PartitionId(7), &Seen::Record(&record), &held_now, secs(1));
        assert_eq!(ledger.ready(Level::Calm, secs(1)), [id(7, 1, 1), id(7, 1, 4)]);
        let deleted = record.delete(10);
        ledger.on_record(PartitionId(7), &Seen::Record(&deleted), &held_now, secs(2));
        assert_eq!(ledger.ready(Level::Calm, secs(2)).len(), held_now.len());
    }

    #[test]
    fn a_missing_record_releases_nothing_and_is_told_once() {
        let mut ledger = Ledger::new(ME, GRACE, ROUND);
        assert!(ledger.on_record(PartitionId(7), &Seen::Nothing, &all(), secs(1)));
        assert!(!ledger.on_record(PartitionId(7), &Seen::Nothing, &all(), secs(9)));
        assert!(ledger.ready(Level::Full, secs(9_999)).is_empty());
        assert_eq!(ledger.figures(&all()).unrecorded, 1);
        ledger.due(&[], &BTreeSet::new(), Level::Calm, secs(10));
        assert_eq!(ledger.figures(&[]), Figures::default());
    }

    #[test]
    fn records_are_read_again_after_a_round_and_lone_segments_seldom() {
        let lone = held(id(9, 1, 1), 0, 3);
        let mut held_now = all();
        held_now.push(lone);
        let mut ledger = Ledger::new(ME, GRACE, ROUND);
        let mut urged = BTreeSet::new();
        assert_eq!(ledger.due(&held_now, &urged, Level::Calm, secs(0)).len(), 2);
        let mut other = Partition::new(PartitionId(9), Uuid::nil(), 0);
        other = other.grant(BrokerId(1), SessionId(5), 1).unwrap();
        other = other.open_first(linked(lone.segment, 10, 0), 2).unwrap();
        ledger.on_record(PartitionId(7), &Seen::Record(&record()), &held_now, secs(0));
        ledger.on_record(PartitionId(9), &Seen::Record(&other), &held_now, secs(0));
        let mut due = |held: &[HeldFacts], level, now| ledger.due(held, &urged, level, secs(now));
        assert!(due(&held_now, Level::Calm, 4).is_empty());
        assert_eq!(due(&held_now, Level::Calm, 5), [PartitionId(7)]);
        assert_eq!(due(&held_now, Level::Urged, 1), [PartitionId(7)]);
        assert_eq!(due(&held_now, Level::Urged, 5).len(), 2);
        assert_eq!(due(&held_now, Level::Calm, 15).len(), 2);
        urged.insert(PartitionId(9));
        assert_eq!(
            ledger.due(&held_now, &urged, Level::Urged, secs(0)),
            [PartitionId(9)]
        );
        urged.clear();
        let mut due = |held: &[HeldFacts], level, now| ledger.due(held, &urged, level, secs(now));
        // One more segment makes it due at once.
        held_now.push(held(id(9, 1, 2), 3, 4));
        assert_eq!(due(&held_now, Level::Calm, 1), [PartitionId(9)]);
        // Nothing is read for what is released already.
        let released = [all()[0]];
        assert!(due(&released, Level::Calm, 999).is_empty());
    }

    #[test]
    fn a_replaced_replica_goes_at_once_and_a_copy_stays_until_it_cannot_be_named() {
        let (copied, elsewhere) = (record().epoch, (NodeId(9), Generation(1)));
        let ready = |me, copied_by| {
            let mut held_now = all();
            held_now[1].copied_by = copied_by;
            let mut ledger = Ledger::new(me, GRACE, ROUND);
            ledger.on_record(PartitionId(7), &Seen::Record(&record()), &held_now, secs(1));
            let goes = ledger.ready(Level::Calm, secs(1)).contains(&id(7, 1, 2));
            (goes, ledger.take_adopted())
        };
        assert_eq!(ready(ME, None), (false, vec![]));
        assert_eq!(ready(elsewhere, None), (true, vec![]));
        assert_eq!(ready((ME.0, Generation(2)), None), (true, vec![]));
        assert_eq!(ready(elsewhere, Some(copied)), (false, vec![]));
        assert_eq!(ready(elsewhere, Some(Epoch(copied.0 - 1))), (true, vec![]));
        assert_eq!(ready(ME, Some(copied)), (false, vec![id(7, 1, 2)]));
    }
}
