//! Where the durable frames are, shared between the journal thread that adds them and readers.
//!
//! One entry of 48 bytes for each frame: a replica's limit on frames bounds the memory, and at
//! 64 KiB a frame an index of 8 Mi entries covers half a terabyte. An entry is added only after
//! the fsync that covers its frame, so a reader never sees bytes that a crash could take back.
//! A trimmed segment leaves only after its trim is durable, and a journal file is free once no entry
//! lies in it. Locks are held to copy entries, never over I/O.
//!
//! The entry of a frame that is found to be damaged leaves at once, and its segment is in limbo from
//! that moment: before the mark is durable, and until all that was lost is here again.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use forebay_record::frame::{FrameKind, HEADER_LEN};
use forebay_record::{Epoch, Offset, PartitionId, SegmentId};
use parking_lot::RwLock;

use crate::content::CheckedFrame;
use crate::journal::format::SegmentState;
use crate::replica::Counts;
use crate::replica::rebuild::Held;

/// Where a frame is, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First offset.
    pub first: Offset,
    /// End offset, exclusive.
    pub end: Offset,
    /// Position of the frame's header in the journal.
    pub position: u64,
    /// Largest timestamp of its batches, milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// Length of the payload.
    pub payload_len: u32,
    /// Number in the segment.
    pub number: u32,
    /// What it says.
    pub kind: FrameKind,
}

impl Entry {
    /// The entry of a frame that was written at a position.
    #[must_use]
    pub const fn new(frame: &CheckedFrame, position: u64) -> Self {
        let header = frame.header();
        Self {
            first: header.first,
            end: header.end,
            position,
            max_timestamp_ms: frame.max_timestamp_ms(),
            payload_len: header.payload_len,
            number: header.number,
            kind: header.kind,
        }
    }

    /// Length of the frame.
    #[must_use]
    pub const fn frame_len(&self) -> u64 {
        HEADER_LEN as u64 + self.payload_len as u64
    }
}

/// Puts an entry in its place by number, instead of one that has the same. Returns that.
pub(crate) fn place(entries: &mut Vec<Entry>, entry: Entry) -> Option<Entry> {
    if entries.last().is_none_or(|last| last.number < entry.number) {
        entries.push(entry);
        return None;
    }
    match entries.binary_search_by_key(&entry.number, |one| one.number) {
        Ok(at) => entries.get_mut(at).map(|held| std::mem::replace(held, entry)),
        Err(at) => {
            entries.insert(at, entry);
            None
        }
    }
}

/// Whether positions rise with numbers: always, but where damaged frames were replaced.
fn is_in_order(entries: &[Entry]) -> bool {
    entries.is_sorted_by_key(|entry| entry.position)
}

/// The durable part of a segment.
#[derive(Debug)]
pub struct SegmentIndex {
    base: Offset,
    tail: AtomicU64,
    committed: AtomicU64,
    bytes: AtomicU64,
    fenced: AtomicBool,
    limbo: AtomicBool,
    /// A frame was found to be damaged, and the journal thread has not marked that yet.
    damaged: AtomicBool,
    /// Positions do not rise with numbers.
    scattered: AtomicBool,
    /// One more than the epoch by which it was copied, 0 where it is no copy.
    copied_by: AtomicU64,
    /// The copy is being made.
    copying: AtomicBool,
    entries: RwLock<Vec<Entry>>,
}

/// What is held of a segment, for whoever decides whether it is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldFacts {
    /// The segment.
    pub segment: SegmentId,
    /// Its first offset.
    pub base: Offset,
    /// First offset not held.
    pub tail: Offset,
    /// Highest committed offset that its owner stated.
    pub committed: Offset,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Its frames.
    pub frames: u64,
    /// Epoch of the owner that copies it here, or has copied all of it, and may make a record name
    /// it. None where it is no copy, or one that was given up.
    pub copied_by: Option<Epoch>,
}

/// Which journal files are in use, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// For each range asked for, whether a frame lies in it.
    pub used: Vec<bool>,
    /// Segments with the first of the ranges that they use; those that use none are left out.
    pub first: Vec<(SegmentId, usize)>,
}

impl SegmentIndex {
    fn new(state: &SegmentState, entries: Vec<Entry>) -> Self {
        Self {
            base: state.base,
            tail: AtomicU64::new(state.tail.0),
            committed: AtomicU64::new(state.committed.0),
            bytes: AtomicU64::new(entries.iter().map(Entry::frame_len).sum()),
            fenced: AtomicBool::new(state.fenced.is_some()),
            limbo: AtomicBool::new(state.limbo),
            damaged: AtomicBool::new(false),
            scattered: AtomicBool::new(!is_in_order(&entries)),
            copied_by: AtomicU64::new(copied_by(state)),
            copying: AtomicBool::new(false),
            entries: RwLock::new(entries),
        }
    }

    /// Its first offset.
    pub const fn base(&self) -> Offset {
        self.base
    }

    /// First offset that is not durable here. In limbo, where good frames may follow a hole, the
    /// end of the last.
    pub fn tail(&self) -> Offset {
        let tail = Offset(self.tail.load(Ordering::Acquire));
        if !self.is_limbo() {
            return tail;
        }
        self.entries.read().last().map_or(tail, |last| last.end.max(tail))
    }

    /// Highest committed offset that the owner stated.
    pub fn committed(&self) -> Offset {
        Offset(self.committed.load(Ordering::Acquire))
    }

    /// Bytes of its frames.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Durably closed.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Bytes may be missing.
    pub fn is_limbo(&self) -> bool {
        self.limbo.load(Ordering::Acquire) || self.damaged.load(Ordering::Acquire)
    }

    /// In limbo: what is missing between the frames that are here, and before the first, as far as
    /// these tell; each first and end offset. At most `max`.
    pub fn holes(&self, max: usize) -> Vec<(Offset, Offset)> {
        if !self.is_limbo() {
            return Vec::new();
        }
        let entries = self.entries.read();
        let mut holes = Vec::new();
        let (mut number, mut next) = (0, self.base);
        for entry in entries.iter() {
            if entry.number != number {
                holes.push((next, entry.first));
            }
            (number, next) = (entry.number.saturating_add(1), entry.end);
            if holes.len() >= max {
                break;
            }
        }
        holes
    }

    /// Takes out the entry of a frame that is damaged; false where it is not held any more.
    fn damage(&self, bad: &Entry) -> bool {
        let mut entries = self.entries.write();
        let at = entries.binary_search_by_key(&bad.number, |entry| entry.number);
        let Some(at) = at.ok().filter(|at| entries.get(*at) == Some(bad)) else {
            return false;
        };
        entries.remove(at);
        self.damaged.store(true, Ordering::Release);
        self.bytes.fetch_sub(bad.frame_len(), Ordering::Relaxed);
        true
    }

    /// Adds durable frames. What comes out of limbo ends where its state says: what may lie beyond is
    /// of no use to anybody.
    fn add(&self, state: &SegmentState, new: &[Entry]) {
        let mut entries = self.entries.write();
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        for entry in new {
            let after_last = entries
                .last()
                .is_none_or(|last| last.number < entry.number && last.position < entry.position);
            if !after_last {
                self.scattered.store(true, Ordering::Release);
            }
            let replaced = place(&mut entries, *entry).map_or(0, |replaced| replaced.frame_len());
            bytes = (bytes + entry.frame_len()).saturating_sub(replaced);
        }
        if self.limbo.load(Ordering::Acquire) && !state.limbo {
            let kept = entries.partition_point(|entry| entry.number < state.frames);
            let dropped: u64 = entries.drain(kept..).map(|entry| entry.frame_len()).sum();
            bytes = bytes.saturating_sub(dropped);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Calls for each entry in a range of positions.
    fn for_each_within(&self, range: &Range<u64>, mut take: impl FnMut(&Entry)) {
        let entries = self.entries.read();
        let inside = |entry: &&Entry| range.contains(&entry.position);
        if self.scattered.load(Ordering::Acquire) {
            entries.iter().filter(inside).for_each(take);
            return;
        }
        let start = entries.partition_point(|entry| entry.position < range.start);
        let rest = entries.get(start..).unwrap_or_default();
        for entry in rest.iter().take_while(inside) {
            take(entry);
        }
    }

    /// Epoch of the owner whose copy it is, where that may still be named by a record.
    fn copied_by(&self) -> Option<Epoch> {
        let by = self.copied_by.load(Ordering::Acquire).checked_sub(1)?;
        let kept = !self.is_limbo() || self.copying.load(Ordering::Acquire);
        kept.then_some(Epoch(u32::try_from(by).unwrap_or(u32::MAX)))
    }

    /// The entries from frame `number` on, up to the sealed end, as long as `take` wants more.
    pub fn entries_of(&self, number: u32, until: Offset, mut take: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let entries = self.entries.read();
        let start = entries.partition_point(|entry| entry.number < number);
        entries
            .iter()
            .skip(start)
            .take_while(|entry| entry.end <= until && take(entry))
            .copied()
            .collect()
    }

    /// Its oldest frame here.
    pub fn first(&self) -> Option<Entry> {
        self.entries.read().first().copied()
    }

    /// Whether a frame is held, and where the entry says.
    pub fn has(&self, wanted: &Entry) -> bool {
        let entries = self.entries.read();
        let at = entries.binary_search_by_key(&wanted.number, |entry| entry.number);
        at.is_ok_and(|at| entries.get(at) == Some(wanted))
    }

    /// The entries from the frame that holds `from`, or the next after it, up to `until`, as long
    /// as `take` wants more.
    pub fn entries_from(
        &self,
        from: Offset,
        until: Offset,
        mut take: impl FnMut(&Entry) -> bool,
    ) -> Vec<Entry> {
        let entries = self.entries.read();
        let start = entries.partition_point(|entry| entry.end <= from);
        entries
            .iter()
            .skip(start)
            .take_while(|entry| entry.first < until && take(entry))
            .copied()
            .collect()
    }

    /// The last OPEN or STATE frame that lies at or below `until`, and all entries after it that
    /// begin below.
    pub fn entries_from_state(&self, until: Offset, entries_max: usize) -> Vec<Entry> {
        let entries = self.entries.read();
        let end = entries.partition_point(|entry| entry.first <= until);
        let below = entries.get(..end).unwrap_or_default();
        let state = below
            .iter()
            .rposition(|entry| matches!(entry.kind, FrameKind::Open | FrameKind::State));
        let Some(state) = state else { return Vec::new() };
        below.iter().skip(state).take(entries_max).copied().collect()
    }
}

/// All segments.
#[derive(Debug, Default)]
pub struct Index {
    segments: RwLock<BTreeMap<SegmentId, Arc<SegmentIndex>>>,
}

impl Index {
    /// The index of what a journal was found to hold.
    pub fn restore(held: Held) -> Self {
        let segments = held
            .segments
            .into_iter()
            .map(|(id, found)| (id, Arc::new(SegmentIndex::new(&found.state, found.entries))))
            .collect();
        Self {
            segments: RwLock::new(segments),
        }
    }

    /// A segment.
    pub fn get(&self, segment: SegmentId) -> Option<Arc<SegmentIndex>> {
        self.segments.read().get(&segment).cloned()
    }

    /// Durable segments by standing.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for segment in self.segments.read().values() {
            match (segment.is_limbo(), segment.is_fenced()) {
                (true, _) => counts.limbo += 1,
                (false, true) => counts.fenced += 1,
                (false, false) => counts.open += 1,
            }
        }
        counts
    }

    /// Segments after one, rising.
    pub fn after(&self, after: Option<SegmentId>, max: usize) -> Vec<(SegmentId, Arc<SegmentIndex>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let segments = self.segments.read();
        let range = segments.range((from, Bound::Unbounded));
        range
            .take(max)
            .map(|(id, segment)| (*id, Arc::clone(segment)))
            .collect()
    }

    /// All segments, rising.
    pub fn held(&self) -> Vec<HeldFacts> {
        let facts = |(id, segment): (&SegmentId, &Arc<SegmentIndex>)| HeldFacts {
            segment: *id,
            base: segment.base,
            tail: segment.tail(),
            committed: segment.committed(),
            bytes: segment.bytes.load(Ordering::Relaxed),
            frames: segment.entries.read().len() as u64,
            copied_by: segment.copied_by(),
        };
        self.segments.read().iter().map(facts).collect()
    }

    /// Bytes of the frames of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.bytes()).sum()
    }

    /// Whether anything is held of a partition.
    pub fn holds(&self, partition: PartitionId) -> bool {
        let first = SegmentId {
            partition,
            epoch: Epoch(0),
            seq: 0,
        };
        let last = SegmentId {
            epoch: Epoch(u32::MAX),
            seq: u32::MAX,
            ..first
        };
        self.segments.read().range(first..=last).next().is_some()
    }

    /// Who uses these ranges of positions, which must rise and not overlap.
    pub fn survey(&self, ranges: &[Range<u64>]) -> Survey {
        let mut survey = Survey {
            used: vec![false; ranges.len()],
            first: Vec::new(),
        };
        let segments: Vec<_> = self
            .segments
            .read()
            .iter()
            .map(|(id, segment)| (*id, Arc::clone(segment)))
            .collect();
        for (id, segment) in segments {
            let entries = segment.entries.read();
            let (mut at, mut first) = (0, None);
            if segment.scattered.load(Ordering::Acquire) {
                for entry in entries.iter() {
                    let range = ranges.partition_point(|range| range.end <= entry.position);
                    let inside = ranges
                        .get(range)
                        .is_some_and(|range| range.contains(&entry.position));
                    if let Some(used) = survey.used.get_mut(range).filter(|_| inside) {
                        *used = true;
                        first = Some(first.map_or(range, |first: usize| first.min(range)));
                    }
                }
                survey.first.extend(first.map(|first| (id, first)));
                continue;
            }
            // From file to file: the entries between are passed over.
            while let Some(entry) = entries.get(at) {
                let range = ranges.partition_point(|range| range.end <= entry.position);
                let Some(here) = ranges.get(range) else { break };
                let passed = if entry.position < here.start {
                    here.start
                } else {
                    first.get_or_insert(range);
                    if let Some(used) = survey.used.get_mut(range) {
                        *used = true;
                    }
                    here.end
                };
                let rest = entries.get(at..).unwrap_or_default();
                at += rest.partition_point(|entry| entry.position < passed);
            }
            survey.first.extend(first.map(|first| (id, first)));
        }
        survey
    }

    /// Frames in a range of positions, by position. Read while the journal goes on: each was durable
    /// when it was found.
    pub fn within(&self, range: &Range<u64>) -> Vec<(SegmentId, Entry)> {
        let segments: Vec<_> = self
            .segments
            .read()
            .iter()
            .map(|(id, segment)| (*id, Arc::clone(segment)))
            .collect();
        let mut found = Vec::new();
        for (id, segment) in segments {
            segment.for_each_within(range, |entry| found.push((id, *entry)));
        }
        found.sort_unstable_by_key(|(_, entry)| entry.position);
        found
    }

    /// Takes out the entry of a frame that is damaged, and puts its segment into limbo; false where the
    /// frame is not held any more, or somebody else was first.
    pub(crate) fn damage(&self, segment: SegmentId, bad: &Entry) -> bool {
        self.get(segment).is_some_and(|segment| segment.damage(bad))
    }

    /// What was found to be damaged of a segment does not matter: it belongs to it no more.
    pub(crate) fn clear_damage(&self, segment: SegmentId) {
        if let Some(segment) = self.get(segment) {
            segment.damaged.store(false, Ordering::Release);
        }
    }

    /// Segments that may lack bytes, and are no copies under way.
    pub(crate) fn damaged(&self, max: usize) -> Vec<(SegmentId, Arc<SegmentIndex>)> {
        let segments = self.segments.read();
        let damaged = segments
            .iter()
            .filter(|(_, segment)| segment.is_limbo() && !segment.copying.load(Ordering::Acquire));
        damaged
            .take(max)
            .map(|(id, segment)| (*id, Arc::clone(segment)))
            .collect()
    }

    /// Whether a frame is still held where its entry says.
    pub fn has(&self, segment: SegmentId, entry: &Entry) -> bool {
        self.get(segment).is_some_and(|segment| segment.has(entry))
    }

    /// Forgets a segment whose trim is durable.
    pub(crate) fn forget(&self, segment: SegmentId) {
        let forgotten = self.segments.write().remove(&segment);
        // Freeing its entries takes a while, and others wait for the lock.
        drop(forgotten);
    }

    /// Adds durable frames, each with its segment's state after all of them; makes the segment
    /// where it is new. Whether its limbo ended by that.
    pub(crate) fn publish(&self, state: &SegmentState, entries: &[Entry]) -> bool {
        let segment = match self.get(state.segment) {
            Some(segment) => segment,
            None => {
                let new = SegmentIndex::new(state, Vec::new());
                // Whoever looks must not take a copy that begins for one that was left.
                new.copying.store(state.copied, Ordering::Release);
                let new = Arc::new(new);
                self.segments.write().entry(state.segment).or_insert(new).clone()
            }
        };
        segment.add(state, entries);
        segment.fenced.store(state.fenced.is_some(), Ordering::Release);
        let was_limbo = segment.limbo.swap(state.limbo, Ordering::AcqRel);
        if state.limbo {
            segment.damaged.store(false, Ordering::Release);
        }
        segment.copied_by.store(copied_by(state), Ordering::Release);
        segment.committed.fetch_max(state.committed.0, Ordering::AcqRel);
        // Last: who sees the tail finds everything below it.
        segment.tail.store(state.tail.0, Ordering::Release);
        was_limbo && !state.limbo
    }

    /// A copy is being made, or no longer.
    pub(crate) fn copying(&self, segment: SegmentId, under_way: bool) {
        if let Some(segment) = self.get(segment) {
            segment.copying.store(under_way, Ordering::Release);
        }
    }

    /// A committed offset was stated.
    pub(crate) fn commit(&self, segment: SegmentId, committed: Offset) {
        if let Some(segment) = self.get(segment) {
            segment.committed.fetch_max(committed.0, Ordering::AcqRel);
        }
    }
}

fn copied_by(state: &SegmentState) -> u64 {
    match state.fenced {
        Some(by) if state.copied => u64::from(by.0) + 1,
        _ => 0,
    }
}
